"""The task kind ``regression``: one real number per named dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TableRow, TaskKind
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor


class Regression(TaskKind):
    """Numbers in the corpus's unit; outputs are clamped to the task's range."""

    has_schema: ClassVar[bool] = False
    default_metric: ClassVar[str] = "mae"
    representation: ClassVar[str] = "numbers"
    inputs: ClassVar[tuple[str, ...]] = ("moments", "numbers")
    headline: ClassVar[tuple[str, ...]] = ("mae", "pearson", "ccc", "acc7", "acc2_non0")
    table_scores: ClassVar[tuple[str, ...]] = ("mae", "pearson", "acc2_non0", "acc7")
    output_prefix: ClassVar[str] = "y/"
    pictures: ClassVar[tuple[str, ...]] = ("scatter",)

    def encode(self, value: Any, task: TaskSpec) -> list[float]:
        """Numbers, one per dimension."""
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) != task.size:
            raise ValueError(f"{task.size} numbers are expected")
        values = [float(number) for number in numbers]
        if not all(map(math.isfinite, values)):
            raise ValueError("finite numbers are expected")
        return values

    def constant_output(self, task: TaskSpec) -> float:
        """The middle of the range."""
        return (task.low + task.high) / 2

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """Means of the training targets."""
        return value.double().mean(0)

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) numbers within the range."""
        return logits.clamp(task.low, task.high)

    def loss(
        self, logits: Tensor, value: Tensor, task: TaskSpec, *, regression_loss: str = "mse", **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """``mse``, ``mae`` or ``ccc`` (1 - concordance over all utterances of the batch)."""
        from ercfusion.losses import concordance

        if regression_loss == "mse":
            each = (logits - value).square().mean(-1)
        elif regression_loss == "mae":
            each = (logits - value).abs().mean(-1)
        else:
            each = (1 - concordance(logits, value)).mean().expand(len(logits))
        weight = logits.new_ones(len(logits))
        return (weight * each).sum(), weight.sum()

    def outcomes(self, logits: Tensor) -> None:
        """None: there are no probabilities."""
        return None

    def answer_type(self, task: TaskSpec) -> Any:
        """A number, or a list of numbers for several dimensions."""
        import pyarrow as pa

        return pa.float64() if task.size == 1 else pa.list_(pa.float64())

    def truths(self, part: Predictions) -> list[Any]:
        """True numbers."""
        return _numbers(part.value)

    def answers(self, part: Predictions) -> list[Any]:
        """Predicted numbers."""
        return _numbers(part.output)

    def decode(self, truth: Any, task: TaskSpec) -> Sequence[float]:
        """Numbers from a number or list."""
        return self.encode(tuple(truth) if isinstance(truth, list) else truth, task)

    def columns(self, name: str, outputs: Sequence[str]) -> list[str]:
        """One column per dimension, if there are several."""
        return [f"{name}.{output}" for output in outputs] if len(outputs) > 1 else [name]

    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> float | tuple[float, ...]:
        """Read numbers within the range."""
        numbers = tuple(row.number(column) for column in columns)
        for column, value in zip(columns, numbers, strict=True):
            if not task.low <= value <= task.high:
                row.fail(column, f"{value:g} is not between {task.low:g} and {task.high:g}. Correct it, or the range.")
        return numbers if len(numbers) > 1 else numbers[0]

    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """One cell per dimension."""
        # repr: the shortest text of the same number.
        return [repr(number) for number in (value if isinstance(value, tuple) else (value,))]

    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, None]:
        """Uniform over the range."""
        return tuple(float(number) for number in generator.uniform(task.low, task.high, task.size)), None

    def distance(self, output: Tensor, value: Tensor, task: TaskSpec) -> float:
        """Mean absolute difference as a share of the range, above 0.05."""
        return max(0.0, float((output - value).abs().mean()) / (task.high - task.low) - 0.05)


def _numbers(values: NDArray[Any]) -> list[Any]:
    numbers: list[Any] = (values[:, 0] if values.shape[1] == 1 else values).astype(float).tolist()
    return numbers
