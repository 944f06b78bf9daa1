"""Sums per conversation, which score any selection of conversations without the utterances. By key (:data:`SUMS`):

* ``confusion`` (B, C, C) int64, rows the truth: tasks with one right label;
* ``shift`` (B, 2, 2) int64, of the same tasks: (right, total) of utterances with another label than the speaker's
  previous labelled utterance in the conversation, and of those with the same;
* ``counts`` (B, C, 3) int64, true positives, false positives, false negatives: label sets;
* ``divergence`` (B, 3) float64, of distributions: utterances, sum of their targets' negative entropies, sum of their
  Kullback-Leibler divergences;

* ``intensities`` (B, C, 13) float64, :data:`INTENSITY_SUMS`: intensities of labels;
* ``moments`` (B, K, F) float64, see :func:`ercfusion.metrics.moments.moments_of`: numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Bools, Floats, Ints, Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.moments import TRUTH, moments_of

FLOOR = 1e-12
"""Smallest probability under a logarithm."""


class Sums(ABC):
    """One kind of sums: how they are computed, read and written."""

    key: ClassVar[str]

    @abstractmethod
    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """Shape of the sums of one conversation."""

    @abstractmethod
    def of(self, predictions: Predictions) -> NDArray[Any]:
        """(B, ...) sums of every conversation."""

    def summed(self, predictions: Predictions) -> NDArray[Any]:
        """(...) sums of the whole split."""
        return np.asarray(self.of(predictions).sum(axis=0))

    @abstractmethod
    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """The part of ``(..., *shape)`` sums depending on labels only: equal for all models on equal data."""

    def occurrences(self, sums: NDArray[Any]) -> NDArray[Any] | None:
        """(..., C) true utterances per label; None for sums without them."""
        return None

    def errors(self, sums: NDArray[Any]) -> NDArray[Any] | None:
        """(...) wrong decisions; None for sums without them."""
        return None

    def write(self, row: NDArray[Any]) -> list[Any]:
        """The sums of one conversation in a record."""
        numbers: list[Any] = row.tolist()
        return numbers

    def read(self, rows: Sequence[Any], task: TaskSpec) -> NDArray[Any]:
        """(B, ...) sums from the results of :meth:`write` per conversation."""
        return np.array(rows, dtype=np.int64)


class Confusion(Sums):
    """Confusion matrices; a record keeps the non-zero cells as [truth, prediction, count]."""

    key = "confusion"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(C, C)."""
        return task.size, task.size

    def of(self, predictions: Predictions) -> Ints:
        """(B, C, C), rows are the truth, columns the prediction."""
        truth, labelled = predictions.labels()
        batch, size = len(predictions.lengths), predictions.task.size
        cell = (predictions.conversation * size + truth) * size + predictions.decisions()
        return np.bincount(cell[labelled], minlength=batch * size * size).reshape(batch, size, size).astype(np.int64)

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., C) true utterances per label."""
        return np.asarray(sums.sum(axis=-1))

    occurrences = truth

    def errors(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(...) wrong utterances."""
        return np.asarray(sums.sum(axis=(-2, -1)) - np.trace(sums, axis1=-2, axis2=-1))

    def write(self, row: NDArray[Any]) -> list[list[int]]:
        """Non-zero cells."""
        rows, columns = np.nonzero(row)
        return [[int(r), int(c), int(row[r, c])] for r, c in zip(rows, columns, strict=True)]

    def read(self, rows: Sequence[Sequence[Sequence[int]]], task: TaskSpec) -> Ints:
        """(B, C, C)."""
        matrices = np.zeros((len(rows), task.size, task.size), dtype=np.int64)
        for matrix, cells in zip(matrices, rows, strict=True):
            for row, column, count in cells:
                matrix[row, column] = count
        return matrices


class Shift(Sums):
    """Right and all utterances with and without an emotion shift; a record keeps the four counts in a row."""

    key = "shift"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(2, 2)."""
        return 2, 2

    def of(self, predictions: Predictions) -> Ints:
        """(B, 2, 2)."""
        truth, _ = predictions.labels()
        right = predictions.decisions() == truth
        owner, batch = predictions.conversation, len(predictions.lengths)
        counted = [
            np.stack([np.bincount(owner[rows], minlength=batch) for rows in (chosen & right, chosen)], axis=1)
            for chosen in shift_slices(predictions)
        ]
        return np.stack(counted, axis=1).astype(np.int64)

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., 2) utterances with and without a shift."""
        return np.asarray(sums[..., 1])

    def write(self, row: NDArray[Any]) -> list[int]:
        """Four counts."""
        numbers: list[int] = row.ravel().tolist()
        return numbers

    def read(self, rows: Sequence[Any], task: TaskSpec) -> Ints:
        """(B, 2, 2)."""
        return np.array(rows, dtype=np.int64).reshape(-1, 2, 2)


class Counts(Sums):
    """True positives, false positives and false negatives per label."""

    key = "counts"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(C, 3)."""
        return task.size, 3

    def of(self, predictions: Predictions) -> Ints:
        """(B, C, 3)."""
        valid = np.asarray(predictions.valid, dtype=bool)
        predicted = predictions.decisions()[valid]
        true = predictions.value[valid] > 0.5
        cells = np.stack([predicted & true, predicted & ~true, ~predicted & true], axis=2).astype(np.int64)
        counts = np.zeros((len(predictions.lengths), predictions.task.size, 3), dtype=np.int64)
        np.add.at(counts, predictions.conversation[valid], cells)
        return counts

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., C) true utterances per label."""
        return np.asarray(sums[..., 0] + sums[..., 2])

    occurrences = truth

    def errors(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(...) wrong decisions."""
        return np.asarray(sums[..., 1:].sum(axis=(-2, -1)))


class Divergence(Sums):
    """Kullback-Leibler divergence of predicted from target distributions; a record keeps nine significant digits."""

    key = "divergence"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(3)."""
        return (3,)

    def of(self, predictions: Predictions) -> Floats:
        """(B, 3)."""
        valid = np.asarray(predictions.valid, dtype=bool)
        target = predictions.value[valid].astype(np.float64)
        entropy, cross = (target * _log(target)).sum(axis=1), (target * _log(predictions.output[valid])).sum(axis=1)
        sums = np.zeros((len(predictions.lengths), 3))
        columns = np.stack([np.ones(len(target)), entropy, entropy - cross], axis=1)
        np.add.at(sums, predictions.conversation[valid], columns)
        return sums

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., 2) utterances, and sum of the targets' negative entropies."""
        return np.asarray(sums[..., :2])

    def write(self, row: NDArray[Any]) -> list[float]:
        """Numbers with nine significant digits."""
        return [float(f"{number:.9g}") for number in row]

    def read(self, rows: Sequence[Any], task: TaskSpec) -> Floats:
        """(B, 3)."""
        return np.array(rows, dtype=np.float64)


def _log(probability: NDArray[Any]) -> Floats:
    return np.asarray(np.log(np.maximum(probability, FLOOR)))


_MOMENTS = ("count", "x", "y", "xx", "yy", "xy")
INTENSITY_SUMS = (*_MOMENTS, *(f"active_{name}" for name in _MOMENTS), "active_error")
"""Sums of an intensity task: x predicted, y true. Over all utterances x is the decision, 0 or a whole number; over
utterances with the label (``active_``) it is the predicted intensity, whatever is decided.
"""


class Intensities(Sums):
    """Sums of predicted and true intensities per label; a record keeps nine significant digits."""

    key = "intensities"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(C, 13)."""
        return task.size, len(INTENSITY_SUMS)

    def of(self, predictions: Predictions) -> Floats:
        """(B, C, 13)."""
        valid, size = np.asarray(predictions.valid, dtype=bool), predictions.task.size
        true = predictions.value[valid].astype(np.float64)
        graded = predictions.output[valid, size:].astype(np.float64)
        active = true > 0
        decided = predictions.task.rules.intensities(predictions)[valid]
        cells = [*_products(decided, true, np.ones_like(active)), *_products(graded, true, active)]
        cells.append(np.where(active, np.abs(graded - true), 0.0))
        sums = np.zeros((len(predictions.lengths), size, len(INTENSITY_SUMS)))
        np.add.at(sums, predictions.conversation[valid], np.stack(cells, axis=2))
        return sums

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., C, 6) numbers, sums and sums of squares of the true intensities."""
        return np.asarray(sums[..., [0, 2, 4, 6, 8, 10]])

    def occurrences(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., C) utterances with the label."""
        return np.asarray(sums[..., 6])

    def write(self, row: NDArray[Any]) -> list[list[float]]:
        """Numbers with nine significant digits."""
        return [[float(f"{number:.9g}") for number in label] for label in row]

    def read(self, rows: Sequence[Any], task: TaskSpec) -> Floats:
        """(B, C, 13)."""
        return np.array(rows, dtype=np.float64)


def _products(x: Floats, y: Floats, counted: Bools) -> list[Floats]:
    return [np.where(counted, column, 0.0) for column in (np.ones_like(x), x, y, x * x, y * y, x * y)]


class Moments(Sums):
    """Sums of numbers, products and decisions per dimension; a record keeps nine significant digits."""

    key = "moments"

    def shape(self, task: TaskSpec) -> tuple[int, ...]:
        """(K, F)."""
        return task.size, len(moments_of(task))

    def of(self, predictions: Predictions) -> Floats:
        """(B, K, F)."""
        columns, owner = self._columns(predictions)
        sums = np.zeros((len(predictions.lengths), predictions.task.size, len(columns)))
        np.add.at(sums, owner, np.stack(columns, axis=2))
        return sums

    def summed(self, predictions: Predictions) -> Floats:
        """(K, F), summed by contiguous columns: numpy adds these in pairs, with less rounding."""
        columns, _ = self._columns(predictions)
        return np.stack([np.ascontiguousarray(column.T, dtype=np.float64).sum(axis=1) for column in columns], axis=1)

    @staticmethod
    def _columns(predictions: Predictions) -> tuple[list[NDArray[Any]], Ints]:
        """F columns (n, K) of the labelled utterances, and their conversations (n)."""
        task, valid = predictions.task, np.asarray(predictions.valid, dtype=bool)
        output = predictions.output[valid].astype(np.float64)
        target = predictions.value[valid].astype(np.float64)
        # Around the middle of the range: around 0, the squares of a scale from 100 to 110 would leave few digits for
        # the variance.
        middle = (task.low + task.high) / 2
        columns = [moment.of(output, target, middle) for moment in moments_of(task).values()]
        return columns, predictions.conversation[valid]

    def truth(self, sums: NDArray[Any]) -> NDArray[Any]:
        """(..., K, 3) number, sum and sum of squares of the targets."""
        return np.asarray(sums[..., list(TRUTH)])

    def write(self, row: NDArray[Any]) -> list[list[float]]:
        """Numbers with nine significant digits."""
        return [[float(f"{number:.9g}") for number in dimension] for dimension in row]

    def read(self, rows: Sequence[Any], task: TaskSpec) -> Floats:
        """(B, K, F)."""
        return np.array(rows, dtype=np.float64)


_SUMS = (Confusion(), Shift(), Counts(), Divergence(), Intensities(), Moments())
SUMS: dict[str, Sums] = {sums.key: sums for sums in _SUMS}
"""All sums by key."""


def shift_slices(predictions: Predictions) -> tuple[Bools, Bools]:
    """(N) masks of labelled utterances with another right label than the speaker's previous labelled utterance in the
    conversation, and of those with the same; a speaker's first one is in neither.
    """
    truth, labelled = predictions.labels()
    rows = np.flatnonzero(labelled)
    speakers = int(predictions.speaker.max(initial=0)) + 1
    who = predictions.conversation[rows] * speakers + predictions.speaker[rows]
    rows, who = rows[order := np.argsort(who, kind="stable")], who[order]
    followed = who[1:] == who[:-1]
    changed = truth[rows[1:]] != truth[rows[:-1]]
    shift, same = np.zeros((2, len(predictions)), dtype=bool)
    shift[rows[1:][followed & changed]] = True
    same[rows[1:][followed & ~changed]] = True
    return shift, same
