"""Kernels of :mod:`ercfusion.ops.scan.triton_scan`; the algorithm is described there.

A program works on the states of ``BLOCK`` channels as a tile (HIGH, BLOCK, LOW) with HIGH * LOW >= S: state s of a
channel is [s // LOW, :, s % LOW]. Loaded in the order in which states lie in memory, LOW stays inside a thread, HIGH
goes over the next lanes and BLOCK over the others and inside a thread, so that sums over states (for y) and over
channels (for the gradients of B and C) both need few exchanges between lanes.

In what follows a pointer to a matrix comes with the strides of its leading axes, the last axis being contiguous;
states are contiguous (K, conversations or segments, D, S). Utterances are numbered in reading direction, tau = 0 ..
size - 1; ``reverse`` holds a bit for each direction. Loops over utterances are ``while`` loops because those run in
Triton's interpreter too, whatever the version of numpy.
"""

# Triton reads these functions: it has types of its own, and a tuple that grows is nothing strange to it.
# mypy: disable-error-code="assignment, var-annotated, no-untyped-def"

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# What changes from batch to batch: no kernel is compiled anew for a special value of these.
VARYING = ["u_k", "delta_k", "b_k", "c_k", "gate_k", "grad_k", "N", "segments", "conversations", "reverse"]
VARYING += ["from_segment", "these", "slots"]


def _device(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


def _kernel(function: Callable[..., None]):
    names = inspect.signature(function).parameters
    return triton.jit(function, do_not_specialize=[name for name in VARYING if name in names])


@_device
def _place(start, stop, segment, k, reverse):
    """Row of the first utterance in reading direction, the step to the next, and how many there are."""
    low = tl.load(start + segment)
    high = tl.load(stop + segment)
    back = (reverse >> k) & 1
    return tl.where(back == 1, high - 1, low), 1 - 2 * back, (high - low).to(tl.int32)


@_device
def _channels(block, width, blocks, BLOCK: tl.constexpr):
    """Group, channels and which of them exist; a block never reaches into the next group of ``width`` channels."""
    group = block // blocks
    inside = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
    return group, group * width + inside, inside < width


@_device
def _timestep(raw, SOFTPLUS: tl.constexpr):
    """dt from delta + bias: softplus, linear above 20, with log(1 + x) to full relative precision for small x."""
    if SOFTPLUS:
        grown = tl.exp(tl.where(raw > 20.0, 20.0, raw))
        rounded = 1.0 + grown
        # The error of rounding 1 + x is cancelled by the same error in the divisor.
        divisor = tl.where(rounded == 1.0, 1.0, rounded - 1.0)
        log = tl.where(rounded == 1.0, grown, tl.log(rounded) * (grown / divisor))
        raw = tl.where(raw > 20.0, raw, log)
    return raw


@_device
def _states(pointer, index, d, s, D, S):
    return pointer + (index * D + d[None, :, None]) * S + s[:, None, :]


@_device
def _over_states(x):
    return tl.sum(tl.sum(x, axis=2), axis=0)  # first what is inside a thread


@_kernel
def scan_kernel(
    u, delta, a, b, c, skip, gate, bias, initial,
    out, final, total,
    start, stop, owner, head,
    u_k, u_n, delta_k, delta_n, b_k, b_n, b_g, c_k, c_n, c_g,
    gate_k, gate_n,
    N, D, S, width, blocks, programs, segments, conversations, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, INITIAL: tl.constexpr,
    LOCAL: tl.constexpr, CUT: tl.constexpr,
) -> None:  # fmt: skip
    """The scan of one segment.

    With ``LOCAL`` only its last state (``final``, of segments) and the sum of dt (``total``); else the output and, for
    the segment that is its conversation's last in reading direction, the last state (``final``, of conversations).
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
    passed = tl.zeros((BLOCK,), tl.float32)

    tau = 0
    while tau < size:
        # All loads first, so that their latencies overlap.
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
                    zs += (tl.load(gate + k * gate_k + row * gate_n + d, mask=real & on, other=0.0).to(tl.float32),)
        for i in tl.static_range(STEPS):
            on = tau + i < size
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & on, _timestep(raw, SOFTPLUS), 0.0)
            decay = tl.where(on, tl.exp2(dt[None, :, None] * decay_rate), 1.0)  # 0 * decay_rate may be NaN
            h = decay * h + (dt * us[i])[None, :, None] * bs[i][:, None, :]
            if LOCAL:
                passed += dt
            else:
                y = _over_states(h * cs[i][:, None, :])
                if SKIP:
                    y += direct * us[i]
                if GATE:
                    y *= zs[i] / (1.0 + tl.exp(-zs[i]))
                row = first + (tau + i) * step
                tl.store(out + (k * N + row) * D + d, y.to(out.dtype.element_ty), mask=real & on)
        tau += STEPS

    if LOCAL:
        tl.store(_states(final, k * segments + segment, d, s, D, S), h, mask=tile)
        tl.store(total + (k * segments + segment) * D + d, passed, mask=real)
    elif CUT:
        of = tl.load(owner + segment)
        end = tl.load(head + of + (step + 1) // 2) - (step + 1) // 2
        tl.store(_states(final, k * conversations + of, d, s, D, S), h, mask=tile & (segment == end))
    else:
        tl.store(_states(final, k * conversations + segment, d, s, D, S), h, mask=tile)


@_kernel
def adjoint_kernel(
    delta, a, c, gate, bias, grad, local,
    start, stop,
    delta_k, delta_n, c_k, c_n, c_g, gate_k, gate_n, grad_k, grad_n,
    D, S, width, blocks, programs, segments, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient that one segment's outputs alone send to the state in front of it: ``local``, of segments."""
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
    carry = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
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
                zs += (tl.load(gate + k * gate_k + row * gate_n + d, mask=real & on, other=0.0).to(tl.float32),)
        for i in tl.static_range(STEPS):
            raw = raws[i]
            if BIAS:
                raw += shift
            dt = tl.where(real & (tau - i >= 0), _timestep(raw, SOFTPLUS), 0.0)
            decay = tl.where(tau - i >= 0, tl.exp2(dt[None, :, None] * decay_rate), 1.0)
            gy = gs[i]
            if GATE:
                gy *= zs[i] / (1.0 + tl.exp(-zs[i]))
            carry = decay * (carry + gy[None, :, None] * cs[i][:, None, :])
        tau -= STEPS
    tl.store(_states(local, k * segments + segment, d, s, D, S), carry, mask=tile)


@_kernel
def carry_kernel(
    a, local, total, edge, handed, head,
    D, S, width, blocks, programs, segments, conversations, reverse,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    EDGE: tl.constexpr, ADJOINT: tl.constexpr,
) -> None:  # fmt: skip
    """Hands states on from segment to segment of a conversation, or, with ``ADJOINT``, gradients of states back.

    ``handed[segment]`` is what a segment receives, ``edge[conversation]`` what the outermost receives (zero without
    it); a segment makes exp(A total) x + local of what it receives.
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
            tl.store(_states(handed, at, d, s, D, S), x, mask=tile & (j + i < count))
            x = tl.where(j + i < count, tl.exp2(totals[i][None, :, None] * decay_rate), 1.0) * x + locals_[i]
        j += STEPS


@_kernel
def backward_kernel(
    u, delta, a, b, c, skip, gate, bias, initial, grad, final,
    du, ddelta, da, db, dc, dskip, dgate, dbias, dinitial, noted,
    start, stop, owner, head,
    u_k, u_n, delta_k, delta_n, b_k, b_n, b_g, c_k, c_n, c_g,
    gate_k, gate_n, grad_k, grad_n,
    N, D, S, width, blocks, programs, segments, conversations, reverse,
    directions, from_segment, these, slots,
    BLOCK: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, INITIAL: tl.constexpr,
    FINAL: tl.constexpr, CUT: tl.constexpr, RETURN: tl.constexpr,
) -> None:  # fmt: skip
    """All gradients of one of the segments ``from_segment`` .. ``from_segment + these - 1``.

    ``initial`` and ``final``: the state in front of, and the gradient of the state behind, every segment. ``noted``
    has room for ``slots`` tiles of states. ``db`` and ``dc`` are sums over one block of channels, (blocks, K, N, G, S);
    ``da``, ``dskip`` and ``dbias`` sums over one segment, (segments, K, D, ...).
    """
    pid = tl.program_id(0)
    block = pid % programs
    number = ((pid // programs) % these).to(tl.int64)
    segment = from_segment + number
    k = (pid // programs // these).to(tl.int64)
    first, step, size = _place(start, stop, segment, k, reverse)
    group, d, real = _channels(block, width, blocks, BLOCK)
    s = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    some = s < S
    tile = real[None, :, None] & some[:, None, :]
    # Stretches of different segments do not overlap: floor(x / T) + ceil(n / T) <= floor((x + n) / T) + 1.
    slot = (tl.load(start + segment) - tl.load(start + from_segment)) // STEPS + number
    inner = tl.arange(0, BLOCK)[None, :, None] * (HIGH * LOW) + s[:, None, :]
    noted += ((k * slots + slot) * programs + block) * (HIGH * BLOCK * LOW) + inner
    apart = tl.full((), HIGH * BLOCK * LOW, tl.int64) * programs

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

    # Forward, noting the state in front of every block of utterances.
    tau = 0
    while tau < size:
        tl.store(noted + (tau // STEPS) * apart, h)
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
    tl.debug_barrier()  # what one lane noted, another may read

    carry = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    if FINAL:
        carry = tl.load(_states(final, k * segments + segment, d, s, D, S), mask=tile, other=0.0)
    drate = tl.zeros((HIGH, BLOCK, LOW), tl.float32)
    tau = (size + STEPS - 1) // STEPS * STEPS - STEPS
    while tau >= 0:
        h = tl.load(noted + (tau // STEPS) * apart)
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
                zs += (tl.load(gate + k * gate_k + row * gate_n + d, mask=real & on, other=0.0).to(tl.float32),)
        # The states of the block again: hs[i] in front of utterance tau + i, hs[i + 1] behind it.
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
            if GATE:
                y = _over_states(hs[i + 1] * cs[i][:, None, :])
                if SKIP:
                    y += direct * us[i]
                open_ = 1.0 / (1.0 + tl.exp(-zs[i]))
                dz = gy * y * open_ * (1.0 + zs[i] * (1.0 - open_))
                tl.store(dgate + at, dz.to(dgate.dtype.element_ty), mask=real & on)
                gy *= zs[i] * open_
            carry += gy[None, :, None] * cs[i][:, None, :]
            token = ((block % blocks * directions + k) * N + row) * (programs // blocks) + group
            dc_ = tl.sum(gy[None, :, None] * hs[i + 1], axis=1)
            tl.store(dc + token * S + s, dc_, mask=some & on)
            db_ = tl.sum(carry * (dts[i] * us[i])[None, :, None], axis=1)
            tl.store(db + token * S + s, db_, mask=some & on)
            through = _over_states(carry * bs[i][:, None, :])
            du_ = dts[i] * through
            if SKIP:
                du_ += direct * gy
                ddirect += gy * us[i]
            tl.store(du + at, du_.to(du.dtype.element_ty), mask=real & on)
            carry *= decays[i]  # now the gradient of the state in front of the utterance
            faded = carry * hs[i]
            drate += faded * dts[i][None, :, None]
            ddt = _over_states(faded * decay_rate) * LN2 + us[i] * through
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
    tl.store(_states(da, summed, d, s, D, S), drate, mask=tile)
    if SKIP:
        tl.store(dskip + summed * D + d, ddirect, mask=real)
    if BIAS:
        tl.store(dbias + summed * D + d, dshift, mask=real)
    if RETURN:
        if CUT:
            of = tl.load(owner + segment)
            begin = tl.load(head + of + (1 - step) // 2) - (1 - step) // 2
            tl.store(_states(dinitial, k * conversations + of, d, s, D, S), carry, mask=tile & (segment == begin))
        else:
            tl.store(_states(dinitial, k * conversations + segment, d, s, D, S), carry, mask=tile)
