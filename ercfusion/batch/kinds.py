"""What a task kind is, and the kinds by name.

A kind says how the tasks of this kind are encoded, learned, decided, scored, written, read and drawn. Its name is in
files; its class is in one file of its own: :mod:`ercfusion.tasks.kinds` has those of the library, one file each. No
other code may branch on the name of a kind.

Importing this module, or a kind, loads no torch: the processes that extract features have no use for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ercfusion._core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ercfusion.batch.predictions import Predictions
    from ercfusion.batch.task import TaskSpec


class TaskKind(ABC):
    """The rules of all tasks of one kind. One object serves all of them and keeps no state.

    Letters: N utterances, C classes, K outputs (the classes, or the regressed dimensions).
    """

    has_schema: ClassVar[bool] = True
    """The task has a label schema; otherwise it has named dimensions and a range."""
    default_metric: ClassVar[str] = "weighted_f1"
    """The dev score that chooses the checkpoint of a task that names none."""
    index_targets: ClassVar[bool] = False
    """Encoded targets are (N) class indices; otherwise (N, K) numbers in single precision."""
    representation: ClassVar[str] = ""
    """What a representation loss may read from the targets: ``classes``, ``numbers``, or nothing."""
    label_smoothing: ClassVar[bool] = False
    """The loss uses ``objective.label_smoothing``."""
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    """Values of ``objective.loss`` that the kind knows; ``cross_entropy`` is its usual loss, whatever that is."""
    sums: ClassVar[tuple[str, ...]] = ()
    """Keys of :mod:`ercfusion.metrics.sums`: what is kept of every conversation."""
    headline: ClassVar[tuple[str, ...]] = ()
    """Scores that ``train`` prints."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Scores that a table of models shows after the chosen one."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """Names of :data:`ercfusion.plots.figures.PICTURES`: what is drawn of a split."""
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Keys of a run's record that say how scores were counted where the field does not agree."""

    # The task

    def check(self, task: TaskSpec) -> None:
        """Raise ValueError unless the parts of a task fit together."""
        if self.has_schema != (task.schema is not None):
            raise ValueError(
                f"task {task.name!r}: a {task.kind} task {'needs a' if self.has_schema else 'takes no'} schema"
            )
        if not self.has_schema and not task.dimensions:
            raise ValueError(f"task {task.name!r}: a {task.kind} task names its dimensions")

    @abstractmethod
    def metrics(self, task: TaskSpec) -> tuple[str, ...]:
        """Names of the scores that a task can have, in the order in which they are shown."""

    # Targets

    @abstractmethod
    def encode(self, value: Any, task: TaskSpec) -> int | Sequence[float]:
        """A turn's target as a class index, or as K numbers; see ``index_targets``.

        Raises:
            TypeError, ValueError, CorpusFormatError: it is no target of such a task; the message says what is expected.
        """

    def label(self, value: Any, task: TaskSpec) -> str | None:
        """The label by which a change from one turn to the next is told; None where the kind knows no such label."""
        return None

    # Decisions

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """(N) class indices from (N, K) outputs, or (N, C) bool for a kind that decides on every label.

        Raises:
            ValueError: the kind decides nothing.
        """
        raise ValueError(f"task {task.name!r} is a {task.kind}: it has no decisions")

    def right_labels(
        self, value: NDArray[Any], valid: NDArray[Any], task: TaskSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N) right class indices, and (N) bool where there is one.

        Raises:
            ValueError: no utterance of such a task has a single right label.
        """
        raise ValueError(f"task {task.name!r} is {task.kind}: it has no single right label")

    def best_thresholds(self, dev: Predictions) -> NDArray[np.float64] | None:
        """(K) decision thresholds chosen on the dev split; None for a kind that decides without."""
        return None

    def constant_output(self, task: TaskSpec) -> float:
        """An output that says nothing: the same for every utterance and every one of the K."""
        return 1 / task.size

    # Learning

    def num_logits(self, task: TaskSpec) -> int:
        """Width of the head."""
        return task.size

    @abstractmethod
    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """Logits (``num_logits``) of the labels' distribution: what the head says without evidence.

        Args:
            value: Encoded targets of the labelled utterances of the training split.
            task: Whose they are.
        """

    @abstractmethod
    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) probabilities, or numbers within the task's range."""

    @abstractmethod
    def loss(self, logits: Tensor, value: Tensor, task: TaskSpec, **settings: Any) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses of N labelled utterances, and the sum of their weights.

        Args:
            logits: (N, ``num_logits``).
            value: Encoded targets.
            task: Whose they are.
            settings: ``weights`` (C) or None, ``gamma`` of the focal loss, ``label_smoothing``, ``regression_loss``. A
                kind uses what it knows.
        """

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor | None:
        """(N, C) how much each utterance adds to the count of each class; None where there are no classes."""
        return None

    def outcomes(self, logits: Tensor) -> Tensor | None:
        """(N, S, R) logits of S questions with R outcomes each, exactly one of which occurs; None without any."""
        return logits.unsqueeze(1)


def _own() -> dict[str, str]:
    # One file, one kind: single_label.py has SingleLabel.
    package = "ercfusion.tasks.kinds"
    folder = Path(__file__).parents[1] / "tasks" / "kinds"
    names = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    return {name: f"{package}.{name}:{name.title().replace('_', '')}" for name in names}


KINDS: Registry[TaskKind] = Registry("task kind", _own())
"""The kinds of the library and those that were registered, by name."""


def register(name: str, target: str) -> None:
    """Make a task kind of your own known by name.

    Args:
        name: New name; a taken one is refused.
        target: ``"module:Class"``, a subclass of :class:`TaskKind`; the module is loaded on first use.

    Raises:
        ConfigError: the name belongs to another kind.
    """
    KINDS.register(name, target)


def task_kind(name: str) -> TaskKind:
    """The rules of a kind.

    Raises:
        ConfigError: unknown name; the message names the nearest.
    """
    return _made(name, KINDS.get(name, ""))


@cache
def _made(name: str, target: str) -> TaskKind:
    return KINDS.load(name)()
