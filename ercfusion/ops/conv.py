"""A short causal convolution along each conversation, per channel, in either direction.

``y_t = bias + sum_j weight[:, W - 1 - j] * x_{t - j}`` for j from 0 to W - 1, with zeros before the first utterance of
the conversation; in reverse ``x_{t + j}``. A Mamba block applies it before its scan (Gu & Dao, "Mamba: Linear-Time
Sequence Modeling with Selective State Spaces", 2023, section 3.4).

N utterances of the whole batch, B conversations, D channels, W taps, K directions.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.packing import Packing

Direction = bool | Literal["both"]
_ACTIVATIONS = (None, "silu")


def causal_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lengths: Sequence[int] | None = None,
    reverse: bool = False,
    activation: str | None = None,
    initial: Tensor | None = None,
) -> Tensor:
    """The specification of :func:`causal_conv` for packed input in one direction, as plain loops.

    Args:
        x: (N, D).
        weight, bias: (D, W) and (D).
        lengths: n_b of the B conversations; None for one conversation of N utterances.
        reverse, activation, initial: See :func:`causal_conv`.

    Returns:
        (N, D).
    """
    D, W = weight.shape
    lengths = [len(x)] if lengths is None else lengths
    rows, first = [], 0
    for b, length in enumerate(lengths):
        for t in range(length):
            y = torch.zeros_like(x[0]) if bias is None else bias
            for j in range(W):
                source = t + j if reverse else t - j
                if 0 <= source < length:
                    y = y + weight[:, W - 1 - j] * x[first + source]
                elif initial is not None:
                    # Distance before the first input: 1 is the last of the earlier inputs.
                    before = source - length + 1 if reverse else -source
                    y = y + weight[:, W - 1 - j] * initial[b, W - 1 - before]
            rows.append(F.silu(y) if activation == "silu" else y)
        first += length
    return torch.stack(rows) if rows else x.new_zeros(0, D)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    offsets: Packing | Tensor | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    reverse: Direction = False,
    activation: str | None = None,
    initial: Tensor | None = None,
) -> Tensor:
    """Convolve every conversation with its own past.

    Packed input has ``offsets``; without them, (N, D) is one conversation and three dimensions are a padded batch. With
    ``reverse="both"`` every tensor except ``offsets`` may have a leading axis of 2, forward first; without it both
    directions share the tensor.

    Sums are in float32 (float64 if an input is). Gradients reach x, weight, bias and initial; differentiable once.

    Args:
        x: (N, D), or padded (B, L, D).
        weight: (D, W). The last tap is that of the utterance itself, as in ``torch.nn.Conv1d`` with causal padding.
        bias: (D).
        offsets: (B + 1) first rows of the conversations, then N; or a :class:`Packing`, whose lengths are on the host.
        lengths: (B), of a padded batch; None if all are L. Padding is not read, and zero in the result.
        reverse: Read each conversation from its last utterance; or ``"both"``.
        activation: None or ``silu``.
        initial: (B, W - 1, D), the earlier inputs in the order of reading; None for zeros.

    Returns:
        Like ``x``, in its dtype; with ``reverse="both"`` (2, N, D) or (2, B, L, D).

    Raises:
        ValueError: shapes, lengths or options that do not fit.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', found {activation!r}")
    if reverse not in (False, True, "both"):
        raise ValueError(f"reverse must be False, True or 'both', found {reverse!r}")
    both = reverse == "both"
    if offsets is None and x.ndim >= 3:
        return _padded(x, weight, bias, lengths, reverse, activation, initial)
    if lengths is not None:
        raise ValueError("lengths belong to a padded batch (B, L, D); a packed one takes offsets")
    if x.ndim not in ((2, 3) if both else (2,)):
        raise ValueError(f"packed x must be (N, D), or (2, N, D) with reverse='both'; found {tuple(x.shape)}")
    starts, sizes = _bounds(offsets, x)
    K = 2 if both else 1
    x = _directions("x", x, 2, K)
    weight = _directions("weight", weight, 2, K)
    bias = None if bias is None else _directions("bias", bias, 1, K)
    W = weight.shape[2]
    for name, width in (("weight", weight.shape[1]), ("bias", x.shape[2] if bias is None else bias.shape[1])):
        if width != x.shape[2]:
            raise ValueError(f"x has {x.shape[2]} channels, {name} has {width}")
    directions = (False, True) if both else (bool(reverse),)
    silu = activation == "silu"
    if initial is None or W == 1:
        y = _causal_conv(x, weight, bias, starts, sizes, directions, silu)
    else:
        sizes = tuple(starts.diff().tolist()) if sizes is None else sizes  # type: ignore[union-attr]
        # Convert before expanding: then the sum of both directions' gradients is rounded, not each of them.
        wide = x.to(_accumulates(x)).expand(K, -1, -1)
        initial = _directions("initial", initial, 3, K).to(wide.dtype).expand(K, -1, -1, -1)
        expected = (K, len(sizes), W - 1, x.shape[2])
        if tuple(initial.shape) != expected:
            raise ValueError(f"initial must be (B, W - 1, D) = {expected[1:]}, found {tuple(initial.shape[1:])}")
        parts = [_with_initial(*each, sizes) for each in zip(wide, initial, directions, strict=True)]
        longer = Packing([size + W - 1 for size in sizes], x.device)
        y = _causal_conv(
            torch.stack([part for part, _ in parts]), weight, bias, longer.offsets, longer.lengths, directions, silu
        )
        y = torch.stack([part.index_select(0, rows) for part, (_, rows) in zip(y, parts, strict=True)]).to(x.dtype)
    return y if both else y.squeeze(0)


def _bounds(offsets: Packing | Tensor | None, x: Tensor) -> tuple[Tensor | None, Sequence[int] | None]:
    """Offsets or lengths or both, as the operator takes them."""
    starts: Tensor | None = None
    if offsets is None:
        sizes: Sequence[int] = [x.shape[-2]]
    elif isinstance(offsets, Packing):
        sizes = offsets.lengths
        if not torch.compiler.is_compiling():  # A compiler cannot use the cached tensor.
            starts = offsets.offsets
    elif torch.compiler.is_compiling():
        return offsets, None  # Their values are unknown before the graph runs.
    else:
        starts, sizes = offsets.to(x.device), offsets.diff().tolist()
    if sum(sizes) != x.shape[-2]:
        raise ValueError(f"x has {x.shape[-2]} utterances, the offsets have {sum(sizes)}")
    return starts, sizes


def _directions(name: str, value: Tensor, ndim: int, K: int) -> Tensor:
    """``value`` with a leading axis of K, or of 1 if the directions share it."""
    if value.ndim == ndim:
        return value.unsqueeze(0)
    if value.ndim != ndim + 1 or value.shape[0] != K:
        allowed = f"{ndim} dimensions, or {K} times that" if K > 1 else f"{ndim} dimensions"
        raise ValueError(f"{name} must have {allowed}; found shape {tuple(value.shape)}")
    return value


def _with_initial(x: Tensor, initial: Tensor, reverse: bool, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Conversations with their earlier inputs before them (after them in reverse), and the new rows of utterances."""
    gap = initial.shape[1]
    new = Packing([size + gap for size in sizes], x.device)
    old = Packing(sizes, x.device)
    own = new.offsets[:-1].index_select(0, old.conversation) + old.position + (0 if reverse else gap)
    step = torch.arange(gap, device=x.device)
    start = new.offsets[:-1, None] + (old.length[:, None] + gap - 1 - step if reverse else step)
    rows = x.new_zeros(new.total, x.shape[1]).index_copy(0, own, x)
    return rows.index_copy(0, start.flatten(), initial.flatten(0, 1)), own


def _padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Sequence[int] | Tensor | None,
    reverse: Direction,
    activation: str | None,
    initial: Tensor | None,
) -> Tensor:
    both = reverse == "both"
    if x.ndim not in ((3, 4) if both else (3,)):
        raise ValueError(f"padded x must be (B, L, D), or (2, B, L, D) with reverse='both'; found {tuple(x.shape)}")
    B, L, D = x.shape[-3:]
    sizes = (
        [L] * B if lengths is None else [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    )
    if len(sizes) != B or max(sizes) > L or min(sizes) < 1:
        raise ValueError(f"lengths must be {B} numbers from 1 to {L} for x of shape {tuple(x.shape)}; found {sizes}")
    rows = [b * L + t for b, n in enumerate(sizes) for t in range(n)]
    real = torch.tensor(rows, dtype=torch.long).to(x.device, non_blocking=True)
    packed = x.flatten(-3, -2).index_select(-2, real)
    ends = torch.tensor([0, *itertools.accumulate(sizes)], device=x.device)
    y = causal_conv(packed, weight, bias, ends, None, reverse, activation, initial)
    return y.new_zeros(*y.shape[:-2], B * L, D).index_copy(-2, real, y).unflatten(-2, (B, L))


# The operator: K directions, x (K, N, D), weight (K, D, W), bias (K, D). Shared tensors have 1 instead of K; their
# gradients of both directions are summed before they are rounded.


def _expand(x: Tensor, weight: Tensor, bias: Tensor | None, K: int) -> tuple[Tensor, Tensor, Tensor | None]:
    return (
        x.expand(K, -1, -1),
        weight.expand(K, -1, -1),
        None if bias is None else bias.expand(K, -1),
    )


def _gather(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of an argument from the gradient of its expanded form."""
    return (gradient if gradient.shape == like.shape else gradient.sum(0, keepdim=True)).to(like.dtype)


def _complete(
    offsets: Tensor | None, lengths: Sequence[int] | None, x: Tensor, device: bool
) -> tuple[Tensor | None, tuple[int, ...]]:
    """Lengths on the host, and offsets on the device if kernels need them."""
    sizes = offsets.diff().tolist() if lengths is None else lengths  # type: ignore[union-attr]
    if offsets is None and device:
        offsets = Packing(sizes, x.device).offsets
    return offsets, tuple(sizes)


@torch.library.custom_op("ercfusion::causal_conv", mutates_args=())
def _causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    lengths: Sequence[int] | None,
    reverse: Sequence[bool],
    silu: bool,
) -> Tensor:
    x, weight, bias = _expand(x, weight, bias, len(reverse))
    kernels = _kernels(x)
    offsets, lengths = _complete(offsets, lengths, x, kernels is not None)
    if kernels is not None:
        shift = None if bias is None else bias.contiguous()
        directions = tuple(bool(each) for each in reverse)
        out: Tensor = kernels.causal_conv_forward(x, weight.contiguous(), shift, offsets, lengths, directions, silu)
        return out
    y = x.new_empty(x.shape)
    for k, back in enumerate(reverse):
        total = _sum_of_taps(x[k], weight[k], None if bias is None else bias[k], lengths, bool(back))
        y[k] = F.silu(total) if silu else total
    return y


@_causal_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    lengths: Sequence[int] | None,
    reverse: Sequence[bool],
    silu: bool,
) -> Tensor:
    return x.new_empty((len(reverse), *x.shape[1:]))


@torch.library.custom_op("ercfusion::causal_conv_backward", mutates_args=())
def _causal_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    lengths: Sequence[int] | None,
    reverse: Sequence[bool],
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shared, shared_bias = (x, weight), bias
    x, weight, bias = _expand(x, weight, bias, len(reverse))
    kernels = _kernels(x)
    offsets, lengths = _complete(offsets, lengths, x, kernels is not None)
    dbias: Tensor | None
    if kernels is not None:
        shift = None if bias is None else bias.contiguous()
        directions = tuple(bool(each) for each in reverse)
        dx, dweight, dbias = kernels.causal_conv_backward(
            grad, x, weight.contiguous(), shift, offsets, lengths, directions, silu
        )
    else:
        dx, dweight, dbias = _gradients(grad, x, weight, bias, lengths, reverse, silu)
    dx, dweight = (_gather(each, like) for each, like in zip((dx, dweight), shared, strict=True))
    if dbias is None or shared_bias is None:
        return dx, dweight, x.new_empty(0)
    return dx, dweight, _gather(dbias, shared_bias)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Sequence[int],
    reverse: Sequence[bool],
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias by torch, in the dtype of the computation.

    With v_t the sum before the activation and y_t = v_t sigmoid(v_t):

    .. code-block:: text

        g_t = dL/dv_t = dy_t sigmoid(v_t) (1 + v_t (1 - sigmoid(v_t)))      (g_t = dy_t without SiLU)
        dx_t = sum_j weight[:, W - 1 - j] g_{t+j}:  utterance t is tap j of the outputs t + j of its conversation
        dweight[:, W - 1 - j] = sum_t g_t x_{t-j},  dbias = sum_t g_t
    """
    dtype = _accumulates(x, weight, bias)
    dx, dweight = x.new_empty(x.shape, dtype=dtype), x.new_empty(weight.shape, dtype=dtype)
    dbias = None if bias is None else x.new_empty(bias.shape, dtype=dtype)
    for k, back in enumerate(reverse):
        g = grad[k].to(dtype)
        if silu:  # Computing v_t again is cheaper than saving it.
            v = _sum_of_taps(x[k], weight[k], None if bias is None else bias[k], lengths, bool(back))
            gate = v.sigmoid()
            g = g * gate * (1 + v * (1 - gate))
        # The same convolution in the opposite direction, without bias.
        dx[k] = _sum_of_taps(g, weight[k], None, lengths, not back)
        dweight[k] = _tap_gradients(g, x[k], weight.shape[2], lengths, bool(back))
        if dbias is not None:
            dbias[k] = g.sum(0)
    return dx, dweight, dbias


@_causal_conv_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    lengths: Sequence[int] | None,
    reverse: Sequence[bool],
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        x.new_empty(0) if bias is None else torch.empty_like(bias),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, offsets, ctx.lengths, ctx.reverse, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, offsets)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, offsets = ctx.saved_tensors
    dx, dweight, dbias = _causal_conv_backward(grad, x, weight, bias, offsets, ctx.lengths, ctx.reverse, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None, None, None, None


_causal_conv.register_autograd(_differentiate, setup_context=_keep)


def _kernels(x: Tensor) -> Any:
    """The module of kernels for the device of ``x``, or None for torch's operations."""
    return _triton_kernels() if x.is_cuda else None


@functools.cache
def _triton_kernels() -> Any:
    try:
        return importlib.import_module("ercfusion.ops.scan.triton_conv")
    except ImportError:
        return None


# In torch


def _accumulates(*tensors: Tensor | None) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _heads(lengths: Sequence[int], count: int, reverse: bool, device: torch.device) -> list[Tensor]:
    """For s from 0 to ``count`` - 1: rows with s utterances of their conversation before them in reading direction."""
    rows: list[list[int]] = [[] for _ in range(count)]
    first = 0
    for length in lengths:
        for step in range(min(count, length)):
            rows[step].append(first + length - 1 - step if reverse else first + step)
        first += length
    return [torch.tensor(each, dtype=torch.long).to(device) for each in rows]


def _shifted(j: int, reverse: bool) -> tuple[slice, slice]:
    """All rows with a row j before them in the packed batch, and those earlier rows."""
    later, earlier = slice(j, None), slice(None, -j)
    return (earlier, later) if reverse else (later, earlier)


def _sum_of_taps(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Sequence[int], reverse: bool) -> Tensor:
    """(N, D) sums before the activation, in the dtype of the computation.

    Taps are added to all rows as if the batch were one conversation, which needs no copy of x. The first W - 1 rows of
    every conversation are then computed again from their own conversation only.
    """
    dtype = _accumulates(x, weight, bias)
    x = x.to(dtype)
    taps = weight.to(dtype).t().flip(0)  # (W, D), that of the utterance itself first
    W = len(taps)
    y = x * taps[0] if bias is None else torch.addcmul(bias.to(dtype), x, taps[0])
    for j in range(1, W):  # crosses conversations; corrected below
        later, earlier = _shifted(j, reverse)
        y[later].addcmul_(x[earlier], taps[j])
    for step, rows in enumerate(_heads(lengths, W - 1, reverse, x.device)):
        own = x.index_select(0, rows)
        head = own * taps[0] if bias is None else torch.addcmul(bias.to(dtype), own, taps[0])
        for j in range(1, step + 1):
            head.addcmul_(x.index_select(0, rows + j if reverse else rows - j), taps[j])
        y.index_copy_(0, rows, head)
    return y


def _tap_gradients(grad: Tensor, x: Tensor, taps: int, lengths: Sequence[int], reverse: bool) -> Tensor:
    """(D, W): for tap j the sum over t of grad_t * x_{t - j}, with t - j in the same conversation."""
    x = x.to(grad.dtype)
    sums = [(grad * x).sum(0)]
    grad = grad.clone()
    for j, rows in zip(range(1, taps), _heads(lengths, taps - 1, reverse, x.device)):
        grad.index_fill_(0, rows, 0.0)  # Excludes rows with fewer than j before them, for this tap and all later ones.
        later, earlier = _shifted(j, reverse)
        sums.append((grad[later] * x[earlier]).sum(0))
    return torch.stack(sums[::-1], dim=1)
