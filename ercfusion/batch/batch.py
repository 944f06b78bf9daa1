"""The packed batch that every architecture receives."""

from __future__ import annotations

from collections.abc import Mapping
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
        value: (N) class indices for a single-label task; (N, C) zeros and ones for a multi-label task, or
            probabilities for a distribution task; (N, K) numbers for a regression task. Arbitrary where not ``valid``.
        valid: (N) bool, True where the utterance is labelled.
        votes: (N, C) annotators' counts, where the corpus has them.
    """

    value: Tensor
    valid: Tensor
    votes: Tensor | None = None


@dataclass(frozen=True)
class SequenceValues:
    """A sequence feature, packed a second time: utterance i owns the rows ``offsets[i]`` to ``offsets[i + 1]``.

    Args:
        values: (sum of T_i, D).
        offsets: (N + 1).
    """

    values: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class ConversationBatch:
    """B conversations with N utterances in all, packed: no padding exists until a layer asks for it.

    Three masks are kept apart. *Padding* exists only in what :meth:`pad` returns. *Availability* says what the corpus
    has. *Drop* says what is hidden on purpose. A model sees :attr:`present`, their combination, and reads values
    through :meth:`values`, which never lets the content of an absent modality through.

    Args:
        packing: Lengths and offsets of the conversations.
        features: Modality name to (N, D) values, in the column order of the masks.
        speaker: (N) integers, numbered from 0 within each conversation in order of first appearance.
        available: (N, M) bool, True where the corpus has the modality.
        drop: (N, M) bool, True where it is hidden on purpose; None hides nothing.
        targets: By task name.
        sequences: Modality name to a sequence feature; such a modality has a column in the masks and, in
            ``features``, the mean of its vectors, so that utterance-level models can use it.
        ids: The conversations' ids, length B (may be empty).
        stand_in: In distributed training: this process has no part of the batch, and these conversations, which belong
            to another one, stand in for it. They count in nothing.
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
                raise BatchError(f"features {name!r} have shape {tuple(value.shape)}; the batch has {total} utterances")
        expected = (total, len(self.features))
        for name, mask in (("available", self.available), ("drop", self.drop)):
            if mask is not None and (tuple(mask.shape) != expected or mask.dtype != torch.bool):
                raise BatchError(f"{name} must be bool of shape {expected}, found {mask.dtype} {tuple(mask.shape)}")
        if tuple(self.speaker.shape) != (total,):
            raise BatchError(f"speaker must have shape ({total},), found {tuple(self.speaker.shape)}")

    def __repr__(self) -> str:
        held = (
            f"{name} {value.shape[1]}" + (" (sequence)" * (name in self.sequences))
            for name, value in self.features.items()
        )
        parts = [f"{self.packing.size} conversations, {self.packing.total} utterances", *held]
        parts += [f"targets {', '.join(self.targets)}"] if self.targets else []
        parts += [f"{int(self.drop.sum())} values hidden"] if self.drop is not None else []
        return f"ConversationBatch({'; '.join(parts)}; {self.packing.device})"

    # What is in it

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the M modalities in column order."""
        return tuple(self.features)

    @property
    def num_utterances(self) -> int:
        """N."""
        return self.packing.total

    @property
    def num_conversations(self) -> int:
        """B."""
        return self.packing.size

    @property
    def offsets(self) -> Tensor:
        """(B + 1) first rows of the conversations, and N."""
        return self.packing.offsets

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.speaker.device

    @property
    def present(self) -> Tensor:
        """(N, M) bool: available and not dropped. The only mask that a model looks at."""
        return self.available if self.drop is None else self.available & ~self.drop

    def column(self, modality: str) -> int:
        """Column of a modality in the masks.

        Raises:
            BatchError: the batch has no such modality; the message names those it has.
        """
        if modality not in self.features:
            raise BatchError(
                f"the batch has no modality {modality!r}; it has {', '.join(self.features)}. "
                + did_you_mean(modality, self.features)
            )
        return self.modalities.index(modality)

    def values(self, modality: str) -> Tensor:
        """(N, D) values, exactly zero where the modality is not present, even if NaN is stored there."""
        present = self.present[:, self.column(modality)]
        return torch.where(present[:, None], self.features[modality], 0.0)

    def sequence(self, modality: str) -> SequenceValues:
        """The sequence feature with zeros where not present; an utterance-level modality becomes T = 1 everywhere."""
        if modality not in self.sequences:
            steps = torch.arange(self.num_utterances + 1, device=self.device)
            return SequenceValues(self.values(modality), steps)
        stored = self.sequences[modality]
        present = self.present[:, self.column(modality)]
        rows = torch.repeat_interleave(present, stored.offsets.diff(), output_size=len(stored.values))
        return replace(stored, values=torch.where(rows[:, None], stored.values, 0.0))

    # Shapes

    def pad(self, values: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
        """(N, ...) -> (B, L, ...) and the mask (B, L), True where there is an utterance."""
        return self.packing.pad(values, fill), self.packing.mask

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the inverse of :meth:`pad`."""
        return self.packing.pack(padded)

    # Copies

    def map_tensors(self, change: Any) -> ConversationBatch:
        """A copy with ``change`` applied to every tensor that describes utterances."""
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
            sequences={
                name: SequenceValues(change(stored.values), change(stored.offsets))
                for name, stored in self.sequences.items()
            },
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ConversationBatch:
        """The batch on another device."""
        moved = self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, packing=self.packing.to(device))

    def pin_memory(self) -> ConversationBatch:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())

    def hide(self, drop: Tensor) -> ConversationBatch:
        """The batch with more hidden: ``drop`` (N, M) bool is added to what is hidden already."""
        return replace(self, drop=drop if self.drop is None else self.drop | drop)
