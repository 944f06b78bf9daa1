"""Which of two models is better, and whether the test split can tell.

Two models are compared conversation by conversation. If there were nothing between them, it would not matter which of
them made the predictions for a conversation: :func:`paired_randomization` exchanges them at random and counts how often
a difference as large as the one found comes out. It applies to the trained models that are there. The interval of the
difference (:func:`ercfusion.metrics.statistics.difference_interval`) applies also to models from other seeds.

A p from random exchanges has an error of its own. :func:`compare_all` goes on for the pairs whose verdict depends on
that error, and says which verdicts still do in the end.
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
"""Random exchanges of every pair; a pair whose verdict they leave open gets more, see :func:`most_exchanges`."""
_CHUNK = 2**20
# Sums in another order differ in their last digits: an equal difference must count as one that is as large.
_ROUNDING = 1e-10
# A verdict is certain if it is the same at both ends of an interval of p that fails in 1 of 10,000 draws: several
# hundred such intervals are looked at for a large table.
_DOUBT = 1e-4
# Expected exchanges as large as the one found at the smallest level that Holm asks for: its standard error is then
# 1 / sqrt(500), 4.5 % of p.
_BEYOND = 500
# Resamples of an interval that ends too close to 0, as a multiple; and how many standard errors are too close.
_MORE_RESAMPLES = 10
_CLOSE = 4.0


def most_exchanges(comparisons: int, level: float = 0.95) -> int:
    """Most random exchanges for one pair of a family: enough to tell p from the smallest level that Holm asks for.

    That level is (1 - level) / comparisons. With a fixed number of exchanges R, p is at least 1 / (1 + R), so a large
    family could never show anything.
    """
    return max(PERMUTATIONS, math.ceil(_BEYOND * max(comparisons, 1) / round(1 - level, 12)))


def paired_randomization(
    first: NDArray[Any], second: NDArray[Any], statistic: Statistic, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p of the difference between two models' mean scores, exchanging them conversation by conversation.

    Where a conversation is exchanged, it is for all seeds at once: predictions of several seeds for one conversation
    are alike and no independent evidence. Seeds are exchanged in pairs, the first of one model with the first of the
    other and so on. With different numbers of seeds, each list is gone through again until both end together, so that
    every seed is in equally many pairs. What is exchanged are then, in effect, a conversation's means over seeds.

    Args:
        first, second: (S1, B, ...) and (S2, B, ...) sums, conversations in the same order.
        statistic: From summed sums (R, ...) to R numbers.
        permutations: Number R of random exchanges. If all 2^B (B counts conversations in which the models differ) are
            no more than R, each is taken once.
        seed: The same seed gives the same p.

    Returns:
        (1 + number of exchanges with a difference at least as large as the one found) / (1 + R) (Phipson and Smyth,
        2010); with all exchanges their share, the one that exchanges nothing among them. 1 where the models agree.

    Raises:
        ValueError: different conversations, no count at all, or a score that is not defined.
    """
    test = RandomizationTest(first, second, statistic, seed)
    test.extend(permutations)
    return test.p


class RandomizationTest:
    """The test of :func:`paired_randomization`, to which exchanges can be added; arguments and errors as there."""

    def __init__(self, first: NDArray[Any], second: NDArray[Any], statistic: Statistic, seed: int = 0) -> None:
        first, second = counted_conversations(first, second)
        scores = [np.asarray(statistic(group.sum(axis=1)), dtype=np.float64) for group in (first, second)]
        self.difference = float(scores[0].mean() - scores[1].mean())
        if math.isnan(self.difference):
            raise ValueError("the score is not defined for a seed of the two models: its slice of the split is empty")
        self._statistic, self._shape = statistic, first.shape[2:]
        pairs = math.lcm(len(first), len(second))
        one, other = (
            group[np.arange(pairs) % len(group)].reshape(pairs, first.shape[1], -1) for group in (first, second)
        )
        self._middle, half = (one + other).sum(axis=1) / 2, (one - other) / 2
        half = half[:, half.any(axis=(0, 2))]  # (P, B, F) of the conversations in which exchanging changes anything
        self._flat = np.moveaxis(half, 1, 0).reshape(half.shape[1], self._middle.size)
        if _exact_in_single(self._flat):
            self._flat = self._flat.astype(np.float32)
        self._limit = abs(self.difference) - _ROUNDING * max(np.abs(part).max() for part in scores)
        self._rng = np.random.default_rng(seed)
        self.count = self.exchanges = 0
        self.exact = not len(self._flat)
        """Whether all exchanges that there are were made: then p has no Monte Carlo error."""

    def extend(self, exchanges: int) -> None:
        """Go on until so many exchanges were made, or all that there are, if these are no more."""
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
        """Count the large differences for (part of R, B) of 0 (left as it is) and 1 (exchanged)."""
        pairs, size = len(self._middle), len(exchanged)
        moved = ((1 - 2 * exchanged.astype(self._flat.dtype)) @ self._flat).reshape(size, *self._middle.shape)
        sides = [
            np.asarray(self._statistic(side.reshape(-1, *self._shape)), dtype=np.float64)
            .reshape(size, pairs)
            .mean(axis=1)
            for side in (self._middle + moved, self._middle - moved)
        ]
        # Where the score is not defined it could be anything: counted as large.
        self.count += int((~(np.abs(sides[0] - sides[1]) < self._limit)).sum())

    @property
    def p(self) -> float:
        """The p of the exchanges made so far."""
        if not len(self._flat):
            return 1.0
        return self.count / self.exchanges if self.exact else (1 + self.count) / (1 + self.exchanges)

    @property
    def error(self) -> float:
        """Monte Carlo standard error of p."""
        return 0.0 if self.exact else math.sqrt(self.p * (1 - self.p) / self.exchanges)

    @property
    def bounds(self) -> tuple[float, float]:
        """Interval of the p that all exchanges would give (Clopper and Pearson, 1934)."""
        if self.exact:
            return self.p, self.p
        low = stats.beta.ppf(_DOUBT / 2, self.count, self.exchanges - self.count + 1) if self.count else 0.0
        rest = self.exchanges - self.count
        high = stats.beta.ppf(1 - _DOUBT / 2, self.count + 1, rest) if rest else 1.0
        return float(low), float(high)


def _exact_in_single(half: Floats) -> bool:
    """Whether float32 adds these numbers, with any signs, without rounding: halves of counts, in half of the time."""
    twice = 2 * half
    return bool((twice == np.rint(twice)).all() and np.abs(twice).sum(axis=0).max(initial=0) < 2**24)


def holm(p_values: Sequence[float] | NDArray[Any]) -> Floats:
    """p adjusted for the number of tests (Holm, 1979), in the given order.

    The smallest of M is multiplied by M, the next by M - 1 and so on; none is smaller than the one before it, none
    above 1. Calling all differences real whose adjusted p is below 0.05 calls one or more wrongly in at most 5 % of
    such families of tests, however the tests depend on each other.

    Raises:
        ValueError: a p that is not between 0 and 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values lie between 0 and 1, found {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _holm_errors(p: Floats, errors: Floats) -> Floats:
    """Standard errors of adjusted p, each from the p that decides it; 0 for those that are cut to 1."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    scaled = p[order] * factors
    deciding = [int(np.argmax(scaled[: place + 1])) for place in range(len(p))]
    found = np.empty_like(p)
    found[order] = np.where(scaled[deciding] < 1, errors[order][deciding] * factors[deciding], 0.0)
    return found


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Args:
        names: The two.
        difference: Mean score of the first over its seeds, less that of the second.
        low, high: Interval of the difference, for other seeds and other conversations; NaN if there is none.
        p: Of :func:`paired_randomization`, for other conversations.
        p_holm: The same, adjusted for all comparisons made with it.
        shown: Whether ``p_holm`` is below 1 - level (0.05) and 0 outside the interval: neither the choice of
            conversations nor that of seeds explains the difference. Never without an interval.
        exchanges: Number of exchanges that ``p`` is from.
        p_error, p_holm_error: Monte Carlo standard errors; 0 if all exchanges that there are were made.
        certain: Whether other random draws of exchanges and resamples would give the same ``shown``.
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
    """Compare models in pairs, with p adjusted for their number.

    A pair gets twice as many exchanges as before until its verdict is clear of Monte Carlo error, whatever the p of
    the other pairs within their errors; so does the whole family. An interval that ends close to 0 is computed from
    more resamples.

    Args:
        sums_by_name: For each model (S, B, ...) sums, conversations in the same order for all; S may differ.
        statistic: From summed sums (R, ...) to R numbers.
        pairs: Names of those to compare, in the order of the result; None for all pairs in the order of the mapping.
            Fewer comparisons are adjusted less: choose them before looking at scores.
        resamples, permutations, level, seed: As for :func:`difference_interval` and :func:`paired_randomization`; at
            least so many are made.
        most_permutations: Most exchanges for one pair; :func:`most_exchanges` of the family if None.
        bounds: As for :func:`difference_interval`.

    Raises:
        ValueError: a pair names an unknown model, or as these two functions.
    """
    chosen = list(itertools.combinations(sums_by_name, 2)) if pairs is None else [(one, two) for one, two in pairs]
    if unknown := [name for pair in chosen for name in pair if name not in sums_by_name]:
        raise ValueError(f"no sums of {unknown[0]!r}; there are {', '.join(sums_by_name)}")
    tests = [RandomizationTest(sums_by_name[one], sums_by_name[two], statistic, seed) for one, two in chosen]
    limit = round(1 - level, 12)  # 1 - 0.95 is a little more than 0.05
    most = max(permutations, most_exchanges(len(tests), level) if most_permutations is None else most_permutations)
    open_tests, total = tests, permutations
    while True:
        for test in open_tests:
            test.extend(total)
        # Holm's adjusted p rise with every p of the family, so the ends of all intervals bound them.
        possible, sure = (holm([test.bounds[end] for test in tests]) < limit for end in (0, 1))
        open_tests = [test for test, maybe, surely in zip(tests, possible, sure, strict=True) if maybe != surely]
        if not open_tests or total >= most:
            break
        total = min(2 * total, most)
    p, errors = (np.array([getattr(test, name) for test in tests], dtype=np.float64) for name in ("p", "error"))
    adjusted, adjusted_errors = holm(p), _holm_errors(p, errors)
    intervals = DifferenceIntervals(sums_by_name, statistic, level, seed, bounds)
    found = []
    for place, (names, test) in enumerate(zip(chosen, tests, strict=True)):
        interval = intervals(*names, resamples)
        if possible[place] and _ends_at_zero(interval):
            interval = intervals(*names, _MORE_RESAMPLES * resamples)
        outside = interval.low > 0 or interval.high < 0  # False if there is no interval: p alone shows nothing
        end_is_certain = not _ends_at_zero(interval)
        # If one of the two conditions fails for certain, the other one does not matter.
        fails = not possible[place] or (end_is_certain and not outside)
        certain = fails or (sure[place] and end_is_certain)
        found.append(
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
    return found


def _ends_at_zero(interval: Interval) -> bool:
    """Whether other resamples might move an end across 0."""
    ends = ((interval.low, interval.low_error), (interval.high, interval.high_error))
    return any(abs(end) < _CLOSE * error for end, error in ends)
