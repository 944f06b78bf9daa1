"""All metrics by name, and the scores of a split.

Scores are computed once over all labelled utterances of a split; averaging the F1 of batches, which some published code
does, gives another number. Rows that are not ``valid`` are never counted. A score whose slice of the split is empty (no
emotion shift, no non-zero sentiment) is left out of the result.

Scores of a ``distribution`` task that need a single right answer use the most probable target label; rows in which two
labels share the maximum have none and are left out of these scores, but not of ``kl`` and ``binarised_macro_f1``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ercfusion._core.errors import ConfigError, did_you_mean, nearest
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics import calibration, classification, distribution, labels, regression, shifts
from ercfusion.metrics.inputs import Inputs
from ercfusion.metrics.metric import Metric, Statistic

_FAMILIES = (classification, calibration, shifts, distribution, labels, regression)
REGISTERED: dict[str, Metric] = {metric.name: metric for family in _FAMILIES for metric in family.METRICS}
"""All metrics by name, in the order in which records and pages list them."""


def register(metric: Metric) -> Metric:
    """Make a metric of your own known by its name; returns it.

    Every task that has its inputs then has the metric: as ``training.metric``, in records, tables, sweeps and plots,
    and with intervals if it has a formula of sums. Call it in a module that ``imports=`` names.

    Raises:
        ConfigError: the name belongs to another metric.
    """
    if REGISTERED.get(metric.name, metric) is not metric:
        raise ConfigError(f"the metric name {metric.name!r} is taken: {REGISTERED[metric.name].meaning}")
    REGISTERED[metric.name] = metric
    return metric


def get_metric(name: str) -> Metric:
    """The metric of a score's name, ``ccc`` or ``ccc/valence``.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    base = name.partition("/")[0]
    if base not in REGISTERED:
        raise ConfigError(f"{name!r} is not a metric. {_choices(base, REGISTERED)}")
    return REGISTERED[base]


def metrics_of(task: TaskSpec) -> tuple[Metric, ...]:
    """The metrics that ``task`` has."""
    inputs = task.rules.inputs
    return tuple(metric for metric in REGISTERED.values() if metric.fits(task) and any(metric.needs(inputs)))


def metric_names(task: TaskSpec) -> tuple[str, ...]:
    """Names of the scores that :func:`scores` can give for ``task``: of metrics, then of their parts."""
    metrics = metrics_of(task)
    parts = [f"{metric.name}/{part}" for part in task.output_names for metric in metrics if part in metric.parts(task)]
    return (*(metric.name for metric in metrics), *parts)


def check_metric(task: TaskSpec, name: str) -> None:
    """Raise :class:`ConfigError`, with the nearest right name, unless ``task`` has the score ``name``."""
    names = metric_names(task)
    if name not in names:
        raise ConfigError(f"{name!r} is not a metric of the {task.kind} task {task.name!r}. {_choices(name, names)}")


def _choices(name: str, known: Iterable[str]) -> str:
    text = did_you_mean(name, known)
    # Nothing is near: perhaps a metric of somebody's own, which a record names.
    return text if nearest(name, known) else f"{text} imports=MODULE registers a metric of your own."


def scores(predictions: Predictions) -> dict[str, float]:
    """All scores of a split, by the names of :func:`metric_names` and in their order; without those not defined on it.

    Raises:
        ValueError: no utterance is labelled, or an output for a labelled one is not a finite number.
    """
    inputs, found = Inputs(predictions), {}
    for metric in metrics_of(predictions.task):
        found.update(metric.values(inputs))
    return {name: found[name] for name in metric_names(predictions.task) if name in found}


def score_source(task: TaskSpec, name: str) -> tuple[str, Statistic] | None:
    """Where intervals of a score come from: the key of its sums, and the score as a function of summed sums.

    Returns:
        The key, and a function from (R, ...) summed sums (for a confusion matrix (R, C, C)) to (R) scores, NaN where
        the score is not defined; of any other number of leading axes as well. None for scores that no sums give.

    Raises:
        ConfigError: the task has no such score.
    """
    check_metric(task, name)
    metric, part = get_metric(name), name.partition("/")[2]
    _, key = metric.needs(task.rules.inputs)
    return None if key is None else (key, metric.statistic(key, task, part))
