"""Intervals that do not exist, and those that may not hold what they promise: what is said, and where."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from made_records import TASK, predictions, record

from ercfusion.metrics.cautions import MARK, cautions, why_none
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.plots.page import as_page, interval_picture
from ercfusion.records.intervals import known_interval, record_cautions, record_intervals
from ercfusion.records.record import checked_record
from ercfusion.records.run_schema import Record
from ercfusion.tables.exports import as_csv, as_latex
from ercfusion.tables.preset import Row, TablePreset
from ercfusion.tables.render import as_markdown, comparison_cells, score_cells
from ercfusion.tables.report import caution_lines, model_card, score_table, summary
from ercfusion.tables.table import compute_table
from ercfusion.tables.verdicts import verdict_lines

ONE = "no interval: one test conversation says nothing about others"
EQUAL = "no interval: the score is the same on every resample of the conversations"


def confusions(wrong: int, conversations: int = 30, seeds: int = 3) -> np.ndarray:
    """(S, B, 6, 6), 20 right utterances of each label in each conversation, and one wrong in ``wrong`` of them."""
    sums = np.tile(20 * np.eye(6, dtype=int), (seeds, conversations, 1, 1))
    sums[:, :wrong, 0, 1] = 1
    return sums


def test_nearly_perfect() -> None:
    assert cautions(TASK, "weighted_f1", confusions(5)) == ()
    (found,) = cautions(TASK, "weighted_f1", confusions(4))
    assert found == "the interval may be too short: only 4 of 30 test conversations have an error (fewer than 5)"
    (found,) = cautions(TASK, "weighted_f1", confusions(1))
    assert "only 1 of 30 test conversations has an error" in found
    assert cautions(TASK, "weighted_f1", confusions(0), missing=True) == (EQUAL,)
    # Conversations without a label do not count, and an error of any seed does.
    sums = np.concatenate([confusions(4), np.zeros((3, 5, 6, 6), dtype=int)], axis=1)
    assert cautions(TASK, "weighted_f1", sums)[0].startswith("the interval may be too short: only 4 of 30")
    sums[1, 20, 2, 3] = 1
    assert cautions(TASK, "weighted_f1", sums) == ()


def test_few_conversations() -> None:
    assert cautions(TASK, "weighted_f1", confusions(12, conversations=12)) == ()
    (found,) = cautions(TASK, "weighted_f1", confusions(11, conversations=11))
    assert found == "the interval may be too short: only 11 test conversations (fewer than 12)"


@pytest.mark.parametrize(("metric", "told"), [("macro_f1", True), ("uar", True), ("weighted_f1", False)])
def test_rare_classes(metric: str, told: bool) -> None:
    sums = confusions(10)
    sums[:, 4:, 2] = sums[:, 5:, 4] = sums[:, :, 5] = 0
    names = TASK.output_names
    found = cautions(TASK, metric, sums)
    assert found == (
        (f"the interval may be too short: classes in fewer than 5 test conversations: {names[2]} (4), {names[5]} (0)",)
        if told
        else ()
    )


def test_noisy_seeds() -> None:
    sums = confusions(30, seeds=2)
    sums[0, :, 1, 2] = 12
    (found,) = cautions(TASK, "accuracy", sums)
    assert found.startswith("the standard deviation of the seeds is above 0.035, the largest")
    # Accuracies of 120 of 121 and of 120 of 121 + n: a standard deviation of 0.034 with n = 6, of 0.039 with 7.
    sums[0, :, 1, 2] = 7
    assert len(cautions(TASK, "accuracy", sums)) == 1
    sums[0, :, 1, 2] = 6
    assert cautions(TASK, "accuracy", sums) == ()
    assert cautions(TASK, "accuracy", sums[:1]) == ()


def test_scores_without_sums_have_no_caution() -> None:
    assert cautions(TASK, "ece", confusions(0)) == ()


def test_one_conversation_in_a_record() -> None:
    made = predictions(0.5, 0, conversations=1)
    found = record_intervals(made, ["weighted_f1", "accuracy"], 50)
    assert found == {
        "level": 0.95,
        "resampled": "conversations",
        "test": {},
        "none": {"weighted_f1": ONE, "accuracy": ONE},
    }
    whole = record_intervals(predictions(0.5, 0), ["weighted_f1"], 50)
    assert whole.keys() == {"level", "resampled", "test"}
    low, high = whole["test"]["weighted_f1"]
    assert low < high
    perfect = record_intervals(predictions(1.0, 0), ["weighted_f1", "ece"], 20)
    assert perfect["none"]["weighted_f1"] == EQUAL
    kept = record("concat", 0, 0.5, conversations=1, intervals=found)
    assert Record.model_validate(kept).intervals.none == found["none"]
    assert checked_record(kept, Path("record.json")) is kept


@pytest.mark.parametrize("recorded", [{}, {"weighted_f1": [0.004, 0.004]}])
def test_a_run_on_one_conversation_says_that_there_is_no_interval(recorded: dict[str, list[float]]) -> None:
    """Also for the records of before, which hold an interval without width."""
    made = record("concat", 0, 0.5, conversations=1)
    made["intervals"]["test"] = recorded
    assert known_interval(made, "weighted_f1") is None
    row = next(line for line in score_table(made).splitlines() if line.startswith("weighted_f1"))
    assert row.split()[3] == "none"
    assert " to " not in score_table(made)
    assert caution_lines(made) == [f"{MARK} weighted_f1: {ONE}"]
    assert f"{MARK} weighted_f1: {ONE}" in summary(made)


def test_a_run_with_a_caution() -> None:
    made = record("concat", 0, 0.5)
    assert record_cautions(made, "weighted_f1") == ()
    assert MARK not in summary(made)
    assert "0.1000 to 0.9000\n" not in score_table(made)
    made["intervals"]["test"]["macro_f1"] = [0.1, 0.8]
    made["majority"]["test"]["macro_f1"] = 0.1
    perfect = predictions(1.0, 0)
    made["splits"]["test"]["confusion"] = {
        name: [[place, place, int(count)] for place, count in enumerate(np.diag(matrix)) if count]
        for name, matrix in zip(perfect.conversation_ids, conversation_sums(perfect)["confusion"], strict=True)
    }
    assert f"0.1000 to 0.8000 {MARK}" in score_table(made)
    (line,) = caution_lines(made)
    assert line.startswith(f"{MARK} weighted_f1, macro_f1: the interval may be too short: only 0 of 12")

    class Card:
        title = licence = citation = "x"
        synthetic = True

    assert line in model_card(made, Card())


@pytest.fixture(scope="module")
def one_conversation():
    rows = (Row("plain", "concat", (), (0, 1)), Row("graph", "cogmen", (), (0, 1)))
    runs = {
        "plain": [record("concat", seed, 0.3, conversations=1) for seed in (0, 1)],
        "graph": [record("cogmen", seed, 0.9, conversations=1) for seed in (0, 1)],
    }
    return compute_table(TablePreset(Path("made.yaml"), "Made", "demo", (), rows), runs)


def test_tables_say_none(one_conversation) -> None:
    table = one_conversation
    for line in table.lines:
        score = line.test["weighted_f1"]
        assert math.isnan(score.low)
        assert score.interval is None
        assert score.cautions == (ONE,)
    assert [row[2] for row in score_cells(table)[1:]] == ["none", "none"]
    (comparison,) = comparison_cells(table)[1:]
    assert (comparison[2], comparison[-1]) == ("none", "no interval")
    note = f"{MARK} all rows: {ONE}."
    for text in (as_markdown(table), as_page(table).partition("<script>")[0], as_latex(table)):
        assert note in text
        assert "nan" not in text.lower()
    assert "none" in as_latex(table)
    assert "NaN" not in interval_picture(table)
    for row in csv.DictReader(io.StringIO(as_csv(table))):
        if row["metric"] == "weighted_f1":
            assert (row["low"], row["high"], row["caution"]) == ("", "", ONE)
        elif row["metric"] == "ece":
            assert row["caution"] == ""
    assert verdict_lines(table) == ["Of 1 differences 0 are shown; no difference has an interval.", ""]


def test_tables_mark_intervals_with_a_caution() -> None:
    rows = (Row("plain", "concat", (), (0, 1)), Row("rare", "cogmen", (), (0, 1)))
    runs = {
        "plain": [record("concat", seed, 0.5, conversations=40) for seed in (0, 1)],
        "rare": [record("cogmen", seed, 0.5 + 0.4 * seed, conversations=40) for seed in (0, 1)],
    }
    table = compute_table(TablePreset(Path("made.yaml"), "Made", "demo", (), rows), runs)
    cells = [row[2] for row in score_cells(table)[1:]]
    assert not cells[0].endswith(MARK)
    assert cells[1].endswith(f" {MARK}")
    (comparison,) = comparison_cells(table)[1:]
    assert comparison[2].endswith(f" {MARK}")
    assert f"{MARK} rare: the standard deviation of the seeds is above 0.035" in as_markdown(table)
    assert f"] {MARK}" in as_latex(table)


def test_reasons() -> None:
    assert why_none(1) == ONE
    assert why_none(2) == EQUAL
