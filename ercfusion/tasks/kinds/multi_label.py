"""The task kind ``multi_label``: any subset of C labels, the empty set included."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.kinds import TableRow, TaskKind
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.labels import best_thresholds
from ercfusion.metrics.registry import REGISTERED

if TYPE_CHECKING:
    from torch import Tensor

SEPARATOR = "|"
"""Separator of labels in a cell of a table."""
OTHER_SEPARATORS = (";", ",")
"""Also read, unless a label contains them."""
NOTHING = "-"
"""Cell of the empty set; an empty cell means unlabelled."""
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_QUOTED = re.compile(r"""(?:(['"]).*?\1(?:\s*,\s*|\s+|$))+""", re.DOTALL)
YES, NO, CROSS = ("1", "1.0", "yes", "true"), ("0", "0.0", "no", "false"), "x"
"""Marks in the columns of labels, in any case."""
_EMPTY_SETS = ", ".join(
    sorted(f"{metric.name} 1" for metric in REGISTERED.values() if metric.empty_sets and "sets" in metric.rows)
)


def label_parts(cell: str, labels: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The separator of a cell's labels in words, and the labels as spelled.

    ``joy|anger``, ``joy; anger``, ``joy, anger`` and lists such as ``['joy', 'anger']`` are sets. Semicolons and commas
    separate only if no known label contains them. The words are ``two separators`` for a mixture, and empty without a
    separator.

    Args:
        cell: For example ``joy|anger``.
        labels: Known labels.
    """
    cell = cell.strip()
    if cell in labels and SEPARATOR not in cell:
        return "", [cell]
    if len(cell) > 1 and _BRACKETS.get(cell[0]) == cell[-1]:
        inside = cell[1:-1].strip()
        if not inside or _QUOTED.fullmatch(inside):  # also without commas, as numpy writes them
            return "a list", [text for _, text in re.findall(r"""(['"])(.*?)\1""", inside, re.DOTALL)]
        if cell[0] != "(":  # (laughs) may be a label
            return "a list", [part.strip().strip("'\"") for part in inside.split(",")]
    known = [sign for sign in OTHER_SEPARATORS if not any(sign in label for label in labels)]
    used = [sign for sign in (SEPARATOR, *known) if sign in cell]
    if not used:
        return "", [cell] if cell else []
    pattern = "|".join(map(re.escape, used))
    return repr(used[0]) if len(used) == 1 else _MIXED, [part.strip() for part in re.split(pattern, cell)]


_MIXED = "two separators"


class MultiLabel(TaskKind):
    """A sigmoid and a threshold per label; thresholds are chosen on dev."""

    least_labels: ClassVar[int] = 1
    signs: ClassVar[tuple[str, ...]] = (SEPARATOR, NOTHING)
    mark_columns: ClassVar[bool] = True
    thresholds: ClassVar[bool] = True
    label_wise: ClassVar[bool] = True
    probabilities: ClassVar[Literal["", "exclusive", "independent"]] = "independent"
    penalty: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("counts", "sets", "label_probabilities")
    headline: ClassVar[tuple[str, ...]] = ("weighted_f1", "macro_f1", "micro_f1", "accuracy", "jaccard", "map")
    table_scores: ClassVar[tuple[str, ...]] = ("weighted_f1", "micro_f1", "jaccard")
    pictures: ClassVar[tuple[str, ...]] = ("class-f1", "thresholds", "cooccurrence", "label-reliability")
    conventions: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"an utterance without a label, predicted without one, counts": _EMPTY_SETS}
    )

    def encode(self, value: Any, task: TaskSpec) -> list[float]:
        """(C) zeros and ones from a set of labels."""
        assert task.schema is not None
        if not isinstance(value, frozenset):
            raise TypeError("a frozenset of label names is expected")
        encoded = [0.0] * task.size
        for label in value:
            encoded[task.schema.index(label)] = 1.0
        return encoded

    def label_mass(self, value: Any) -> Mapping[str, float]:
        """1 for each label of the set."""
        if not isinstance(value, frozenset):
            raise TypeError("a frozenset of label names is expected")
        return {str(label): 1 for label in value}

    def decide(self, output: NDArray[Any], thresholds: NDArray[Any] | None, task: TaskSpec) -> NDArray[Any]:
        """``probability >= threshold``, by default 0.5."""
        return np.asarray(output >= (0.5 if thresholds is None else thresholds))

    def best_thresholds(self, dev: Predictions) -> NDArray[np.float64]:
        """(C) thresholds with the best F1 on dev."""
        return best_thresholds(dev)

    def merge_outputs(self, output: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
        """The largest probability of labels with one counterpart."""
        return np.asarray((output[:, :, None] * matrix).max(axis=1))

    def merge_targets(
        self, value: NDArray[Any], valid: NDArray[Any], matrix: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Sets of the labels' counterparts; labels without one are left out."""
        return self.merge_outputs(value, matrix).astype(value.dtype), np.asarray(valid, dtype=bool)

    def prior(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(C) logits of the label frequencies."""
        return value.double().mean(0).clamp(1e-4, 1 - 1e-4).logit()

    def outputs(self, logits: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) probabilities."""
        return logits.sigmoid()

    def logits(self, outputs: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) log-odds."""
        import torch

        limits = torch.finfo(outputs.dtype)
        return outputs.clamp(limits.tiny, 1 - limits.eps).logit()

    def loss(
        self,
        logits: Tensor,
        value: Tensor,
        task: TaskSpec,
        *,
        weights: Tensor | None = None,
        penalties: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, weighted by label; utterances have equal weights."""
        from torch.nn import functional as F

        from ercfusion.losses import penalty_factors

        each = F.binary_cross_entropy_with_logits(logits, value, weight=weights, reduction="none").mean(-1)
        if penalties is not None:
            each = penalty_factors(penalties, value, logits.sigmoid()) * each
        weight = logits.new_ones(len(logits))
        return (weight * each).sum(), weight.sum()

    def divergence(
        self, logits: Tensor, teacher: Tensor, task: TaskSpec, *, temperature: float = 1.0, **settings: Any
    ) -> Tensor:
        """(N) :func:`ercfusion.losses.softened_binary_divergence`."""
        from ercfusion.losses import softened_binary_divergence

        return softened_binary_divergence(logits, teacher, temperature)

    def mass_loss(
        self, logits: Tensor, mass: Tensor, task: TaskSpec, *, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy: any set of labels is a target."""
        return self.loss(logits, mass, task, weights=weights)

    def class_mass(self, value: Tensor, task: TaskSpec) -> Tensor:
        """(N, C) zeros and ones."""
        return value

    def chosen(self, value: Tensor) -> Tensor:
        """(N, C) bool, the labels of the sets."""
        return value > 0.5

    def outcomes(self, logits: Tensor) -> Tensor:
        """(N, C, 2) logits of no and yes."""
        import torch

        return torch.stack([torch.zeros_like(logits), logits], dim=-1)

    def answer_type(self, task: TaskSpec) -> Any:
        """A list of label names."""
        import pyarrow as pa

        return pa.list_(pa.string())

    def truths(self, part: Predictions) -> list[Any]:
        """Lists of true labels."""
        return [list(itertools.compress(part.task.output_names, row)) for row in part.value > 0.5]

    def answers(self, part: Predictions) -> list[Any]:
        """Lists of predicted labels."""
        return [list(itertools.compress(part.task.output_names, row)) for row in part.decisions()]

    def decode(self, truth: Any, task: TaskSpec) -> Sequence[float]:
        """(C) zeros and ones from a list of labels."""
        return self.encode(frozenset(truth), task)

    def parts(self, cell: str, labels: Sequence[str] = ()) -> list[str]:
        """The labels in a cell."""
        return [part for part in label_parts(cell, labels)[1] if part not in ("", NOTHING)]

    def form(self, cell: str, labels: Sequence[str] = ()) -> str:
        """How a cell separates its labels, if not with :data:`SEPARATOR`."""
        form = label_parts(cell, labels)[0]
        return "" if form == repr(SEPARATOR) else form

    def read(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> frozenset[str]:
        """Read labels with separators, a list, or the sign of the empty set."""
        assert task.schema is not None
        cell = row[columns[0]].strip()
        if cell == NOTHING:
            return frozenset()
        form, parts = label_parts(cell, (*task.schema.labels, *task.schema.synonyms))
        if form == _MIXED:
            row.fail(columns[0], f"found {cell!r}: the labels have two separators. Write {SEPARATOR!r} between all.")
        # Each part is read like a cell with one label, for the same messages.
        if not all(parts):
            problem = f"found {cell!r}: a label is missing next to {form}. Write joy|anger, or -."
            row.fail(columns[0], problem)
        return frozenset(row.label(columns[0], task.schema, part) for part in parts)

    def read_marks(self, row: TableRow, columns: Sequence[str], task: TaskSpec) -> frozenset[str]:
        """Read 1 or 0 per label; next to crosses (``x``) empty cells are 0."""
        marks = [row[column].strip().casefold() for column in columns]
        crosses = {mark for mark in marks if mark} == {CROSS}
        chosen = set()
        for label, column, mark in zip(task.output_names, columns, marks, strict=True):
            if mark in YES or mark == CROSS:
                chosen.add(label)
            elif not mark and not crosses:
                row.fail(column, "the cell is empty, but others of the target are not. Write 1 or 0 into all of them.")
            elif mark and mark not in NO:
                row.fail(column, f"found {row[column].strip()!r}. Write 1 (or x) for the label, 0 without it.")
        return frozenset(chosen)

    def write(self, value: Any, task: TaskSpec) -> list[str]:
        """One cell, with labels in the schema's order."""
        return [SEPARATOR.join(label for label in task.output_names if label in value) or NOTHING]

    def random_target(self, task: TaskSpec, generator: np.random.Generator) -> tuple[Any, None]:
        """Every label with probability 0.5."""
        return frozenset(name for name in task.output_names if generator.random() < 0.5), None
