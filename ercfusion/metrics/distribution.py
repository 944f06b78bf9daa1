"""Metrics of probability distributions over labels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Bools, Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import sets_above_uniform
from ercfusion.metrics.inputs import Pairs
from ercfusion.metrics.metric import ERROR, Formula, Metric, quotient, ratio
from ercfusion.metrics.sums import FLOOR


def _mean_divergence(sums: NDArray[Any], task: TaskSpec) -> Floats:
    return quotient(sums[..., 2], sums[..., 0])


def divergences(rows: Pairs) -> Floats:
    """(n) Kullback-Leibler divergence of each prediction from its target, in nats."""
    # x log x is 0 at 0, so only the logarithm has a floor.
    logarithms = np.log(np.maximum(rows.target, FLOOR)) - np.log(np.maximum(rows.output, FLOOR))
    return np.asarray((rows.target * logarithms).sum(axis=1))


def _sets(rows: Pairs) -> tuple[Bools, Bools]:
    """Predicted and true sets (n, C)."""
    return sets_above_uniform(rows.output), sets_above_uniform(rows.target)


def _binarised_f1(average: Literal["macro", "micro", "weighted"]) -> Formula:
    def formula(rows: Pairs, task: TaskSpec) -> float:
        predicted, true = _sets(rows)
        hits, both = (predicted & true).sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)
        if average == "micro":
            return float(ratio(2 * hits.sum(), both.sum()))
        f1 = ratio(2 * hits, both)
        return float(f1.mean() if average == "macro" else ratio((true.sum(axis=0) * f1).sum(), true.sum()))

    return formula


def _binarised_jaccard(rows: Pairs, task: TaskSpec) -> float:
    predicted, true = _sets(rows)
    shared, either = (predicted & true).sum(axis=1), (predicted | true).sum(axis=1)
    return float(np.where(either == 0, 1.0, ratio(shared, either)).mean())


METRICS = (
    Metric(
        "kl",
        "KL",
        "mean Kullback-Leibler divergence of the prediction from the target distribution (nats)",
        sums={"divergence": _mean_divergence},
        rows={"distributions": lambda rows, task: float(divergences(rows).mean())},
        higher_is_better=False,
        unit="nats",
        bounds=ERROR,
        loss="Kullback-Leibler",
    ),
    Metric(
        "binarised_macro_f1",
        "macro F1 (binarised)",
        "macro F1 over all C labels after both distributions are cut at > 1/C",
        rows={"distributions": _binarised_f1("macro")},
    ),
    Metric(
        "binarised_micro_f1",
        "micro F1 (binarised)",
        "F1 of the pooled (utterance, label) decisions after both distributions are cut at > 1/C",
        rows={"distributions": _binarised_f1("micro")},
    ),
    Metric(
        "binarised_weighted_f1",
        "weighted F1 (binarised)",
        "F1 of each label, weighted by its true utterances, after both distributions are cut at > 1/C",
        rows={"distributions": _binarised_f1("weighted")},
    ),
    Metric(
        "binarised_jaccard",
        "jaccard (binarised)",
        "intersection over union of each utterance's labels above 1/C, averaged (1 if both sets are empty)",
        rows={"distributions": _binarised_jaccard},
        empty_sets=True,
    ),
)
