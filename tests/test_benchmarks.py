"""Every benchmark runs, and its implementations agree. No timing: that is what ``python -m benchmarks.run`` is for."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
pytest.importorskip("torch_geometric", reason="the literal algorithms use PyTorch Geometric")

from benchmarks import run
from benchmarks.registry import SHAPES, benchmarks, draw_lengths

BENCHMARKS = {benchmark.name: benchmark for benchmark in benchmarks()}
CASES = [(benchmark.name, name) for benchmark in BENCHMARKS.values() for name in benchmark.implementations]


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
