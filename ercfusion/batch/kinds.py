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
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

from ercfusion._core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ercfusion.batch.labels import LabelSchema
    from ercfusion.batch.predictions import Predictions
    from ercfusion.batch.task import TaskSpec


class TableRow(Protocol):
    """What a kind may ask a row of a user's table; :class:`ercfusion.data.tabular.Row` is one."""

    def __getitem__(self, column: str) -> str:
        """The cell as text."""

    def number(self, column: str) -> float:
        """The cell as a finite number."""

    def label(self, column: str, schema: LabelSchema, text: str | None = None) -> str:
        """The label that the cell, or ``text`` of it, is a spelling of."""

    def fail(self, column: str, problem: str) -> NoReturn:
        """Raise an error that names file, line and column."""


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
    changes: ClassVar[bool] = False
    """A turn has one label, which may change from one turn to the next: a curriculum can count that."""
    thresholds: ClassVar[bool] = False
    """Decisions need thresholds, which are chosen on the dev split."""
    representation: ClassVar[str] = ""
    """What a representation loss may read from the targets: ``classes``, ``numbers``, or nothing."""
    label_smoothing: ClassVar[bool] = False
    """The loss uses ``objective.label_smoothing``."""
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    """Values of ``objective.loss`` that the kind knows; ``cross_entropy`` is its usual loss, whatever that is."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """What metrics are computed from: keys of :mod:`ercfusion.metrics.sums`, and names of
    :mod:`ercfusion.metrics.inputs`. Tasks of the kind have every metric that these suffice for.
    """
    headline: ClassVar[tuple[str, ...]] = ()
    """Scores that ``train`` prints."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Scores that a table of models shows after the chosen one."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """Names of :data:`ercfusion.plots.figures.PICTURES`: what is drawn of a split."""
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What a run's record says about scores that the field counts in several ways: a sentence, cut at its colon."""
    output_prefix: ClassVar[str] = "p/"
    """In ``predictions.parquet``, before the names of the K columns of outputs: probabilities are ``p/<label>``."""
    keeps_targets: ClassVar[bool] = False
    """``predictions.parquet`` has K columns ``t/<label>`` of targets, because ``truth`` alone does not say them."""

    column_per_label: ClassVar[bool] = False
    """In a user's table a target has the columns ``NAME.LABEL``; otherwise one column ``NAME``."""
    least_labels: ClassVar[int] = 2
    """A task with fewer labels says nothing."""
    signs: ClassVar[tuple[str, ...]] = ()
    """Signs that have a meaning of their own in a cell of a user's table."""

    # The task

    def check(self, task: TaskSpec) -> None:
        """Raise ValueError unless the parts of a task fit together."""
        if self.has_schema != (task.schema is not None):
            raise ValueError(
                f"task {task.name!r}: a {task.kind} task {'needs a' if self.has_schema else 'takes no'} schema"
            )
        if not self.has_schema and not task.dimensions:
            raise ValueError(f"task {task.name!r}: a {task.kind} task names its dimensions")

    # Targets

    @abstractmethod
    def encode(self, value: Any, task: TaskSpec) -> int | Sequence[float]:
        """A turn's target as a class index, or as K numbers; see ``index_targets``.

        Raises:
            TypeError, ValueError, CorpusFormatError: it is no target of such a task; the message says what is expected.
        """

    def label(self, value: Any, task: TaskSpec) -> str:
        """The label of a turn by which changes are told; for kinds with ``changes`` only."""
        raise NotImplementedError

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """How much a turn's target adds to the count of each label.

        Raises:
            TypeError: it is no target of such a task.
        """
        raise TypeError("a target without labels")

    def count_text(self, count: float, turns: int) -> str:
        """The count of a label among so many labelled turns, for a report."""
        return f"{count:g}"

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

    def best_thresholds(self, dev: Predictions) -> NDArray[np.float64]:
        """(K) decision thresholds chosen on the dev split; for kinds with ``thresholds`` only."""
        raise NotImplementedError

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

    # Predictions in a file

    @abstractmethod
    def answer_type(self, task: TaskSpec) -> Any:
        """The Arrow type of the columns ``truth`` and ``prediction``."""

    @abstractmethod
    def truths(self, part: Predictions) -> list[Any]:
        """N entries of ``truth``: what is right, in words; anything where the utterance is not labelled."""

    @abstractmethod
    def answers(self, part: Predictions) -> list[Any]:
        """N entries of ``prediction``."""

    @abstractmethod
    def decode(self, truth: Any, task: TaskSpec) -> int | Sequence[float]:
        """The encoded target of an entry of ``truth`` (without ``keeps_targets``)."""

    # Targets in a user's table

    def columns(self, name: str, outputs: Sequence[str]) -> list[str]:
        """The columns of the target ``name``."""
        return [f"{name}.{output}" for output in outputs] if self.column_per_label else [name]

    def parts(self, cell: str) -> list[str]:
        """The spellings of labels in a cell."""
        return [cell.strip()] if cell.strip() else []

    @abstractmethod
    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> Any:
        """The target of a row whose cells are all filled.

        Raises:
            CorpusFormatError: a cell holds no such target.
        """

    @abstractmethod
    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """The cells that :meth:`read` reads as this target."""

    # Tests

    @abstractmethod
    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, dict[str, int] | None]:
        """A random target of a turn, and its votes if the kind has any."""

    def distance(self, output: Tensor, value: Tensor, task: TaskSpec) -> float:
        """How far outputs of N utterances are from their targets: a share of wrong decisions, 0 if all are right."""
        from torch import as_tensor

        said = as_tensor(self.decide(output.numpy(force=True), None, task), device=value.device)
        return float((said != value).float().mean())


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
