"""Stacked late fusion: what it learns from, and what it must not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import make

from ercfusion import stacking
from ercfusion._core.errors import ConfigError, RunError
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.registry import scores
from ercfusion.stacking import stack

TASK = TaskSpec("vad", "regression", dimensions=("valence", "arousal"), low=1.0, high=5.0, metric="ccc")
LENGTHS = {"dev": (8,) * 12, "test": (8,) * 12}


class Linear:
    """Least squares with a constant."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Linear:
        self.weights = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
        return self

    def predict(self, x: np.ndarray) -> Any:
        return np.column_stack([x, np.ones(len(x))]) @ self.weights


def parts(errors: tuple[float, ...] = (0.6, 0.9), seed: int = 0) -> list[dict[str, Predictions]]:
    """Runs with independent errors of these deviations, and a bias."""
    rng = np.random.default_rng(seed)
    truth = {split: rng.uniform(1, 5, (sum(lengths), 2)).astype(np.float32) for split, lengths in LENGTHS.items()}
    valid = {split: rng.random(sum(lengths)) < 0.9 for split, lengths in LENGTHS.items()}
    return [
        {
            split: make(
                TASK,
                truth[split] + 0.5 + error * rng.normal(size=truth[split].shape),
                truth[split],
                valid[split],
                lengths,
            )
            for split, lengths in LENGTHS.items()
        }
        for error in errors
    ]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Predictions]]:
    made = parts()
    monkeypatch.setattr(stacking, "_read", lambda folders, task: ("demo/balanced-vad", made))
    return made


def test_the_regressor_is_better_than_each_run(given: list[dict[str, Predictions]]) -> None:
    found = stack(["a", "b"], regressor=Linear)
    for split in ("dev", "test"):
        single = [scores(part[split]) for part in given]
        assert found.scores[split]["ccc"] > max(one["ccc"] for one in single) + 0.02
        assert found.scores[split]["mae"] < min(one["mae"] for one in single)
    assert found.protocol == "demo/balanced-vad"
    again = stack(["a", "b"], regressor=Linear)
    np.testing.assert_array_equal(again.predictions["test"].output, found.predictions["test"].output)


def test_predictions_by_hand(given: list[dict[str, Predictions]]) -> None:
    found = stack(["a", "b"], regressor=Linear).predictions
    x = {split: np.column_stack([part[split].output for part in given]) for split in LENGTHS}
    dev = given[0]["dev"]
    own = Linear().fit(x["dev"][dev.valid], dev.value[dev.valid])
    np.testing.assert_allclose(found["test"].output, own.predict(x["test"]).clip(1, 5), atol=1e-6)


def test_targets_of_a_conversation_do_not_reach_its_own_predictions(given: list[dict[str, Predictions]]) -> None:
    before = stack(["a", "b"], folds=12, regressor=Linear).predictions["dev"].output
    given[0]["dev"].value[:8] = 1.0
    after = stack(["a", "b"], folds=12, regressor=Linear).predictions["dev"].output
    np.testing.assert_array_equal(after[:8], before[:8])
    assert not np.array_equal(after[8:], before[8:])


def test_targets_of_test_are_never_used(given: list[dict[str, Predictions]]) -> None:
    before = stack(["a", "b"], stages=2, regressor=Linear).predictions
    for part in given:
        part["test"].value[:] = 3.0
    after = stack(["a", "b"], stages=2, regressor=Linear).predictions
    for split in LENGTHS:
        np.testing.assert_array_equal(before[split].output, after[split].output)


def test_support_vectors_by_default(given: list[dict[str, Predictions]]) -> None:
    pytest.importorskip("sklearn")
    found = stack(["a", "b"], stages=2, folds=3)
    assert found.scores["test"]["ccc"] > max(scores(part["test"])["ccc"] for part in given)


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        ([], {}, "runs is empty"),
        (["a"], {"stages": 0}, "stages=0 must be from 1 to 5"),
        (["a"], {"folds": 1}, "folds=1 at least 2"),
        (["a"], {"folds": 13}, "dev has 12 conversations for 13 folds"),
    ],
)
@pytest.mark.usefixtures("given")
def test_wrong_arguments(runs: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stack(runs, regressor=Linear, **settings)


def test_finished_runs(tmp_path: Path) -> None:
    """Two runs of demo, and runs that cannot be stacked."""
    from runs import train

    common = ["model=concat", "data.tasks=[emotion,vad]", "training.max_epochs=1", "training.pictures=false"]
    for modality in ("text", "audio"):
        train(tmp_path / modality, *common, f"data.modalities=[{modality}]")
    train(tmp_path / "other", *common[:1], *common[2:], "data.options.seed=1", "data.tasks=[vad]")
    folders = [tmp_path / "text", tmp_path / "audio"]
    found = stack(folders, task="vad", folds=3, regressor=Linear)
    assert found.protocol == "demo/balanced-vad"
    assert found.scores["test"].keys() >= {"ccc/valence", "mae"}
    record = json.loads((folders[0] / "record.json").read_text())
    assert len(found.predictions["test"]) == record["splits"]["test"]["utterances"]
    with pytest.raises(ConfigError, match="the task 'emotion' is single_label, without numbers"):
        stack(folders, folds=3, regressor=Linear)
    with pytest.raises(RunError, match="has other utterances or targets in dev"):
        stack([*folders, tmp_path / "other"], task="vad", folds=3, regressor=Linear)
