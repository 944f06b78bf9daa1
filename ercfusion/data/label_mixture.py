"""Labels as Gaussians in the space of valence, arousal and dominance: from numbers to a distribution, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelMixture:
    """One Gaussian per label. A sample with numbers v has each label with probability N(v; m_k, S_k) / sum.

    All labels have the same weight, as in the mixture relabelling of AffectNet; our reading, from its abstract. There
    the Gaussians come from a published word study. Here they are given, or estimated from a corpus with both kinds of
    labels (:meth:`estimated`).

    Args:
        labels: The C labels.
        dimensions: The K dimensions.
        mean: (C, K), in the unit of the numbers.
        covariance: (C, K, K), symmetric and positive definite.

    Raises:
        ValueError: other shapes, numbers that are not finite, or a covariance that is not positive definite.
    """

    labels: tuple[str, ...]
    dimensions: tuple[str, ...]
    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", np.asarray(self.mean, dtype=np.float64))
        object.__setattr__(self, "covariance", np.asarray(self.covariance, dtype=np.float64))
        shape = (len(self.labels), len(self.dimensions))
        if self.mean.shape != shape or self.covariance.shape != (*shape, shape[1]) or 0 in shape:
            raise ValueError(
                f"expected means {shape} and covariances {(*shape, shape[1])}, found {self.mean.shape} and "
                f"{self.covariance.shape}. Give one Gaussian per label."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("means and covariances must be finite. Remove NaN and infinite numbers.")
        for label, matrix in zip(self.labels, self.covariance, strict=True):
            if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0:
                raise ValueError(
                    f"the covariance of {label!r} is not symmetric and positive definite. Correct it, or add a small "
                    "number to its diagonal."
                )

    @staticmethod
    def estimated(
        values: ArrayLike, shares: ArrayLike, labels: Sequence[str], dimensions: Sequence[str], floor: float = 0.1
    ) -> LabelMixture:
        """Mean and covariance of each label, weighted by its share of every sample.

        Args:
            values: (N, K) numbers. Use the training split: other splits would give their labels away.
            shares: (N, C), at least 0: one-hot labels, or shares of votes.
            labels, dimensions: Names.
            floor: Added to the standard deviation of every dimension (as variance), in the unit of the numbers.

        Raises:
            CorpusFormatError: a label has no sample.
        """
        numbers, weights = np.asarray(values, dtype=np.float64), np.asarray(shares, dtype=np.float64)
        total = weights.sum(axis=0)
        if absent := [label for label, weight in zip(labels, total, strict=True) if weight <= 0]:
            raise CorpusFormatError(
                f"no sample with numbers has the labels {', '.join(absent)}, so they have no place in the space of "
                f"{', '.join(dimensions)}. Remove these labels, or give their means and covariances."
            )
        mean = weights.T @ numbers / total[:, None]
        centred = numbers[:, None] - mean
        covariance = np.einsum("nc,nci,ncj->cij", weights, centred, centred) / total[:, None, None]
        covariance += floor**2 * np.eye(numbers.shape[1])
        return LabelMixture(tuple(labels), tuple(dimensions), mean, covariance)

    def distribution(self, values: ArrayLike) -> Floats:
        """(N, C) probabilities of the labels for (N, K) numbers; each row sums to 1."""
        difference = np.asarray(values, dtype=np.float64)[:, None] - self.mean
        distance = np.einsum("nci,cij,ncj->nc", difference, self._precision, difference)
        log = -0.5 * (distance + self._log_determinant)
        likelihood = np.exp(log - log.max(axis=1, keepdims=True))
        probability: Floats = likelihood / likelihood.sum(axis=1, keepdims=True)
        return probability

    def expected(self, distribution: ArrayLike) -> Floats:
        """(N, K) expectation of the numbers for (N, C) distributions: the means, weighted by the probabilities."""
        expected: Floats = np.asarray(distribution, dtype=np.float64) @ self.mean
        return expected

    @cached_property
    def _precision(self) -> Floats:
        return np.asarray(np.linalg.inv(self.covariance))

    @cached_property
    def _log_determinant(self) -> Floats:
        return np.asarray(np.linalg.slogdet(self.covariance)[1])


def mixture_of(
    conversations: Iterable[Conversation], label_task: TaskSpec, number_task: TaskSpec, floor: float = 0.1
) -> LabelMixture:
    """The mixture of the turns that have both targets.

    Args:
        conversations: Of the training split.
        label_task: A task with labels: single labels, label sets or distributions.
        number_task: A regression.
        floor: As for :meth:`LabelMixture.estimated`.

    Raises:
        CorpusFormatError: a label has no such turn.
    """
    assert label_task.schema is not None
    labels = label_task.schema.labels
    values, shares = [], []
    for conversation in conversations:
        for turn in conversation.turns:
            label, number = turn.targets.get(label_task.name), turn.targets.get(number_task.name)
            if label is None or label.value is None or number is None or number.value is None:
                continue
            mass: Mapping[str, float] = label_task.rules.label_mass(label.value)
            share = np.array([mass.get(name, 0.0) for name in labels], dtype=np.float64)
            values.append(number_task.rules.encode(number.value, number_task))
            shares.append(share / max(share.sum(), 1e-12))
    return LabelMixture.estimated(
        np.reshape(values, (-1, number_task.size)),
        np.reshape(shares, (-1, len(labels))),
        labels,
        number_task.dimensions,
        floor,
    )
