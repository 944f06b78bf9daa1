"""The task kind ``distribution``: probabilities of C labels, from annotators' votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TableRow
from ercfusion.batch.predictions import PROBABILITY_TOLERANCE
from ercfusion.batch.task import TaskSpec
from ercfusion.tasks.kinds.single_label import SingleLabel

if TYPE_CHECKING:
    from torch import Tensor


class Distribution(SingleLabel):
    """Like a single label, with cross-entropy against the target distribution.

    For scores of single labels, the most probable target label is correct; an utterance with a tie has none.
    """

    index_targets: ClassVar[bool] = False
    changes: ClassVar[bool] = False
    keeps_targets: ClassVar[bool] = True
    representation: ClassVar[str] = ""
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "class_balanced", "kl", "chosen_labels")
    column_per_label: ClassVar[bool] = True
    default_metric: ClassVar[str] = "kl"
    inputs: ClassVar[tuple[str, ...]] = ("confusion", "shift", "divergence", "labelled", "distributions")
    headline: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy", "kl", "binarised_macro_f1")
    pictures: ClassVar[tuple[str, ...]] = (*SingleLabel.pictures, "vote-entropy")
    table_scores: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy", "kl")

    def encode(self, value: Any, task: TaskSpec) -> Sequence[float]:
        """(C) probabilities from a mapping of labels to probabilities."""
        assert task.schema is not None
        if not isinstance(value, Mapping):
            raise TypeError("a mapping from label names to probabilities is expected")
        encoded = np.zeros(task.size, dtype=np.float32)
        for label, probability in value.items():
            encoded[task.schema.index(label)] = probability
        if not ((encoded >= 0).all() and abs(float(encoded.sum()) - 1) <= 1e-4):  # also refuses NaN
            raise ValueError("probabilities must be non-negative and sum to 1")
        return [float(number) for number in encoded]

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """Probability per label."""
        if not isinstance(value, Mapping):
            raise TypeError("a mapping from label names to probabilities is expected")
        return {str(label): float(share) for label, share in value.items()}

    def count_text(self, count: float, turns: int) -> str:
        """The share of the votes."""
        return f"{count / turns:.1%}"

    def right_labels(
        self, value: NDArray[Any], valid: NDArray[Any], task: TaskSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The most probable labels, valid if unique."""
        largest = value.max(axis=1, keepdims=True)
        unique = (value >= largest - PROBABILITY_TOLERANCE).sum(axis=1) == 1
        return value.argmax(axis=1), np.asarray(valid & unique, dtype=bool)

    def merge_targets(
        self, value: NDArray[Any], valid: NDArray[Any], matrix: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Sums of shares, divided by their total if some have no counterpart."""
        there = np.asarray(valid & ((value @ matrix).sum(axis=1) > 0), dtype=bool)
        return self.merge_outputs(value.astype(np.float64), matrix).astype(value.dtype), there

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        weights: Tensor | None = None,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        penalties: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy, or another of ``losses``; the weight of an utterance is the mean over its classes.

        ``label_smoothing`` is that of raters (:func:`ercfusion.losses.smooth_raters`).
        """
        from ercfusion.losses import distributions

        functions = {"kl": distributions.kl_divergence, "chosen_labels": distributions.chosen_label_loss}
        function = functions.get(loss, distributions.soft_cross_entropy)
        target = distributions.smooth_raters(value, label_smoothing)
        factors = None if penalties is None else distributions.penalty_factors(penalties, target, logits.softmax(-1))
        return function(logits, target, weights=weights, factors=factors)

    def balance_counts(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(C) utterances with a share above 1/C."""
        from ercfusion.losses import label_counts

        return label_counts(value)

    def chosen(self, value: Tensor) -> Tensor:
        """(N, C) bool, labels with a vote."""
        from ercfusion.losses import chosen_labels

        return chosen_labels(value)

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) probabilities."""
        return value

    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> dict[str, float]:
        """Read shares or counts of votes; they are divided by their sum."""
        numbers = [row.number(column) for column in columns]
        for column, value in zip(columns, numbers, strict=True):
            if value < 0:
                row.fail(column, f"{value:g} is negative. Give a share or a count of votes.")
        total = sum(numbers)
        if total == 0:
            row.fail(columns[0], f"all {len(columns)} shares are 0. Leave the cells empty for turns without labels.")
        return {label: value / total for label, value in zip(task.output_names, numbers, strict=True)}

    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """One cell per label."""
        return [repr(float(value.get(label, 0.0))) for label in task.output_names]

    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, dict[str, int] | None]:
        """Five random votes."""
        counts = generator.multinomial(5, [1 / task.size] * task.size)
        votes = {name: int(count) for name, count in zip(task.output_names, counts, strict=True) if count}
        return {name: count / 5 for name, count in votes.items()}, votes

    def distance(self, output: Tensor, value: Tensor, task: TaskSpec) -> float:
        """Mean absolute difference of probabilities above 0.05."""
        return max(0.0, float((output - value).abs().mean()) - 0.05)
