"""A probability for each of C labels, from annotators' votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import PROBABILITY_TOLERANCE
from ercfusion.batch.task import TaskSpec
from ercfusion.tasks.kinds.single_label import SingleLabel

if TYPE_CHECKING:
    from torch import Tensor


class Distribution(SingleLabel):
    """As one label, but the cross-entropy is with the target distribution.

    The most probable target label is the right one for scores that need one; where two share the maximum there is none.
    """

    index_targets: ClassVar[bool] = False
    representation: ClassVar[str] = ""
    label_smoothing: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    headline: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy", "kl")
    beside: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy", "kl")

    def metrics(self, task: TaskSpec) -> tuple[str, ...]:
        """See the base class."""
        return (*super().metrics(task), "kl", "binarised_macro_f1")

    def encode(self, value: Any, task: TaskSpec) -> Sequence[float]:
        """See the base class."""
        assert task.schema is not None
        if not isinstance(value, Mapping):
            raise TypeError("a mapping from label names to probabilities is expected")
        encoded = np.zeros(task.size, dtype=np.float32)
        for label, probability in value.items():
            encoded[task.schema.index(label)] = probability
        if not ((encoded >= 0).all() and abs(float(encoded.sum()) - 1) <= 1e-4):  # also refuses NaN
            raise ValueError("probabilities must be non-negative and sum to 1")
        return [float(number) for number in encoded]

    def label(self, value: Any, task: TaskSpec) -> None:
        """See the base class: votes do not change from one label to another."""
        return None

    def right_labels(
        self, value: NDArray[Any], valid: NDArray[Any], task: TaskSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """See the base class."""
        largest = value.max(axis=1, keepdims=True)
        unique = (value >= largest - PROBABILITY_TOLERANCE).sum(axis=1) == 1
        return value.argmax(axis=1), np.asarray(valid & unique, dtype=bool)

    def loss(
        self, logits: Tensor, value: Tensor, task: TaskSpec, *, weights: Tensor | None = None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """See the base class. An utterance weighs as much as the mean over its classes."""
        weight = logits.new_ones(len(logits)) if weights is None else value @ weights
        each = -(value * logits.log_softmax(-1)).sum(-1)
        return (weight * each).sum(), weight.sum()

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return value
