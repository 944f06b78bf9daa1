"""Window graphs over the utterances of conversations, built by arithmetic on offsets.

An edge (s, t) carries a message from utterance s to utterance t, which receives from the ``past`` utterances before it,
itself, and the ``future`` utterances after it (DialogueGCN, Ghosal et al., EMNLP 2019; COGMEN, Joshi et al., NAACL
2022).
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ercfusion.batch.packing import Packing

Relations = Literal["same_other", "speaker_pair"]
RELATIONS: tuple[Relations, ...] = ("same_other", "speaker_pair")


def window_edges_reference(packing: Packing, past: int, future: int) -> Tensor:
    """:func:`window_edges` as a loop over utterances: its specification."""
    edges = []
    first = 0
    for length in packing.lengths:
        for t in range(length):
            low = 0 if past < 0 else max(0, t - past)
            high = length - 1 if future < 0 else min(length - 1, t + future)
            edges += [(first + s, first + t) for s in range(low, high + 1)]
        first += length
    return torch.tensor(edges, device=packing.device).t().contiguous()


def window_edges(packing: Packing, past: int, future: int) -> Tensor:
    """Edges of the window graph.

    Args:
        packing: The conversations.
        past, future: Number of utterances before and after; -1 for all.

    Returns:
        (2, E) integers, sources in row 0 and targets in row 1, ordered by target, then by source. Every utterance has a
        self-loop.
    """
    position, length = packing.position, packing.length[packing.conversation]
    low = torch.zeros_like(position) if past < 0 else (position - past).clamp(min=0)
    high = length - 1 if future < 0 else torch.minimum(position + future, length - 1)
    count = high - low + 1
    total = sum(_edge_count(n, past, future) for n in packing.lengths)
    target = torch.repeat_interleave(torch.arange(packing.total, device=packing.device), count, output_size=total)
    first_edge = count.cumsum(0) - count
    first_source = packing.offsets[packing.conversation] + low
    source = torch.arange(total, device=packing.device) + (first_source - first_edge)[target]
    return torch.stack([source, target])


def _edge_count(length: int, past: int, future: int) -> int:
    """Edges of one conversation, counted on the host so that the graph does not wait for the device."""

    def one_side(window: int) -> int:
        reach = length - 1 if window < 0 else min(window, length - 1)
        return reach * length - reach * (reach + 1) // 2

    return length + one_side(past) + one_side(future)


class WindowGraph:
    """The window graph of a batch with a relation per edge, as a list of edges and as blocks.

    With ``c`` = 0 if s is before t and 1 otherwise (also for a self-loop), the relation of (s, t) is

    - ``same_other``: ``2 * [speaker_s != speaker_t] + c``, four relations.
    - ``speaker_pair``: ``2 * (S * speaker_s + speaker_t) + c``, ``2 * S ** 2`` relations, as in COGMEN. Speakers after
      the S-th share the last number.

    Args:
        packing: The conversations.
        speaker: (N) integers, numbered within each conversation.
        past, future: See :func:`window_edges`.
        relations: ``same_other`` or ``speaker_pair``.
        num_speakers: S, for ``speaker_pair``.
    """

    def __init__(
        self,
        packing: Packing,
        speaker: Tensor,
        past: int,
        future: int,
        relations: Relations = "same_other",
        num_speakers: int = 2,
    ) -> None:
        if relations not in RELATIONS:
            raise ValueError(f"relations must be one of {RELATIONS}, found {relations!r}")
        self.packing = packing
        self.past = past
        self.future = future
        self.relations = relations
        self.num_speakers = num_speakers
        self.speaker = speaker
        self.number = speaker.clamp(max=num_speakers - 1) if relations == "speaker_pair" else speaker

    @property
    def num_relations(self) -> int:
        """R, the number of relations."""
        return 4 if self.relations == "same_other" else 2 * self.num_speakers**2

    @cached_property
    def edges(self) -> Tensor:
        """(2, E) sources and targets."""
        return window_edges(self.packing, self.past, self.future)

    @cached_property
    def relation(self) -> Tensor:
        """(E) relation per edge, in [0, R)."""
        source, target = self.edges
        return self._relation(self.number[source], self.number[target], source >= target)

    @cached_property
    def adjacency(self) -> Tensor:
        """(B, L, L) bool, True at [b, t, s] for an edge (s, t)."""
        place = torch.arange(self.packing.longest, device=self.packing.device)
        lag = place[:, None] - place[None, :]  # t - s
        band = torch.ones_like(lag, dtype=torch.bool)
        if self.past >= 0:
            band &= lag <= self.past
        if self.future >= 0:
            band &= -lag <= self.future
        mask = self.packing.mask
        return band & mask[:, :, None] & mask[:, None, :]

    @cached_property
    def relation_blocks(self) -> Tensor:
        """(B, L, L) integers: the relation at [b, t, s]; R without an edge."""
        place = torch.arange(self.packing.longest, device=self.packing.device)
        speaker = self.packing.pad(self.number)
        backward = place[None, :] >= place[:, None]
        relation = self._relation(speaker[:, None, :], speaker[:, :, None], backward)
        return torch.where(self.adjacency, relation, self.num_relations)

    def _relation(self, speaker_s: Tensor, speaker_t: Tensor, backward: Tensor) -> Tensor:
        if self.relations == "same_other":
            return 2 * (speaker_s != speaker_t).long() + backward.long()
        return 2 * (self.num_speakers * speaker_s + speaker_t) + backward.long()
