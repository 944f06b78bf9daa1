"""Intervals of scores, and summaries over seeds.

Utterances of a conversation are dependent, so intervals resample whole conversations, as sums weighted by multinomial
numbers of draws. The ends are bias-corrected percentiles (Efron and Tibshirani, 1993, chapter 14), because macro F1,
for example, is lower on a resample than on the sample. With few conversations they are moved outwards as in Student's t
(expanded percentiles; Hesterberg, 2015); with fewer than :data:`FEW_CONVERSATIONS` the interval is Student's t. If all
resamples are equal (one conversation, or no error) both ends are NaN. ``python -m benchmarks.coverage`` measures the
coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ercfusion.batch.predictions import Floats, Predictions
from ercfusion.metrics.inputs import Inputs
from ercfusion.metrics.metric import Statistic
from ercfusion.metrics.registry import get_metric, score_source
from ercfusion.metrics.resamples import weights_of_resamples
from ercfusion.metrics.sums import SUMS

RESAMPLES = 2000
# Scores without sums are computed per resample, about a hundred times slower.
SLOW_RESAMPLES = 500
FEW_CONVERSATIONS = 20
"""With fewer, an interval is Student's t: percentiles are too close together."""
FEW_SEEDS = 5
"""With fewer, the seeds' part of an interval has the degrees of freedom of the seeds."""
ANY: tuple[float, float] = (-np.inf, np.inf)
# Parts of the resamples for the Monte Carlo error of an interval's ends.
_PARTS = 10
# Largest bias correction, in standard deviations of the resamples. Calibration errors of resamples are all on one side
# of the sample's: the full correction would give the outermost resample.
_MOST_BIAS = 0.5
# Rounding depends on the order of sums: smaller differences between resamples count as none.
_NO_SPREAD = 1e-12
_EMPTY = "{} is not defined for these predictions: its slice of the split is empty. Choose another metric."


def conversation_bootstrap(
    counts_per_conversation: NDArray[Any],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = ANY,
) -> tuple[float, float]:
    """Interval of a statistic of summed counts, resampling conversations; NaN if all resamples are equal.

    Args:
        counts_per_conversation: (B, ...) counts or other sums. Conversations with zeros only are not in the sample.
        statistic: From summed counts (R, ...) to R numbers; NaN if not defined for a resample.
        resamples: R.
        level: Coverage.
        seed: Of the resamples.
        bounds: Range of the statistic.

    Raises:
        ValueError: no count, or the statistic is not defined for any resample.
    """
    shape = counts_per_conversation.shape[1:]
    flat = counts_per_conversation.reshape(len(counts_per_conversation), -1).astype(np.float64)
    flat = flat[flat.any(axis=1)]
    if not len(flat):
        raise ValueError("the counts of all conversations are 0: nothing to resample. Choose a labelled split.")
    values = [
        np.asarray(statistic((weights @ flat).reshape(len(weights), *shape)), dtype=np.float64)
        for weights in weights_of_resamples(len(flat), resamples, max(flat.shape), seed)
    ]
    point = float(np.asarray(statistic(flat.sum(axis=0).reshape(1, *shape)))[0])
    return _clipped(_interval(np.concatenate(values), point, len(flat), level), bounds)


def interval_for(
    predictions: Predictions, metric: str, resamples: int | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a score over conversations; NaN if all resamples are equal.

    Args:
        predictions: Of one split.
        metric: A name of :func:`ercfusion.metrics.registry.metric_names`.
        resamples: None for 2000 if the score has sums (:func:`ercfusion.metrics.registry.score_source`), else 500.
        level, seed: As for :func:`conversation_bootstrap`.

    Raises:
        ConfigError: the task has no such metric.
        ValueError: the metric is not defined for these predictions.
    """
    source, bounds = score_source(predictions.task, metric), get_metric(metric).bounds
    if source is not None:
        # Zero counts (no label true or predicted; no shift possible) are dropped: they would change only the number of
        # draws.
        sums = SUMS[source[0]].of(predictions)
        if np.isnan(source[1](sums.sum(axis=0)[None])).all():
            raise ValueError(_EMPTY.format(metric))
        return conversation_bootstrap(sums, source[1], resamples or RESAMPLES, level, seed, bounds)
    point = _score(predictions, metric)
    if np.isnan(point):
        raise ValueError(_EMPTY.format(metric))
    owner = predictions.conversation[np.asarray(predictions.valid, dtype=bool)]
    labelled = np.unique(owner)
    rng = np.random.default_rng(seed)
    values = [
        _score(predictions.take(rng.choice(labelled, size=len(labelled))), metric)
        for _ in range(resamples or SLOW_RESAMPLES)
    ]
    return _clipped(_interval(np.array(values), point, len(labelled), level), bounds)


def _score(predictions: Predictions, metric: str) -> float:
    """One score of a split; NaN if not defined."""
    return get_metric(metric).values(Inputs(predictions)).get(metric, np.nan)


def _interval(
    values: Floats,
    point: float,
    conversations: int,
    level: float,
    seeds: Sequence[tuple[float, int]] = (),
    deviates: Floats | None = None,
) -> tuple[float, float]:
    """Bias-corrected, expanded percentiles, or Student's t for few conversations; NaN if the resamples do not differ.

    ``values`` (R) are the resamples' scores, ``point`` the sample's; ``seeds`` has, per model with several seeds, the
    variance they add and its degrees of freedom, and ``deviates`` (R) are normal with these variances.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    defined = ~np.isnan(values)
    values = values[defined]
    if not len(values):
        raise ValueError("the statistic is defined for none of the resamples. Choose another metric.")
    alike = np.ptp(values) <= _NO_SPREAD * np.abs(values).max() and not any(variance for variance, _ in seeds)
    if conversations < 2 or alike:
        return np.nan, np.nan
    upper = (1 + level) / 2
    # The variance of the resamples is too small by (B - 1) / B and has B - 1 degrees of freedom.
    reach = float(stats.t.ppf(upper, conversations - 1)) * np.sqrt(conversations / (conversations - 1))
    few = conversations < FEW_CONVERSATIONS
    if not few and any(own_freedom < FEW_SEEDS - 1 for _, own_freedom in seeds):
        low, centre, high = _percentiles(values, point, reach)
        return _with_seeds(low, centre, high, upper, seeds)
    if few:
        deviation = float(values.std())
        bias = float(np.clip(point - values.mean(), -_MOST_BIAS * deviation, _MOST_BIAS * deviation))
        centre = point + bias
        return _with_seeds(centre - reach * deviation, centre, centre + reach * deviation, upper, seeds)
    if deviates is not None:
        values = values + deviates[defined]
    low, centre, high = _percentiles(values, point, reach)
    uncertainty = sum(variance**2 / own_freedom for variance, own_freedom in seeds)
    if uncertainty:
        # Stretched, because t with one degree of freedom exceeds every percentile.
        stretch = stats.t.ppf(upper, values.var() ** 2 / uncertainty) / float(stats.norm.ppf(upper))
        low, high = centre + stretch * (low - centre), centre + stretch * (high - centre)
    return float(low), float(high)


def _percentiles(values: Floats, point: float, reach: float) -> tuple[float, float, float]:
    """Lower end, centre and upper end of the bias-corrected percentiles, ``reach`` standard deviations out."""
    below = (values < point).mean() + (values == point).mean() / 2
    bias = np.clip(stats.norm.ppf(below), -_MOST_BIAS, _MOST_BIAS)
    low, centre, high = np.quantile(values, stats.norm.cdf(2 * bias + np.array([-reach, 0.0, reach])))
    return float(low), float(centre), float(high)


def _with_seeds(
    low: float, centre: float, high: float, upper: float, seeds: Sequence[tuple[float, int]]
) -> tuple[float, float]:
    """Widen an interval over conversations by the contribution of few seeds: the half-widths add in squares.

    Each has the t of its own degrees of freedom (after Graybill and Wang, 1980). Satterthwaite's are too large if two
    seeds agree by chance: intervals would be too short.
    """
    total = sum(variance for variance, _ in seeds)
    if not total:
        return low, high
    freedom = total**2 / sum(variance**2 / own_freedom for variance, own_freedom in seeds)
    added = float(stats.t.ppf(upper, freedom) * np.sqrt(total))
    return centre - float(np.hypot(centre - low, added)), centre + float(np.hypot(high - centre, added))


def _clipped(ends: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Both ends within the score's range; NaN stays NaN."""
    low, high = (min(max(end, bounds[0]), bounds[1]) if end == end else end for end in ends)
    return low, high


def two_level_bootstrap(
    sums: NDArray[Any],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = ANY,
) -> tuple[float, float]:
    """Interval of a score's mean over seeds, for other seeds *and* other conversations.

    A resample scores every seed on the same conversations, and adds a normal deviate with the variance of the mean of S
    seeds (resampling few seeds would underestimate it: Rao and Wu, 1988), without the part due to the conversations
    (Owen, 2007). The interval is stretched as in Student's t, with degrees of freedom after Satterthwaite (1946), or
    those of the seeds if fewer than :data:`FEW_SEEDS`.

    Args:
        sums: (S, B, ...) sums, conversations in the same order; with S = 1 as :func:`conversation_bootstrap`.
        statistic, resamples, level, seed, bounds: As there.

    Raises:
        ValueError: no seed, no count, or the statistic is not defined for any resample.
    """
    (group,) = counted_conversations(sums)
    interval = _two_level([group], [_resampled_scores(group, statistic, resamples, seed)], statistic, level, seed)
    return _clipped((interval.low, interval.high), bounds)


def difference_interval(
    first: NDArray[Any],
    second: NDArray[Any],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = ANY,
) -> tuple[float, float]:
    """Interval of the difference of two models' mean scores, ``first`` minus ``second``.

    As :func:`two_level_bootstrap`, with the same resampled conversations for both; ``first`` and ``second`` are (S1, B,
    ...) and (S2, B, ...) sums, and ``bounds`` those of the score.

    Raises:
        ValueError: as there, or different conversations.
    """
    both = {"first": first, "second": second}
    interval = DifferenceIntervals(both, statistic, level, seed, bounds, errors=False)("first", "second", resamples)
    return interval.low, interval.high


@dataclass(frozen=True)
class Interval:
    """An interval from resamples.

    Args:
        low, high: Its ends; NaN if there is no interval.
        low_error, high_error: Monte Carlo standard errors of the ends; NaN with fewer than 200 resamples.
    """

    low: float
    high: float
    low_error: float
    high_error: float


class DifferenceIntervals:
    """:func:`difference_interval` for pairs of models from ``sums_by_name``, each resampled once; optionally with the
    errors of the ends.
    """

    def __init__(
        self,
        sums_by_name: Mapping[str, NDArray[Any]],
        statistic: Statistic,
        level: float = 0.95,
        seed: int = 0,
        bounds: tuple[float, float] = ANY,
        errors: bool = True,
    ) -> None:
        self._sums, self._statistic, self._level, self._seed = sums_by_name, statistic, level, seed
        reach = bounds[1] - bounds[0]
        self._bounds, self._errors = (-reach, reach), errors
        self._resampled: dict[tuple[str, bytes, int], Floats] = {}

    def __call__(self, first: str, second: str, resamples: int = RESAMPLES) -> Interval:
        """Interval of the difference between two models by name.

        Raises:
            ValueError: as :func:`difference_interval`.
        """
        both = self._sums[first], self._sums[second]
        counted = counted_mask(*both)
        groups = [group[:, counted].astype(np.float64) for group in both]
        values = []
        for name, group in zip((first, second), groups, strict=True):
            key = (name, counted.tobytes(), resamples)
            if key not in self._resampled:
                self._resampled[key] = _resampled_scores(group, self._statistic, resamples, self._seed)
            values.append(self._resampled[key])
        interval = _two_level(groups, values, self._statistic, self._level, self._seed, self._errors)
        low, high = _clipped((interval.low, interval.high), self._bounds)
        return replace(interval, low=low, high=high)


def counted_mask(*groups: NDArray[Any]) -> NDArray[np.bool_]:
    """(B) whether a conversation has a count in any of the models' (S, B, ...) sums.

    Raises:
        ValueError: no seed, different conversations, or no count.
    """
    if any(len(group) == 0 for group in groups):
        raise ValueError("sums of at least one seed are needed. Add runs.")
    shapes = [group.shape[1:] for group in groups]
    if len(set(shapes)) > 1:
        raise ValueError(f"the sums must be of the same conversations, not of shapes (B, ...) = {shapes}")
    counted = np.zeros(shapes[0][0], dtype=bool)
    for group in groups:
        counted |= group.any(axis=(0, *range(2, group.ndim)))
    if not counted.any():
        raise ValueError("the counts of all conversations are 0: nothing to resample. Choose a labelled split.")
    return counted


def counted_conversations(*groups: NDArray[Any]) -> list[Floats]:
    """(S, B, ...) sums per model as float64, without conversations uncounted in every model; errors of
    :func:`counted_mask`.
    """
    counted = counted_mask(*groups)
    return [group[:, counted].astype(np.float64) for group in groups]


def _resampled_scores(group: Floats, statistic: Statistic, resamples: int, seed: int) -> Floats:
    """(R, S) scores of a model's seeds on resamples of (S, B, ...) sums; equal ``seed``, equal conversations."""
    batch, shape = group.shape[1], group.shape[2:]
    flat = np.moveaxis(group, 1, 0).reshape(batch, -1)
    parts = [
        np.asarray(statistic((weights @ flat).reshape(-1, *shape)), dtype=np.float64).reshape(-1, len(group))
        for weights in weights_of_resamples(batch, resamples, max(flat.shape), seed)
    ]
    return np.concatenate(parts)


def _two_level(
    groups: Sequence[Floats],
    resampled: Sequence[Floats],
    statistic: Statistic,
    level: float,
    seed: int,
    errors_of_ends: bool = False,
) -> Interval:
    """Interval of the mean over seeds of one model, or of the difference between two.

    ``groups`` are (S, B, ...) sums, ``resampled`` their (R, S) scores; the errors of the ends are NaN unless asked for.
    """
    resamples = len(resampled[0])
    rng = np.random.default_rng([seed, 1])
    total, deviates, point = np.zeros(resamples), np.zeros(resamples), 0.0
    of_seeds = []
    for sign, group, values in zip((1, -1), groups, resampled, strict=False):
        total += sign * values.mean(axis=1)
        S, scores_of_seeds = len(group), np.asarray(statistic(group.sum(axis=1)), dtype=np.float64)
        point += sign * float(scores_of_seeds.mean())
        if S > 1:
            defined = values[~np.isnan(values).any(axis=1)]
            variance = _seed_variance(scores_of_seeds, defined) if len(defined) else 0.0
            deviates += np.sqrt(variance) * rng.standard_normal(resamples)
            of_seeds.append((variance, S - 1))
    conversations = groups[0].shape[1]
    low, high = _interval(total, point, conversations, level, of_seeds, deviates)
    errors = (np.nan, np.nan)
    if errors_of_ends and resamples >= _PARTS * 20:
        parts = [
            pair
            for pair in zip(np.array_split(total, _PARTS), np.array_split(deviates, _PARTS), strict=True)
            if not np.isnan(pair[0]).all()
        ]
        ends = np.array([_interval(part, point, conversations, level, of_seeds, own) for part, own in parts])
        ends = ends[~np.isnan(ends).any(axis=1)]
        errors = tuple(ends.std(axis=0, ddof=1) / np.sqrt(len(ends))) if len(ends) > 1 else errors
    return Interval(low, high, float(errors[0]), float(errors[1]))


def _seed_variance(scores_of_seeds: Floats, values: Floats) -> float:
    """Variance of the mean of S seeds' scores (S), without the part due to the conversations, from (R, S) resampled
    scores.
    """
    S = len(scores_of_seeds)
    own = values - values.mean(axis=1, keepdims=True)
    from_conversations = own.var(axis=0).mean() * S / (S - 1)
    return max(0.0, float(scores_of_seeds.var(ddof=1) - from_conversations)) / S


def seed_summary(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """``mean``, ``std`` (sample standard deviation), ``min``, ``max``, ``n``, ``low`` and ``high`` of one score over
    several seeds.

    ``low`` and ``high`` are the Student-t interval of the mean for other seeds on the same test split. NaN: all three
    with one seed, the interval with equal scores.

    Raises:
        ValueError: no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("the scores of at least one seed are needed. Add runs.")
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
        return result | {"low": np.nan, "high": np.nan}
    low, high = stats.t.interval(level, len(array) - 1, loc=array.mean(), scale=stats.sem(array))
    return result | {"low": float(low), "high": float(high)}
