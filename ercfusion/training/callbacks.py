"""Callbacks: seeding, dev scores, selection, early stopping, checkpoints, progress."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from ercfusion._core.errors import ConfigError, ResumeError, RunError, TrainingError
from ercfusion._core.files import atomic_write
from ercfusion._core.progress import console
from ercfusion._core.schemas.reading import check, failure, read_rows, shown
from ercfusion.data.curriculum import Curriculum
from ercfusion.data.sampler import mix_seed
from ercfusion.data.store import ConversationStore
from ercfusion.metrics.registry import get_metric, scores
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.checkpoint_schema import ADVICE, SelectionState, read_checkpoint
from ercfusion.training.origin import check_origin, seal
from ercfusion.training.processes import is_first_process

logger = logging.getLogger("ercfusion")

LAST = "checkpoints/last.ckpt"
HISTORY = "metrics.csv"
MODEL = "model"


class RestrictedCheckpointIO(CheckpointIO):
    """Atomic checkpoints of plain containers, read with torch's restricted loading.

    Args:
        origin: From :func:`ercfusion.training.origin.make_origin`, stored in every checkpoint; another origin is
            refused.
            None: neither stored nor checked.
    """

    def __init__(self, origin: Mapping[str, Any] | None = None) -> None:
        self.origin = origin

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary name, then rename."""
        if self.origin is not None:
            checkpoint = seal(checkpoint, self.origin)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as stream:
            stream.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load without unpickling objects.

        Raises:
            RunError: damaged, or with other content.
            ResumeError: a part is missing, or run, settings or data differ.
        """
        checkpoint = read_checkpoint(path, map_location)
        if self.origin is not None:
            check_origin(checkpoint, self.origin, Path(path))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint if it exists."""
        Path(path).unlink(missing_ok=True)


class BatchSeed(pl.Callback):
    """Seeds torch from (seed, epoch, batch, process) before every batch.

    So a resumed run repeats the uninterrupted one bit by bit on a CPU. Seeding per epoch is not enough: creating the
    loader's iterator draws from the generator, at another moment in a resumed run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called by the trainer."""
        torch.manual_seed(mix_seed(self.seed, 1 + trainer.current_epoch, batch_idx, trainer.global_rank))


class Selection(pl.Callback):
    """Scores dev after every epoch, saves the best model, stops early, and writes the checkpoint.

    Order: log the dev scores, rewrite ``metrics.csv``, save ``model/`` if it is the best, write
    ``checkpoints/last.ckpt``. A run killed in between writes the same files again when it is resumed.

    Args:
        folder: The run folder.
        metric: The score choosing the epoch.
        max_epochs: For the progress lines.
        patience: Epochs without improvement before training stops (0: never), counted once all conversations are in
            use.
        curriculum: None for none. A checkpoint of another one is refused.
        keep_every_epoch: Also save models to ``checkpoints/epoch-NNN/``.
        verbose: Print one line per epoch.
        on_epoch: Called last, with the epoch (from 1) and its score; an exception from it ends the training.
    """

    def __init__(
        self,
        folder: Path,
        dev: ConversationStore,
        metric: str,
        *,
        max_epochs: int,
        patience: int = 0,
        curriculum: Curriculum | None = None,
        keep_every_epoch: bool = False,
        verbose: bool = True,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.folder = folder
        self.dev = dev
        self.metric = metric
        self.max_epochs = max_epochs
        self.patience = patience
        self.curriculum = curriculum
        self.keep_every_epoch = keep_every_epoch
        self.verbose = verbose
        self.on_epoch = on_epoch
        self.history: list[dict[str, float]] = []
        self.saved = ""
        self.began = False
        self._started = 0.0

    # Best epoch and patience follow from the history; the checksum identifies the best model in model/.

    def state_dict(self) -> dict[str, Any]:
        """Plain containers for the checkpoint."""
        return {"history": self.history, "curriculum": self._digest, "model": self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of a checkpoint.

        Raises:
            RunError: of another curriculum, or damaged.
            ResumeError: ``metrics.csv`` or ``model/`` does not belong to the checkpoint.
        """
        check(state_dict, SelectionState, self.folder / LAST, advice=ADVICE, prefix="callbacks.Selection.")
        if state_dict.get("curriculum") != self._digest:
            raise RunError(
                f"{self.folder / LAST}: the checkpoint was made under another curriculum: the curriculum's settings, "
                "the seed or the training conversations have changed since. Restore them, or begin a new run."
            )
        self.history = list(state_dict["history"])
        self.saved = state_dict["model"]
        if is_first_process():
            self._check_files()

    def _check_files(self) -> None:
        path = self.folder / HISTORY
        rows = read_history(path, self.metric)
        count = len(self.history)
        if [_exact(row) for row in rows[:count]] != [_exact(row) for row in self.history]:
            raise failure(ResumeError, path, f": its first {count} epochs are not those of {LAST}", ADVICE)
        # A process killed between saving the best model and the checkpoint leaves one more row.
        if not (len(rows) == count + 1 and best_row(rows, self.metric) is rows[-1]):
            self.check_model()

    def check_model(self) -> None:
        """Raise :class:`ResumeError` unless ``model/`` is the model of the best epoch."""
        best = self.best
        assert best is not None
        if Recognizer.from_pretrained(self.folder / MODEL).checksum() != self.saved:
            problem = f": it is not the model of epoch {best['epoch']:.0f}, the best one"
            raise failure(ResumeError, self.folder / MODEL, problem, ADVICE)

    @property
    def _digest(self) -> str | None:
        return None if self.curriculum is None else self.curriculum.digest

    @property
    def best(self) -> Mapping[str, float] | None:
        """The row with the best dev score, the earliest if equal."""
        return best_row(self.history, self.metric) if self.history else None

    @property
    def progress(self) -> str:
        """The part of a failed run that can be used, for messages."""
        best = self.best
        return f"model/ is the best so far, of epoch {best['epoch']:g}" if best else "no epoch was completed"

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        best = self.best
        if not self.patience or best is None:
            return False
        # Epochs count from 1 here and from 0 in the curriculum.
        learning = 0 if self.curriculum is None else self.curriculum.full_from
        return bool(self.history[-1]["epoch"] - max(best["epoch"], learning) >= self.patience)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if patience ran out before the run was killed."""
        self.began = True
        if is_first_process():  # from here on an error leaves the folder: see has_begun
            (self.folder / LAST).parent.mkdir(exist_ok=True)
        if self.exhausted:
            trainer.should_stop = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A setting refused by the first batch leaves no folder, as one refused before training."""
        if isinstance(exception, ConfigError) and not self.history and is_first_process():
            checkpoints = (self.folder / LAST).parent
            if checkpoints.is_dir() and not any(checkpoints.iterdir()):
                checkpoints.rmdir()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by the trainer."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Called by the trainer; the steps are described at the class."""
        train_seconds = time.perf_counter() - self._started
        predictions = pl_module.recognizer.predict_all(self.dev)
        epoch = trainer.current_epoch + 1
        if not all(np.isfinite(part.output).all() for part in predictions.values()):
            raise TrainingError(
                f"dev split: the outputs on the dev split are not finite after epoch {epoch}. Lower "
                f"optimizer.lr={pl_module.optimizer_settings.lr:g}, {clip_advice(trainer)}, or check the features."
            )
        dev_scores = scores(predictions.pop(pl_module.recognizer.task.name))
        if self.metric not in dev_scores:
            raise ConfigError(
                f"training.metric={self.metric}: the dev split has no utterance on which "
                f"training.metric={self.metric} is defined. Choose another metric or dev split."
            )
        row = {"epoch": float(epoch), "seconds": train_seconds, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row.update({name: float(value) for name, value in trainer.callback_metrics.items() if "train/" in name})
        row.update({f"dev/{name}": value for name, value in dev_scores.items()})
        for task, part in predictions.items():
            if part.valid.any():
                row.update({f"dev/{task}:{name}": value for name, value in scores(part).items()})
        self.history.append(row)
        pl_module.log("dev/score", dev_scores[self.metric])
        pl_module.epoch_scored(dev_scores[self.metric])
        for sink in trainer.loggers:
            sink.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=epoch)

        if trainer.is_global_zero:
            write_history(self.folder / HISTORY, self.history)
            if self.best is row:
                pl_module.recognizer.save_pretrained(self.folder / MODEL)
                self.saved = pl_module.recognizer.checksum()
            if self.keep_every_epoch:
                pl_module.recognizer.save_pretrained(self.folder / f"checkpoints/epoch-{epoch:03d}")
            if self.verbose:
                self._report(row)
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        if self.exhausted:
            trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch(epoch, float(dev_scores[self.metric]))

    def _report(self, row: Mapping[str, float]) -> None:
        best = self.best
        assert best is not None
        name = f"dev/{self.metric}"
        used = ""
        if self.curriculum is not None:
            count = self.curriculum.count(int(row["epoch"]) - 1)
            used = f"  {count:,} of {len(self.curriculum):,} conversations" if count < len(self.curriculum) else ""
        logger.info(
            "epoch %d/%d  loss %.4f  dev %s %.4f  (best %.4f at %d)  %.1f s%s",
            row["epoch"],
            self.max_epochs,
            row.get("train/loss", float("nan")),
            self.metric,
            row[name],
            best[name],
            best["epoch"],
            row["seconds"],
            used,
        )


class TrainingBar(pl.Callback):
    """Progress bar over all epochs."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by the trainer."""
        steps = trainer.datamodule.sampler.steps  # type: ignore[attr-defined]
        self._bar.update(self._task, total=steps(trainer.max_epochs or 1), completed=steps(trainer.current_epoch))
        self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by the trainer."""
        self._bar.update(self._task, description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Called by the trainer."""
        self._bar.advance(self._task)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by the trainer."""
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the terminal."""
        self._bar.stop()


def clip_advice(trainer: pl.Trainer) -> str:
    """What to do about gradient clipping if training diverges."""
    clip = trainer.gradient_clip_val
    return f"lower training.gradient_clip={clip:g}" if clip else "set training.gradient_clip (now 0, off)"


def _exact(row: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(float(value)) for name, value in row.items()}


def best_row(history: list[dict[str, float]], metric: str) -> dict[str, float]:
    """The row with the best dev score, the earliest if equal."""
    sign = 1 if get_metric(metric).higher_is_better else -1
    return max(history, key=lambda row: (sign * row[f"dev/{metric}"], -row["epoch"]))


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write the metrics of every epoch as CSV, atomically."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def read_history(path: Path, metric: str | None = None) -> list[dict[str, float]]:
    """Inverse of :func:`write_history`: one row per epoch, from 1, at least one.

    Args:
        metric: A dev score required in every row.

    Raises:
        RunError: missing or damaged; the message names line and column.
    """
    advice = "The file was changed or damaged. Restore it, or begin a new run."
    history = []
    for number, row in enumerate(read_rows(path, advice=advice), start=1):
        line: dict[str, float] = {}
        for name, cell in row.items():
            try:
                if cell:
                    line[name] = float(cell)
            except ValueError:
                problem = f", line {number + 1}, column {shown(name)}: {shown(cell)} is not a number"
                raise failure(RunError, path, problem, advice) from None
        score = None if metric is None else f"dev/{metric}"
        for name in ("epoch", "seconds", *([] if score is None else [score])):
            if not math.isfinite(line.get(name, math.nan)):
                raise failure(RunError, path, f", line {number + 1}: column {name!r} has no number", advice)
        if line["epoch"] != number:
            problem = f", line {number + 1}: epoch {line['epoch']:g} instead of {number}"
            raise failure(RunError, path, problem, advice)
        history.append(line)
    if not history:
        raise failure(RunError, path, ": the file has no epoch", advice)
    return history
