"""The short causal convolution of :mod:`ercfusion.ops.conv` on CUDA in Triton.

A program computes a tile of rows of the packed batch and channels; every row knows the bounds of its conversation. Sums
over rows are written per tile and added in a second step, without atomics. Computes in float32, or float64 if an input
is.

With v_t the sum before the activation and g_t its gradient, in reading direction (derivation in ``_gradients`` of
:mod:`ercfusion.ops.conv`):

.. code-block:: text

    (1) v_t = bias + sum_j weight[W - 1 - j] x_{t-j},  y_t = v_t sigmoid(v_t) with SiLU
    (2) g_t = dy_t sigmoid(v_t) (1 + v_t (1 - sigmoid(v_t))) with SiLU, else dy_t
    (3) dx_t = sum_j weight[W - 1 - j] g_{t+j}
    (4) dweight[W - 1 - j] = sum_t g_t x_{t-j},  dbias = sum_t g_t
"""

# Triton compiles the kernels with its own types.
# mypy: disable-error-code="assignment, var-annotated, no-untyped-def"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 32, 64
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _device(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


def _kernel(function: Callable[..., None]) -> Any:
    """A kernel that is not specialised to arguments varying between batches."""
    return triton.jit(function, do_not_specialize=["N", "x_k", "grad_k", "reverse"])


@_device
def _sum(x, weight, bias, row, low, high, step, d, real, x_n, W: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr):
    """(1) at ``row`` (rows), before the activation; rows outside [low, high) are not read."""
    inside = (row >= low) & (row < high)
    y = tl.zeros((row.shape[0], d.shape[0]), WIDE)
    if BIAS:
        y += tl.load(bias + d, mask=real, other=0.0).to(WIDE)[None, :]
    for j in tl.static_range(W):
        source = row - j * step
        on = inside & (source >= low) & (source < high)
        tap = tl.load(weight + d * W + (W - 1 - j), mask=real, other=0.0).to(WIDE)
        value = tl.load(x + source[:, None] * x_n + d[None, :], mask=on[:, None] & real[None, :], other=0.0)
        y += tap[None, :] * value.to(WIDE)
    return y


@_kernel
def forward_kernel(
    x, weight, bias, out, start, stop,
    x_k, x_n, N, D, reverse, W: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """(1) for one tile."""
    columns = tl.cdiv(D, CHANNELS)
    tiles = tl.cdiv(N, ROWS)
    pid = tl.program_id(0)
    d = (pid % columns) * CHANNELS + tl.arange(0, CHANNELS)
    row = (pid // columns % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = (pid // columns // tiles).to(tl.int64)
    real = d < D
    step = 1 - 2 * ((reverse >> k) & 1)
    low = tl.load(start + row, mask=row < N, other=0)
    high = tl.load(stop + row, mask=row < N, other=0)
    y = _sum(x + k * x_k, weight + k * D * W, bias + k * D, row, low, high, step, d, real, x_n, W, BIAS, WIDE)
    if SILU:
        y *= 1.0 / (1.0 + tl.exp(-y))
    at = (k * N + row[:, None]) * D + d[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=(row < N)[:, None] & real[None, :])


@_kernel
def backward_kernel(
    x, weight, bias, grad, dx, dweight, dbias, start, stop,
    x_k, x_n, grad_k, grad_n, N, D, reverse, W: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """(3) for one tile, and the tile's part of (4)."""
    columns = tl.cdiv(D, CHANNELS)
    tiles = tl.cdiv(N, ROWS)
    pid = tl.program_id(0)
    d = (pid % columns) * CHANNELS + tl.arange(0, CHANNELS)
    tile = (pid // columns % tiles).to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)
    k = (pid // columns // tiles).to(tl.int64)
    real = d < D
    step = 1 - 2 * ((reverse >> k) & 1)
    low = tl.load(start + row, mask=row < N, other=0)
    high = tl.load(stop + row, mask=row < N, other=0)
    x += k * x_k
    weight += k * D * W
    bias += k * D
    # (3): this x is tap j of the output j utterances later. Its g is computed again here, with W loads of x, so that
    # tiles exchange nothing.
    dx_ = tl.zeros((ROWS, CHANNELS), WIDE)
    own = tl.zeros((ROWS, CHANNELS), WIDE)
    for j in tl.static_range(W):
        target = row + j * step
        on = ((target >= low) & (target < high))[:, None] & real[None, :]
        g = tl.load(grad + k * grad_k + target[:, None] * grad_n + d[None, :], mask=on, other=0.0).to(WIDE)
        if SILU:  # (2)
            v = _sum(x, weight, bias, target, low, high, step, d, real, x_n, W, BIAS, WIDE)
            sig = 1.0 / (1.0 + tl.exp(-v))
            g *= sig * (1.0 + v * (1.0 - sig))
        tap = tl.load(weight + d * W + (W - 1 - j), mask=real, other=0.0).to(WIDE)
        dx_ += tap[None, :] * g
        if j == 0:  # g of the tile's own rows, for (4)
            own = g
    at = (k * N + row[:, None]) * D + d[None, :]
    tl.store(dx + at, dx_.to(dx.dtype.element_ty), mask=(row < N)[:, None] & real[None, :])
    # (4), summed over the rows of the tile; (tiles, K, D, W)
    part = (tile * (tl.num_programs(0) // columns // tiles) + k) * D + d
    for j in tl.static_range(W):
        source = row - j * step
        on = ((source >= low) & (source < high))[:, None] & real[None, :]
        value = tl.load(x + source[:, None] * x_n + d[None, :], mask=on, other=0.0).to(WIDE)
        tl.store(dweight + part * W + (W - 1 - j), tl.sum(own * value, axis=0), mask=real)
    if BIAS:
        tl.store(dbias + part, tl.sum(own, axis=0), mask=real)


def causal_conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    lengths: Sequence[int],
    reverse: Sequence[bool],
    silu: bool,
) -> Tensor:
    """:func:`ercfusion.ops.conv.causal_conv` for K directions.

    Args:
        x: (K, N, D), of any real floating dtype, like all tensors here.
        weight: (K, D, W); W should be small, because taps are unrolled.
        bias: (K, D) or None.
        offsets: (B + 1) int64, on the device of ``x``.
        lengths: (B) on the host, with sum N.
        reverse: Per direction.
        silu: Apply SiLU.

    Returns:
        (K, N, D) in the dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    call = _arguments(x, weight, bias, offsets, lengths, reverse, silu)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(forward_kernel, call | {"out": out}, len(reverse))
    return out


def causal_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    lengths: Sequence[int],
    reverse: Sequence[bool],
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias from the gradient (K, N, D) of y; see :func:`causal_conv_forward`.

    That of x has its dtype, except if the directions share x, whose sum is not yet computed; sums are not rounded.
    """
    if grad.shape != x.shape:
        raise ValueError(f"grad must be {tuple(x.shape)} like x; found {tuple(grad.shape)}")
    call = _arguments(x, weight, bias, offsets, lengths, reverse, silu)
    grad = _rows(grad)
    K, N, D = x.shape
    tiles = triton.cdiv(N, ROWS)
    wide = torch.float64 if call["WIDE"] == tl.float64 else torch.float32
    shared = K > 1 and x.stride(0) == 0
    dx = torch.empty(x.shape, dtype=wide if shared else x.dtype, device=x.device)
    dweight = torch.empty(tiles, K, D, weight.shape[2], dtype=wide, device=x.device)
    dbias = torch.empty(tiles, K, D, dtype=wide, device=x.device)
    call |= {"grad": grad, "grad_k": grad.stride(0), "grad_n": grad.stride(1)}
    _launch(backward_kernel, call | {"dx": dx, "dweight": dweight, "dbias": dbias}, K)
    return dx, dweight.sum(0), None if bias is None else dbias.sum(0)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last axis; other strides are free, 0 included."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _on_device(x: Tensor) -> bool:
    return x.is_cuda or not isinstance(forward_kernel, triton.JITFunction)  # Triton's interpreter runs on the CPU


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    lengths: Sequence[int],
    reverse: Sequence[bool],
    silu: bool,
) -> dict[str, Any]:
    K, N, D = x.shape
    W = weight.shape[-1]
    if weight.shape != (K, D, W) or (bias is not None and bias.shape != (K, D)) or len(reverse) != K:
        raise ValueError(
            f"x {tuple(x.shape)} needs weight ({K}, {D}, W), bias ({K}, {D}) and {K} directions; found "
            f"{tuple(weight.shape)}, {None if bias is None else tuple(bias.shape)} and {len(reverse)}"
        )
    if sum(lengths) != N or len(offsets) != len(lengths) + 1:
        raise ValueError(
            f"{len(offsets)} offsets and lengths of {sum(lengths)} utterances do not fit x {tuple(x.shape)}"
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"{name} must be float64, float32, bfloat16 or float16; found {tensor.dtype}")
    if not _on_device(x):
        raise ValueError(f"x must be on CUDA; found {x.device}")
    dtypes = [tensor.dtype for tensor in (x, weight, bias) if tensor is not None]
    x = _rows(x)
    # First row of each row's conversation, and the row after its last.
    of = torch.bucketize(torch.arange(N, device=x.device), offsets[1:], right=True)
    return {
        "x": x,
        "x_k": x.stride(0),
        "x_n": x.stride(1),
        "weight": weight.contiguous(),
        "bias": x if bias is None else bias.contiguous(),
        "start": offsets.index_select(0, of),
        "stop": offsets.index_select(0, of + 1),
        "N": N,
        "D": D,
        "reverse": sum(2**k for k, back in enumerate(reverse) if back),
        "W": W,
        "BIAS": bias is not None,
        "SILU": silu,
        "ROWS": ROWS,
        "WIDE": tl.float64 if torch.float64 in dtypes else tl.float32,
        "CHANNELS": min(CHANNELS, triton.next_power_of_2(max(D, 1))),
    }


def _launch(kernel: Any, arguments: dict[str, Any], directions: int) -> None:
    N, D = arguments["N"], arguments["D"]
    grid = directions * triton.cdiv(N, ROWS) * triton.cdiv(D, arguments["CHANNELS"])
    x = arguments["x"]
    if grid:
        with torch.cuda.device(x.device if x.is_cuda else -1):  # Triton launches on the current device
            kernel[(grid,)](**{name: arguments[name] for name in kernel.arg_names}, num_warps=4)
