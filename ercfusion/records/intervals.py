"""Intervals of a run's test scores, and cautions about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ercfusion._core.errors import RunError
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.cautions import cautions, why_none
from ercfusion.metrics.registry import score_source
from ercfusion.metrics.statistics import interval_for
from ercfusion.records.record import record_sums


def record_intervals(predictions: Predictions, names: Iterable[str], resamples: int) -> dict[str, Any]:
    """A record's ``intervals``; ``none`` has reasons for missing ones."""
    intervals: dict[str, Any] = {"level": 0.95, "resampled": "conversations", "test": {}}
    for name in names:
        ends = interval_for(predictions, name, resamples)
        if np.isnan(ends).any():
            valid = np.asarray(predictions.valid, dtype=bool)
            intervals.setdefault("none", {})[name] = why_none(len(np.unique(predictions.conversation[valid])))
        else:
            intervals["test"][name] = [round(end, 6) for end in ends]
    return intervals


def record_cautions(record: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """:func:`cautions` for a test score of a run; empty without sums."""
    task = TaskSpec.from_dict(dict(record["task"]))
    source = score_source(task, metric)
    try:
        sums = record_sums(record, "test")[1].get(source[0]) if source else None
    except RunError:
        sums = None
    if sums is None or not sums.any():
        return ()
    return cautions(task, metric, sums[None], missing=known_interval(record, metric) is None)


def known_interval(record: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The recorded test interval of a score, or None; old records store a missing one with zero width."""
    low, high = record["intervals"]["test"].get(metric, (0.0, 0.0))
    return (low, high) if low < high else None
