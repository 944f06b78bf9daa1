"""Which of two models is better, and whether the test split can tell.

Two models are compared conversation by conversation. If there were nothing between them, it would not matter which of
them made the predictions for a conversation: :func:`paired_randomization` exchanges them at random and counts how often
a difference as large as the one found comes out. It speaks of the trained models that are there. The interval of the
difference (:func:`ercfusion.evaluation.statistics.difference_interval`) speaks also of models from other seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.evaluation.statistics import RESAMPLES, counted_conversations, difference_interval
from ercfusion.tasks.outputs import Floats
from ercfusion.tasks.sums import Statistic

PERMUTATIONS = 10000
_CHUNK = 2**20
# Sums in another order differ in their last digits: an equal difference must count as one that is as large.
_ROUNDING = 1e-10


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
    first, second = counted_conversations(first, second)
    shape = first.shape[2:]
    scores = [np.asarray(statistic(group.sum(axis=1)), dtype=np.float64) for group in (first, second)]
    found = float(scores[0].mean() - scores[1].mean())
    if math.isnan(found):
        raise ValueError("the score is not defined for a seed of the two models: its slice of the split is empty")
    pairs = math.lcm(len(first), len(second))
    one, other = (group[np.arange(pairs) % len(group)].reshape(pairs, first.shape[1], -1) for group in (first, second))
    middle, half = (one + other).sum(axis=1) / 2, (one - other) / 2
    half = half[:, half.any(axis=(0, 2))]  # (P, B, F) of the conversations in which exchanging changes anything
    if not half.shape[1]:
        return 1.0
    flat = np.moveaxis(half, 1, 0).reshape(half.shape[1], -1)
    limit = abs(found) - _ROUNDING * max(np.abs(part).max() for part in scores)
    count = total = 0
    for signs in _signs(len(flat), permutations, flat.shape[1], seed):
        moved = (signs @ flat).reshape(len(signs), *middle.shape)
        sides = [
            np.asarray(statistic(side.reshape(-1, *shape)), dtype=np.float64).reshape(len(signs), pairs).mean(axis=1)
            for side in (middle + moved, middle - moved)
        ]
        # Where the score is not defined it could be anything: counted as large.
        count += int((~(np.abs(sides[0] - sides[1]) < limit)).sum())
        total += len(signs)
    return count / total if 2 ** len(flat) <= permutations else (1 + count) / (1 + total)


def _signs(batch: int, permutations: int, width: int, seed: int) -> Iterator[Floats]:
    """(part of R, B) of +1 (left as it is) and -1 (exchanged): all there are if they are at most R, else random."""
    step = max(1, _CHUNK // max(batch, width))
    if batch < 63 and 2**batch <= permutations:
        for start in range(0, 2**batch, step):
            number = np.arange(start, min(start + step, 2**batch))
            yield 1 - 2 * (number[:, None] >> np.arange(batch) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, step):
        yield 1 - 2 * rng.integers(0, 2, size=(min(step, permutations - start), batch)).astype(np.float64)


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


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Args:
        names: The two.
        difference: Mean score of the first over its seeds, less that of the second.
        low, high: Interval of the difference, for other seeds and other conversations.
        p: Of :func:`paired_randomization`, for other conversations.
        p_holm: The same, adjusted for all comparisons made with it.
        shown: Whether ``p_holm`` is below 1 - level (0.05) and 0 outside the interval: neither the choice of
            conversations nor that of seeds explains the difference.
    """

    names: tuple[str, str]
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    shown: bool


def compare_all(
    sums_by_name: Mapping[str, NDArray[Any]],
    statistic: Statistic,
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    level: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """Compare models in pairs, with p adjusted for their number.

    Args:
        sums_by_name: For each model (S, B, ...) sums, conversations in the same order for all; S may differ.
        statistic: From summed sums (R, ...) to R numbers.
        pairs: Names of those to compare, in the order of the result; None for all pairs in the order of the mapping.
            Fewer comparisons are adjusted less: choose them before looking at scores.
        resamples, permutations, level, seed: As for :func:`difference_interval` and :func:`paired_randomization`.

    Raises:
        ValueError: a pair names an unknown model, or as these two functions.
    """
    chosen = list(itertools.combinations(sums_by_name, 2)) if pairs is None else [(one, two) for one, two in pairs]
    if unknown := [name for pair in chosen for name in pair if name not in sums_by_name]:
        raise ValueError(f"no sums of {unknown[0]!r}; there are {', '.join(sums_by_name)}")
    found = []
    for names in chosen:
        first, second = (sums_by_name[name] for name in names)
        p = paired_randomization(first, second, statistic, permutations, seed)
        low, high = difference_interval(first, second, statistic, resamples, level, seed)
        one, two = (float(np.mean(statistic(group.sum(axis=1)))) for group in (first, second))
        found.append((names, one - two, low, high, p))
    adjusted = holm([entry[-1] for entry in found])
    limit = round(1 - level, 12)  # 1 - 0.95 is a little more than 0.05
    return [
        Comparison(*entry, p_holm, bool(p_holm < limit and (entry[2] > 0 or entry[3] < 0)))
        for entry, p_holm in zip(found, adjusted.tolist(), strict=True)
    ]
