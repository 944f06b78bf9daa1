"""Sums of every conversation from which scores follow.

Most scores are functions of numbers that add up over conversations: cells of a confusion matrix, counts of right
utterances, moments. Whoever has these sums for every conversation can score any selection of conversations without the
utterances, and thousands of selections at once: that is how intervals and tests between models are computed, and what a
run's record keeps.

:func:`conversation_sums` makes the sums, by key:

* ``confusion`` (B, C, C) int64, rows the truth: single-label and distribution tasks;
* ``shift`` (B, 2, 2) int64, of the same tasks: ``[:, 0]`` is (right, total) of the utterances whose speaker's previous
  labelled utterance in the conversation has another label, ``[:, 1]`` of those where it has the same;
* ``counts`` (B, C, 3) int64, true positives, false positives, false negatives: multi-label tasks;
* ``moments`` (B, K, F) float64, the sums that :func:`moment_names` lists: regression.

:func:`score_source` says which key a score comes from, and how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Bools, Floats, Ints, Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.scores import (
    CONFUSION_METRICS,
    COUNT_METRICS,
    check_metric,
    conversation_confusions,
    conversation_counts,
    scores_from_confusion,
    scores_from_counts,
    shift_slices,
    sims_classes,
)

Statistic = Callable[[NDArray[Any]], NDArray[Any]]

MOMENTS: dict[str, str] = {
    "utterances": "labelled utterances",
    "output": "outputs, less the middle of the task's range",
    "target": "targets, less the middle of the task's range",
    "output_squared": "squares of the former",
    "target_squared": "squares of the former",
    "product": "products of output and target, both less the middle",
    "absolute_error": "|output - target|",
    "squared_error": "(output - target)^2",
}
SENTIMENT_MOMENTS: dict[str, str] = {
    "right7": "utterances that are right in seven classes",
    "right5": "utterances that are right in five classes",
    **{f"non0_{cell}": f"of the utterances whose truth is not 0: (truth > 0, output > 0) = {cell}" for cell in
       ("00", "01", "10", "11")},
    **{f"has0_{cell}": f"of all utterances: (truth >= 0, output >= 0) = {cell}" for cell in ("00", "01", "10", "11")},
}  # fmt: skip
SIMS_MOMENTS: dict[str, str] = {
    "sims_right3": "utterances that are right in CH-SIMS's three classes",
    "sims_right5": "utterances that are right in CH-SIMS's five classes",
    **{f"sims_{cell}": f"of all utterances: (truth > 0, output > 0) = {cell}" for cell in ("00", "01", "10", "11")},
}
# A side whose variance is below this share of its mean square around the middle is constant as far as sums can tell:
# the record rounds to nine digits, and what is left of a variance below that is rounding.
_CONSTANT = 1e-8


def moment_names(task: TaskSpec) -> tuple[str, ...]:
    """Names of the F sums of a regression task: :data:`MOMENTS`; on [-3, 3] also :data:`SENTIMENT_MOMENTS`, on [-1, 1]
    also :data:`SIMS_MOMENTS`.
    """
    return (*MOMENTS, *_SCALE_MOMENTS.get((task.low, task.high), {}))


_SCALE_MOMENTS = {(-3.0, 3.0): SENTIMENT_MOMENTS, (-1.0, 1.0): SIMS_MOMENTS}


# From utterances to sums


def conversation_sums(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """The sums of every conversation, first axis B; see the head of this module for keys and shapes.

    Utterances that are not labelled count nowhere, so a conversation without any has zeros.
    """
    kind = predictions.task.kind
    if kind == "multi_label":
        return {"counts": conversation_counts(predictions)}
    if kind == "regression":
        return {"moments": _conversation_moments(predictions)}
    return {"confusion": conversation_confusions(predictions), "shift": _conversation_shifts(predictions)}


def _conversation_shifts(predictions: Predictions) -> Ints:
    truth, _ = predictions.labels()
    right = predictions.decisions() == truth
    owner, batch = predictions.conversation, len(predictions.lengths)
    counted = [
        np.stack([np.bincount(owner[rows], minlength=batch) for rows in (chosen & right, chosen)], axis=1)
        for chosen in shift_slices(predictions)
    ]
    return np.stack(counted, axis=1).astype(np.int64)


def _conversation_moments(predictions: Predictions) -> Floats:
    task, valid = predictions.task, np.asarray(predictions.valid, dtype=bool)
    output = predictions.output[valid].astype(np.float64)
    target = predictions.value[valid].astype(np.float64)
    # Around the middle of the range: around 0 the squares of a scale from 100 to 110, say, would leave few digits for
    # the variance.
    middle = (task.low + task.high) / 2
    x, y, error = output - middle, target - middle, output - target
    columns = [np.ones_like(x), x, y, x**2, y**2, x * y, np.abs(error), error**2]
    moments = _SCALE_MOMENTS.get((task.low, task.high))
    if moments is SIMS_MOMENTS:
        columns += [sims_classes(output, classes) == sims_classes(target, classes) for classes in (3, 5)]
        columns += _cells(sims_classes(target, 2) == 1, sims_classes(output, 2) == 1, np.ones_like(target, dtype=bool))
    if moments is SENTIMENT_MOMENTS:
        for limit in (3, 2):
            columns.append(np.clip(output, -limit, limit).round() == np.clip(target, -limit, limit).round())
        columns += _cells(target > 0, output > 0, target != 0)
        columns += _cells(target >= 0, output >= 0, np.ones_like(target, dtype=bool))
    sums = np.zeros((len(predictions.lengths), task.size, len(columns)))
    np.add.at(sums, predictions.conversation[valid], np.stack(columns, axis=2))
    return sums


def _cells(truth: Bools, said: Bools, counted: Bools) -> list[Bools]:
    """Whether an utterance is in the cells (0, 0), (0, 1), (1, 0) and (1, 1) of a two-class confusion matrix."""
    return [counted & (truth == row) & (said == column) for row in (False, True) for column in (False, True)]


def truth_of(key: str, sums: NDArray[Any]) -> NDArray[Any]:
    """The part of :func:`conversation_sums` that follows from the labels only: equal for all models on equal data.

    Args:
        key: Of :func:`conversation_sums`.
        sums: (..., *shape) sums of that key.
    """
    if key == "confusion":
        return np.asarray(sums.sum(axis=-1))
    if key == "shift":
        return np.asarray(sums[..., 1])
    if key == "counts":
        return np.asarray(sums[..., 0] + sums[..., 2])
    return np.asarray(sums[..., [list(MOMENTS).index(name) for name in ("utterances", "target", "target_squared")]])


# From sums to scores


def score_source(task: TaskSpec, metric: str) -> tuple[str, Statistic] | None:
    """Where a score comes from: a key of :func:`conversation_sums`, and the score as a function of summed sums.

    Returns:
        The key, and a function from (R, ...) summed sums (for a confusion matrix (R, C, C)) to (R) scores, NaN where
        the score is not defined; of any other number of leading axes as well. None for scores that no such sums give:
        calibration, negative log-probability, scores of sets and of distributions.

    Raises:
        ConfigError: the task has no such metric.
    """
    check_metric(task, metric)
    if task.kind == "multi_label":
        return (
            ("counts", lambda sums: np.asarray(scores_from_counts(sums)[metric])) if metric in COUNT_METRICS else None
        )
    if task.kind == "regression":
        return "moments", _moment_score(task, metric)
    if metric in CONFUSION_METRICS:
        neutral = task.schema.index(task.schema.neutral) if task.schema and task.schema.neutral else None
        return "confusion", lambda sums: _where(
            np.asarray(sums.any(axis=(-2, -1))), np.asarray(scores_from_confusion(sums, neutral)[metric])
        )
    if metric in ("shift_accuracy", "same_accuracy"):
        place = ("shift_accuracy", "same_accuracy").index(metric)
        return "shift", lambda sums: _quotient(sums[..., place, 0], sums[..., place, 1])
    return None


def _where(defined: NDArray[Any], value: NDArray[Any]) -> Floats:
    return np.where(defined, value, np.nan)


def _quotient(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator))


def _moment_score(task: TaskSpec, metric: str) -> Statistic:
    base, _, dimension = metric.partition("/")
    names = moment_names(task)

    def statistic(sums: NDArray[Any]) -> Floats:
        value = _number_score(base, {name: sums[..., place] for place, name in enumerate(names)})
        # As for the plain scores: defined where it is for every dimension.
        return np.asarray(value[..., task.dimensions.index(dimension)] if dimension else value.mean(axis=-1))

    return statistic


def _number_score(name: str, sums: dict[str, Floats]) -> Floats:
    count = sums["utterances"]
    if name == "mae":
        return _quotient(sums["absolute_error"], count)
    if name == "rmse":
        return np.sqrt(_quotient(sums["squared_error"], count))
    if name in ("acc7", "acc5"):
        return _quotient(sums[f"right{name[3]}"], count)
    if name in ("sims_acc3", "sims_acc5"):
        return _quotient(sums[f"sims_right{name[-1]}"], count)
    if name in ("pearson", "ccc"):
        return _agreement(name, sums)
    slice_name = "sims" if name.startswith("sims") else name.partition("_")[2]
    cells = np.stack([sums[f"{slice_name}_{cell}"] for cell in ("00", "01", "10", "11")], axis=-1)
    matrix = cells.reshape(*cells.shape[:-1], 2, 2)
    score = scores_from_confusion(matrix)["accuracy" if "acc2" in name else "weighted_f1"]
    return _where(np.asarray(cells.any(axis=-1)), np.asarray(score))


def _agreement(name: str, sums: dict[str, Floats]) -> Floats:
    """Pearson's or the concordance correlation from moments; 0 where a side is constant."""
    count = sums["utterances"]
    mean_x, mean_y, xx, yy, xy = (
        _quotient(sums[key], count) for key in ("output", "target", "output_squared", "target_squared", "product")
    )
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    constant_x, constant_y = var_x <= _CONSTANT * xx, var_y <= _CONSTANT * yy
    constant = constant_x | constant_y
    covariance = np.where(constant, 0.0, xy - mean_x * mean_y)
    if name == "pearson":
        # The clip takes away what rounding adds: 1.0000000000000002 of a perfect prediction.
        value = np.clip(covariance / np.sqrt(np.where(constant, 1.0, var_x * var_y)), -1.0, 1.0)
    else:
        value = 2 * covariance / np.where(constant, 1.0, var_x + var_y + (mean_x - mean_y) ** 2)
    return _where(count > 0, value)
