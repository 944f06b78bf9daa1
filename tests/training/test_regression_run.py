"""Runs with a regression: concordance over the training set, standard deviations, and the hybrid objective."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from runs import CORPUS, assert_same_run, command, history, keep_states, read, refused, resume, train

from ercfusion import evaluate
from ercfusion.batch.task import TaskSpec
from ercfusion.config.compose import Composer
from ercfusion.data.corpora._demo_vad import VAD
from ercfusion.losses import concordance
from ercfusion.records.predictions import read_predictions
from ercfusion.train import main
from ercfusion.training.callbacks import read_history

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_stored_predictions_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["model=concat", "data.tasks=[emotion,vad]", "objective.regression_loss=ccc", "objective.ccc_over=set"]
    settings += ["objective.weights.unimodal=0.5", "training.accumulate_grad_batches=2", "training.max_epochs=3"]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *settings)
    stored = torch.load(tmp_path / "whole" / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    seen = [value for name, value in stored.items() if name.endswith(".seen")]
    assert len(seen) == 4  # all modalities together, and each of three
    assert all(value.all() for value in seen)
    for epoch in ("1", "2"):
        resume(tmp_path / epoch)
        assert_same_run(tmp_path / epoch, tmp_path / "whole")


def test_one_batch_of_everything_equals_concordance_over_the_set(tmp_path: Path) -> None:
    settings = ["model=concat", "data.tasks=[vad]", "objective.regression_loss=ccc", "training.batch_size=6"]
    settings.append("training.max_epochs=2")
    train(tmp_path / "batch", *settings)
    train(tmp_path / "set", *settings, "objective.ccc_over=set")
    for one, other in zip(history(tmp_path / "batch"), history(tmp_path / "set"), strict=True):
        assert {name: float(value) for name, value in one.items()} == pytest.approx(
            {name: float(value) for name, value in other.items()}, rel=1e-5, abs=1e-6
        )


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gaussian"
    settings = ["data.tasks=[vad,emotion]", "objective.regression_loss=gaussian", "objective.gaussian_beta=0.5"]
    settings += ["objective.weights.unimodal=0.5", "training.metric=gaussian_nll", "training.max_epochs=2"]
    train(folder, "model=concat", "training.pictures=false", *settings)
    return folder


def test_a_run_writes_standard_deviations(gaussian: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read(gaussian / "record.json")
    test = record["metrics"]["test"]
    assert {"gaussian_nll", "coverage90/arousal", "mean_spread", "ccc", "ccc/valence"} <= set(test)
    assert test["gaussian_nll"] < record["majority"]["test"]["gaussian_nll"] + 0.5
    low, high = record["intervals"]["test"]["gaussian_nll"]
    assert low < test["gaussian_nll"] < high
    names = pq.read_schema(gaussian / "predictions.parquet").names
    assert [name for name in names if name.startswith("s/")] == [f"s/{name}" for name in VAD.dimensions]
    assert not any(name.startswith("s/") for name in pq.read_schema(gaussian / "predictions-emotion.parquet").names)
    parts = read_predictions(gaussian / "predictions.parquet", VAD)
    assert all(part.spread is not None and (part.spread > 0).all() for part in parts.values())
    # The same from the saved model.
    assert command(evaluate.main, [str(gaussian)], capsys)[0] == 0
    again = read(gaussian / "evaluation" / "test.json")["metrics"]
    assert again == pytest.approx(test)
    assert "gaussian_nll" not in read(gaussian / "record.json")["others"]["emotion"]["metrics"]["test"]


def test_likelihood_without_a_variance_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*CORPUS, "data.tasks=[vad]", "training.metric=gaussian_nll", f"run={tmp_path / 'run'}"]
    message = refused(main, arguments, capsys)
    assert "training.metric=gaussian_nll needs predicted standard deviations" in message
    message = refused(main, [*CORPUS, "objective.dimension_weights.valance=2", "data.tasks=[vad]"], capsys)
    assert "no task of the run has a dimension 'valance'. Did you mean 'valence'" in message


def test_the_hybrid_objective_weighs_classes_and_dimensions(tmp_path: Path) -> None:
    typed = ["objective=hybrid", "data.tasks=[emotion,vad]", "objective.dimension_weights={dominance: 0}"]
    typed += ["objective.weights.vad=0.5", "training.max_epochs=2"]
    objective = Composer("train").compose(typed)["objective"]
    assert (objective["class_weights"], objective["regression_loss"]) == ("balanced", "ccc")
    folder = tmp_path / "hybrid"
    record = train(folder, "model=concat", "optimizer.lr=0", *typed)
    # Without a step, the losses are those of the prior: 1 - 0 for a constant prediction.
    for row in read_history(folder / "metrics.csv", record["selection"]["metric"]):
        assert row["train/loss"] == pytest.approx(row["train/task"] + 0.5 * row["train/vad"], rel=1e-5)
        assert 0.5 < row["train/vad"] < 1.5
    assert record["others"]["vad"]["metrics"]["test"].keys() >= {"ccc", "ccc/valence"}
    assert TaskSpec.from_dict(record["others"]["vad"]["task"]) == VAD
    assert concordance(torch.ones(4, 3), torch.rand(4, 3)).tolist() == [0, 0, 0]
