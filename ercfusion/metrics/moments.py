"""Named sums of regression tasks, and the sentiment scales with classes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats, Ints
from ercfusion.batch.task import TaskSpec

CELLS = ("00", "01", "10", "11")
"""Cells (truth, prediction) of a two-class confusion matrix, row by row."""


@dataclass(frozen=True)
class Moment:
    """A number per utterance and dimension to be summed: ``of`` maps outputs (n, K), targets (n, K) and the middle of
    the task's range to (n, K).
    """

    meaning: str
    of: Callable[[Floats, Floats, float], NDArray[Any]]


COMMON: dict[str, Moment] = {
    "utterances": Moment("labelled utterances", lambda x, y, m: np.ones_like(x)),
    "output": Moment("outputs minus the middle of the task's range", lambda x, y, m: x - m),
    "target": Moment("targets minus the middle of the task's range", lambda x, y, m: y - m),
    "output_squared": Moment("squares of `output`", lambda x, y, m: (x - m) ** 2),
    "target_squared": Moment("squares of `target`", lambda x, y, m: (y - m) ** 2),
    "product": Moment("products of `output` and `target`", lambda x, y, m: (x - m) * (y - m)),
    "absolute_error": Moment("|output - target|", lambda x, y, m: np.abs(x - y)),
    "squared_error": Moment("(output - target)^2", lambda x, y, m: (x - y) ** 2),
}
"""The sums of every regression task."""
TRUTH = tuple(list(COMMON).index(name) for name in ("utterances", "target", "target_squared"))
"""Positions of the sums depending on targets only."""


@dataclass(frozen=True)
class Scale:
    """A scale with classes of its own.

    Args:
        low, high: Range of its tasks.
        moments: Sums of these tasks after :data:`COMMON`.
    """

    low: float
    high: float
    moments: Mapping[str, Moment]

    def fits(self, task: TaskSpec) -> bool:
        """Whether the task is on this scale."""
        return (task.low, task.high) == (self.low, self.high)


def sims_classes(numbers: Floats, classes: int) -> Ints:
    """Class, from 0, of numbers on CH-SIMS's scale; outer classes include numbers beyond [-1, 1].

    Compared in single precision, as in the published code: 0.1 is on the edge. Edges (:data:`SIMS_EDGES`) belong to the
    lower class.
    """
    return np.searchsorted(np.array(SIMS_EDGES[classes], np.float32), numbers.astype(np.float32)).astype(np.int64)


SIMS_EDGES: dict[int, tuple[float, ...]] = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""Edges of the classes of CH-SIMS in [-1, 1] by number of classes (Yu et al., ACL 2020; benchmark MMSA)."""


def _rounded(limit: int) -> Callable[[Floats, Floats, float], NDArray[Any]]:
    return lambda x, y, m: np.clip(x, -limit, limit).round() == np.clip(y, -limit, limit).round()


def _same_class(classes: int) -> Callable[[Floats, Floats, float], NDArray[Any]]:
    return lambda x, y, m: sims_classes(x, classes) == sims_classes(y, classes)


def _cells(
    name: str,
    words: str,
    positive_output: Callable[[Floats], NDArray[Any]],
    positive_target: Callable[[Floats], NDArray[Any]],
    counted: Callable[[Floats], NDArray[Any]] | None = None,
) -> dict[str, Moment]:
    """The four cells of a two-class confusion matrix."""

    def cell(truth: bool, predicted: bool) -> Callable[[Floats, Floats, float], NDArray[Any]]:
        def of(x: Floats, y: Floats, m: float) -> NDArray[Any]:
            inside = (positive_target(y) == truth) & (positive_output(x) == predicted)
            return inside if counted is None else inside & counted(y)

        return of

    return {f"{name}_{key}": Moment(f"{words} = {key}", cell(key[0] == "1", key[1] == "1")) for key in CELLS}


SENTIMENT = Scale(
    -3.0,
    3.0,
    {
        "right7": Moment("correct utterances in seven classes", _rounded(3)),
        "right5": Moment("correct utterances in five classes", _rounded(2)),
        **_cells(
            "non0",
            "of utterances with a truth other than 0: (truth > 0, output > 0)",
            *(lambda x: x > 0, lambda y: y > 0, lambda y: y != 0),
        ),
        **_cells("has0", "of all utterances: (truth >= 0, output >= 0)", lambda x: x >= 0, lambda y: y >= 0),
    },
)
"""The scale of CMU-MOSI and CMU-MOSEI."""
SIMS = Scale(
    -1.0,
    1.0,
    {
        "sims_right3": Moment("correct utterances in CH-SIMS's three classes", _same_class(3)),
        "sims_right5": Moment("correct utterances in CH-SIMS's five classes", _same_class(5)),
        **_cells(
            "sims",
            "of all utterances: (truth > 0, output > 0)",
            *(lambda x: sims_classes(x, 2) == 1, lambda y: sims_classes(y, 2) == 1),
        ),
    },
)
"""The scale of CH-SIMS."""


def moments_of(task: TaskSpec) -> dict[str, Moment]:
    """The F sums of a regression task, in the order of records."""
    own = next((scale.moments for scale in (SENTIMENT, SIMS) if scale.fits(task)), {})
    return {**COMMON, **own}
