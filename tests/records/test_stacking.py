"""Stacked late fusion against scikit-learn's ridge regression, and its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import EMOTION, VAD, make, random_predictions
from runs import train
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from ercfusion._core.errors import RunError
from ercfusion.batch.predictions import Predictions
from ercfusion.metrics.registry import scores
from ercfusion.records.stacking import PENALTIES, ridge, stack, stack_runs

LENGTHS = {"dev": (6, 3, 8, 5, 9, 4), "test": (7, 10, 5)}


def noisy(noise: float, seed: int) -> dict[str, Predictions]:
    """Predictions of the same ratings, each with its own noise, on another scale and origin."""
    parts = {}
    for split, lengths in LENGTHS.items():
        rng = np.random.default_rng({"dev": 1, "test": 2}[split])
        value = rng.uniform(1.5, 4.5, (sum(lengths), 3))
        valid = rng.random(len(value)) < 0.8
        own = np.random.default_rng([seed, len(lengths)])
        output = 3 + 0.3 * (value - 3) + own.normal(0, noise, value.shape)
        parts[split] = make(VAD, output, value.astype(np.float32), valid, lengths)
    return parts


def test_ridge_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(2, 3, (30, 4)), rng.normal(size=30), rng.normal(2, 3, (7, 4))
    for penalty in PENALTIES:
        scaler = StandardScaler().fit(x)
        oracle = Ridge(alpha=penalty).fit(scaler.transform(x), y)
        np.testing.assert_allclose(ridge(x, y, penalty, new), oracle.predict(scaler.transform(new)), rtol=1e-9)
    constant = np.column_stack([x[:, 0], np.ones(30)])
    assert np.isfinite(ridge(constant, y, 1.0, constant)).all()


def test_one_stage_by_hand() -> None:
    one, other = noisy(0.2, 0), noisy(0.3, 1)
    fused = stack([[one, other]], folds=3)
    dev, valid = one["dev"], one["dev"].valid
    x = np.concatenate([dev.output, other["dev"].output], axis=1)
    fold = np.repeat(np.arange(6) % 3, LENGTHS["dev"])
    for k in range(3):
        y = np.asarray(dev.value, dtype=float)[:, k]
        best = (np.inf, 0.0, np.empty(0))
        for penalty in PENALTIES:
            out = np.empty(len(x))
            for number in range(3):
                rest = (fold != number) & valid
                scaler = StandardScaler().fit(x[rest])
                model = Ridge(alpha=penalty).fit(scaler.transform(x[rest]), y[rest])
                out[fold == number] = model.predict(scaler.transform(x[fold == number]))
            error = float(((out - y)[valid] ** 2).mean())
            best = min(best, (error, penalty, out), key=lambda candidate: candidate[0])
        np.testing.assert_allclose(fused["dev"].output[:, k], best[2].clip(1, 5), rtol=1e-9)
        new = np.concatenate([one["test"].output, other["test"].output], axis=1)
        scaler = StandardScaler().fit(x[valid])
        expected = Ridge(alpha=best[1]).fit(scaler.transform(x[valid]), y[valid]).predict(scaler.transform(new))
        np.testing.assert_allclose(fused["test"].output[:, k], expected.clip(1, 5), rtol=1e-9)
    assert fused["test"].turn_ids == one["test"].turn_ids


def test_two_stages_use_all_runs() -> None:
    runs = [noisy(0.25, seed) for seed in range(3)]
    fused = stack([runs[:2], runs[2:]])
    single = [scores(run["test"])["ccc"] for run in runs]
    assert scores(fused["test"])["ccc"] > max(single) + 0.1
    assert scores(fused["test"])["ccc"] > scores(stack([runs[:1]])["test"])["ccc"]
    # The second stage reads the first one's output: without its runs the result differs.
    assert not np.allclose(fused["test"].output, stack([runs[2:]])["test"].output)
    assert (fused["test"].output >= 1).all()
    assert (fused["test"].output <= 5).all()


def test_test_labels_do_not_matter() -> None:
    one = noisy(0.2, 0)
    changed = {**one, "test": replace(one["test"], value=np.full_like(one["test"].value, 4.0))}
    assert np.array_equal(stack([[one]])["test"].output, stack([[changed]])["test"].output)


def test_what_is_refused() -> None:
    one = noisy(0.2, 0)
    with pytest.raises(RunError, match="stacking needs at least one run per stage"):
        stack([[one], []])
    labels = {split: random_predictions(EMOTION, 0) for split in ("dev", "test")}
    with pytest.raises(RunError, match="'emotion' is single_label; stacking is for regressions"):
        stack([[labels]])
    with pytest.raises(RunError, match="other utterances in dev"):
        stack([[one, {**one, "dev": one["test"]}]])
    renamed = {split: replace(part, task=replace(VAD, name="felt")) for split, part in one.items()}
    with pytest.raises(RunError, match="the runs predict 'vad' and 'felt'"):
        stack([[one, renamed]])
    with pytest.raises(RunError, match="dev has 6 conversations with labels, and folds=1"):
        stack([[one]], folds=1)


@pytest.mark.usefixtures("no_pictures")
def test_finished_runs(tmp_path: Path) -> None:
    common: tuple[Any, ...] = ("model=concat", "model.hidden=8", "training.max_epochs=1")
    for modality in ("text", "audio"):
        tasks = "[vad]" if modality == "text" else "[emotion,vad]"
        train(tmp_path / modality, *common, f"data.modalities=[{modality}]", f"data.tasks={tasks}")
    fused = stack_runs([[tmp_path / "text"], [tmp_path / "audio"]], "vad")
    assert set(fused) == {"dev", "test"}
    assert "ccc" in scores(fused["test"])


def test_support_vectors_instead_of_ridge() -> None:
    one, other = noisy(0.2, 0), noisy(0.3, 1)
    fused = stack([[one, other]], folds=3, regressor=SVR)
    dev, valid = one["dev"], one["dev"].valid
    x = {split: np.concatenate([one[split].output, other[split].output], axis=1) for split in LENGTHS}
    scaler = StandardScaler().fit(x["dev"][valid])
    for k in range(3):
        oracle = SVR().fit(scaler.transform(x["dev"][valid]), dev.value[valid, k].astype(float))
        np.testing.assert_allclose(fused["test"].output[:, k], oracle.predict(scaler.transform(x["test"])), rtol=1e-6)
