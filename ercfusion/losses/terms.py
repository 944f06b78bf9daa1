"""Losses as terms of an objective, on representations of labelled utterances.

:mod:`ercfusion.config.terms` has their settings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.config.fields import fields_of
from ercfusion.config.terms import Term
from ercfusion.losses._common import unit
from ercfusion.losses.contrastive import MemoryQueue
from ercfusion.losses.spread import covariance_loss, variance_loss
from ercfusion.losses.triplet import adaptive_triplet_loss, triplet_loss


def triplet(
    vectors: Tensor,
    target: Tensor,
    *,
    mining: str,
    adaptive: bool,
    margin: float,
    scale: float,
    literal: bool,
    hinge: bool,
) -> tuple[Tensor, Tensor]:
    """The term ``triplet``: fixed or adaptive margins.

    Raises:
        ValueError: settings of adaptive margins without ``adaptive``.
    """
    if not adaptive:
        if literal or not hinge:
            raise ValueError("literal=true and hinge=false go with adaptive=true only. Set adaptive=true.")
        return triplet_loss(vectors, target, mining=mining, margin=margin)
    return adaptive_triplet_loss(vectors, target, mining=mining, scale=scale, literal=literal, hinge=hinge)


def variance(vectors: Tensor, target: Tensor, *, std: float) -> tuple[Tensor, Tensor]:
    """The term ``variance``; it needs no labels."""
    return variance_loss(vectors, target=std)


def covariance(vectors: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The term ``covariance``; it needs no labels."""
    return covariance_loss(vectors)


class RepresentationTerm(nn.Module):
    """One loss over the representations of a batch's labelled utterances.

    A modality's representation counts only for utterances having it.

    Args:
        name: Name in the objective.
        settings: Settings of the registered class. A ``projection`` before the loss (Chen et al., ICML 2020) lets the
            representation keep more than the loss needs; it is not part of the recognizer.

    Raises:
        ConfigError: settings that exclude each other.
    """

    def __init__(self, name: str, settings: Term) -> None:
        super().__init__()
        self.name, self.settings = name, settings
        self.queue = int(getattr(settings, "queue", 0))
        handled = ("of", "projection", "queue")
        self.options = {key: getattr(settings, key) for key in fields_of(type(settings)) if key not in handled}
        self.projections = nn.ModuleDict()
        self.queues = nn.ModuleDict()
        self.function = settings.load()
        try:
            self._loss(torch.zeros(0, 1), torch.zeros((0, 1) if settings.reads == "numbers" else 0), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"objective.{name}: {error}") from error

    def build(self, hidden: int, modalities: Mapping[str, int]) -> RepresentationTerm:
        """Create the projections and queues; returns the term itself.

        Args:
            hidden: Width of the head's input.
            modalities: Widths of the modalities' representations by name.

        Raises:
            ConfigError: the architecture lacks the representations of the term.
        """
        if self.settings.of != "hidden" and not modalities:
            raise ConfigError(
                f"objective.{self.name}.of={self.settings.of}: the architecture with these options has no "
                f"representation of a single modality. Set objective.{self.name}.of=hidden."
            )
        widths = {"hidden": hidden} if self.settings.of != "modalities" else {}
        if self.settings.of != "hidden":
            widths |= {f"modality {key}": width for key, width in modalities.items()}
        for key, width in widths.items():
            if self.settings.projection:
                layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.settings.projection))
                self.projections[key] = nn.Sequential(*layers)
            if self.queue:
                self.queues[key] = MemoryQueue(self.queue, self.settings.projection or width)
        return self

    def check_task(self, task: TaskSpec) -> None:
        """Raise :class:`ConfigError` if the term cannot read the task's targets."""
        reads = self.settings.reads
        if reads and task.rules.representation != reads:
            kinds = " and ".join(name for name in KINDS if task_kind(name).representation == reads)
            raise ConfigError(
                f"objective.weights.{self.name} is for {kinds} tasks; {task.name!r} is {task.kind}. Set it to 0."
            )

    def forward(
        self,
        hidden: Tensor,
        modalities: Mapping[str, Tensor],
        target: Tensor,
        valid: Tensor,
        present: Mapping[str, Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Sum of losses and divisor of each representation.

        Args:
            hidden: (N, D).
            modalities: (N, D_m) by name.
            target: (N) class indices, or (N, K) numbers; arbitrary if not ``valid``.
            valid: (N) bool, the labelled utterances.
            present: (N) bool by modality.
        """
        losses = []
        if self.settings.of != "modalities":
            losses.append(self._of("hidden", hidden, target, valid))
        if self.settings.of != "hidden":
            for name, vectors in modalities.items():
                included = valid & present[name] if name in present else valid
                losses.append(self._of(f"modality {name}", vectors, target, included))
        return losses

    def _of(self, key: str, vectors: Tensor, target: Tensor, included: Tensor) -> tuple[Tensor, Tensor]:
        rows = included.nonzero().squeeze(1)
        vectors, target = vectors.index_select(0, rows), target.index_select(0, rows)
        if key in self.projections:
            vectors = self.projections[key](vectors)
        if key not in self.queues:
            return self._loss(vectors, target, None)
        queue = self.queues[key]
        assert isinstance(queue, MemoryQueue)
        result = self._loss(vectors, target, queue)
        if self.training:
            queue.push(unit(vectors.detach().to(queue.vectors)), target)
        return result

    def _loss(self, vectors: Tensor, target: Tensor, queue: MemoryQueue | None) -> tuple[Tensor, Tensor]:
        memory = {} if queue is None else {"memory": queue.content()}
        total, count = self.function(vectors, target, **self.options, **memory)
        return total, count
