"""Metrics of label sets, and decision thresholds.

An utterance with two empty sets counts 1 (``zero_division=1`` of scikit-learn), so ``accuracy <= jaccard <=
samples_f1``. Only ``jaccard_zero`` counts it 0 (CARAT, TAILOR, scikit-learn's default).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ercfusion.batch.predictions import Floats, Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import Pairs
from ercfusion.metrics.metric import Formula, Metric, ratio


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
        order = np.argsort(-probability, kind="stable")
        probability, true = probability[order], true[order]
        following = np.append(probability[1:], 0.0)
        ends = np.flatnonzero(np.append(probability[1:] != probability[:-1], True))
        f1 = 2 * np.cumsum(true)[ends] / (ends + 1 + true.sum())
        # Thresholds are float32. If rounding moves the middle out of its gap, the upper probability is the threshold.
        middle = ((probability[ends] + following[ends]) / 2).astype(np.float32).astype(np.float64)
        inside = (following[ends] < middle) & (middle <= probability[ends])
        middle = np.where(inside, middle, probability[ends])
        best = middle[f1 == f1.max()]
        thresholds[column] = best[np.argmin(np.abs(best - 0.5))]
    return thresholds
