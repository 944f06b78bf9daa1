"""Every benchmark runs, and its implementations agree. No timing: that is what ``python -m benchmarks.run`` is for."""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
pytest.importorskip("torch_geometric", reason="the literal algorithms use PyTorch Geometric")

from benchmarks import run
from benchmarks.registry import SHAPES, benchmarks, draw_lengths

pytestmark = pytest.mark.usefixtures("preloaded")

BENCHMARKS = {benchmark.name: benchmark for benchmark in benchmarks()}
# Starting processes takes seconds: what differs between the models is seen in one layout of them. Called by number:
# some names say how many cores this machine has.
CASES = [
    pytest.param(
        benchmark.name,
        name,
        marks=[pytest.mark.slow] if implementation.processes else [],
        id=f"{benchmark.name}-{number if implementation.processes else name}",
    )
    for benchmark in BENCHMARKS.values()
    for number, (name, implementation) in enumerate(benchmark.implementations.items())
    if number == 0 or benchmark.name not in ("many-bclstm", "many-cogmen")
]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("seed", [0, 1])
def test_lengths_have_the_sum_and_bounds_of_the_shape(shape, seed):
    lengths = draw_lengths(shape, torch.Generator().manual_seed(seed))
    assert len(lengths) == shape.conversations
    assert (sum(lengths), min(lengths), max(lengths)) == (shape.utterances, shape.shortest, shape.longest)


@pytest.mark.parametrize(("benchmark_name", "name"), CASES)
def test_runs(benchmark_name, name):
    benchmark = BENCHMARKS[benchmark_name]
    function = benchmark.implementations[name].setup(benchmark.make_inputs(SHAPES["tiny"], 0))
    function()
    function()
    if benchmark.implementations[name].processes:
        assert function.startup > 0
        function.close()


@pytest.mark.parametrize(("benchmark_name", "name"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_reference(benchmark_name, name, seed):
    benchmark = BENCHMARKS[benchmark_name]
    check = benchmark.implementations[name].check
    if check is None:
        pytest.skip("is the reference, or another model on purpose")
    check(benchmark.make_inputs(SHAPES["tiny"], seed))


def test_command_writes_what_it_measured(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        status = run.main(["cogmen-graph", "--shape", "tiny", "--repeats", "1", "--json", str(tmp_path / "out.json")])
    finally:
        torch.set_num_threads(threads)
    assert status == 0
    assert "cogmen-graph" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["benchmarks"]["cogmen-graph"]["rows"]
    assert set(rows) == set(BENCHMARKS["cogmen-graph"].implementations)


def typed_commands():
    """Every command of a benchmark on a page: (module, its arguments)."""
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found = re.findall(r"python\s+-m\s+benchmarks\.(\w+)([^`#\n]*(?:\n[^`#\n]*(?=`))?)", text)
    return sorted({(name, *shlex.split(rest)) for name, rest in found if "GROUP" not in rest})


class Parsed(Exception):  # noqa: N818
    """Arguments were understood; the command goes no further."""


@pytest.mark.parametrize("command", typed_commands(), ids=" ".join)
def test_commands_of_the_pages_are_understood(command, monkeypatch):
    name, *arguments = command
    module = importlib.import_module(f"benchmarks.{name}")
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, given=None, namespace=None):
        raise Parsed(parse_args(parser, given, namespace))

    if name == "run":
        assert run.parse(arguments)
    elif arguments:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            module.main(arguments)


def test_only_models_without_packed_sequences_are_batched_over_seeds():
    from benchmarks.many import why_not_batched

    assert why_not_batched("concat", SHAPES["tiny"]) is None
    assert ".item()" in why_not_batched("bclstm", SHAPES["tiny"])
    assert why_not_batched("cogmen", SHAPES["tiny"]) is not None


@pytest.mark.slow
def test_processes_are_timed_with_what_they_cost_to_start(tmp_path, capsys):
    threads = torch.get_num_threads()
    arguments = ["many-seeds", "--shape", "tiny", "--repeats", "1", "--threads", "1"]
    try:
        status = run.main([*arguments, "--only", "one by one", "--only", "processes", "--json", f"{tmp_path}/out.json"])
    finally:
        torch.set_num_threads(threads)
    assert status == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("implementation"))
    assert "epochs/s" in header
    assert "start s" in header
    rows = json.loads((tmp_path / "out.json").read_text())["benchmarks"]["many-seeds"]["rows"]
    assert rows["processes"]["epochs_per_second"] > 0
    assert rows["processes"]["startup"] > 0
