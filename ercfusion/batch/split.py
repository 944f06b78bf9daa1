"""A split of a corpus, seen from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ercfusion.batch.batch import ConversationBatch, TaskTargets


class Split(Protocol):
    """Conversations as tensors; :class:`ercfusion.data.store.ConversationStore` is one."""

    @property
    def lengths(self) -> Sequence[int]:
        """Utterances of each conversation."""

    @property
    def speaker(self) -> Tensor:
        """(N) numbers of the speakers within their conversations."""

    @property
    def targets(self) -> Mapping[str, TaskTargets]:
        """Targets of the N utterances by task."""

    @property
    def conversation_ids(self) -> tuple[str, ...]:
        """Ids of the conversations."""

    @property
    def turn_ids(self) -> tuple[str, ...]:
        """Ids of the N utterances."""

    def __len__(self) -> int:
        """Number of conversations."""

    def batch(self, indices: Sequence[int]) -> ConversationBatch:
        """The conversations with these numbers."""

    def batches(self, conversations: int) -> Iterator[ConversationBatch]:
        """All conversations in order, ``conversations`` per batch."""
