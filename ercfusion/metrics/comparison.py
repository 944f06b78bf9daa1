"""Pairwise comparison of models on the same test conversations.

:func:`paired_randomization` tests the trained models. :func:`ercfusion.metrics.statistics.difference_interval` also
applies to models trained with other seeds. :func:`compare_all` combines both for many pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ercfusion.batch.predictions import Floats
from ercfusion.metrics.metric import Statistic
from ercfusion.metrics.statistics import ANY, RESAMPLES, DifferenceIntervals, Interval, counted_conversations

PERMUTATIONS = 10000
"""Random exchanges per pair; uncertain pairs get more, see :func:`most_exchanges`."""
_CHUNK = 2**20
# Rounding depends on the order of sums: equal differences must compare as equal.
_ROUNDING = 1e-10
# A verdict is certain if both ends of a confidence interval of p agree. The interval fails in 1 of 10,000 draws,
# because a large table computes several hundred of them.
_DOUBT = 1e-4
# Expected number of large differences at the smallest level of Holm's correction: a standard error of 1 / sqrt(500),
# 4.5 % of p.
_BEYOND = 500
# An interval with an end within this many standard errors of 0 gets this many times the resamples.
_MORE_RESAMPLES = 10
_CLOSE = 4.0


def most_exchanges(comparisons: int, level: float = 0.95) -> int:
    """Largest number of random exchanges for one pair of a family: enough to tell p from Holm's smallest level.

    A fixed number R gives p >= 1 / (1 + R), so no pair of a large family could be significant.
    """
    return max(PERMUTATIONS, math.ceil(_BEYOND * max(comparisons, 1) / round(1 - level, 12)))


def paired_randomization(
    first: NDArray[Any], second: NDArray[Any], statistic: Statistic, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p of the difference between two models' mean scores, from exchanges of whole conversations.

    An exchange moves all seeds of a conversation at once, because their predictions are not independent. Seeds are
    paired in order; lists of different lengths are repeated up to their least common multiple.

    Args:
        first, second: (S1, B, ...) and (S2, B, ...) sums, conversations in the same order.
        statistic: From summed sums (R, ...) to R numbers.
        permutations: Number R of random exchanges. If there are at most R in all, each is made once.
        seed: Of the exchanges.

    Returns:
        (1 + number of differences at least as large as observed) / (1 + R) (Phipson and Smyth, 2010); with all
        exchanges their share; 1 if the models agree.

    Raises:
        ValueError: different conversations, no count, or an undefined score.
    """
    test = RandomizationTest(first, second, statistic, seed)
    test.extend(permutations)
    return test.p


class RandomizationTest:
    """:func:`paired_randomization` with a number of exchanges that can grow; same arguments and errors."""

    def __init__(self, first: NDArray[Any], second: NDArray[Any], statistic: Statistic, seed: int = 0) -> None:
        first, second = counted_conversations(first, second)
        scores = [np.asarray(statistic(group.sum(axis=1)), dtype=np.float64) for group in (first, second)]
        self.difference = float(scores[0].mean() - scores[1].mean())
        if math.isnan(self.difference):
            raise ValueError(
                "the score is not defined for a seed of the two models: its slice of the split is empty. Choose "
                "another metric."
            )
        self._statistic, self._shape = statistic, first.shape[2:]
        pairs = math.lcm(len(first), len(second))
        one, other = (
            group[np.arange(pairs) % len(group)].reshape(pairs, first.shape[1], -1) for group in (first, second)
        )
        self._middle, half = (one + other).sum(axis=1) / 2, (one - other) / 2
        half = half[:, half.any(axis=(0, 2))]  # (P, B, F), only conversations with a difference
        self._flat = np.moveaxis(half, 1, 0).reshape(half.shape[1], self._middle.size)
        if _exact_in_single(self._flat):
            self._flat = self._flat.astype(np.float32)
        self._limit = abs(self.difference) - _ROUNDING * max(np.abs(part).max() for part in scores)
        self._rng = np.random.default_rng(seed)
        self.count = self.exchanges = 0
        self.exact = not len(self._flat)
        """Whether every possible exchange was made: p then has no Monte Carlo error."""

    def extend(self, exchanges: int) -> None:
        """Add random exchanges up to this total, or make every possible one if there are no more."""
        batch = len(self._flat)
        if self.exact or exchanges <= self.exchanges:
            return
        step = max(1, _CHUNK // max(batch, self._flat.shape[1]))
        if batch < 63 and 2**batch <= exchanges:
            self.exact, self.count, self.exchanges = True, 0, 2**batch
            for start in range(0, 2**batch, step):
                number = np.arange(start, min(start + step, 2**batch))
                self._add(number[:, None] >> np.arange(batch) & 1)
            return
        for start in range(self.exchanges, exchanges, step):
            self._add(self._rng.integers(0, 2, size=(min(step, exchanges - start), batch)))
        self.exchanges = exchanges

    def _add(self, exchanged: NDArray[Any]) -> None:
        """Count the large differences of exchanges (part of R, B): 1 for exchanged conversations, else 0."""
        pairs, size = len(self._middle), len(exchanged)
        moved = ((1 - 2 * exchanged.astype(self._flat.dtype)) @ self._flat).reshape(size, *self._middle.shape)
        sides = [
            np.asarray(self._statistic(side.reshape(-1, *self._shape)), dtype=np.float64)
            .reshape(size, pairs)
            .mean(axis=1)
            for side in (self._middle + moved, self._middle - moved)
        ]
        # An undefined score counts as a large difference: the conservative choice.
        self.count += int((~(np.abs(sides[0] - sides[1]) < self._limit)).sum())

    @property
    def p(self) -> float:
        """The p of the exchanges so far."""
        if not len(self._flat):
            return 1.0
        return self.count / self.exchanges if self.exact else (1 + self.count) / (1 + self.exchanges)

    @property
    def error(self) -> float:
        """Monte Carlo standard error of p."""
        return 0.0 if self.exact else math.sqrt(self.p * (1 - self.p) / self.exchanges)

    @property
    def bounds(self) -> tuple[float, float]:
        """Confidence interval of the exact p (Clopper and Pearson, 1934)."""
        if self.exact:
            return self.p, self.p
        low = stats.beta.ppf(_DOUBT / 2, self.count, self.exchanges - self.count + 1) if self.count else 0.0
        rest = self.exchanges - self.count
        high = stats.beta.ppf(1 - _DOUBT / 2, self.count + 1, rest) if rest else 1.0
        return float(low), float(high)


def _exact_in_single(half: Floats) -> bool:
    """Whether float32 adds these halves of counts exactly with any signs; that halves the time."""
    twice = 2 * half
    return bool((twice == np.rint(twice)).all() and np.abs(twice).sum(axis=0).max(initial=0) < 2**24)


def holm(p_values: Sequence[float] | NDArray[Any]) -> Floats:
    """p adjusted for the number of tests (Holm, 1979), in the order of the input.

    The smallest of M is multiplied by M, the next by M - 1 and so on. Adjusted p do not decrease along this order and
    are at most 1. Below 0.05 the probability of any wrong rejection is at most 5 %, for any dependence between tests.

    Raises:
        ValueError: a p outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values must be between 0 and 1, not {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _holm_errors(p: Floats, errors: Floats) -> Floats:
    """Standard errors of adjusted p, each from the p deciding it; 0 for p cut to 1."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    scaled = p[order] * factors
    deciding = [int(np.argmax(scaled[: place + 1])) for place in range(len(p))]
    results = np.empty_like(p)
    results[order] = np.where(scaled[deciding] < 1, errors[order][deciding] * factors[deciding], 0.0)
    return results


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two models.

    Args:
        names: The two models.
        difference: Mean score of the first minus that of the second.
        low, high: Interval of the difference, for other seeds and conversations; NaN if there is none.
        p, p_holm: Of :func:`paired_randomization`, and adjusted for all comparisons.
        shown: Whether ``p_holm`` is below 1 - level (0.05) and the interval excludes 0.
        exchanges: Number of exchanges behind ``p``.
        p_error, p_holm_error: Monte Carlo standard errors; 0 if every possible exchange was made.
        certain: Whether other random draws would give the same ``shown``.
    """

    names: tuple[str, str]
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    shown: bool
    exchanges: int
    p_error: float
    p_holm_error: float
    certain: bool


def compare_all(
    sums_by_name: Mapping[str, NDArray[Any]],
    statistic: Statistic,
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    level: float = 0.95,
    seed: int = 0,
    most_permutations: int | None = None,
    bounds: tuple[float, float] = ANY,
) -> list[Comparison]:
    """Compare models in pairs, with p adjusted for the number of pairs.

    Exchanges are doubled until Monte Carlo error no longer changes a verdict; an interval ending close to 0 gets more
    resamples.

    Args:
        sums_by_name: (S, B, ...) sums per model, conversations in the same order; S may differ.
        statistic: From summed sums (R, ...) to R numbers.
        pairs: Names of the pairs, in the order of the result; None for all.
        resamples, permutations: Minima, as for :func:`difference_interval` and :func:`paired_randomization`.
        level, seed, bounds: As there.
        most_permutations: Maximum for one pair; None for :func:`most_exchanges`.

    Raises:
        ValueError: unknown model in a pair, or an error of these two functions.
    """
    arguments = (pairs, resamples, permutations, level, seed, most_permutations, bounds)
    return compare_family({"": (sums_by_name, statistic)}, *arguments)[""]


def compare_family(
    scored: Mapping[str, tuple[Mapping[str, NDArray[Any]], Statistic]],
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    level: float = 0.95,
    seed: int = 0,
    most_permutations: int | None = None,
    bounds: tuple[float, float] = ANY,
) -> dict[str, list[Comparison]]:
    """Compare models in pairs by several statistics, such as the F1 of every label.

    As :func:`compare_all`, with p adjusted for the number of pairs times the number of statistics.

    Args:
        scored: Sums of the models and a statistic of them, by the statistic's name; all of the same models.
        pairs, resamples, permutations, level, seed, most_permutations, bounds: As there.

    Returns:
        Comparisons by the name of the statistic, in the order of the pairs.
    """
    models = next((sums for sums, _ in scored.values()), {})
    chosen = list(itertools.combinations(models, 2)) if pairs is None else [(one, two) for one, two in pairs]
    if unknown := [name for pair in chosen for name in pair if name not in models]:
        raise ValueError(f"no sums of {unknown[0]!r}. Choose from {', '.join(models)}.")
    family = [(name, names) for name in scored for names in chosen]
    tests = [
        RandomizationTest(scored[name][0][one], scored[name][0][two], scored[name][1], seed)
        for name, (one, two) in family
    ]
    limit = round(1 - level, 12)  # 1 - 0.95 is a little more than 0.05
    most = max(permutations, most_exchanges(len(tests), level) if most_permutations is None else most_permutations)
    open_tests, total = tests, permutations
    while True:
        for test in open_tests:
            test.extend(total)
        # Every adjusted p is monotone in every p of the family, so the interval ends bound them.
        possible, sure = (holm([test.bounds[end] for test in tests]) < limit for end in (0, 1))
        open_tests = [test for test, maybe, surely in zip(tests, possible, sure, strict=True) if maybe != surely]
        if not open_tests or total >= most:
            break
        total = min(2 * total, most)
    p, errors = (np.array([getattr(test, name) for test in tests], dtype=np.float64) for name in ("p", "error"))
    adjusted, adjusted_errors = holm(p), _holm_errors(p, errors)
    intervals = {name: DifferenceIntervals(*one, level, seed, bounds) for name, one in scored.items()}
    results: dict[str, list[Comparison]] = {name: [] for name in scored}
    for place, ((statistic, names), test) in enumerate(zip(family, tests, strict=True)):
        interval = intervals[statistic](*names, resamples)
        if possible[place] and _ends_at_zero(interval):
            interval = intervals[statistic](*names, _MORE_RESAMPLES * resamples)
        outside = interval.low > 0 or interval.high < 0  # False without an interval
        end_is_certain = not _ends_at_zero(interval)
        # If one condition certainly fails, the other does not matter.
        fails = not possible[place] or (end_is_certain and not outside)
        certain = fails or (sure[place] and end_is_certain)
        results[statistic].append(
            Comparison(
                names,
                test.difference,
                interval.low,
                interval.high,
                test.p,
                float(adjusted[place]),
                bool(adjusted[place] < limit and outside),
                test.exchanges,
                test.error,
                float(adjusted_errors[place]),
                bool(certain),
            )
        )
    return results


def _ends_at_zero(interval: Interval) -> bool:
    """Whether other resamples might move an end across 0."""
    ends = ((interval.low, interval.low_error), (interval.high, interval.high_error))
    return any(abs(end) < _CLOSE * error for end, error in ends)
