"""Log-denominators of a contrastive loss over all rows of a batch and a queue, in tiles."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Anchors = Literal["batch", "all"]
"""Rows with a loss: those of the batch, or those of the queue too."""

LOWEST_TEMPERATURE = 0.025
"""Unit vectors then have exponentials between exp(-40) and exp(40): no maximum is needed before them."""

# Rows and columns of a tile: 1 MiB in float32, so it stays in a core's cache. The columns are a multiple of the rows:
# then one tile has the pairs of a row with itself.
_ROWS, _COLUMNS = 256, 1024


def log_sums(vectors: Tensor, fixed: Tensor, temperature: float) -> Tensor:
    r"""Log-denominators :math:`\log \sum_{k \ne i} \exp(z_i z_k / t)` of all n + q rows z.

    Similarities are symmetric: the forward pass computes each pair once. The backward pass computes those of the n rows
    with gradient again. The memory is n + q numbers and one tile.

    Args:
        vectors: (n, D) of length at most 1, with gradient.
        fixed: (q, D) of length at most 1, without gradient.
        temperature: t, at least :data:`LOWEST_TEMPERATURE`.

    Returns:
        (n + q); 0 for a single row.
    """
    result: Tensor = _LogSums.apply(vectors, fixed.detach(), 1 / temperature)
    return result


class _LogSums(torch.autograd.Function):
    r"""Forward and backward pass of :func:`log_sums`.

    Let E_ij = exp(s z_i z_j) for i != j, 0 for i = j; Z_i = sum_j E_ij; L = sum_i g_i log Z_i. The row z_i is in Z_i
    and in every Z_j, so with w = g / Z: dL/dz_i = s sum_j (w_i + w_j) E_ij z_j.
    """

    @staticmethod
    def forward(context: Any, vectors: Tensor, fixed: Tensor, scale: float) -> Tensor:
        rows = torch.cat([vectors.detach(), fixed])
        number = len(rows)
        left, right = scale * rows, rows.t()
        sums = rows.new_zeros(number)
        for top in range(0, number, _ROWS):
            bottom = min(top + _ROWS, number)
            tile = (left[top:bottom] @ right[:, top:bottom]).exp_()
            tile.fill_diagonal_(0.0)
            sums[top:bottom] += tile.sum(1)
            for first in range(bottom, number, _COLUMNS):
                last = min(first + _COLUMNS, number)
                tile = (left[top:bottom] @ right[:, first:last]).exp_()
                sums[top:bottom] += tile.sum(1)
                sums[first:last] += tile.sum(0)
        context.scale, context.own = scale, len(vectors)
        context.save_for_backward(vectors, fixed, sums)
        return sums.log() if number > 1 else sums

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        vectors, fixed, sums = context.saved_tensors
        rows = torch.cat([vectors.detach(), fixed])
        weights = gradients[0] / sums if len(rows) > 1 else torch.zeros_like(sums)
        left, result = context.scale * rows, torch.zeros_like(vectors)
        for top in range(0, context.own, _ROWS):
            bottom = min(top + _ROWS, context.own)
            for first in range(0, len(rows), _COLUMNS):
                last = min(first + _COLUMNS, len(rows))
                tile = (left[top:bottom] @ rows[first:last].t()).exp_()
                tile *= weights[top:bottom, None] + weights[first:last]
                if first <= top < last:
                    tile.diagonal(top - first).zero_()
                result[top:bottom].addmm_(tile, rows[first:last], alpha=context.scale)
        return result, None, None
