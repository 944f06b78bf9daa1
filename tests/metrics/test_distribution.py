from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from made_predictions import DISTRIBUTION, EMOTION, make, random_predictions
from torchmetrics import functional as torch_oracle

from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.registry import (
    scores,
)


def test_distribution_scores() -> None:
    predictions = random_predictions(DISTRIBUTION, 0)
    truth, labelled = predictions.labels()
    ties = predictions.valid & ~labelled
    assert ties.any(), "three votes tie often"
    found = scores(predictions)
    as_single = make(
        EMOTION, predictions.output, truth, labelled, lengths=predictions.lengths, speaker=predictions.speaker
    )
    for name, value in scores(as_single).items():
        assert found[name] == pytest.approx(value)
    valid = predictions.valid
    value, output = predictions.value[valid].astype(np.float64), predictions.output[valid]
    expected = torch_oracle.kl_divergence(torch.from_numpy(value), torch.from_numpy(np.maximum(output, 1e-12)))
    assert found["kl"] == pytest.approx(float(expected), rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle.f1_score(value > 1 / 7 + 1e-6, output > 1 / 7, average="macro", zero_division=0)
    assert found["binarised_macro_f1"] == pytest.approx(expected)


def test_uniform_distribution_is_the_empty_set_in_single_precision() -> None:
    # float32(1/6) is greater than 1/6: without a tolerance the uniform row would be the full set.
    task = TaskSpec("emotion", "distribution", get_schema("iemocap6"))
    uniform = np.full((1, 6), 1 / 6, dtype=np.float32)
    assert float(uniform[0, 0]) > 1 / 6
    found = scores(make(task, np.eye(6)[[1]], uniform))
    assert set(found) == {"kl", "binarised_macro_f1"}
    assert found["binarised_macro_f1"] == 0
    assert scores(make(task, uniform, uniform))["kl"] == pytest.approx(0)
