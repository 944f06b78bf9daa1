"""The selective scan, forward and backward, compared with two common implementations in torch.

The floor counts the necessary work: per state and utterance one exponential and six operations forward, twelve more
backward (gradients of state, decay, input, B, C and A). Its speed is that of the C library's exponential on numbers in
the first cache. Each necessary byte crosses the memory once. ``python -m benchmarks.scan`` prints the floors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.literal_scan import literal_scan, loop_scan
from benchmarks.registry import Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.packing import Packing
from ercfusion.ops.scan import selective_scan

SIZES = {"iemocap": (512, 16), "meld": (512, 16), "tiny": (20, 3)}
"""Channels and states: an inner width of 2 x 256 with Mamba's usual number of states."""

FULL = {"iemocap": (32, 110), "meld": (32, 33), "tiny": (3, 7)}
"""Conversations and utterances of the benchmark with equal lengths."""

EXPONENTIAL = 12
"""Operations per exponential: reduction, a polynomial of degree six, the exponent."""

Tensors = dict[str, Tensor]


@dataclass
class ScanCase(Inputs):
    """One batch: ``lengths`` of its conversations, and arguments of :func:`selective_scan`."""

    lengths: tuple[int, ...] = ()
    width: int = 0
    states: int = 0
    seed: int = 0

    @cached_property
    def packed(self) -> Tensors:
        generator = torch.Generator().manual_seed(self.seed)
        N, width, states = sum(self.lengths), self.width, self.states

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        # Mamba's initialisation: A from -1 to -S, steps between 1e-3 and 0.1.
        step = torch.exp(torch.rand(width, generator=generator) * 4.6 - 6.9)
        return {
            "u": random(N, width),
            "delta": random(N, width) * 0.3,
            "A": -torch.arange(1.0, states + 1).expand(width, states).contiguous(),
            "B": random(N, states),
            "C": random(N, states),
            "D": torch.ones(width),
            "z": random(N, width),
            "delta_bias": step + torch.log(-torch.expm1(-step)),
        }

    @cached_property
    def packing(self) -> Packing:
        return Packing(self.lengths)

    @cached_property
    def direction(self) -> Tensor:
        """(N, D): the gradient of the output."""
        return torch.randn(sum(self.lengths), self.width, generator=torch.Generator().manual_seed(self.seed + 1))


TOKENS = ("u", "delta", "B", "C", "z")


def shape_name(shape: Shape) -> str:
    return next(name for name, other in registry.SHAPES.items() if other == shape)


def full_inputs(shape: Shape, seed: int = 0) -> Inputs:
    name = shape_name(shape)
    size, length = FULL[name]
    batches = registry.make_inputs(shape, seed).batches[:1]
    return ScanCase(shape, batches, (length,) * size, *SIZES[name], seed)


def ragged_inputs(shape: Shape, seed: int = 0) -> Inputs:
    batches = registry.make_inputs(shape, seed).batches[:1]
    return ScanCase(shape, batches, batches[0].packing.lengths, *SIZES[shape_name(shape)], seed)


def fresh(tensors: Tensors) -> Tensors:
    return {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}


def run(function: Callable[[Tensors], Tensor], tensors: Tensors, direction: Tensor) -> list[Tensor]:
    """Output and gradients."""
    out = function(tensors)
    return [out, *torch.autograd.grad(out, list(tensors.values()), direction)]


def padded_form(case: ScanCase, across: bool) -> tuple[Tensors, Tensor]:
    """Arguments and gradient for the padded forms; ``across`` as (B, D, L)."""

    def pad(x: Tensor) -> Tensor:
        wide = case.packing.pad(x)
        return wide.transpose(1, 2).contiguous() if across else wide

    return {n: pad(x) if n in TOKENS else x for n, x in case.packed.items()}, pad(case.direction)


def of_case(inputs: Inputs) -> ScanCase:
    """The case; ``benchmarks.run`` reduces inputs to their last batch for the check."""
    return inputs if isinstance(inputs, ScanCase) else ragged_inputs(inputs.shape)  # type: ignore[return-value]


def literal(inputs: Inputs) -> Callable[[], object]:
    tensors, direction = padded_form(of_case(inputs), across=True)
    leaves = fresh(tensors)
    return lambda: run(lambda t: literal_scan(**t), leaves, direction)


def loop(inputs: Inputs) -> Callable[[], object]:
    tensors, direction = padded_form(of_case(inputs), across=False)
    leaves = fresh(tensors)
    return lambda: run(lambda t: loop_scan(**t), leaves, direction)


def ours(backend: str | None, reverse: str | bool = False) -> Callable[[Inputs], Callable[[], object]]:
    def setup(inputs: Inputs) -> Callable[[], object]:
        case = of_case(inputs)
        leaves, packing = fresh(case.packed), case.packing
        direction = case.direction.expand(2, -1, -1) if reverse == "both" else case.direction

        def scan(tensors: Tensors) -> Tensor:
            return selective_scan(  # type: ignore[return-value]
                **tensors, delta_softplus=True, offsets=packing, reverse=reverse, backend=backend
            )

        return lambda: run(scan, leaves, direction)

    return setup


def check(other: Callable[[Inputs], Callable[[], object]], across: bool | None) -> Callable[[Inputs], None]:
    """Output and every gradient equal those of the literal algorithm."""

    def compare(inputs: Inputs) -> None:
        case = of_case(inputs)

        def packed(results: list[Tensor], across: bool | None) -> list[Tensor]:
            names = ("u", *case.packed)
            if across is None:
                return results
            swapped = [x.transpose(1, 2) if n in TOKENS and across else x for n, x in zip(names, results, strict=True)]
            return [case.packing.pack(x) if n in TOKENS else x for n, x in zip(names, swapped, strict=True)]

        expected = packed(literal(case)(), True)  # type: ignore[arg-type]
        actual = packed(other(case)(), across)  # type: ignore[arg-type]
        for name, left, right in zip(("out", *case.packed), actual, expected, strict=True):
            scale = float(right.detach().abs().max())
            torch.testing.assert_close(left, right, rtol=0, atol=2e-5 * scale, msg=lambda text, n=name: f"{n}: {text}")

    return compare


def work(inputs: Inputs) -> Mapping[str, float]:
    """Operations of one direction by part."""
    case = of_case(inputs)
    updates = float(sum(case.lengths) * case.width * case.states)
    return {"exponential": EXPONENTIAL * updates, "forward": 6 * updates, "backward": 12 * updates}


def traffic(inputs: Inputs) -> float:
    """Bytes in float32: u, delta, z read twice, the gradient once; the output and three gradients written."""
    case = of_case(inputs)
    return 4.0 * sum(case.lengths) * case.width * (3 + 1 + 4 + 3)


def vector_speed(seconds: float = 0.5) -> float:
    """Operations per second of all threads: exponentials of cached numbers by the C library's polynomial.

    On such small arrays torch's elementwise functions would be limited by the cost of a call.
    """
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    from ercfusion.ops import native
    from ercfusion.ops.scan.native import SOURCE

    library = native.load(SOURCE)[0]
    if library is None:
        return float("nan")
    function = library.ercfusion_unary_f32
    function.restype = None

    def spin(_: int) -> float:
        x = torch.linspace(-1, 0, 4096)
        y = torch.empty_like(x)
        arguments = (ctypes.c_int64(4), ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))
        calls, best = 200, float("inf")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(calls):
                function(*arguments, ctypes.c_int64(4096))
            best = min(best, time.perf_counter() - start)
        return calls * 4096 * EXPONENTIAL / best

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(spin, range(threads)))


IMPLEMENTATIONS = {
    "literal": Implementation("the authors' reference algorithm in torch", literal),
    "loop": Implementation("a loop over steps with unbind", loop, check(loop, False)),
    "torch": Implementation("selective_scan, backend torch", ours("torch"), check(ours("torch"), None)),
    "native": Implementation("selective_scan, backend native", ours("native"), check(ours("native"), None)),
    "native, both": Implementation("both directions, twice the work of the others", ours("native", "both")),
}
BENCHMARKS = (
    Benchmark(
        name="scan-full",
        description="forward and backward, one direction, conversations of equal length (32 x 110 for iemocap)",
        implementations=IMPLEMENTATIONS,
        targets={"native": 40.0},
        make_inputs=full_inputs,
    ),
    Benchmark(
        name="scan-ragged",
        description="forward and backward of one batch of real lengths, which the first two pad",
        implementations=IMPLEMENTATIONS,
        targets={"native": 40.0},
        make_inputs=ragged_inputs,
    ),
)


def floor(case: ScanCase) -> dict[str, float]:
    """Seconds of one direction's work at the measured vector speed, and of its bytes at the speed of a copy."""
    from benchmarks.run import copy_probe

    probe, amount = copy_probe()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        probe()
        best = min(best, time.perf_counter() - start)
    speed = vector_speed()
    return {
        "GFLOP/s": speed / 1e9,
        "operations": sum(work(case).values()) / speed,
        "GB/s": amount / best / 1e9,
        "bytes": traffic(case) / (amount / best),
    }


if __name__ == "__main__":  # only the floors
    torch.set_num_threads(2)
    for name, make in (("full", full_inputs), ("ragged", ragged_inputs)):
        case = make(registry.SHAPES["iemocap"])
        assert isinstance(case, ScanCase)
        print(name, {key: float(f"{value:.3g}") for key, value in floor(case).items()})
