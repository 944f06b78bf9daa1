"""All metrics by name, and the scores of a split.

Scores are computed over all labelled utterances of a split: the mean of batch F1 is another number. A score with an
empty slice is omitted. For a ``distribution`` task the right answer is the most probable target label; rows with two
equal maxima are counted only by ``kl`` and the ``binarised`` scores.
"""

from __future__ import annotations

from collections.abc import Iterable

from ercfusion._core.errors import ConfigError, did_you_mean, nearest
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics import calibration, classification, distribution, intensity, labels, regression, shifts
from ercfusion.metrics.inputs import Inputs
from ercfusion.metrics.metric import Metric, Statistic

_FAMILIES = (classification, calibration, shifts, distribution, labels, intensity, regression)
REGISTERED: dict[str, Metric] = {metric.name: metric for family in _FAMILIES for metric in family.METRICS}
"""All metrics by name, in the order of records and pages."""


def register(metric: Metric) -> Metric:
    """Register a metric of your own, in a module named by ``imports=``, and return it.

    Raises:
        ConfigError: the name belongs to another metric.
    """
    if REGISTERED.get(metric.name, metric) is not metric:
        raise ConfigError(
            f"the metric name {metric.name!r} is taken: {REGISTERED[metric.name].meaning}. Choose another name."
        )
    REGISTERED[metric.name] = metric
    return metric


def get_metric(name: str) -> Metric:
    """The metric of a score's name, ``ccc`` or ``ccc/valence``.

    Raises:
        ConfigError: unknown name; the message has the nearest.
    """
    base = name.partition("/")[0]
    if base not in REGISTERED:
        raise ConfigError(f"{name!r} is not a metric. {_choices(base, REGISTERED)}")
    return REGISTERED[base]


def metrics_of(task: TaskSpec) -> tuple[Metric, ...]:
    """The metrics of ``task``."""
    inputs = task.rules.inputs
    return tuple(metric for metric in REGISTERED.values() if metric.fits(task) and any(metric.needs(inputs)))


def metric_names(task: TaskSpec) -> tuple[str, ...]:
    """Names of the possible scores of ``task``: metrics, then their parts."""
    metrics = metrics_of(task)
    parts = [f"{metric.name}/{part}" for part in task.output_names for metric in metrics if part in metric.parts(task)]
    return (*(metric.name for metric in metrics), *parts)


def check_metric(task: TaskSpec, name: str) -> None:
    """Raise :class:`ConfigError`, with the nearest name, unless ``task`` has the score ``name``."""
    names = metric_names(task)
    if name not in names:
        raise ConfigError(f"{name!r} is not a metric of the {task.kind} task {task.name!r}. {_choices(name, names)}")


def _choices(name: str, known: Iterable[str]) -> str:
    text = did_you_mean(name, known)
    # No near name: perhaps a record names a metric of somebody's own.
    return text if nearest(name, known) else f"{text} Use imports=MODULE for a metric of your own."


def scores(predictions: Predictions) -> dict[str, float]:
    """All defined scores of a split, in the order of :func:`metric_names`.

    Raises:
        ValueError: no utterance is labelled, or an output of a labelled one is not finite.
    """
    inputs, values = Inputs(predictions), {}
    for metric in metrics_of(predictions.task):
        values.update(metric.values(inputs))
    return {name: values[name] for name in metric_names(predictions.task) if name in values}


def score_source(task: TaskSpec, name: str) -> tuple[str, Statistic] | None:
    """Key of the sums behind a score, and the score as a function of (R, ...) summed sums; None for scores without
    sums.

    The function returns (R) scores, NaN if not defined, and takes any number of leading axes.

    Raises:
        ConfigError: the task has no such score.
    """
    check_metric(task, name)
    metric, part = get_metric(name), name.partition("/")[2]
    _, key = metric.needs(task.rules.inputs)
    return None if key is None else (key, metric.statistic(key, task, part))
