"""The text printed after a run."""

from __future__ import annotations

import pytest
from made_records import record

from ercfusion.tables.report import majority_note, score_table, summary

NOTE = "is not better than majority on dev"


def test_columns_name_their_split_and_arrows_the_direction() -> None:
    head, *rows = score_table(record()).splitlines()
    assert head.endswith("95 % interval  majority (test)  exact posterior (test)")
    assert [row.split()[0] for row in rows if "↓" in row] == ["ece"]


@pytest.mark.parametrize(
    ("metric", "score", "floor", "noted"),
    [
        ("weighted_f1", 0.3, 0.2, False),
        ("weighted_f1", 0.2, 0.2, True),
        ("weighted_f1", 0.1, 0.2, True),
        ("mae", 0.3, 0.2, True),
        ("mae", 0.1, 0.2, False),
    ],
)
def test_a_run_not_better_than_majority_on_dev(metric: str, score: float, floor: float, noted: bool) -> None:
    made = record()
    made["selection"]["metric"] = metric
    made["metrics"]["dev"][metric], made["majority"]["dev"][metric] = score, floor
    assert (NOTE in majority_note(made)) is noted
    assert summary(made).count(NOTE) == noted
    made["config"]["model"]["name"] = "majority"
    assert majority_note(made) == ""


def test_no_note_without_a_dev_score() -> None:
    made = record()
    del made["majority"]["dev"]["weighted_f1"]
    assert majority_note(made) == ""
