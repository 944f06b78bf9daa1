"""Triton's kernels without a GPU: through its interpreter, against the plain loops; and through its compiler.

The interpreter has to be chosen before Triton is imported, for a whole process. So the functions ``check_...`` here are
the tests of a second pytest, which :func:`test_in_the_interpreter` starts.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.ops.conv import causal_conv_reference
from ercfusion.ops.scan import selective_scan
from ercfusion.ops.scan.contract import ScanInputs
from ercfusion.ops.scan.reference import ReferenceScan

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="starts the others")
@pytest.mark.slow
@pytest.mark.parametrize("which", ["not slow", "slow"])
def test_in_the_interpreter(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-m", which, "-o", "python_functions=check_*", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-n", "0", str(Path(__file__).resolve())],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory is full of NaN."""
    for name in ("empty", "empty_like"):
        original: Callable[..., Tensor] = getattr(torch, name)

        def filled(*args: Any, original: Callable[..., Tensor] = original, **kwargs: Any) -> Tensor:
            made = original(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(torch, name, filled)


def guarded(values: Tensor) -> Tensor:
    """The same numbers with NaN before, behind and between the rows."""
    *outer, width = values.shape
    shape = [size + 2 for size in outer] + [width + 3]
    around = torch.full(shape, float("nan"), dtype=values.dtype, device=values.device)
    inside = around[(*[slice(1, size + 1) for size in outer], slice(1, width + 1))]
    inside.copy_(values)
    return inside


def make(
    lengths: tuple[int, ...],
    width: int,
    states: int,
    groups: tuple[int, int] = (1, 1),
    reverse: tuple[bool, ...] = (False, True),
    options: str = "Dzbi",
    softplus: bool = True,
    dtype: torch.dtype = torch.float32,
) -> ScanInputs:
    torch.manual_seed(sum(lengths) + width)
    K, N = len(reverse), sum(lengths)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return guarded(torch.randn(shape).to(dtype))

    return ScanInputs(
        normal(K, N, width),
        normal(K, N, width) if softplus else guarded(torch.rand(K, N, width).to(dtype)),
        guarded(-torch.rand(K, width, states) * 2 - 0.05),
        normal(K, N, groups[0], states),
        normal(K, N, groups[1], states),
        normal(K, width, dtype=torch.float32) if "D" in options else None,
        normal(K, N, width) if "z" in options else None,
        normal(K, width, dtype=torch.float32) if "b" in options else None,
        normal(K, len(lengths), width, states, dtype=torch.float32) if "i" in options else None,
        torch.tensor([0, *itertools.accumulate(lengths)]),
        lengths,
        reverse,
        softplus,
    )


def close(found: Any, expected: Any, name: str, tolerance: float) -> None:
    if expected is None:
        assert found is None, name
        return
    assert found.shape == expected.shape, name
    assert found.isfinite().all(), name
    scale = expected.abs().max().clamp_min(1e-3) if expected.numel() else 1.0
    torch.testing.assert_close(
        found.double() / scale, expected / scale, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


def turns(inputs: ScanInputs, backend: Any) -> int:
    """How many turns the backward pass takes."""
    from ercfusion.ops.scan.triton_scan import _Call

    return len(_Call(inputs, backend)._turns())


def compare(inputs: ScanInputs, tolerance: float = 5e-6, with_final: bool = True, **settings: int) -> None:
    """Values and all gradients against the loops in float64."""
    from ercfusion.ops.scan.triton_scan import TritonScan

    backend, reference = TritonScan(**settings), ReferenceScan()
    assert backend.declines(inputs) is None
    assert (turns(inputs, backend) > 1) == ("scratch" in settings)
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    out, final = backend.forward(*inputs)
    assert (out.dtype, final.dtype) == (inputs.u.dtype, torch.float32)
    exact = reference.forward(*wide)
    close(out, exact[0], "out", tolerance)
    close(final, exact[1], "final", min(tolerance, 1e-5))
    grad_out = torch.randn(out.shape).to(out)
    grad_final = torch.randn(final.shape).to(final) if with_final else None
    found = backend.backward(guarded(grad_out), grad_final, *inputs)
    expected = reference.backward(grad_out.double(), None if grad_final is None else grad_final.double(), *wide)
    for name, one, other, given in zip(found._fields, found, expected, inputs, strict=False):
        close(one, other, name, tolerance)
        assert one is None or one.dtype in (given.dtype, torch.float32)  # a sum may be left unrounded


CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, int]]] = {
    "forwards": (((1, 2, 3), 5, 3), {"reverse": (False,)}, {}),
    "backwards_bare": (((2, 6, 1), 4, 1), {"reverse": (True,), "options": "", "softplus": False}, {}),
    "both_two_groups": (((5, 1, 2), 6, 4, (2, 1)), {}, {}),
    "own_b_for_every_channel": (((3, 1), 3, 2, (1, 3)), {"options": "D"}, {}),
    "empty": (((0, 3, 0), 3, 2), {"options": "bi"}, {}),
    "cut": (((5, 1, 0, 3), 3, 3), {}, {"longest": 2, "segment": 2}),
    "cut_bare": (((9, 2), 3, 2), {"options": ""}, {"longest": 2, "segment": 5, "scratch": 1}),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", CASES)
def check_scan(name: str) -> None:
    arguments, options, settings = CASES[name]
    compare(make(*arguments, **options), with_final="bare" not in name, **settings)


SLOW: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, int]]] = {
    "lengths": (((1, 2, 3, 18), 7, 5), {}, {}),
    "two_blocks": (((9, 2), 37, 16), {}, {}),
    "groups_of_blocks": (((3, 5), 80, 4, (2, 1)), {}, {}),
    "many_states": (((3, 2), 3, 130), {}, {}),
    "most_states": (((3, 5), 3, 256), {"reverse": (True,)}, {}),
    "cut_unevenly": (((9, 1, 0, 5), 3, 3), {}, {"longest": 4, "segment": 3}),
    "cut_long": (((24, 3, 14), 5, 6), {}, {"longest": 12, "segment": 8}),
    "cut_in_turns": (((24, 3, 14), 5, 6), {}, {"longest": 12, "segment": 8, "scratch": 4000}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", SLOW)
def check_scan_larger(name: str) -> None:
    arguments, options, settings = SLOW[name]
    compare(make(*arguments, **options), **settings)


@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*CASES, *SLOW])
def test_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    arguments, options, settings = (CASES | SLOW)[name]
    made = make(*arguments, **options, dtype=dtype)
    moved = [guarded(x.cuda()) if isinstance(x, Tensor) and x.is_floating_point() else x for x in made]
    inputs = ScanInputs(*moved)._replace(offsets=made.offsets.cuda())
    compare(inputs, tolerance=2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(16))
def check_every_combination(number: int) -> None:
    """Of the five switches any four take all values together, whole and cut: half of all combinations."""
    options = "".join(letter for i, letter in enumerate("Dzbi") if number >> i & 1)
    softplus = len(options) % 2 > 0
    compare(make((3, 2), 3, 2, reverse=(False,), options=options, softplus=softplus), with_final=number % 3 > 0)
    compare(make((5, 1), 3, 2, reverse=(True,), options=options, softplus=not softplus), longest=3, segment=2)


HALF = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", HALF)
def check_half_precision(dtype: torch.dtype) -> None:
    """float32 inside: only what is written is rounded (by the interpreter, cut off)."""
    compare(make((3, 1, 2), 4, 3, dtype=dtype), tolerance=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF)
def check_half_precision_shared(dtype: torch.dtype) -> None:
    """Both directions share all tensors: their gradients are summed before they are rounded."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"u": (6, 4), "delta": (6, 4), "A": (4, 3), "B": (1, 4, 3), "C": (6, 2, 3)}
    shapes |= {"D": (4,), "z": (6, 4), "delta_bias": (4,), "initial_state": (2, 4, 3)}
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    given["A"] = -given["A"].abs()
    direction = torch.randn(2, 6, 4, generator=generator).to(dtype)
    gradients = []
    for wide, backend in ((dtype, "triton"), (torch.float64, "reference")):
        leaves = {name: x.to(wide).requires_grad_() for name, x in given.items()}
        settings: dict[str, Any] = {"delta_softplus": True, "reverse": "both", "offsets": torch.tensor([0, 4, 6])}
        y = selective_scan(**leaves, **settings, backend=backend)
        gradients.append(torch.autograd.grad(y, list(leaves.values()), direction.to(wide)))  # type: ignore[arg-type]
    for name, found, exact in zip(given, *gradients, strict=True):
        bound = torch.finfo(dtype).eps * exact.abs() + 5e-6 * exact.abs().max() + 1e-7  # the interpreter cuts off
        assert ((found.double() - exact).abs() <= bound).all(), name


@pytest.mark.parametrize(
    "name",
    [
        "u",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("delta", "B", "C", "D", "z", "delta_bias", "initial")),
    ],
)
def check_infinities(name: str) -> None:
    """Finite where the reference is; with u also in the segments of a conversation that is cut."""
    from ercfusion.ops.scan.triton_scan import TritonScan

    # Not so with A: exp(A sum dt) of a segment is not the product of the utterances' exp(A dt) if A is infinite.
    for number, settings in ((torch.inf, {}), (torch.nan, {"longest": 2, "segment": 2}))[: 2 if name == "u" else 1]:
        inputs = make((3, 0, 2), 4, 2)
        x = getattr(inputs, name)
        x[(0, *[-1] * (x.ndim - 1))] = number  # of the last utterance that is read forwards
        backend, reference = TritonScan(**settings), ReferenceScan()
        out, final = backend.forward(*inputs)
        exact = reference.forward(*inputs)
        gradients = backend.backward(torch.ones_like(out), torch.ones_like(final), *inputs)
        wanted = reference.backward(torch.ones_like(out), torch.ones_like(final), *inputs)
        fields = ("out", "final", *gradients._fields)
        for field, one, other in zip(fields, (out, final, *gradients), (*exact, *wanted), strict=True):
            if field != "A":  # an infinite state times the 0 of a row behind the last: NaN in the gradient of A
                assert torch.equal(one.isfinite(), other.isfinite()), (number, field)


def check_softplus_in_its_tails() -> None:
    """Tiny and huge steps keep their relative precision; above 20 softplus is the identity."""
    from ercfusion.ops.scan.triton_scan import TritonScan

    delta = torch.tensor([-60.0, -20.0, -16.5, -8.0, -1.0, 0.0, 3.0, 19.9, 20.1, 60.0])
    one = torch.ones(1, len(delta), 1)
    inputs = (one, delta.reshape(1, -1, 1), torch.zeros(1, 1, 1), one.unsqueeze(2), one.unsqueeze(2), *[None] * 4)
    rest = (torch.arange(len(delta) + 1), (1,) * len(delta), (False,), True)
    out, _ = TritonScan().forward(*inputs, *rest)
    expected = torch.nn.functional.softplus(delta.double())
    torch.testing.assert_close(out.flatten().double(), expected, rtol=5e-7, atol=0)
    slope = TritonScan().backward(one, None, *inputs, *rest)[1]
    slopes = torch.where(delta > 20, 1.0, delta.double().sigmoid())
    torch.testing.assert_close(slope.flatten().double(), slopes, rtol=5e-7, atol=0)


@pytest.mark.slow
def check_company_changes_nothing() -> None:
    """Bit by bit, what is a conversation's own is the same alone, beside others, and beside one that is cut."""
    from ercfusion.ops.scan.triton_scan import TritonScan

    whole = make((1, 6, 3), 3, 2)
    backend = TritonScan(longest=4, segment=3)
    grad, grad_final = torch.randn(whole.u.shape), torch.randn(2, 3, 3, 2)
    out, final = backend.forward(*whole)
    grads = backend.backward(grad, grad_final, *whole)
    for b, (low, high) in enumerate(itertools.pairwise(whole.offsets.tolist())):
        rows = slice(low, high)
        part = whole._replace(
            u=whole.u[:, rows], delta=whole.delta[:, rows], B=whole.B[:, rows], C=whole.C[:, rows],
            z=whole.z[:, rows] if whole.z is not None else None,
            initial=whole.initial[:, b : b + 1] if whole.initial is not None else None,
            offsets=torch.tensor([0, high - low]), lengths=(high - low,),
        )  # fmt: skip
        own, own_final = backend.forward(*part)
        assert torch.equal(own, out[:, rows])
        assert torch.equal(own_final, final[:, b : b + 1])
        mine = backend.backward(grad[:, rows], grad_final[:, b : b + 1], *part)
        for name in ("u", "delta", "B", "C", "z"):
            assert torch.equal(getattr(mine, name), getattr(grads, name)[:, rows]), name
        assert mine.initial is not None
        assert grads.initial is not None
        assert torch.equal(mine.initial, grads.initial[:, b : b + 1])


@pytest.mark.slow
def check_turns_change_nothing() -> None:
    from ercfusion.ops.scan.triton_scan import TritonScan

    inputs = make((2, 5, 7), 5, 3, options="D")
    grad = torch.randn(inputs.u.shape)
    whole, parts = TritonScan(longest=4, segment=4), TritonScan(longest=4, segment=4, scratch=1500)
    assert (turns(inputs, whole), turns(inputs, parts)) == (1, 2)
    at_once, in_turns = (backend.backward(grad, None, *inputs) for backend in (whole, parts))
    for name, one, other in zip(at_once._fields, at_once, in_turns, strict=True):
        assert one is other is None or torch.equal(one, other), name


def check_shared_tensors_are_not_copied() -> None:
    """Views with stride 0, over directions and over utterances, are read as they are."""
    inputs = make((3, 2), 4, 3, reverse=(False, True), options="Dz")
    assert inputs.z is not None
    compare(
        inputs._replace(
            u=inputs.u[:1].expand(2, -1, -1),
            z=inputs.z[:1].expand(2, -1, -1),
            B=inputs.B[:1, :1].expand(2, 5, -1, -1),
            delta=inputs.delta.transpose(1, 2).contiguous().transpose(1, 2),
        )
    )


def check_operator() -> None:
    """Through the public function, with autograd."""
    from ercfusion.ops.scan import selective_scan

    found = {}
    for backend in ("triton", "reference"):
        x = make((3, 1, 4), 4, 3, reverse=(False,))
        leaves = [y[0].clone().requires_grad_() for y in (x.u, x.delta, x.A, x.B, x.C)]
        out, final = selective_scan(
            *leaves, delta_softplus=True, offsets=x.offsets, reverse="both", return_final_state=True, backend=backend
        )
        assert tuple(out.shape) == (2, 8, 4)
        (out.square().sum() + final.square().sum()).backward()
        found[backend] = [out.detach(), final.detach(), *[leaf.grad for leaf in leaves]]
    for i, (one, other) in enumerate(zip(found["triton"], found["reference"], strict=True)):
        assert other is not None
        close(one, other.double(), f"number {i}", 5e-6)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, int, tuple[bool, ...], bool, bool]] = {
    # lengths, channels, taps, reverse, bias, silu
    "forwards": ((1, 2, 3, 33), 5, 4, (False,), True, True),
    "backwards": ((5, 1, 7), 3, 4, (True,), False, True),
    "both": ((33, 2, 35), 6, 3, (False, True), True, False),
    "wide": ((4, 1), 67, 2, (True, False), True, True),
    "empty": ((0, 3, 0, 0, 2), 2, 4, (False, True), False, False),
    "one_tap": ((2, 3), 3, 1, (False,), True, True),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def check_convolution(name: str, dtype: torch.dtype) -> None:
    from ercfusion.ops.scan.triton_conv import causal_conv_backward, causal_conv_forward

    lengths, width, taps, reverse, has_bias, silu = CONVOLUTIONS[name]
    torch.manual_seed(width)
    K, N = len(reverse), sum(lengths)
    x, weight = torch.randn(K, N, width).to(dtype), torch.randn(K, width, taps)
    bias = torch.randn(K, width) if has_bias else None
    grad = torch.randn(K, N, width).to(dtype)
    rest = (torch.tensor([0, *itertools.accumulate(lengths)]), lengths, reverse, silu)
    out = causal_conv_forward(guarded(x), guarded(weight), bias, *rest)
    assert out.dtype == dtype
    found = causal_conv_backward(guarded(grad), guarded(x), guarded(weight), bias, *rest)

    leaves = [y.double().requires_grad_() for y in (x, weight, bias) if y is not None]
    rows = []
    for k, back in enumerate(reverse):
        shift = leaves[2][k] if has_bias else None
        rows.append(causal_conv_reference(leaves[0][k], leaves[1][k], shift, lengths, back, "silu" if silu else None))
    exact = torch.stack(rows)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}[dtype]  # the interpreter cuts off
    close(out, exact.detach(), "out", tolerance)
    expected = torch.autograd.grad(exact, leaves, grad.double())
    # Weights are float32 here, and so are their gradients.
    for what, one, other in zip(("x", "weight", "bias"), found, expected, strict=False):
        close(one, other, what, tolerance if what == "x" else 2e-6)
    assert (found[2] is None) == (bias is None)


def test_what_is_declined() -> None:
    from ercfusion.ops.scan.triton_scan import TritonScan

    backend = TritonScan()
    inputs = make((2,), 3, 2)
    if not INTERPRETED:
        assert "cpu" in str(backend.declines(inputs))
    backend.interpreted = True
    assert backend.declines(inputs) is None
    assert "delta is torch.float64" in str(backend.declines(inputs._replace(delta=inputs.delta.double())))
    assert "A is torch.complex64" in str(backend.declines(inputs._replace(A=inputs.A.to(torch.complex64))))
    assert "at most 256 states; found 257" in str(backend.declines(inputs._replace(A=torch.zeros(2, 3, 257))))
    with pytest.raises(ValueError, match="segment must be at least 1; found 0"):
        TritonScan(segment=0)


def test_convolution_says_what_does_not_fit() -> None:
    from ercfusion.ops.scan.triton_conv import causal_conv_backward, causal_conv_forward

    x, weight, offsets = torch.zeros(1, 3, 2), torch.zeros(1, 2, 4), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"needs weight \(1, 2, W\)"):
        causal_conv_forward(x, weight[:, :1], None, offsets, (3,), (False,), True)
    with pytest.raises(ValueError, match="lengths of 4 utterances do not fit"):
        causal_conv_forward(x, weight, None, offsets, (4,), (False,), True)
    with pytest.raises(ValueError, match="weight must be float64, float32"):
        causal_conv_forward(x, weight.int(), None, offsets, (3,), (False,), True)
    with pytest.raises(ValueError, match=r"grad must be \(1, 3, 2\)"):
        causal_conv_backward(x[:, :2], x, weight, None, offsets, (3,), (False,), True)
    if not INTERPRETED:
        with pytest.raises(ValueError, match="must be on CUDA; found cpu"):
            causal_conv_forward(x, weight, None, offsets, (3,), (False,), True)


# Compilation for a GPU that need not be there


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What would have been launched: kernels with their arguments."""
    from ercfusion.ops.scan import triton_conv, triton_scan

    seen: list[tuple[Any, dict[str, Any]]] = []

    def scan(call: Any, kernel: Any, segments: int, **more: Any) -> None:
        known = call.arguments | more
        seen.append((kernel, {name: known[name] for name in kernel.arg_names}))

    def conv(kernel: Any, arguments: dict[str, Any], directions: int) -> None:
        seen.append((kernel, {name: arguments[name] for name in kernel.arg_names}))

    monkeypatch.setattr(triton_scan._Call, "_launch", scan)
    monkeypatch.setattr(triton_conv, "_launch", conv)
    monkeypatch.setattr(triton_conv, "_on_device", lambda x: True)
    return seen


def compile_kernel(kernel: Any, arguments: dict[str, Any], warps: int) -> Any:
    """For compute capability 9.0, as a launch with these arguments would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments.values(), strict=True)):
        if isinstance(value, Tensor):
            signature[parameter.name] = names[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("states", "dtype"),
    [(16, torch.float32), (16, torch.bfloat16), (16, torch.float16), (1, torch.float32), (64, torch.float32)],
)
def test_compiles_for_a_gpu(
    states: int,
    dtype: torch.dtype,
    launches: list[tuple[Any, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "ptxas").exists():
        pytest.skip("Triton came without its assembler")
    from ercfusion.ops.scan.triton_scan import TritonScan

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    inputs = make((6, 2), 512, states, dtype=dtype)
    for backend in (TritonScan(), TritonScan(longest=2, segment=2)):
        backend.forward(*inputs)
        backend.backward(torch.zeros_like(inputs.u), torch.zeros(2, 2, 512, states), *inputs)
    kernels = {kernel.__name__ for kernel, _ in launches}
    assert kernels == {"scan_kernel", "adjoint_kernel", "carry_kernel", "backward_kernel"}
    for kernel, arguments in launches:
        made = compile_kernel(kernel, arguments, 1)
        assert len(made.asm["cubin"]) > 1000
        assert made.metadata.shared <= 4096
        if (tools / "cuobjdump").exists():
            file = tmp_path / "kernel.cubin"
            file.write_bytes(made.asm["cubin"])
            said = subprocess.run([tools / "cuobjdump", "-res-usage", file], capture_output=True, text=True).stdout
            (stack,) = re.findall(r"STACK:(\d+)", said)
            # What does not fit in registers: nothing but in the backward pass, and there little beside its 255.
            assert int(stack) <= (384 if kernel.__name__ == "backward_kernel" else 64), (kernel.__name__, said)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_compiles_for_a_gpu(
    dtype: torch.dtype,
    launches: list[tuple[Any, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import triton

    from ercfusion.ops.scan import triton_conv

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("Triton came without its assembler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, weight, bias = torch.zeros(2, 8, 512, dtype=dtype), torch.zeros(2, 512, 4), torch.zeros(2, 512)
    rest = (torch.tensor([0, 6, 8]), (6, 2), (False, True), True)
    triton_conv.causal_conv_forward(x, weight, bias, *rest)
    triton_conv.causal_conv_backward(x, x, weight, bias, *rest)
    assert [kernel.__name__ for kernel, _ in launches] == ["forward_kernel", "backward_kernel"]
    for kernel, arguments in launches:
        assert len(compile_kernel(kernel, arguments, 4).asm["cubin"]) > 1000
