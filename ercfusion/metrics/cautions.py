"""Sentences printed next to intervals and tests whose assumptions fail. ``python -m benchmarks.coverage`` measured the
limits on simulated test splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.registry import get_metric, score_source
from ercfusion.metrics.sums import SUMS

LEAST_CONVERSATIONS = 5
"""Fewest conversations with an error, or with an utterance of a class: with fewer, many resamples have none."""
FEW_TESTED = 12
"""With fewer test conversations, intervals contained the truth in as few as 89 % of the simulated splits."""
MOST_SEED_NOISE = 0.035
"""Largest simulated standard deviation of a score between seeds."""
MARK = "(!)"
"""Printed after an interval with a caution."""


def why_none(conversations: int) -> str:
    """Why a score has no interval, with ``conversations`` counted test conversations."""
    if conversations < 2:
        return "no interval: one test conversation says nothing about others"
    return "no interval: the score is the same on every resample of the conversations"


def cautions(task: TaskSpec, metric: str, sums: NDArray[Any], missing: bool = False) -> tuple[str, ...]:
    """Cautions for an interval of ``metric`` and for tests of its differences, from (S, B, ...) ``sums``; ``missing``:
    there is no interval.
    """
    source = score_source(task, metric)
    if source is None:
        return ()
    key, statistic = source
    definition = get_metric(metric)
    sums = sums[:, sums.any(axis=(0, *range(2, sums.ndim)))]
    batch = sums.shape[1]
    if missing:
        return (why_none(batch),)
    sentences = []
    if batch < FEW_TESTED:
        sentences.append(f"the interval may be too short: only {batch} test conversations (fewer than {FEW_TESTED})")
    errors = SUMS[key].errors(sums)
    wrong = batch if errors is None else int((errors > 0).any(axis=0).sum())
    if errors is not None and wrong < LEAST_CONVERSATIONS:
        sentences.append(
            f"the interval may be too short: only {wrong} of {batch} test conversations {_have(wrong)} an error (fewer "
            f"than {LEAST_CONVERSATIONS})"
        )
    truth = SUMS[key].occurrences(sums[0])
    if definition.equal_classes and truth is not None:
        occurs = (truth > 0).sum(axis=0)
        rare = [f"{name} ({count})" for name, count in zip(task.output_names, occurs) if count < LEAST_CONVERSATIONS]
        if rare:
            sentences.append(
                f"the interval may be too short: classes in fewer than {LEAST_CONVERSATIONS} test conversations: "
                + ", ".join(rare)
            )
    if len(sums) > 1 and definition.unit == "percent":
        deviation = float(np.asarray(statistic(sums.sum(axis=1)), dtype=np.float64).std(ddof=1))
        if deviation > MOST_SEED_NOISE:
            sentences.append(
                f"the standard deviation of the seeds is above {MOST_SEED_NOISE}, the largest for which intervals and "
                "tests were simulated"
            )
    return tuple(sentences)


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
