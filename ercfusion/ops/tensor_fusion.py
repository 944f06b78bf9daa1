r"""A linear layer on the outer product of several vectors, computed without forming the product.

N utterances, M modalities of widths d_m, H outputs, K = (d_1 + 1) ... (d_M + 1) elements of the tensor.

Split the modalities into two groups. Let b (N, G) be the flattened outer products of one group and a (N, R) those of
the other, G R = K. Then

.. math:: y_{nh} = \sum_r a_{nr} \sum_g W_{hrg} b_{ng}

is one matrix product with G terms per sum, as many operations as the layer itself, and a short sum over r. With
:math:`s_{nhr} = dy_{nh} a_{nr}` the gradients are

.. math::
    dW_{hrg} = \sum_n s_{nhr} b_{ng}, \quad
    db_{ng} = \sum_{hr} s_{nhr} W_{hrg}, \quad
    da_{nr} = \sum_h dy_{nh} \sum_g W_{hrg} b_{ng}

again matrix products. No tensor of size N K exists in either pass.
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
"""Numbers in temporary memory per chunk of utterances: 16 MiB in single precision."""

COPIED = 2**24
"""Largest weight that may be rearranged in every call for longer sums."""

CALL = 1024
"""Utterances per call assumed for the cost of rearranging the weight."""

MASKED_ROWS = 128
"""Utterances per chunk with element dropout."""


@dataclass(frozen=True)
class Grouping:
    """The split of the modalities for the contraction.

    Args:
        split: The first group contains the modalities before it, the second the others. Either may be empty.
        leading: Sum over the first group in the long matrix product instead of the second, whose weights are
            contiguous.
    """

    split: int
    leading: bool = False

    def sizes(self, factors: Sequence[int]) -> tuple[int, int]:
        """(R, G): the product of the ``factors`` d_m + 1 of the remaining group, and of the summed group."""
        first, second = math.prod(factors[: self.split]), math.prod(factors[self.split :])
        return (second, first) if self.leading else (first, second)


def choose_grouping(factors: Sequence[int], out_features: int) -> Grouping:
    """The grouping with the fewest temporary numbers per utterance.

    These are G + R + H R, or K if every modality is summed over, plus for a rearranged weight its copies divided by
    :data:`CALL` utterances.

    Args:
        factors: d_m + 1 per modality.
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

    Without factors it is 1, with n, dtype and device of ``rows`` (n, ...).
    """
    product = factors[0] if factors else rows.new_ones(len(rows), 1)
    for factor in factors[1:]:
        product = (product[:, :, None] * factor[:, None, :]).flatten(1)
    return product


def outer_rows_backward(gradient: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients (n, D_m) of the factors from the gradient of :func:`outer_rows`.

    The product is built as p_m = p_{m-1} x f_m (outer product). From the last factor to the second: d_f_m = sum_i
    p_{m-1,i} d_p_m[i, :] and d_p_{m-1}[i] = sum_j d_p_m[i, j] f_m,j. The remaining d_p_1 is d_f_1.
    """
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
    """A linear layer on the flattened tensor, one utterance at a time: the specification of :func:`tensor_fusion`.

    Args:
        z: (N, d_m) per modality.
        weight: (H, K); the index of the last modality changes fastest, and index 0 is the constant of each.
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
    """The int32 value with the lowest 32 bits of ``number``."""
    return (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit integers in place, one to one (the finaliser of MurmurHash3, A. Appleby)."""
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(0x85EBCA6B)
    x ^= (x >> 13) & 0x7FFFF
    x *= _signed(0xC2B2AE35)
    x ^= (x >> 16) & 0xFFFF
    return x


def element_keep(seed: int, rows: range, columns: range, p: float, device: torch.device | str = "cpu") -> Tensor:
    """The dropout mask of the tensors, a function of the seed and of an element's position only.

    So both passes can compute any part of it, with the same result on every device.

    Args:
        seed: Its lowest 64 bits are used.
        rows, columns: Utterances and elements.
        p: Dropout probability of an element, in [0, 1).
        device: Device of the mask.

    Returns:
        (len(rows), len(columns)) bool, True if kept.
    """
    low, high = _signed(seed), _signed(seed >> 32)
    row = torch.arange(rows.start, rows.stop, dtype=torch.int32, device=device)
    column = torch.arange(columns.start, columns.stop, dtype=torch.int32, device=device)
    row = _mix(_mix(row ^ low) ^ high)
    column = _mix(_mix(column ^ _signed(~high)) ^ low)
    return _mix(row[:, None] ^ column[None, :]) >= round(p * 2**32) - 2**31


# The contraction


def _groups(z: Sequence[Tensor], rows: slice, split: int, leading: bool) -> tuple[list[Tensor], list[Tensor]]:
    """[1; z_m] of a chunk: the remaining group and the summed group."""
    factors = [with_one(vector[rows]) for vector in z]
    first, second = factors[:split], factors[split:]
    return (second, first) if leading else (first, second)


def _arranged(weight: Tensor, R: int, G: int, leading: bool) -> Tensor:
    """The weight (H, K) as (H R, G); a copy if the first group is summed over."""
    if leading:
        return weight.view(-1, G, R).transpose(1, 2).reshape(-1, G)
    return weight.view(-1, G)


class _Contraction(torch.autograd.Function):
    """The two-group contraction by chunks; saves only its inputs and computes the rest again."""

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
            # sum_g W_hrg b_ng, then the sum over r with a; R = 1 means a = 1.
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
        d_weight = torch.zeros_like(arranged) if ctx.needs_input_grad[0] else None
        need_z = any(ctx.needs_input_grad[3:])
        d_z = [torch.empty_like(vector) for vector in z]
        for start in range(0, N, ctx.step):
            rows = slice(start, start + ctx.step)
            d_y = gradient[rows].contiguous()
            left, summed = _groups(z, rows, split, leading)
            a, b = outer_rows(left, d_y), outer_rows(summed, d_y)
            s = (d_y[:, :, None] * a[:, None, :]).flatten(1)  # (n, H R), s_nhr
            if d_weight is not None:
                d_weight.addmm_(s.t(), b)  # dW_hrg
            if not need_z:
                continue
            d_summed = outer_rows_backward(s @ arranged, summed)  # from db_ng
            del s
            d_left: list[Tensor] = []
            if left:
                product = (b @ arranged.t()).view(-1, H, R)  # da_nr is its product with dy over h
                d_left = outer_rows_backward(torch.bmm(d_y[:, None], product).squeeze(1), left)
            ordered = (*d_summed, *d_left) if leading else (*d_left, *d_summed)
            for target, source in zip(d_z, ordered, strict=True):
                target[rows] = source[:, 1:]  # the constant has no gradient
        if d_weight is not None:
            if leading:
                d_weight = d_weight.view(H, R, G).transpose(1, 2)
            d_weight = d_weight.reshape(H, -1)
        return d_weight, None, None, *(d_z if need_z else [None] * len(z))


class _MaskedContraction(torch.autograd.Function):
    """The contraction with dropout of single elements.

    A mask k of elements does not factor into groups, so the tensor k_n,rg a_nr b_ng is formed tile by tile (ranges of
    r):

    .. code-block:: text

        y_nh = sum_rg W_hrg k_n,rg a_nr b_ng / (1 - p)
        dW_hrg = sum_n dy_nh k_n,rg a_nr b_ng,  c_n,rg = k_n,rg sum_h dy_nh W_hrg   (dy divided by 1 - p)
        da_nr = sum_g c_n,rg b_ng,  db_ng = sum_r c_n,rg a_nr

    The backward pass computes the same mask again from the seed.
    """

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
        d_weight = torch.zeros_like(weight)
        d_z = [torch.empty_like(vector) for vector in z]
        for chunk in _masked_chunks(z, ctx.temporary):
            d_y = gradient[chunk.slice]
            d_a, d_b = torch.zeros_like(chunk.a), torch.zeros_like(chunk.b)
            for left, columns in chunk.tiles:
                elements = slice(columns.start, columns.stop)
                keep = element_keep(ctx.seed, chunk.rows, columns, ctx.p, weight.device)
                tile = chunk.tile(left, keep)
                d_weight[:, elements].addmm_(d_y.t(), tile)
                c = (torch.mm(d_y, weight[:, elements], out=tile) * keep).unflatten(1, (len(left), -1))
                inside = slice(left.start, left.stop)
                d_a[:, inside] = torch.bmm(c, chunk.b[:, :, None]).squeeze(2)
                d_b += torch.bmm(chunk.a[:, None, inside], c).squeeze(1)
            d_factors = (*outer_rows_backward(d_a, chunk.first), *outer_rows_backward(d_b, chunk.second))
            for target, source in zip(d_z, d_factors, strict=True):
                target[chunk.slice] = source[:, 1:]
        return d_weight, None, None, None, *d_z


@dataclass(frozen=True)
class _Chunk:
    """Some utterances with element dropout; their tensors are cut into tiles along the elements.

    Args:
        rows: The utterances.
        first, second: [1; z_m] of the two groups of modalities.
        a, b: Their flattened outer products, (n, R) and (n, G).
        width: How many of the R are in a tile.
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
        """Ranges of the R, and the matching ranges of the K = R G elements."""
        R, G = self.a.shape[1], self.b.shape[1]
        for start in range(0, R, self.width):
            stop = min(start + self.width, R)
            yield range(start, stop), range(start * G, stop * G)

    def tile(self, left: range, keep: Tensor) -> Tensor:
        """(n, len(left) G) elements of the tensors, zero if dropped."""
        product = (self.a[:, left.start : left.stop, None] * self.b[:, None, :]).flatten(1)
        return product.mul_(keep)


def _masked_chunks(z: Sequence[Tensor], temporary: int) -> Iterator[_Chunk]:
    sizes = [vector.shape[1] + 1 for vector in z]
    N = len(z[0])
    # The longest run of elements, up to the limit, in which only the last modalities change.
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
    """A linear layer without bias on the flattened outer product of the [1; z_m], without forming the product.

    Equal to :func:`tensor_fusion_reference`. Differentiable once.

    Args:
        z: (N, d_m) per modality, of the weight's dtype.
        weight: (H, K); the index of the last modality changes fastest, and index 0 is the constant of each.
        grouping: :func:`choose_grouping` by default; affects speed and rounding only.
        element_dropout: Dropout probability of an element, by :func:`element_keep`.
        seed: Seed of the dropout mask.
        temporary: Approximate number of temporary numbers in memory.

    Returns:
        (N, H).
    """
    if element_dropout:
        return _MaskedContraction.apply(weight, element_dropout, seed, temporary, *z)
    if grouping is None:
        grouping = choose_grouping([vector.shape[1] + 1 for vector in z], len(weight))
    return _Contraction.apply(weight, grouping, temporary, *z)
