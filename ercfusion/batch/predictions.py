"""Outputs and targets of a split, the input of scores, intervals and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.task import TaskSpec

# Targets are stored in single precision: 1/C read back may exceed 1/C in double precision, and equal shares of votes
# may differ slightly.
PROBABILITY_TOLERANCE = 1e-6

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs for the N utterances of a split, conversations in order.

    Args:
        task: The task.
        output: (N, K) float64: probabilities (softmax of single-label and distribution tasks, sigmoid of multi-label
            tasks), or numbers of a regression; (N, 2C) probabilities and intensities of an intensity task.
        value: Targets as in :class:`ercfusion.batch.batch.TaskTargets`; arbitrary if not ``valid``.
        valid: (N) bool, True if the utterance is labelled.
        lengths: Utterances of each conversation.
        speaker: (N) integers, numbered within the conversation.
        conversation_ids: One per conversation.
        turn_ids: One per utterance.
        thresholds: (C) decision thresholds of a multi-label task; None for 0.5.
        votes: (N, C) annotators' votes, if the targets have any; rows without votes are 0. Files do not have them.
        spread: (N, K) standard deviations of the outputs, in the unit of the targets, if the head predicts them.
    """

    task: TaskSpec
    output: NDArray[Any]
    value: NDArray[Any]
    valid: NDArray[Any]
    lengths: tuple[int, ...]
    speaker: NDArray[Any]
    conversation_ids: tuple[str, ...]
    turn_ids: tuple[str, ...]
    thresholds: NDArray[Any] | None = None
    spread: NDArray[Any] | None = None
    votes: NDArray[Any] | None = None

    def __repr__(self) -> str:
        labelled = int(np.count_nonzero(self.valid))
        return (
            f"Predictions({self.task.name}: {len(self.lengths)} conversations, {len(self.valid)} utterances, "
            f"{labelled} of them labelled, {self.task.size} outputs)"
        )

    def __post_init__(self) -> None:
        count, size = sum(self.lengths), self.task.size
        outputs = len(self.task.rules.output_columns(self.task))
        value_shape = (count,) if self.task.rules.index_targets else (count, size)
        for name, shape, expected in (
            ("output", np.shape(self.output), (count, outputs)),
            ("value", np.shape(self.value), value_shape),
            ("valid", np.shape(self.valid), (count,)),
            ("speaker", np.shape(self.speaker), (count,)),
            ("conversation_ids", (len(self.conversation_ids),), (len(self.lengths),)),
            ("turn_ids", (len(self.turn_ids),), (count,)),
            ("thresholds", (size,) if self.thresholds is None else np.shape(self.thresholds), (size,)),
            ("votes", (count, size) if self.votes is None else np.shape(self.votes), (count, size)),
            ("spread", (count, size) if self.spread is None else np.shape(self.spread), (count, size)),
        ):
            if shape != expected:
                raise ValueError(f"predictions of task {self.task.name!r}: {name} has shape {shape}, not {expected}")

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def conversation(self) -> Ints:
        """(N) number of the conversation of each utterance."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def decisions(self) -> NDArray[Any]:
        """(N) class indices; (N, C) bool for a multi-label task (``probability >= threshold``).

        Raises:
            ValueError: the kind of task makes no decisions.
        """
        return self.task.rules.decide(self.output, self.thresholds, self.task)

    def labels(self) -> tuple[Ints, Bools]:
        """(N) right class indices, and (N) bool, True if there is one.

        Raises:
            ValueError: the kind of task has no single right label.
        """
        return self.task.rules.right_labels(self.value, self.valid, self.task)

    def take(self, conversations: Sequence[int] | NDArray[Any]) -> Predictions:
        """The predictions of some conversations by number; a number may occur twice."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        chosen = [int(position) for position in conversations]
        rows = np.concatenate(
            [np.arange(starts[position], starts[position + 1]) for position in chosen] or [np.zeros(0, dtype=int)]
        )
        return replace(
            self,
            output=self.output[rows],
            value=self.value[rows],
            valid=self.valid[rows],
            lengths=tuple(self.lengths[position] for position in chosen),
            speaker=self.speaker[rows],
            conversation_ids=tuple(self.conversation_ids[position] for position in chosen),
            turn_ids=tuple(self.turn_ids[row] for row in rows),
            spread=None if self.spread is None else self.spread[rows],
            votes=None if self.votes is None else self.votes[rows],
        )
