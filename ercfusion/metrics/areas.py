"""Scores combined over several conditions, such as rates of missing modalities, as functions of their sums.

The sums of a run under L conditions are stacked behind the conversations, (B, L, ...). Every interval and test of
:mod:`ercfusion.metrics.statistics` and :mod:`ercfusion.metrics.comparison` then applies to a combination: it resamples
or exchanges a conversation under all conditions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats
from ercfusion.metrics.metric import Statistic


def area_weights(points: Sequence[float]) -> Floats:
    r"""Weights (L) of the scores at increasing points, for the area under the curve divided by the width of the grid.

    Trapezoid rule: with points :math:`r_0 < \dots < r_{L-1}` and scores :math:`s_i`,

    .. math:: \frac{1}{r_{L-1} - r_0} \sum_{i=1}^{L-1} (r_i - r_{i-1}) \frac{s_{i-1} + s_i}{2}

    The weights sum to 1, so the result has the scale of the score: a constant score is its own area.

    Raises:
        ValueError: fewer than two points, or not increasing.
    """
    grid = np.asarray(points, dtype=np.float64)
    steps = np.diff(grid)
    if len(grid) < 2 or not (steps > 0).all():
        raise ValueError(f"an area needs at least two increasing points, not {list(points)}")
    weights = np.zeros(len(grid))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return np.asarray(weights / (grid[-1] - grid[0]))


def combined(statistic: Statistic, weights: Sequence[float] | Floats) -> Statistic:
    """The weighted sum of a score under L conditions, as a function of summed sums (R, L, ...).

    Args:
        statistic: From summed sums (..., *shape) to scores (...). One undefined score makes the sum undefined.
        weights: (L).
    """
    column = np.asarray(weights, dtype=np.float64)

    def of_conditions(sums: NDArray[Any]) -> Floats:
        return np.asarray(np.asarray(statistic(sums), dtype=np.float64) @ column)

    return of_conditions
