"""Intervals and summaries.

Utterances of one conversation depend on each other, so intervals resample whole conversations: an interval from
resampled utterances would be too narrow. Scores that come from counts are resampled as counts, all resamples at once:
the number of times that each conversation is drawn is multinomial, and a resample's confusion matrix is the sum of the
conversations' matrices with these numbers as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ercfusion.tasks.metrics import (
    CONFUSION_METRICS,
    COUNT_METRICS,
    check_metric,
    conversation_confusions,
    conversation_counts,
    scores,
    scores_from_confusion,
    scores_from_counts,
)
from ercfusion.tasks.outputs import Predictions

RESAMPLES = 2000
# Scores without counts are computed anew for every resample, which is slower by a factor of a hundred or so.
SLOW_RESAMPLES = 500
_CHUNK = 2**22

Statistic = Callable[[NDArray[Any]], Any]


def conversation_bootstrap(
    counts_per_conversation: NDArray[Any],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of summed counts, resampling conversations with replacement.

    Args:
        counts_per_conversation: (B, ...) counts, for example (B, C, C) confusion matrices. Conversations without any
            count (nothing in them is labelled) are no part of the sample.
        statistic: From summed counts (R, ...) to R numbers; NaN where it is not defined for a resample.
        resamples: Number R of resamples.
        level: Coverage.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end. With a single conversation both are the statistic itself: nothing can be said about the
        spread between conversations.

    Raises:
        ValueError: there is no count at all, or the statistic is defined for no resample.
    """
    shape = counts_per_conversation.shape[1:]
    flat = counts_per_conversation.reshape(len(counts_per_conversation), -1).astype(np.float64)
    flat = flat[flat.any(axis=1)]
    if not len(flat):
        raise ValueError("the counts of all conversations are 0: there is nothing to resample")
    rng = np.random.default_rng(seed)
    share = np.full(len(flat), 1 / len(flat))
    # In parts: the weights and the sums of all resamples together may be large.
    step = max(1, _CHUNK // max(flat.shape))
    values = []
    for start in range(0, resamples, step):
        weights = rng.multinomial(len(flat), share, size=min(step, resamples - start)).astype(np.float64)
        values.append(np.asarray(statistic((weights @ flat).reshape(len(weights), *shape)), dtype=np.float64))
    return _percentiles(np.concatenate(values), level)


def interval_for(
    predictions: Predictions, metric: str, resamples: int | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a score over conversations.

    Args:
        predictions: Of one split.
        metric: A name of :func:`ercfusion.tasks.metrics.metric_names`.
        resamples: None takes 2000 for scores that come from counts and 500 for others (calibration, emotion shift,
            regression), which are computed anew for every resample.
        level: Coverage.
        seed: The same seed gives the same interval.

    Raises:
        ConfigError: the task has no such metric.
        ValueError: the metric is not defined for these predictions.
    """
    task = predictions.task
    check_metric(task, metric)
    if task.kind in ("single_label", "distribution") and metric in CONFUSION_METRICS:
        neutral = task.schema.index(task.schema.neutral) if task.schema and task.schema.neutral else None
        return conversation_bootstrap(
            conversation_confusions(predictions),
            lambda matrices: scores_from_confusion(matrices, neutral)[metric],
            resamples or RESAMPLES,
            level,
            seed,
        )
    if task.kind == "multi_label" and metric in COUNT_METRICS:
        # A conversation in which no label is true or predicted has counts of 0 and is left out like an unlabelled one:
        # these scores have no true negatives, so it could change nothing but the number of draws.
        return conversation_bootstrap(
            conversation_counts(predictions),
            lambda counts: scores_from_counts(counts)[metric],
            resamples or RESAMPLES,
            level,
            seed,
        )
    if metric not in scores(predictions):
        raise ValueError(f"{metric} is not defined for these predictions: its slice of the split is empty")
    owner = predictions.conversation[np.asarray(predictions.valid, dtype=bool)]
    labelled = np.unique(owner)
    rng = np.random.default_rng(seed)
    values = [
        scores(predictions.take(rng.choice(labelled, size=len(labelled)))).get(metric, np.nan)
        for _ in range(resamples or SLOW_RESAMPLES)
    ]
    return _percentiles(np.array(values), level)


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    if np.isnan(values).all():
        raise ValueError("the statistic is defined for none of the resamples")
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def seed_summary(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """What to report of one score over several seeds.

    Args:
        values: The score of each seed.
        level: Coverage of the interval.

    Returns:
        ``mean``, ``std`` (with n - 1 below the line), ``min``, ``max``, ``n``, and ``low`` and ``high``, the Student-t
        interval of the mean. With one seed the spread is unknown: ``std``, ``low`` and ``high`` are NaN. The interval
        speaks of other seeds on the same test split, not of other conversations.

    Raises:
        ValueError: no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("the scores of at least one seed are needed")
    result = {
        "mean": float(array.mean()),
        "min": float(array.min()),
        "max": float(array.max()),
        "n": len(array),
    }
    if len(array) == 1:
        return result | {"std": np.nan, "low": np.nan, "high": np.nan}
    result["std"] = float(array.std(ddof=1))
    if np.ptp(array) == 0:
        # The t distribution with scale 0 is undefined in scipy.
        return result | {"low": result["mean"], "high": result["mean"]}
    low, high = stats.t.interval(level, len(array) - 1, loc=array.mean(), scale=stats.sem(array))
    return result | {"low": float(low), "high": float(high)}
