"""Real numbers for every utterance, one for each named dimension."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ercfusion.batch.kinds import TaskKind
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.scores import SCALES

if TYPE_CHECKING:
    from torch import Tensor


class Regression(TaskKind):
    """Numbers in the corpus's own unit; outputs are kept within the task's range."""

    has_schema: ClassVar[bool] = False
    default_metric: ClassVar[str] = "mae"
    representation: ClassVar[str] = "numbers"
    sums: ClassVar[tuple[str, ...]] = ("moments",)
    headline: ClassVar[tuple[str, ...]] = ("mae", "pearson", "ccc", "acc7", "acc2_non0")
    beside: ClassVar[tuple[str, ...]] = ("mae", "pearson", "acc2_non0", "acc7")
    pictures: ClassVar[tuple[str, ...]] = ("scatter",)

    def metrics(self, task: TaskSpec) -> tuple[str, ...]:
        """See the base class. Some scores exist only on the scale that they were defined for."""
        names = ("mae", "rmse", "pearson", "ccc", *SCALES.get((task.low, task.high), ()))
        if task.size == 1:
            return names
        return names + tuple(f"{name}/{dimension}" for name in names for dimension in task.dimensions)

    def encode(self, value: Any, task: TaskSpec) -> list[float]:
        """See the base class."""
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) != task.size:
            raise ValueError(f"{task.size} numbers are expected")
        values = [float(number) for number in numbers]
        if not all(map(math.isfinite, values)):
            raise ValueError("finite numbers are expected")
        return values

    def constant_output(self, task: TaskSpec) -> float:
        """See the base class: the middle of the range."""
        return (task.low + task.high) / 2

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return value.double().mean(0)

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """See the base class."""
        return logits.clamp(task.low, task.high)

    def loss(
        self, logits: Tensor, value: Tensor, task: TaskSpec, *, regression_loss: str = "mse", **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """See the base class: ``mse``, ``mae`` or ``ccc`` (1 - concordance over all utterances of the batch)."""
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
        """See the base class: a number comes without a probability."""
        return None
