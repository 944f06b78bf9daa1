from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from made_predictions import SENTIMENT, SIMS, VAD, make, random_predictions
from torchmetrics import functional as torch_oracle

from ercfusion.metrics.registry import (
    metric_names,
    scores,
)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_ch_sims(seed: int) -> None:
    """Against its definition by intervals that are open below and closed above, also at the edges themselves."""
    rng = np.random.default_rng(seed)
    edges = np.array([-1, -0.7, -0.1, 0, 0.1, 0.7, 1], dtype=np.float32)
    value = np.concatenate([edges, rng.choice(edges, 60), rng.uniform(-1, 1, 60).astype(np.float32)])[:, None]
    output = np.concatenate([rng.permutation(value[:67]), rng.uniform(-1.2, 1.2, (60, 1)).astype(np.float32)])
    found = scores(make(SIMS, output.astype(float), value))
    bounds = {
        2: [(-9, 0), (0, 9)],
        3: [(-9, -0.1), (-0.1, 0.1), (0.1, 9)],
        5: [(-9, -0.7), (-0.7, -0.1), (-0.1, 0.1), (0.1, 0.7), (0.7, 9)],
    }

    def classes(numbers: np.ndarray, parts: list[tuple[float, float]]) -> list[int]:
        single = [(np.float32(low), np.float32(high)) for low, high in parts]
        return [next(k for k, (low, high) in enumerate(single) if low < np.float32(x) <= high) for x in numbers[:, 0]]

    for number, parts in bounds.items():
        said, true = classes(output, parts), classes(value, parts)
        assert found[f"sims_acc{number}"] == pytest.approx(oracle.accuracy_score(true, said))
    said, true = classes(output, bounds[2]), classes(value, bounds[2])
    assert found["sims_f1"] == pytest.approx(oracle.f1_score(true, said, average="weighted"))
    assert not {"acc7", "acc5", "acc2_non0"} & set(found)
    assert not [name for name in metric_names(replace(SIMS, low=-3, high=3)) if name.startswith("sims")]
    assert not [name for name in metric_names(replace(SIMS, low=0)) if name.startswith(("sims", "acc"))]


@pytest.mark.parametrize("seed", range(3))
def test_regression_against_torchmetrics(seed: int) -> None:
    predictions = random_predictions(VAD, seed)
    valid = predictions.valid
    output, value = torch.from_numpy(predictions.output[valid]), torch.from_numpy(predictions.value[valid]).double()
    found = scores(predictions)
    pearson = torch_oracle.pearson_corrcoef(output, value)
    assert [found[f"pearson/{name}"] for name in VAD.dimensions] == pytest.approx(pearson.tolist())
    assert found["pearson"] == pytest.approx(float(pearson.mean()))
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(value, output))
    assert found["rmse/arousal"] == pytest.approx(oracle.root_mean_squared_error(value[:, 1], output[:, 1]))
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(value, output))
    # torchmetrics takes unbiased variances; the definition with biased ones, spelled out:
    x, y = predictions.output[valid, 0], predictions.value[valid, 0].astype(np.float64)
    expected = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert found["ccc/valence"] == pytest.approx(expected)
    many = torch_oracle.concordance_corrcoef(output.repeat(200, 1), value.repeat(200, 1))
    assert [found[f"ccc/{name}"] for name in VAD.dimensions] == pytest.approx(many.tolist(), abs=1e-3)
    assert "acc7" not in found
    assert set(found) == set(metric_names(VAD))


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3])
def test_constant_regression_is_finite(constant: float) -> None:
    value = np.random.default_rng(0).uniform(1, 5, (9, 3))
    found = scores(make(VAD, np.full((9, 3), constant), value))
    assert found["pearson"] == 0
    assert found["ccc"] == pytest.approx(0, abs=1e-12)
    assert all(np.isfinite(number) for number in found.values())
    assert scores(make(VAD, value[:1], value[:1]))["ccc"] == 0


def test_sentiment_scores() -> None:
    value = np.array([[-3.0], [-0.4], [0.0], [0.6], [2.5], [3.0]])
    output = np.array([[-3.6], [0.2], [-0.1], [0.5], [1.5], [2.2]])
    found = scores(make(SENTIMENT, output, value, spread=np.ones_like(output)))
    # Half to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
    assert found["acc7"] == pytest.approx(4 / 6)  # -3=-3, 0=0, 0=0, 1/0, 2=2, 3/2
    assert found["acc5"] == pytest.approx(5 / 6)  # both of the last pair are 2
    assert found["acc2_non0"] == pytest.approx(4 / 5)
    assert found["acc2_has0"] == pytest.approx(4 / 6)
    keep = value[:, 0] != 0
    expected = oracle.f1_score(value[keep] > 0, output[keep] > 0, average="weighted")
    assert found["f1_non0"] == pytest.approx(expected)
    assert found["f1_has0"] == pytest.approx(oracle.f1_score(value >= 0, output >= 0, average="weighted"))
    assert set(found) == set(metric_names(SENTIMENT))
    assert "acc2_non0" not in scores(make(SENTIMENT, [[1.0]], [[0.0]]))
