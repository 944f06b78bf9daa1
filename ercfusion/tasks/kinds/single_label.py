"""The task kind ``single_label``: one of C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TableRow, TaskKind
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor


class SingleLabel(TaskKind):
    """Softmax over the labels, cross-entropy, and the most probable label as the decision."""

    index_targets: ClassVar[bool] = True
    probabilities: ClassVar[Literal["", "exclusive", "independent"]] = "exclusive"
    changes: ClassVar[bool] = True
    representation: ClassVar[str] = "classes"
    label_smoothing: ClassVar[bool] = True
    penalty: ClassVar[bool] = True
    label_wise: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal", "class_balanced")
    inputs: ClassVar[tuple[str, ...]] = ("confusion", "shift", "labelled")
    headline: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy", "uar", "ece")
    table_scores: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "accuracy")
    pictures: ClassVar[tuple[str, ...]] = ("class-f1", "confusion", "reliability")

    def encode(self, value: Any, task: TaskSpec) -> int | Sequence[float]:
        """The index of a label."""
        assert task.schema is not None
        if not isinstance(value, str):
            raise TypeError("a label name is expected")
        return task.schema.index(value)

    def label(self, value: Any, task: TaskSpec) -> str:
        """The label's name in the schema."""
        assert task.schema is not None
        return task.schema.canonical(value)

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """1 for the label."""
        if not isinstance(value, str):
            raise TypeError("a label name is expected")
        return {value: 1}

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """(N) indices of the most probable labels."""
        return output.argmax(axis=1)

    def right_labels(
        self, value: NDArray[Any], valid: NDArray[Any], task: TaskSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N) label indices and their validity."""
        return np.where(valid, value, 0).astype(np.int64), np.asarray(valid, dtype=bool)

    def merge_outputs(self, output: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
        """Sums of probabilities, divided by their total if some have no counterpart."""
        merged = output @ matrix
        if matrix.sum() == len(matrix):
            return merged
        total = merged.sum(axis=1, keepdims=True)
        return np.where(total > 0, merged / np.where(total > 0, total, 1), 1 / matrix.shape[1])

    def merge_targets(
        self, value: NDArray[Any], valid: NDArray[Any], matrix: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Indices of the labels' counterparts."""
        index = np.where(valid, value, 0).astype(np.int64)
        there = matrix.sum(axis=1) > 0
        return matrix.argmax(axis=1)[index], np.asarray(valid & there[index], dtype=bool)

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(C) log frequencies of the labels."""
        return self.class_mass(value, task).double().mean(0).clamp(min=1e-4).log()

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) probabilities."""
        return logits.softmax(-1)

    def logits(self, outputs: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) log-probabilities."""
        import torch

        return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        weights: Tensor | None = None,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        penalties: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy or focal loss; the weight of an utterance is that of its class."""
        from torch.nn import functional as F

        from ercfusion.losses import focal_loss, penalty_factors

        factors = None
        if penalties is not None:
            factors = penalty_factors(penalties, F.one_hot(value, task.size).to(logits), logits.softmax(-1))
        if gamma:
            return focal_loss(logits, value, gamma=gamma, smoothing=label_smoothing, weights=weights, factors=factors)
        weight = logits.new_ones(len(logits)) if weights is None else weights[value]
        each = F.cross_entropy(logits, value, reduction="none", label_smoothing=label_smoothing)
        return (weight * (each if factors is None else factors * each)).sum(), weight.sum()

    def divergence(
        self, logits: Tensor, teacher: Tensor, task: TaskSpec, *, temperature: float = 1.0, **settings: Any
    ) -> Tensor:
        """(N) :func:`ercfusion.losses.softened_divergence`."""
        from ercfusion.losses import softened_divergence

        return softened_divergence(logits, teacher, temperature)

    def mass_loss(
        self, logits: Tensor, mass: Tensor, task: TaskSpec, *, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy against the shares divided by their sum; utterances without any do not count."""
        total = mass.sum(-1, keepdim=True)
        value = mass / total.where(total > 0, 1)
        weight = (total[:, 0] > 0).to(logits) * (1 if weights is None else value @ weights)
        each = -(value * logits.log_softmax(-1)).sum(-1)
        return (weight * each).sum(), weight.sum()

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) one-hot labels."""
        from torch.nn import functional as F

        return F.one_hot(value, task.size)

    def answer_type(self, task: TaskSpec) -> Any:
        """A label name."""
        import pyarrow as pa

        return pa.string()

    def truths(self, part: Predictions) -> list[Any]:
        """True labels; None without a unique one."""
        names = part.task.output_names
        return [names[index] if known else None for index, known in zip(*part.labels(), strict=True)]

    def answers(self, part: Predictions) -> list[Any]:
        """Predicted labels."""
        return [part.task.output_names[index] for index in part.decisions()]

    def decode(self, truth: Any, task: TaskSpec) -> int | Sequence[float]:
        """The index of a label, or probabilities for a distribution."""
        return self.encode(truth, task)

    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> Any:
        """Read a label."""
        assert task.schema is not None
        return row.label(columns[0], task.schema)

    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """One cell."""
        return [value]

    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, dict[str, int] | None]:
        """A label drawn uniformly."""
        return str(generator.choice(task.output_names)), None
