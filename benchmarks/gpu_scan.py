"""The selective scan on a GPU: ``python -m benchmarks.gpu_scan [--out FILE]``.

Forward and backward, both directions with separate inputs, 512 channels and 16 states. Compares the Triton kernels with
the CUDA kernel of ``mamba_ssm``, if installed, and a torch loop over time. The former gets tensors already padded,
transposed and reversed, at no cost. Results are first compared with the loops in float64.

The floor is the time for reading and writing the necessary bytes once, at the speed of copying a large tensor. Forward
these are u, delta, z, B, C and y; backward the same inputs, the gradient of y, and five gradients.

A second table cuts long conversations into segments of several lengths. The defaults of
:class:`ercfusion.ops.scan.triton_scan.TritonScan` should be the fastest.

``--rehearse`` runs tiny shapes on the CPU in Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import SHAPES, draw_lengths
from ercfusion.batch.packing import Packing
from ercfusion.ops.scan import selective_scan

WIDTH, STATES = 512, 16
TOKENS = ("u", "delta", "B", "C", "z")
# Of out and the gradients, against float64; the largest error over the largest value.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

Function = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """One batch: lengths of its conversations, and the dtype of tensors with a row per utterance."""

    name: str
    lengths: tuple[int, ...]
    dtype: torch.dtype
    width: int = WIDTH
    states: int = STATES

    @property
    def title(self) -> str:
        real, padded = sum(self.lengths), len(self.lengths) * max(self.lengths)
        return f"{self.name}, {len(self.lengths)} x {max(self.lengths)} ({real / padded:.0%} real)"

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Inputs with a leading axis for the two directions; steps and A have Mamba's initial values."""
        generator = torch.Generator().manual_seed(0)
        N, D, S = sum(self.lengths), self.width, self.states

        def normal(*shape: int) -> Tensor:
            return torch.randn(2, *shape, generator=generator)

        step = torch.exp(torch.rand(2, D, generator=generator) * 4.6 - 6.9)
        made = {
            "u": normal(N, D),
            "delta": normal(N, D) * 0.3,
            "A": -torch.arange(1.0, S + 1).expand(2, D, S).contiguous(),
            "B": normal(N, S),
            "C": normal(N, S),
            "D": torch.ones(2, D),
            "z": normal(N, D),
            "delta_bias": step + torch.log(-torch.expm1(-step)),
        }
        return {name: x.to(device, self.dtype if name in TOKENS else torch.float32) for name, x in made.items()}

    def bytes(self) -> int:
        """Bytes to read or write at least once."""
        N, D, S = sum(self.lengths), self.width, self.states
        rows = 2 * N * self.dtype.itemsize
        forward = rows * (4 * D + 2 * S)
        backward = rows * (3 * D + 2 * S) + rows * D + rows * (3 * D + 2 * S)
        return forward + backward


def cases(quick: bool) -> list[Case]:
    batches = []
    for dtype in (torch.float32, torch.bfloat16):
        for corpus in ("iemocap", "meld"):
            generator = torch.Generator().manual_seed(0)
            drawn = draw_lengths(SHAPES[corpus], generator)
            for size in (32, 256):
                chosen = torch.randint(len(drawn), (size,), generator=generator).tolist()
                # One of the longest in each batch, as in most batches of a real epoch.
                lengths = [SHAPES[corpus].longest, *(drawn[i] for i in chosen[1:])]
                batches.append(Case(corpus, tuple(lengths), dtype))
        if not quick:
            batches += [Case("long", (2048,) * 8, dtype), Case("longer", (16384,) * 2, dtype)]
    return batches


def operator(case: Case, inputs: dict[str, Tensor], grad: Tensor, backend: str) -> Function:
    """The public operator."""
    packing = Packing(case.lengths, grad.device)
    leaves: dict[str, Any] = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}

    def call() -> list[Tensor]:
        settings: dict[str, Any] = {"offsets": packing, "reverse": "both", "delta_softplus": True, "backend": backend}
        out = selective_scan(**leaves, **settings)
        assert isinstance(out, Tensor)
        return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)]

    return call


def mamba_ssm(case: Case, inputs: dict[str, Tensor], grad: Tensor) -> Function:
    """The authors' kernel on (B, D, L), once per direction; results are packed only for the comparison."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    packing = Packing(case.lengths, grad.device)
    position = torch.arange(max(case.lengths), device=grad.device).expand(len(case.lengths), -1)
    length = torch.tensor(case.lengths, device=grad.device).unsqueeze(1)
    turned = torch.where(position < length, length - 1 - position, position)

    def pad(x: Tensor, k: int) -> Tensor:
        wide = packing.pad(x[k])
        if k:
            wide = wide.gather(1, turned.unsqueeze(2).expand_as(wide))
        return wide.transpose(1, 2).contiguous()

    def pack(x: Tensor, k: int) -> Tensor:
        wide = x.transpose(1, 2)
        if k:
            wide = wide.gather(1, turned.unsqueeze(2).expand_as(wide))
        return packing.pack(wide)

    leaves, grads = [], []
    for k in range(2):
        made = {name: pad(x, k) if name in TOKENS else x[k].clone() for name, x in inputs.items()}
        leaves.append({name: x.detach().requires_grad_() for name, x in made.items()})
        grads.append(pad(grad, k))

    def timed() -> list[Any]:
        results = []
        for one, direction in zip(leaves, grads, strict=True):
            out = selective_scan_fn(**one, delta_softplus=True)
            results.append([out.detach(), *torch.autograd.grad(out, list(one.values()), direction)])
        return results

    def packed() -> list[Tensor]:
        names = ["out", *inputs]
        return [
            torch.stack([pack(x, k) if name in (*TOKENS, "out") else x for k, x in enumerate(pair)])
            for name, pair in zip(names, zip(*timed(), strict=True), strict=True)
        ]

    timed.packed = packed  # type: ignore[attr-defined]
    return timed


def largest_error(results: list[Tensor], exact: list[Tensor]) -> float:
    """Largest difference over all results, relative to the largest value."""
    return max(
        float((one.double() - other).abs().max() / other.abs().max()) for one, other in zip(results, exact, strict=True)
    )


def seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of several calls."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> float:
    """Peak memory of one call, beyond the memory before it."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying 1 GiB (less on the CPU)."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device, 20)


def compare(selected: list[Case], device: torch.device, repeats: int) -> list[str]:
    """The first table."""
    rate = bandwidth(device)
    others = importlib.util.find_spec("mamba_ssm") and importlib.util.find_spec("selective_scan_cuda")
    rows = [
        f"Copying: {rate / 1e9:,.0f} GB/s. mamba_ssm: {'installed' if others else 'not installed'}.",
        "",
        "| batch | dtype | implementation | ms | of triton's | of the floor | MiB | largest error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in selected:
        inputs = case.inputs(device)
        grad = torch.randn(2, sum(case.lengths), case.width, device=device).to(case.dtype)
        wide = {name: x.double() for name, x in inputs.items()}
        # The vectorised loop if the plain one, its specification, would take minutes.
        exact = operator(case, wide, grad.double(), "torch" if sum(case.lengths) > 4096 else "reference")()
        floor = case.bytes() / rate
        base = None
        functions: dict[str, Function] = {"triton": operator(case, inputs, grad, "triton")}
        if others:
            functions["mamba_ssm"] = mamba_ssm(case, inputs, grad)
        functions["torch"] = operator(case, inputs, grad, "torch")
        for name, function in functions.items():
            error = largest_error(getattr(function, "packed", function)(), exact)
            if error > TOLERANCES[case.dtype]:
                raise AssertionError(f"{name} on {case.title}, {case.dtype}: error {error:.1e}")
            took = seconds(function, device, 5 if name == "torch" else repeats)
            base = took if base is None else base
            memory = peak_bytes(function, device) / 2**20
            rows.append(
                f"| {case.title} | {str(case.dtype).split('.')[1]} | {name} | {took * 1e3:.3f} | {took / base:.2f} | "
                f"{took / floor:.1f} | {memory:,.0f} | {error:.1e} |"
            )
            print(rows[-1], flush=True)
        del exact, wide, functions, function
    return rows


def cuts(device: torch.device, repeats: int, rehearse: bool) -> list[str]:
    """The second table: uncut, and cut into segments of several lengths."""
    from ercfusion.ops.scan.contract import ScanInputs
    from ercfusion.ops.scan.triton_scan import TritonScan

    lengths = (12,) if rehearse else (128, 256, 512, 1024, 2048, 4096)
    sizes = (4, 8) if rehearse else (64, 128, 256, 512)
    rows = [
        "| conversations | whole, ms | " + " | ".join(f"segments of {size}" for size in sizes) + " |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for count in (1,) if rehearse else (1, 8, 32):
        for length in lengths:
            case = Case("cut", (length,) * count, torch.float32, *((4, 2) if rehearse else ()))
            x = case.inputs(device)
            offsets = torch.arange(count + 1, device=device) * length
            inputs = ScanInputs(
                x["u"], x["delta"], x["A"], x["B"].unsqueeze(2), x["C"].unsqueeze(2), x["D"], x["z"], x["delta_bias"],
                None, offsets, case.lengths, (False, True), True,
            )  # fmt: skip
            grad = torch.ones_like(x["u"])
            cells: list[str] = []
            for size in (length, *sizes):
                if cells and size >= length:
                    cells.append("")
                    continue
                backend = TritonScan(longest=size, segment=size)

                def call(backend: TritonScan = backend, grad: Tensor = grad, inputs: ScanInputs = inputs) -> None:
                    backend.forward(*inputs)
                    backend.backward(grad, None, *inputs)

                cells.append(f"{seconds(call, device, repeats) * 1e3:.3f}")
            rows.append(f"| {count} x {length} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_scan", description="The selective scan on a GPU.")
    parser.add_argument("--out", type=Path, help="also write the tables into this file (Markdown)")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls; the median counts")
    parser.add_argument("--quick", action="store_true", help="conversations only: no long sequences, no second table")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no CUDA device; --rehearse tries the script on the CPU", file=sys.stderr)
        return 1
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed", file=sys.stderr)
        return 1
    import triton

    device = torch.device("cpu" if options.rehearse else "cuda")
    name = "CPU, a rehearsal: times mean nothing" if options.rehearse else torch.cuda.get_device_name()
    written = ["python -m benchmarks.gpu_scan", *(sys.argv[1:] if arguments is None else arguments)]
    head = [
        "# The selective scan on a GPU",
        "",
        f"{name}, {datetime.date.today().isoformat()}, torch {torch.__version__}, triton {triton.__version__}.",
        f"`{' '.join(written)}`. Forward + backward, both directions, {WIDTH} channels, {STATES} states.",
        "",
    ]
    print("\n".join(head), flush=True)
    tiny = [Case("tiny", (3, 1, 5), dtype, 4, 2) for dtype in TOLERANCES]
    rows = compare(tiny if options.rehearse else cases(options.quick), device, options.repeats)
    if not options.quick:
        rows += ["", *cuts(device, options.repeats, options.rehearse)]
    if options.out:
        options.out.write_text("\n".join([*head, *rows, ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
