"""Scores, computed once over a whole split.

Everything is derived from counts accumulated over all labelled utterances; averaging the F1 of batches, which some
published code does, gives another number. Rows that are not ``valid`` are never counted. Four conventions hold
throughout:

* A ratio with denominator 0 is 0 (an F1 of a class that is neither in the truth nor predicted, for instance).
* Macro averages run over the classes that occur in truth or prediction; a class absent from both says nothing.
* A score whose slice of the split is empty (no emotion shift, no non-zero sentiment) is left out of the result.
* Two equal sets of labels agree fully, also two empty ones: such an utterance counts 1 in ``accuracy``, ``jaccard`` and
  ``samples_f1`` (scikit-learn's ``zero_division=1``). So ``accuracy <= jaccard <= samples_f1``, and what is right
  throughout has 1. Only ``jaccard_zero`` counts two empty sets 0 (CARAT, TAILOR, scikit-learn's default).

Scores of a ``distribution`` task that need a single right answer use the most probable target label; rows where two
labels share the maximum have none and are left out of these scores, but not of ``kl`` and ``binarised_macro_f1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.predictions import PROBABILITY_TOLERANCE, Bools, Floats, Ints, Predictions
from ercfusion.batch.task import TaskSpec

METRICS: dict[str, str] = {
    "weighted_f1": "F1 of each class, averaged with the class's share of the truth as weight",
    "macro_f1": "F1 of each class, averaged over the classes that occur in truth or prediction",
    "accuracy": "share of utterances that are right (multi-label: the whole set of labels is right; an empty one too)",
    "uar": "unweighted average recall: recall of each class, averaged over the classes that occur in the truth",
    "micro_f1_without_neutral": "micro F1 over all labels but neutral; neutral utterances still count as false alarms",
    "nll": "mean negative log-probability of the right label (nats; probabilities are floored at 1e-12)",
    "ece": "expected calibration error: |accuracy - confidence| over 15 equal-width bins of the largest probability",
    "ece_classwise": "calibration error of each label's own probability over 15 equal-width bins, averaged over labels",
    "ece_adaptive": "expected calibration error over 15 bins with equally many utterances",
    "shift_accuracy": "accuracy where the speaker's emotion differs from that of his or her previous labelled turn",
    "same_accuracy": "accuracy where the speaker's emotion is that of his or her previous labelled turn",
    "kl": "mean Kullback-Leibler divergence of the prediction from the target distribution (nats)",
    "binarised_macro_f1": "macro F1 over all C labels after both distributions are cut at > 1/C",
    "micro_f1": "F1 of the pooled (utterance, label) decisions",
    "samples_f1": "F1 of each utterance's set of labels, averaged over utterances (1 where both sets are empty)",
    "jaccard": "intersection over union of each utterance's sets, averaged (1 where both are empty)",
    "jaccard_zero": "as jaccard, but 0 where both sets are empty: the accuracy of CARAT and TAILOR",
    "hamming": "share of (utterance, label) decisions that are wrong",
    "weighted_accuracy": "mean of a label's recall and that of its absence, averaged over labels (Zadeh et al., 2018)",
    "mae": "mean absolute error",
    "rmse": "root of the mean squared error",
    "pearson": "Pearson correlation (0 where a side is constant)",
    "ccc": "concordance correlation coefficient",
    "acc7": "seven-class accuracy: both sides clipped to [-3, 3] and rounded half to even",
    "acc5": "five-class accuracy: both sides clipped to [-2, 2] and rounded half to even",
    "acc2_non0": "accuracy of the sign (> 0) over utterances whose truth is not 0",
    "acc2_has0": "accuracy of the sign (>= 0) over all utterances",
    "f1_non0": "weighted F1 of the sign (> 0) over utterances whose truth is not 0",
    "f1_has0": "weighted F1 of the sign (>= 0) over all utterances",
    "sims_acc2": "accuracy of the classes [-1, 0] and (0, 1] (CH-SIMS)",
    "sims_acc3": "accuracy of three classes, cut at -0.1 and 0.1 (CH-SIMS)",
    "sims_acc5": "accuracy of five classes, cut at -0.7, -0.1, 0.1 and 0.7 (CH-SIMS)",
    "sims_f1": "weighted F1 of the classes [-1, 0] and (0, 1] (CH-SIMS)",
}
SHARE = (0.0, 1.0)
"""The :func:`score_bounds` of a share, which is shown in percent; other scores are numbers of their own unit."""
LOWER_IS_BETTER = frozenset({"nll", "ece", "ece_classwise", "ece_adaptive", "kl", "hamming", "mae", "rmse"})

CONFUSION_METRICS = ("weighted_f1", "macro_f1", "accuracy", "uar", "micro_f1_without_neutral")
COUNT_METRICS = ("weighted_f1", "macro_f1", "micro_f1")
EMPTY_SETS = ("accuracy", "jaccard", "samples_f1")
"""Scores in which an utterance whose true and predicted sets of labels are empty counts 1."""
_SENTIMENT = ("acc7", "acc5", "acc2_non0", "acc2_has0", "f1_non0", "f1_has0")
_SIMS = ("sims_acc2", "sims_acc3", "sims_acc5", "sims_f1")
SCALES = {(-3.0, 3.0): _SENTIMENT, (-1.0, 1.0): _SIMS}
"""Scores that only regression tasks of this range have."""
SIMS_EDGES: dict[int, tuple[float, ...]] = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""Where CH-SIMS (Yu et al., ACL 2020; benchmark MMSA) cuts [-1, 1] into classes; an edge belongs to the lower one."""
ECE_BINS = 15
_FLOOR = 1e-12


# Names


def metric_names(task: TaskSpec) -> tuple[str, ...]:
    """The scores that :func:`scores` can give for ``task``."""
    return task.rules.metrics(task)


def check_metric(task: TaskSpec, metric: str) -> None:
    """Raise :class:`ConfigError`, with the nearest right name, unless ``task`` has the score ``metric``."""
    names = metric_names(task)
    if metric not in names:
        raise ConfigError(
            f"{metric!r} is no metric of the {task.kind} task {task.name!r}. {did_you_mean(metric, names)}"
        )


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of ``metric`` (``ccc`` or ``ccc/valence``) is the better one."""
    base = metric.partition("/")[0]
    if base not in METRICS:
        raise ConfigError(f"{metric!r} is no metric. {did_you_mean(base, METRICS)}")
    return base not in LOWER_IS_BETTER


def score_bounds(metric: str) -> tuple[float, float]:
    """Least and largest value that ``metric`` can have."""
    base = metric.partition("/")[0]
    if base in ("pearson", "ccc"):
        return -1.0, 1.0
    return (0.0, np.inf) if base in ("nll", "kl", "mae", "rmse") else SHARE


# Counts


def confusion_matrix(predictions: Predictions) -> Ints:
    """(C, C) counts of a single-label or distribution task: rows are the truth, columns the prediction."""
    return conversation_confusions(predictions).sum(axis=0)


def conversation_confusions(predictions: Predictions) -> Ints:
    """(B, C, C) confusion matrix of every conversation."""
    truth, labelled = predictions.labels()
    batch, size = len(predictions.lengths), predictions.task.size
    cell = (predictions.conversation * size + truth) * size + predictions.decisions()
    return np.bincount(cell[labelled], minlength=batch * size * size).reshape(batch, size, size).astype(np.int64)


def conversation_counts(predictions: Predictions) -> Ints:
    """(B, C, 3) true positives, false positives and false negatives by conversation and label (multi-label)."""
    if predictions.task.kind != "multi_label":
        raise ValueError(f"task {predictions.task.name!r} is {predictions.task.kind}, not multi_label")
    valid = np.asarray(predictions.valid, dtype=bool)
    said = predictions.decisions()[valid]
    true = predictions.value[valid] > 0.5
    cells = np.stack([said & true, said & ~true, ~said & true], axis=2).astype(np.int64)
    counts = np.zeros((len(predictions.lengths), predictions.task.size, 3), dtype=np.int64)
    np.add.at(counts, predictions.conversation[valid], cells)
    return counts


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Quotient, 0 where the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, 1, denominator))


def scores_from_confusion(matrix: NDArray[Any], neutral: int | None = None) -> dict[str, Any]:
    """Scores of (..., C, C) confusion matrices, each of shape (...): one matrix gives plain numbers.

    Args:
        matrix: Counts, rows the truth, columns the prediction.
        neutral: Index of the neutral label; with it comes ``micro_f1_without_neutral``, whose precision has all
            non-neutral predictions below the line and whose recall has all non-neutral truths.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    # Many small matrices: three times as quick as sum(axis), and counts add up exactly in any order.
    truths, said = np.einsum("...ij->...i", matrix), np.einsum("...ij->...j", matrix)
    total = truths.sum(axis=-1)
    f1 = _ratio(2 * hits, truths + said)
    result = {
        "weighted_f1": _ratio((truths * f1).sum(axis=-1), total),
        "macro_f1": _ratio(f1.sum(axis=-1), (truths + said > 0).sum(axis=-1)),
        "accuracy": _ratio(hits.sum(axis=-1), total),
        "uar": _ratio(_ratio(hits, truths).sum(axis=-1), (truths > 0).sum(axis=-1)),
    }
    if neutral is not None:
        others = [position for position in range(matrix.shape[-1]) if position != neutral]
        below = (truths + said)[..., others].sum(axis=-1)
        result["micro_f1_without_neutral"] = _ratio(2 * hits[..., others].sum(axis=-1), below)
    return _plain(result)


def scores_from_counts(counts: NDArray[Any]) -> dict[str, Any]:
    """Scores of (..., C, 3) multi-label counts, each of shape (...)."""
    hits, false_alarms, misses = (counts[..., position] for position in range(3))
    truths = hits + misses
    below = 2 * hits + false_alarms + misses
    f1 = _ratio(2 * hits, below)
    return _plain(
        {
            "weighted_f1": _ratio((truths * f1).sum(axis=-1), truths.sum(axis=-1)),
            "macro_f1": _ratio(f1.sum(axis=-1), (below > 0).sum(axis=-1)),
            "micro_f1": _ratio(2 * hits.sum(axis=-1), below.sum(axis=-1)),
        }
    )


def _plain(result: dict[str, Floats]) -> dict[str, Any]:
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in result.items()}


def per_class(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (number of true utterances) of every label, in the schema's order."""
    labels = predictions.task.output_names
    if predictions.task.kind != "multi_label":
        return per_class_of(confusion_matrix(predictions), labels)
    hits, false_alarms, misses = conversation_counts(predictions).sum(axis=0).T
    return _per_class(hits, hits + misses, hits + false_alarms, labels)


def per_class_of(matrix: NDArray[Any], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """:func:`per_class` from a confusion matrix (C, C), truth in rows."""
    return _per_class(np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0), labels)


def _per_class(
    hits: NDArray[Any], truths: NDArray[Any], said: NDArray[Any], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    table = zip(_ratio(hits, said), _ratio(hits, truths), _ratio(2 * hits, truths + said), truths, strict=True)
    names = ("precision", "recall", "f1", "support")
    return {
        label: {name: float(number) for name, number in zip(names, row, strict=True)}
        for label, row in zip(labels, table, strict=True)
    }


# Slices and calibration


def shift_slices(predictions: Predictions) -> tuple[Bools, Bools]:
    """(N) masks of labelled utterances whose speaker's previous labelled utterance in the conversation has another
    right label, and of those where it has the same. A speaker's first labelled utterance is in neither.
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


def calibration_bins(predictions: Predictions, bins: int = ECE_BINS) -> tuple[Ints, Floats, Floats]:
    """Number of utterances, accuracy and mean confidence in each of ``bins`` equal parts of [0, 1].

    The confidence is the largest probability. A bin includes its lower edge, the last one both edges; an empty bin has
    accuracy and confidence 0.
    """
    truth, labelled = predictions.labels()
    confidence = predictions.output[labelled].max(axis=1)
    right = (predictions.decisions() == truth)[labelled]
    return _binned(right, confidence, _equal_width(confidence, bins), bins)


def expected_calibration_error(predictions: Predictions, bins: int = ECE_BINS) -> float:
    """Mean of ``|accuracy - confidence|`` over equal-width bins, weighted by the utterances in them (Naeini et al.,
    2015).
    """
    return _bin_error(*calibration_bins(predictions, bins))


def classwise_calibration_error(predictions: Predictions, bins: int = ECE_BINS) -> float:
    """Mean over all C labels of the calibration error of "this label or another" (Kull et al., 2019).

    For a label, the confidence is its own probability, and the accuracy of an equal-width bin the share of utterances
    whose right label it is. Unlike :func:`expected_calibration_error` it also sees probabilities that are not the
    largest.
    """
    truth, labelled = predictions.labels()
    errors = [
        _bin_error(*_binned(truth[labelled] == label, confidence, _equal_width(confidence, bins), bins))
        for label, confidence in enumerate(predictions.output[labelled].T)
    ]
    return float(np.mean(errors))


def adaptive_calibration_error(predictions: Predictions, bins: int = ECE_BINS) -> float:
    """Mean of ``|accuracy - confidence|`` over bins of equally many utterances (Nixon et al., 2019).

    Utterances are ordered by their largest probability and cut into ``bins`` runs. Of N utterances the first N modulo
    ``bins`` runs have one more than the others; with fewer utterances than bins each is a bin. Utterances of equal
    confidence, which a cut may separate, share their hits evenly, so the order of rows is without effect.
    """
    truth, labelled = predictions.labels()
    confidence = predictions.output[labelled].max(axis=1)
    right = (predictions.decisions() == truth)[labelled]
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=right)[group] / size[group]
    order = np.argsort(confidence)
    small, larger = divmod(len(order), bins)
    place = np.repeat(np.arange(bins), small + (np.arange(bins) < larger))
    return _bin_error(*_binned(shared[order], confidence[order], place, bins))


def _equal_width(confidence: NDArray[Any], bins: int) -> Ints:
    return np.clip((confidence * bins).astype(np.int64), 0, bins - 1)


def _binned(right: NDArray[Any], confidence: NDArray[Any], place: Ints, bins: int) -> tuple[Ints, Floats, Floats]:
    """(bins) number of utterances, mean of ``right`` and mean confidence of those at each ``place``."""
    count = np.bincount(place, minlength=bins)
    return (
        count,
        _ratio(np.bincount(place, weights=right, minlength=bins), count),
        _ratio(np.bincount(place, weights=confidence, minlength=bins), count),
    )


def _bin_error(count: Ints, accuracy: Floats, confidence: Floats) -> float:
    return float(_ratio((count * np.abs(accuracy - confidence)).sum(), count.sum()))


# Scores


def scores(predictions: Predictions) -> dict[str, float]:
    """All scores of the task's kind, by the names of :func:`metric_names`.

    Raises:
        ValueError: no utterance is labelled, or an output for a labelled one is not a finite number.
    """
    task, valid = predictions.task, np.asarray(predictions.valid, dtype=bool)
    if not valid.any():
        raise ValueError(f"none of the {len(valid)} utterances is labelled for task {task.name!r}: nothing to score")
    output = predictions.output[valid].astype(np.float64)
    if not np.isfinite(output).all():
        raise ValueError(f"outputs of task {task.name!r} are not finite: {int((~np.isfinite(output)).sum())} numbers")
    if task.kind == "single_label":
        return _single_scores(predictions)
    value = predictions.value[valid].astype(np.float64)
    if task.kind == "distribution":
        return {**_single_scores(predictions), **_distribution_scores(output, value)}
    if task.kind == "multi_label":
        said = predictions.decisions()[valid]
        true = value > 0.5
        return {
            **scores_from_counts(conversation_counts(predictions).sum(axis=0)),
            **_set_scores(said, true),
            **_weighted_accuracy(said, true, task.output_names),
        }
    scale = (task.low, task.high)
    rows = [_number_scores(output[:, column], value[:, column], scale) for column in range(task.size)]
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if all(name in row for row in rows)}
    if task.size > 1:
        for dimension, row in zip(task.dimensions, rows, strict=True):
            result.update({f"{name}/{dimension}": number for name, number in row.items()})
    return result


def _single_scores(predictions: Predictions) -> dict[str, float]:
    truth, labelled = predictions.labels()
    if not labelled.any():
        return {}
    schema = predictions.task.schema
    assert schema is not None
    neutral = schema.index(schema.neutral) if schema.neutral else None
    result = scores_from_confusion(confusion_matrix(predictions), neutral)
    rows = np.flatnonzero(labelled)
    result["nll"] = float(-np.log(np.maximum(predictions.output[rows, truth[rows]], _FLOOR)).mean())
    result["ece"] = expected_calibration_error(predictions)
    result["ece_classwise"] = classwise_calibration_error(predictions)
    result["ece_adaptive"] = adaptive_calibration_error(predictions)
    right = predictions.decisions() == truth
    for name, rows_of in zip(("shift_accuracy", "same_accuracy"), shift_slices(predictions), strict=True):
        if rows_of.any():
            result[name] = float(right[rows_of].mean())
    return result


def _distribution_scores(output: Floats, value: Floats) -> dict[str, float]:
    # x log x is 0 at 0, hence the floor inside the logarithm only. 1/C is strict: a uniform row is the empty set.
    divergence = (value * (np.log(np.maximum(value, _FLOOR)) - np.log(np.maximum(output, _FLOOR)))).sum(axis=1)
    cut = 1 / output.shape[1] + PROBABILITY_TOLERANCE
    said, true = output > cut, value > cut
    f1 = _ratio(2 * (said & true).sum(axis=0), said.sum(axis=0) + true.sum(axis=0))
    return {"kl": float(divergence.mean()), "binarised_macro_f1": float(f1.mean())}


def _set_scores(said: Bools, true: Bools) -> dict[str, float]:
    both, sizes = (said & true).sum(axis=1), said.sum(axis=1) + true.sum(axis=1)
    empty, jaccard = sizes == 0, _ratio(both, sizes - both)
    return {
        "samples_f1": float(np.where(empty, 1.0, _ratio(2 * both, sizes)).mean()),
        "accuracy": float((said == true).all(axis=1).mean()),
        "jaccard": float(np.where(empty, 1.0, jaccard).mean()),
        "jaccard_zero": float(jaccard.mean()),
        "hamming": float((said != true).mean()),
    }


def _weighted_accuracy(said: Bools, true: Bools, labels: Sequence[str]) -> dict[str, float]:
    """(TP * N / P + TN) / 2N of every label, where P utterances have it and N have not, and the mean of these.

    Zadeh et al. (ACL 2018, CMU-MOSEI). It equals the mean of both recalls, (TP / P + TN / N) / 2, and is not defined
    for a label that all or no utterances have.
    """
    positive = true.sum(axis=0)
    negative = len(true) - positive
    value = (_ratio((said & true).sum(axis=0), positive) + _ratio((~said & ~true).sum(axis=0), negative)) / 2
    found = {
        f"weighted_accuracy/{label}": float(number)
        for label, number, defined in zip(labels, value, (positive > 0) & (negative > 0), strict=True)
        if defined
    }
    return {"weighted_accuracy": float(np.mean(list(found.values()))), **found} if found else {}


def concordance(output: Floats, value: Floats) -> float:
    """2 cov / (var + var + (difference of means)^2) with biased moments (Lin, 1989).

    In this form, unlike correlation times deviations, a constant prediction gives 0 rather than NaN.
    """
    covariance = ((output - output.mean()) * (value - value.mean())).mean()
    below = output.var() + value.var() + (output.mean() - value.mean()) ** 2
    return float(2 * covariance / (below + np.finfo(np.float64).tiny))


def sims_classes(numbers: Floats, classes: int) -> Ints:
    """The class, from 0, of numbers on CH-SIMS's scale; those beyond [-1, 1] belong to the outer classes.

    Compared in single precision, as the published code does: a target 0.1 is then on the edge, not above it.
    """
    return np.searchsorted(np.array(SIMS_EDGES[classes], np.float32), numbers.astype(np.float32)).astype(np.int64)


def _number_scores(output: Floats, value: Floats, scale: tuple[float, float]) -> dict[str, float]:
    error = output - value
    x, y = output - output.mean(), value - value.mean()
    # Relative to the magnitude: the mean of equal numbers may differ from them by a rounding error.
    flat = any(np.ptp(side) <= 1e-12 * np.abs(side).max() for side in (output, value))
    result = {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "pearson": 0.0 if flat else float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())),
        "ccc": concordance(output, value),
    }
    if SCALES.get(scale) is _SIMS:
        for classes in (3, 5):
            right = sims_classes(output, classes) == sims_classes(value, classes)
            result[f"sims_acc{classes}"] = float(right.mean())
        cells = 2 * sims_classes(value, 2) + sims_classes(output, 2)
        counted = scores_from_confusion(np.bincount(cells, minlength=4).reshape(2, 2))
        result["sims_acc2"], result["sims_f1"] = counted["accuracy"], counted["weighted_f1"]
    if SCALES.get(scale) is _SENTIMENT:
        for name, limit in (("acc7", 3), ("acc5", 2)):
            said, true = (np.clip(side, -limit, limit).round() for side in (output, value))
            result[name] = float((said == true).mean())
        polar = value != 0
        for name, positive, truth in (
            ("non0", output[polar] > 0, value[polar] > 0),
            ("has0", output >= 0, value >= 0),
        ):
            if len(truth):
                matrix = np.bincount(2 * truth + positive, minlength=4).reshape(2, 2)
                counted = scores_from_confusion(matrix)
                result[f"acc2_{name}"], result[f"f1_{name}"] = counted["accuracy"], counted["weighted_f1"]
    return result


def best_thresholds(predictions: Predictions) -> Floats:
    """(C) thresholds that maximise each label's F1 on these predictions, for a multi-label task.

    The search is exact: between two neighbouring probabilities F1 does not change, so every cut is tried, each at the
    middle of its gap. Among equally good cuts the one nearest 0.5 is taken; a label without positives keeps 0.5. Choose
    them on dev and hand them to the predictions of test.
    """
    if predictions.task.kind != "multi_label":
        raise ValueError(f"task {predictions.task.name!r} is {predictions.task.kind}, not multi_label")
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
        # Thresholds are kept in single precision, and neighbouring numbers have no middle: where rounding leaves the
        # gap, the upper number itself is the threshold.
        middle = ((probability[ends] + following[ends]) / 2).astype(np.float32).astype(np.float64)
        inside = (following[ends] < middle) & (middle <= probability[ends])
        middle = np.where(inside, middle, probability[ends])
        best = middle[f1 == f1.max()]
        thresholds[column] = best[np.argmin(np.abs(best - 0.5))]
    return thresholds
