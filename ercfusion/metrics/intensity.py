"""Metrics of intensities: over all utterances (0 without the label), and for active labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.metric import AGREEMENT, ERROR, Formula, Metric, quotient
from ercfusion.metrics.regression import correlation
from ercfusion.metrics.sums import INTENSITY_SUMS

_CONSTANT = 1e-9  # a variance below this share of the mean square is rounding


def _sums(formula: Callable[[Mapping[str, Floats]], Floats]) -> Mapping[str, Formula]:
    """A formula of the sums by name, each (..., C)."""

    def of(sums: NDArray[Any], task: TaskSpec) -> Floats:
        return formula({name: sums[..., place] for place, name in enumerate(INTENSITY_SUMS)})

    return {"intensities": of}


def _pearson(prefix: str, constant: float) -> Callable[[Mapping[str, Floats]], Floats]:
    """Pearson's correlation of the sums with this prefix; ``constant`` if a side is constant, NaN without any."""

    def formula(sums: Mapping[str, Floats]) -> Floats:
        count = sums[f"{prefix}count"]
        x, y, xx, yy, xy = (quotient(sums[f"{prefix}{name}"], count) for name in ("x", "y", "xx", "yy", "xy"))
        var_x, var_y = xx - x**2, yy - y**2
        flat = (var_x <= _CONSTANT * xx) | (var_y <= _CONSTANT * yy)
        value = correlation(np.where(flat, 1.0, var_x), np.where(flat, 1.0, var_y), np.where(flat, 0.0, xy - x * y))
        return np.where(count > 0, np.where(flat, constant, value), np.nan)

    return formula


METRICS = (
    Metric(
        "intensity_pearson",
        "pearson (intensity)",
        "Pearson correlation of predicted and true intensities over all utterances, 0 without the label (0 if a side "
        "is constant): SemEval-2025 Task 11, track B",
        sums=_sums(_pearson("", 0.0)),
        unit="none",
        bounds=AGREEMENT,
        outputs="all",
        equal_classes=True,
    ),
    Metric(
        "active_pearson",
        "pearson (active)",
        "Pearson correlation of intensities for active labels, averaged over labels with two intensities",
        sums=_sums(_pearson("active_", np.nan)),
        unit="none",
        bounds=AGREEMENT,
        outputs="defined",
        equal_classes=True,
    ),
    Metric(
        "active_mae",
        "MAE (active)",
        "mean absolute error of the intensity for active labels, averaged over labels",
        sums=_sums(lambda sums: quotient(sums["active_error"], sums["active_count"])),
        higher_is_better=False,
        unit="task",
        bounds=ERROR,
        outputs="defined",
        equal_classes=True,
    ),
)
