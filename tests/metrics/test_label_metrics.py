from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from made_predictions import LABEL_A, LABELS, make, random_predictions
from torchmetrics import functional as torch_oracle

from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import per_class
from ercfusion.metrics.labels import best_thresholds, cuts
from ercfusion.metrics.registry import (
    check_metric,
    get_metric,
    metrics_of,
    scores,
)
from ercfusion.metrics.sums import SUMS


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(5))
def test_multi_label_against_sklearn(seed: int) -> None:
    predictions = random_predictions(LABELS, seed, (7, 1, 30, 12) if seed < 4 else (1,))
    valid = predictions.valid
    truth, said = predictions.value[valid].astype(int), (predictions.output[valid] >= 0.5).astype(int)
    found = scores(predictions)
    for name, empty in (("weighted", 0), ("micro", 0), ("samples", 1)):
        assert found[f"{name}_f1"] == pytest.approx(oracle.f1_score(truth, said, average=name, zero_division=empty))
    occurs = np.flatnonzero((truth | said).any(axis=0))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, said, labels=occurs, average="macro"))
    expected = torch_oracle.classification.multilabel_f1_score(
        torch.from_numpy(predictions.output[valid]), torch.from_numpy(truth), num_labels=6, average="macro"
    )
    # torchmetrics counts a label that occurs nowhere as 0 here (but leaves a class out in the multi-class case).
    assert found["macro_f1"] * len(occurs) / 6 == pytest.approx(float(expected), abs=1e-6)
    assert found["micro_precision"] == pytest.approx(oracle.precision_score(truth, said, average="micro"))
    assert found["micro_recall"] == pytest.approx(oracle.recall_score(truth, said, average="micro"))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["hamming"] == pytest.approx(oracle.hamming_loss(truth, said))
    for name, empty in (("jaccard", 1), ("jaccard_zero", 0)):
        assert found[name] == pytest.approx(oracle.jaccard_score(truth, said, average="samples", zero_division=empty))
    assert found["accuracy"] <= found["jaccard"] <= found["samples_f1"]
    for column, label in enumerate(LABELS.output_names):
        if 0 < truth[:, column].sum() < len(truth):
            balanced = oracle.balanced_accuracy_score(truth[:, column], said[:, column])
            assert found[f"weighted_accuracy/{label}"] == pytest.approx(balanced)
    counts = SUMS["counts"].of(predictions)
    assert counts.shape == (len(predictions.lengths), 6, 3)
    expected_counts = oracle.multilabel_confusion_matrix(truth, said)
    assert np.array_equal(counts.sum(0), expected_counts[:, [1, 0, 1], [1, 1, 0]])
    table = per_class(predictions)
    expected_table = oracle.precision_recall_fscore_support(truth, said, zero_division=0)
    assert [row["precision"] for row in table.values()] == pytest.approx(list(expected_table[0]))
    assert [row["support"] for row in table.values()] == pytest.approx(list(expected_table[3]))


@pytest.mark.parametrize("seed", range(4))
def test_mean_average_precision_against_sklearn(seed: int) -> None:
    predictions = random_predictions(LABELS, seed)
    if seed:  # equal probabilities are one cut
        predictions = replace(predictions, output=predictions.output.round(seed % 2 + 1))
    predictions.value[:, 5] = 0
    truth, output = predictions.value[predictions.valid] > 0.5, predictions.output[predictions.valid]
    found = scores(predictions)
    expected = [oracle.average_precision_score(truth[:, column], output[:, column]) for column in range(5)]
    labels = LABELS.output_names
    assert [found[f"map/{label}"] for label in labels[:5]] == pytest.approx(expected)
    # A label that no utterance has is left out.
    assert f"map/{labels[5]}" not in found
    assert found["map"] == pytest.approx(np.mean(expected))
    table = per_class(replace(predictions, thresholds=np.linspace(0.1, 0.6, 6)))
    assert [row.get("average_precision") for row in table.values()] == pytest.approx([*expected, None])
    assert [row["threshold"] for row in table.values()] == pytest.approx(np.linspace(0.1, 0.6, 6))
    assert {row["threshold"] for row in per_class(predictions).values()} == {0.5}
    nobody = scores(replace(predictions, value=np.zeros_like(predictions.value)))
    assert not [name for name in nobody if name.startswith("map")]


def test_average_precision_of_a_known_order() -> None:
    # Right, wrong, right, wrong: precisions 1 and 2/3 at the two right ones.
    found = scores(make(LABEL_A, [[0.9], [0.8], [0.3], [0.1]], [[1.0], [0.0], [1.0], [0.0]]))
    assert found["map"] == pytest.approx((1 + 2 / 3) / 2)
    # All equal: the share of the right ones.
    assert scores(make(LABEL_A, [[0.5]] * 4, [[1.0], [0.0], [0.0], [0.0]]))["map"] == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_per_label_equals_the_sum_over_bins(seed: int) -> None:
    predictions = random_predictions(LABELS, seed)
    truth, output = predictions.value[predictions.valid] > 0.5, predictions.output[predictions.valid]
    found, errors = scores(predictions), []
    for column in range(6):
        error = 0.0
        for number in range(15):
            low, high = number / 15, (number + 1) / 15
            rows = (output[:, column] >= low) & (output[:, column] < high)
            if rows.any():
                error += rows.mean() * abs(truth[rows, column].mean() - output[rows, column].mean())
        errors.append(error)
    assert [found[f"label_ece/{label}"] for label in LABELS.output_names] == pytest.approx(errors)
    assert found["label_ece"] == pytest.approx(np.mean(errors))
    assert scores(make(LABELS, predictions.value, predictions.value))["label_ece"] == 0


def test_precision_and_recall_are_the_right_way_round() -> None:
    """Three labels predicted, one of them rightly; one of two true labels predicted."""
    output = [[0.9, 0.9, 0.9, 0.1, 0.1, 0.1]]
    value = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    found = scores(make(LABELS, output, value))
    assert found["micro_precision"] == pytest.approx(1 / 3)
    assert found["micro_recall"] == pytest.approx(1 / 2)


def test_cuts_of_one_label() -> None:
    curve = cuts(np.array([0.2, 0.9, 0.9, 0.4]), np.array([True, True, False, False]))
    assert curve.lowest.tolist() == [0.9, 0.4, 0.2]
    assert curve.hits.tolist() == [1, 1, 2]
    assert curve.chosen.tolist() == [2, 3, 4]
    assert curve.precision.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert curve.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert curve.f1.tolist() == pytest.approx([1 / 2, 2 / 5, 2 / 3])
    empty = cuts(np.zeros(0), np.zeros(0, dtype=bool))
    assert len(empty.lowest) == empty.positives == 0


def test_two_empty_sets_of_labels_are_equal() -> None:
    """One rule: every score of sets counts the second utterance, rightly without any label, as right."""
    value = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=float)
    said = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]], dtype=float)
    found = scores(make(LABELS, said, value))
    whole = [metric.name for metric in metrics_of(LABELS) if metric.empty_sets]
    assert whole == ["samples_f1", "accuracy", "jaccard"]
    assert {found[name] for name in whole} == {0.5}
    assert found["jaccard_zero"] == 0.25
    perfect = scores(make(LABELS, value, value))
    assert {perfect[name] for name in whole} == {1.0}
    assert perfect["jaccard_zero"] == 0.5
    assert all("empty" in get_metric(name).meaning for name in (*whole, "jaccard_zero"))


def test_weighted_accuracy_is_that_of_mosei() -> None:
    value = np.array([[1, 1, 0, 1, 0, 1]] * 2 + [[0, 1, 0, 0, 0, 1]] * 6, dtype=float)
    said = value.copy()
    said[:3, 0] = [0, 1, 1]  # one of two found, one false alarm among six
    said[:, 3] = 0
    found = scores(make(LABELS, said, value))
    labels = LABELS.output_names
    tp, tn, p, n = 1, 5, 2, 6
    assert found[f"weighted_accuracy/{labels[0]}"] == pytest.approx((tp * n / p + tn) / (2 * n))
    assert found[f"weighted_accuracy/{labels[3]}"] == 0.5
    # Labels that all or no utterances have say nothing.
    assert [name for name in found if name.startswith("weighted_accuracy/")] == [
        f"weighted_accuracy/{labels[place]}" for place in (0, 3)
    ]
    assert found["weighted_accuracy"] == pytest.approx((2 / 3 + 0.5) / 2)
    nobody = scores(make(LABELS, said, np.zeros_like(value)))
    assert not [name for name in nobody if name.startswith("weighted_accuracy")]
    check_metric(LABELS, f"weighted_accuracy/{labels[1]}")
    assert get_metric(f"weighted_accuracy/{labels[1]}").higher_is_better


@pytest.mark.parametrize("seed", range(4))
def test_best_thresholds_are_the_best(seed: int) -> None:
    predictions = random_predictions(LABELS, seed)
    predictions.output[:] = predictions.output.round(1)  # ties between scores
    predictions.value[:, 5] = 0
    thresholds = best_thresholds(predictions)
    assert thresholds[5] == 0.5
    valid = predictions.valid
    truth = predictions.value[valid].astype(int)
    for column in range(5):
        values = [
            oracle.f1_score(truth[:, column], predictions.output[valid, column] >= cut, zero_division=0)
            for cut in np.linspace(0, 1.05, 22)  # half the distance between two scores
        ]
        found = oracle.f1_score(truth[:, column], predictions.output[valid, column] >= thresholds[column])
        assert found == pytest.approx(max(values))


def test_a_number_at_the_threshold_is_positive() -> None:
    """Decisions, counts and the choice of thresholds agree: a probability equal to the threshold says yes."""
    task = TaskSpec("x", "multi_label", LabelSchema("two", ("a", "b")))
    output, value = [[0.5, 0.5], [0.4, 0.7], [0.6, 0.3]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    predictions = make(task, output, value)
    assert predictions.decisions().tolist() == [[True, True], [False, True], [True, False]]
    chosen = replace(predictions, thresholds=np.array([0.6, 0.7]))
    assert chosen.decisions().tolist() == [[False, False], [False, True], [True, False]]
    assert SUMS["counts"].of(chosen).sum(axis=0).tolist() == [[1, 0, 1], [1, 0, 0]]
    # Neighbouring numbers have no middle: the upper one is the threshold, and must count as positive.
    low = float(np.nextafter(np.float32(0.7), np.float32(0)))
    close = make(LABEL_A, [[np.float32(0.7)], [low]], [[1.0], [0.0]])
    close = replace(close, thresholds=best_thresholds(close))
    assert scores(close)["micro_f1"] == 1


def test_a_target_at_one_half_is_no_label() -> None:
    """In counts, in scores of sets and in the choice of thresholds alike: half a vote is no majority."""
    task = TaskSpec("x", "multi_label", LabelSchema("two", ("a", "b")))
    half = make(task, [[0.9, 0.9], [0.9, 0.1]], [[0.5, 1.0], [1.0, 0.0]])
    none = replace(half, value=np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert SUMS["counts"].of(half).tolist() == SUMS["counts"].of(none).tolist()
    assert scores(half) == scores(none)
    output, value = [[0.2], [0.9]], [[0.5], [1.0]]
    assert best_thresholds(make(LABEL_A, output, value)) == best_thresholds(make(LABEL_A, output, [[0.0], [1.0]]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threshold_between_neighbouring_numbers(kind: Any) -> None:
    task = TaskSpec("x", "multi_label", LabelSchema("one", ("a",)))
    high = kind(0.7)
    low = np.nextafter(high, kind(0))
    predictions = make(task, [[high], [low]], [[1.0], [0.0]])
    threshold = best_thresholds(predictions)
    assert low < threshold[0] <= high
    assert kind is np.float64 or low < np.float32(threshold[0]) <= high
