"""Raters: weights by correlation, means, agreement, and refused ratings."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from ercfusion._core.errors import CorpusFormatError
from ercfusion.data.raters import (
    check_ratings,
    combine,
    evaluator_weighted_estimate,
    evaluator_weights,
    mean_rating,
    rater_agreement,
)

MISSING = math.nan


def _ratings(items: int = 40, raters: int = 4, seed: int = 0, missing: float = 0.2) -> np.ndarray:
    generator = np.random.default_rng(seed)
    truth = generator.uniform(1, 5, size=(items, 1))
    values = truth + generator.normal(size=(items, raters)) * np.linspace(0.3, 1.5, raters)
    values[generator.random(values.shape) < missing] = MISSING
    return values


def _literal(ratings: np.ndarray, reference: str) -> tuple[list[float], list[float]]:
    """The definition, one number at a time."""
    weights = []
    for rater in range(ratings.shape[1]):
        own, means = [], []
        for row in ratings:
            used = [
                value
                for other, value in enumerate(row)
                if not math.isnan(value) and (reference == "all" or other != rater)
            ]
            if used and not math.isnan(row[rater]):
                own.append(row[rater])
                means.append(sum(used) / len(used))
        weights.append(max(0.0, statistics.correlation(own, means)))
    estimates = []
    for row in ratings:
        pairs = [(weight, value) for weight, value in zip(weights, row, strict=True) if not math.isnan(value)]
        total = sum(weight for weight, _ in pairs)
        estimates.append(sum(weight * value for weight, value in pairs) / total if total else math.nan)
    return weights, estimates


@pytest.mark.parametrize("reference", ["all", "others"])
def test_the_estimator_equals_its_definition(reference: str) -> None:
    ratings = _ratings()
    weights, estimates = _literal(ratings, reference)
    np.testing.assert_allclose(evaluator_weights(ratings, reference=reference), weights, rtol=1e-12)
    np.testing.assert_allclose(combine(ratings, "ewe", reference=reference), estimates, rtol=1e-12)
    assert weights[0] > weights[-1], "the noisiest rater counts least"


def test_negative_weights_are_dropped() -> None:
    ratings = _ratings(missing=0.0)
    against = np.column_stack([ratings, 6 - ratings[:, 0]])
    weights = evaluator_weights(against)
    assert weights[-1] == 0
    np.testing.assert_allclose(
        evaluator_weighted_estimate(against), evaluator_weighted_estimate(ratings, weights[:-1]), rtol=1e-12
    )
    # An item that only the dropped rater rated has no number.
    against[0, :-1] = MISSING
    assert math.isnan(evaluator_weighted_estimate(against, weights)[0])


def test_each_dimension_has_its_own_weights() -> None:
    both = np.stack([_ratings(seed=1), _ratings(seed=2)], axis=2)
    assert evaluator_weights(both).shape == (4, 2)
    for k in range(2):
        np.testing.assert_array_equal(evaluator_weighted_estimate(both)[:, k], combine(both[:, :, k], "ewe"))
        np.testing.assert_array_equal(mean_rating(both)[:, k], combine(both[:, :, k], "mean"))


def test_the_mean_ignores_missing_ratings() -> None:
    ratings = [[1, 2, MISSING], [MISSING, MISSING, 4], [MISSING] * 3]
    np.testing.assert_array_equal(mean_rating(ratings), [1.5, 4, MISSING])


def test_agreement_is_the_concordance_with_the_others() -> None:
    ratings = _ratings()
    for rater, value in enumerate(rater_agreement(ratings)):
        others = mean_rating(np.delete(ratings, rater, axis=1))
        both = ~np.isnan(ratings[:, rater]) & ~np.isnan(others)
        x, y = ratings[both, rater], others[both]
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        assert value == pytest.approx(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2), abs=1e-12)
    same = np.repeat(ratings[:, :1], 3, axis=1)
    np.testing.assert_allclose(rater_agreement(same), 1)
    lonely = np.array([[1.0, MISSING], [2.0, 3.0], [MISSING, 4.0]])
    assert np.isnan(rater_agreement(lonely)).all()


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([[1, 3], [2, 3], [4, 3]], "rater 'b': 3 ratings, but the ratings are equal"),
        ([[1, 3], [2, MISSING], [4, MISSING]], "rater 'b': 1 usable ratings"),
        ([[1, 3], [2, 2], [3, 1]], "rater 'a': 3 ratings, but the means of the raters are equal"),
    ],
)
def test_raters_without_a_weight_are_refused(ratings: list[list[float]], message: str) -> None:
    with pytest.raises(CorpusFormatError, match=message):
        evaluator_weights(ratings, raters=("a", "b"))


def test_raters_who_all_contradict_each_other_are_refused() -> None:
    ratings = [[1, 2], [2, 1], [3, 0], [4, -2]]
    with pytest.raises(CorpusFormatError, match="no rater of valence correlates"):
        evaluator_weights(np.array(ratings)[:, :, None], reference="others", dimensions=("valence",))


def test_a_rating_outside_its_range_is_refused_with_its_place() -> None:
    check_ratings([[1, 5], [MISSING, 3]], 1, 5, lambda item, rater: "")
    with pytest.raises(CorpusFormatError, match=r"^a\.csv, line 3, rater 1: the rating 6 is not between 1 and 5"):
        check_ratings([[1, 5], [MISSING, 6]], 1, 5, lambda item, rater: f"a.csv, line {item + 2}, rater {rater}")
    with pytest.raises(CorpusFormatError, match="the rating inf"):
        check_ratings([[1, math.inf]], 1, 5, lambda item, rater: "a.csv")


@pytest.mark.parametrize("wrong", [[1, 2], np.zeros((2, 0)), [[1, math.inf]]])
def test_other_shapes_and_infinite_ratings_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"ratings"):
        evaluator_weighted_estimate(wrong)  # type: ignore[arg-type]


def test_unknown_rules_and_wrong_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="mean or ewe"):
        combine([[1, 2]], "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all or others"):
        evaluator_weights(_ratings(), reference="none")  # type: ignore[arg-type]
    for weights in ([1.0], [-1.0, 1.0], [MISSING, 1.0]):
        with pytest.raises(ValueError, match="expected weights"):
            evaluator_weighted_estimate([[1, 2], [2, 3]], weights)
