"""What a metric is: one object with its names, its direction and its formulas."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.predictions import Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import Inputs

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""From (R, ...) summed sums to R scores, NaN where a score is not defined; other leading axes work too."""
Formula = Callable[[Any, TaskSpec], Any]

SHARE = (0.0, 1.0)
ERROR = (0.0, np.inf)
AGREEMENT = (-1.0, 1.0)


def _any_task(task: TaskSpec) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric: what it is called, what it means, which direction is better, and how it is computed.

    A formula takes the value of one input and the task. ``sums`` holds formulas of sums over conversations
    (:mod:`ercfusion.metrics.sums`): these also give intervals and tests between models. ``rows`` holds formulas of
    utterances (:mod:`ercfusion.metrics.inputs`), for what no such sums give. A metric of one's own is registered with
    :func:`ercfusion.metrics.register`.

    Args:
        name: As in ``training.metric=NAME`` and in records: letters, digits and underscores.
        title: As people write it, for tables.
        meaning: One sentence or formula.
        sums: Formulas by key of the sums. Each maps summed sums with any leading axes, ``(..., *shape)``, to scores
            ``(...)``; NaN where the score is not defined. It must be vectorised: thousands of resamples come at once.
        rows: Formulas by name of the rows; each gives one number. If a task has both, this is the score of a split,
            and the formula of the sums serves intervals only: both must agree up to rounding.
        higher_is_better: Direction, for the choice of a checkpoint, for sweeps and tables.
        unit: ``percent`` for shares, which tables show in percent; ``nats``; ``task`` for the unit of the targets;
            ``none`` for other numbers.
        bounds: Least and largest possible value.
        outputs: Not empty if the formulas give a last axis with one value for each output (label or dimension). The
            score is their mean, and each also comes as ``NAME/OUTPUT``. ``all``: defined if all are defined;
            ``defined``: the mean of those that are.
        fits: Whether a task that has the inputs has the metric.
        equal_classes: Whether a rare class counts as much as any other, so that intervals may be too short.
        always: Whether tables show it for every task that has it.
        empty_sets: Whether an utterance whose true and predicted sets of labels are both empty counts 1.
        loss: What training curves call it if it is drawn with the losses.
    """

    name: str
    title: str
    meaning: str
    sums: Mapping[str, Formula] = field(default_factory=dict)
    rows: Mapping[str, Formula] = field(default_factory=dict)
    higher_is_better: bool = True
    unit: Literal["percent", "nats", "task", "none"] = "percent"
    bounds: tuple[float, float] = SHARE
    outputs: Literal["", "all", "defined"] = ""
    fits: Callable[[TaskSpec], bool] = _any_task
    equal_classes: bool = False
    always: bool = False
    empty_sets: bool = False
    loss: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"{self.name!r} cannot name a metric: use letters, digits and underscores")
        if not (self.sums or self.rows):
            raise ValueError(f"metric {self.name!r} has no formula")

    def needs(self, inputs: Container[str]) -> tuple[str | None, str | None]:
        """Names of the rows and of the sums that the score is computed from, of those in ``inputs``; None if none."""
        rows, sums = (next((name for name in own if name in inputs), None) for own in (self.rows, self.sums))
        return rows, sums

    def parts(self, task: TaskSpec) -> tuple[str, ...]:
        """The outputs of ``task`` for which the metric also comes alone."""
        # The value of a single dimension is the metric itself.
        return task.output_names if self.outputs and (task.size > 1 or task.schema is not None) else ()

    def values(self, inputs: Inputs) -> dict[str, float]:
        """The score of a split by name, with its parts as ``NAME/OUTPUT``; what is not defined is left out.

        Raises:
            ConfigError: a formula gives another shape than the metric says.
        """
        rows, sums = self.needs(inputs.names)
        if rows is not None:
            given = inputs.rows(rows)
            value = np.nan if given is None else self.rows[rows](given, inputs.task)
        else:
            assert sums is not None, "the task does not have this metric"
            value = self.sums[sums](inputs.summed(sums), inputs.task)
        expected = (inputs.task.size,) if self.outputs else ()
        if np.shape(value) != expected:
            raise ConfigError(
                f"metric {self.name!r}: the formula of {rows or sums!r} gave shape {np.shape(value)} for one split; "
                f"{expected} is expected (outputs={self.outputs!r})"
            )
        found = {self.name: float(self._mean(np.asarray(value)))}
        if np.ndim(value):
            parts = zip(self.parts(inputs.task), np.asarray(value), strict=False)
            found |= {f"{self.name}/{part}": float(number) for part, number in parts}
        return {name: number for name, number in found.items() if number == number}

    def statistic(self, key: str, task: TaskSpec, part: str = "") -> Statistic:
        """The score, or that of one output, as a function of summed sums.

        Args:
            key: Of ``sums``.
            task: What was predicted.
            part: Name of an output; the score itself if empty.
        """
        formula = self.sums[key]
        place = task.output_names.index(part) if part else None

        def statistic(sums: NDArray[Any]) -> Floats:
            value = np.asarray(formula(sums, task))
            return self._mean(value) if place is None else np.asarray(value[..., place])

        return statistic

    def _mean(self, value: NDArray[Any]) -> Floats:
        """Over the outputs, if the metric has them; NaN where it is not defined."""
        if not self.outputs or not value.ndim:
            return value
        if self.outputs == "all":
            return np.asarray(value.mean(axis=-1))
        defined = ~np.isnan(value)
        total = np.where(defined, value, 0).sum(axis=-1)
        return quotient(total, defined.sum(axis=-1))


def ratio(numerator: Any, denominator: Any) -> Floats:
    """Quotient, 0 where the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, 1, denominator))


def quotient(numerator: Any, denominator: Any) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator))
