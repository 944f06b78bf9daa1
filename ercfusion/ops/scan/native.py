"""The selective scan on the CPU by a small C library, compiled on first use.

``selective_scan.c`` computes; this module lays out its arguments and distributes its tasks to threads. Without a
compiler the backend declines, and torch replaces it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ercfusion.ops import native
from ercfusion.ops.scan.contract import ScanGradients, ScanInputs, accumulation_dtype

SOURCE = Path(__file__).with_name("selective_scan.c")

BLOCK = 128
"""Most channels of a task, as in the C source."""

TOKENS = 192
"""Utterances at which a group of conversations is closed; constant, as the order of sums depends on the groups."""

NARROWEST = 4
"""With fewer channels per group of B and C most of a vector would be empty."""


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("direction", ctypes.c_int64), ("row", ctypes.c_int64)]


class _Scan(ctypes.Structure):
    """``scan_t`` of the C source, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("K", "N", "B", "D", "S", "G", "softplus", "groups", "blocks")),
        *((name, ctypes.c_void_p) for name in ("offsets", "group", "block", "reverse")),
        *((name, _Rows) for name in ("u", "delta", "z", "Bs", "Cs", "grad_out")),
        *((name, ctypes.c_void_p) for name in ("A", "skip", "bias", "initial", "grad_final", "out", "final")),
        *((name, ctypes.c_void_p) for name in ("du", "ddelta", "dz", "dB", "dC", "dA", "dskip", "dbias", "dinitial")),
    ]


class NativeScan:
    """Forward pass and recomputing backward pass in C; float32, or float64 if an input is.

    Results have the same bits for any number of threads, and for a conversation in every batch. Its own exponentials
    are accurate to 2 units in the last place.
    """

    name = "native"

    def declines(self, inputs: ScanInputs) -> str | None:
        """Declines complex tensors, other devices, narrow groups of channels, or machines without a compiler."""
        if inputs.u.device.type != "cpu":
            return f"it is for the CPU, and the tensors are on {inputs.u.device}"
        if any(x.is_complex() for x in inputs[:9] if isinstance(x, Tensor)):
            return "it is for real tensors"
        if _channels(inputs) < NARROWEST:
            return f"it needs at least {NARROWEST} channels in a group of B and C"
        library, reason = native.load(SOURCE)
        return None if library is not None else reason

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Outputs and final states; see :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        call = _Call(ScanInputs(*arguments))
        K, N, D, B, S = call.sizes
        out, final = call.new("out", K, N, D), call.new("final", K, B, S, D)
        call.run(backward=False)
        return out, final.transpose(2, 3)

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *arguments: Any) -> ScanGradients:
        """All gradients; see :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        inputs = ScanInputs(*arguments)
        call = _Call(inputs)
        K, N, D, B, S = call.sizes
        G = inputs.B.shape[2]
        call.rows("grad_out", grad_out)
        if grad_final is not None:
            call.whole("grad_final", grad_final.transpose(2, 3))
        du, ddelta = call.new("du", K, N, D), call.new("ddelta", K, N, D)
        dz = call.new("dz", K, N, D) if inputs.z is not None else None
        dB, dC = call.new("dB", K, call.blocks, N, S), call.new("dC", K, call.blocks, N, S)
        dA = call.new("dA", K, call.groups, S, D)
        dskip, dbias = call.new("dskip", K, call.groups, D), call.new("dbias", K, call.groups, D)
        dinitial = call.new("dinitial", K, B, S, D) if inputs.initial is not None else None
        call.run(backward=True)

        # Gradients of tensors shared by tasks are partial sums: of B and C per block of channels, of A, D and the bias
        # per group of conversations. ``reduce`` adds them in a fixed order.
        def over_blocks(partial: Tensor) -> Tensor:
            return call.reduce(partial, K * G, call.blocks // G, (K, G, N, S)).transpose(1, 2)

        return ScanGradients(
            du,
            ddelta,
            call.reduce(dA, K, call.groups, (K, S, D)).transpose(1, 2),
            over_blocks(dB),
            over_blocks(dC),
            None if inputs.D is None else call.reduce(dskip, K, call.groups, (K, D)),
            dz,
            None if inputs.delta_bias is None else call.reduce(dbias, K, call.groups, (K, D)),
            None if dinitial is None else dinitial.transpose(2, 3),
        )


def _channels(inputs: ScanInputs) -> int:
    """Channels per group."""
    return inputs.u.shape[2] // inputs.B.shape[2]


class _Call:
    """The arguments of one call in C, and references to the tensors behind them."""

    def __init__(self, inputs: ScanInputs) -> None:
        loaded = native.load(SOURCE)[0]
        assert loaded is not None, "called although it declines"
        self.library = loaded
        self.dtype = accumulation_dtype(*inputs[:9])[0]
        self.suffix = "f32" if self.dtype == torch.float32 else "f64"
        self.references: list[Any] = []
        K, N, D = inputs.u.shape
        S, B = inputs.A.shape[2], len(inputs.lengths)
        self.sizes = (K, N, D, B, S)
        G = inputs.B.shape[2]
        group, block = _groups(inputs.lengths), _blocks(D, G)
        self.groups, self.blocks = len(group) - 1, len(block) // 3
        offsets = [0]
        for length in inputs.lengths:
            offsets.append(offsets[-1] + length)
        self.arguments = _Scan(
            K=K, N=N, B=B, D=D, S=S, G=G, softplus=inputs.softplus, groups=self.groups, blocks=self.blocks
        )
        for name, numbers in (("offsets", offsets), ("group", group), ("block", block), ("reverse", inputs.reverse)):
            array = (ctypes.c_int64 * len(numbers))(*numbers)
            self.references.append(array)
            setattr(self.arguments, name, ctypes.addressof(array))
        self.rows("u", inputs.u)
        self.rows("delta", inputs.delta)
        if inputs.z is not None:
            self.rows("z", inputs.z)
        self.rows("Bs", inputs.B)
        self.rows("Cs", inputs.C)
        # A and states as (S, D): vectors run over channels, which must be contiguous.
        self.whole("A", inputs.A.transpose(1, 2))
        if inputs.D is not None:
            self.whole("skip", inputs.D)
        if inputs.delta_bias is not None:
            self.whole("bias", inputs.delta_bias)
        if inputs.initial is not None:
            self.whole("initial", inputs.initial.transpose(2, 3))

    def rows(self, name: str, x: Tensor) -> None:
        """(K, N, ...): a view is used without a copy if its last dimensions are contiguous."""
        x = x.detach().to(self.dtype)
        if not x[:1, :1].is_contiguous():
            x = x.contiguous()
        self.references.append(x)
        setattr(self.arguments, name, _Rows(x.data_ptr(), x.stride(0), x.stride(1)))

    def whole(self, name: str, x: Tensor) -> None:
        """A contiguous tensor."""
        x = x.detach().to(self.dtype).contiguous()
        self.references.append(x)
        setattr(self.arguments, name, x.data_ptr())

    def new(self, name: str, *shape: int) -> Tensor:
        """Memory for a result."""
        x = torch.empty(shape, dtype=self.dtype)
        self.references.append(x)
        setattr(self.arguments, name, x.data_ptr())
        return x

    def reduce(self, partial: Tensor, outer: int, parts: int, shape: tuple[int, ...]) -> Tensor:
        """The sum of ``parts`` partial results, in order."""
        if parts == 1:
            return partial.view(shape)
        total = torch.empty(shape, dtype=self.dtype)
        inner = total.numel() // outer
        function = self.library[f"ercfusion_reduce_{self.suffix}"]
        function.restype = None
        pointers = ctypes.c_void_p(partial.data_ptr()), ctypes.c_void_p(total.data_ptr())
        function(*pointers, ctypes.c_int64(outer), ctypes.c_int64(parts), ctypes.c_int64(inner))
        return total

    def run(self, backward: bool) -> None:
        """Run all tasks on torch's number of threads; ctypes releases the interpreter lock."""
        size = self.library[f"ercfusion_scratch_{self.suffix}"]
        size.restype = ctypes.c_int64
        needed = size(ctypes.byref(self.arguments), ctypes.c_int64(backward))
        work = self.library[f"ercfusion_scan_{self.suffix}"]
        work.restype = None
        counter = ctypes.c_int64(0)

        def worker() -> None:
            memory = ctypes.c_void_p(_scratch(needed))
            work(ctypes.byref(self.arguments), ctypes.c_int64(backward), ctypes.byref(counter), memory)

        # Workers take tasks from the shared counter until none is left; this thread is one of them.
        workers = min(torch.get_num_threads(), self.arguments.K * self.groups * self.blocks)
        others = [_threads(workers - 1).submit(worker) for _ in range(workers - 1)]
        worker()
        for other in others:
            other.result()


@lru_cache(maxsize=64)
def _groups(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Bounds of groups of neighbouring conversations."""
    bounds, tokens = [0], 0
    for b, length in enumerate(lengths, 1):
        tokens += length
        if tokens >= TOKENS or b == len(lengths):
            bounds.append(b)
            tokens = 0
    return tuple(bounds)


@lru_cache(maxsize=64)
def _blocks(D: int, G: int) -> tuple[int, ...]:
    """First channel, channels, and group of B and C, of blocks that keep within a group; as many in every group."""
    width = D // G
    bounds = [(g * width + c, min(BLOCK, width - c), g) for g in range(G) for c in range(0, width, BLOCK)]
    return tuple(number for block in bounds for number in block)


# Threads and their memory. Neither survives a fork: the child creates its own.

_local = threading.local()
_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def _threads(number: int) -> ThreadPoolExecutor:
    """The pool, with at least ``number`` threads."""
    global _pool
    with _lock:
        if _pool is None or _pool[0] < number:
            # The old pool is not shut down, as another caller may be about to submit to it; it ends with that caller.
            _pool = (number, ThreadPoolExecutor(number, thread_name_prefix="ercfusion-scan"))
        return _pool[1]


def _scratch(size: int) -> int:
    """Address of this thread's memory, reused between calls."""
    buffer: Tensor | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = _local.buffer = torch.empty(size, dtype=torch.uint8)
    return buffer.data_ptr()


def _after_fork() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
