"""Views: the outputs for a learned task, scored against the targets of another task with the same labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.predictions import PROBABILITY_TOLERANCE, Predictions
from ercfusion.batch.task import TaskSpec

if TYPE_CHECKING:
    from ercfusion.batch.batch import TaskTargets


def source_of(view: TaskSpec, tasks: Sequence[TaskSpec]) -> TaskSpec:
    """The task behind a view: the first of ``tasks`` with the view's labels and with probabilities as outputs.

    Raises:
        ConfigError: there is none.
    """
    key = f"data.views: {view.name!r}"
    if not view.rules.probabilities:
        raise ConfigError(
            f"{key} is a {view.kind} task: only tasks whose outputs are probabilities of labels can be views. Remove "
            "it, or learn it with data.tasks."
        )
    usable = [task for task in tasks if task.rules.probabilities]
    if not usable:
        names = ", ".join(f"{task.name} ({task.kind})" for task in tasks)
        raise ConfigError(f"{key} needs probabilities of labels, but the run learns {names}. Remove data.views.")
    for task in usable:
        if task.output_names == view.output_names:
            return task
    labels = "; ".join(f"{task.name!r}: {', '.join(task.output_names)}" for task in usable)
    raise ConfigError(
        f"{key} has the labels {', '.join(view.output_names)}, and no learned task has the same ({labels}). Remove it, "
        "or learn it with data.tasks."
    )


def view_predictions(
    predictions: Predictions, view: TaskSpec, targets: TaskTargets, thresholds: NDArray[Any] | None = None
) -> Predictions:
    """The predictions of a learned task as predictions of a view.

    Args:
        predictions: Of the task from :func:`source_of`.
        view: The view.
        targets: Of the view, for the same utterances.
        thresholds: (C) for a kind with thresholds.
    """
    return replace(
        predictions,
        task=view,
        output=view.rules.view(predictions.output, predictions.task.rules),
        value=targets.value.numpy(),
        valid=targets.valid.numpy(),
        votes=None if targets.votes is None else targets.votes.numpy(),
        thresholds=thresholds,
    )


def fixed_thresholds(task: TaskSpec, rule: str) -> NDArray[np.float64] | None:
    """(C) thresholds of ``training.thresholds`` that need no labels; None for ``dev``.

    ``uniform`` is the 1/C decision (:func:`ercfusion.batch.votes.sets_above_uniform`), ``half`` 0.5.
    """
    if rule == "dev":
        return None
    return np.full(task.size, 0.5 if rule == "half" else 1 / task.size + PROBABILITY_TOLERANCE)


def with_thresholds(dev: Predictions, parts: Iterable[Predictions], rule: str = "dev") -> list[Predictions]:
    """``parts`` with thresholds, for kinds with decision thresholds.

    Args:
        dev: The dev split; for ``dev`` without labels the parts are unchanged.
        parts: Predictions of the same task.
        rule: See :func:`fixed_thresholds`; ``dev`` takes the best on ``dev``.
    """
    if not dev.task.rules.thresholds:
        return list(parts)
    thresholds = fixed_thresholds(dev.task, rule)
    if thresholds is None:
        if not dev.valid.any():
            return list(parts)
        thresholds = dev.task.rules.best_thresholds(dev)
    return [replace(part, thresholds=thresholds) for part in parts]
