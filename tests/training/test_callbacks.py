"""Seeding of batches, selection on dev, early stopping, and the history."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs import train

from ercfusion._core.errors import ConfigError, TrainingError
from ercfusion.metrics.registry import get_metric
from ercfusion.training import callbacks
from ercfusion.training.callbacks import BatchSeed, Selection, read_history, write_history


def selection(folder: Path, metric: str = "weighted_f1", **settings: Any) -> Selection:
    return Selection(folder, None, metric, max_epochs=9, **settings)  # type: ignore[arg-type]


class Recorder:
    """A trainer and a module that write down what the callback asks of them, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.current_epoch = 0
        self.callback_metrics = {"train/loss": torch.tensor(1.5), "train/task": torch.tensor(1.25), "other": 3}
        self.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
        self.loggers: list[Any] = []
        self.is_global_zero = True
        self.should_stop = False
        self.recognizer = self
        self.task = SimpleNamespace(name="emotion")
        self.optimizer_settings = SimpleNamespace(lr=0.5)
        self.gradient_clip_val = 0.25

    def predict_all(self, store: Any) -> dict[str, Any]:
        return {"emotion": SimpleNamespace(output=self.output())}

    def output(self) -> Any:
        return np.zeros((2, 2))

    def log(self, name: str, value: float) -> None:
        self.done.append(f"log {name}={value}")

    def epoch_scored(self, score: float) -> None:
        self.done.append("schedule")

    def save_pretrained(self, folder: Path) -> None:
        self.done.append(f"save {folder.name}")

    def checksum(self) -> str:
        return "0" * 64

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert weights_only is False
        self.done.append(f"checkpoint {path.name}")


def run_epochs(
    callback: Selection, monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float]
) -> tuple[Recorder, list[list[str]]]:
    trainer, epochs = Recorder(), []
    for value in values:
        monkeypatch.setattr(callbacks, "scores", lambda predictions, value=value: {metric: value, "accuracy": 0.5})
        trainer.done = []
        callback.on_train_epoch_start(trainer, trainer)  # type: ignore[arg-type]
        callback.on_train_epoch_end(trainer, trainer)  # type: ignore[arg-type]
        trainer.current_epoch += 1
        epochs.append(trainer.done)
        if trainer.should_stop:
            break
    return trainer, epochs


def test_the_order_of_an_epoch_s_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = selection(tmp_path, keep_every_epoch=True)
    _, epochs = run_epochs(callback, monkeypatch, "weighted_f1", [0.5, 0.4, 0.5, 0.6])
    common = ["save epoch-{}", "checkpoint last.ckpt"]
    expected = []
    for number, (value, best) in enumerate([(0.5, True), (0.4, False), (0.5, False), (0.6, True)], start=1):
        head = [f"log dev/score={value}", "schedule", *(["save model"] if best else [])]
        expected.append([*head, *(entry.format(f"{number:03d}") for entry in common)])
    assert epochs == expected
    assert callback.best == callback.history[3]
    rows = read_history(tmp_path / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {"epoch", "seconds", "lr", "train/loss", "train/task", "dev/weighted_f1", "dev/accuracy"}


@pytest.mark.parametrize("metric", ["weighted_f1", "nll"])
def test_the_earliest_of_equal_epochs_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    values = [0.3, 0.7, 0.7, 0.2] if get_metric(metric).higher_is_better else [0.7, 0.3, 0.3, 0.8]
    callback = selection(tmp_path, metric)
    _, epochs = run_epochs(callback, monkeypatch, metric, values)
    assert callback.best is not None
    assert callback.best["epoch"] == 2
    assert ["save model" in epoch for epoch in epochs] == [True, True, False, False]


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 6)])
def test_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int) -> None:
    callback = selection(tmp_path, patience=patience)
    trainer, done = run_epochs(callback, monkeypatch, "weighted_f1", [0.1, 0.3, 0.2, 0.1, 0.4, 0.4])
    assert len(done) == epochs
    assert trainer.should_stop == (patience in (1, 2))
    assert "checkpoint last.ckpt" in done[-1]
    # A resumed run knows from the history alone.
    monkeypatch.setattr(Selection, "check_model", lambda self: None)
    resumed, fresh = selection(tmp_path, patience=patience), Recorder()
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_start(fresh, fresh)  # type: ignore[arg-type]
    assert fresh.should_stop == trainer.should_stop
    assert resumed.best == callback.best


def test_other_processes_write_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "__init__", _second_process(Recorder.__init__))
    _, epochs = run_epochs(selection(tmp_path, keep_every_epoch=True), monkeypatch, "weighted_f1", [0.5])
    # The trainer's own saving is collective: every process takes part, and the first one writes.
    assert epochs == [["log dev/score=0.5", "schedule", "checkpoint last.ckpt"]]
    assert not list(tmp_path.iterdir())


def _second_process(original: Any) -> Any:
    def start(self: Recorder) -> None:
        original(self)
        self.is_global_zero = False

    return start


def test_outputs_that_are_not_finite_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "output", lambda _: np.array([[0.5, np.nan]]))
    callback = selection(tmp_path)
    with pytest.raises(
        TrainingError, match=r"not finite after epoch 1\. Lower optimizer\.lr=0\.5, lower .*clip=0\.25,"
    ):
        run_epochs(callback, monkeypatch, "weighted_f1", [0.5])
    assert callback.history == []
    assert not list(tmp_path.iterdir())


def test_a_metric_without_a_value_on_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no utterance on which training\.metric=shift_accuracy is defined"):
        run_epochs(selection(tmp_path, "shift_accuracy"), monkeypatch, "weighted_f1", [0.5])


def test_history_survives_the_file(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1.0, "seconds": 0.5, "dev/nll": 0.1 + 0.2},
        {"epoch": 2.0, "seconds": 0.5, "dev/nll": 1e-300, "train/late": 3.0},
    ]
    write_history(tmp_path / "metrics.csv", rows)
    assert read_history(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "epoch,seconds,dev/nll,train/late"


def test_a_batch_s_seed_depends_on_its_place_alone() -> None:
    def drawn(seed: int, epoch: int, batch: int, rank: int = 0) -> float:
        torch.rand(7)  # whatever was drawn before
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        BatchSeed(seed).on_train_batch_start(trainer, trainer, None, batch)
        return float(torch.rand(()))

    places = [(seed, epoch, batch, rank) for seed in (0, 1) for epoch in (0, 1) for batch in (0, 1) for rank in (0, 1)]
    values = [drawn(*place) for place in places]
    assert [drawn(*place) for place in places] == values
    assert len(set(values)) == len(values)


@pytest.mark.usefixtures("no_pictures")
def test_best_of_a_metric_that_is_better_when_lower(tmp_path: Path) -> None:
    settings = ["model=concat", "training.metric=nll", "training.max_epochs=4", "training.patience=0"]
    record = train(tmp_path / "run", *settings, "optimizer.lr=0.05")
    losses = [row["dev/nll"] for row in read_history(tmp_path / "run" / "metrics.csv")]
    assert record["selection"] == {"split": "dev", "metric": "nll", "epoch": 1 + int(np.argmin(losses)), "epochs": 4}
    assert record["metrics"]["dev"]["nll"] == pytest.approx(min(losses), abs=1e-5)
