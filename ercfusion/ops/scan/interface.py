"""The selective scan of Mamba on packed or padded conversations, as one differentiable operator of torch.

:func:`selective_scan` converts its arguments into one form by views; the operators ``ercfusion::selective_scan`` and
``ercfusion::selective_scan_backward`` choose a backend and run it. For ``torch.compile`` they are opaque.

A tensor shared by directions, utterances or groups is expanded inside the operator, so that gradients of the copies are
summed in the dtype of the computation and rounded once. Autograd would sum rounded gradients: in bfloat16 two of
opposite sign can leave only rounding errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ercfusion.batch.packing import Packing
from ercfusion.ops.scan.backends import choose
from ercfusion.ops.scan.contract import ScanInputs, accumulation_dtype

Reverse = bool | Literal["both"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    offsets: Tensor | Packing | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reverse: Reverse = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A linear recurrence per channel with input-dependent step, input and output weights (Mamba's S6).

    Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (COLM 2024), algorithm 2. For every
    conversation and every channel d, with S states each,

    .. math::
        \Delta_t &= \mathrm{softplus}(\delta_t + \mathrm{bias}) \\
        h_t &= e^{\Delta_t A} h_{t-1} + \Delta_t u_t B_t \\
        y_t &= (\langle C_t, h_t\rangle + D u_t)\, \mathrm{silu}(z_t)

    Softplus, bias, D and z are optional. The input's factor :math:`\Delta B` is Euler's rule, as in the authors'
    program (the paper's equation 4 is exact).

    Computed in float32, or float64 if an input is. Every tensor has a gradient, from the output and from the final
    state; differentiable once. A conversation's result does not depend on the others.

    **Packed**: u is (N, D), with the first rows of the conversations in ``offsets``. **Padded**: u is (B, L, D), with
    ``lengths``; the padding is not read, and is 0 in the output and in every gradient. **Both directions**: every
    tensor may have a leading axis of 2, forward and reverse; without it the directions share the tensor.

    Args:
        u: (N, D) or (B, L, D). Three dimensions mean padded, unless ``offsets`` is given.
        delta: Like u.
        A: (D, S), usually negative. Complex A represents conjugate pairs: y is twice the real part of the sum.
        B: (N, S), (N, G, S) for G groups of neighbouring channels, or (1, D, S), constant over utterances. Padded: (B,
            L, S), (B, L, G, S), (1, 1, D, S) or (D, S). Packed (D, S) is refused, as it could mean (N, S).
        C: Like B; form and groups may differ.
        D: (D), direct path from input to output.
        z: Like u; gates the output.
        delta_bias: (D), added to delta.
        delta_softplus: Apply softplus to delta plus bias (the identity above 20).
        offsets: (B + 1) integers from 0 to N. A :class:`Packing` has its lengths on the host; a tensor on a GPU is read
            once per call, which waits for the device. None: one conversation.
        lengths: (B) integers from 0 to L; None: all are L. Under ``torch.compile`` without graph breaks, use a sequence
            of int.
        reverse: Read from each conversation's last utterance to its first; or ``"both"``.
        initial_state: (B, D, S), the state before the first utterance in reading direction. None: zeros.
        return_final_state: Return the state after the last utterance in reading direction too.
        backend: Name of the backend to use (:func:`ercfusion.ops.scan.backends`), before the environment variable
            ERCFUSION_SCAN_BACKEND. None: the first that accepts.

    Returns:
        y like u, in its dtype; with ``return_final_state`` also the state (B, D, S) in the dtype of the computation.
        With both directions (2, N, D) or (2, B, L, D), and (2, B, D, S).

    Raises:
        ValueError: shapes, devices or offsets that do not fit together, or a forced backend that declines.
    """
    if reverse not in (False, True, "both"):
        raise ValueError(f'reverse must be False, True or "both"; found {reverse!r}')
    directions = (False, True) if reverse == "both" else (bool(reverse),)
    both = len(directions) == 2
    padded = _is_padded(u, offsets, lengths)
    tokens = 2 if padded else 1
    if u.ndim not in ((tokens + 1, tokens + 2) if both else (tokens + 1,)) or not u.is_floating_point():
        wanted = "(B, L, D)" if padded else "(N, D)"
        more = f" or (2, {wanted[1:]}" if both else ""
        raise ValueError(f"u must be floating and {wanted}{more}; found {tuple(u.shape)} of {u.dtype}")
    place, width = tuple(u.shape[-tokens - 1 : -1]), u.shape[-1]
    if A.ndim < 2:
        raise ValueError(f"A must be ({width}, S) for the {width} channels of u; found {tuple(A.shape)}")
    states = A.shape[-1]

    fit = _Fit(u, both)
    u_ = fit("u", u, (*place, width))
    delta_ = fit("delta", delta, (*place, width))
    A_ = fit("A", A, (width, states))
    B_ = fit.grouped("B", B, place, width, states)
    C_ = fit.grouped("C", C, place, width, states)
    D_ = None if D is None else fit("D", D, (width,))
    z_ = None if z is None else fit("z", z, (*place, width))
    bias_ = None if delta_bias is None else fit("delta_bias", delta_bias, (width,))

    rows: Tensor | None = None
    host: Sequence[int] | None
    if padded:
        host, rows = _padded_lengths(lengths, place[0], place[1], u.device)
        offset: Tensor | None = None
        u_, delta_, B_, C_ = (_pack(x, place, rows) for x in (u_, delta_, B_, C_))
        z_ = None if z_ is None else _pack(z_, place, rows)
    else:
        offset, host = _packed_lengths(offsets, place[0], u.device)
    size = len(host) if host is not None else len(cast(Tensor, offset)) - 1
    initial = None if initial_state is None else fit("initial_state", initial_state, (size, width, states))

    out, final = torch.ops.ercfusion.selective_scan(
        u_, delta_, A_, B_, C_, D_, z_, bias_, initial, offset, host, directions, delta_softplus, backend or ""
    )
    if rows is not None:
        out = out.new_zeros(len(directions), place[0] * place[1], width).index_copy(1, rows, out)
    if padded:
        out = out.unflatten(1, place)
    if not both:
        out, final = out.squeeze(0), final.squeeze(0)
    return (out, final) if return_final_state else out


# Arguments


def _is_padded(u: Tensor, offsets: object, lengths: object) -> bool:
    if offsets is not None and lengths is not None:
        raise ValueError("offsets are for packed tensors and lengths for padded ones; found both")
    return lengths is not None or (offsets is None and u.ndim > 2)


class _Fit:
    """Adds the direction axis, (K, ...) or (1, ...) if shared; raises errors for tensors that do not fit ``u``."""

    def __init__(self, u: Tensor, both: bool) -> None:
        self.u, self.both = u, both

    def __call__(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        self._device(name, x)
        if tuple(x.shape) == shape:
            return x.unsqueeze(0)
        if self.both and tuple(x.shape) == (2, *shape):
            return x
        also = f" or {(2, *shape)}" if self.both else ""
        raise ValueError(f"{name} must be {shape}{also} to fit u {tuple(self.u.shape)}; found {tuple(x.shape)}")

    def grouped(self, name: str, x: Tensor, place: tuple[int, ...], width: int, states: int) -> Tensor:
        """B or C with its group axis: (K, N, G, S) or (K, B, L, G, S), with 1 for K, N, B or L on shared axes."""
        self._device(name, x)
        t = len(place)
        candidates = []
        for directed in (False, True) if self.both else (False,):
            if directed and (x.ndim == 0 or x.shape[0] != 2):
                continue
            shape = tuple(x.shape[1:]) if directed else tuple(x.shape)
            if len(shape) < 2 or shape[-1] != states:
                continue
            if shape == (*place, states):
                candidates.append((directed, x.unsqueeze(-2)))
            elif len(shape) == t + 2 and shape[:t] == place and shape[t] > 0 and width % shape[t] == 0:
                candidates.append((directed, x))
            elif shape == (*[1] * t, width, states) or (t == 2 and not directed and shape == (width, states)):
                candidates.append((directed, x.reshape(*([2] if directed else []), *[1] * t, width, states)))
        if len(candidates) == 1:
            return candidates[0][1] if candidates[0][0] else candidates[0][1].unsqueeze(0)
        fits = f"u {tuple(self.u.shape)} with {states} states"
        if candidates:
            raise ValueError(
                f"{name} {tuple(x.shape)} fits {fits} with and without an axis of directions; give it that axis"
            )
        raise ValueError(
            f"{name} must be {(*place, states)}, or {(*place, 'G', states)} where G divides {width}, or "
            f"{(*[1] * t, width, states)}{', with or without an axis of 2 before it' if self.both else ''}, to fit "
            f"{fits}; found {tuple(x.shape)}"
        )

    def _device(self, name: str, x: Tensor) -> None:
        if x.device != self.u.device:
            raise ValueError(f"{name} is on {x.device}, u on {self.u.device}")


def _pack(x: Tensor, place: tuple[int, ...], rows: Tensor | None) -> Tensor:
    """(K, B, L, ...) -> (K, N, ...), the real utterances; (K, 1, ...) if all utterances share it."""
    flat = x.flatten(1, 2)
    return flat if rows is None or x.shape[1:3] != place else flat.index_select(1, rows)


def _padded_lengths(
    lengths: Tensor | Sequence[int] | None, B: int, L: int, device: torch.device
) -> tuple[list[int], Tensor | None]:
    """Lengths on the host, and the real rows of the flattened (B L); None if all are real."""
    if lengths is None:
        return [L] * B, None
    if isinstance(lengths, Tensor) and (lengths.ndim != 1 or lengths.is_floating_point()):
        raise ValueError(f"lengths must be {B} integers; found {tuple(lengths.shape)} of {lengths.dtype}")
    host = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(host) != B or any(not 0 <= n <= L for n in host):
        raise ValueError(f"lengths must be {B} integers from 0 to {L} to fit u; found {host}")
    if min(host, default=L) == L:
        return host, None
    rows = torch.tensor([b * L + t for b, n in enumerate(host) for t in range(n)], dtype=torch.long)
    return host, rows.to(device, non_blocking=True)


def _packed_lengths(
    offsets: Tensor | Packing | None, N: int, device: torch.device
) -> tuple[Tensor | None, Sequence[int] | None]:
    """Offsets or lengths or both, as the operator takes them."""
    if offsets is None:
        return None, [N]
    if isinstance(offsets, Packing):
        if sum(offsets.lengths) != N:
            raise ValueError(f"the packing has {sum(offsets.lengths)} utterances, u has {N}")
        # A compiler cannot use the cached tensor; the operator computes it from the lengths.
        if torch.compiler.is_compiling() or offsets.device != device:
            return None, list(offsets.lengths)
        return offsets.offsets, offsets.lengths
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offsets must be (B + 1) integers; found {tuple(offsets.shape)} of {offsets.dtype}")
    if torch.compiler.is_compiling():
        return offsets, None  # their values are unknown before the graph runs
    bounds = offsets.tolist()
    return offsets.to(device, torch.long), _check_bounds(bounds, N)


def _check_bounds(bounds: list[int], N: int) -> list[int]:
    host = [end - start for start, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != N or min(host) < 0:
        raise ValueError(f"offsets must rise from 0 to the {N} utterances of u; found {bounds}")
    return host


# The operators

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? initial, "
    "Tensor? offsets, SymInt[]? lengths, bool[] reverse, bool softplus, str backend"
)
_TENSORS = 9
"""Number of arguments with a gradient: those before ``offsets``."""


def _inputs(arguments: Sequence[Any]) -> ScanInputs:
    """Arguments of the operator as a backend takes them, with offsets on the device and lengths on the host."""
    *tensors, offsets, lengths, reverse, softplus, _ = arguments
    # A tensor shared by the directions becomes a view with stride 0.
    expanded: list[Any] = [None if x is None else x.expand(len(reverse), *x.shape[1:]) for x in tensors]
    u, delta, A, B, C, D, z, delta_bias, initial = expanded
    groups, N = math.lcm(B.shape[2], C.shape[2]), u.shape[1]
    B, C = (_repeat(x.expand(-1, N, -1, -1), groups) for x in (B, C))
    if lengths is None:
        lengths = _check_bounds(offsets.tolist(), N)
    if offsets is None:
        host = torch.zeros(len(lengths) + 1, dtype=torch.long)
        host[1:] = torch.tensor(lengths, dtype=torch.long).cumsum(0)
        offsets = host
    offsets = offsets.to(u.device, torch.long, non_blocking=True)
    return ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial, offsets, tuple(lengths), tuple(reverse), softplus)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if x.shape[2] == groups else x.repeat_interleave(groups // x.shape[2], 2)


def _gather(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of an argument of the operator from that of its expanded form, summed over shared axes."""
    if gradient.shape == like.shape:
        return gradient
    gradient = gradient.to(accumulation_dtype(gradient)[1])
    if gradient.ndim == 4 and gradient.shape[2:] != like.shape[2:]:
        gradient = gradient.unflatten(2, (like.shape[2], -1)).sum(3)
    shared = [i for i, (n, m) in enumerate(zip(gradient.shape, like.shape, strict=True)) if n != m]
    return gradient.sum(shared, keepdim=True) if shared else gradient


def _own(results: Sequence[tuple[Tensor, torch.dtype]], arguments: Sequence[Any]) -> list[Tensor]:
    """Results in their dtypes, each in its own memory, as torch requires of operators."""
    taken = {x.untyped_storage().data_ptr() for x in arguments if isinstance(x, Tensor)}
    own = []
    for result, dtype in results:
        x = result.detach().to(dtype).contiguous()
        if x.numel() and x.untyped_storage().data_ptr() in taken:
            x = x.clone()
        taken.add(x.untyped_storage().data_ptr())
        own.append(x)
    return own


@torch.library.custom_op("ercfusion::selective_scan", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = _inputs(arguments)
    with torch.autocast(inputs.u.device.type, enabled=False):
        out, final, *_ = choose(inputs, arguments[-1]).forward(*inputs)
    state = accumulation_dtype(*arguments[:_TENSORS])[1]
    out, final = _own([(out, inputs.u.dtype), (final, state)], arguments)
    return out, final


@_scan.register_fake
def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    u, A, offsets, lengths = arguments[0], arguments[2], arguments[_TENSORS], arguments[_TENSORS + 1]
    state = accumulation_dtype(*arguments[:_TENSORS])[1]
    size = len(lengths) if lengths is not None else offsets.shape[0] - 1
    directions = len(arguments[_TENSORS + 2])
    return u.new_empty((directions, *u.shape[1:])), A.new_empty((directions, size, *A.shape[1:]), dtype=state)


@torch.library.custom_op(
    "ercfusion::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_out, Tensor? grad_final, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * _TENSORS)})",
)
def _scan_backward(grad_out: Tensor | None, grad_final: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    inputs = _inputs(arguments)
    if grad_out is None:
        grad_out = inputs.u.new_zeros(inputs.u.shape)
    with torch.autocast(inputs.u.device.type, enabled=False):
        backend = choose(inputs, arguments[-1], final_gradient=grad_final is not None)
        gradients = backend.backward(grad_out, grad_final, *inputs)
    pairs = list(zip(gradients, arguments[:_TENSORS], strict=True))
    results = [(_gather(g, x), x.dtype) for g, x in pairs if g is not None and x is not None]
    own = iter(_own(results, (grad_out, *arguments)))
    # An operator cannot return None, so a missing gradient is an empty tensor.
    return tuple(inputs.u.new_empty(0) if g is None or x is None else next(own) for g, x in pairs)


@_scan_backward.register_fake
def _scan_backward_fake(grad_out: Tensor | None, grad_final: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    u = arguments[0]
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments[:_TENSORS])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: _TENSORS + 1])
    ctx.rest = inputs[_TENSORS + 1 :]


def _autograd(ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = torch.ops.ercfusion.selective_scan_backward(grad_out, grad_final, *saved, *ctx.rest)
    grads = [grad if x is not None else None for grad, x in zip(gradients, saved[:_TENSORS], strict=True)]
    return (*grads, *[None] * (1 + len(ctx.rest)))


_scan.register_autograd(_autograd, setup_context=_setup)
