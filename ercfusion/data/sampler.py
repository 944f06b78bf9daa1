"""Sampling of conversations into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ercfusion.data.curriculum import Curriculum

POOL = 8
"""Batches per pool of conversations sorted by length: enough to save padding, few enough to stay random."""


class ConversationSampler(Sampler[list[int]]):
    """Batches of conversation indices, in an order depending only on (seed, epoch): runs can be resumed.

    In distributed training every process gets a share of each batch, which may be empty in the last one. A
    curriculum selects a part of the conversations per epoch; with all of them, batches are as without it.

    Args:
        lengths: Utterances of each conversation.
        batch_size: Conversations per batch, over all processes.
        seed: Seed of the run.
        length_aware: Batches have conversations of similar length: sorted within pools of :data:`POOL` batches.
        rank, world_size: This process and the number of processes.
        curriculum: Conversations by epoch; None uses all.
        limit: Maximum number of batches per epoch, or as a float up to 1.0 their share (at least one); None for all.
        passes: How often each batch is repeated, at once.

    Raises:
        ValueError: more processes than conversations in a batch, or another split's curriculum.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        *,
        length_aware: bool = True,
        rank: int = 0,
        world_size: int = 1,
        curriculum: Curriculum | None = None,
        limit: float | None = None,
        passes: int = 1,
    ) -> None:
        if curriculum is not None and len(curriculum) != len(lengths):
            raise ValueError(f"a curriculum of {len(curriculum)} conversations for a split of {len(lengths)}")
        if batch_size < world_size:
            raise ValueError(f"{world_size} processes need at least as many conversations in a batch, not {batch_size}")
        if not lengths:
            raise ValueError("the split has no conversations")
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.length_aware = length_aware
        self.rank = rank
        self.world_size = world_size
        self.curriculum = curriculum
        self.limit = limit
        self.passes = passes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0 (called by the trainer)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of the chosen epoch, with their repetitions."""
        return self.passes * self._used(self._count(self.epoch))

    def steps(self, epochs: int, batches: int = 1) -> int:
        """Optimiser steps in the first ``epochs`` epochs, with one step per ``batches`` batches.

        The remaining batches of an epoch also make a step.
        """
        return sum(-(-self.passes * self._used(self._count(epoch)) // batches) for epoch in range(epochs))

    def _used(self, count: int) -> int:
        """Batches of an epoch of ``count`` conversations."""
        number = len(self._cuts(count))
        if self.limit is None:
            return number
        return max(1, int(self.limit * number)) if isinstance(self.limit, float) else min(int(self.limit), number)

    def _count(self, epoch: int) -> int:
        return len(self.lengths) if self.curriculum is None else self.curriculum.count(epoch)

    def _cuts(self, count: int) -> list[slice]:
        """Slices of the shuffled conversations, independent of the number of processes."""
        return [slice(start, start + self.batch_size) for start in range(0, count, self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self._count(self.epoch), generator=generator).tolist()
        if self.curriculum is not None:
            used = self.curriculum.conversations(self.epoch)
            order = [used[place] for place in order]
        if self.length_aware:
            pool = POOL * self.batch_size
            order = [
                index
                for start in range(0, len(order), pool)
                for index in sorted(order[start : start + pool], key=lambda index: self.lengths[index])
            ]
        batches = [order[cut] for cut in self._cuts(len(order))]
        for number in torch.randperm(len(batches), generator=generator).tolist()[: self._used(len(order))]:
            for _ in range(self.passes):
                yield batches[number][self.rank :: self.world_size]


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers; similar inputs give unrelated seeds (one SplitMix64 step per part)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state % 2**63
