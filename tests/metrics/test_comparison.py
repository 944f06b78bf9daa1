from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ercfusion.metrics.classification import ClassCounts, macro_f1
from ercfusion.metrics.comparison import (
    RandomizationTest,
    _exact_in_single,
    _holm_errors,
    compare_all,
    compare_family,
    holm,
    most_exchanges,
    paired_randomization,
)
from ercfusion.metrics.statistics import DifferenceIntervals, Interval, difference_interval


def macro(matrices: np.ndarray) -> Any:
    return macro_f1(ClassCounts(matrices))


def mean(sums: np.ndarray) -> Any:
    return sums[..., 0] / sums[..., 1]


def means(values: Any) -> np.ndarray:
    """(S, B, 2) sums whose score is the mean of the given numbers (S, B)."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    return np.stack([array, np.ones_like(array)], axis=2)


def matrices(seeds: int, conversations: int, seed: int, right: int = 0) -> np.ndarray:
    """(S, B, 3, 3) confusion matrices whose truth depends on the conversation alone."""
    truth = np.random.default_rng(99).integers(0, 4, (conversations, 3))
    rng = np.random.default_rng(seed)
    share = np.ones((3, 3)) + right * np.eye(3)
    share /= share.sum(axis=1, keepdims=True)
    return np.array([[[rng.multinomial(n, p) for n, p in zip(row, share)] for row in truth] for _ in range(seeds)])


def exhaustive(first: np.ndarray, second: np.ndarray, statistic: Any) -> float:
    """All exchanges, one after the other; as many seeds on both sides."""

    def difference(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([statistic(a.sum(axis=0)) - statistic(b.sum(axis=0)) for a, b in zip(one, other)]))

    found, large, count = abs(difference(first, second)), 0, 0
    for exchanged in itertools.product([False, True], repeat=first.shape[1]):
        one, other = first.copy(), second.copy()
        for conversation in np.flatnonzero(exchanged):
            one[:, conversation], other[:, conversation] = second[:, conversation], first[:, conversation]
        large += abs(difference(one, other)) >= found - 1e-12
        count += 1
    return large / count


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_all_exchanges_against_loops(seeds: int, seed: int) -> None:
    first, second = matrices(seeds, 7, seed, right=2), matrices(seeds, 7, seed + 50)
    expected = exhaustive(first, second, macro)
    assert paired_randomization(first, second, macro) == pytest.approx(expected, abs=1e-12)
    # With fewer exchanges than there are, they are drawn: a share of 4,000 with a standard error below 0.008.
    monte_carlo = paired_randomization(np.repeat(first, 2, axis=1), np.repeat(second, 2, axis=1), macro, 4000)
    assert monte_carlo != expected
    doubled = exhaustive_share(np.repeat(first, 2, axis=1), np.repeat(second, 2, axis=1))
    assert monte_carlo == pytest.approx(doubled, abs=0.03)


def exhaustive_share(first: np.ndarray, second: np.ndarray) -> float:
    """All 2^14 exchanges through the library, whose exhaustive form the loops have confirmed."""
    return paired_randomization(first, second, macro, permutations=2**14)


@pytest.mark.parametrize("seed", range(4))
def test_a_mean_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = rng.normal(size=10)
    other = one + rng.normal(0.4, 1, size=10)
    expected = stats.permutation_test(
        (one, other), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_randomization(means(one), means(other), mean) == pytest.approx(expected.pvalue, abs=1e-12)
    # Several seeds of a mean are their mean, whatever the number of seeds on the other side.
    first = one + np.array([[0.3], [-0.3], [0.0]])
    found = paired_randomization(means(first), means(np.stack([other, other])), mean)
    assert found == pytest.approx(expected.pvalue, abs=1e-12)


def test_drawn_exchanges_against_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 60))
    expected = stats.permutation_test(
        (one, other),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20000,
        vectorized=True,
        rng=1,
    )
    assert paired_randomization(means(one), means(other), mean, 20000) == pytest.approx(expected.pvalue, abs=0.015)


def test_equal_differences_count_as_large() -> None:
    # Differences of 0.1 in all ten conversations: only the exchange of nothing and of everything is as large.
    one = np.full(10, 0.3) + np.arange(10)
    assert paired_randomization(means(one), means(one - 0.1), mean) == pytest.approx(2 / 2**10)
    # Ties by the hundred, whose sums differ by rounding: 7 - 3 = 4 is reached by |k - (10 - k)| >= 4 heads of 10.
    signs = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, -0.1, -0.1, -0.1])
    expected = sum(stats.binom.pmf(k, 10, 0.5) for k in range(11) if abs(2 * k - 10) >= 4)
    assert paired_randomization(means(one + signs), means(one), mean) == pytest.approx(expected)


def test_conversations_without_difference_change_nothing() -> None:
    first, second = matrices(2, 6, 1, right=2), matrices(2, 6, 2)
    alike = matrices(2, 40, 3)
    found = paired_randomization(np.concatenate([first, alike], axis=1), np.concatenate([second, alike], axis=1), macro)
    # 46 conversations, but 2^6 exchanges at most: all are taken, and the result is a multiple of 1 / 64.
    assert found * 64 == pytest.approx(round(found * 64))
    assert paired_randomization(alike, alike, macro) == 1
    assert paired_randomization(alike[:1], alike[[0, 0]], macro) == 1


def test_the_test_sees_a_difference_and_keeps_its_level() -> None:
    assert paired_randomization(matrices(3, 40, 1, right=3), matrices(3, 40, 2), macro, 2000) == pytest.approx(1 / 2001)
    rng = np.random.default_rng(0)
    p = [paired_randomization(*means(rng.normal(size=(2, 30)))[:, None], mean, 199, seed) for seed in range(400)]
    # 0.05 of 400 with a standard error of 0.011.
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.085
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_randomization_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = matrices(2, 40, 1), matrices(3, 40, 2)
    found = paired_randomization(first, second, macro, 500, seed=1)
    assert found == paired_randomization(first, second, macro, 500, seed=1)
    assert found != paired_randomization(first, second, macro, 500, seed=2)
    monkeypatch.setattr("ercfusion.metrics.comparison._CHUNK", 300)
    assert paired_randomization(first, second, macro, 500, seed=1) == found
    with pytest.raises(ValueError, match="same conversations"):
        paired_randomization(first, second[:, 1:], macro)
    with pytest.raises(ValueError, match="not defined"):
        paired_randomization(first, second, lambda sums: np.full(len(sums), np.nan))
    with pytest.raises(ValueError, match="nothing to resample"):
        paired_randomization(np.zeros_like(first), np.zeros_like(second), macro)


# Several comparisons


def holm_by_loops(p: list[float]) -> list[float]:
    adjusted = [0.0] * len(p)
    before = 0.0
    left = list(range(len(p)))
    while left:
        smallest = min(left, key=lambda place: p[place])
        before = adjusted[smallest] = max(before, min(1.0, len(left) * p[smallest]))
        left.remove(smallest)
    return adjusted


@pytest.mark.parametrize("seed", range(5))
def test_holm_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = (rng.random(9) ** 3).round(2).tolist()  # ties among them
    assert holm(p).tolist() == pytest.approx(holm_by_loops(p))


def test_holm_edges() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    assert holm([0.02]).tolist() == [0.02]
    assert holm([]).tolist() == []
    for bad in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, bad])


def test_compare_all() -> None:
    sums = {"good": matrices(3, 40, 1, right=6), "bad": matrices(2, 40, 2), "same": matrices(3, 40, 3)}
    found = compare_all(sums, macro, permutations=999, resamples=500)
    assert [entry.names for entry in found] == [("good", "bad"), ("good", "same"), ("bad", "same")]
    for entry in found:
        first, second = (sums[name] for name in entry.names)
        scores = [np.mean([macro(one.sum(axis=0)) for one in group]) for group in (first, second)]
        assert entry.difference == pytest.approx(scores[0] - scores[1])
        assert (entry.low, entry.high) == difference_interval(first, second, macro, 500)
        assert entry.p == paired_randomization(first, second, macro, 999)
    assert [entry.p_holm for entry in found] == holm([entry.p for entry in found]).tolist()
    assert [entry.shown for entry in found] == [True, True, False]
    chosen = compare_all(sums, macro, [("bad", "good")], permutations=999, resamples=500)
    assert [entry.names for entry in chosen] == [("bad", "good")]
    assert chosen[0].difference == -found[0].difference
    assert chosen[0].p_holm == chosen[0].p
    assert chosen[0].shown
    assert compare_all(sums, macro, []) == []
    with pytest.raises(ValueError, match="'ugly'"):
        compare_all(sums, macro, [("good", "ugly")])


def test_several_statistics_are_one_family() -> None:
    sums = {"good": matrices(3, 40, 1, right=6), "bad": matrices(2, 40, 2)}

    def right(total: np.ndarray) -> np.ndarray:
        return np.trace(total, axis1=-2, axis2=-1) / total.sum(axis=(-2, -1))

    found = compare_family({"macro": (sums, macro), "right": (sums, right)}, permutations=999, resamples=500)
    alone = {"macro": compare_all(sums, macro, permutations=999), "right": compare_all(sums, right, permutations=999)}
    assert list(found) == ["macro", "right"]
    for name, (pair,) in found.items():
        assert (pair.difference, pair.p) == (alone[name][0].difference, alone[name][0].p)
    adjusted = holm([found[name][0].p for name in found])
    assert [found[name][0].p_holm for name in found] == adjusted.tolist()
    assert adjusted[0] > found["macro"][0].p
    assert compare_family({}) == {}


def test_shown_needs_both(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = means(np.zeros(9)), means(np.ones(9))

    def outcome(p: float, low: float, high: float, error: float = 0.0) -> tuple[bool, bool]:
        module = "ercfusion.metrics.comparison"
        monkeypatch.setattr(f"{module}.RandomizationTest.p", property(lambda self: p))
        monkeypatch.setattr(
            f"{module}.DifferenceIntervals.__call__", lambda *arguments: Interval(low, high, error, error)
        )
        (found,) = compare_all({"a": first, "b": second}, mean)
        return found.shown, found.certain

    assert outcome(0.01, 0.1, 0.2) == (True, True)
    assert outcome(0.01, -0.2, -0.1) == (True, True)
    assert outcome(0.01, -0.1, 0.2) == (False, True)
    assert outcome(0.05, 0.1, 0.2) == (False, True), "1 - 0.95 is 0.050000000000000044"
    # An end within 4 standard errors of 0 is not certain, unless p decides by itself.
    assert outcome(0.01, 0.1, 0.2, 0.03) == (True, False)
    assert outcome(0.01, -0.1, 0.2, 0.03) == (False, False)
    assert outcome(0.01, 0.1, 0.2, 0.02) == (True, True)
    assert outcome(0.2, 0.1, 0.2, 0.03) == (False, True)


# Monte Carlo error


def test_a_large_family_can_be_shown() -> None:
    """With a fixed number R of exchanges no p is below 1 / (1 + R), which Holm multiplies by the number of pairs."""
    sums = {"good": matrices(3, 40, 1, right=6), "bad": matrices(3, 40, 2)}
    assert 20 / 101 > 0.05
    found = compare_all(sums, macro, [("good", "bad")] * 20, permutations=100, resamples=200)
    assert all(entry.shown and entry.certain for entry in found)
    assert {entry.exchanges for entry in found} == {found[0].exchanges}
    assert 1000 < found[0].exchanges <= most_exchanges(20)


def test_exchanges_grow_with_the_family() -> None:
    assert most_exchanges(1) == 10_000
    assert most_exchanges(91) == 910_000
    assert most_exchanges(91, level=0.99) == 4_550_000
    # The smallest level of a family is many times what so many exchanges resolve.
    for family in (1, 10, 91, 153, 5000):
        assert 0.05 / family > 20 / most_exchanges(family)


def test_exchanges_are_added_to_those_before() -> None:
    first, second = matrices(2, 40, 1), matrices(3, 40, 2)
    test = RandomizationTest(first, second, macro, seed=1)
    for total in (100, 300, 300, 200, 500):
        test.extend(total)
    assert test.exchanges == 500
    assert test.p == paired_randomization(first, second, macro, 500, seed=1)
    assert test.error == pytest.approx(np.sqrt(test.p * (1 - test.p) / 500))
    low, high = test.bounds
    expected = stats.binomtest(test.count, 500).proportion_ci(1 - 1e-4, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    # As soon as all that there are are no more than what is asked for, they are made, and p is exact.
    few = RandomizationTest(first[:, :9], second[:, :9], macro)
    few.extend(300)
    assert not few.exact
    few.extend(600)
    assert (few.exact, few.exchanges, few.error, few.bounds) == (True, 512, 0.0, (few.p, few.p))
    assert few.p == paired_randomization(first[:, :9], second[:, :9], macro, 512)


def test_bounds_at_the_ends() -> None:
    test = RandomizationTest(matrices(3, 40, 1, right=6), matrices(3, 40, 2), macro)
    test.extend(200)
    assert test.count == 0
    assert test.bounds == pytest.approx((0.0, 1 - 5e-5 ** (1 / 200)))
    alike = RandomizationTest(matrices(1, 40, 1), matrices(1, 40, 1), macro)
    alike.extend(200)
    assert (alike.p, alike.error, alike.bounds) == (1.0, 0.0, (1.0, 1.0))


def binary(wins: int, of: int) -> dict[str, np.ndarray]:
    """Two models that differ by 1 in ``of`` conversations, of which the first wins ``wins``: p is a binomial tail."""
    gain = np.where(np.arange(of) < wins, 1.0, -1.0)
    return {"a": means(gain), "b": means(np.zeros(of))}


def test_exchanges_go_on_until_the_verdict_is_clear() -> None:
    # 2 P(X >= 36 of 50) = 0.0026: with 100 exchanges anything from 0 to a few is found, and 10 pairs need p < 0.005.
    sums = binary(36, 50)
    exact = float(2 * stats.binom.sf(35, 50, 0.5))
    assert exact == pytest.approx(0.0026, abs=0.0001)
    for seed in range(2):
        found = compare_all(sums, mean, [("a", "b")] * 10, permutations=100, resamples=200, seed=seed)
        assert {entry.shown for entry in found} == {True}
        assert {entry.certain for entry in found} == {True}
        assert found[0].exchanges > 1000
        assert found[0].p == pytest.approx(exact, abs=4 * found[0].p_error + 2 / found[0].exchanges)
    # A pair that is far from the limit gets no more than it needs.
    (other,) = compare_all(binary(25, 50), mean, permutations=100, resamples=200)
    assert (other.exchanges, other.shown, other.certain) == (100, False, True)


def test_what_stays_open_is_marked() -> None:
    # 2 P(X >= 58 of 100) = 0.133: as far from 0.05 as 0.05 is from 0, but not with 40 exchanges.
    sums = binary(58, 100)
    (found,) = compare_all(sums, mean, permutations=20, resamples=200, most_permutations=40)
    assert found.exchanges == 40
    assert found.p_error > 0.02
    (certain,) = compare_all(sums, mean, permutations=20, resamples=200)
    assert certain.certain
    # Found by the very bounds: one that could be below the limit and could be above it.
    limited = RandomizationTest(sums["a"], sums["b"], mean)
    limited.extend(40)
    assert limited.bounds[0] < 0.05 < limited.bounds[1]


def test_errors_of_adjusted_p() -> None:
    # 0.011 decides for itself and, times 2, for 0.012.
    p, errors = np.array([0.012, 0.001, 0.011, 0.9]), np.array([0.1, 0.2, 0.3, 0.4])
    assert holm(p).tolist() == pytest.approx([0.033, 0.004, 0.033, 0.9])
    assert _holm_errors(p, errors).tolist() == pytest.approx([0.9, 0.8, 0.9, 0.4])
    assert _holm_errors(np.array([0.6, 0.7]), errors[:2]).tolist() == [0.0, 0.0]


def test_intervals_that_end_at_zero_take_more_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = DifferenceIntervals.__call__

    def asking(self: Any, first: str, second: str, resamples: int) -> Interval:
        asked.append(resamples)
        found = plain(self, first, second, resamples)
        return Interval(0.001, found.high, 0.01, 0.01) if resamples == 300 else found

    monkeypatch.setattr(DifferenceIntervals, "__call__", asking)
    sums = {"good": matrices(3, 40, 1, right=6), "bad": matrices(3, 40, 2), "same": matrices(3, 40, 3)}
    found = compare_all(sums, macro, permutations=999, resamples=300)
    # Only where p leaves the interval a say.
    assert asked == [300, 3000, 300, 3000, 300]
    assert (found[0].low, found[0].high) == difference_interval(sums["good"], sums["bad"], macro, 3000)


# Seeds


@pytest.mark.parametrize(("one", "other"), [(2, 4), (4, 6), (6, 4)])
def test_seeds_are_paired_up_to_their_least_common_multiple(
    one: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pairs, such as one for each combination, would weigh the seeds alike and take longer; fewer would not."""
    first, second = matrices(one, 12, 1), matrices(other, 12, 2)
    sizes = []

    def statistic(sums: np.ndarray) -> Any:
        sizes.append(len(sums))
        return macro(sums)

    test = RandomizationTest(first, second, statistic)
    assert sizes == [one, other]
    test.extend(2**12)
    pairs = math.lcm(one, other)
    assert sum(sizes[2:]) == 2 * pairs * 2**12
    # What is exchanged are the mean scores over all these pairs.
    repeated = [group[np.arange(pairs) % len(group)] for group in (first, second)]
    assert test.p == paired_randomization(*repeated, macro, 2**12)


def test_exchanges_without_a_score_count_as_large() -> None:
    def mean(total: np.ndarray) -> Any:
        value = total[..., 0] / total[..., 1]
        return np.where(total[..., 0] == 2, np.nan, value)

    first = np.tile([1.0, 1.0], (1, 3, 1))
    second = np.tile([0.0, 1.0], (1, 3, 1))
    # Of the eight exchanges two have the difference 1; the others have a sum of 2 on one side.
    assert paired_randomization(first, second, mean) == 1
    assert paired_randomization(first, second, lambda total: total[..., 0] / total[..., 1]) == 2 / 8


def test_differences_are_within_the_range_of_the_score() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (2, 2, 6)) * 20
    right[0] += 20
    sums = {name: np.stack([group, np.full_like(group, 40)], axis=2) for name, group in zip("ab", right, strict=True)}
    arguments = {"resamples": 200, "permutations": 20}
    (free,) = compare_all(sums, lambda total: total[..., 0] / total[..., 1], **arguments)
    (found,) = compare_all(sums, lambda total: total[..., 0] / total[..., 1], **arguments, bounds=(0.4, 0.8))
    assert free.high > 0.4
    assert (found.low, found.high) == (max(free.low, -0.4), 0.4)


def test_without_an_interval_nothing_is_shown() -> None:
    """Every conversation has the same difference: p is small, but nothing says how much the difference varies."""
    sums = {"right": means(np.ones((2, 12))), "wrong": means(np.zeros((2, 12)))}
    (found,) = compare_all(sums, mean, resamples=200)
    assert found.difference == 1
    assert found.p_holm == 2 / 2**12
    assert np.isnan([found.low, found.high]).all()
    assert not found.shown
    assert found.certain


def test_float32_is_taken_only_where_it_adds_without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(-400, 400, size=(40, 9)) / 2
    assert _exact_in_single(counts)
    signs = rng.choice([-1.0, 1.0], size=(200, 40))
    assert np.array_equal(signs @ counts, signs.astype(np.float32) @ counts.astype(np.float32))
    assert _exact_in_single(np.zeros((0, 9)))
    assert not _exact_in_single(counts + 0.25)
    assert not _exact_in_single(np.array([[2.0**22], [-(2.0**22)]]))  # 2 ** 23 and a half need 25 bits
    sides = matrices(3, 30, 1), matrices(3, 30, 2, right=1)
    fast = paired_randomization(*sides, macro, 300)
    monkeypatch.setattr("ercfusion.metrics.comparison._exact_in_single", lambda half: False)
    assert fast == paired_randomization(*sides, macro, 300)
