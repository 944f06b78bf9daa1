"""Kernels of :mod:`ercfusion.ops.scan.triton_scan`, which describes the algorithm.

Equation numbers (F1) to (B8) are those of :mod:`ercfusion.ops.scan.contract`.

A program holds the states of ``BLOCK`` channels as a tile (HIGH, BLOCK, LOW) with HIGH * LOW >= S: state s of a channel
is [s // LOW, :, s % LOW]. In the order of states in memory, LOW is inside a thread, HIGH is distributed over the next
lanes, and BLOCK over the remaining lanes and inside a thread. Both kinds of sums therefore need few exchanges between
lanes: over states (y) and over channels (gradients of B and C).

A pointer to a matrix comes with the strides of its leading axes; the last axis is contiguous. States are contiguous (K,
conversations or segments, D, S). Utterances are numbered in reading direction, tau = 0 .. size - 1; ``reverse`` has one
bit per direction. Elements outside a mask load 0, and dt = 0 leaves a state unchanged, so masked utterances at the end
of a block have no effect.

Loops over utterances are ``while`` loops because Triton's interpreter runs those with every version of numpy.
"""

# Triton compiles these functions with its own types, and allows growing tuples.
# mypy: disable-error-code="assignment, var-annotated, no-untyped-def"

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Arguments varying between batches: kernels are not specialised to their values.
VARYING = ["u_k", "delta_k", "b_k", "c_k", "z_k", "grad_k", "N", "segments", "conversations", "reverse"]
VARYING += ["from_segment", "count", "slots"]


def _device(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


def _kernel(function: Callable[..., None]):
    names = inspect.signature(function).parameters
    return triton.jit(function, do_not_specialize=[name for name in VARYING if name in names])


@_device
def _place(start, stop, segment, k, reverse):
    """Row of the first utterance in reading direction, the step to the next, and the number of utterances."""
    low = tl.load(start + segment)
    high = tl.load(stop + segment)
    back = (reverse >> k) & 1
    return tl.where(back == 1, high - 1, low), 1 - 2 * back, (high - low).to(tl.int32)


@_device
def _channels(block, width, blocks, BLOCK: tl.constexpr):
    """Group, channels and their mask; a block is inside one group of ``width`` channels."""
    group = block // blocks
    inside = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
    return group, group * width + inside, inside < width


@_device
def _timestep(raw, SOFTPLUS: tl.constexpr):
    """(F1) from raw = delta + bias, with log(1 + x) to full relative precision for small x."""
    if SOFTPLUS:
        x = tl.exp(tl.where(raw > 20.0, 20.0, raw))
        r = 1.0 + x
        # log(r) * x / (r - 1) with r = 1 + x rounded: the rounding error of r cancels (Goldberg, 1991, theorem 4).
        divisor = tl.where(r == 1.0, 1.0, r - 1.0)
        log = tl.where(r == 1.0, x, tl.log(r) * (x / divisor))
        raw = tl.where(raw > 20.0, raw, log)
    return raw


@_device
def _states(pointer, index, d, s, D, S):
    return pointer + (index * D + d[None, :, None]) * S + s[:, None, :]


@_device
def _over_states(x):
    return tl.sum(tl.sum(x, axis=2), axis=0)  # LOW first, which is inside a thread


@_kernel
def scan_kernel(
    u, delta, a, b, c, skip, z, bias, initial,
    out, final, total,
    start, stop, owner, head,
    u_k, u_n, delta_k, delta_n, b_k, b_n, b_g, c_k, c_n, c_g,
    z_k, z_n,
    N, D, S, width, blocks, programs, segments, conversations, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, INITIAL: tl.constexpr,
    LOCAL: tl.constexpr, CUT: tl.constexpr,
) -> None:  # fmt: skip
    """The scan of one segment.

    With ``LOCAL`` it stores the segment's last state (``final``, per segment) and the sum of dt (``total``). Otherwise
    it stores the output, and the last state of the conversation (``final``, per conversation) if this is its last
    segment in reading direction.
    """
    pid = tl.program_id(0)
    block = pid % programs
    segment = ((pid // programs) % segments).to(tl.int64)
    k = (pid // programs // segments).to(tl.int64)
    first, step, size = _place(start, stop, segment, k, reverse)
    group, d, real = _channels(block, width, blocks, BLOCK)
    s = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    some = s < S
    tile = real[None, :, None] & some[:, None, :]

    decay_rate = tl.load(_states(a, k, d, s, D, S), mask=tile, other=0.0) * LOG2E
    if BIAS:
        shift = tl.load(bias + k * D + d, mask=real, other=0.0)
    if SKIP:
        direct = tl.load(skip + k * D + d, mask=real, other=0.0)
    h = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    if INITIAL:
        h = tl.load(_states(initial, k * segments + segment, d, s, D, S), mask=tile, other=0.0)
    total_dt = tl.zeros((BLOCK,), tl.float32)

    tau = 0
    while tau < size:
        # All loads of a block first, so that their latencies overlap.
        us, raws, bs, cs, zs = (), (), (), (), ()
        for i in tl.static_range(STEPS):
            row = first + (tau + i) * step
            on = tau + i < size
            us += (tl.load(u + k * u_k + row * u_n + d, mask=real & on, other=0.0).to(tl.float32),)
            raws += (tl.load(delta + k * delta_k + row * delta_n + d, mask=real & on, other=0.0).to(tl.float32),)
            bs += (tl.load(b + k * b_k + row * b_n + group * b_g + s, mask=some & on, other=0.0).to(tl.float32),)
            if not LOCAL:
                cs += (tl.load(c + k * c_k + row * c_n + group * c_g + s, mask=some & on, other=0.0).to(tl.float32),)
                if GATE:
                    zs += (tl.load(z + k * z_k + row * z_n + d, mask=real & on, other=0.0).to(tl.float32),)
        for i in tl.static_range(STEPS):
            on = tau + i < size
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & on, _timestep(raw, SOFTPLUS), 0.0)
            # (F2). decay_rate = A log2 e, because exp2 is the hardware's instruction; 0 * decay_rate may be NaN.
            decay = tl.where(on, tl.exp2(dt[None, :, None] * decay_rate), 1.0)
            h = decay * h + (dt * us[i])[None, :, None] * bs[i][:, None, :]
            if LOCAL:
                total_dt += dt
            else:
                y = _over_states(h * cs[i][:, None, :])  # (F3)
                if SKIP:
                    y += direct * us[i]
                if GATE:  # (F4)
                    y *= zs[i] / (1.0 + tl.exp(-zs[i]))
                row = first + (tau + i) * step
                tl.store(out + (k * N + row) * D + d, y.to(out.dtype.element_ty), mask=real & on)
        tau += STEPS

    if LOCAL:
        tl.store(_states(final, k * segments + segment, d, s, D, S), h, mask=tile)
        tl.store(total + (k * segments + segment) * D + d, total_dt, mask=real)
    elif CUT:
        of = tl.load(owner + segment)
        end = tl.load(head + of + (step + 1) // 2) - (step + 1) // 2
        tl.store(_states(final, k * conversations + of, d, s, D, S), h, mask=tile & (segment == end))
    else:
        tl.store(_states(final, k * conversations + segment, d, s, D, S), h, mask=tile)


@_kernel
def adjoint_kernel(
    delta, a, c, z, bias, grad, local,
    start, stop,
    delta_k, delta_n, c_k, c_n, c_g, z_k, z_n, grad_k, grad_n,
    D, S, width, blocks, programs, segments, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient that a segment's own outputs give to the state before it: ``local``, per segment.

    (B2) from zero at the segment's end. One iteration adds C_t gy_t to the gradient of the state h_t and multiplies by
    a_t, which gives the gradient of h_{t-1}.
    """
    pid = tl.program_id(0)
    block = pid % programs
    segment = ((pid // programs) % segments).to(tl.int64)
    k = (pid // programs // segments).to(tl.int64)
    first, step, size = _place(start, stop, segment, k, reverse)
    group, d, real = _channels(block, width, blocks, BLOCK)
    s = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    some = s < S
    tile = real[None, :, None] & some[:, None, :]

    decay_rate = tl.load(_states(a, k, d, s, D, S), mask=tile, other=0.0) * LOG2E
    if BIAS:
        shift = tl.load(bias + k * D + d, mask=real, other=0.0)
    lam = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    tau = size - 1
    while tau >= 0:
        raws, cs, gs, zs = (), (), (), ()
        for i in tl.static_range(STEPS):
            row = first + (tau - i) * step
            on = tau - i >= 0
            raws += (tl.load(delta + k * delta_k + row * delta_n + d, mask=real & on, other=0.0).to(tl.float32),)
            cs += (tl.load(c + k * c_k + row * c_n + group * c_g + s, mask=some & on, other=0.0).to(tl.float32),)
            gs += (tl.load(grad + k * grad_k + row * grad_n + d, mask=real & on, other=0.0).to(tl.float32),)
            if GATE:
                zs += (tl.load(z + k * z_k + row * z_n + d, mask=real & on, other=0.0).to(tl.float32),)
        for i in tl.static_range(STEPS):
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & (tau - i >= 0), _timestep(raw, SOFTPLUS), 0.0)
            decay = tl.where(tau - i >= 0, tl.exp2(dt[None, :, None] * decay_rate), 1.0)
            gy = gs[i]
            if GATE:
                gy *= zs[i] / (1.0 + tl.exp(-zs[i]))
            lam = decay * (lam + gy[None, :, None] * cs[i][:, None, :])
        tau -= STEPS
    tl.store(_states(local, k * segments + segment, d, s, D, S), lam, mask=tile)


@_kernel
def carry_kernel(
    a, local, total, edge, received, head,
    D, S, width, blocks, programs, segments, conversations, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    EDGE: tl.constexpr, ADJOINT: tl.constexpr,
) -> None:  # fmt: skip
    """Computes the state before every segment of a conversation, or with ``ADJOINT`` the gradient of the state after
    it.

    ``received[segment]`` is the result, and ``edge[conversation]`` the value for the outermost segment (default zero).
    A segment turns x into exp(A total) x + local. This is linear in x, so the forward and the adjoint recurrence have
    the same form; ``ADJOINT`` runs in the opposite direction.
    """
    pid = tl.program_id(0)
    block = pid % programs
    of = ((pid // programs) % conversations).to(tl.int64)
    k = (pid // programs // conversations).to(tl.int64)
    _, d, real = _channels(block, width, blocks, BLOCK)
    s = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    tile = real[None, :, None] & (s < S)[:, None, :]
    decay_rate = tl.load(_states(a, k, d, s, D, S), mask=tile, other=0.0) * LOG2E
    low = tl.load(head + of)
    high = tl.load(head + of + 1)
    back = (reverse >> k) & 1
    if ADJOINT:
        back = 1 - back
    first = tl.where(back == 1, high - 1, low)
    step = 1 - 2 * back
    count = (high - low).to(tl.int32)

    x = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    if EDGE:
        x = tl.load(_states(edge, k * conversations + of, d, s, D, S), mask=tile, other=0.0)
    j = 0
    while j < count:
        locals_, totals = (), ()
        for i in tl.static_range(STEPS):
            at = k * segments + first + (j + i) * step
            on = j + i < count
            locals_ += (tl.load(_states(local, at, d, s, D, S), mask=tile & on, other=0.0),)
            totals += (tl.load(total + at * D + d, mask=real & on, other=0.0),)
        for i in tl.static_range(STEPS):
            at = k * segments + first + (j + i) * step
            tl.store(_states(received, at, d, s, D, S), x, mask=tile & (j + i < count))
            x = tl.where(j + i < count, tl.exp2(totals[i][None, :, None] * decay_rate), 1.0) * x + locals_[i]
        j += STEPS


@_kernel
def backward_kernel(
    u, delta, a, b, c, skip, z, bias, initial, grad, final,
    du, ddelta, da, db, dc, dskip, dz, dbias, dinitial, marks,
    start, stop, owner, head,
    u_k, u_n, delta_k, delta_n, b_k, b_n, b_g, c_k, c_n, c_g,
    z_k, z_n, grad_k, grad_n,
    N, D, S, width, blocks, programs, segments, conversations, reverse,
    directions, from_segment, count, slots,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, INITIAL: tl.constexpr,
    FINAL: tl.constexpr, CUT: tl.constexpr, RETURN: tl.constexpr,
) -> None:  # fmt: skip
    """All gradients of one of the segments ``from_segment`` .. ``from_segment + count - 1``.

    ``initial`` and ``final``: the state before, and the gradient of the state after, every segment. ``marks`` has room
    for ``slots`` tiles of states. ``db`` and ``dc`` are sums over one block of channels, (blocks, K, N, G, S); ``da``,
    ``dskip`` and ``dbias`` sums over one segment, (segments, K, D, ...).
    """
    pid = tl.program_id(0)
    block = pid % programs
    number = ((pid // programs) % count).to(tl.int64)
    segment = from_segment + number
    k = (pid // programs // count).to(tl.int64)
    first, step, size = _place(start, stop, segment, k, reverse)
    group, d, real = _channels(block, width, blocks, BLOCK)
    s = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    some = s < S
    tile = real[None, :, None] & some[:, None, :]
    # A segment of n rows, x rows after the first segment of the launch, stores ceil(n / STEPS) tiles. They begin at
    # floor(x / STEPS) + number, and do not overlap because floor(x / T) + ceil(n / T) <= floor((x + n) / T) + 1.
    slot = (tl.load(start + segment) - tl.load(start + from_segment)) // STEPS + number
    inner = tl.arange(0, BLOCK)[None, :, None] * (HIGH * LOW) + s[:, None, :]
    marks += ((k * slots + slot) * programs + block) * (HIGH * BLOCK * LOW) + inner
    block_stride = tl.full((), HIGH * BLOCK * LOW, tl.int64) * programs

    decay_rate = tl.load(_states(a, k, d, s, D, S), mask=tile, other=0.0) * LOG2E
    if BIAS:
        shift = tl.load(bias + k * D + d, mask=real, other=0.0)
        dshift = tl.zeros((BLOCK,), tl.float32)
    if SKIP:
        direct = tl.load(skip + k * D + d, mask=real, other=0.0)
        ddirect = tl.zeros((BLOCK,), tl.float32)
    h = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    if INITIAL:
        h = tl.load(_states(initial, k * segments + segment, d, s, D, S), mask=tile, other=0.0)

    # (F1), (F2): forward, storing the state before every block of STEPS utterances.
    tau = 0
    while tau < size:
        tl.store(marks + (tau // STEPS) * block_stride, h)
        us, raws, bs = (), (), ()
        for i in tl.static_range(STEPS):
            row = first + (tau + i) * step
            on = tau + i < size
            us += (tl.load(u + k * u_k + row * u_n + d, mask=real & on, other=0.0).to(tl.float32),)
            raws += (tl.load(delta + k * delta_k + row * delta_n + d, mask=real & on, other=0.0).to(tl.float32),)
            bs += (tl.load(b + k * b_k + row * b_n + group * b_g + s, mask=some & on, other=0.0).to(tl.float32),)
        for i in tl.static_range(STEPS):
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & (tau + i < size), _timestep(raw, SOFTPLUS), 0.0)
            decay = tl.exp2(dt[None, :, None] * decay_rate)
            h = decay * h + (dt * us[i])[None, :, None] * bs[i][:, None, :]
        tau += STEPS
    tl.debug_barrier()  # a lane may read a state stored by another lane

    lam = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    if FINAL:
        lam = tl.load(_states(final, k * segments + segment, d, s, D, S), mask=tile, other=0.0)
    da_ = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    tau = (size + STEPS - 1) // STEPS * STEPS - STEPS
    while tau >= 0:
        h = tl.load(marks + (tau // STEPS) * block_stride)
        us, raws, bs, cs, gs, zs = (), (), (), (), (), ()
        for i in tl.static_range(STEPS):
            row = first + (tau + i) * step
            on = tau + i < size
            us += (tl.load(u + k * u_k + row * u_n + d, mask=real & on, other=0.0).to(tl.float32),)
            raws += (tl.load(delta + k * delta_k + row * delta_n + d, mask=real & on, other=0.0).to(tl.float32),)
            bs += (tl.load(b + k * b_k + row * b_n + group * b_g + s, mask=some & on, other=0.0).to(tl.float32),)
            cs += (tl.load(c + k * c_k + row * c_n + group * c_g + s, mask=some & on, other=0.0).to(tl.float32),)
            gs += (tl.load(grad + k * grad_k + row * grad_n + d, mask=real & on, other=0.0).to(tl.float32),)
            if GATE:
                zs += (tl.load(z + k * z_k + row * z_n + d, mask=real & on, other=0.0).to(tl.float32),)
        # The states of the block again: hs[i] before utterance tau + i, hs[i + 1] after it.
        hs, dts, decays = (h,), (), ()
        for i in tl.static_range(STEPS):
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & (tau + i < size), _timestep(raw, SOFTPLUS), 0.0)
            decay = tl.exp2(dt[None, :, None] * decay_rate)
            h = decay * h + (dt * us[i])[None, :, None] * bs[i][:, None, :]
            hs += (h,)
            dts += (dt,)
            decays += (decay,)
        for i in tl.static_range(STEPS - 1, -1, -1):
            row = first + (tau + i) * step
            on = tau + i < size
            at = (k * N + row) * D + d
            gy = gs[i]
            if GATE:  # (F3), (B1)
                y = _over_states(hs[i + 1] * cs[i][:, None, :])
                if SKIP:
                    y += direct * us[i]
                sig = 1.0 / (1.0 + tl.exp(-zs[i]))
                dz_ = gy * y * sig * (1.0 + zs[i] * (1.0 - sig))
                tl.store(dz + at, dz_.to(dz.dtype.element_ty), mask=real & on)
                gy *= zs[i] * sig
            lam += gy[None, :, None] * cs[i][:, None, :]  # (B2): lambda_t
            # (B3), summed over the channels of this block only
            token = ((block % blocks * directions + k) * N + row) * (programs // blocks) + group
            dc_ = tl.sum(gy[None, :, None] * hs[i + 1], axis=1)
            tl.store(dc + token * S + s, dc_, mask=some & on)
            db_ = tl.sum(lam * (dts[i] * us[i])[None, :, None], axis=1)
            tl.store(db + token * S + s, db_, mask=some & on)
            v = _over_states(lam * bs[i][:, None, :])  # (B4)
            du_ = dts[i] * v
            if SKIP:  # (B4), (B7)
                du_ += direct * gy
                ddirect += gy * us[i]
            tl.store(du + at, du_.to(du.dtype.element_ty), mask=real & on)
            lam *= decays[i]  # a_t lambda_t, the part of utterance t in lambda_{t-1}
            r = lam * hs[i]  # (B5)
            da_ += r * dts[i][None, :, None]
            # (B6); decay_rate LN2 = A, and the slope is sigmoid(raw) = 1 / (1 + exp(-raw)).
            ddt = _over_states(r * decay_rate) * LN2 + us[i] * v
            if SOFTPLUS:
                raw = raws[i]
                if BIAS:
                    raw += shift
                ddt = tl.where(raw > 20.0, ddt, ddt / (1.0 + tl.exp(-raw)))
            ddt = tl.where(real & on, ddt, 0.0)
            if BIAS:
                dshift += ddt
            tl.store(ddelta + at, ddt.to(ddelta.dtype.element_ty), mask=real & on)
        tau -= STEPS

    summed = segment * directions + k
    tl.store(_states(da, summed, d, s, D, S), da_, mask=tile)
    if SKIP:
        tl.store(dskip + summed * D + d, ddirect, mask=real)
    if BIAS:
        tl.store(dbias + summed * D + d, dshift, mask=real)
    if RETURN:  # (B8): lam is a_1 lambda_1; with segments, the first in reading direction stores it
        if CUT:
            of = tl.load(owner + segment)
            begin = tl.load(head + of + (1 - step) // 2) - (1 - step) // 2
            tl.store(_states(dinitial, k * conversations + of, d, s, D, S), lam, mask=tile & (segment == begin))
        else:
            tl.store(_states(dinitial, k * conversations + segment, d, s, D, S), lam, mask=tile)
