from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing
from ercfusion.layers.mamba import BidirectionalMamba, Mamba

LENGTHS = (1, 6, 2, 9, 4)
SMALL = {"d_state": 3, "d_conv": 4, "dt_rank": 2}


def perturbed(module: nn.Module) -> Any:
    """In float64, with all parameters moved, so that none is special."""
    module.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def block_by_hand(state: dict[str, Tensor], x: Tensor, reverse: bool) -> Tensor:
    """The block literally, for one conversation (L, d), number by number where it is a recurrence."""
    x = x.flip(0) if reverse else x
    E, S = state["A_log"].shape
    taps = state["conv1d.weight"]
    W, R = taps.shape[2], state["dt_proj.weight"].shape[1]
    h = torch.zeros(E, S, dtype=x.dtype)
    rows: list[Tensor] = []
    inputs: list[Tensor] = []
    for v in x:
        xz = F.linear(v, state["in_proj.weight"], state.get("in_proj.bias"))
        inputs.append(xz[:E])
        u = state.get("conv1d.bias", torch.zeros(E, dtype=x.dtype))
        for j in range(min(W, len(inputs))):
            u = u + taps[:, 0, W - 1 - j] * inputs[-1 - j]
        u = u / (1 + (-u).exp())
        projected = state["x_proj.weight"] @ u
        raw = state["dt_proj.weight"] @ projected[:R] + state["dt_proj.bias"]
        step = (1 + raw.exp()).log()
        B, C = projected[R : R + S], projected[R + S :]
        new = []
        y = []
        for e in range(E):
            new.append((step[e] * -state["A_log"][e].exp()).exp() * h[e] + step[e] * B * u[e])
            y.append((C * new[e]).sum() + state["D"][e] * u[e])
        h = torch.stack(new)
        z = xz[E:]
        rows.append(
            F.linear(torch.stack(y) * z / (1 + (-z).exp()), state["out_proj.weight"], state.get("out_proj.bias"))
        )
    out = torch.stack(rows)
    return out.flip(0) if reverse else out


def by_hand(module: Mamba, x: Tensor, reverse: bool = False) -> Tensor:
    state = dict(module.named_parameters())
    return torch.cat([block_by_hand(state, part, reverse) for part in x.split(LENGTHS)])


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours = torch.autograd.grad((found * weight).sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"conv_bias": False, "d_conv": 2, "expand": 1.5}, {"d_conv": 1}]
)
def test_equals_the_block_by_hand(reverse: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = perturbed(Mamba(4, **{**SMALL, **options}))
    x = random(sum(LENGTHS), 4)
    packing = Packing(LENGTHS)
    expected = by_hand(module, x, reverse)
    assert_same(module(x, packing, reverse=reverse), expected, [x, *module.parameters()])
    torch.testing.assert_close(module(x, packing.offsets, reverse=reverse), expected)
    padded = packing.pad(x.detach(), fill=float("nan"))
    found = module(padded, lengths=packing.length, reverse=reverse)
    torch.testing.assert_close(packing.pack(found), expected)
    assert bool((found[~packing.mask] == 0).all())


@pytest.mark.parametrize("combine", ["add", "concat", "gate"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_both_directions_are_two_blocks(combine: str, tied: bool, bias: bool) -> None:
    torch.manual_seed(0)
    module = perturbed(BidirectionalMamba(4, tied=tied, combine=combine, bias=bias, conv_bias=not bias, **SMALL))
    assert len(list(module.children())) == (1 if tied else 2) + (combine != "add")
    x, packing = random(sum(LENGTHS), 4), Packing(LENGTHS)
    ahead = by_hand(module.forwards, x)
    back = by_hand(module.forwards if tied else module.backwards, x, reverse=True)
    if combine == "add":
        expected = ahead + back
    else:
        mixed = F.linear(torch.cat([ahead, back], 1), module.both.weight, module.both.bias)
        gate = 1 / (1 + (-mixed).exp())
        expected = mixed if combine == "concat" else gate * ahead + (1 - gate) * back
    assert_same(module(x, packing), expected, [x, *module.parameters()])
    padded = packing.pad(x.detach(), fill=float("nan"))
    torch.testing.assert_close(packing.pack(module(padded, lengths=LENGTHS)), expected)


@pytest.mark.parametrize("length", [1, 2])
def test_both_directions_of_few_utterances(length: int) -> None:
    """As many as there are directions: axes could be mistaken for one another."""
    torch.manual_seed(0)
    module = perturbed(BidirectionalMamba(2, d_state=2, expand=1, dt_rank=2))
    x = random(length, 2)
    state, other = (dict(part.named_parameters()) for part in (module.forwards, module.backwards))
    expected = block_by_hand(state, x, False) + block_by_hand(other, x, True)
    torch.testing.assert_close(module(x), expected)


def published_shapes(d: int, S: int, W: int, expand: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Mamba-1 layer as published checkpoints have them."""
    E, R = expand * d, math.ceil(d / 16)
    return {
        "A_log": (E, S),
        "D": (E,),
        "in_proj.weight": (2 * E, d),
        "conv1d.weight": (E, 1, W),
        "conv1d.bias": (E,),
        "x_proj.weight": (R + 2 * S, E),
        "dt_proj.weight": (E, R),
        "dt_proj.bias": (E,),
        "out_proj.weight": (d, E),
    }


@pytest.mark.parametrize("d", [8, 24])
def test_published_weights_load(d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = published_shapes(d, 16, 4, 2)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    module = Mamba(d)
    assert module.load_state_dict(state) == ([], [])
    exact = {name: value.double() for name, value in state.items()}
    x = random(7, d)
    found = module(x.detach().float())
    torch.testing.assert_close(found.double(), block_by_hand(exact, x, False), rtol=1e-4, atol=1e-4)


def test_initial_distributions() -> None:
    torch.manual_seed(0)
    module = Mamba(512, dt_min=0.002, dt_max=0.2)
    assert torch.equal(module.A_log[0].exp().round(), torch.arange(1.0, 17.0))
    assert bool((module.A_log == module.A_log[0]).all())
    assert bool((module.D == 1).all())
    steps = F.softplus(module.dt_proj.bias.detach()).log()
    assert steps.min() >= math.log(0.002) - 1e-3
    assert steps.max() <= math.log(0.2) + 1e-3
    # Even on a logarithmic scale: mean and deviation of a uniform distribution.
    assert abs(float(steps.mean()) - (math.log(0.002) + math.log(0.2)) / 2) < 0.1
    assert abs(float(steps.std()) - math.log(100) / math.sqrt(12)) < 0.1
    bound = module.dt_rank**-0.5
    assert module.dt_rank == 32
    assert 0.98 * bound < module.dt_proj.weight.abs().max() <= bound
    assert bool((Mamba(64, dt_init="constant", dt_scale=0.5).dt_proj.weight == 0.25).all())
    assert bool((F.softplus(Mamba(64, dt_min=1e-6, dt_max=1e-5).dt_proj.bias) > 0.99e-4).all())
    marked = {name for name, p in module.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}
    assert {name for name, p in module.named_parameters() if getattr(p, "_no_reinit", False)} == {"dt_proj.bias"}


def test_parameters_at_width_128() -> None:
    """One direction is about 0.12 million."""
    assert round(sum(p.numel() for p in Mamba(128).parameters()) / 1e6, 2) == 0.12


@pytest.mark.parametrize("options", [{}, {"d_conv": 1}, {"bias": True, "conv_bias": False}])
def test_steps_equal_the_whole(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = perturbed(Mamba(4, **{**SMALL, **options}))
    x = random(3, 7, 4)
    whole = module(x)
    state, rows = None, []
    for t in range(7):
        before = None if state is None else [part.clone() for part in state]
        y, new = module.step(x[:, t], state)
        if state is not None and before is not None:
            assert all(torch.equal(one, other) for one, other in zip(state, before, strict=True))
        state = new
        rows.append(y)
    assert_same(torch.stack(rows, 1), whole, [x, *module.parameters()])


def test_causal_to_the_last_bit() -> None:
    torch.manual_seed(0)
    module = Mamba(8)
    packing = Packing((7, 20))
    x = torch.randn(27, 8)
    other = torch.where(packing.position[:, None] > 5, torch.randn(27, 8), x)
    same = packing.position <= 5
    with torch.no_grad():
        assert torch.equal(module(x, packing)[same], module(other, packing)[same])
        assert not torch.equal(module(x, packing)[~same], module(other, packing)[~same])
        moved = module(x, packing, reverse=True) != module(other, packing, reverse=True)
        assert bool(moved[same].any())


def test_half_precision_keeps_the_recurrence_exact() -> None:
    torch.manual_seed(0)
    module = Mamba(8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(12, 8)
    with torch.no_grad():
        expected = module(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        mixed = module(x)
        stepped = torch.cat([module.step(x[:1])[0], mixed[1:]])
    assert mixed.dtype == torch.bfloat16
    scale = float(expected.abs().max())
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=0.03 * scale)
    torch.testing.assert_close(stepped[0].float(), expected[0], rtol=0, atol=0.03 * scale)
    module.bfloat16()
    kept = ("A_log", "D", "dt_proj.bias")
    for name, value in module.state_dict().items():
        assert value.dtype == (torch.float32 if name in kept else torch.bfloat16)
        if name in kept:
            assert torch.equal(value, before[name])
    module(x.bfloat16()).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in module.parameters())
    found = module(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * scale)
    assert all(value.dtype == torch.float64 for value in module.double().state_dict().values())


@pytest.mark.parametrize("both", first(1, [True, False]))
def test_compiles_without_a_graph_break(both: bool) -> None:
    torch.manual_seed(0)
    module = perturbed(BidirectionalMamba(4, **SMALL) if both else Mamba(4, **SMALL))
    x, packing = random(sum(LENGTHS), 4), Packing(LENGTHS)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x, packing), module(x, packing), [x, *module.parameters()])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state must be at least 1, found 0"),
        ({"expand": 0.1}, r"expand \* d_model must be at least 1, found 0"),
        ({"dt_rank": "half"}, "dt_rank must be a number or 'auto', found 'half'"),
        ({"dt_init": "zeros"}, "dt_init must be 'random' or 'constant', found 'zeros'"),
        ({"dt_min": 0.2}, "0 < dt_min <= dt_max, found 0.2 and 0.1"),
        ({"combine": "max"}, "combine must be one of add, concat, gate; found 'max'"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        (BidirectionalMamba if "combine" in options else Mamba)(4, **options)


def test_inputs_that_do_not_fit() -> None:
    for module in (Mamba(4), BidirectionalMamba(4)):
        with pytest.raises(ValueError, match="lengths belong to a padded batch"):
            module(torch.zeros(3, 4), lengths=[3])
        with pytest.raises(ValueError, match="a packing belongs to packed x"):
            module(torch.zeros(1, 3, 4), Packing([3]))
        with pytest.raises(ValueError, match=r"lengths must be 2 numbers from 1 to 3 .* found \[3, 4\]"):
            module(torch.zeros(2, 3, 4), lengths=[3, 4])
