from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.packing import Packing
from ercfusion.ops.conv import _causal_conv, causal_conv, causal_conv_reference

LENGTHS = (1, 5, 2, 3, 11, 4)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def assert_same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor | None]) -> None:
    """Values, and the gradients of a random projection to all leaves."""
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0.1
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inputs = [leaf for leaf in leaves if leaf is not None]
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True, retain_graph=True)
    ours = torch.autograd.grad((found * weight).sum(), inputs, allow_unused=True, retain_graph=True)
    for one, other, leaf in zip(ours, theirs, inputs):
        other = torch.zeros_like(leaf) if other is None else other
        torch.testing.assert_close(torch.zeros_like(leaf) if one is None else one, other)


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("bias", "activation", "initial"), list(itertools.product([0, 1], [None, "silu"], [0, 1])))
def test_equals_the_loop(taps: int, reverse: bool, bias: int, activation: str | None, initial: int) -> None:
    packing = Packing(LENGTHS)
    x, weight = random(packing.total, 3), random(3, taps, seed=1)
    b = random(3, seed=2) if bias else None
    earlier = random(packing.size, taps - 1, 3, seed=3) if initial else None
    expected = causal_conv_reference(x, weight, b, LENGTHS, reverse, activation, earlier)
    found = causal_conv(x, weight, b, packing, None, reverse, activation, earlier)
    assert_same(found, expected, [x, weight, b, earlier])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_loop_equals_torch(reverse: bool) -> None:
    x, weight, bias = random(9, 3), random(3, 4, seed=1), random(3, seed=2)
    way = x.flip(0) if reverse else x
    padded = F.conv1d(F.pad(way.t()[None], (3, 0)), weight[:, None], bias, groups=3)[0].t()
    expected = padded.flip(0) if reverse else padded
    assert_same(causal_conv_reference(x, weight, bias, None, reverse), expected, [x, weight, bias])
    assert_same(causal_conv(x, weight, bias, reverse=reverse), expected, [x, weight, bias])


@pytest.mark.parametrize("shared", [(), ("x",), ("weight", "bias"), ("x", "weight", "bias", "initial")])
def test_both_directions_in_one_call(shared: tuple[str, ...]) -> None:
    packing = Packing(LENGTHS)
    shapes = {"x": (packing.total, 3), "weight": (3, 4), "bias": (3,), "initial": (packing.size, 3, 3)}
    given = {
        name: random(*(() if name in shared else (2,)), *shape, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    found = causal_conv(**given, offsets=packing, reverse="both", activation="silu")
    single = [{name: value if name in shared else value[k] for name, value in given.items()} for k in range(2)]
    expected = torch.stack(
        [
            causal_conv_reference(**each, lengths=LENGTHS, reverse=k == 1, activation="silu")
            for k, each in enumerate(single)
        ]
    )
    assert_same(found, expected, list(given.values()))


@pytest.mark.parametrize("reverse", [False, True, "both"])
def test_padded(reverse: Any) -> None:
    packing = Packing(LENGTHS)
    x, weight, bias = random(packing.total, 3), random(3, 4, seed=1), random(3, seed=2)
    earlier = random(packing.size, 3, 3, seed=3)
    expected = causal_conv(x, weight, bias, packing, None, reverse, "silu", earlier)
    padded = packing.pad(x, fill=float("nan")).detach().requires_grad_()
    found = causal_conv(padded, weight, bias, None, packing.length, reverse, "silu", earlier)
    places = packing.mask.expand(found.shape[:-1])
    assert torch.equal(found[places].view(expected.shape), expected)
    assert bool((found[~places] == 0).all())
    found.square().sum().backward()
    other = [leaf.grad.clone() for leaf in (weight, bias, earlier) if leaf.grad is not None]
    for leaf in (weight, bias, earlier):
        leaf.grad = None
    expected.square().sum().backward()
    assert x.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(packing.pack(padded.grad), x.grad)
    assert bool((padded.grad[~packing.mask] == 0).all())
    for one, leaf in zip(other, (weight, bias, earlier), strict=True):
        torch.testing.assert_close(one, leaf.grad)
    alone = causal_conv(x[:4][None], weight, bias, reverse=reverse)
    assert torch.equal(alone, causal_conv(x[:4], weight, bias, reverse=reverse).unsqueeze(-3))


def test_gradcheck() -> None:
    packing = Packing((1, 4, 2))
    x, weight, bias = random(2, packing.total, 2), random(2, 2, 3, seed=1), random(2, 2, seed=2)
    assert torch.autograd.gradcheck(
        lambda *each: causal_conv(*each, offsets=packing, reverse="both", activation="silu"), (x, weight, bias)
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_leaks_from_another_conversation(reverse: bool) -> None:
    """Not even a NaN, which no mask that multiplies would hold back."""
    packing = Packing(LENGTHS)
    x, weight = random(packing.total, 3).detach(), random(3, 4, seed=1).detach()
    clean = causal_conv(x, weight, offsets=packing, reverse=reverse)
    poisoned = x.clone()
    poisoned[packing.conversation == 2] = float("nan")
    other = packing.conversation != 2
    found = causal_conv(poisoned, weight, offsets=packing, reverse=reverse)
    assert torch.equal(found[other], clean[other])
    assert bool(found[~other].isnan().all())
    poisoned.requires_grad_()
    causal_conv(poisoned, weight, offsets=packing, reverse=reverse, activation="silu").sum().backward()
    assert poisoned.grad is not None
    assert bool(poisoned.grad[other].isfinite().all())


def test_chunks_with_the_earlier_inputs_handed_on() -> None:
    x, weight, bias = random(10, 3), random(3, 4, seed=1), random(3, seed=2)
    whole = causal_conv(x, weight, bias)
    earlier = torch.zeros(1, 3, 3, dtype=torch.float64)
    for start, stop in ((0, 1), (1, 3), (3, 8), (8, 10)):
        found = causal_conv(x[start:stop], weight, bias, initial=earlier)
        torch.testing.assert_close(found, whole[start:stop])
        earlier = torch.cat([earlier, x[None, start:stop]], 1)[:, -3:]


def test_half_precision_is_summed_in_single() -> None:
    packing = Packing((30, 7))
    x, weight, bias = (random(*shape, seed=s).detach() for s, shape in enumerate([(37, 5), (5, 4), (5,)]))
    low = x.bfloat16()
    found = causal_conv(low, weight.float(), bias.float(), packing)
    assert found.dtype == torch.bfloat16
    exact = causal_conv_reference(low.double(), weight, bias, packing.lengths)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_conv(low, weight.float(), bias.float(), packing), found)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype: torch.dtype, earlier: bool) -> None:
    """What both directions share gets the exact gradient rounded once, not the sum of two rounded ones."""
    packing = Packing((30, 7))
    shapes = {"x": (37, 5), "weight": (5, 4), "bias": (5,)} | ({"initial": (2, 3, 5)} if earlier else {})
    given = {name: random(*shape, seed=len(name)).detach().to(dtype) for name, shape in shapes.items()}
    direction = random(2, 37, 5, seed=9).detach().to(dtype)
    gradients = []
    for wide in (dtype, torch.float64):
        leaves = {name: value.to(wide).requires_grad_() for name, value in given.items()}
        y = causal_conv(**leaves, offsets=packing, reverse="both", activation="silu")
        assert y.dtype == wide
        gradients.append(torch.autograd.grad(y, list(leaves.values()), direction.to(wide)))
    for name, found, exact in zip(given, *gradients, strict=True):
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * exact.abs().max() + 1e-7
        assert ((found.double() - exact).abs() <= bound).all(), name


def test_uninitialised_memory_is_never_read() -> None:
    packing = Packing(LENGTHS)
    x, weight = random(packing.total, 3), random(3, 4, seed=1)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        y = causal_conv(x, weight, offsets=packing, reverse="both", activation="silu")
        gradients = torch.autograd.grad(y.sum(), [x, weight])
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert all(bool(value.isfinite().all()) for value in (y, *gradients))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("known", first(1, ["both", "offsets", "lengths"]))
def test_operator_is_registered_correctly(bias: bool, known: str) -> None:
    packing = Packing((1, 4, 2))
    x, weight = random(2, packing.total, 3), random(2, 3, 4, seed=1)
    shift = random(2, 3, seed=2) if bias else None
    offsets, lengths = packing.offsets if known != "lengths" else None, packing.lengths if known != "offsets" else None
    arguments = (x, weight, shift, offsets, lengths, (False, True), True)
    torch.library.opcheck(_causal_conv, arguments)


KERNELS = """
import torch
from ercfusion.ops import conv
from ercfusion.batch.packing import Packing

generator = torch.Generator().manual_seed(0)
packing = Packing((1, 5, 2, 3, 11, 4))

def leaf(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

x, weight, bias = leaf(26, 5), leaf(2, 5, 4), leaf(2, 5)

def run(given, bias):
    leaves = [each for each in (x, weight, bias) if each is not None]
    y = conv.causal_conv(x, weight, bias, given, reverse="both", activation="silu")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

for given in (packing, packing.offsets):
    for shift in (bias, None):
        conv._kernels = lambda x: None
        expected = run(given, shift)
        conv._kernels = lambda x: conv._triton_kernels()
        torch.testing.assert_close(run(given, shift), expected)
"""


@pytest.mark.slow
def test_triton_kernels_are_called_rightly() -> None:
    """On the CPU, by Triton's interpreter, which has to be chosen before Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["packing", "offsets", "padded"])
def test_compiles_without_a_graph_break(form: str) -> None:
    packing = Packing((1, 4, 2))
    x, weight = random(packing.total, 3), random(3, 4, seed=1)
    offsets = packing if form == "packing" else packing.offsets

    def function(x: Tensor, weight: Tensor) -> Tensor:
        if form == "padded":
            return causal_conv(x.unflatten(0, (1, 7)), weight, reverse="both", activation="silu").sum(0)
        return causal_conv(x * 2, weight, offsets=offsets, reverse="both", activation="silu").sum(0)

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x, weight), function(x, weight), [x, weight])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation must be None or 'silu', found 'relu'"),
        ({"reverse": "neither"}, "reverse must be False, True or 'both', found 'neither'"),
        ({"lengths": [7]}, "lengths belong to a padded batch"),
        ({"x": torch.zeros(7)}, r"packed x must be \(N, D\).*found \(7,\)"),
        ({"x": torch.zeros(6, 3)}, "x has 6 utterances, the offsets have 7"),
        ({"weight": torch.zeros(4, 4)}, "x has 3 channels, weight has 4"),
        ({"weight": torch.zeros(4)}, r"weight must have 2 dimensions; found shape \(4,\)"),
        ({"bias": torch.zeros(2)}, "x has 3 channels, bias has 2"),
        ({"initial": torch.zeros(2, 3, 3)}, r"initial must be \(B, W - 1, D\) = \(3, 3, 3\), found \(2, 3, 3\)"),
        ({"x": torch.zeros(2, 4, 3), "offsets": None, "lengths": [5, 1]}, "lengths must be 2 numbers from 1 to 4"),
        ({"x": torch.zeros(1, 2, 4, 3), "offsets": None}, r"padded x must be \(B, L, D\)"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    fitting = {"x": torch.zeros(7, 3), "weight": torch.zeros(3, 4), "offsets": Packing((1, 4, 2)).offsets}
    causal_conv(**fitting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        causal_conv(**{**fitting, **change})
