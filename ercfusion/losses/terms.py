"""Losses as terms of an objective: what each is called, what can be set, and which tasks it fits.

A term reads an architecture's representations of a batch's labelled utterances, not the task's outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.losses._common import unit
from ercfusion.losses.contrastive import (
    MemoryQueue,
    inter_class_contrastive,
    rank_n_contrast,
    supervised_contrastive,
)
from ercfusion.losses.spread import covariance_loss, variance_loss
from ercfusion.losses.triplet import adaptive_triplet_loss, triplet_loss

Of = Literal["hidden", "modalities", "both"]
OF: tuple[Of, ...] = ("hidden", "modalities", "both")


def _supcon(
    vectors: Tensor, target: Tensor, *, temperature: float = 0.07, include_lonely: bool = False, **more: Any
) -> Any:
    return supervised_contrastive(vectors, target, temperature=temperature, include_lonely=include_lonely, **more)


def _inter_class(
    vectors: Tensor, target: Tensor, *, temperature: float = 0.07, include_lonely: bool = False, **more: Any
) -> Any:
    return inter_class_contrastive(vectors, target, temperature=temperature, include_lonely=include_lonely, **more)


def _triplet(
    vectors: Tensor,
    target: Tensor,
    *,
    mining: str = "hard",
    adaptive: bool = False,
    margin: float = 0.2,
    scale: float = 0.1,
    literal: bool = False,
    hinge: bool = True,
) -> Any:
    if not adaptive:
        if literal or not hinge:
            raise ValueError("literal=true and hinge=false go with adaptive=true only")
        return triplet_loss(vectors, target, mining=mining, margin=margin)
    return adaptive_triplet_loss(vectors, target, mining=mining, scale=scale, literal=literal, hinge=hinge)


def _variance(vectors: Tensor, target: Tensor, *, std: float = 1.0) -> Any:
    return variance_loss(vectors, target=std)


def _covariance(vectors: Tensor, target: Tensor) -> Any:
    return covariance_loss(vectors)


def _rank(vectors: Tensor, target: Tensor, *, temperature: float = 2.0, normalize: bool = False) -> Any:
    return rank_n_contrast(vectors, target, temperature=temperature, normalize=normalize)


_LOSSES: dict[str, Callable[..., Any]] = {
    "supcon": _supcon,
    "inter_class": _inter_class,
    "triplet": _triplet,
    "variance": _variance,
    "covariance": _covariance,
    "rank": _rank,
}
TERMS: tuple[str, ...] = tuple(_LOSSES)
"""Names of the terms, as keys of ``objective.weights`` and as sections of settings."""

# What a term reads from the targets; the others read representations only.
_READS = {"supcon": "classes", "inter_class": "classes", "triplet": "classes", "rank": "numbers"}
_WITH_QUEUE = ("supcon", "inter_class")


def term_settings(name: str) -> dict[str, Any]:
    """The settings of a term with their defaults."""
    parameters = inspect.signature(_LOSSES[name]).parameters.values()
    own = {entry.name: entry.default for entry in parameters if entry.default is not entry.empty}
    return {"of": "hidden", "projection": 0, **own, **({"queue": 0} if name in _WITH_QUEUE else {})}


class RepresentationTerm(nn.Module):
    """One loss over the representations of a batch's labelled utterances.

    Of a single modality's representation the utterances that have the modality count; what an architecture puts in the
    place of an absent one says nothing about an emotion.

    Args:
        name: One of :data:`TERMS`.
        of: ``hidden``, the vector that the head reads; ``modalities``, each modality's representation, the losses of
            which are added up; or ``both``.
        projection: Width of a network (linear, ReLU, linear) between the representation and the loss, one for each
            representation, which is trained with the rest and is not part of the recognizer; 0 for none. Contrastive
            learning mostly puts one there (Chen et al., ICML 2020), so that the representation keeps what the loss
            would make it forget.
        queue: How many earlier utterances are keys as well (``supcon`` and ``inter_class``).
        options: Of the loss; :func:`term_settings` lists them.

    Raises:
        ConfigError: a setting that does not exist, or a value that cannot be used.
    """

    def __init__(self, name: str, *, of: str = "hidden", projection: int = 0, queue: int = 0, **options: Any) -> None:
        super().__init__()
        known = term_settings(name)
        unknown = [key for key in options if key not in known]
        if unknown or (queue and "queue" not in known):
            wrong = unknown[0] if unknown else "queue"
            raise ConfigError(f"objective.{name} has no setting {wrong!r}. {did_you_mean(wrong, known)}")
        if of not in OF:
            raise ConfigError(f"objective.{name}.of must be one of {', '.join(OF)}; found {of!r}")
        for key, number in (("projection", projection), ("queue", queue)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ConfigError(f"objective.{name}.{key} must be a whole number of at least 0, found {number!r}")
        self.name, self.of, self.projection, self.queue = name, of, projection, queue
        self.options = dict(options)
        self.projections = nn.ModuleDict()
        self.queues = nn.ModuleDict()
        try:
            self._loss(torch.zeros(0, 1), torch.zeros((0, 1) if name == "rank" else 0), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"objective.{name}: {error}") from error

    def build(self, hidden: int, modalities: Mapping[str, int]) -> RepresentationTerm:
        """Make the parts that depend on widths: projections and queues; returns the term itself.

        Args:
            hidden: Width of the vector that the head reads.
            modalities: Widths of the modalities' representations by name.

        Raises:
            ConfigError: the term is of representations that the architecture does not have.
        """
        if self.of != "hidden" and not modalities:
            raise ConfigError(
                f"objective.{self.name}.of={self.of}: the architecture with these options has no representation of a "
                "single modality"
            )
        widths = {**({"hidden": hidden} if self.of != "modalities" else {})}
        widths |= {f"modality {key}": width for key, width in modalities.items()} if self.of != "hidden" else {}
        for key, width in widths.items():
            if self.projection:
                layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection))
                self.projections[key] = nn.Sequential(*layers)
            if self.queue:
                self.queues[key] = MemoryQueue(self.queue, self.projection or width)
        return self

    def check_task(self, task: TaskSpec) -> None:
        """Raise :class:`ConfigError` if the task's targets are not what the term reads."""
        reads = _READS.get(self.name)
        if reads is not None and task.rules.representation != reads:
            fits = " and ".join(name for name in KINDS if task_kind(name).representation == reads)
            raise ConfigError(
                f"objective.weights.{self.name} is for {fits} tasks; {task.name!r} is {task.kind}. Leave it at 0."
            )

    def forward(
        self,
        hidden: Tensor,
        modalities: Mapping[str, Tensor],
        target: Tensor,
        valid: Tensor,
        present: Mapping[str, Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each representation the sum of losses and what to divide it by.

        Args:
            hidden: (N, D).
            modalities: (N, D_m) by name.
            target: (N) class indices, or (N, K) numbers; arbitrary where not ``valid``.
            valid: (N) bool, the labelled utterances.
            present: (N) bool by modality, the utterances that have it.
        """
        found = []
        if self.of != "modalities":
            found.append(self._of("hidden", hidden, target, valid))
        if self.of != "hidden":
            for name, vectors in modalities.items():
                counted = valid & present[name] if name in present else valid
                found.append(self._of(f"modality {name}", vectors, target, counted))
        return found

    def _of(self, key: str, vectors: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        rows = counted.nonzero().squeeze(1)
        vectors, target = vectors.index_select(0, rows), target.index_select(0, rows)
        if key in self.projections:
            vectors = self.projections[key](vectors)
        if key not in self.queues:
            return self._loss(vectors, target, None)
        queue = self.queues[key]
        assert isinstance(queue, MemoryQueue)
        result = self._loss(vectors, target, queue)
        if self.training:
            queue.push(unit(vectors.detach().float()), target)
        return result

    def _loss(self, vectors: Tensor, target: Tensor, queue: MemoryQueue | None) -> tuple[Tensor, Tensor]:
        more = {} if queue is None else {"memory": queue.content()}
        total, count = _LOSSES[self.name](vectors, target, **self.options, **more)
        return total, count
