"""The task kind ``regression``: one real number per named dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TableRow, TaskKind
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor


class Regression(TaskKind):
    """Numbers in the corpus's unit; outputs are clamped to the task's range.

    With ``objective.regression_loss=gaussian`` the head also predicts a variance: :class:`GaussianRegression`.
    """

    has_schema: ClassVar[bool] = False
    default_metric: ClassVar[str] = "mae"
    representation: ClassVar[str] = "numbers"
    inputs: ClassVar[tuple[str, ...]] = ("moments", "numbers", "gaussians")
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

    def with_settings(self, *, regression_loss: str = "mse", **settings: Any) -> TaskKind:
        """The rules of a head with a variance for ``regression_loss=gaussian``, else these."""
        return GaussianRegression() if regression_loss == "gaussian" else self

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        regression_loss: str = "mse",
        dimension_weights: Mapping[str, float] = MappingProxyType({}),
        concordance: Callable[[Tensor, Tensor], Tensor] | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """``mse``, ``mae`` or ``ccc`` (1 - concordance over all utterances of the batch, or by ``concordance``)."""
        from ercfusion.losses import concordance as of_batch

        if regression_loss == "mse":
            each = over_dimensions((logits - value).square(), task, dimension_weights)
        elif regression_loss == "mae":
            each = over_dimensions((logits - value).abs(), task, dimension_weights)
        else:
            agreement = (concordance or of_batch)(logits, value)
            each = over_dimensions(1 - agreement, task, dimension_weights).expand(len(logits))
        weight = logits.new_ones(len(logits))
        return (weight * each).sum(), weight.sum()

    def divergence(
        self,
        logits: Tensor,
        teacher: Tensor,
        task: TaskSpec,
        *,
        dimension_weights: Mapping[str, float] = MappingProxyType({}),
        **settings: Any,
    ) -> Tensor:
        """(N) :meth:`divergences`, mean over the dimensions; there is no temperature."""
        return over_dimensions(self.divergences(logits, teacher, task), task, dimension_weights)

    def divergences(self, logits: Tensor, teacher: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) squared differences of the numbers."""
        return (logits - teacher).square()

    def ratings(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) numbers, -1 and 1 at the ends of the range."""
        return (2 * value - task.low - task.high) / (task.high - task.low)

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


class GaussianRegression(Regression):
    """Regression with a predicted variance: 2K logits, the means and then the logarithms of the variances.

    The output is the mean. The standard deviation is that of the targets around it: it says how much they scatter given
    the input, not how sure the model is about its parameters. After early stopping it is often too small; check
    ``coverage90``, which is 0.9 if the deviations are right.

    A standard deviation is at least :data:`FLOOR` of the task's range.
    """

    has_spread: ClassVar[bool] = True
    FLOOR: ClassVar[float] = 1e-3

    def num_logits(self, task: TaskSpec) -> int:
        """2K."""
        return 2 * task.size

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """Means and log variances (biased) of the training targets."""
        value = value.double()
        variance = value.var(0, correction=0).clamp(min=self._floor(task) ** 2)
        return value.new_tensor([*value.mean(0).tolist(), *variance.log().tolist()])

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) means within the range."""
        return super().outputs(logits[:, : task.size], task)

    def spread(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) standard deviations in the unit of the targets."""
        from ercfusion.losses import gaussian_spread

        return gaussian_spread(logits[:, task.size :], self._floor(task))

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        dimension_weights: Mapping[str, float] = MappingProxyType({}),
        gaussian_beta: float = 0.0,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Gaussian negative log-likelihood (:func:`ercfusion.losses.gaussian_nll`), mean over the dimensions."""
        from ercfusion.losses import gaussian_nll

        mean, log_variance = logits[:, : task.size], logits[:, task.size :]
        nll = gaussian_nll(mean, log_variance, value, beta=gaussian_beta, floor=self._floor(task))
        each = over_dimensions(nll, task, dimension_weights)
        weight = logits.new_ones(len(logits))
        return (weight * each).sum(), weight.sum()

    def divergences(self, logits: Tensor, teacher: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) :func:`ercfusion.losses.gaussian_divergence`."""
        from ercfusion.losses import gaussian_divergence

        parts = (*logits.split(task.size, dim=-1), *teacher.split(task.size, dim=-1))
        return gaussian_divergence(*parts, floor=self._floor(task))

    def _floor(self, task: TaskSpec) -> float:
        return self.FLOOR * (task.high - task.low)


def over_dimensions(values: Tensor, task: TaskSpec, weights: Mapping[str, float]) -> Tensor:
    """Mean over the last axis, weighted by the dimensions' names; unnamed dimensions have weight 1.

    Shapes:
        (..., K) -> (...).
    """
    if not any(name in weights for name in task.dimensions):
        return values.mean(-1)
    weight = values.new_tensor([weights.get(name, 1.0) for name in task.dimensions])
    return (values * weight).sum(-1) / weight.sum()


def _numbers(values: NDArray[Any]) -> list[Any]:
    numbers: list[Any] = (values[:, 0] if values.shape[1] == 1 else values).astype(float).tolist()
    return numbers
