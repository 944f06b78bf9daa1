"""A linear layer on the outer product of several vectors, which is never formed.

N utterances, M modalities of widths d_m, H outputs, K = (d_1 + 1) ... (d_M + 1) elements of the tensor.

A linear layer on the outer product of M vectors is a sum over K products an utterance. Split the modalities into two
groups, let b (N, G) be the flattened outer products of one group and a (N, R) those of the other, G R = K: then

.. math:: y_{nh} = \\sum_r a_{nr} \\sum_g W_{hrg} b_{ng}

is one matrix product with G terms a sum, as many operations as the layer itself takes, and a short sum over r. Nothing
of size N K exists, in either direction: the gradient of W is the matrix product of (dy a) and b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TEMPORARY = 2**22
"""Numbers that a chunk of utterances may put into temporary memory: 16 MiB in single precision."""

COPIED = 2**24
"""Weights up to this size may be rearranged in every call, where that makes the sums longer."""

CALL = 1024
"""Utterances in a call over which the price of rearranging the weight is spread, when groupings are compared."""

MASKED_ROWS = 128
"""Utterances in a chunk under element dropout."""


@dataclass(frozen=True)
class Grouping:
    """How the modalities are split for the contraction.

    Args:
        split: The first group holds the modalities before it, the second those from it on. Either may be empty.
        leading: The long matrix product sums over the first group instead of the second, whose weights lie together.
    """

    split: int
    leading: bool = False

    def sizes(self, factors: Sequence[int]) -> tuple[int, int]:
        """(R, G): the product of the ``factors`` d_m + 1 of the group that is left, and of the one summed over."""
        first, second = math.prod(factors[: self.split]), math.prod(factors[self.split :])
        return (second, first) if self.leading else (first, second)


def choose_grouping(factors: Sequence[int], out_features: int) -> Grouping:
    """The grouping that writes the fewest temporary numbers an utterance.

    That is G + R + H R, or K where everything is in the group summed over (the tensor itself, a chunk at a time), and
    for a rearranged weight its copies, shared by :data:`CALL` utterances.

    Args:
        factors: d_m + 1, by modality.
        out_features: H.
    """
    total = math.prod(factors)

    def price(grouping: Grouping) -> float:
        R, G = grouping.sizes(factors)
        temporary = G + R + out_features * R if R > 1 else G
        return temporary + (4 * total * out_features / CALL if grouping.leading else 0)

    choices = [Grouping(split) for split in range(len(factors))]
    if total * out_features <= COPIED:
        choices += [Grouping(split, leading=True) for split in range(1, len(factors))]
    return min(choices, key=price)


# Flattened outer products


def with_one(z: Tensor) -> Tensor:
    """(N, d) -> (N, d + 1): [1; z]."""
    return F.pad(z, (1, 0), value=1.0)


def outer_rows(factors: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Flattened outer product of each row of the factors (n, D_m) -> (n, D_1 D_2 ...), the last index fastest.

    Of no factors it is 1. ``rows`` (n, anything) tells n, type and device.
    """
    product = factors[0] if factors else rows.new_ones(len(rows), 1)
    for factor in factors[1:]:
        product = (product[:, :, None] * factor[:, None, :]).flatten(1)
    return product


def outer_rows_backward(gradient: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients (n, D_m) of the factors from that of :func:`outer_rows`."""
    gradients: list[Tensor] = []
    for m in range(len(factors) - 1, 0, -1):
        before = outer_rows(factors[:m], gradient)
        block = gradient.view(len(gradient), before.shape[1], -1)
        gradients.append(torch.bmm(before[:, None], block).squeeze(1))
        gradient = torch.bmm(block, factors[m][:, :, None]).squeeze(2)
    return [gradient, *reversed(gradients)] if factors else []


def tensor_fusion_reference(
    z: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """A linear layer on the flattened tensor, one utterance at a time: specification of :func:`tensor_fusion`.

    Args:
        z: (N, d_m) by modality.
        weight: (H, K); the index of the last modality changes fastest, and 0 is the constant's in each.
        bias: (H).
        keep: (N, K) factors of the elements, for dropout.

    Returns:
        (N, H).
    """
    outputs = []
    for n in range(len(z[0])):
        tensor = z[0].new_ones(1)
        for vector in z:
            tensor = torch.outer(tensor, torch.cat([vector.new_ones(1), vector[n]])).flatten()
        if keep is not None:
            tensor = tensor * keep[n]
        outputs.append(weight @ tensor if bias is None else weight @ tensor + bias)
    return torch.stack(outputs)


# Dropout of single elements


def _signed(number: int) -> int:
    """The integer of 32 bits that a tensor of int32 takes for ``number``."""
    return (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)


def _mix(x: Tensor) -> Tensor:
    """Scatter integers of 32 bits, in place and one to one (the finaliser of MurmurHash3, A. Appleby)."""
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(0x85EBCA6B)
    x ^= (x >> 13) & 0x7FFFF
    x *= _signed(0xC2B2AE35)
    x ^= (x >> 16) & 0xFFFF
    return x


def element_keep(seed: int, rows: range, columns: range, p: float, device: torch.device | str = "cpu") -> Tensor:
    """Which elements of the tensors dropout keeps: a function of the seed and of an element's place, nothing else.

    So any part of the mask can be computed at any time, in the same way on every device.

    Args:
        seed: Its lowest 64 bits count.
        rows, columns: Utterances and elements.
        p: Probability that an element is dropped, in [0, 1).
        device: Where the mask lives.

    Returns:
        (len(rows), len(columns)) bool, True where kept.
    """
    low, high = _signed(seed), _signed(seed >> 32)
    row = torch.arange(rows.start, rows.stop, dtype=torch.int32, device=device)
    column = torch.arange(columns.start, columns.stop, dtype=torch.int32, device=device)
    row = _mix(_mix(row ^ low) ^ high)
    column = _mix(_mix(column ^ _signed(~high)) ^ low)
    return _mix(row[:, None] ^ column[None, :]) >= round(p * 2**32) - 2**31


# The contraction


def _groups(z: Sequence[Tensor], rows: slice, split: int, leading: bool) -> tuple[list[Tensor], list[Tensor]]:
    """[1; z_m] of a chunk: the group that is left, and the one that is summed over."""
    factors = [with_one(vector[rows]) for vector in z]
    first, second = factors[:split], factors[split:]
    return (second, first) if leading else (first, second)


def _arranged(weight: Tensor, R: int, G: int, leading: bool) -> Tensor:
    """The weight (H, K) as (H R, G); a copy where the first group is summed over."""
    if leading:
        return weight.view(-1, G, R).transpose(1, 2).reshape(-1, G)
    return weight.view(-1, G)


class _Contraction(torch.autograd.Function):
    """The two-group contraction by chunks; keeps nothing but its inputs and computes the rest again."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grouping: Grouping, temporary: int, *z: Tensor) -> Tensor:
        N, H = len(z[0]), len(weight)
        R, G = grouping.sizes([vector.shape[1] + 1 for vector in z])
        arranged = _arranged(weight, R, G, grouping.leading)
        step = max(1, temporary // (G + R + 2 * H * R))
        out = z[0].new_empty(N, H)
        for start in range(0, N, step):
            rows = slice(start, start + step)
            left, summed = _groups(z, rows, grouping.split, grouping.leading)
            product = outer_rows(summed, z[0][rows]) @ arranged.t()  # (n, H R)
            if R > 1:
                a = outer_rows(left, product)
                product = torch.bmm(product.view(-1, H, R), a[:, :, None]).squeeze(2)
            out[rows] = product
        ctx.save_for_backward(weight, *z)
        ctx.grouping, ctx.step = grouping, step
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *z = ctx.saved_tensors
        split, leading = ctx.grouping.split, ctx.grouping.leading
        N, H = gradient.shape
        R, G = ctx.grouping.sizes([vector.shape[1] + 1 for vector in z])
        arranged = _arranged(weight, R, G, leading)
        weight_gradient = torch.zeros_like(arranged) if ctx.needs_input_grad[0] else None
        wanted = any(ctx.needs_input_grad[3:])
        z_gradients = [torch.empty_like(vector) for vector in z]
        for start in range(0, N, ctx.step):
            rows = slice(start, start + ctx.step)
            part = gradient[rows].contiguous()
            left, summed = _groups(z, rows, split, leading)
            a, b = outer_rows(left, part), outer_rows(summed, part)
            spread = (part[:, :, None] * a[:, None, :]).flatten(1)  # (n, H R)
            if weight_gradient is not None:
                weight_gradient.addmm_(spread.t(), b)
            if not wanted:
                continue
            to_summed = outer_rows_backward(spread @ arranged, summed)
            del spread
            to_left: list[Tensor] = []
            if left:
                product = (b @ arranged.t()).view(-1, H, R)
                to_left = outer_rows_backward(torch.bmm(part[:, None], product).squeeze(1), left)
            ordered = (*to_summed, *to_left) if leading else (*to_left, *to_summed)
            for target, source in zip(z_gradients, ordered, strict=True):
                target[rows] = source[:, 1:]
        if weight_gradient is not None:
            if leading:
                weight_gradient = weight_gradient.view(H, R, G).transpose(1, 2)
            weight_gradient = weight_gradient.reshape(H, -1)
        return weight_gradient, None, None, *(z_gradients if wanted else [None] * len(z))


class _MaskedContraction(torch.autograd.Function):
    """The same with dropout of single elements: no product of groups then, so the tensor passes by tile after tile."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, p: float, seed: int, temporary: int, *z: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *z)
        ctx.p, ctx.seed, ctx.temporary = p, seed, temporary
        out = z[0].new_zeros(len(z[0]), len(weight))
        for chunk in _masked_chunks(z, temporary):
            for left, columns in chunk.tiles:
                tile = chunk.tile(left, element_keep(seed, chunk.rows, columns, p, weight.device))
                out[chunk.slice].addmm_(tile, weight[:, columns.start : columns.stop].t())
        return out.div_(1 - p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *z = ctx.saved_tensors
        gradient = gradient / (1 - ctx.p)
        weight_gradient = torch.zeros_like(weight)
        z_gradients = [torch.empty_like(vector) for vector in z]
        for chunk in _masked_chunks(z, ctx.temporary):
            part = gradient[chunk.slice]
            to_first, to_second = torch.zeros_like(chunk.a), torch.zeros_like(chunk.b)
            for left, columns in chunk.tiles:
                across = slice(columns.start, columns.stop)
                keep = element_keep(ctx.seed, chunk.rows, columns, ctx.p, weight.device)
                tile = chunk.tile(left, keep)
                weight_gradient[:, across].addmm_(part.t(), tile)
                block = (torch.mm(part, weight[:, across], out=tile) * keep).unflatten(1, (len(left), -1))
                inside = slice(left.start, left.stop)
                to_first[:, inside] = torch.bmm(block, chunk.b[:, :, None]).squeeze(2)
                to_second += torch.bmm(chunk.a[:, None, inside], block).squeeze(1)
            found = (*outer_rows_backward(to_first, chunk.first), *outer_rows_backward(to_second, chunk.second))
            for target, source in zip(z_gradients, found, strict=True):
                target[chunk.slice] = source[:, 1:]
        return weight_gradient, None, None, None, *z_gradients


@dataclass(frozen=True)
class _Chunk:
    """Some utterances under element dropout, and how their tensors are cut into tiles along the elements.

    Args:
        rows: The utterances.
        first, second: [1; z_m] of the two groups of modalities.
        a, b: Their flattened outer products, (n, R) and (n, G).
        width: How many of the R belong to a tile.
    """

    rows: range
    first: list[Tensor]
    second: list[Tensor]
    a: Tensor
    b: Tensor
    width: int

    @property
    def slice(self) -> slice:
        return slice(self.rows.start, self.rows.stop)

    @property
    def tiles(self) -> Iterator[tuple[range, range]]:
        """Ranges of the R, and the ranges of the K = R G elements that they stand for."""
        R, G = self.a.shape[1], self.b.shape[1]
        for start in range(0, R, self.width):
            stop = min(start + self.width, R)
            yield range(start, stop), range(start * G, stop * G)

    def tile(self, left: range, keep: Tensor) -> Tensor:
        """(n, len(left) G) elements of the tensors, zero where not kept."""
        product = (self.a[:, left.start : left.stop, None] * self.b[:, None, :]).flatten(1)
        return product.mul_(keep)


def _masked_chunks(z: Sequence[Tensor], temporary: int) -> Iterator[_Chunk]:
    sizes = [vector.shape[1] + 1 for vector in z]
    N = len(z[0])
    # The longest stretch of elements in which only the last modalities change, as long as it is not too long.
    limit = temporary // MASKED_ROWS
    split = next((m for m in range(len(z)) if math.prod(sizes[m:]) <= limit), len(z) - 1)
    G = math.prod(sizes[split:])
    height = max(1, min(MASKED_ROWS, temporary // G))
    for start in range(0, N, height):
        rows = range(start, min(start + height, N))
        first, second = _groups(z, slice(rows.start, rows.stop), split, False)
        a, b = outer_rows(first, second[0]), outer_rows(second, second[0])
        yield _Chunk(rows, first, second, a, b, max(1, temporary // (height * G)))


def tensor_fusion(
    z: Sequence[Tensor],
    weight: Tensor,
    grouping: Grouping | None = None,
    *,
    element_dropout: float = 0.0,
    seed: int = 0,
    temporary: int = TEMPORARY,
) -> Tensor:
    """A linear layer, without bias, on the flattened outer product of the [1; z_m], which is never formed.

    Equal to :func:`tensor_fusion_reference`. What is kept for the backward pass are the z and the weight. Once
    differentiable.

    Args:
        z: (N, d_m) by modality, of the weight's type.
        weight: (H, K); the index of the last modality changes fastest, and 0 is the constant's in each.
        grouping: :func:`choose_grouping` if not given; changes speed and rounding only.
        element_dropout: Probability that an element of an utterance's tensor is dropped, by :func:`element_keep`.
        seed: Of the dropped elements.
        temporary: Numbers in temporary memory at once, about.

    Returns:
        (N, H).
    """
    if element_dropout:
        return _MaskedContraction.apply(weight, element_dropout, seed, temporary, *z)
    if grouping is None:
        grouping = choose_grouping([vector.shape[1] + 1 for vector in z], len(weight))
    return _Contraction.apply(weight, grouping, temporary, *z)
