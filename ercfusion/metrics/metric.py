"""A metric as one object: names, direction, formulas."""

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
"""From (R, ...) summed sums to R scores, NaN if not defined; any number of leading axes works."""
Formula = Callable[[Any, TaskSpec], Any]

SHARE = (0.0, 1.0)
ERROR = (0.0, np.inf)
AGREEMENT = (-1.0, 1.0)


def _any_task(task: TaskSpec) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric: name, meaning, direction and formulas. :func:`ercfusion.metrics.register` adds your own.

    Args:
        name: As in ``training.metric=NAME`` and in records: letters, digits and underscores.
        title: Name in tables.
        meaning: One sentence or formula.
        sums: Formulas by key of sums over conversations (:mod:`ercfusion.metrics.sums`), with intervals and tests. Each
            maps summed sums ``(..., *shape)`` and the task to scores ``(...)``, NaN if not defined.
        rows: Formulas by name of rows of utterances (:mod:`ercfusion.metrics.inputs`), to one number each. If a task
            has both inputs, ``rows`` scores a split and ``sums`` gives intervals; they must agree up to rounding.
        higher_is_better: Direction.
        unit: ``percent`` for shares, shown in percent; ``nats``; ``task`` for the unit of the targets; ``none``.
        bounds: Smallest and largest possible value.
        outputs: Not empty if formulas give a last axis with one value per output, reported as ``NAME/OUTPUT``; the
            score is their mean. ``all``: defined if all are; ``defined``: the mean of the defined ones.
        fits: Whether a task with the inputs has the metric.
        equal_classes: Whether rare classes count as much as others, so that intervals may be too short.
        always: Whether tables show it for every task with the metric.
        empty_sets: Whether an utterance with two empty sets of labels counts 1.
        loss: Its name in training curves, if drawn with the losses.
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
            raise ValueError(f"{self.name!r} cannot name a metric. Use letters, digits and underscores.")
        if not (self.sums or self.rows):
            raise ValueError(f"metric {self.name!r} has no formula. Give sums or rows.")

    def needs(self, inputs: Container[str]) -> tuple[str | None, str | None]:
        """Names of the rows and of the sums used with ``inputs``; None for none."""
        rows, sums = (next((name for name in own if name in inputs), None) for own in (self.rows, self.sums))
        return rows, sums

    def parts(self, task: TaskSpec) -> tuple[str, ...]:
        """Outputs of ``task`` reported on their own."""
        # With a single dimension, the part equals the metric.
        return task.output_names if self.outputs and (task.size > 1 or task.schema is not None) else ()

    def values(self, inputs: Inputs) -> dict[str, float]:
        """Score of a split by name, with its parts as ``NAME/OUTPUT``; without undefined ones.

        Raises:
            ConfigError: a formula gives another shape than declared.
        """
        rows, sums = self.needs(inputs.names)
        expected = (inputs.task.size,) if self.outputs else ()
        if rows is not None:
            utterances = inputs.rows(rows)
            value = np.full(expected, np.nan) if utterances is None else self.rows[rows](utterances, inputs.task)
        else:
            assert sums is not None, "the task does not have this metric"
            value = self.sums[sums](inputs.summed(sums), inputs.task)
        if np.shape(value) != expected:
            raise ConfigError(
                f"metric {self.name!r}: the formula of {rows or sums!r} gave shape {np.shape(value)} for one split; "
                f"{expected} is expected. Correct the formula or outputs={self.outputs!r}."
            )
        numbers = {self.name: float(self._mean(np.asarray(value)))}
        if np.ndim(value):
            parts = zip(self.parts(inputs.task), np.asarray(value), strict=False)
            numbers |= {f"{self.name}/{part}": float(number) for part, number in parts}
        return {name: number for name, number in numbers.items() if number == number}

    def statistic(self, key: str, task: TaskSpec, part: str = "") -> Statistic:
        """The score, or that of the output ``part``, as a function of summed sums of ``key``."""
        formula = self.sums[key]
        place = task.output_names.index(part) if part else None

        def statistic(sums: NDArray[Any]) -> Floats:
            value = np.asarray(formula(sums, task))
            return self._mean(value) if place is None else np.asarray(value[..., place])

        return statistic

    def _mean(self, value: NDArray[Any]) -> Floats:
        """Mean over the outputs, if the metric has them; NaN if not defined."""
        if not self.outputs or not value.ndim:
            return value
        if self.outputs == "all":
            return np.asarray(value.mean(axis=-1))
        defined = ~np.isnan(value)
        total = np.where(defined, value, 0).sum(axis=-1)
        return quotient(total, defined.sum(axis=-1))


def ratio(numerator: Any, denominator: Any) -> Floats:
    """Quotient; 0 if the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, 1, denominator))


def quotient(numerator: Any, denominator: Any) -> Floats:
    """Quotient; NaN if the denominator is 0."""
    return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator))
