"""The selective scan as plain loops: the specification of :mod:`ercfusion.ops.scan`.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (COLM 2024), section 3 and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.ops.scan.contract import ScanGradients, ScanInputs, accumulation_dtype, autograd_inside

THRESHOLD = 20.0
"""Softplus is the identity above it, as in :func:`torch.nn.functional.softplus`."""


def scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial: Tensor | None,
    offsets: Tensor | None,
    lengths: Sequence[int],
    reverse: Sequence[bool],
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The scan step by step; differentiable by autograd.

    Equations (F1) to (F4) of :mod:`ercfusion.ops.scan.contract`. The decay is the exact solution for constant A within
    one step; the input's factor dt B is Euler's, as in the authors' program. Complex A represents conjugate pairs of
    states: y is twice the real part of the sum.

    Args:
        u, delta, A, B, C, D, z, delta_bias, initial, lengths, reverse, softplus: See
            :class:`ercfusion.ops.scan.contract.ScanInputs`; A, B, C and initial may be complex.
        offsets: Not used.

    Returns:
        (K, N, D) in the dtype of ``u``, and the states (K, B, D, S) after the last step.
    """
    real, state = accumulation_dtype(u, delta, A, B, C, D, z, delta_bias, initial)
    K, N, width = u.shape
    step = delta.to(real)
    if delta_bias is not None:
        step = step + delta_bias.to(real).unsqueeze(1)
    if softplus:
        step = F.softplus(step, threshold=THRESHOLD)
    value, decay_rate = u.to(real), A.to(state)
    # B and C of every channel's group: (K, N, D, S).
    into = B.to(state if B.is_complex() else real).repeat_interleave(width // B.shape[2], dim=2)
    out_of = C.to(state if C.is_complex() else real).repeat_interleave(width // C.shape[2], dim=2)

    outputs, finals = [], []
    for k in range(K):
        rows: dict[int, Tensor] = {}
        start = 0
        for b, length in enumerate(lengths):
            if initial is not None:
                h = initial[k, b].to(state)
            else:
                h = torch.zeros(width, A.shape[-1], dtype=state, device=u.device)
            order = range(start, start + length)
            for t in reversed(order) if reverse[k] else order:
                dt = step[k, t].unsqueeze(1)
                h = torch.exp(dt * decay_rate[k]) * h + dt * value[k, t].unsqueeze(1) * into[k, t]
                y = (out_of[k, t] * h).sum(1)
                rows[t] = 2 * y.real if y.is_complex() else y
            finals.append(h)
            start += length
        outputs.append(torch.stack([rows[t] for t in range(N)]) if N else value[k])
    out = torch.stack(outputs)
    if D is not None:
        out = out + D.to(real).unsqueeze(1) * value
    if z is not None:
        out = out * F.silu(z.to(real))
    return out.to(u.dtype), torch.stack(finals).unflatten(0, (K, len(lengths)))


class ReferenceScan:
    """The specification as a backend: slow, for any device and complex A, with gradients of autograd."""

    name = "reference"

    def declines(self, inputs: ScanInputs) -> str | None:
        """None: it accepts everything."""
        return None

    def forward(self, *inputs: object) -> tuple[Tensor, Tensor]:
        """:func:`scan_reference` without a graph."""
        with torch.no_grad():
            return scan_reference(*inputs)  # type: ignore[arg-type]

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *inputs: object) -> ScanGradients:
        """Run the loops again with a graph, in the dtype of the computation, so that no gradient is rounded."""
        tensors = [x if isinstance(x, Tensor) else None for x in inputs[:9]]
        real, state = accumulation_dtype(*tensors)
        leaves = [
            None if x is None else x.detach().to(state if x.is_complex() else real).requires_grad_() for x in tensors
        ]
        with autograd_inside():
            out, final = scan_reference(*leaves, *inputs[9:])  # type: ignore[arg-type]
            results, directions = [out], [grad_out.to(out.dtype)]
            if grad_final is not None:
                results, directions = [out, final], [*directions, grad_final]
            present = [leaf for leaf in leaves if leaf is not None]
            gradients = iter(torch.autograd.grad(results, present, directions, materialize_grads=True))
        return ScanGradients(*(None if leaf is None else next(gradients) for leaf in leaves))  # type: ignore[arg-type]
