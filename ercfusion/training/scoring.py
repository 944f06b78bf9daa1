"""Scores of a finished run for its record: of its tasks, and of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.views import source_of, view_predictions, with_thresholds
from ercfusion.config.missing import grid_laws
from ercfusion.config.sections import Missing, Training
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.records.intervals import record_intervals
from ercfusion.records.record import rounded_scores, split_record
from ercfusion.records.robust_runs import exact_scores
from ercfusion.records.robustness import score_laws
from ercfusion.tasks.heads import Head
from ercfusion.tasks.recognizer import Recognizer

Parts = Mapping[str, Predictions]
"""Predictions by split."""


def scored_splits(
    predictions: Mapping[str, Predictions], train_store: ConversationStore, metric: str, settings: Training
) -> dict[str, Any]:
    """The record's parts about one task, with the scores of ``majority``.

    Args:
        train_store: Its labels define the floor; there is none without labels.
        metric: Of the task; always gets an interval.
        settings: ``training.bootstrap`` and ``training.thresholds``.
    """
    metrics = {split: rounded_scores(part) for split, part in predictions.items()}
    unlabelled = [split for split, scores in metrics.items() if not scores]
    if train_store.targets[predictions["dev"].task.name].valid.any():
        constant = {split: constant_predictions(part, train_store) for split, part in predictions.items()}
        parts = with_thresholds(constant["dev"], constant.values(), settings.thresholds)
        floor = {split: rounded_scores(part) for split, part in zip(constant, parts, strict=True)}
    else:  # only of a view
        floor = {split: {} for split in predictions}
        unlabelled.insert(0, "train")
    known = metrics if "train" in unlabelled else floor
    headline = ["weighted_f1", "macro_f1", "accuracy", metric]
    headline = [name for name in dict.fromkeys(headline) if name in (known["test"] or known["dev"])]
    conventions = dict(predictions["dev"].task.rules.conventions)
    return {
        "metrics": metrics,
        "intervals": record_intervals(
            predictions["test"], [name for name in headline if name in known["test"]], settings.bootstrap
        ),
        "majority": {split: {name: part[name] for name in headline if name in part} for split, part in floor.items()},
        "splits": {split: split_record(part) for split, part in predictions.items()},
        **({"unlabelled": unlabelled} if unlabelled else {}),
        **({"conventions": conventions} if conventions else {}),
    }


def scored_views(
    tasks: Sequence[TaskSpec],
    views: Sequence[TaskSpec],
    predictions: Mapping[str, Parts],
    stores: Mapping[str, ConversationStore],
    rule: str,
) -> dict[str, dict[str, Predictions]]:
    """Predictions of views by name and split, with decision thresholds.

    Args:
        tasks: The learned tasks.
        views: The views.
        predictions: Of the learned tasks by name and split (``dev`` and ``test``).
        stores: With the targets of the views, by split.
        rule: ``training.thresholds``.
    """
    result = {}
    for view in views:
        source = predictions[source_of(view, tasks).name]
        parts = {name: view_predictions(part, view, stores[name].targets[view.name]) for name, part in source.items()}
        chosen = with_thresholds(parts["dev"], parts.values(), rule)
        result[view.name] = dict(zip(parts, chosen, strict=True))
    return result


def recorded_views(
    predictions: Mapping[str, Predictions], record: Mapping[str, Any], store: ConversationStore
) -> dict[str, Predictions]:
    """The views of a finished run for one split, with the thresholds of its record.

    Args:
        predictions: Of the learned tasks, by name.
        record: Of the run.
        store: The split, with the targets of the views.
    """
    views = {}
    for view in store.views:
        own = record["views"][view.name]
        thresholds = np.array(own["thresholds"]) if "thresholds" in own else None
        views[view.name] = view_predictions(predictions[own["source"]], view, store.targets[view.name], thresholds)
    return views


def view_record(parts: Parts, source: TaskSpec, train_store: ConversationStore, settings: Training) -> dict[str, Any]:
    """The record's part about a view; ``source`` is the learned task."""
    view, thresholds = parts["dev"].task, parts["dev"].thresholds
    return {
        "source": source.name,
        **({} if thresholds is None else {"thresholds": [float(number) for number in thresholds]}),
        **scored_splits(parts, train_store, view.metric, settings),
    }


def robust_parts(
    missing: Missing,
    recognizer: Recognizer,
    data: LoadedData,
    store: ConversationStore,
    predictions: Mapping[str, Predictions],
    metrics: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """By task, ``robustness`` of the record: scores under the laws of ``missing.grid``; empty without it or labels.

    Args:
        missing: Settings of the run.
        recognizer, data: Its model and data.
        store: The test split.
        predictions: Of the test split by task, as the record has them.
        metrics: Headlines by task.
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in predictions}
    labelled = {name: part for name, part in predictions.items() if part.valid.any()}
    laws = grid_laws(missing.grid, store.inputs.modalities)
    if not laws or not labelled:
        return parts
    results = score_laws(
        recognizer,
        store,
        laws,
        seed=missing.seed,
        metrics={name: metrics[name] for name in labelled},
        complete={name: conversation_sums(part) for name, part in labelled.items()},
        reachable=exact_scores(data, "test"),
    )
    return parts | {name: {"robustness": result} for name, result in results.items()}


def constant_predictions(predictions: Predictions, train_store: ConversationStore) -> Predictions:
    """The answers of the model ``majority``: for every utterance the distribution of the training labels.

    If the predictions have standard deviations, the answers have that of the training targets.
    """
    head = Head(predictions.task, 1, regression_loss="mse" if predictions.spread is None else "gaussian")
    head.start_from_prior(train_store.targets[predictions.task.name])
    with torch.no_grad():
        logits = head(torch.zeros(1, 1))
        output, spread = head.outputs(logits), head.spread(logits)
    return replace(
        predictions,
        output=_repeated(output, len(predictions)),
        spread=None if spread is None else _repeated(spread, len(predictions)),
        thresholds=None,
    )


def _repeated(row: Tensor, count: int) -> NDArray[np.float64]:
    return np.repeat(row.double().numpy(), count, axis=0)
