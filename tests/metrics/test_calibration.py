from __future__ import annotations

import numpy as np
import pytest
from made_predictions import DISTRIBUTION, EMOTION, make, random_predictions

from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.calibration import adaptive_calibration_error, calibration_bins, expected_calibration_error
from ercfusion.metrics.inputs import labelled
from ercfusion.metrics.registry import (
    scores,
)


def test_calibration_edges() -> None:
    schema = LabelSchema("two", ("a", "b"))
    task = TaskSpec("x", "single_label", schema)
    predictions = make(task, [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], [0, 1, 1])
    rows = labelled(predictions)
    assert rows is not None
    count, accuracy, confidence = calibration_bins(rows, 4)
    assert count.tolist() == [0, 0, 1, 2]
    assert accuracy.tolist() == [0, 0, 0, 1]
    assert confidence.tolist() == [0, 0, 0.5, 0.875]
    assert expected_calibration_error(rows, 4) == pytest.approx((0.5 + 2 * 0.125) / 3)
    assert "micro_f1_without_neutral" not in scores(predictions)


def calibration_by_loops(predictions: Predictions, bins: int) -> tuple[float, float]:
    """Class-wise and adaptive calibration error, one utterance after the other; no two of equal confidence."""
    truth, labelled = predictions.labels()
    rows = [row for row in range(len(truth)) if labelled[row]]
    classwise = 0.0
    for label in range(predictions.task.size):
        for part in range(bins):
            inside = [row for row in rows if min(int(predictions.output[row, label] * bins), bins - 1) == part]
            if inside:
                gap = sum(predictions.output[row, label] - (truth[row] == label) for row in inside)
                classwise += abs(gap) / len(rows) / predictions.task.size
    adaptive, rest = 0.0, sorted(rows, key=lambda row: predictions.output[row].max())
    for part in range(bins):
        size = len(rows) // bins + (part < len(rows) % bins)
        inside, rest = rest[:size], rest[size:]
        gap = sum(predictions.output[row].max() - (predictions.output[row].argmax() == truth[row]) for row in inside)
        adaptive += abs(gap) / len(rows)
    assert not rest
    return classwise, adaptive


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", [EMOTION, DISTRIBUTION], ids=["single_label", "distribution"])
def test_calibration_against_loops(task: TaskSpec, seed: int) -> None:
    predictions = random_predictions(task, seed, ((7, 1, 30, 12), (60, 81), (15,), (4, 3))[seed])
    classwise, adaptive = calibration_by_loops(predictions, 15)
    found = scores(predictions)
    assert found["ece_classwise"] == pytest.approx(classwise)
    assert found["ece_adaptive"] == pytest.approx(adaptive)


def test_equal_confidences_share_their_hits() -> None:
    # Two bins of 5 and 4: the cut goes through the seven utterances of confidence 0.75, four of which are right.
    task = TaskSpec("x", "single_label", LabelSchema("two", ("a", "b")))
    output = np.array([[0.75, 0.25]] * 7 + [[0.5, 0.5], [1.0, 0.0]])
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0])
    # |4 * 4/7 + 1 - (4 * 0.75 + 0.5)| + |3 * 4/7 + 1 - (3 * 0.75 + 1)|
    expected = (abs(16 / 7 + 1 - 3.5) + abs(12 / 7 + 1 - 3.25)) / 9
    rng = np.random.default_rng(0)
    for order in (np.arange(9), rng.permutation(9), rng.permutation(9)):
        rows = labelled(make(task, output[order], truth[order]))
        assert rows is not None
        found = adaptive_calibration_error(rows, 2)
        assert found == pytest.approx(expected)


def test_perfect_calibration_of_all_labels() -> None:
    # Three of four are what is said with 0.75; and the class-wise error sees what the largest probability hides.
    task = TaskSpec("x", "single_label", LabelSchema("three", ("a", "b", "c")))
    output = np.array([[0.75, 0.25, 0.0]] * 4)
    calibrated = scores(make(task, output, [0, 0, 0, 1]))
    assert calibrated["ece"] == calibrated["ece_adaptive"] == calibrated["ece_classwise"] == 0
    blind = scores(make(task, output, [0, 0, 0, 2]))
    assert blind["ece"] == 0
    assert blind["ece_adaptive"] == 0
    assert blind["ece_classwise"] == pytest.approx(0.5 / 3)
