"""Areas under curves of scores, from sums."""

from __future__ import annotations

import numpy as np
import pytest

from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.areas import area_weights, combined
from ercfusion.metrics.comparison import compare_all
from ercfusion.metrics.registry import score_source
from ercfusion.metrics.statistics import two_level_bootstrap

TASK = TaskSpec("emotion", "single_label", get_schema("demo6"))


def test_area_is_the_trapezoid_rule_divided_by_the_width():
    points, scores = [0.0, 0.1, 0.4, 0.7], np.array([0.9, 0.8, 0.5, 0.4])
    assert area_weights(points) @ scores == pytest.approx(np.trapezoid(scores, points) / 0.7)
    assert area_weights([0.1, 0.2, 0.9]).sum() == pytest.approx(1)
    # A line: the score in the middle.
    assert area_weights([2.0, 3.0, 6.0]) @ np.array([4.0, 5.0, 8.0]) == pytest.approx(6.0)


@pytest.mark.parametrize("points", [[0.5], [], [0.2, 0.1], [0.1, 0.1]])
def test_no_area(points):
    with pytest.raises(ValueError, match="two increasing points"):
        area_weights(points)


def test_combined_scores_every_condition_from_its_own_sums():
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 5, size=(2, 30, 3, 6, 6))  # seeds, conversations, conditions
    source = score_source(TASK, "macro_f1")
    assert source is not None
    weights = area_weights([0.0, 0.1, 0.5])
    area = combined(source[1], weights)
    total = sums.sum(axis=1)
    expected = [sum(weight * source[1](one[place]) for place, weight in enumerate(weights)) for one in total]
    np.testing.assert_allclose(area(total), expected)
    low, high = two_level_bootstrap(sums, area, resamples=200)
    assert low < np.mean(expected) < high
    better = sums + 3 * np.eye(6, dtype=int)
    (pair,) = compare_all({"better": better, "plain": sums}, area, resamples=200)
    assert pair.difference == pytest.approx(area(better.sum(axis=1)).mean() - np.mean(expected))
    assert pair.shown
