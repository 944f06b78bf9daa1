"""Time and check the benchmarks: ``python -m benchmarks.run cogmen``.

All implementations of a benchmark run in one process, one after another in every round, and share other load of the
machine; ratios are of the fastest rounds. Matrix products and memory copies are timed in the same rounds: the time of
an implementation's work at their speed is its floor.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.registry import MODULES, SHAPES, Benchmark, Implementation, Inputs, benchmarks

MATMULS = ((1452, 1380, 4140), (1452, 1380, 1380), (1452, 1380, 2048), (1452, 2048, 1380))
"""(m, k, n) of the timed products: a Transformer layer of width 1,380 on a quarter of 5,808 utterances."""


@dataclass
class Timing:
    """Seconds of one function, one number per round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The fastest round."""
        return min(self.rounds)


def time_rounds(functions: dict[str, Callable[[], Any]], repeats: int, window: float = 0.2) -> dict[str, Timing]:
    """Time every function once per round; repeat calls up to ``window`` seconds and use the fastest.

    Otherwise one interruption would distort a call of a few milliseconds.
    """
    timings = {name: Timing() for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            calls: list[float] = []
            while not calls or sum(calls) < window:
                start = time.perf_counter()
                function()
                calls.append(time.perf_counter() - start)
            timings[name].rounds.append(min(calls))
    return timings


# The speed of the machine


def matmul_probe() -> tuple[Callable[[], None], float]:
    """The products of linear layers, forward and backward, and their operations."""
    operands = [(torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)) for m, k, n in MATMULS]

    def probe() -> None:
        for x, weight, gradient in operands:
            x @ weight.t()
            gradient @ weight
            gradient.t() @ x

    return probe, sum(3 * 2.0 * m * k * n for m, k, n in MATMULS)


def onednn_probe() -> tuple[Callable[[], None], float] | None:
    """The forward products by oneDNN, which torch.nn.functional.linear does not use for float32; None without it."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    operands = [(torch.randn(m, k), torch.randn(n, k)) for m, k, n in MATMULS]

    def probe() -> None:
        for x, weight in operands:
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    return probe, sum(2.0 * m * k * n for m, k, n in MATMULS)


def copy_probe() -> tuple[Callable[[], None], float]:
    """A copy of 256 MiB, and its bytes read and written."""
    source = torch.ones(2**26)
    target = torch.empty_like(source).copy_(source)

    def probe() -> None:
        target.copy_(source)

    return probe, 2.0 * source.nbytes


# One benchmark


def run_benchmark(benchmark: Benchmark, inputs: Inputs, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Timings of the named implementations, with floors if their work is known."""
    chosen = {name: benchmark.implementations[name] for name in names}
    functions: dict[str, Any] = {}
    try:
        for name, implementation in chosen.items():
            functions[name] = implementation.setup(inputs)
        return _timed(benchmark, inputs, chosen, functions, repeats)
    finally:
        for name, function in functions.items():
            if chosen[name].processes:
                function.close()


def _timed(
    benchmark: Benchmark,
    inputs: Inputs,
    chosen: dict[str, Implementation],
    functions: dict[str, Any],
    repeats: int,
) -> dict[str, Any]:
    work = {name: dict(implementation.flops(inputs)) for name, implementation in chosen.items() if implementation.flops}
    probes = {}
    if work:
        probes = {"matmul": matmul_probe(), "copy": copy_probe()}
        if onednn := onednn_probe():
            probes["matmul, oneDNN"] = onednn
    timings = time_rounds({**functions, **{name: probe for name, (probe, _) in probes.items()}}, repeats)
    speeds = {name: amount / timings[name].best for name, (_, amount) in probes.items()}

    rows = {}
    for name in chosen:
        row: dict[str, Any] = {"seconds": timings[name].rounds, "best": timings[name].best}
        if benchmark.epochs:
            row["epochs_per_second"] = benchmark.epochs / row["best"]
        if chosen[name].processes:
            row["startup"] = functions[name].startup
        if benchmark.reference in chosen and name != benchmark.reference:
            reference = timings[benchmark.reference]
            pairs = zip(reference.rounds, timings[name].rounds, strict=True)
            row["faster"] = reference.best / row["best"]
            row["faster_median"] = statistics.median(slow / fast for slow, fast in pairs)
        if name in benchmark.targets:
            row["target"] = benchmark.targets[name]
        if name in work:
            row["flops"] = work[name]
            row["floor"] = sum(work[name].values()) / speeds["matmul"]
            if chosen[name].traffic is not None:
                row["update_floor"] = chosen[name].traffic(inputs) / speeds["copy"]
            row["over_floor"] = row["best"] / row["floor"]
        rows[name] = row
    return {"rows": rows, "speeds": speeds}


def check_benchmark(benchmark: Benchmark, inputs: Inputs) -> dict[str, str]:
    """``agrees`` or the difference, per implementation with a check."""
    verdicts = {}
    for name, implementation in benchmark.implementations.items():
        if implementation.check is not None:
            try:
                implementation.check(inputs)
                verdicts[name] = "agrees"
            except AssertionError as error:
                verdicts[name] = f"DIFFERS: {error}"
    return verdicts


def peak_memory(benchmark: Benchmark, name: str, shape: str, seed: int, threads: int) -> dict[str, float]:
    """MiB of one implementation in its own process: before the setup, and at its peak."""
    command = [sys.executable, "-m", "benchmarks.run", benchmark.name, "--shape", shape, "--seed", str(seed)]
    command += ["--threads", str(threads), "--peak-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def report_peak(benchmark: Benchmark, name: str, inputs: Inputs) -> None:
    """Print the result of :func:`peak_memory` in its process."""
    _ = inputs.padded if name == benchmark.reference else None
    before = resident("VmRSS")
    benchmark.implementations[name].setup(inputs)()
    print(json.dumps({"before_mib": before, "peak_mib": resident("VmHWM")}))


def resident(key: str) -> float:
    """MiB of this process according to the kernel (Linux only)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return math.nan


# The command


def machine() -> dict[str, Any]:
    """The conditions of the measurement."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{len(names)} cores, {names[0]}" if names else model
    return {
        "processor": model,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned first column, right-aligned others."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])


def show(benchmark: Benchmark, result: dict[str, Any]) -> None:
    """Print the result of one benchmark."""
    print(f"\n{benchmark.name}: {benchmark.description}")
    rows = []
    for name, row in result["rows"].items():
        rows.append(
            [
                name,
                f"{row['best']:.4g}",
                f"{statistics.median(row['seconds']):.4g}",
                f"{row['epochs_per_second']:.2f}" if "epochs_per_second" in row else "",
                f"{row['faster']:.2f}" if "faster" in row else "",
                f"{row['faster_median']:.2f}" if "faster_median" in row else "",
                f"{row['target']:g}" if "target" in row else "",
                f"{sum(row['flops'].values()) / 1e9:.0f}" if "flops" in row else "",
                f"{row['floor']:.3g}" if "floor" in row else "",
                f"{row['update_floor']:.3g}" if "update_floor" in row else "",
                f"{row['over_floor']:.2f}" if "over_floor" in row else "",
                f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
                f"{row['startup']:.1f}" if "startup" in row else "",
                result["checks"].get(name, ""),
            ]
        )
    header = ["implementation", "best s", "median s", "epochs/s", "x faster", "(median)", "target", "GFLOP", "floor s"]
    header += ["update s", "/ floor", "peak MiB", "start s", "check"]
    used = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    print(table([header[column] for column in used], [[row[column] for column in used] for row in rows]))
    for name, speed in result["speeds"].items():
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        print(f"{name}: {speed / 1e9:.1f} {unit}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="?", help=f"a group ({', '.join(MODULES)}) or one benchmark of it")
    parser.add_argument("--list", action="store_true", help="list benchmarks, implementations and shapes")
    parser.add_argument("--shape", default="iemocap", choices=SHAPES, help="default: %(default)s")
    parser.add_argument("--only", action="append", metavar="IMPLEMENTATION", help="may be given several times")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random data; default: %(default)s")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory too, in separate processes")
    parser.add_argument(
        "--check",
        choices=("none", "last", "all"),
        default="last",
        help="batches on which results are compared first; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.name is None and not options.list:
        parser.error("name a benchmark, or use --list")
    names = [benchmark.name for benchmark in benchmarks()]
    if options.name is not None and options.name not in MODULES and options.name not in names:
        parser.error(f"no benchmark {options.name!r}; there are {', '.join([*MODULES, *names])}")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if an implementation differs from its reference."""
    options = parse(arguments)
    chosen = benchmarks(options.name if options.name in MODULES else None)
    chosen = [benchmark for benchmark in chosen if options.name in (None, benchmark.name, *MODULES)]
    if options.list:
        for benchmark in chosen:
            print(f"{benchmark.name}: {benchmark.description}")
            for name, implementation in benchmark.implementations.items():
                print(f"  {name}: {implementation.description}")
        print(f"shapes: {', '.join(SHAPES)}")
        return 0
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    if options.peak_of:
        report_peak(chosen[0], options.peak_of, chosen[0].make_inputs(shape, options.seed))
        return 0

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    results: dict[str, Any] = {}
    for benchmark in chosen:
        inputs = benchmark.make_inputs(shape, options.seed)
        packings = [batch.packing for batch in inputs.batches]
        lengths = [packing.total for packing in packings]
        slots = sum(packing.size * packing.longest for packing in packings)
        if not results:
            print(f"shape {options.shape}: {sum(p.size for p in packings)} conversations, {sum(lengths)} utterances,")
            print(f"  {len(packings)} batches, {slots} slots when padded, width {inputs.shape.width}")
        checks = {}
        if options.check != "none":
            compared = inputs.batches if options.check == "all" else inputs.batches[-1:]
            checks = check_benchmark(benchmark, Inputs(inputs.shape, compared))
        names = [name for name in benchmark.implementations if not options.only or name in options.only]
        if not names:
            continue
        result = run_benchmark(benchmark, inputs, names, options.repeats)
        result["checks"] = checks
        if options.memory and benchmark.memory:
            for name in names:
                memory = peak_memory(benchmark, name, options.shape, options.seed, options.threads)
                result["rows"][name].update(memory)
        results[benchmark.name] = result
        show(benchmark, result)
    if options.json:
        settings = {"shape": options.shape, "seed": options.seed, "repeats": options.repeats}
        record = {"machine": machine(), "settings": settings, "benchmarks": results}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    failed = any(verdict != "agrees" for result in results.values() for verdict in result["checks"].values())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
