"""Objects that the recognizer lends to architectures: the requests ``labels`` and ``ratings``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.models.base import LabelLoss
from ercfusion.tasks.heads import Head


class TaskLabels:
    """The :class:`ercfusion.models.base.Labels` of a task with this head.

    Outputs and their logits are computed in single precision at least.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.task = head.task
        self.rules = head.task.rules

    def targets(self, batch: ConversationBatch) -> tuple[Tensor, Tensor] | None:
        """(N, C) share of each label, (N) bool, True if labelled; None without targets."""
        if self.task.name not in batch.targets:
            return None
        target = batch.targets[self.task.name]
        valid = target.valid if target.value.ndim == 1 else target.valid[:, None]
        mass = self.rules.class_mass(torch.where(valid, target.value, 0), self.task)
        assert mass is not None, "a kind with label_wise has classes"
        return torch.where(target.valid[:, None], mass, 0), target.valid

    def loss(self, logits: Tensor, batch: ConversationBatch, counted: Tensor | None = None) -> LabelLoss:
        """The task's loss on (N, C) or (N, R, C) logits; the objective adds its settings."""
        target = batch.targets[self.task.name]
        readings = logits if logits.ndim == 3 else logits[:, None]
        valid = target.valid[:, None].expand(readings.shape[:2])
        return LabelLoss(self._loss, (readings, target.value, valid if counted is None else valid & counted))

    def _loss(self, logits: Tensor, value: Tensor, valid: Tensor, packing: Packing, **settings: Any) -> Tensor:
        targets = TaskTargets(value.repeat_interleave(valid.shape[1], 0), valid.flatten())
        total, count = self.head.loss(logits.flatten(0, 1), targets, **settings)
        return total / count.clamp(min=1e-12)

    def mass_loss(self, logits: Tensor, mass: Tensor, *, weights: Tensor | None = None, **settings: Any) -> Tensor:
        """Loss on labels put together from several utterances, a scalar; only the weights of the settings apply."""
        total, count = self.rules.mass_loss(logits.float(), mass.float(), self.task, weights=weights)
        return total / count.clamp(min=1e-12)

    def outputs(self, logits: Tensor) -> Tensor:
        """(N, C) probabilities."""
        return self.rules.outputs(_wide(logits), self.task)

    def logits(self, outputs: Tensor) -> Tensor:
        """(N, C) logits with these probabilities."""
        return self.rules.logits(_wide(outputs), self.task)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def label_names(task: TaskSpec, architecture: str) -> tuple[str, ...]:
    """Names of the labels that an architecture represents."""
    if not task.rules.label_wise or task.rules.num_logits(task) != task.size:
        fits = ", ".join(name for name in KINDS if task_kind(name).label_wise)
        raise ConfigError(
            f"{architecture} represents each label, but the first task {task.name!r} is {task.kind}. Choose a first "
            f"task of the kinds {fits}, or another model."
        )
    return task.output_names


class TaskRatings:
    """The :class:`ercfusion.models.base.Ratings` of a task."""

    def __init__(self, task: TaskSpec) -> None:
        self.task = task

    def targets(self, batch: ConversationBatch) -> tuple[Tensor, Tensor] | None:
        """(N, K) numbers, (N) bool, True if labelled; None without targets."""
        if self.task.name not in batch.targets:
            return None
        target = batch.targets[self.task.name]
        valid = target.valid if target.value.ndim == 1 else target.valid[:, None]
        numbers = self.task.rules.ratings(torch.where(valid, target.value, 0), self.task)
        return torch.where(target.valid[:, None], numbers, 0), target.valid


def rated_task(tasks: Sequence[TaskSpec]) -> TaskSpec:
    """The task whose targets are lent as ratings: the first one without labels, else the first one."""
    return next((task for task in tasks if task.schema is None), tasks[0])
