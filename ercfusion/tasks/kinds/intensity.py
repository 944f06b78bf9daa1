"""The task kind ``intensity``: any subset of C labels, each active label with an intensity on an integer scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.kinds import TableRow
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.tasks.kinds.multi_label import MultiLabel

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("mse", "mae")
"""Values of ``objective.regression_loss`` for intensities."""


class Intensity(MultiLabel):
    """Label sets as in ``multi_label``, and the intensity of every active label, ``task.low`` to ``task.high``.

    The head gives C logits of activity and C intensities. The loss is binary cross-entropy plus the squared or absolute
    error of the intensity as a share of the range, only at active labels, both averaged over the C labels (our reading
    of EmoInHindi's baselines: Singh et al., LREC 2022). Outputs are (N, 2C): probabilities, then intensities.
    Activity thresholds are chosen on dev. Encoded targets are (N, C): 0, or the intensity.
    """

    scaled: ClassVar[bool] = True
    label_wise: ClassVar[bool] = False
    probabilities: ClassVar[Literal["", "exclusive", "independent"]] = ""
    column_per_label: ClassVar[bool] = True
    mark_columns: ClassVar[bool] = False
    signs: ClassVar[tuple[str, ...]] = ()
    default_metric: ClassVar[str] = "intensity_pearson"
    inputs: ClassVar[tuple[str, ...]] = (*MultiLabel.inputs, "intensities")
    headline: ClassVar[tuple[str, ...]] = ("intensity_pearson", "active_pearson", "active_mae", "macro_f1", "micro_f1")
    table_scores: ClassVar[tuple[str, ...]] = ("intensity_pearson", "active_mae", "macro_f1", "micro_f1")
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **MultiLabel.conventions,
            "an intensity counts": "intensity_pearson over all utterances (0 without the label), active_pearson and "
            "active_mae for active labels",
        }
    )

    def check(self, task: TaskSpec) -> None:
        """Raise ValueError unless the scale has whole numbers from 1."""
        super().check(task)
        if not (task.low == int(task.low) and task.high == int(task.high) and 1 <= task.low < task.high):
            raise ValueError(
                f"task {task.name!r}: intensities are whole numbers from at least 1, found a scale from "
                f"{task.low:g} to {task.high:g}"
            )

    def output_columns(self, task: TaskSpec) -> list[str]:
        """Probabilities ``p/<label>``, then intensities ``i/<label>``."""
        return [f"{sign}/{label}" for sign in "pi" for label in task.output_names]

    def encode(self, value: Any, task: TaskSpec) -> list[float]:
        """(C) intensities from a mapping of active labels; 0 for others."""
        assert task.schema is not None
        if not isinstance(value, Mapping):
            raise TypeError("a mapping from label names to intensities is expected")
        encoded = [0.0] * task.size
        for label, number in value.items():
            encoded[task.schema.index(label)] = self._checked(number, label, task)
        return encoded

    @staticmethod
    def _checked(number: float, label: str, task: TaskSpec) -> float:
        if number != 0 and not (task.low <= number <= task.high and number == int(number)):
            raise ValueError(
                f"{label} has the intensity {number:g}; 0 (not active) or a whole number from {task.low:g} to "
                f"{task.high:g} is expected"
            )
        return float(number)

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """1 for each active label."""
        if not isinstance(value, Mapping):
            raise TypeError("a mapping from label names to intensities is expected")
        return {str(label): 1 for label, number in value.items() if number}

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """(N, C) bool, whether a label is active."""
        return super().decide(output[:, : task.size], thresholds, task)

    def intensities(self, part: Predictions) -> NDArray[np.float64]:
        """(N, C) predicted intensities: 0 if the label is not active, else a whole number of the scale."""
        scale = np.clip(np.rint(part.output[:, part.task.size :]), part.task.low, part.task.high)
        return np.where(part.decisions(), scale, 0.0)

    def constant_output(self, task: TaskSpec) -> float:
        """The lowest intensity, which is also a probability."""
        return task.low

    def merge_outputs(self, output: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
        """The largest probability, and the largest intensity, of labels with one counterpart."""
        size = len(matrix)
        return np.concatenate([super().merge_outputs(part, matrix) for part in (output[:, :size], output[:, size:])], 1)

    def merge_targets(
        self, value: NDArray[Any], valid: NDArray[Any], matrix: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The largest intensity of labels with one counterpart."""
        merged = MultiLabel.merge_outputs(self, value, matrix)
        return merged.astype(value.dtype), np.asarray(valid, dtype=bool)

    def num_logits(self, task: TaskSpec) -> int:
        """2C."""
        return 2 * task.size

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(2C) logits of the label frequencies, and mean intensities of active labels."""
        import torch

        active = value > 0
        count = active.double().sum(0)
        mean = torch.where(count > 0, value.double().sum(0) / count.clamp(min=1), (task.low + task.high) / 2)
        return torch.cat([super().prior(active, task), mean])

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, 2C) probabilities, and intensities within the scale."""
        import torch

        activity, intensity = logits.split(task.size, dim=-1)
        return torch.cat([activity.sigmoid(), intensity.clamp(task.low, task.high)], dim=-1)

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        regression_loss: str = "mse",
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy plus the error of intensities at active labels; utterances have equal weights."""
        if regression_loss not in LOSSES:
            raise ConfigError(
                f"objective.regression_loss={regression_loss} is not for the {task.kind} task {task.name!r}. Use "
                f"{' or '.join(LOSSES)}."
            )
        activity, intensity = logits.split(task.size, dim=-1)
        active = value > 0
        total, weight = super().loss(activity, active.to(logits), task, **settings)
        # Without an active label the difference is 0 and so is its gradient.
        error = (intensity - value).masked_fill(~active, 0.0) / (task.high - task.low)
        each = error.square() if regression_loss == "mse" else error.abs()
        return total + each.mean(-1).sum(), weight

    def divergence(
        self, logits: Tensor, teacher: Tensor, task: TaskSpec, *, temperature: float = 1.0, **settings: Any
    ) -> Tensor:
        """(N) divergence of the activities, plus the squared error of the intensities as a share of the range.

        An intensity counts as much as the teacher takes its label to be active (our reading).
        """
        activity, intensity = logits.split(task.size, dim=-1)
        active, given = teacher.split(task.size, dim=-1)
        error = active.sigmoid() * ((intensity - given) / (task.high - task.low)).square()
        return super().divergence(activity, active, task, temperature=temperature) + error.mean(-1)

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) 1 for active labels."""
        return (value > 0).to(value)

    def chosen(self, value: Tensor) -> Tensor:
        """(N, C) bool, the active labels."""
        return value > 0

    def outcomes(self, logits: Tensor) -> Tensor:
        """(N, C, 2) logits of not active and active."""
        return super().outcomes(logits[:, : logits.shape[1] // 2])

    def answer_type(self, task: TaskSpec) -> Any:
        """A list of active labels with their intensities."""
        import pyarrow as pa

        return pa.list_(pa.struct([("label", pa.string()), ("intensity", pa.int64())]))

    def truths(self, part: Predictions) -> list[Any]:
        """Lists of active labels with intensities."""
        return _answers(part.value, part.task)

    def answers(self, part: Predictions) -> list[Any]:
        """Lists of labels predicted active, with intensities."""
        return _answers(self.intensities(part), part.task)

    def decode(self, truth: Any, task: TaskSpec) -> Sequence[float]:
        """(C) intensities from a list of labels with intensities."""
        return self.encode({one["label"]: one["intensity"] for one in truth}, task)

    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> Any:
        """Read one number per label; 0: not active."""
        value = {}
        for column, label in zip(columns, task.output_names, strict=True):
            number = row.number(column)
            try:
                self._checked(number, label, task)
            except ValueError as error:
                row.fail(column, f"{error}. Correct the cell, or the scale.")
            if number:
                value[label] = number
        return value

    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """One cell per label."""
        return [f"{value.get(label, 0):g}" for label in task.output_names]

    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, None]:
        """Every label with probability 0.5, with a uniform intensity."""
        scale = range(int(task.low), int(task.high) + 1)
        return {name: int(generator.choice(scale)) for name in task.output_names if generator.random() < 0.5}, None

    def distance(self, output: Tensor, value: Tensor, task: TaskSpec) -> float:
        """Share of wrong decisions, or the mean error of active intensities as a share of the range, above 0.05."""
        active = value > 0
        wrong = float(((output[:, : task.size] >= 0.5) != active).float().mean())
        error = (output[:, task.size :] - value)[active].abs()
        share = float(error.mean()) / (task.high - task.low) if len(error) else 0.0
        return max(wrong, share - 0.05, 0.0)


def _answers(numbers: NDArray[Any], task: TaskSpec) -> list[Any]:
    return [
        [
            {"label": label, "intensity": int(number)}
            for label, number in zip(task.output_names, row, strict=True)
            if number > 0
        ]
        for row in numbers
    ]
