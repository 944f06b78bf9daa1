"""Backends of the selective scan: choice, the operator in torch, the C library, and the stand-in for mamba_ssm."""

from __future__ import annotations

import ctypes
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor

from ercfusion.ops import Packing, native
from ercfusion.ops.scan import ScanInputs, backends, register_backend, scan_reference, selective_scan
from ercfusion.ops.scan.backends import VARIABLE, choose
from ercfusion.ops.scan.mamba_ssm import MambaSsmScan
from ercfusion.ops.scan.native import SOURCE

LENGTHS = (9, 1, 150, 33)

registry = importlib.import_module("ercfusion.ops.scan.backends")  # beside the function of the same name


compiled = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(lengths: tuple[int, ...] = LENGTHS, width: int = 300, states: int = 4, **change: Any) -> dict[str, Any]:
    """Everything but the initial state; packed."""
    generator = torch.Generator().manual_seed(sum(lengths))
    N = sum(lengths)
    shapes = {"u": (N, width), "delta": (N, width), "A": (width, states), "B": (N, states), "C": (N, states)}
    shapes |= {"D": (width,), "z": (N, width), "delta_bias": (width,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["A"] = -made["A"].exp()
    leaves = {name: x.requires_grad_() for name, x in made.items()}
    return {**leaves, "offsets": torch.tensor([0, *lengths]).cumsum(0), "delta_softplus": True, **change}


def leaves_of(arguments: dict[str, Any]) -> list[Tensor]:
    return [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]


def measure(arguments: dict[str, Any], **settings: Any) -> list[Tensor]:
    out, final = selective_scan(**arguments, **settings, return_final_state=True)  # type: ignore[misc]
    loss = (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() + final.square().sum()
    return [out.detach(), final.detach(), *torch.autograd.grad(loss, leaves_of(arguments))]


def canonical(arguments: dict[str, Any], reverse: tuple[bool, ...] = (False,)) -> ScanInputs:
    """As backends take them."""
    tensors = {name: x.detach().unsqueeze(0).expand(len(reverse), *x.shape) for name, x in arguments.items() if name in
               ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")}  # fmt: skip
    grouped = {name: tensors[name].unsqueeze(2) for name in "BC"}
    offsets = arguments["offsets"]
    lengths = tuple(offsets.diff().tolist())
    rest = {"initial": None, "offsets": offsets, "lengths": lengths, "reverse": reverse, "softplus": True}
    return ScanInputs(**{**tensors, **grouped, **rest})  # type: ignore[arg-type]


# The choice


class Counting:
    """Computes as the loops do, and says how often."""

    name = "counting"

    def __init__(self, reason: str | None = None) -> None:
        self.reason, self.calls = reason, 0

    def declines(self, inputs: ScanInputs) -> str | None:
        return self.reason

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return scan_reference(*inputs)

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *inputs: Any) -> Any:
        raise NotImplementedError


def test_a_new_backend_is_asked_first() -> None:
    small = make((3, 2), width=2)
    backend, refusing = Counting(), Counting("not today")
    undo = register_backend(backend)
    try:
        assert backends()[0] == "counting"
        selective_scan(**small)
        assert backend.calls == 1
        undo_second = register_backend(refusing)
        selective_scan(**small)
        with pytest.raises(ValueError, match="backend 'counting' declines: not today"):
            selective_scan(**small, backend="counting")
        undo_second()
        selective_scan(**small)
        assert (backend.calls, refusing.calls) == (2, 0)
    finally:
        undo()
    assert "counting" not in backends()


def test_environment_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = canonical(make((3, 2), width=8))
    for name in ("torch", "reference"):
        monkeypatch.setenv(VARIABLE, name)
        assert choose(inputs).name == name
        assert choose(inputs, "reference").name == "reference"  # the argument comes first
    monkeypatch.setenv(VARIABLE, "quick")
    with pytest.raises(ValueError, match="backend 'quick' does not exist"):
        selective_scan(**make((3, 2), width=8))


@compiled
def test_order_of_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(registry, "_BACKENDS", {})
    load = registry._load
    monkeypatch.setattr(registry, "_load", lambda name: loaded.append(name) or load(name))
    inputs = canonical(make((3, 2), width=8))
    assert choose(inputs).name == "native"
    single = inputs._replace(B=inputs.B.expand(-1, -1, 8, -1), C=inputs.C.expand(-1, -1, 8, -1))
    assert choose(single).name == "torch"
    assert choose(single._replace(A=single.A.to(torch.complex64))).name == "reference"
    assert loaded == ["native", "torch", "reference"]  # on the CPU, Triton is not even imported


# The operator


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("full", first(1, [True, False]))
def test_opcheck(full: bool, backend: str) -> None:
    if backend == "native" and native.find_compiler() is None:
        pytest.skip("no C compiler")
    x = canonical(make((3, 2), width=8, states=3), (False, True))
    leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in x[:8]]
    initial: Tensor | None = None
    if full:
        initial = torch.randn(2, 2, 8, 3, requires_grad=True)
    else:
        leaves[5:8] = [None] * 3
    arguments = (*leaves, initial, x.offsets, list(x.lengths) if full else None, [False, True], True, backend)
    torch.library.opcheck(torch.ops.ercfusion.selective_scan.default, arguments)


@pytest.mark.parametrize("reverse", first(1, ["both", False]))
@pytest.mark.parametrize("given", first(1, ["packing", "offsets", "padded"]))
def test_compiles_without_break(given: str, reverse: Any) -> None:
    arguments = make((5, 5), width=8, states=3)
    offsets = arguments.pop("offsets")
    per_token = ("u", "delta", "z", "B", "C")

    def scan(offsets: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(arguments, tensors, strict=False))
        settings: dict[str, Any] = {"delta_softplus": True, "reverse": reverse, "return_final_state": True}
        if given == "padded":
            named = {n: x.unflatten(0, (2, 5)) if n in per_token else x for n, x in named.items()}
            out, final = selective_scan(**named, lengths=[5, 4], **settings)
        else:
            out, final = selective_scan(**named, offsets=packing if given == "packing" else offsets, **settings)
        return torch.sin(out), 2 * final

    packing = Packing((5, 5))
    leaves = leaves_of(arguments)
    both = []
    for function in (scan, torch.compile(scan, fullgraph=True, backend="aot_eager")):
        out, final = function(offsets, *leaves)
        both.append([out, final, *torch.autograd.grad(out.sum() + final.sum(), leaves)])
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted)


def test_compiled_for_other_lengths() -> None:
    """Offsets are data: another batch with as many conversations runs through the same graph."""
    runs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        return graph

    function = torch.compile(lambda a: selective_scan(**a), fullgraph=True, backend=counting, dynamic=True)
    for lengths in ((3, 4), (5, 2), (6, 3), (2, 8)):
        arguments = make(lengths, width=8)
        torch.testing.assert_close(function(arguments), selective_scan(**arguments))
    assert runs == 1


def test_autocast() -> None:
    """Computed in float32 whatever autocast says, from what it hands over; the output has u's dtype."""
    arguments = make((6, 3), width=16)
    weight = torch.randn(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        arguments["u"] = (arguments["u"].detach() @ weight).requires_grad_()
        assert arguments["u"].dtype == torch.bfloat16
        out = selective_scan(**arguments)
        assert isinstance(out, Tensor)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    wide = {**arguments, "u": arguments["u"].detach().float()}
    assert torch.equal(out, selective_scan(**wide).to(torch.bfloat16))  # type: ignore[union-attr]
    assert arguments["u"].grad.dtype == torch.bfloat16
    assert arguments["A"].grad.dtype == torch.float32


# The C library


def unary(which: int, x: Tensor) -> Tensor:
    library = native.load(SOURCE)[0]
    assert library is not None
    y = torch.empty_like(x)
    function = library[f"ercfusion_unary_{'f32' if x.dtype == torch.float32 else 'f64'}"]
    function.restype = None
    pointers = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))
    function(ctypes.c_int64(which), *pointers, ctypes.c_int64(x.numel()))
    return y


def ulps(found: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of the (normal) exact results."""
    tiny = torch.finfo(found.dtype).tiny
    spacing = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=tiny).double()))) * torch.finfo(found.dtype).eps
    return float(((found.double() - exact.double()).abs() / spacing).max())


@compiled
def test_functions_of_the_library() -> None:
    """float32 against torch in float64, over the range in which results are normal numbers, but for the smallest."""
    x = torch.cat([torch.linspace(-86.9, 88.7, 200_003), torch.linspace(-1, 1, 100_001), torch.tensor([0.0, 20.0])])
    wide = x.double()
    assert ulps(unary(0, x), wide.exp()) < 2
    assert ulps(unary(4, x), wide.exp2()) < 2
    assert ulps(unary(1, x), torch.nn.functional.softplus(wide)) < 4
    assert ulps(unary(3, x), wide.sigmoid()) < 4
    derivative = torch.where(wide > 20, torch.ones_like(wide), wide.sigmoid())
    assert ulps(unary(2, x), derivative) < 4
    # float64: against torch's own float64, itself within a unit or two.
    y = torch.linspace(-700, 700, 100_003, dtype=torch.float64)
    assert ulps(unary(0, y), y.exp()) < 3
    assert ulps(unary(4, y), y.exp2()) < 3
    small = torch.linspace(-40, 40, 100_003, dtype=torch.float64)
    assert ulps(unary(1, small), torch.nn.functional.softplus(small)) < 6
    assert ulps(unary(3, small), small.sigmoid()) < 6


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_at_the_edges(dtype: torch.dtype) -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([0.0, -0.0, inf, -inf, nan, 1e30, -1e30, 21.0, 1.0], dtype=dtype)
    for which, function in ((0, torch.exp), (4, torch.exp2), (1, torch.nn.functional.softplus), (3, torch.sigmoid)):
        torch.testing.assert_close(unary(which, x), function(x), equal_nan=True)
    assert unary(0, x)[0] == 1  # a step of no length changes nothing
    assert unary(1, torch.tensor([20.5], dtype=dtype)) == 20.5
    lowest = torch.finfo(dtype).tiny
    assert unary(4, torch.tensor([-3000.0], dtype=dtype)) == 0
    assert unary(4, torch.tensor([float(torch.tensor(lowest, dtype=dtype).log2()) + 1], dtype=dtype)) == 2 * lowest


@pytest.mark.slow
@compiled
def test_without_the_instructions_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for any processor of its kind: other vectors, other ways to clamp and to fuse, nearly the same results."""
    arguments = make(width=40)
    wanted = measure(arguments, backend="native")
    monkeypatch.setenv("ERCFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "TUNING", ((),))
    plain = native.build(SOURCE)
    monkeypatch.setattr(native, "load", lambda source: (plain, ""))
    for found, expected in zip(measure(arguments, backend="native"), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    test_functions_of_the_library()
    test_functions_at_the_edges(torch.float32)
    test_functions_at_the_edges(torch.float64)


@compiled
def test_threads_change_no_bit() -> None:
    arguments = make()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(measure(arguments, reverse="both", backend="native"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_views_are_read_in_place() -> None:
    """Rows with gaps, shared directions, columns of one matrix: as if they were copied first."""
    arguments = make(width=40)
    packed = {name: x.detach() for name, x in arguments.items() if name in ("u", "delta", "z")}
    wide = torch.cat(list(packed.values()), 1)
    views = dict(zip(packed, wide.split(40, 1), strict=True))
    mixed = torch.cat([arguments["B"], arguments["C"]], 1).detach()
    views |= {"B": mixed[:, :4], "C": mixed[:, 4:]}
    turned = {"u": packed["u"].t().contiguous().t(), "A": arguments["A"].detach().t().contiguous().t()}
    wanted = selective_scan(**arguments, backend="native", reverse="both")
    for change in (views, turned):
        assert torch.equal(selective_scan(**{**arguments, **change}, backend="native", reverse="both"), wanted)  # type: ignore[arg-type]


def _in_child(queue: Any) -> None:
    # torch's own parallel loops hang in a child (GNU OpenMP); ours, which ask torch how many threads to use, do not.
    torch.set_num_threads(1)
    torch.get_num_threads = lambda: 3
    queue.put([x.numpy() for x in measure(make(width=40), backend="native")])


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork() -> None:
    """The parent has threads; its child, which does not inherit them, makes its own."""
    torch.set_num_threads(2)
    wanted = measure(make(width=40), backend="native")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    found = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(found, wanted, strict=True))


# By itself: what is imported for it takes no time, so that the two processes meet at the compiler.
PROGRAM = """
import ctypes, importlib.util, pathlib, sys
specification = importlib.util.spec_from_file_location("native", sys.argv[1])
native = importlib.util.module_from_spec(specification)
specification.loader.exec_module(native)
library = native.build(pathlib.Path(sys.argv[2]))
x, y = (ctypes.c_double * 3)(0, 1, -2), (ctypes.c_double * 3)()
library.ercfusion_unary_f64(ctypes.c_int64(4), x, y, ctypes.c_int64(3))
print(list(y), "torch" in sys.modules)
"""


@pytest.mark.slow
@compiled
def test_processes_that_build_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets a library that works, one file is left, and a damaged one is replaced."""
    monkeypatch.setenv("ERCFUSION_CACHE", str(tmp_path / "deep" / "folder"))
    command = [sys.executable, "-c", PROGRAM, str(native.__file__), str(SOURCE)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert said == ["[1.0, 2.0, 0.25] False\n"] * 3
    (library,) = (tmp_path / "deep" / "folder").iterdir()
    library.write_bytes(b"damaged")
    assert native.build(SOURCE).ercfusion_scan_f32
    assert list(library.parent.iterdir()) == [library]
    assert library.stat().st_size > 1000


@pytest.mark.parametrize("fault", ["missing", "failing", "unwritable"])
def test_without_a_library(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """No compiler, one that fails, a cache that is no folder: torch does the work, and one line says so."""
    monkeypatch.setenv("ERCFUSION_CACHE", str(tmp_path))
    if fault == "missing":
        monkeypatch.setenv("CC", "/nonexistent/cc")
    elif fault == "failing":
        compiler = tmp_path / "cc"
        compiler.write_text("#!/bin/sh\necho 'cc: out of order' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("ERCFUSION_CACHE", str(tmp_path / "file" / "folder"))
    arguments = make((4, 3), width=8)
    native.load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="ercfusion"):
            for _ in range(2):
                found = selective_scan(**arguments)
        lines = [record for record in caplog.records if "selective_scan.c" in record.getMessage()]
        assert len(lines) == 1
        assert lines[0].levelno == logging.INFO
        assert "torch replaces it" in lines[0].getMessage()
        assert torch.equal(found, selective_scan(**arguments, backend="torch"))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="backend 'native' declines: "):
            selective_scan(**arguments, backend="native")
    finally:
        native.load.cache_clear()


# mamba_ssm


def stand_in(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """The documented signature and layouts of ``selective_scan_fn``, by our loops."""
    size, _, length = u.shape
    assert B.ndim == C.ndim == 4
    assert delta.shape == u.shape
    assert all(x.dtype == torch.float32 for x in (A, D, delta_bias) if x is not None)
    assert all(x.is_contiguous() and x.dtype == u.dtype for x in (u, delta, z, B, C) if x is not None)

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.movedim(-1, 1).flatten(0, 1).unsqueeze(0)

    def whole(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unsqueeze(0)

    out, final = scan_reference(
        *(rows(u), rows(delta), whole(A), rows(B), rows(C), whole(D), rows(z), whole(delta_bias), None, None),  # type: ignore[arg-type]
        [length] * size,
        (False,),
        delta_softplus,
    )
    y = out[0].unflatten(0, (size, length)).movedim(1, -1)
    # The kernel propagates nothing from its last state.
    return (y, final[0].detach()) if return_last_state else y


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("reverse", [False, True, "both"])
def test_mamba_ssm(reverse: Any, bare: bool) -> None:
    arguments = make((4, 1, 7), width=6, states=3)
    if bare:
        arguments = {n: x for n, x in arguments.items() if n not in ("D", "z", "delta_bias")}
        arguments["delta_softplus"] = False
        arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    leaves = leaves_of(arguments)
    undo = register_backend(MambaSsmScan(stand_in, device="cpu"))
    try:
        both = []
        for backend in ("mamba_ssm", "reference"):
            out, final = selective_scan(**arguments, reverse=reverse, return_final_state=True, backend=backend)  # type: ignore[misc]
            gradients = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum(), leaves)
            both.append([out, final, *gradients])
        for found, wanted in zip(*both, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        out, final = selective_scan(**arguments, return_final_state=True, backend="mamba_ssm")  # type: ignore[misc]
        with pytest.raises(ValueError, match="no gradient from the final state"):
            final.sum().backward()
        with pytest.raises(ValueError, match="takes no initial state"):
            selective_scan(**arguments, initial_state=torch.zeros(3, 6, 3), backend="mamba_ssm")
    finally:
        undo()


def test_mamba_ssm_with_a_bias_alone() -> None:
    """Without softplus, padded steps undo the bias, so that the final state is that of the last utterance."""
    arguments = make((4, 1, 7), width=6, states=3)
    arguments["delta_softplus"] = False
    arguments["delta"], arguments["delta_bias"] = arguments["delta"].detach().abs(), arguments["delta_bias"].abs()
    undo = register_backend(MambaSsmScan(stand_in, device="cpu"))
    try:
        found = selective_scan(**arguments, return_final_state=True, backend="mamba_ssm")
    finally:
        undo()
    wanted = selective_scan(**arguments, return_final_state=True, backend="reference")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_mamba_ssm_is_not_for_the_cpu() -> None:
    backend = MambaSsmScan()
    assert backend.declines(canonical(make((3,), width=4))) == "it is for cuda, and the tensors are on cpu"
