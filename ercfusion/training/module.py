"""The LightningModule and its batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ercfusion._core.errors import ConfigError, TrainingError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.missing import draw
from ercfusion.config.choices import Cosine, Linear, Optimizer, Plateau, Scheduler
from ercfusion.config.fields import fields_of
from ercfusion.config.missing_laws import Complete, Law
from ercfusion.data.sampler import ConversationSampler
from ercfusion.data.store import ConversationStore
from ercfusion.layers import ModalityDropout
from ercfusion.losses import EarlierBatches
from ercfusion.ops.processes import sum_over_processes
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.tasks.teaching import Taught
from ercfusion.training.bert_adam import BertAdam
from ercfusion.training.callbacks import LAST, clip_advice
from ercfusion.training.checkpoint_schema import check_optimizer, check_tensors
from ercfusion.training.teacher import TeacherOutputs

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "bert_adam": BertAdam,
    "adadelta": torch.optim.Adadelta,
    "sgd": torch.optim.SGD,
}
SCHEDULERS = ("constant", "cosine", "linear", "plateau")


class ConversationModule(pl.LightningModule):
    """Trains a recognizer.

    Args:
        recognizer: Prepared with the training split.
        optimizer: Weight decay applies to matrices without a true attribute ``_no_weight_decay``; with ``decay_all`` to
            all parameters.
        scheduler: ``constant``, ``cosine`` or ``linear`` (``warmup``: fraction of steps with a rising rate) or
            ``plateau`` (``factor``, ``patience`` in epochs, on the dev score).
        maximize: Whether a higher dev score is better.
        steps: Optimiser steps of all epochs, for ``cosine`` and ``linear``; None for the trainer's estimate (equal
            epochs).
        modality_dropout: Probability of :class:`ercfusion.layers.ModalityDropout` for any architecture.
        law: Of missing modalities; drawn before ``modality_dropout``, which hides more of what is left.
        complete_pass: Every batch comes twice in a row: the first pass is on the complete batch, and its outputs are
            the teacher of the second one. The logged loss is the mean of both passes, each term that of its passes.
            Losses that read earlier batches have a state per pass (:class:`ercfusion.losses.EarlierBatches`).
        teacher: Outputs of another model for the training split.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        objective: Objective,
        optimizer: Optimizer,
        scheduler: Scheduler,
        *,
        maximize: bool = True,
        steps: int | None = None,
        modality_dropout: float = 0.0,
        law: Law | None = None,
        complete_pass: bool = False,
        teacher: TeacherOutputs | None = None,
    ) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.objective = objective
        self.optimizer_settings = optimizer
        self.scheduler_settings = scheduler
        self.maximize = maximize
        self.steps = steps
        self.hide = ModalityDropout(modality_dropout)
        self.law = law or Complete()
        self.complete_pass = complete_pass
        self.teacher = teacher
        self._taught: Taught | None = None
        parts = [*recognizer.modules(), *objective.modules()] if complete_pass else []
        self._earlier = [part for part in parts if isinstance(part, EarlierBatches)]
        self.complete_states = nn.ModuleList(copy.deepcopy(part) for part in self._earlier)

    def training_step(self, batch: ConversationBatch, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: the loss is not finite; the message names the batch.
        """
        complete = self.complete_pass and batch_idx % 2 == 0
        view = batch if complete else self._hidden(batch)
        taught = None if complete else self._taught_about(batch)
        with self._states(complete):
            recognized = self.recognizer(view)
            total, terms = self.objective(self.recognizer, recognized, view, taught)
        self._taught = Taught.by(self.recognizer, recognized, batch) if complete else None
        # Summed over processes: equal weights in the epoch's mean, and all stop together.
        labelled = batch.targets[self.recognizer.task.name].valid.sum() * (not batch.stand_in)
        counts = sum_over_processes(torch.stack([labelled, (~torch.isfinite(total)).long()]))
        if counts[1] > 0:
            values = ", ".join(f"{name} = {float(value.detach()):.4g}" for name, value in terms.items())
            shown = ", ".join(batch.ids[:4]) + (f" and {len(batch.ids) - 4} more" if len(batch.ids) > 4 else "")
            raise TrainingError(
                f"the loss is not finite ({values}) at epoch {self.current_epoch + 1}, batch {batch_idx + 1} "
                f"(conversations {shown}). Lower optimizer.lr={self.optimizer_settings.lr:g}, "
                f"{clip_advice(self.trainer)}, or check their features."
            )
        logged = {"train/loss": total.detach(), **{f"train/{name}": value.detach() for name, value in terms.items()}}
        self.log_dict(logged, on_step=False, on_epoch=True, sync_dist=True, batch_size=max(int(counts[0]), 1))
        return total

    def _hidden(self, batch: ConversationBatch) -> ConversationBatch:
        """The batch without the modalities that the law and the dropout of modalities hide."""
        if not self.law.hides_nothing:
            holes = draw(self.law, batch)
            batch = batch.hide(holes.drop, holes.steps)
        if self.hide.dropout_rate > 0:
            batch = batch.hide(~self.hide(batch.present, batch.packing))
        return batch

    @contextmanager
    def _states(self, complete: bool) -> Iterator[None]:
        """Use the states of one pass: those of the pass on complete batches are in ``complete_states``."""
        if complete:
            self._exchange_states()
        try:
            yield
        finally:
            if complete:
                self._exchange_states()

    def _exchange_states(self) -> None:
        for own, other in zip(self._earlier, self.complete_states, strict=True):
            assert isinstance(other, EarlierBatches)
            own.exchange(other)

    def _taught_about(self, batch: ConversationBatch) -> Taught | None:
        """The outputs of the teacher, if there is one."""
        if self.teacher is not None:
            return self.teacher(batch)
        assert not self.complete_pass or self._taught is not None, "the complete batch comes first"
        return self._taught

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups: matrices decay, the others only with ``decay_all``."""
        everything = self.optimizer_settings.decay_all
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decayed = [p for p in parameters if everything or (p.ndim > 1 and not getattr(p, "_no_weight_decay", False))]
        chosen = {id(parameter) for parameter in decayed}
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.optimizer_settings.weight_decay},
            {"params": [parameter for parameter in parameters if id(parameter) not in chosen], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        """The optimiser and the learning-rate schedule."""
        chosen, schedule = self.optimizer_settings, self.scheduler_settings
        own = {key: getattr(chosen, key) for key in fields_of(type(chosen)) if key not in ("weight_decay", "decay_all")}
        optimizer = _create("optimizer", OPTIMIZERS[chosen.choice], self._groups(), **own)
        if isinstance(schedule, Plateau):
            plateau = _create(
                "scheduler",
                torch.optim.lr_scheduler.ReduceLROnPlateau,
                optimizer,
                mode="max" if self.maximize else "min",
                factor=schedule.factor,
                patience=schedule.patience,
            )
            # The trainer stores its state; only epoch_scored steps it.
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "dev/score"}}
        if not isinstance(schedule, (Cosine, Linear)):
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches) if self.steps is None else self.steps
        shape = cosine_factor if isinstance(schedule, Cosine) else linear_factor
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, shape(steps, schedule.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint before the trainer loads it.

        Raises:
            RunError: it is of another model.
        """
        path = Path(self.trainer.default_root_dir) / LAST
        check_tensors(checkpoint["state_dict"], self.state_dict(), path, "the model")
        ordered = [parameter for group in self._groups() for parameter in group["params"]]
        for state in checkpoint["optimizer_states"]:
            check_optimizer(state, ordered, path)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule, except a plateau: the epoch's checkpoint is written already."""
        if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step()

    def epoch_scored(self, score: float) -> None:
        """Step a plateau schedule; call once per epoch, before its checkpoint."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                config.scheduler.step(score)


def _create(section: str, maker: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """``maker(...)``; settings refused by torch become a :class:`ConfigError`."""
    try:
        return maker(*arguments, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: torch refuses {settings}: {error}. Correct the setting.") from error


def cosine_factor(steps: int, warmup: float) -> Callable[[int], float]:
    """Learning rate as a fraction of its peak: linear rise, then half a cosine down to 0."""
    return _warmed_up(steps, warmup, lambda share: 0.5 * (1 + math.cos(math.pi * share)))


def linear_factor(steps: int, warmup: float) -> Callable[[int], float]:
    """Learning rate as a fraction of its peak: linear rise, then linear decay to 0."""
    return _warmed_up(steps, warmup, lambda share: 1.0 - share)


def _warmed_up(steps: int, warmup: float, decay: Callable[[float], float]) -> Callable[[int], float]:
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return decay(min(1.0, (step - rise) / max(1, steps - rise)))

    return factor


class _Batches(Dataset[ConversationBatch]):
    def __init__(self, store: ConversationStore) -> None:
        self.store = store
        self.shortest = min(range(len(store)), key=store.lengths.__getitem__)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, indices: list[int]) -> ConversationBatch:
        if not indices:  # the batch has fewer conversations than there are processes
            return replace(self.store.batch([self.shortest]), stand_in=True)
        return self.store.batch(indices)


def train_loader(store: ConversationStore, sampler: ConversationSampler, *, pin_memory: bool) -> DataLoader[Any]:
    """A loader of the sampler's batches, in this process: slicing is index arithmetic."""
    return DataLoader(_Batches(store), sampler=sampler, batch_size=None, pin_memory=pin_memory)


class TrainingBatches(pl.LightningDataModule):
    """The training split's batches, for epochs of different lengths.

    The trainer reads a loader's length once. With ``reload_dataloaders_every_n_epochs=1`` it asks for a loader before
    each epoch, earlier than its own ``set_epoch``: so the epoch is set here.
    """

    def __init__(self, store: ConversationStore, sampler: ConversationSampler, *, pin_memory: bool) -> None:
        super().__init__()
        self.store = store
        self.sampler = sampler
        self.pin_memory = pin_memory

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the next epoch."""
        assert self.trainer is not None
        self.sampler.rank, self.sampler.world_size = self.trainer.global_rank, self.trainer.world_size
        self.sampler.set_epoch(self.trainer.current_epoch)
        return train_loader(self.store, self.sampler, pin_memory=self.pin_memory)
