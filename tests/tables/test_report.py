"""The text printed after a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import LABELS, random_predictions
from made_records import record

from ercfusion.metrics.classification import per_class
from ercfusion.metrics.registry import scores
from ercfusion.records.record import split_record
from ercfusion.tables.report import label_table, majority_note, score_table, summary

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


def test_labels_of_a_multi_label_run_have_a_table_with_thresholds() -> None:
    predictions = random_predictions(LABELS, 0)
    predictions.value[:, 5] = 0
    part = replace(predictions, thresholds=np.linspace(0.1, 0.6, 6))
    made = record()
    assert label_table(made) == ""
    made["task"] = LABELS.to_dict()
    made["splits"]["test"] = split_record(part)
    made["metrics"] = {split: scores(part) for split in ("dev", "test")}
    made["selection"]["metric"] = "weighted_f1"
    head, *rows, last = label_table(made).splitlines()
    assert head.split() == ["label", "(test)", "precision", "recall", "F1", "AP", "threshold", "support"]
    table = per_class(part)
    for row, (label, values) in zip(rows, table.items(), strict=True):
        name, *cells = row.split()
        precision = values.get("average_precision")
        shown = "-" if precision is None else f"{precision:.4f}"
        assert (name, cells[2], cells[3], cells[4]) == (
            label,
            f"{values['f1']:.4f}",
            shown,
            f"{values['threshold']:.4f}",
        )
    assert rows[-1].split()[4] == "-"
    assert last == "thresholds: chosen on dev"
    assert label_table(made) in summary(made)
    assert label_table({**made, "source": "shares"}).endswith("thresholds: 0.5, dev has no labels")
    assert label_table({**made, "source": "shares", "thresholds": [0.5] * 6}).endswith(last)
