"""Where intervals and tests do not keep what they promise: sentences to print next to them.

The limits are those that ``python -m benchmarks.coverage`` measures: it draws test splits with few conversations, rare
classes, nearly perfect scores and noisy seeds, and counts how often intervals without a caution hold the truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.registry import get_metric, score_source
from ercfusion.metrics.sums import SUMS

LEAST_CONVERSATIONS = 5
"""Conversations that must have an error, or an utterance of a class: resamples of fewer often have none."""
FEW_TESTED = 12
"""Test conversations below which intervals held the truth in as few as 89 % of the simulated splits."""
MOST_SEED_NOISE = 0.035
"""Largest standard deviation of a score between seeds that was simulated."""
MARK = "(!)"
"""Printed after an interval for which there is a caution."""


def why_none(conversations: int) -> str:
    """Why a score has no interval.

    Args:
        conversations: Number of test conversations that count.
    """
    if conversations < 2:
        return "no interval: one test conversation says nothing about others"
    return "no interval: the score is the same on every resample of the conversations"


def cautions(task: TaskSpec, metric: str, sums: NDArray[Any], missing: bool = False) -> tuple[str, ...]:
    """What is to be said against an interval of ``metric``, and against tests of its differences.

    Args:
        task: What was predicted.
        metric: A score that has a :func:`ercfusion.metrics.registry.score_source`.
        sums: (S, B, ...) sums of that source's key, for every seed and test conversation.
        missing: Whether there is no interval.
    """
    source = score_source(task, metric)
    if source is None:
        return ()
    key, statistic = source
    known = get_metric(metric)
    sums = sums[:, sums.any(axis=(0, *range(2, sums.ndim)))]
    batch = sums.shape[1]
    if missing:
        return (why_none(batch),)
    found = []
    if batch < FEW_TESTED:
        found.append(f"the interval may be too short: only {batch} test conversations (fewer than {FEW_TESTED})")
    errors = SUMS[key].errors(sums)
    wrong = batch if errors is None else int((errors > 0).any(axis=0).sum())
    if errors is not None and wrong < LEAST_CONVERSATIONS:
        found.append(
            f"the interval may be too short: only {wrong} of {batch} test conversations {_have(wrong)} an error (fewer "
            f"than {LEAST_CONVERSATIONS})"
        )
    truth = SUMS[key].occurrences(sums[0])
    if known.equal_classes and truth is not None:
        occurs = (truth > 0).sum(axis=0)
        rare = [f"{name} ({count})" for name, count in zip(task.output_names, occurs) if count < LEAST_CONVERSATIONS]
        if rare:
            found.append(
                f"the interval may be too short: classes in fewer than {LEAST_CONVERSATIONS} test conversations: "
                + ", ".join(rare)
            )
    if len(sums) > 1 and known.unit == "percent":
        deviation = float(np.asarray(statistic(sums.sum(axis=1)), dtype=np.float64).std(ddof=1))
        if deviation > MOST_SEED_NOISE:
            found.append(
                f"the standard deviation of the seeds is above {MOST_SEED_NOISE}, the largest for which intervals and "
                "tests were simulated"
            )
    return tuple(found)


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
