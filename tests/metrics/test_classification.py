from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from made_predictions import EMOTION, make, random_predictions
from torchmetrics import functional as torch_oracle

from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import confusion_matrix, per_class
from ercfusion.metrics.registry import (
    get_metric,
    metrics_of,
    scores,
)
from ercfusion.metrics.sums import SUMS


@pytest.mark.parametrize("seed", range(6))
def test_single_label_against_sklearn(seed: int) -> None:
    # Seeds 4 and 5 are tiny: classes absent from truth, prediction or both.
    predictions = random_predictions(EMOTION, seed, (7, 1, 30, 12) if seed < 4 else (2, 1))
    valid = predictions.valid
    truth, said = predictions.value[valid], predictions.output.argmax(1)[valid]
    found = scores(predictions)
    assert found["weighted_f1"] == pytest.approx(oracle.f1_score(truth, said, average="weighted", zero_division=0))
    # Without labels= sklearn averages over the labels of truth and prediction together: our rule.
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, said, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["uar"] == pytest.approx(oracle.balanced_accuracy_score(truth, said))
    without = oracle.f1_score(truth, said, labels=range(1, 7), average="micro", zero_division=0)
    assert found["micro_f1_without_neutral"] == pytest.approx(without)
    probability = np.maximum(predictions.output[valid], 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows whose sum the floor changes in the last digits
        assert found["nll"] == pytest.approx(oracle.log_loss(truth, probability, labels=range(7)))
    assert np.array_equal(confusion_matrix(predictions), oracle.confusion_matrix(truth, said, labels=np.arange(7)))
    assert np.array_equal(SUMS["confusion"].of(predictions).sum(axis=0), confusion_matrix(predictions))


@pytest.mark.parametrize("seed", range(4))
def test_single_label_against_torchmetrics(seed: int) -> None:
    predictions = random_predictions(EMOTION, seed)
    output = torch.from_numpy(predictions.output[predictions.valid])
    value = torch.from_numpy(predictions.value[predictions.valid])
    found = scores(predictions)
    average: Any
    for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted"), ("accuracy", "micro")):
        expected = torch_oracle.classification.multiclass_f1_score(output, value, num_classes=7, average=average)
        assert found[name] == pytest.approx(float(expected), abs=1e-6)
    expected = torch_oracle.classification.multiclass_calibration_error(output, value, num_classes=7, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_per_class_against_sklearn() -> None:
    predictions = random_predictions(EMOTION, 3)
    valid = predictions.valid
    expected = oracle.precision_recall_fscore_support(
        predictions.value[valid], predictions.output.argmax(1)[valid], labels=np.arange(7), zero_division=0
    )
    table = per_class(predictions)
    assert tuple(table) == EMOTION.output_names
    for column, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in table.values()] == pytest.approx(list(expected[column]))


def test_one_row_and_constant_prediction() -> None:
    found = scores(make(EMOTION, np.eye(7)[[3]], [3]))
    assert found["weighted_f1"] == found["macro_f1"] == found["uar"] == found["accuracy"] == 1
    assert found["nll"] == found["ece"] == 0
    assert "shift_accuracy" not in found
    assert "same_accuracy" not in found
    constant = scores(make(EMOTION, np.eye(7)[[0] * 4], [0, 0, 1, 2]))
    assert constant["macro_f1"] == pytest.approx(2 / 3 / 3)
    assert constant["uar"] == pytest.approx(1 / 3)
    assert constant["micro_f1_without_neutral"] == 0
    assert constant["ece"] == pytest.approx(0.5)
    assert constant["nll"] == pytest.approx(-np.log(1e-12) / 2)


def test_confusion_scores_are_vectorised() -> None:
    matrices = np.random.default_rng(0).integers(0, 9, (3, 4, 7, 7))
    formulas = [metric.sums["confusion"] for metric in metrics_of(EMOTION) if "confusion" in metric.sums]
    assert len(formulas) == 5
    for formula in formulas:
        value = formula(matrices, EMOTION)
        assert value.shape == (3, 4)
        assert value[1, 2] == formula(matrices[1, 2], EMOTION)
        assert np.isnan(formula(np.zeros((7, 7), dtype=int), EMOTION))


def test_neutral_is_found_by_name() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(1, 9, (7, 7))
    order = [3, 1, 2, 0, 4, 5, 6]
    labels = EMOTION.output_names
    schema = LabelSchema("other", tuple(labels[k] for k in order), neutral=labels[0])
    other = TaskSpec("emotion", "single_label", schema)
    formula = get_metric("micro_f1_without_neutral").sums["confusion"]
    assert formula(matrix[order][:, order], other) == formula(matrix, EMOTION)
