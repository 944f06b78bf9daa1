"""Equal and other features in records."""

from __future__ import annotations

from typing import Any

from ercfusion.records.feature_tables import differ_by_machine, features_digest, is_same_table


def test_features_made_on_another_machine() -> None:
    def table(**changes: Any) -> dict[str, Any]:
        source = {"sha256": "a" * 64, "settings": {"encoder": "E"}, "machine": {"processor": "one"}, **changes}
        return {"modality": "text", "width": 24, "level": "utterance", "source": source}

    one = table()
    assert is_same_table(one, table(machine={"processor": "two"}))
    assert not is_same_table(one, table(sha256="b" * 64))
    assert not is_same_table(one, {**one, "width": 23})
    assert not differ_by_machine(one, table(sha256="b" * 64))
    assert differ_by_machine(one, table(sha256="b" * 64, machine={"processor": "two"}))
    other = {"sha256": "b" * 64, "machine": {"processor": "two"}, "settings": {"encoder": "F"}}
    assert not differ_by_machine(one, table(**other))
    records = [{"features": [each]} for each in (one, table(sha256="b" * 64))]
    assert features_digest(records[0]) != features_digest(records[1])
