"""The selective scan as usually written in torch, for comparison: padded tensors, autograd's backward pass.

Written from the description of the algorithms, in the layout (B, D, L) of the authors' program.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def literal_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The authors' reference algorithm: decays and inputs of all steps first, (B, D, L, S) each, then sliced by step.

    Args:
        u, delta, z: (B, D, L).
        A: (D, S).
        B, C: (B, S, L).
        D, delta_bias: (D).

    Returns:
        (B, D, L).
    """
    step = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", step, B, u)
    state = torch.zeros(u.shape[0], u.shape[1], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(outputs, dim=2) + u * D[:, None]) * F.silu(z)


def loop_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """:func:`literal_scan` without tensors of all steps: decays per step, steps from ``unbind``.

    Args:
        u, delta, z: (B, L, D).
        A: (D, S).
        B, C: (B, L, S).
        D, delta_bias: (D).

    Returns:
        (B, L, D).
    """
    step = F.softplus(delta + delta_bias)
    state = torch.zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for dt, x, b, c in zip(step.unbind(1), (step * u).unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(dt.unsqueeze(-1) * A) * state + x.unsqueeze(-1) * b.unsqueeze(1)
        outputs.append((state @ c.unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, dim=1) + u * D) * F.silu(z)
