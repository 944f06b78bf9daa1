"""Any subset of C labels for every utterance, also none of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TaskKind
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.scores import EMPTY_SETS, best_thresholds

if TYPE_CHECKING:
    from torch import Tensor


class MultiLabel(TaskKind):
    """A sigmoid and a threshold for every label; the thresholds are chosen on dev."""

    sums: ClassVar[tuple[str, ...]] = ("counts",)
    headline: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "micro_f1", "accuracy", "jaccard")
    beside: ClassVar[tuple[str, ...]] = ("weighted_f1", "micro_f1", "jaccard")
    pictures: ClassVar[tuple[str, ...]] = ("class-f1",)
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"empty_sets": ", ".join(f"{name} 1" for name in EMPTY_SETS)}
    )

    def metrics(self, task: TaskSpec) -> tuple[str, ...]:
        """See the base class."""
        names = ("weighted_f1", "macro_f1", "micro_f1", "samples_f1", "accuracy", "jaccard", "jaccard_zero", "hamming")
        return (*names, "weighted_accuracy", *(f"weighted_accuracy/{label}" for label in task.output_names))

    def encode(self, value: Any, task: TaskSpec) -> list[float]:
        """See the base class."""
        assert task.schema is not None
        if not isinstance(value, frozenset):
            raise TypeError("a frozenset of label names is expected")
        encoded = [0.0] * task.size
        for label in value:
            encoded[task.schema.index(label)] = 1.0
        return encoded

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """See the base class: ``probability >= threshold``, which is 0.5 where none is given."""
        return np.asarray(output >= (0.5 if thresholds is None else thresholds))

    def best_thresholds(self, dev: Predictions) -> NDArray[np.float64]:
        """See the base class."""
        return best_thresholds(dev)

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return value.double().mean(0).clamp(1e-4, 1 - 1e-4).logit()

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return logits.sigmoid()

    def loss(
        self, logits: Tensor, value: Tensor, task: TaskSpec, *, weights: Tensor | None = None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """See the base class. The weights are those of the labels; utterances weigh the same."""
        from torch.nn import functional as F

        each = F.binary_cross_entropy_with_logits(logits, value, weight=weights, reduction="none").mean(-1)
        weight = logits.new_ones(len(logits))
        return (weight * each).sum(), weight.sum()

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return value

    def outcomes(self, logits: Tensor) -> Tensor:
        """See the base class: (N, C, 2), no and yes."""
        import torch

        return torch.stack([torch.zeros_like(logits), logits], dim=-1)
