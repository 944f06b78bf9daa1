from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import ClassCounts, macro_f1
from ercfusion.metrics.registry import metric_names, scores
from ercfusion.metrics.resamples import weights_of_resamples
from ercfusion.metrics.statistics import (
    DifferenceIntervals,
    _seed_variance,
    conversation_bootstrap,
    counted_conversations,
    difference_interval,
    interval_for,
    seed_summary,
    two_level_bootstrap,
)
from ercfusion.metrics.sums import SUMS

EMOTION = TaskSpec("emotion", "single_label", get_schema("iemocap6"))


def make(task: TaskSpec, conversations: int = 20, seed: int = 0, length: int = 10) -> Predictions:
    rng = np.random.default_rng(seed)
    count, size = conversations * length, task.size
    output = rng.dirichlet(np.ones(size), count)
    value: Any = (rng.random((count, size)) < 0.4).astype(np.float32)
    if task.kind == "single_label":
        value = np.where(rng.random(count) < 0.5, output.argmax(1), rng.integers(0, size, count))
    elif task.kind == "distribution":
        value = rng.dirichlet(np.ones(size), count).astype(np.float32)
    elif task.kind == "regression":
        value, output = output, output + rng.normal(size=output.shape)
    return Predictions(
        task=task,
        output=output,
        value=value,
        valid=rng.random(count) < 0.9,
        lengths=(length,) * conversations,
        speaker=rng.integers(0, 2, count),
        conversation_ids=tuple(map(str, range(conversations))),
        turn_ids=tuple(map(str, range(count))),
        spread=rng.uniform(0.5, 1.5, output.shape) if task.kind == "regression" else None,
    )


def macro(matrices: np.ndarray) -> Any:
    return macro_f1(ClassCounts(matrices))


def percentiles_by_hand(values: list[float], point: float, conversations: int) -> tuple[float, float, float]:
    """Lower end, centre and upper end of the bias-corrected expanded percentile interval of 95 %."""
    normal = NormalDist()
    share = (sum(value < point for value in values) + sum(value == point for value in values) / 2) / len(values)
    bias = max(-0.5, min(0.5, normal.inv_cdf(min(max(share, 1e-9), 1 - 1e-9))))
    reach = stats.t(conversations - 1).isf(0.025) * (conversations / (conversations - 1)) ** 0.5
    low, centre, high = (np.percentile(values, 100 * normal.cdf(2 * bias + z)) for z in (-reach, 0, reach))
    return float(low), float(centre), float(high)


@pytest.mark.parametrize("conversations", [20, 60])
def test_bootstrap_agrees_with_resampled_indices(conversations: int) -> None:
    matrices = SUMS["confusion"].of(make(EMOTION, conversations))
    low, high = conversation_bootstrap(matrices, macro, resamples=8000, seed=1)
    rng = np.random.default_rng(5)
    drawn = [macro(matrices[rng.integers(0, conversations, conversations)].sum(axis=0)) for _ in range(4000)]
    point = macro(matrices.sum(axis=0))
    expected = percentiles_by_hand(drawn, point, conversations)
    assert (low, high) == pytest.approx((expected[0], expected[2]), abs=0.004)
    assert low < point < high


def test_bias_is_corrected_up_to_a_limit() -> None:
    # The score of a resample is the number of different conversations in it: always below that of the sample.
    sums = np.eye(40)
    low, high = conversation_bootstrap(sums, lambda total: (total > 0).sum(axis=1), resamples=20000)
    drawn = [len(set(row)) for row in np.random.default_rng(0).integers(0, 40, (20000, 40)).tolist()]
    expected = percentiles_by_hand(drawn, 40, 40)
    assert (low, high) == pytest.approx((expected[0], expected[2]), abs=1)
    assert low > np.percentile(drawn, 2.5)
    assert low < np.median(drawn) < high


def test_bootstrap_agrees_with_scipy_for_a_mean() -> None:
    right = np.random.default_rng(0).integers(0, 10, 40)
    counts = np.stack([right, np.full(40, 10)], axis=1)
    found = conversation_bootstrap(counts, lambda total: total[:, 0] / total[:, 1], resamples=5000)
    expected = stats.bootstrap((right / 10,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


def test_dependence_within_conversations_widens_the_interval() -> None:
    # Ten equal utterances a conversation are worth one: utterances as units would give an interval sqrt(10) narrower.
    right = np.random.default_rng(0).random(50) < 0.5
    whole = np.stack([10 * right, 10 * ~right], axis=1)
    single = np.repeat(whole / 10, 10, axis=0)

    def share_right(total: np.ndarray) -> Any:
        return total[:, 0] / total.sum(axis=1)

    wide = np.diff(conversation_bootstrap(whole, share_right))[0]
    narrow = np.diff(conversation_bootstrap(single, share_right))[0]
    assert wide / narrow == pytest.approx(np.sqrt(10), rel=0.15)


def test_bootstrap_edges() -> None:
    matrices = SUMS["confusion"].of(make(EMOTION))
    assert conversation_bootstrap(matrices, macro, seed=3) == conversation_bootstrap(matrices, macro, seed=3)
    assert conversation_bootstrap(matrices, macro, seed=3) != conversation_bootstrap(matrices, macro, seed=4)
    empty = np.zeros_like(matrices)
    assert conversation_bootstrap(np.concatenate([empty, matrices]), macro) == conversation_bootstrap(matrices, macro)
    low, high = conversation_bootstrap(matrices, macro)
    inner = conversation_bootstrap(matrices, macro, level=0.5)
    assert low < inner[0] < inner[1] < high
    with pytest.raises(ValueError, match="nothing to resample"):
        conversation_bootstrap(empty, macro)
    with pytest.raises(ValueError, match="level"):
        conversation_bootstrap(matrices, macro, level=95)
    with pytest.raises(ValueError, match="none of the resamples"):
        conversation_bootstrap(matrices, lambda sums: np.full(len(sums), np.nan))


def test_parts_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = SUMS["confusion"].of(make(EMOTION))
    whole = conversation_bootstrap(matrices, macro, resamples=100)
    monkeypatch.setattr("ercfusion.metrics.resamples._CHUNK", 300)
    assert conversation_bootstrap(matrices, macro, resamples=100) == whole


@pytest.mark.parametrize(
    "task",
    [
        EMOTION,
        TaskSpec("emotion", "distribution", get_schema("iemocap6")),
        TaskSpec("emotions", "multi_label", LabelSchema("three", ("a", "b", "c"))),
        TaskSpec("vad", "regression", dimensions=("valence", "arousal"), low=-3, high=3),
    ],
    ids=lambda task: task.kind,
)
def test_every_metric_has_an_interval(task: TaskSpec) -> None:
    predictions = make(task, conversations=12)
    point = scores(predictions)
    for metric in metric_names(task):
        low, high = interval_for(predictions, metric, resamples=40)
        assert low <= high
        if not metric.startswith("ece"):  # biased upwards in small samples, and more so in resamples
            assert low - 0.05 <= point[metric] <= high + 0.05


VALUES = TaskSpec("vad", "regression", dimensions=("valence", "arousal"), low=-3, high=3)


@pytest.mark.parametrize(
    ("task", "metric"), [(EMOTION, "weighted_f1"), (EMOTION, "shift_accuracy"), (VALUES, "ccc/arousal")]
)
def test_both_ways_agree(task: TaskSpec, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = make(task, conversations=30)
    fast = interval_for(predictions, metric)
    monkeypatch.setattr("ercfusion.metrics.statistics.score_source", lambda task, metric: None)
    slow = interval_for(predictions, metric, resamples=600)
    assert fast == pytest.approx(slow, abs=0.12 * (slow[1] - slow[0]))


def test_interval_errors() -> None:
    with pytest.raises(ConfigError, match="macro_f1"):
        interval_for(make(EMOTION), "macrof1")
    alone = make(EMOTION, conversations=3, length=1, seed=2)
    with pytest.raises(ValueError, match="empty"):
        interval_for(alone, "shift_accuracy")


@pytest.mark.parametrize("metric", ["macro_f1", "ece"])
def test_the_seed_decides_the_draws(metric: str) -> None:
    """For scores that come from sums, and for those that are computed again for every resample."""
    predictions = make(EMOTION, 12)
    found = [interval_for(predictions, metric, 60, seed=seed) for seed in (3, 3, 4, 5)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_seed_decides_the_deviates_of_other_seeds() -> None:
    """Conversations that are all alike: resampling them changes nothing, so only the deviates are left."""
    sums = np.stack([np.full((30, 2), (score, 1.0)) for score in (0.1, 0.5, 0.4, 0.3, 0.2)])
    pair = sums, sums[:, ::-1] + np.array([0.2, 0.0])

    def mean(values: np.ndarray) -> Any:
        return values[..., 0] / values[..., 1]

    for interval in (lambda seed: two_level_bootstrap(sums, mean, 200, seed=seed),
                     lambda seed: difference_interval(*pair, mean, 200, seed=seed)):  # fmt: skip
        # Rounded: sums in another order differ in their last digits.
        found = [tuple(np.round(interval(seed), 9)) for seed in (0, 0, 1, 2)]
        assert found[0] == found[1]
        assert len(set(found)) == 3


def test_error_of_the_ends() -> None:
    """That of an interval's ends over other seeds of the resampling, and half as large with four times as many."""
    sums = {"a": matrices_of(3, 40, 1), "b": matrices_of(3, 40, 2)}
    errors = {}
    for resamples in (400, 1600):
        found = [DifferenceIntervals(sums, macro, seed=seed)("a", "b", resamples) for seed in range(60)]
        for end in ("low", "high"):
            spread = np.std([getattr(entry, end) for entry in found], ddof=1)
            errors[resamples, end] = np.mean([getattr(entry, f"{end}_error") for entry in found])
            assert errors[resamples, end] == pytest.approx(spread, rel=0.35)
    for end in ("low", "high"):
        assert errors[400, end] / errors[1600, end] == pytest.approx(2, rel=0.25)
    few = DifferenceIntervals(sums, macro)("a", "b", 100)
    assert np.isnan([few.low_error, few.high_error]).all()


def test_intervals_of_several_pairs_are_those_of_each() -> None:
    sums = {name: matrices_of(seeds, 30, seeds) for name, seeds in (("a", 3), ("b", 2), ("c", 1))}
    sums["c"][:, :5] = 0  # counted in a and b only
    intervals = DifferenceIntervals(sums, macro)
    for first, second in (("a", "b"), ("a", "c"), ("c", "b")):
        found = intervals(first, second, 300)
        assert (found.low, found.high) == difference_interval(sums[first], sums[second], macro, 300)


def matrices_of(seeds: int, conversations: int, seed: int) -> np.ndarray:
    """(S, B, 3, 3) confusion matrices with equal truths in every call."""
    truth = np.random.default_rng(9).integers(1, 5, (conversations, 3))
    rng = np.random.default_rng(seed)
    share = (np.ones((3, 3)) + np.eye(3)) / 4
    return np.array([[[rng.multinomial(n, p) for n, p in zip(row, share)] for row in truth] for _ in range(seeds)])


def test_seed_summary() -> None:
    values = [0.61, 0.64, 0.6, 0.66, 0.63]
    found = seed_summary(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert (found["min"], found["max"], found["n"]) == (0.6, 0.66, 5)
    # The oracle by hand: the 97.5 % point of Student's t with 4 degrees of freedom is 2.7764.
    half = 2.7764451 * found["std"] / np.sqrt(5)
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half))
    one = seed_summary([0.5])
    assert one["mean"] == one["min"] == one["max"] == 0.5
    assert np.isnan([one["std"], one["low"], one["high"]]).all()
    equal = seed_summary([0.5, 0.5])
    assert equal["std"] == 0
    assert np.isnan([equal["low"], equal["high"]]).all()
    with pytest.raises(ValueError, match="at least one"):
        seed_summary([])


# Seeds and conversations


def share(total: np.ndarray) -> Any:
    return total[..., 0] / total[..., 1]


def drawn(
    seeds: int, conversations: int, seed: int = 0, own: float = 0.0, both: float = 0.1, noise: float = 0.0
) -> np.ndarray:
    """(S, B, 2) sums whose score is a mean: effects of the seed, of the conversation, and of the two together."""
    rng = np.random.default_rng(seed)
    values = 0.5 + own * rng.normal(size=(seeds, 1)) + both * rng.normal(size=conversations)
    values = values + noise * rng.normal(size=(seeds, conversations))
    return np.stack([values, np.ones_like(values)], axis=2)


def two_level_by_loops(groups: list[np.ndarray], statistic: Any, resamples: int, seed: int) -> tuple[float, float]:
    """What the library does, one resample and one seed after the other, on other draws."""
    rng = np.random.default_rng(seed)
    conversations = groups[0].shape[1]
    draws = [rng.integers(0, conversations, conversations) for _ in range(resamples)]
    total, point, variances = np.zeros(resamples), 0.0, []
    for sign, group in zip((1, -1), groups, strict=False):
        S = len(group)
        deviates = rng.normal(size=resamples)
        values = np.array([[statistic(one[draw].sum(axis=0)) for one in group] for draw in draws])
        total += sign * values.mean(axis=1)
        points = np.array([statistic(one.sum(axis=0)) for one in group])
        # Variance of one seed's score: all of it, and the part that comes from the choice of conversations.
        whole = points.var(ddof=1)
        part = np.mean([(values[:, s] - values.mean(axis=1)).var() for s in range(S)]) * S / (S - 1)
        own = max(0, whole - part) / S
        total += own**0.5 * deviates
        point += sign * points.mean()
        variances.append(own**2 / (S - 1))
    low, centre, high = percentiles_by_hand(total.tolist(), point, conversations)
    freedom = total.var() ** 2 / sum(variances) if sum(variances) else 1e9
    factor = stats.t.ppf(0.975, freedom) / 1.959964
    return centre + factor * (low - centre), centre + factor * (high - centre)


def seeds_of_models(seeds: int, first: int) -> np.ndarray:
    return np.stack([SUMS["confusion"].of(make(EMOTION, 25, first + number)) for number in range(seeds)])


@pytest.mark.parametrize("own", [0.0, 0.03, 0.2])
def test_two_levels_against_loops(own: float) -> None:
    sums, other = drawn(6, 30, 1, own, noise=0.1), drawn(5, 30, 2, own, noise=0.2)
    for groups, found in (
        ([sums], two_level_bootstrap(sums, share, 6000)),
        ([sums, other], difference_interval(sums, other, share, 6000)),
    ):
        expected = two_level_by_loops(groups, share, 3000, 3)
        assert found == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_two_levels_of_confusion_matrices_against_loops() -> None:
    sums, other = seeds_of_models(6, 0), seeds_of_models(5, 10)
    for groups, found in (
        ([sums], two_level_bootstrap(sums, macro)),
        ([sums, other], difference_interval(sums, other, macro)),
    ):
        expected = two_level_by_loops(groups, macro, 600, 3)
        assert found == pytest.approx(expected, abs=0.12 * (expected[1] - expected[0]))


def test_width_is_that_of_the_variance_components() -> None:
    # Var(mean) = own^2 / S + both^2 / B + noise^2 / (S B).
    widths = [np.diff(two_level_bootstrap(drawn(40, 60, seed, 0.1, 0.2, 0.5), share))[0] for seed in range(20)]
    expected = 2 * 1.96 * np.sqrt(0.1**2 / 40 + 0.2**2 / 60 + 0.5**2 / 2400)
    assert np.mean(widths) == pytest.approx(expected, rel=0.06)
    # A difference: what makes a conversation hard for both models cancels.
    widths = []
    for seed in range(20):
        one, other = (drawn(40, 60, number, 0.05, 0, 0.5) for number in (seed, seed + 500))
        hard = np.random.default_rng(seed).normal(size=60)
        one[:, :, 0] += hard
        other[:, :, 0] += hard
        widths.append(np.diff(difference_interval(one, other, share))[0])
    expected = 2 * 1.96 * np.sqrt(2 * 0.05**2 / 40 + 2 * 0.5**2 / 2400)
    assert np.mean(widths) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("scores", [[0.4, 0.45, 0.6, 0.5], [0.4, 0.45], [0.4, 0.45, 0.6, 0.5, 0.48, 0.5]])
def test_few_seeds_that_differ_make_it_wide(scores: list[float]) -> None:
    # The conversations are all alike: what is left is Student's t interval of the seeds.
    sums = np.stack([np.full((len(scores), 30), 0.0), np.full((len(scores), 30), 1.0)], axis=2)
    sums[:, :, 0] = np.array(scores)[:, None]
    found = two_level_bootstrap(sums, share, resamples=20000)
    summary = seed_summary(scores)
    assert found == pytest.approx((summary["low"], summary["high"]), rel=0.03)
    assert found[1] - found[0] > 2 * 1.96 * summary["std"] / np.sqrt(len(scores))


def half_widths_by_loops(groups: list[np.ndarray], statistic: Any, resamples: int, seed: int) -> tuple[float, float]:
    """Lower and upper end with few seeds: t of the seeds' own degrees of freedom, on draws of their own."""
    rng = np.random.default_rng(seed)
    conversations = groups[0].shape[1]
    total, point, variances, freedoms = np.zeros(resamples), 0.0, [], []
    draws = [rng.integers(0, conversations, conversations) for _ in range(resamples)]
    for sign, group in zip((1, -1), groups, strict=False):
        S = len(group)
        values = np.array([[statistic(one[draw].sum(axis=0)) for one in group] for draw in draws])
        points = np.array([statistic(one.sum(axis=0)) for one in group])
        part = np.mean([(values[:, s] - values.mean(axis=1)).var() for s in range(S)]) * S / (S - 1)
        total, point = total + sign * values.mean(axis=1), point + sign * points.mean()
        variances.append(max(0, points.var(ddof=1) - part) / S)
        freedoms.append(S - 1)
    low, centre, high = percentiles_by_hand(total.tolist(), point, conversations)
    whole = sum(variances)
    freedom = whole**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True)) if whole else 1
    added = (stats.t(freedom).isf(0.025) * whole**0.5) if whole else 0
    return centre - np.hypot(centre - low, added), centre + np.hypot(high - centre, added)


@pytest.mark.parametrize("own", [0.0, 0.03, 0.2])
def test_few_seeds_against_loops(own: float) -> None:
    sums, other = drawn(4, 30, 1, own, noise=0.1), drawn(2, 30, 3, own, noise=0.2)
    more = drawn(7, 30, 2, own, noise=0.2)
    for groups, found in (
        ([sums], two_level_bootstrap(sums, share, 6000)),
        ([sums, other], difference_interval(sums, other, share, 6000)),
        ([more, other], difference_interval(more, other, share, 6000)),
    ):
        expected = half_widths_by_loops(groups, share, 3000, 3)
        assert found == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_variance_of_seeds_by_hand() -> None:
    # Scores 0.1, 0.3, 0.8 have a variance of 0.13. In two resamples the seeds are at 0, 0.2, 0.1 and 0.1, 0.1, 0.4:
    # off their means by -0.1, 0.1, 0 and -0.1, -0.1, 0.2, which varies by 0, 0.01, 0.01, in the mean 0.02 / 3.
    values = np.array([[0.0, 0.2, 0.1], [0.1, 0.1, 0.4]])
    assert _seed_variance(np.array([0.1, 0.3, 0.8]), values) == pytest.approx((0.13 - 0.02 / 3 * 3 / 2) / 3)
    assert _seed_variance(np.array([0.5, 0.5, 0.5]), values) == 0


def test_no_interval() -> None:
    matrices = SUMS["confusion"].of(make(EMOTION))
    perfect = np.stack([np.diag(row) for row in matrices.sum(axis=2)])
    both = np.stack([matrices, matrices])
    for found in (
        conversation_bootstrap(matrices[:1], macro),
        conversation_bootstrap(np.concatenate([matrices[:1], np.zeros_like(matrices)]), macro),
        conversation_bootstrap(perfect, macro),
        two_level_bootstrap(np.stack([matrices[:1], 2 * matrices[1:2]]), macro),
        two_level_bootstrap(np.stack([perfect, perfect]), macro),
        difference_interval(both, both, macro),
        interval_for(make(EMOTION, 1), "weighted_f1"),
        interval_for(make(EMOTION, 1), "ece", 20),
    ):
        assert np.isnan(found).all()
    # Seeds that differ on conversations that are all alike have one.
    alike = np.tile(matrices[:1], (20, 1, 1))
    low, high = two_level_bootstrap(np.stack([alike, np.tile(matrices[1:2], (20, 1, 1))]), macro)
    assert low < high


@pytest.mark.parametrize("conversations", [2, 3, 5, 12, 19])
def test_few_conversations_have_the_interval_of_student(conversations: int) -> None:
    # The score is a mean of independent numbers: the interval is that of the textbook.
    sums = drawn(1, conversations, conversations)
    found = conversation_bootstrap(sums[0], share, resamples=40000)
    values = sums[0, :, 0]
    expected = stats.t.interval(0.95, conversations - 1, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx(expected, abs=0.02 * (expected[1] - expected[0]))
    low, high = conversation_bootstrap(sums[0], share, resamples=4000, bounds=(0.45, 0.52))
    assert (max(expected[0], 0.45), min(expected[1], 0.52)) == pytest.approx((low, high), abs=0.01)


def test_few_conversations_are_corrected_for_bias() -> None:
    # The bootstrap's estimate of the bias, at most half a standard deviation of the resamples.
    sums = SUMS["confusion"].of(make(EMOTION, 8))
    rng = np.random.default_rng(5)
    values = np.array([macro(sums[rng.integers(0, 8, 8)].sum(axis=0)) for _ in range(6000)])
    point = macro(sums.sum(axis=0))
    centre = point + np.clip(point - values.mean(), -values.std() / 2, values.std() / 2)
    half = stats.t(7).isf(0.025) * values.std() * (8 / 7) ** 0.5
    assert conversation_bootstrap(sums, macro, 8000) == pytest.approx((centre - half, centre + half), abs=0.01)
    assert centre > point + 0.01


def test_ends_are_scores() -> None:
    rng = np.random.default_rng(0)
    for seeds, conversations in ((5, 40), (2, 40), (5, 8), (1, 3)):
        right = 20 - rng.integers(0, 2, (seeds, conversations)) * rng.integers(0, 20, (seeds, 1))
        sums = np.stack([right, np.full_like(right, 20)], axis=2)
        low, high = two_level_bootstrap(sums, share, bounds=(0, 1))
        assert 0 <= low < high <= 1
        free = two_level_bootstrap(sums, share)
        assert (low, high) == (max(free[0], 0), min(free[1], 1))
        other = np.stack([rng.integers(0, 2, right.shape), np.full_like(right, 20)], axis=2)
        low, high = difference_interval(sums, other, share, bounds=(0, 1))
        assert -1 <= low < high <= 1
        mirrored = difference_interval(other, sums, share, bounds=(0, 1))
        assert mirrored == pytest.approx((-high, -low), abs=0.05)
        assert mirrored[0] < -0.5


def test_two_level_edges() -> None:
    sums, other = seeds_of_models(3, 0), seeds_of_models(2, 10)
    assert two_level_bootstrap(sums[:1], macro) == conversation_bootstrap(sums[0], macro)
    assert two_level_bootstrap(sums, macro, seed=3) == two_level_bootstrap(sums, macro, seed=3)
    assert two_level_bootstrap(sums, macro, seed=3) != two_level_bootstrap(sums, macro, seed=4)
    sums, other = seeds_of_models(6, 0), seeds_of_models(5, 10)
    same = np.stack([sums[0]] * 3)
    assert two_level_bootstrap(same, macro) == pytest.approx(conversation_bootstrap(sums[0], macro), abs=1e-12)
    low, high = difference_interval(sums, other, macro)
    assert difference_interval(other, sums, macro) == pytest.approx((-high, -low), abs=0.008)
    empty = np.concatenate([np.zeros_like(sums), sums], axis=1)
    assert two_level_bootstrap(empty, macro) == two_level_bootstrap(sums, macro)
    inner = two_level_bootstrap(sums, macro, level=0.5)
    outer = two_level_bootstrap(sums, macro)
    assert outer[0] < inner[0] < inner[1] < outer[1]
    with pytest.raises(ValueError, match="at least one seed"):
        two_level_bootstrap(sums[:0], macro)
    with pytest.raises(ValueError, match="same conversations"):
        difference_interval(sums, other[:, 1:], macro)
    with pytest.raises(ValueError, match="nothing to resample"):
        two_level_bootstrap(np.zeros_like(sums), macro)
    with pytest.raises(ValueError, match="none of the resamples"):
        two_level_bootstrap(sums, lambda total: np.full(len(total), np.nan))


def test_a_conversation_counts_if_any_seed_of_any_model_counts_in_it() -> None:
    # Multi-label: nothing is true in a conversation, and one model says nothing either.
    first, second = np.zeros((2, 4, 3, 3)), np.zeros((3, 4, 3, 3))
    first[:, 0] = second[:, 0] = 1
    first[1, 1, 0, 1] = 2
    second[0, 2, 1, 1] = 3
    found = counted_conversations(first, second)
    assert [group.shape for group in found] == [(2, 3, 3, 3), (3, 3, 3, 3)]
    assert np.array_equal(found[0], first[:, :3])
    assert np.array_equal(found[1], second[:, :3])


def test_parts_do_not_change_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, other = seeds_of_models(3, 0), seeds_of_models(2, 10)
    whole = difference_interval(sums, other, macro, resamples=100)
    monkeypatch.setattr("ercfusion.metrics.resamples._CHUNK", 1000)
    assert difference_interval(sums, other, macro, resamples=100) == pytest.approx(whole, abs=1e-12)


def test_draws_that_are_kept_are_those_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts are, and after whatever was drawn before."""
    for batch in (300, 7):
        kept = list(weights_of_resamples(batch, 50, 2**17, 3))
        assert len(kept) == 2
        assert kept[0].dtype == np.float64
        assert np.array_equal(np.concatenate(kept), np.concatenate(list(weights_of_resamples(batch, 50, batch, 3))))
        assert not np.array_equal(kept[0], next(weights_of_resamples(batch, 50, 2**17, 4)))
        with monkeypatch.context() as patch:
            patch.setattr("ercfusion.metrics.resamples._KEPT", 0)
            assert np.array_equal(np.concatenate(kept), np.concatenate(list(weights_of_resamples(batch, 50, 2**17, 3))))
