"""The selective scan on CUDA in Triton; it needs no compiler at installation and no padding.

Conversations are short, so time is sequential, in registers: one program (a warp) per direction, conversation and block
of channels, in one launch. Long conversations are cut into segments. From the state h before it, a segment ends with
exp(A sum dt) h + (its end state from h = 0). So the segments are scanned from zero, one launch computes the state
before every segment, and a second scan starts from these states.

The backward pass scans again and stores the state before every few utterances (a block). Then, from the last block to
the first, it recomputes the states of the block in registers and runs backwards through it (Gu and Dao, COLM 2024,
section 3.3.2; equations in :mod:`ercfusion.ops.scan.contract`).

Sums over channels (for B and C) and over conversations (for A, D and the bias of delta) are written as partial sums and
added in a second step, without atomics. Every run therefore has the same bits. Segments depend only on the length of
their conversation, blocks only on the widths, so a conversation's results do not depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import lcm
from typing import Any

import torch
import triton
from torch import Tensor

from ercfusion.ops.scan.contract import ScanGradients, ScanInputs
from ercfusion.ops.scan.triton_kernels import adjoint_kernel, backward_kernel, carry_kernel, scan_kernel

MOST_STATES = 256
"""Most states per channel: a warp's registers must contain the states of two channels at two utterances."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonScan:
    """The backend ``triton`` of :func:`ercfusion.ops.selective_scan`.

    Computes in float32; inputs may mix float32, bfloat16 and float16, real only. Runs on CUDA, or on the CPU in
    Triton's interpreter for tests (``TRITON_INTERPRET=1`` before Triton is imported).

    Args:
        longest: Longer conversations are cut into segments.
        segment: Length of the segments.
        scratch: Bytes for stored states in the backward pass. If more were needed, conversations are processed in
            several launches, with at least one conversation or segment each.

    Raises:
        ValueError: one of them is not positive.
    """

    name = "triton"

    def __init__(self, *, longest: int = 256, segment: int = 128, scratch: int = 128 * 2**20) -> None:
        for name, value in (("longest", longest), ("segment", segment), ("scratch", scratch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; found {value}")
        self.longest, self.segment, self.scratch = longest, segment, scratch
        self.interpreted = not isinstance(scan_kernel, triton.JITFunction)

    def declines(self, inputs: ScanInputs) -> str | None:
        """Declines other devices and dtypes, and more than 256 states."""
        if inputs.u.device.type != "cuda" and not (self.interpreted and inputs.u.device.type == "cpu"):
            return f"it runs on CUDA, the tensors are on {inputs.u.device}"
        for name, tensor in inputs._asdict().items():
            if isinstance(tensor, Tensor) and name != "offsets" and tensor.dtype not in DTYPES:
                return f"it takes float32, bfloat16 and float16; {name} is {tensor.dtype}"
        if inputs.A.shape[-1] > MOST_STATES:
            return f"it takes at most {MOST_STATES} states; found {inputs.A.shape[-1]}"
        return None

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """From the fields of :class:`ScanInputs`: y (K, N, D) in the dtype of ``u``, the last states (K, B, D, S)."""
        call = _Call(ScanInputs(*inputs), self)
        with _on(call.u):
            return call.scan(call.received())

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *inputs: Any) -> ScanGradients:
        """From the gradients of the two results and the same inputs.

        Gradients per utterance have the dtype of their input. Sums are float32, and so are gradients of tensors shared
        by the directions, whose sum is not yet computed.
        """
        call = _Call(ScanInputs(*inputs), self)
        with _on(call.u):
            return call.gradients(_rows(grad_out), None if grad_final is None else _whole(grad_final))


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last axis; other strides are free, 0 included."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


@dataclass
class _Segments:
    """Ranges of rows scanned by one program each, in order.

    ``start`` and ``stop`` (segments) rows; ``owner`` (segments) the conversation of each, ``head`` (B + 1) the first
    segment of each conversation. On the device; ``lengths`` on the host. ``cut`` is False if every segment is a
    conversation.
    """

    start: Tensor
    stop: Tensor
    owner: Tensor
    head: Tensor
    lengths: list[int]
    cut: bool


def _segments(offsets: Tensor, lengths: tuple[int, ...], longest: int, segment: int) -> _Segments:
    # Without a long conversation, segments are the conversations, and the launches for states between them are omitted.
    if max(lengths, default=0) <= longest:
        return _Segments(offsets[:-1], offsets[1:], offsets, offsets, list(lengths), False)
    start: list[int] = []
    stop: list[int] = []
    owner: list[int] = []
    counts: list[int] = []
    row = 0
    for of, length in enumerate(lengths):
        # An empty conversation has one empty segment, which stores its final state.
        size = segment if length > longest else max(length, 1)
        own = range(row, row + max(length, 1), size)
        start += own
        stop += [min(first + size, row + length) for first in own]
        owner += [of] * len(own)
        counts.append(len(own))
        row += length
    host = torch.tensor([*start, *stop, *owner, *accumulate(counts, initial=0)], dtype=torch.long)
    parts = host.to(offsets.device, non_blocking=True).split([len(owner)] * 3 + [len(counts) + 1])
    sizes = [last - first for first, last in zip(start, stop, strict=True)]
    return _Segments(parts[0], parts[1], parts[2], parts[3], sizes, True)


class _Call:
    """One call: inputs in the layout of the kernels, and their arguments by name.

    Each kernel takes the arguments named in its signature, so a pointer, its strides and the block sizes are named
    once. An absent optional tensor is replaced by ``u``, which the kernel does not read.
    """

    def __init__(self, inputs: ScanInputs, settings: TritonScan) -> None:
        self.inputs = inputs
        self.K, self.N, self.D = inputs.u.shape
        self.S = inputs.A.shape[-1]
        self.B = len(inputs.lengths)
        self.u, self.delta = _rows(inputs.u), _rows(inputs.delta)
        # Blocks of channels have one group of B and one of C.
        self.G = lcm(inputs.B.shape[2], inputs.C.shape[2])
        self.b, self.c = self._grouped(inputs.B), self._grouped(inputs.C)
        self.z = None if inputs.z is None else _rows(inputs.z)
        self.initial = None if inputs.initial is None else _whole(inputs.initial)
        skip, bias = (None if x is None else _whole(x) for x in (inputs.D, inputs.delta_bias))
        self.a = _whole(inputs.A)
        self.scratch = settings.scratch
        self.segments = _segments(inputs.offsets, inputs.lengths, settings.longest, settings.segment)

        width = self.D // self.G
        states = triton.next_power_of_2(self.S)
        low = min(states, 4)
        # Limited by the registers of the backward pass: 16 states per lane if a lane has one channel, else 8.
        block = 32 if states <= 16 else max(256 // states, 2)
        block = min(block, triton.next_power_of_2(width))
        self.blocks = triton.cdiv(width, block)
        self.programs = self.blocks * self.G
        self.tile = states * block
        self.steps = 4 if states < 256 else 2
        self.arguments: dict[str, Any] = {
            **self._strided("u", self.u),
            **self._strided("delta", self.delta),
            **self._strided("b", self.b),
            **self._strided("c", self.c),
            **self._strided("z", self.u if self.z is None else self.z),
            "a": self.a,
            "skip": self.u if skip is None else skip,
            "bias": self.u if bias is None else bias,
            "start": self.segments.start,
            "stop": self.segments.stop,
            "owner": self.segments.owner,
            "head": self.segments.head,
            "N": self.N,
            "D": self.D,
            "S": self.S,
            "width": width,
            "blocks": self.blocks,
            "programs": self.programs,
            "segments": len(self.segments.lengths),
            "conversations": self.B,
            "reverse": sum(2**k for k, back in enumerate(inputs.reverse) if back),
            "directions": self.K,
            "BLOCK": block,
            "HIGH": states // low,
            "LOW": low,
            "STEPS": self.steps,
            "SOFTPLUS": inputs.softplus,
            "SKIP": skip is not None,
            "GATE": self.z is not None,
            "BIAS": bias is not None,
            "CUT": self.segments.cut,
        }

    def scan(self, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs and final states, from the states before the segments."""
        out = torch.empty(self.K, self.N, self.D, dtype=self.u.dtype, device=self.u.device)
        final = self._empty(self.K, self.B, self.D, self.S)
        self._launch(
            scan_kernel, len(self.segments.lengths), out=out, final=final, total=final, LOCAL=False,
            **self._optional("initial", initial),
        )  # fmt: skip
        return out, final

    def received(self) -> Tensor | None:
        """The state before every segment, (K, segments, D, S)."""
        if not self.segments.cut:
            return self.initial
        # Per segment: the last state from h = 0 (local) and the sum of dt (total), which determine its map of states.
        local, self.total = self._empty(*self._edges()), self._empty(*self._edges()[:3])
        self._launch(
            scan_kernel, len(self.segments.lengths), out=local, final=local, total=self.total, LOCAL=True,
            **self._optional("initial", None),
        )  # fmt: skip
        return self._carry(local, self.initial, False)

    def gradients(self, grad: Tensor, final: Tensor | None) -> ScanGradients:
        """All gradients, from those of the outputs and of the final states."""
        initial = self.received()
        if self.segments.cut:
            # (B2) is the adjoint of the same map: the gradient of a segment's last state follows from later segments.
            local = self._empty(*self._edges())
            self._launch(adjoint_kernel, len(self.segments.lengths), local=local, **self._strided("grad", grad))
            final = self._carry(local, final, True)

        sizes, K, G, S = self.segments.lengths, self.K, self.G, self.S
        du, ddelta = self._like(self.u), self._like(self.delta)
        dz = None if self.z is None else self._like(self.z)
        # Partial sums: per block of channels of a group (first axis), and per segment.
        db, dc = (self._empty(self.blocks, K, self.N, G, S) for _ in range(2))
        da = self._empty(len(sizes), K, self.D, S)
        dskip, dbias = (self._empty(len(sizes), K, self.D) for _ in range(2))
        dinitial = None if self.initial is None else torch.empty_like(self.initial)
        turns = self._turns()
        marks = self._empty(max((slots for _, _, slots in turns), default=0) * K * self.programs * self.tile)
        for begin, count, slots in turns:
            # ``initial`` is also present without an initial state if conversations are cut into segments.
            self._launch(
                backward_kernel, count, from_segment=begin, count=count, slots=slots, marks=marks,
                du=du, ddelta=ddelta, da=da, db=db, dc=dc, dskip=dskip, dbias=dbias,
                dz=du if dz is None else dz, dinitial=da if dinitial is None else dinitial,
                RETURN=dinitial is not None,
                **self._strided("grad", grad), **self._optional("initial", initial), **self._optional("final", final),
            )  # fmt: skip
        inputs = self.inputs
        return ScanGradients(
            du,
            ddelta,
            da.sum(0),
            self._ungrouped(db, inputs.B),
            self._ungrouped(dc, inputs.C),
            None if inputs.D is None else dskip.sum(0),
            dz,
            None if inputs.delta_bias is None else dbias.sum(0),
            dinitial,
        )

    def _carry(self, local: Tensor, edge: Tensor | None, adjoint: bool) -> Tensor:
        """The state before, or with ``adjoint`` the gradient of the state after, every segment."""
        received = torch.empty_like(local)
        more = self._optional("edge", edge)
        self._launch(carry_kernel, self.B, local=local, total=self.total, received=received, ADJOINT=adjoint, **more)
        return received

    def _turns(self) -> list[tuple[int, int, int]]:
        """(first segment, number of segments, room in tiles) per launch of the backward pass."""
        # Tiles within ``scratch`` bytes. Segments of ``rows`` utterances need at most rows / steps tiles, rounded down,
        # one more per segment, and one (see the positions in ``backward_kernel``).
        most = self.scratch // (4 * self.K * max(self.programs, 1) * self.tile)
        turns: list[tuple[int, int, int]] = []
        begin = rows = 0
        for segment, length in enumerate(self.segments.lengths):
            if segment > begin and (rows + length) // self.steps + segment - begin + 2 > most:
                turns.append((begin, segment - begin, rows // self.steps + segment - begin + 1))
                begin, rows = segment, 0
            rows += length
        count = len(self.segments.lengths) - begin
        return [*turns, (begin, count, rows // self.steps + count + 1)]

    def _grouped(self, x: Tensor) -> Tensor:
        repeat = self.G // x.shape[2]
        return _rows(x) if repeat == 1 else x.repeat_interleave(repeat, dim=2)

    def _ungrouped(self, partial: Tensor, like: Tensor) -> Tensor:
        total = partial[0] if self.blocks == 1 else partial.sum(0)
        if like.shape[2] != self.G:
            total = total.unflatten(2, (like.shape[2], -1)).sum(3)
        return total

    def _like(self, x: Tensor) -> Tensor:
        """Memory for the gradient of ``x``; float32 if the directions share ``x``, as only their sum is rounded."""
        shared = self.K > 1 and x.stride(0) == 0
        return torch.empty(x.shape, dtype=torch.float32 if shared else x.dtype, device=x.device)

    def _edges(self) -> tuple[int, int, int, int]:
        return self.K, len(self.segments.lengths), self.D, self.S

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)

    def _strided(self, name: str, x: Tensor) -> dict[str, Any]:
        return {name: x} | {f"{name}_{axis}": x.stride(i) for i, axis in enumerate("kng"[: x.ndim - 1])}

    def _optional(self, name: str, x: Tensor | None) -> dict[str, Any]:
        return {name: self.u if x is None else x, name.upper(): x is not None}

    def _launch(self, kernel: Any, segments: int, **more: Any) -> None:
        grid = self.K * segments * self.programs
        if grid:
            arguments = self.arguments | more
            kernel[(grid,)](**{name: arguments[name] for name in kernel.arg_names}, num_warps=1)
