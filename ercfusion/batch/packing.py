"""Packed batches: the N utterances of B conversations in one axis, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Packing:
    """Where each conversation of a packed batch begins and ends.

    Lengths are on the host, so layers that need them do not wait for the device.

    Args:
        lengths: ``n_b``, the number of utterances of each of the B conversations; all at least 1.
        device: Device of the index tensors.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths: tuple[int, ...] = tuple(int(length) for length in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must name at least one utterance per conversation; found {lengths}")
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return f"Packing({self.size} conversations, {self.total} utterances, longest {self.longest}, {self.device})"

    @property
    def size(self) -> int:
        """B, the number of conversations."""
        return len(self.lengths)

    @cached_property
    def total(self) -> int:
        """N, the number of utterances."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """L, the number of utterances of the longest conversation."""
        return max(self.lengths)

    @cached_property
    def length(self) -> Tensor:
        """(B) integers, ``n_b``."""
        return torch.tensor(self.lengths, dtype=torch.long).to(self.device, non_blocking=True)

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1): conversation b has the rows ``offsets[b]`` to ``offsets[b + 1]``."""
        host = torch.zeros(self.size + 1, dtype=torch.long)
        host[1:] = torch.tensor(self.lengths, dtype=torch.long).cumsum(0)
        return host.to(self.device, non_blocking=True)

    @cached_property
    def conversation(self) -> Tensor:
        """(N) number of the conversation of each utterance."""
        index = torch.arange(self.size, device=self.device)
        return torch.repeat_interleave(index, self.length, output_size=self.total)

    @cached_property
    def position(self) -> Tensor:
        """(N) position of each utterance in its conversation, from 0."""
        return torch.arange(self.total, device=self.device) - self.offsets[self.conversation]

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool, True at utterances of the padded form."""
        return torch.arange(self.longest, device=self.device) < self.length[:, None]

    def pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(N, ...) -> (B, L, ...), with ``fill`` in the padding. Differentiable."""
        if self.size == 1:
            return values.unsqueeze(0)
        shape = (self.size, self.longest, *values.shape[1:])
        padded = values.new_zeros(shape) if fill == 0 else values.new_full(shape, fill)
        return padded.index_put((self.conversation, self.position), values)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the inverse of :meth:`pad`. Differentiable."""
        if self.size == 1:
            return padded.squeeze(0)
        return padded[self.conversation, self.position]

    def to(self, device: torch.device | str) -> Packing:
        """The same packing on another device."""
        return self if torch.device(device) == self.device else Packing(self.lengths, device)
