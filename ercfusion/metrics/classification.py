"""Metrics from confusion matrices and from true and false positives of label sets.

A ratio with denominator 0 is 0, for instance the F1 of a class absent from truth and prediction. Macro averages run
over the classes in truth or prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats, Ints, Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import ROWS, Pairs
from ercfusion.metrics.labels import average_precision
from ercfusion.metrics.metric import Formula, Metric, Statistic, ratio
from ercfusion.metrics.sums import SUMS


class ClassCounts:
    """Hits, true and predicted utterances of every class, each (..., C).

    ``sums`` are (..., C, C) confusion matrices, rows the truth, or (..., C, 3) true positives, false positives and
    false negatives (``key="counts"``).
    """

    def __init__(self, sums: NDArray[Any], key: str = "confusion") -> None:
        self._sums, self._matrices = sums, key == "confusion"

    @cached_property
    def hits(self) -> NDArray[Any]:
        """Correctly predicted utterances."""
        return np.diagonal(self._sums, axis1=-2, axis2=-1) if self._matrices else np.asarray(self._sums[..., 0])

    @cached_property
    def truths(self) -> NDArray[Any]:
        """Utterances with the class in the truth."""
        if self._matrices:
            # Three times as fast as sum(axis) for many small matrices; integer counts are exact in any order.
            return np.asarray(np.einsum("...ij->...i", self._sums))
        return np.asarray(self._sums[..., 0] + self._sums[..., 2])

    @cached_property
    def predicted(self) -> NDArray[Any]:
        """Utterances predicted as the class."""
        if self._matrices:
            return np.asarray(np.einsum("...ij->...j", self._sums))
        return np.asarray(self._sums[..., 0] + self._sums[..., 1])

    @cached_property
    def f1(self) -> Floats:
        """F1 of every class."""
        return ratio(2 * self.hits, self.truths + self.predicted)

    @property
    def defined(self) -> NDArray[np.bool_]:
        """(...) whether anything was counted. Always true for label sets: without true negatives, a split with nothing
        true and nothing predicted has the counts of an unlabelled one.
        """
        total = self.truths.sum(axis=-1)
        return np.asarray(total > 0) if self._matrices else np.ones(np.shape(total), dtype=bool)


def _counted(formula: Callable[[ClassCounts, TaskSpec], Floats], *keys: str) -> Mapping[str, Formula]:
    """The same formula of class counts for every key of ``keys``."""

    def of(key: str) -> Formula:
        def counted(sums: NDArray[Any], task: TaskSpec) -> Floats:
            counts = ClassCounts(sums, key)
            return np.where(counts.defined, formula(counts, task), np.nan)

        return counted

    return {key: of(key) for key in keys}


def weighted_f1(counts: ClassCounts) -> Floats:
    """F1 of each class, weighted by its share of the truth."""
    return ratio((counts.truths * counts.f1).sum(axis=-1), counts.truths.sum(axis=-1))


def accuracy(counts: ClassCounts) -> Floats:
    """Share of utterances on the diagonal."""
    return ratio(counts.hits.sum(axis=-1), counts.truths.sum(axis=-1))


def macro_f1(counts: ClassCounts) -> Floats:
    """F1 of each class, averaged over the classes in truth or prediction."""
    return ratio(counts.f1.sum(axis=-1), (counts.truths + counts.predicted > 0).sum(axis=-1))


def _micro_f1(counts: ClassCounts, task: TaskSpec) -> Floats:
    return ratio(2 * counts.hits.sum(axis=-1), (counts.truths + counts.predicted).sum(axis=-1))


def _micro_precision(counts: ClassCounts, task: TaskSpec) -> Floats:
    return ratio(counts.hits.sum(axis=-1), counts.predicted.sum(axis=-1))


def _micro_recall(counts: ClassCounts, task: TaskSpec) -> Floats:
    return ratio(counts.hits.sum(axis=-1), counts.truths.sum(axis=-1))


def _uar(counts: ClassCounts, task: TaskSpec) -> Floats:
    return ratio(ratio(counts.hits, counts.truths).sum(axis=-1), (counts.truths > 0).sum(axis=-1))


def _micro_f1_without_neutral(counts: ClassCounts, task: TaskSpec) -> Floats:
    assert task.schema is not None
    assert task.schema.neutral
    neutral = task.schema.index(task.schema.neutral)
    others = [place for place in range(task.size) if place != neutral]
    return ratio(
        2 * counts.hits[..., others].sum(axis=-1), (counts.truths + counts.predicted)[..., others].sum(axis=-1)
    )


def _has_neutral(task: TaskSpec) -> bool:
    return task.schema is not None and bool(task.schema.neutral)


def _samples_f1(sets: Pairs, task: TaskSpec) -> float:
    both, sizes = (sets.output & sets.target).sum(axis=1), sets.output.sum(axis=1) + sets.target.sum(axis=1)
    return float(np.where(sizes == 0, 1.0, ratio(2 * both, sizes)).mean())


def _equal_sets(sets: Pairs, task: TaskSpec) -> float:
    return float((sets.output == sets.target).all(axis=1).mean())


METRICS = (
    Metric(
        "weighted_f1",
        "weighted F1",
        "F1 of each class, weighted by its share of the truth",
        sums=_counted(lambda counts, task: weighted_f1(counts), "confusion", "counts"),
    ),
    Metric(
        "macro_f1",
        "macro F1",
        "F1 of each class, averaged over the classes in truth or prediction",
        sums=_counted(lambda counts, task: macro_f1(counts), "confusion", "counts"),
        equal_classes=True,
    ),
    Metric(
        "micro_f1",
        "micro F1",
        "F1 of the pooled (utterance, label) decisions",
        sums=_counted(_micro_f1, "counts"),
    ),
    Metric(
        "micro_precision",
        "micro precision",
        "share of the predicted (utterance, label) pairs that are true",
        sums=_counted(_micro_precision, "counts"),
    ),
    Metric(
        "micro_recall",
        "micro recall",
        "share of the true (utterance, label) pairs that are predicted",
        sums=_counted(_micro_recall, "counts"),
    ),
    Metric(
        "samples_f1",
        "samples F1",
        "F1 of each utterance's set of labels, averaged over utterances (1 if both sets are empty)",
        rows={"sets": _samples_f1},
        empty_sets=True,
    ),
    Metric(
        "accuracy",
        "accuracy",
        "share of correct utterances (multi-label: the whole set of labels is correct; empty sets count)",
        sums=_counted(lambda counts, task: accuracy(counts), "confusion"),
        rows={"sets": _equal_sets},
        empty_sets=True,
    ),
    Metric(
        "uar",
        "UAR",
        "unweighted average recall: recall of each class, averaged over the classes in the truth",
        sums=_counted(_uar, "confusion"),
        equal_classes=True,
    ),
    Metric(
        "micro_f1_without_neutral",
        "micro F1 without neutral",
        "micro F1 over all labels except neutral; neutral utterances still count as false positives",
        sums=_counted(_micro_f1_without_neutral, "confusion"),
        fits=_has_neutral,
    ),
)


# Single labels


def label_f1(label: int, key: str = "confusion") -> Statistic:
    """F1 of the label with this index, as a function of summed sums of ``key`` (``confusion`` or ``counts``)."""

    def statistic(sums: NDArray[Any]) -> Floats:
        return np.asarray(ClassCounts(sums, key).f1[..., label])

    return statistic


# Tables of classes


def confusion_matrix(predictions: Predictions) -> Ints:
    """(C, C) counts of a task with one right label: rows are the truth, columns the prediction."""
    return np.asarray(SUMS["confusion"].summed(predictions))


def per_class(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (true utterances) per label, in the schema's order; empty without labels.

    A label of a multi-label task also has its decision threshold and, if it occurs, its average precision.
    """
    task = predictions.task
    key = next((key for key in ("confusion", "counts") if key in task.rules.inputs), None)
    if key is None:
        return {}
    table = per_class_of(ClassCounts(SUMS[key].summed(predictions), key), task.output_names)
    if task.rules.thresholds:
        thresholds = np.full(task.size, 0.5) if predictions.thresholds is None else predictions.thresholds
        precisions = average_precision(ROWS["label_probabilities"](predictions), task)
        for row, threshold, precision in zip(table.values(), thresholds, precisions, strict=True):
            row["threshold"] = float(threshold)
            if precision == precision:
                row["average_precision"] = float(precision)
    return table


def per_class_of(counts: ClassCounts, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """:func:`per_class` from counts (C)."""
    columns = (ratio(counts.hits, counts.predicted), ratio(counts.hits, counts.truths), counts.f1, counts.truths)
    names = ("precision", "recall", "f1", "support")
    return {
        label: {name: float(number) for name, number in zip(names, row, strict=True)}
        for label, row in zip(labels, zip(*columns, strict=True), strict=True)
    }
