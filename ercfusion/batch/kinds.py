"""Task kinds and their registry.

A kind defines how its tasks are encoded, learned, decided, scored, written, read and drawn. Each is a file of
:mod:`ercfusion.tasks.kinds`; no other code may branch on the name. Importing this module or a kind does not load torch,
for extraction processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Protocol

from ercfusion._core.errors import ConfigError
from ercfusion._core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ercfusion.batch.labels import LabelSchema
    from ercfusion.batch.predictions import Predictions
    from ercfusion.batch.task import TaskSpec

_NO_LABELS = "a task of numbers has no labels to map. Use a task with labels."


class TableRow(Protocol):
    """A row of a user's table, as a kind reads it; implemented by :class:`ercfusion.data.tabular.Row`."""

    def __getitem__(self, column: str) -> str:
        """The cell as text."""

    def number(self, column: str) -> float:
        """The cell as a finite number."""

    def label(self, column: str, schema: LabelSchema, text: str | None = None) -> str:
        """The label with the spelling in the cell, or in ``text``, a part of the cell."""

    def fail(self, column: str, problem: str) -> NoReturn:
        """Raise an error with file, line and column."""


class TaskKind(ABC):
    """The rules of all tasks of one kind: one object without state.

    Letters: N utterances, C classes, K outputs (the classes, or the regressed dimensions).
    """

    has_schema: ClassVar[bool] = True
    """Tasks have a label schema; otherwise named dimensions and a range."""
    scaled: ClassVar[bool] = False
    """Tasks with a label schema have a range of whole numbers, too: ``low`` to ``high``."""
    default_metric: ClassVar[str] = "weighted_f1"
    """Dev score that selects the checkpoint if the task names none."""
    index_targets: ClassVar[bool] = False
    """Encoded targets are (N) class indices; otherwise (N, K) single-precision numbers."""
    changes: ClassVar[bool] = False
    """A turn has one label, so curricula can count changes between turns."""
    thresholds: ClassVar[bool] = False
    """Decisions use thresholds chosen on the dev split."""
    representation: ClassVar[str] = ""
    """Targets that a representation loss can read: ``classes``, ``numbers``, or none."""
    has_spread: ClassVar[bool] = False
    """The head predicts standard deviations of the outputs (:meth:`spread`)."""
    label_smoothing: ClassVar[bool] = False
    """The loss uses ``objective.label_smoothing``."""
    penalty: ClassVar[bool] = False
    """The loss can use the penalties of ``objective.penalty``."""
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    """Allowed values of ``objective.loss``; ``cross_entropy`` is the default loss of the kind."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Inputs of metrics: keys of :mod:`ercfusion.metrics.sums` and names of :mod:`ercfusion.metrics.inputs`. A task has
    every metric computable from them.
    """
    headline: ClassVar[tuple[str, ...]] = ()
    """Scores printed by ``train``."""
    table_scores: ClassVar[tuple[str, ...]] = ()
    """Scores of a table of models, after the selected one."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """Figures of a split: names of :data:`ercfusion.plots.figures.PICTURES`."""
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Notes of the run record on scores with several definitions; the short form ends at the colon."""
    probabilities: ClassVar[Literal["", "exclusive", "independent"]] = ""
    """Outputs of an utterance: ``exclusive``: probabilities of C labels with the sum 1; ``independent``: a probability
    of every label; empty: neither.
    """
    output_prefix: ClassVar[str] = "p/"
    """Prefix of the K output columns of ``predictions.parquet``: probabilities are ``p/<label>``."""
    keeps_targets: ClassVar[bool] = False
    """``predictions.parquet`` has K target columns ``t/<label>``, because ``truth`` does not hold the whole target."""

    column_per_label: ClassVar[bool] = False
    """In a user's table a target has the columns ``NAME.LABEL``; otherwise one column ``NAME``."""
    label_wise: ClassVar[bool] = False
    """Architectures with a representation per label can learn such tasks: one logit per label, and :meth:`logits`."""
    least_labels: ClassVar[int] = 2
    """Smallest useful number of labels."""
    mark_columns: ClassVar[bool] = False
    """A target may also have the columns ``NAME.LABEL`` with a mark in each; see :meth:`read_marks`."""
    signs: ClassVar[tuple[str, ...]] = ()
    """Characters with a special meaning in a cell of a user's table."""

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
        """A turn's target as a class index or K numbers; see ``index_targets``.

        Raises:
            TypeError, ValueError, CorpusFormatError: not a target of such a task; the message says what is expected.
        """

    def label(self, value: Any, task: TaskSpec) -> str:
        """The label of a turn for counting changes; only for kinds with ``changes``."""
        raise NotImplementedError

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """What a turn's target adds to the count of each label.

        Raises:
            TypeError: not a target of such a task.
        """
        raise TypeError("a target without labels")

    def count_text(self, count: float, turns: int) -> str:
        """The count of a label among ``turns`` labelled turns, for a report."""
        return f"{count:g}"

    # Decisions

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """(N) class indices from (N, K) outputs, or (N, C) bool if the kind decides every label.

        Raises:
            ValueError: the kind makes no decisions.
        """
        raise ValueError(f"task {task.name!r} is a {task.kind}: it has no decisions")

    def right_labels(
        self, value: NDArray[Any], valid: NDArray[Any], task: TaskSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N) right class indices, and (N) bool, True if there is one.

        Raises:
            ValueError: utterances of such a task have no single right label.
        """
        raise ValueError(f"task {task.name!r} is {task.kind}: it has no single right label")

    def best_thresholds(self, dev: Predictions) -> NDArray[np.float64]:
        """(K) decision thresholds chosen on the dev split; only for kinds with ``thresholds``."""
        raise NotImplementedError

    def constant_output(self, task: TaskSpec) -> float:
        """An uninformative output, the same for all utterances and all K."""
        return 1 / task.size

    # Views: outputs of a task scored against the targets of another one with the same labels

    def view(self, output: NDArray[Any], source: TaskKind) -> NDArray[Any]:
        """(N, C) outputs of a task of the kind ``source`` as outputs of this kind.

        Independent probabilities become exclusive ones by division by their sum (1/C each if all are 0); all others
        are used unchanged.

        Raises:
            ValueError: the outputs of one of the kinds are not probabilities of labels.
        """
        if not (self.probabilities and source.probabilities):
            raise ValueError("only probabilities of labels can be scored as another kind of task")
        if self.probabilities == source.probabilities or self.probabilities == "independent":
            return output
        total = output.sum(axis=1, keepdims=True)
        output = output + (total == 0)
        shares: NDArray[Any] = output / output.sum(axis=1, keepdims=True)
        return shares

    # Label maps

    def merge_outputs(self, output: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
        """(N, K) outputs over other labels; see :class:`ercfusion.batch.shared.SharedLabels`.

        Args:
            output: (N, C).
            matrix: (C, K) zeros and ones, at most one 1 per row; a row of zeros has no counterpart.

        Raises:
            ConfigError: the kind has no labels.
        """
        raise ConfigError(_NO_LABELS)

    def merge_targets(
        self, value: NDArray[Any], valid: NDArray[Any], matrix: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Encoded targets over other labels, and (N) bool, False also if nothing of the target has a counterpart.

        Raises:
            ConfigError: the kind has no labels.
        """
        raise ConfigError(_NO_LABELS)

    # Learning

    def with_settings(self, **settings: Any) -> TaskKind:
        """The rules of a head with these settings of the section ``objective``; by default those of the kind.

        :class:`ercfusion.tasks.heads.Head` passes ``regression_loss``.
        """
        return self

    def num_logits(self, task: TaskSpec) -> int:
        """Width of the head."""
        return task.size

    @abstractmethod
    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """Logits (``num_logits``) of the label distribution, the head's bias without evidence.

        Args:
            value: Encoded targets of the labelled utterances of the training split.
            task: Their task.
        """

    @abstractmethod
    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) probabilities, or numbers in the range of the task."""

    def logits(self, outputs: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) logits with these outputs, the inverse of :meth:`outputs`; only for kinds with ``label_wise``.

        Finite with finite gradients, also for probabilities of 0 and 1.
        """
        raise NotImplementedError

    def spread(self, logits: Tensor, task: TaskSpec) -> Tensor | None:
        """(N, K) standard deviations of the outputs; None if the head does not predict any."""
        return None

    @abstractmethod
    def loss(self, logits: Tensor, value: Tensor, task: TaskSpec, **settings: Any) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses of N labelled utterances, and the sum of the weights.

        Args:
            logits: (N, ``num_logits``).
            value: Encoded targets.
            task: Their task.
            settings: ``weights`` (C) or None, ``gamma`` of the focal loss, ``label_smoothing``, ``regression_loss``,
                ``loss`` (one of ``losses``), ``penalties`` (C, C) or None, ``dimension_weights`` by name,
                ``gaussian_beta``, ``concordance`` (a function like :func:`ercfusion.losses.concordance`); a kind uses
                those it has.
        """

    def divergence(
        self, logits: Tensor, teacher: Tensor, task: TaskSpec, *, temperature: float = 1.0, **settings: Any
    ) -> Tensor:
        """(N) divergence of the outputs from a teacher's; here the mean squared difference of the outputs.

        Args:
            logits: (N, ``num_logits``) of the student.
            teacher: (N, ``num_logits``) of the teacher, without gradient.
            task: The task of both.
            temperature: Divisor of logits of labels.
            settings: As for :meth:`loss`.
        """
        return (self.outputs(logits, task) - self.outputs(teacher, task)).square().mean(-1)

    def mass_loss(
        self, logits: Tensor, mass: Tensor, task: TaskSpec, *, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Like :meth:`loss`, with labels put together from several utterances; only for kinds with ``label_wise``.

        Args:
            logits: (N, C).
            mass: (N, C) share of each label, each from another utterance.
            task: Their task.
            weights: (C) weights by label, or None.
        """
        raise NotImplementedError

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor | None:
        """(N, C) what each utterance adds to the count of each class; None without classes."""
        return None

    def ratings(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, K) targets as numbers between -1 and 1: shares of the labels, or numbers scaled by the task's range."""
        mass = self.class_mass(value, task)
        assert mass is not None, "a kind without classes has its own numbers"
        return mass

    def balance_counts(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(C) utterances per class, for the weights of the loss ``class_balanced``."""
        mass = self.class_mass(value, task)
        assert mass is not None, "a kind with this loss has classes"
        return mass.sum(0)

    def chosen(self, value: Tensor) -> Tensor | None:
        """(N, C) bool, the labels chosen by any annotator; None if targets do not tell."""
        return None

    def outcomes(self, logits: Tensor) -> Tensor | None:
        """(N, S, R) logits of S questions with R exclusive outcomes each; None without any."""
        return logits.unsqueeze(1)

    # Predictions in a file

    def output_columns(self, task: TaskSpec) -> list[str]:
        """Names of the outputs of an utterance in ``predictions.parquet``; by default K."""
        return [self.output_prefix + name for name in task.output_names]

    def intensities(self, part: Predictions) -> NDArray[np.float64]:
        """(N, C) predicted intensities, 0 for other labels; only for kinds with the input ``intensities``."""
        raise NotImplementedError

    @abstractmethod
    def answer_type(self, task: TaskSpec) -> Any:
        """Arrow type of the columns ``truth`` and ``prediction``."""

    @abstractmethod
    def truths(self, part: Predictions) -> list[Any]:
        """N values of ``truth``, readable; arbitrary if the utterance is not labelled."""

    @abstractmethod
    def answers(self, part: Predictions) -> list[Any]:
        """N values of ``prediction``, readable."""

    @abstractmethod
    def decode(self, truth: Any, task: TaskSpec) -> int | Sequence[float]:
        """The encoded target of a value of ``truth`` (without ``keeps_targets``)."""

    # Targets in a user's table

    def columns(self, name: str, outputs: Sequence[str]) -> list[str]:
        """Columns of the target ``name``."""
        return [f"{name}.{output}" for output in outputs] if self.column_per_label else [name]

    def parts(self, cell: str, labels: Sequence[str] = ()) -> list[str]:
        """Spellings of labels in a cell; ``labels`` are the known ones."""
        return [cell.strip()] if cell.strip() else []

    def form(self, cell: str, labels: Sequence[str] = ()) -> str:
        """How a cell separates several labels, in words; empty for the usual form or one label."""
        return ""

    def read_marks(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> Any:
        """The target of a row with a mark per label; only for kinds with ``mark_columns``.

        Raises:
            CorpusFormatError: a cell does not contain a mark.
        """
        raise NotImplementedError

    @abstractmethod
    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> Any:
        """The target of a row whose cells are all filled.

        Raises:
            CorpusFormatError: a cell does not contain such a target.
        """

    @abstractmethod
    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """The cells from which :meth:`read` gives this target."""

    # Tests

    @abstractmethod
    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, dict[str, int] | None]:
        """A random target of a turn, and its votes if the kind has any."""

    def distance(self, output: Tensor, value: Tensor, task: TaskSpec) -> float:
        """Distance of N outputs from their targets: share of wrong decisions, 0 if all are right."""
        from torch import as_tensor

        decisions = as_tensor(self.decide(output.numpy(force=True), None, task), device=value.device)
        return float((decisions != value).float().mean())


def _own() -> dict[str, str]:
    # One kind per file: single_label.py contains SingleLabel.
    package = "ercfusion.tasks.kinds"
    folder = Path(__file__).parents[1] / "tasks" / "kinds"
    names = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    return {name: f"{package}.{name}:{name.title().replace('_', '')}" for name in names}


KINDS: Registry[TaskKind] = Registry("task kind", _own())
"""Kinds of the library and registered ones, by name."""


def register(name: str, target: str) -> None:
    """Register your own task kind under a name.

    Args:
        name: A name not in use.
        target: ``"module:Class"``, a subclass of :class:`TaskKind`; the module is loaded on first use.

    Raises:
        ConfigError: the name belongs to another kind.
    """
    KINDS.register(name, target)


def task_kind(name: str) -> TaskKind:
    """The rules of a kind.

    Raises:
        ConfigError: unknown name.
    """
    return _made(name, KINDS.get(name, ""))


@cache
def _made(name: str, target: str) -> TaskKind:
    return KINDS.load(name)()
