"""The equations of the selective scan, and the interface of its backends.

Per direction, conversation and channel, with t in reading direction and the sum over s over the S states:

.. code-block:: text

    (F1) raw_t = delta_t + delta_bias,  dt_t = softplus(raw_t),  slope_t = d dt_t / d raw_t = sigmoid(raw_t)
    (F2) a_t = exp(dt_t A),  h_t = a_t h_{t-1} + dt_t u_t B_t,  h_0 = initial
    (F3) y_t = sum_s C_t h_t + D u_t
    (F4) out_t = y_t silu(z_t),  silu(z) = z sigmoid(z)

Above 20, softplus is the identity and slope_t is 1; without softplus both hold everywhere. Let g_t be the gradient of
out_t and lambda_t that of h_t. From the last step to the first:

.. code-block:: text

    (B1) gy_t = g_t silu(z_t),  dz_t = g_t y_t sigmoid(z_t) (1 + z_t (1 - sigmoid(z_t)))
    (B2) lambda_t = C_t gy_t + a_{t+1} lambda_{t+1},  at the last step plus the gradient of the final state
    (B3) dC_t = sum_d gy_t h_t,  dB_t = sum_d lambda_t dt_t u_t,  over the channels d of the group
    (B4) v_t = sum_s lambda_t B_t,  du_t = dt_t v_t + D gy_t
    (B5) r_t = a_t lambda_t h_{t-1}  (the gradient of the exponent dt_t A),  dA = sum_t r_t dt_t
    (B6) ddt_t = sum_s r_t A + u_t v_t,  ddelta_t = ddt_t slope_t,  ddelta_bias = sum_t ddelta_t
    (B7) dD = sum_t gy_t u_t
    (B8) dinitial = a_1 lambda_1

The comments of the backends refer to these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """The inputs of every backend, in the order of their arguments.

    K directions (1 or 2), B conversations, N utterances, D channels, S states, G groups of channels. Tensors may be
    views with any strides, also 0, and are not changed.

    Args:
        u: (K, N, D). The stride is 0 on a shared axis; return the gradient of such a tensor unrounded, it is summed
            later.
        delta: (K, N, D), before bias and softplus.
        A: (K, D, S).
        B: (K, N, G, S).
        C: (K, N, G, S).
        D: (K, D) or None.
        z: (K, N, D) or None.
        delta_bias: (K, D) or None.
        initial: (K, B, D, S) or None.
        offsets: (B + 1) int64 on the device of ``u``.
        lengths: (B) on the host; may contain 0.
        reverse: Per direction.
        softplus: Apply softplus to ``delta``.
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
    """Gradients of the first nine of :class:`ScanInputs`, with their shapes; None if the input is None."""

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
    """A backend of the selective scan.

    ``forward`` and ``backward`` are called without a graph and with autocast off, and may return any dtype; the caller
    converts. A class attribute ``final_gradient = False`` means no gradient of the final state; another backend is then
    chosen.
    """

    @property
    def name(self) -> str:
        """Name for selecting the backend."""

    def declines(self, inputs: ScanInputs) -> str | None:
        """Why it cannot compute these inputs, or None."""

    def forward(self, *inputs: Any) -> Sequence[Any]:
        """From the fields of :class:`ScanInputs`: (K, N, D) and (K, B, D, S); further results are ignored."""

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *inputs: Any) -> Sequence[Tensor | None]:
        """From the gradients of the two results and the same inputs: :class:`ScanGradients`."""


def accumulation_dtype(*tensors: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """Real dtype of the computation, and dtype of the states: at least float32, complex for complex A."""
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    wide = any(dtype in (torch.float64, torch.complex128) for dtype in dtypes)
    real = torch.float64 if wide else torch.float32
    if any(dtype.is_complex for dtype in dtypes):
        return real, torch.complex128 if wide else torch.complex64
    return real, real


@contextmanager
def autograd_inside() -> Iterator[None]:
    """Let autograd record inside an operator's kernel, where torch disables it for the thread.

    For backends whose backward pass is autograd's. It must run on the same thread: on a GPU, an inner backward pass on
    another thread would wait for the outer one.
    """
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "AutogradOther", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield
