"""Parts ``features`` of records: identity, checksums and differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def table_identity(table: Mapping[str, Any]) -> dict[str, Any]:
    """Identity of features, without folder, time and machine."""
    return {
        "width": table["width"],
        **{key: value for key, value in table["source"].items() if key not in ("pack", "created", "machine")},
    }


def table_digest(table: Mapping[str, Any]) -> str:
    """The beginning of the checksum of the values, or else of the identity."""
    text = json.dumps(table_identity(table), sort_keys=True)
    return str(table["source"].get("sha256") or hashlib.sha256(text.encode()).hexdigest())[:8]


def features_digest(record: Mapping[str, Any]) -> str:
    """Checksum of the identity of a run's features."""
    identities = {table["modality"]: [table["level"], table_identity(table)] for table in record["features"]}
    return hashlib.sha256(json.dumps(identities, sort_keys=True).encode()).hexdigest()


def is_same_table(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two parts ``features`` describe the same values: their checksums, or else their sources, are equal."""
    if (one["width"], one["level"]) != (other["width"], other["level"]):
        return False
    checksums = [table["source"].get("sha256") for table in (one, other)]
    return checksums[0] == checksums[1] if any(checksums) else _plain(one) == _plain(other)


def differ_by_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the same extraction on two machines explains all differences of two parts ``features``."""
    machines = [table["source"].get("machine") for table in (one, other)]
    if None in machines or machines[0] == machines[1] or one["level"] != other["level"]:
        return False
    return _plain(one, "sha256") == _plain(other, "sha256")


def table_in_words(table: Mapping[str, Any]) -> str:
    """Width, encoder or tool, and the beginning of the checksum of a part ``features``."""
    source = table["source"]
    made = source.get("settings", {}).get("encoder") or source.get("tool")
    return " ".join([f"{table['width']}-d", *([str(made)] if made else []), table_digest(table)])


def _plain(table: Mapping[str, Any], *without: str) -> str:
    return json.dumps(
        {key: value for key, value in table_identity(table).items() if key not in without}, sort_keys=True
    )
