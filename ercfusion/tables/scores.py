"""A score over the seeds of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """A score over the seeds of a row.

    Args:
        mean, std: Mean and sample standard deviation (NaN for one seed).
        low, high: 95 % interval of the mean, for other seeds and conversations; None for a score without sums, NaN if
            there is no interval.
        cautions: Why the interval and tests may not be reliable.
    """

    mean: float
    std: float
    low: float | None = None
    high: float | None = None
    cautions: tuple[str, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None if there is no interval."""
        if self.low is None or self.high is None or math.isnan(self.low + self.high):
            return None
        return self.low, self.high


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation of (S) scores; NaN for one."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
