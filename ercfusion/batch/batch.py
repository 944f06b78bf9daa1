"""The packed batch, the input of every architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ercfusion._core.errors import BatchError, did_you_mean
from ercfusion.batch.packing import Packing


@dataclass(frozen=True)
class TaskTargets:
    """Targets of one task for the N utterances of a batch.

    Args:
        value: (N) class indices of a single-label task; (N, C) zeros and ones (multi-label) or probabilities
            (distribution); (N, K) numbers (regression). Arbitrary if not ``valid``.
        valid: (N) bool, True if the utterance is labelled.
        votes: (N, C) annotators' counts, if the corpus has them.
    """

    value: Tensor
    valid: Tensor
    votes: Tensor | None = None


@dataclass(frozen=True)
class SequenceValues:
    """A packed sequence feature: utterance i owns the rows ``offsets[i]`` to ``offsets[i + 1]``.

    Args:
        values: (sum of T_i, D).
        offsets: (N + 1).
        positions: (sum of T_i) places of the steps in their utterances before some were hidden; None if none was.
    """

    values: Tensor
    offsets: Tensor
    positions: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """(sum of T_i) place of each step in its utterance, from 0, hidden steps included."""
        if self.positions is not None:
            return self.positions
        size = len(self.values)
        first = torch.repeat_interleave(self.offsets[:-1], self.offsets.diff(), output_size=size)
        return torch.arange(size, device=self.offsets.device) - first

    def without(self, hidden: Tensor) -> SequenceValues:
        """The sequences with fewer steps.

        Args:
            hidden: (sum of T_i) bool, True if the step is removed.
        """
        kept = ~hidden
        before = torch.cat([self.offsets.new_zeros(1), kept.cumsum(0)])
        return SequenceValues(self.values[kept], before[self.offsets], self.places[kept])

    def means(self) -> Tensor:
        """(N, D) mean of the steps of each utterance; zero without steps."""
        steps = self.offsets.diff()
        index = torch.arange(len(steps), device=steps.device)
        owner = torch.repeat_interleave(index, steps, output_size=len(self.values))
        sums = self.values.new_zeros(len(steps), self.values.shape[1]).index_add_(0, owner, self.values)
        return sums / steps.clamp(min=1)[:, None]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> SequenceValues:
        """A copy with ``change`` applied to every tensor."""
        positions = None if self.positions is None else change(self.positions)
        return SequenceValues(change(self.values), change(self.offsets), positions)


@dataclass(frozen=True)
class ConversationBatch:
    """B conversations with N utterances in all, packed without padding.

    Three masks are separate: *padding* exists only in the result of :meth:`pad`, *availability* is a property of the
    corpus, *drop* hides values on purpose. Models read their combination :attr:`present`, and values through
    :meth:`values`.

    Args:
        packing: Lengths and offsets of the conversations.
        features: (N, D) values by modality, in the column order of the masks.
        speaker: (N) integers, numbered from 0 within each conversation in order of first appearance.
        available: (N, M) bool, True if the corpus has the modality.
        drop: (N, M) bool, True if the modality is hidden; None hides nothing.
        targets: Targets by task name.
        sequences: Sequence features by modality; ``features`` holds the mean of their vectors.
        ids: (B) conversation ids; may be empty.
        stand_in: In distributed training: the conversations belong to another process and do not count.
    """

    packing: Packing
    features: Mapping[str, Tensor]
    speaker: Tensor
    available: Tensor
    drop: Tensor | None = None
    targets: Mapping[str, TaskTargets] = field(default_factory=dict)
    sequences: Mapping[str, SequenceValues] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    stand_in: bool = False

    def __post_init__(self) -> None:
        total = self.packing.total
        for name, value in self.features.items():
            if value.ndim != 2 or value.shape[0] != total:
                raise BatchError(
                    f"features {name!r} have shape {tuple(value.shape)}; the batch has {total} utterances. "
                    f"Give a tensor ({total}, D)."
                )
        expected = (total, len(self.features))
        for name, mask in (("available", self.available), ("drop", self.drop)):
            if mask is not None and (tuple(mask.shape) != expected or mask.dtype != torch.bool):
                raise BatchError(
                    f"{name} must be bool of shape {expected}, found {mask.dtype} {tuple(mask.shape)}. "
                    "Give one column per modality."
                )
        if tuple(self.speaker.shape) != (total,):
            raise BatchError(
                f"speaker must have shape ({total},), found {tuple(self.speaker.shape)}. Give one number per utterance."
            )

    def __repr__(self) -> str:
        widths = (
            f"{name} {value.shape[1]}" + (" (sequence)" * (name in self.sequences))
            for name, value in self.features.items()
        )
        parts = [f"{self.packing.size} conversations, {self.packing.total} utterances", *widths]
        parts += [f"targets {', '.join(self.targets)}"] if self.targets else []
        parts += [f"{int(self.drop.sum())} values hidden"] if self.drop is not None else []
        return f"ConversationBatch({'; '.join(parts)}; {self.packing.device})"

    # Contents

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the M modalities in column order."""
        return tuple(self.features)

    @property
    def num_utterances(self) -> int:
        """N, the number of utterances."""
        return self.packing.total

    @property
    def num_conversations(self) -> int:
        """B, the number of conversations."""
        return self.packing.size

    @property
    def offsets(self) -> Tensor:
        """(B + 1) first row of each conversation, then N."""
        return self.packing.offsets

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.speaker.device

    @property
    def present(self) -> Tensor:
        """(N, M) bool, available and not dropped: the mask for models."""
        return self.available if self.drop is None else self.available & ~self.drop

    def column(self, modality: str) -> int:
        """Column of a modality in the masks.

        Raises:
            BatchError: the batch does not have the modality.
        """
        if modality not in self.features:
            raise BatchError(
                f"the batch has no modality {modality!r}; it has {', '.join(self.features)}. "
                + did_you_mean(modality, self.features)
            )
        return self.modalities.index(modality)

    def values(self, modality: str) -> Tensor:
        """(N, D) values; zero if the modality is not present, even if NaN is stored."""
        present = self.present[:, self.column(modality)]
        return torch.where(present[:, None], self.features[modality], 0.0)

    def sequence(self, modality: str) -> SequenceValues:
        """The sequence feature, zero if not present; an utterance-level modality has T = 1."""
        if modality not in self.sequences:
            steps = torch.arange(self.num_utterances + 1, device=self.device)
            return SequenceValues(self.values(modality), steps)
        stored = self.sequences[modality]
        present = self.present[:, self.column(modality)]
        rows = torch.repeat_interleave(present, stored.offsets.diff(), output_size=len(stored.values))
        return replace(stored, values=torch.where(rows[:, None], stored.values, 0.0))

    # Shapes

    def pad(self, values: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
        """(N, ...) -> (B, L, ...) and the mask (B, L), True at utterances."""
        return self.packing.pad(values, fill), self.packing.mask

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the inverse of :meth:`pad`."""
        return self.packing.pack(padded)

    # Copies

    def map_tensors(self, change: Any) -> ConversationBatch:
        """A copy with ``change`` applied to every tensor except those of the packing."""
        return replace(
            self,
            features={name: change(value) for name, value in self.features.items()},
            speaker=change(self.speaker),
            available=change(self.available),
            drop=None if self.drop is None else change(self.drop),
            targets={
                name: TaskTargets(
                    change(target.value), change(target.valid), None if target.votes is None else change(target.votes)
                )
                for name, target in self.targets.items()
            },
            sequences={name: stored.map_tensors(change) for name, stored in self.sequences.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ConversationBatch:
        """The batch on another device."""
        moved = self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, packing=self.packing.to(device))

    def pin_memory(self) -> ConversationBatch:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())

    def hide(self, drop: Tensor, steps: Mapping[str, Tensor] | None = None) -> ConversationBatch:
        """The batch with more hidden values.

        Hidden steps are removed from their sequences, and ``features`` has the means of the others. A modality is
        hidden if all its steps are. Stored values do not change.

        Args:
            drop: (N, M) bool, added to the hidden values.
            steps: (sum of T_i) bool by modality, True if the step is hidden.

        Raises:
            BatchError: A modality in ``steps`` has no sequences, or a mask has the wrong shape.
        """
        drop = drop if self.drop is None else self.drop | drop
        features, sequences = dict(self.features), dict(self.sequences)
        for name, hidden in (steps or {}).items():
            column = self.column(name)
            if name not in sequences:
                raise BatchError(
                    f"steps of {name!r} cannot be hidden: it has one vector per utterance. Use drop for it."
                )
            stored = sequences[name]
            if hidden.shape != stored.values.shape[:1] or hidden.dtype != torch.bool:
                raise BatchError(
                    f"steps of {name!r} must be bool of shape ({len(stored.values)},), found {hidden.dtype} "
                    f"{tuple(hidden.shape)}. Give one value per step."
                )
            sequences[name] = shorter = stored.without(hidden)
            before, after = stored.offsets.diff(), shorter.offsets.diff()
            features[name] = torch.where((after < before)[:, None], shorter.means(), features[name])
            emptied = (before > 0) & (after == 0)
            drop = drop | (emptied[:, None] & (torch.arange(drop.shape[1], device=drop.device) == column))
        return replace(self, features=features, sequences=sequences, drop=drop)
