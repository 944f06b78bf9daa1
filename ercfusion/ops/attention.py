"""Scaled dot-product attention with memory linear in the length of a conversation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PAIRS = 2**21
"""Largest number of scores (heads x queries x keys) of one conversation in memory: 8 MiB in single precision. With
eight heads, conversations of up to 512 utterances are one block.
"""

Mask = Callable[[int, int], Tensor | None]
"""``mask(start, stop)`` restricts or shifts the scores of the queries ``start`` to ``stop``, broadcastable to (B, H,
stop - start, L): True if a query may attend to a key, or numbers to add; None for no mask.
"""


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless ``width`` is a multiple of ``heads``."""
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads. Choose another width.")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float = 0.0) -> Tensor:
    r"""Mean of the values per query, weighted by the softmax of its scores.

    .. math:: y_t = \sum_u \mathrm{drop}(\mathrm{softmax}_u(q_t^\top k_u / \sqrt{d} + m_{tu}))\, v_u

    Vaswani et al., "Attention Is All You Need" (2017), eq. 1. Long conversations are divided into blocks of queries
    (Rabe & Staats, "Self-attention Does Not Need O(n^2) Memory", 2021), whose scores are computed again in the backward
    pass. Block sizes depend only on H and L. There is one block inside ``torch.compile``, and without dropout if all
    queries have the same keys, because torch's own attention then stores no scores.

    Args:
        q, k, v: (B, H, L, d).
        mask: See :data:`Mask`. A query needs at least one key.
        dropout: Dropout probability on weights; random numbers are drawn per block.

    Returns:
        (B, H, L, d).
    """
    H, L = q.shape[1:3]
    rows = max(1, PAIRS // (H * L))
    if rows >= L or torch.compiler.is_compiling() or (not dropout and _same_for_all_queries(mask)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(0, L), dropout_p=dropout)

    def block(queries: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        shift = mask(start, start + queries.shape[2])
        return F.scaled_dot_product_attention(queries, k, v, attn_mask=shift, dropout_p=dropout)

    run = partial(checkpoint, block, use_reentrant=False) if torch.is_grad_enabled() else block
    return torch.cat([run(part, k, v, rows * number) for number, part in enumerate(q.split(rows, 2))], dim=2)


def _same_for_all_queries(mask: Mask) -> bool:
    """Whether the mask depends on the key only."""
    shift = mask(0, 2)
    return shift is None or (shift.dtype == torch.bool and shift.shape[-2] == 1)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`attend` without dropout, in plain steps, with the mask of all queries: its specification."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v
