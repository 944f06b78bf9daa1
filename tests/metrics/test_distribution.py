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
        sets = value > 1 / 7 + 1e-6, output > 1 / 7
        for average in ("macro", "micro", "weighted"):
            expected = oracle.f1_score(*sets, average=average, zero_division=0)
            assert found[f"binarised_{average}_f1"] == pytest.approx(expected)
        expected = oracle.jaccard_score(*sets, average="samples", zero_division=1)
        assert found["binarised_jaccard"] == pytest.approx(expected)


def test_uniform_distribution_is_the_empty_set_in_single_precision() -> None:
    # float32(1/6) is greater than 1/6: without a tolerance the uniform row would be the full set.
    task = TaskSpec("emotion", "distribution", get_schema("iemocap6"))
    uniform = np.full((1, 6), 1 / 6, dtype=np.float32)
    assert float(uniform[0, 0]) > 1 / 6
    found = scores(make(task, np.eye(6)[[1]], uniform))
    binarised = [f"binarised_{name}" for name in ("macro_f1", "micro_f1", "weighted_f1", "jaccard")]
    assert set(found) == {"kl", *binarised}
    assert {found[name] for name in binarised} == {0}
    # Two uniform rows are two empty sets.
    assert scores(make(task, uniform, uniform))["binarised_jaccard"] == 1
    assert scores(make(task, uniform, uniform))["kl"] == pytest.approx(0)
