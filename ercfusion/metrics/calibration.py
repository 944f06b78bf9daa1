"""Log-likelihood and calibration errors of the probabilities of single-label tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats, Ints
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import Labelled
from ercfusion.metrics.metric import ERROR, Metric, ratio
from ercfusion.metrics.sums import FLOOR

ECE_BINS = 15


def _nll(rows: Labelled, task: TaskSpec) -> float:
    right = rows.probability[np.arange(len(rows.truth)), rows.truth]
    return float(-np.log(np.maximum(right, FLOOR)).mean())


def calibration_bins(rows: Labelled, bins: int = ECE_BINS) -> tuple[Ints, Floats, Floats]:
    """Number of utterances, accuracy and mean confidence (the largest probability) in ``bins`` equal parts of [0, 1].

    A bin includes its lower edge, the last one both edges. An empty bin has accuracy and confidence 0.
    """
    return _binned(rows.right, rows.confidence, _equal_width(rows.confidence, bins), bins)


def expected_calibration_error(rows: Labelled, bins: int = ECE_BINS) -> float:
    """Mean ``|accuracy - confidence|`` over equal-width bins, weighted by their utterances (Naeini et al., 2015)."""
    return bin_error(*calibration_bins(rows, bins))


def classwise_calibration_error(rows: Labelled, bins: int = ECE_BINS) -> float:
    """Mean over all C labels of the calibration error of each label's own probability (Kull et al., 2019).

    The accuracy of an equal-width bin is the share of utterances with this true label.
    """
    errors = [
        bin_error(*label_bins(confidence, rows.truth == label, bins))
        for label, confidence in enumerate(rows.probability.T)
    ]
    return float(np.mean(errors))


def label_bins(probability: NDArray[Any], true: NDArray[Any], bins: int = ECE_BINS) -> tuple[Ints, Floats, Floats]:
    """:func:`calibration_bins` of one label: its probability (n), and whether an utterance has it (n)."""
    return _binned(true, probability, _equal_width(probability, bins), bins)


def adaptive_calibration_error(rows: Labelled, bins: int = ECE_BINS) -> float:
    """Mean ``|accuracy - confidence|`` over bins with equally many utterances (Nixon et al., 2019).

    The first N modulo ``bins`` bins have one more. Utterances of equal confidence share their hits evenly, so the order
    of rows does not matter.
    """
    confidence = rows.confidence
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=rows.right)[group] / size[group]
    order = np.argsort(confidence)
    small, larger = divmod(len(order), bins)
    place = np.repeat(np.arange(bins), small + (np.arange(bins) < larger))
    return bin_error(*_binned(shared[order], confidence[order], place, bins))


def _equal_width(confidence: NDArray[Any], bins: int) -> Ints:
    return np.clip((confidence * bins).astype(np.int64), 0, bins - 1)


def _binned(right: NDArray[Any], confidence: NDArray[Any], place: Ints, bins: int) -> tuple[Ints, Floats, Floats]:
    """(bins) number of utterances, mean of ``right`` and mean confidence per bin; ``place`` is an utterance's bin."""
    count = np.bincount(place, minlength=bins)
    return (
        count,
        ratio(np.bincount(place, weights=right, minlength=bins), count),
        ratio(np.bincount(place, weights=confidence, minlength=bins), count),
    )


def bin_error(count: Ints, accuracy: Floats, confidence: Floats) -> float:
    """Mean ``|accuracy - confidence|`` over bins, weighted by their utterances."""
    return float(ratio((count * np.abs(accuracy - confidence)).sum(), count.sum()))


METRICS = (
    Metric(
        "nll",
        "NLL",
        "mean negative log-probability of the right label (nats; probabilities are floored at 1e-12)",
        rows={"labelled": _nll},
        higher_is_better=False,
        unit="nats",
        bounds=ERROR,
        loss="negative log-likelihood",
    ),
    Metric(
        "ece",
        "ECE",
        "expected calibration error: mean |accuracy - confidence| over 15 equal-width bins of the largest probability",
        rows={"labelled": lambda rows, task: expected_calibration_error(rows)},
        higher_is_better=False,
        always=True,  # how far probabilities can be trusted
    ),
    Metric(
        "ece_classwise",
        "ECE (class-wise)",
        "calibration error of each label's own probability over 15 equal-width bins, averaged over labels",
        rows={"labelled": lambda rows, task: classwise_calibration_error(rows)},
        higher_is_better=False,
    ),
    Metric(
        "ece_adaptive",
        "ECE (adaptive)",
        "expected calibration error over 15 bins of the largest probability with equally many utterances",
        rows={"labelled": lambda rows, task: adaptive_calibration_error(rows)},
        higher_is_better=False,
    ),
)
