"""Metrics of probability distributions over labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import sets_above_uniform
from ercfusion.metrics.inputs import Pairs
from ercfusion.metrics.metric import ERROR, Metric, quotient, ratio
from ercfusion.metrics.sums import FLOOR


def _mean_divergence(sums: NDArray[Any], task: TaskSpec) -> Floats:
    return quotient(sums[..., 2], sums[..., 0])


def _kl(rows: Pairs, task: TaskSpec) -> float:
    # x log x is 0 at 0, so only the logarithm has a floor.
    logarithms = np.log(np.maximum(rows.target, FLOOR)) - np.log(np.maximum(rows.output, FLOOR))
    return float((rows.target * logarithms).sum(axis=1).mean())


def _binarised_macro_f1(rows: Pairs, task: TaskSpec) -> float:
    predicted, true = sets_above_uniform(rows.output), sets_above_uniform(rows.target)
    return float(ratio(2 * (predicted & true).sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)).mean())


METRICS = (
    Metric(
        "kl",
        "KL",
        "mean Kullback-Leibler divergence of the prediction from the target distribution (nats)",
        sums={"divergence": _mean_divergence},
        rows={"distributions": _kl},
        higher_is_better=False,
        unit="nats",
        bounds=ERROR,
        loss="Kullback-Leibler",
    ),
    Metric(
        "binarised_macro_f1",
        "macro F1 (binarised)",
        "macro F1 over all C labels after both distributions are cut at > 1/C",
        rows={"distributions": _binarised_macro_f1},
    ),
)
