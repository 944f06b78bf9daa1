"""What every backend of the selective scan takes and promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """The one form of input that every backend takes, in the order of their arguments.

    K directions (1 or 2), B conversations, N utterances, D channels, S states, G groups of channels. Tensors may be
    views with any strides, a stride of 0 included; none is changed.

    Args:
        u: (K, N, D). What the directions share has stride 0 there: leave its gradient unrounded, it will be summed.
        delta: (K, N, D), before bias and softplus.
        A: (K, D, S).
        B: (K, N, G, S).
        C: (K, N, G, S).
        D: (K, D) or None.
        z: (K, N, D) or None.
        delta_bias: (K, D) or None.
        initial: (K, B, D, S) or None.
        offsets: (B + 1) int64 on the device of ``u``.
        lengths: (B) on the host; any may be 0.
        reverse: By direction.
        softplus: Whether ``delta`` passes through softplus.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial: Tensor | None
    offsets: Tensor
    lengths: tuple[int, ...]
    reverse: tuple[bool, ...]
    softplus: bool


class ScanGradients(NamedTuple):
    """Gradients of the first nine of :class:`ScanInputs`, with their shapes; None where the input is None."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial: Tensor | None


class ScanBackend(Protocol):
    """One way to compute the selective scan.

    ``forward`` and ``backward`` are called without a graph and with autocast off. They need not care for the dtype of
    what they return, which is converted: the output to that of ``u``, the final state to float32 (float64 where an
    input has it), a gradient to that of its input. A class attribute ``final_gradient = False`` says that ``backward``
    cannot start from a gradient of the final state; another backend is then asked.
    """

    @property
    def name(self) -> str:
        """By which it is forced."""

    def declines(self, inputs: ScanInputs) -> str | None:
        """Why it cannot compute these, or None where it can."""

    def forward(self, *inputs: Any) -> Sequence[Any]:
        """From the fields of :class:`ScanInputs`: (K, N, D) and (K, B, D, S); more may follow, and is ignored."""

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *inputs: Any) -> Sequence[Tensor | None]:
        """From the gradients of the two results and the same inputs: :class:`ScanGradients`."""


def accumulation_dtype(*tensors: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """In which real dtype to compute, and of which dtype the states are: at least float32, complex for complex A."""
    given = [tensor.dtype for tensor in tensors if tensor is not None]
    wide = any(dtype in (torch.float64, torch.complex128) for dtype in given)
    real = torch.float64 if wide else torch.float32
    if any(dtype.is_complex for dtype in given):
        return real, torch.complex128 if wide else torch.complex64
    return real, real


@contextmanager
def autograd_inside() -> Iterator[None]:
    """Let autograd record inside an operator's kernel, below which torch switches it off for the thread.

    For backends whose backward pass is that of autograd. It has to happen on the same thread: from another one, the
    inner backward pass on a GPU would wait for the outer one.
    """
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "AutogradOther", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield
