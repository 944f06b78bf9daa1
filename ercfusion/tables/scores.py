"""A score over the seeds of a row, and its cautions in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.cautions import MARK, cautions
from ercfusion.metrics.metric import Statistic
from ercfusion.metrics.registry import get_metric
from ercfusion.metrics.statistics import two_level_bootstrap


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


def score_of(
    values: NDArray[Any],
    task: TaskSpec,
    metric: str,
    source: tuple[NDArray[Any], Statistic] | None = None,
    counted: NDArray[Any] | None = None,
) -> Score:
    """A score over the seeds, with its interval and cautions.

    Args:
        values: (S).
        task, metric: What is scored.
        source: (S, B, ...) sums, and the statistic that gives the score from their sum; None without an interval.
        counted: Sums for the cautions; None for those of ``source``.
    """
    low, high = None, None
    reasons: tuple[str, ...] = ()
    if source is not None:
        low, high = two_level_bootstrap(*source, bounds=get_metric(metric).bounds)
        counted = source[0] if counted is None else counted
        reasons = cautions(task, metric, counted, missing=math.isnan(low + high))
    return Score(float(values.mean()), deviation(values), low, high, reasons)


def cautions_text(cautions_by_row: Mapping[str, Iterable[str]]) -> str:
    """Every caution once, with its rows; empty without any."""
    rows: dict[str, list[str]] = {}
    for name, reasons in cautions_by_row.items():
        for reason in dict.fromkeys(reasons):
            rows.setdefault(reason, []).append(name)
    parts = [f"{_row_names(names, cautions_by_row)}: {reason}." for reason, names in rows.items()]
    return f"{MARK} " + " ".join(parts) if parts else ""


def _row_names(names: Sequence[str], rows: Iterable[str]) -> str:
    """These of all rows, the shorter way; names may contain commas."""
    others = [name for name in rows if name not in names]
    if not others:
        return "all rows"
    return f"all rows except {others[0]}" if len(others) == 1 < len(names) else "; ".join(names)
