"""Packed batches: the N utterances of B conversations in one axis, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Packing:
    """Where each conversation of a packed batch begins and ends.

    Lengths are on the host, so layers that need them do not wait for the device. With a padding mask, use
    :meth:`from_mask`.

    Args:
        lengths: ``n_b``, the number of utterances of each of the B conversations; all at least 1.
        device: Device of the index tensors.

    Raises:
        ValueError: no conversation, one without utterances, or a mask instead of lengths.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        if getattr(lengths, "ndim", 1) != 1 or str(getattr(lengths, "dtype", "")).endswith("bool"):
            raise ValueError(
                f"lengths must be B integers; found a tensor {tuple(np.shape(lengths))}. "
                "Use Packing.from_mask(mask) for a padding mask."
            )
        self.lengths: tuple[int, ...] = tuple(int(length) for length in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must name at least one utterance per conversation; found {lengths}")
        self.device = torch.device(device)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packing:
        """The packing of a padded batch, on the mask's device; waits for that device once.

        Args:
            mask: (B, L) bool, True at utterances. Padding is at the end of a conversation only.

        Raises:
            ValueError: another shape or dtype, a conversation without utterances, or padding before an utterance.
        """
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be (B, L) booleans, True at utterances; found {tuple(mask.shape)} of {mask.dtype}. "
                "Convert it with mask.bool(), or with ~mask.bool() if padding is 1."
            )
        rows = mask.cpu()
        lengths = rows.sum(1)
        for b, length in enumerate(lengths.tolist()):
            if not length:
                problem = "has no utterance"
            elif not rows[b, 0]:
                problem = "begins with padding"
            elif not rows[b, :length].all():
                problem = f"has padding at position {int(rows[b].int().argmin())}, before its last utterance"
            else:
                continue
            raise ValueError(
                f"mask: conversation {b} {problem}. Pass ~mask if True means padding; else remove empty conversations "
                "and move padding to the end."
            )
        return cls(lengths.tolist(), mask.device)

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

    def pad(self, values: Tensor, fill: float = 0.0, *, length: int | None = None) -> Tensor:
        """(N, ...) -> (B, L, ...), with ``fill`` in the padding. Differentiable.

        Args:
            values: One row per utterance.
            fill: Value of the padding.
            length: L, at least the longest conversation; by default that of the longest.

        Raises:
            ValueError: another number of rows than N, or a ``length`` below the longest conversation.
        """
        if not values.ndim or values.shape[0] != self.total:
            raise ValueError(
                f"values must be (N, ...) with N = {self.total} utterances; found {tuple(values.shape)}. "
                "Pack padded values first, with the lengths of this batch."
            )
        columns = self.longest if length is None else length
        if columns < self.longest:
            raise ValueError(
                f"length must be at least {self.longest}, the longest conversation; found {length}. Raise it."
            )
        if self.size == 1 and columns == self.longest:
            return values.unsqueeze(0)
        shape = (self.size, columns, *values.shape[1:])
        padded = values.new_zeros(shape) if fill == 0 else values.new_full(shape, fill)
        return padded.index_put((self.conversation, self.position), values)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the inverse of :meth:`pad`. L may exceed the longest conversation. Differentiable.

        Raises:
            ValueError: another number of conversations, or fewer positions than the longest conversation has.
        """
        if padded.ndim < 2 or padded.shape[0] != self.size or padded.shape[1] < self.longest:
            raise ValueError(
                f"padded must be (B, L, ...) with B = {self.size} conversations and L at least {self.longest}; "
                f"found {tuple(padded.shape)}. Give Packing the lengths of this batch."
            )
        if self.size == 1:
            return padded[0] if padded.shape[1] == self.longest else padded[0, : self.longest]
        return padded[self.conversation, self.position]

    def to(self, device: torch.device | str) -> Packing:
        """The same packing on another device."""
        return self if torch.device(device) == self.device else Packing(self.lengths, device)


def check_rows(x: Tensor, packing: Packing | None, width: int | None, *, name: str = "x", padded: bool = False) -> None:
    """Raise ValueError unless x is (N, width), with the N utterances of the packing.

    Args:
        x: The values to check; any under ``torch.compile``, in which a comparison would fix sizes.
        packing: None for any N.
        width: None for any width.
        name: Name of x in the message.
        padded: The caller also takes (B, L, width), as the message says.
    """
    if torch.compiler.is_compiling():
        return
    if x.ndim == 2 and (width is None or x.shape[1] == width) and (packing is None or len(x) == packing.total):
        return
    rows, columns = "N" if packing is None else packing.total, "D" if width is None else width
    also = f" or padded (B, L, {columns})" if padded else ""
    advice = " Pack padded values with packing.pack(x)." if x.ndim == 3 and not padded else ""
    raise ValueError(f"{name} must be packed utterances ({rows}, {columns}){also}; found {tuple(x.shape)}.{advice}")


def check_speakers(speaker: Tensor, packing: Packing) -> None:
    """Raise ValueError unless there is one speaker per utterance of the packing."""
    if not torch.compiler.is_compiling() and (speaker.ndim != 1 or len(speaker) != packing.total):
        raise ValueError(f"speaker must be ({packing.total}), one number per utterance; found {tuple(speaker.shape)}.")
