"""The CUDA kernel of the package ``mamba_ssm`` as a backend of the selective scan.

The kernel takes padded tensors (B, D, L) and one direction. Conversations are therefore padded, and for the reverse
direction each is reversed at its own end.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ercfusion.ops.scan.contract import ScanGradients, ScanInputs, autograd_inside

MOST_STATES = 256
NO_STEP = -1e4
"""A raw delta whose softplus is 0 in every floating dtype, so padded steps change nothing."""


class MambaSsmScan:
    """``selective_scan_fn`` of ``mamba_ssm``, if it is installed with its CUDA extension.

    Args:
        function: A replacement with the same signature.
        device: Type of its device.
    """

    name = "mamba_ssm"
    final_gradient = False

    def __init__(self, function: Callable[..., Any] | None = None, device: str = "cuda") -> None:
        self.function, self.device = function, device

    @staticmethod
    def installed() -> bool:
        """Whether the package and its compiled extension are installed; imports neither."""
        return all(importlib.util.find_spec(name) is not None for name in ("mamba_ssm", "selective_scan_cuda"))

    def declines(self, inputs: ScanInputs) -> str | None:
        """Declines other devices, initial states, complex or float64 tensors, more than 256 states."""
        if inputs.u.device.type != self.device:
            return f"it is for {self.device}, and the tensors are on {inputs.u.device}"
        if inputs.initial is not None:
            return "it takes no initial state"
        if any(x.is_complex() or x.dtype == torch.float64 for x in inputs[:9] if isinstance(x, Tensor)):
            return "it computes in float32, with real tensors"
        if inputs.A.shape[2] > MOST_STATES:
            return f"it takes at most {MOST_STATES} states; found {inputs.A.shape[2]}"
        return None

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Outputs and final states; see :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        with torch.no_grad():
            return self._run(ScanInputs(*arguments))

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *arguments: Any) -> ScanGradients:
        """Run the kernel again under autograd, which calls the kernel's backward pass.

        It rounds the gradients of u, delta, B, C and z of each direction to their dtype, but not those of A, D and the
        bias.
        """
        leaves = [
            x.detach().to(torch.float32 if name in ("A", "D", "delta_bias") else x.dtype).requires_grad_()
            if isinstance(x, Tensor)
            else None
            for name, x in zip(ScanInputs._fields[:9], arguments[:9], strict=True)
        ]
        with autograd_inside():
            out, _ = self._run(ScanInputs(*leaves, *arguments[9:]))  # type: ignore[arg-type]
            present = [leaf for leaf in leaves if leaf is not None]
            gradients = iter(torch.autograd.grad(out, present, grad_out, materialize_grads=True))
        return ScanGradients(*(None if leaf is None else next(gradients) for leaf in leaves))  # type: ignore[arg-type]

    def _run(self, x: ScanInputs) -> tuple[Tensor, Tensor]:
        function = self.function
        if function is None:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

            function = selective_scan_fn
        device, dtype = x.u.device, x.u.dtype
        K, N, _ = x.u.shape
        B, L = len(x.lengths), max(1, *x.lengths)
        length = torch.tensor(x.lengths, device=device).unsqueeze(1)
        position = torch.arange(L, device=device)
        real = position < length
        outputs, finals = [], []
        for k in range(K):
            turned = length - 1 - position if x.reverse[k] else position
            # (B L) rows of the packed tensors; padding points to an extra row N.
            rows = torch.where(real, x.offsets[:-1].unsqueeze(1) + turned, N).flatten()

            def pad(values: Tensor, fill: Tensor, rows: Tensor = rows) -> Tensor:
                wide = torch.cat([values, fill.expand(1, *values.shape[1:])]).to(dtype)
                return wide.index_select(0, rows).unflatten(0, (B, L)).movedim(1, -1).contiguous()

            def whole(values: Tensor | None, k: int = k) -> Tensor | None:
                return None if values is None else values[k].float().contiguous()

            zero = x.u.new_zeros(())
            bias = whole(x.delta_bias)
            if x.softplus:
                nothing = zero + NO_STEP
            else:
                nothing = zero if bias is None else -bias.detach().to(x.delta.dtype)
            y, final = function(
                pad(x.u[k], zero),
                pad(x.delta[k], nothing),
                whole(x.A),
                pad(x.B[k], zero),
                pad(x.C[k], zero),
                D=whole(x.D),
                z=None if x.z is None else pad(x.z[k], zero),
                delta_bias=bias,
                delta_softplus=x.softplus,
                return_last_state=True,
            )
            slots = torch.arange(B * L, device=device)[real.flatten()]
            back = torch.empty(N, dtype=torch.long, device=device).index_copy(0, rows.index_select(0, slots), slots)
            outputs.append(y.movedim(-1, 1).flatten(0, 1).index_select(0, back))
            finals.append(final)
        return torch.stack(outputs), torch.stack(finals)
