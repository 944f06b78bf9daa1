"""Views: the outputs for a learned task, scored against the targets of another task with the same labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.predictions import Predictions
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


def with_best_thresholds(dev: Predictions, parts: Iterable[Predictions]) -> list[Predictions]:
    """``parts`` with the thresholds that are best on ``dev``; unchanged without labels or thresholds."""
    if not dev.task.rules.thresholds or not dev.valid.any():
        return list(parts)
    thresholds = dev.task.rules.best_thresholds(dev)
    return [replace(part, thresholds=thresholds) for part in parts]
