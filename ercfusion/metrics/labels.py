"""Metrics of label sets and of the probabilities of single labels, and decision thresholds.

An utterance with two empty sets counts 1 (``zero_division=1`` of scikit-learn), so ``accuracy <= jaccard <=
samples_f1``. Only ``jaccard_zero`` counts it 0 (CARAT, TAILOR, scikit-learn's default).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats, Ints, Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.calibration import bin_error, label_bins
from ercfusion.metrics.inputs import Pairs
from ercfusion.metrics.metric import Formula, Metric, ratio


@dataclass(frozen=True)
class Cuts:
    """All cuts of one label's probabilities, from the highest: between different probabilities (Q of them).

    Args:
        lowest: (Q) lowest probability above the cut.
        hits: (Q) utterances above the cut with the label.
        chosen: (Q) utterances above the cut.
        positives: Utterances with the label.
    """

    lowest: Floats
    hits: Ints
    chosen: Ints
    positives: int

    @property
    def precision(self) -> Floats:
        """(Q) share of the utterances above the cut with the label."""
        return self.hits / self.chosen

    @property
    def recall(self) -> Floats:
        """(Q) share of the utterances with the label above the cut; 0 without any."""
        return ratio(self.hits, np.full(len(self.hits), self.positives))

    @property
    def f1(self) -> Floats:
        """(Q) harmonic mean of both."""
        return 2 * self.hits / (self.chosen + self.positives)


def cuts(probability: NDArray[Any], true: NDArray[Any]) -> Cuts:
    """The cuts of one label.

    Args:
        probability: (n) of the label.
        true: (n) whether an utterance has it.
    """
    order = np.argsort(-probability, kind="stable")
    probability, hits = probability[order].astype(np.float64), np.cumsum(true[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(probability[1:] != probability[:-1], True)[: len(probability)])
    return Cuts(probability[ends], hits[ends], ends + 1, int(np.count_nonzero(true)))


def average_precision(rows: Pairs, task: TaskSpec) -> Floats:
    """(C) area below precision over recall as a step function; not defined for a label without a true utterance.

    AP = sum over cuts of (R - R before) P (scikit-learn's definition; no interpolation).
    """
    values = np.full(task.size, np.nan)
    for column in range(task.size):
        curve = cuts(rows.output[:, column], rows.target[:, column])
        if curve.positives:
            values[column] = (np.diff(curve.hits, prepend=0) * curve.precision).sum() / curve.positives
    return values


def _label_ece(rows: Pairs, task: TaskSpec) -> Floats:
    """(C) calibration error of each label's probability."""
    return np.array([bin_error(*label_bins(rows.output[:, c], rows.target[:, c])) for c in range(task.size)])


def _jaccard(empty: float) -> Mapping[str, Formula]:
    """Intersection over union; ``empty`` if both sets are empty."""

    def formula(sets: Pairs, task: TaskSpec) -> float:
        both, either = (sets.output & sets.target).sum(axis=1), (sets.output | sets.target).sum(axis=1)
        return float(np.where(either == 0, empty, ratio(both, either)).mean())

    return {"sets": formula}


def _hamming(sets: Pairs, task: TaskSpec) -> float:
    return float((sets.output != sets.target).mean())


def _weighted_accuracy(sets: Pairs, task: TaskSpec) -> Floats:
    """(C) (TP * N / P + TN) / 2N per label (Zadeh et al., ACL 2018), the mean of both recalls.

    P utterances have the label, N have not; not defined if either is 0.
    """
    positive = sets.target.sum(axis=0)
    negative = len(sets.target) - positive
    hits, rejections = (sets.output & sets.target).sum(axis=0), (~sets.output & ~sets.target).sum(axis=0)
    value = (ratio(hits, positive) + ratio(rejections, negative)) / 2
    return np.where((positive > 0) & (negative > 0), value, np.nan)


METRICS = (
    Metric(
        "jaccard",
        "jaccard",
        "intersection over union of each utterance's sets, averaged (1 if both are empty)",
        rows=_jaccard(1.0),
        empty_sets=True,
    ),
    Metric(
        "jaccard_zero",
        "jaccard (two empty sets: 0)",
        "as jaccard, but 0 if both sets are empty: the accuracy of CARAT and TAILOR",
        rows=_jaccard(0.0),
    ),
    Metric(
        "hamming",
        "hamming",
        "share of wrong (utterance, label) decisions",
        rows={"sets": _hamming},
        higher_is_better=False,
    ),
    Metric(
        "weighted_accuracy",
        "weighted accuracy",
        "mean of the recalls of a label and of its absence, averaged over labels (Zadeh et al., 2018)",
        rows={"sets": _weighted_accuracy},
        outputs="defined",
    ),
    Metric(
        "map",
        "mAP",
        "mean average precision: area below precision over recall of each label's probability, averaged over labels "
        "(without labels that no utterance has)",
        rows={"label_probabilities": average_precision},
        outputs="defined",
        equal_classes=True,
    ),
    Metric(
        "label_ece",
        "ECE (per label)",
        "calibration error of each label's probability over 15 equal-width bins, averaged over labels",
        rows={"label_probabilities": _label_ece},
        higher_is_better=False,
        outputs="all",
    ),
)


def best_thresholds(predictions: Predictions) -> Floats:
    """(C) thresholds maximising each label's F1 on these predictions of a multi-label task.

    The search is exact: every cut between neighbouring probabilities is tried, at the middle of its gap. Of equally
    good cuts the one nearest 0.5 is taken; a label without positives keeps 0.5. Choose thresholds on dev, never on
    test.

    Raises:
        ValueError: the task has no label sets.
    """
    if "sets" not in predictions.task.rules.inputs:
        raise ValueError(
            f"task {predictions.task.name!r} has no label sets, so no thresholds. Choose a multi-label task."
        )
    valid = np.asarray(predictions.valid, dtype=bool)
    thresholds = np.full(predictions.task.size, 0.5)
    for column in range(predictions.task.size):
        probability = predictions.output[valid, column].astype(np.float64)
        true = predictions.value[valid, column] > 0.5
        if not true.any():
            continue
        curve = cuts(probability, true)
        upper, f1 = curve.lowest, curve.f1
        lower = np.append(upper[1:], 0.0)
        # Thresholds are float32. If rounding moves the middle out of its gap, the upper probability is the threshold.
        middle = ((upper + lower) / 2).astype(np.float32).astype(np.float64)
        middle = np.where((lower < middle) & (middle <= upper), middle, upper)
        best = middle[f1 == f1.max()]
        thresholds[column] = best[np.argmin(np.abs(best - 0.5))]
    return thresholds
