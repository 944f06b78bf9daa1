"""The selective scan: every fast form against the loops, in values and in every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.ops import Packing
from ercfusion.ops.scan import backends, scan_reference, selective_scan
from ercfusion.ops.scan.interface import Reverse

FAST = ("torch", "native")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
LENGTHS = {
    "mixed": (3, 1, 33, 2, 31),
    "conversations": (110, 1, 129, 31, 128),
    "with_empty": (0, 5, 0, 2, 0),
    "one": (1,),
    "long": (1000, 3),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def need(backend: str) -> None:
    if backend == "native":
        from ercfusion.ops.scan.native import SOURCE, native

        if native.load(SOURCE)[0] is None:
            pytest.skip("no C compiler")


def make(
    lengths: tuple[int, ...],
    width: int = 6,
    states: int = 3,
    groups: int = 0,
    optional: tuple[str, ...] = OPTIONAL,
    directed: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments in packed form; those of ``directed`` have an axis of directions. ``groups`` 0 means none."""
    generator = torch.Generator().manual_seed(seed + sum(lengths) + width)
    N, B = sum(lengths), len(lengths)
    shapes = {
        "u": (N, width),
        "delta": (N, width),
        "A": (width, states),
        "B": (N, groups, states) if groups else (N, states),
        "C": (N, groups, states) if groups else (N, states),
        "D": (width,),
        "z": (N, width),
        "delta_bias": (width,),
        "initial_state": (B, width, states),
    }
    made = {}
    for name, shape in shapes.items():
        if name in OPTIONAL and name not in optional:
            continue
        whole = (2, *shape) if name in directed else shape
        x = torch.randn(whole, generator=generator, dtype=torch.float64)
        made[name] = (-x.exp() if name == "A" else x).to(dtype).requires_grad_()
    return made


def offsets_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def measure(tensors: dict[str, Tensor], final: bool = True, **settings: Any) -> dict[str, Tensor]:
    """Output, final state and all gradients of a random direction (the same one for the same shapes)."""
    out, state = selective_scan(**tensors, return_final_state=True, **settings)  # type: ignore[arg-type,misc]
    generator = torch.Generator().manual_seed(7)
    loss = (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
    if final:
        loss = loss + (state * torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state)).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return {"out": out.detach(), "final": state.detach(), **dict(zip(tensors, gradients, strict=True))}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest number of each result."""
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            found[name].double(),
            expected.double(),
            rtol=0,
            atol=tolerance * scale + 1e-300,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# The specification


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
def test_reference_gradients(softplus: bool, reverse: bool) -> None:
    """The loops' own gradients against differences of their values."""
    lengths = (3, 1)
    tensors = make(lengths, width=2, states=2, groups=1)
    if not softplus:  # without it steps of any sign would let states grow
        tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()
    canonical = [x.detach().unsqueeze(0).requires_grad_() for x in tensors.values()]

    def scan(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return scan_reference(*inputs, None, lengths, (reverse,), softplus)

    assert torch.autograd.gradcheck(scan, canonical)


def test_by_hand() -> None:
    """Two steps of one state, with numbers that can be followed on paper."""
    half = torch.tensor([[-0.5]], dtype=torch.float64).exp() * 0 - torch.log(torch.tensor([[2.0]], dtype=torch.float64))
    u, ones = torch.tensor([[3.0], [5.0]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    # exp(1 * -log 2) = 1/2: states 3 and 1.5 + 5; in reverse 5 and 2.5 + 3.
    forward, final = selective_scan(u, ones, half, ones, 2 * ones, return_final_state=True, backend="reference")
    torch.testing.assert_close(forward, torch.tensor([[6.0], [13.0]], dtype=torch.float64))
    assert final.item() == pytest.approx(6.5)
    backward = selective_scan(u, ones, half, ones, 2 * ones, reverse=True, backend="reference")
    torch.testing.assert_close(backward, torch.tensor([[11.0], [10.0]], dtype=torch.float64))


@pytest.mark.slow
def test_complex_states_are_conjugate_pairs() -> None:
    """A complex state gives what it and its conjugate would give together; gradients included."""
    lengths = (4, 2)
    tensors = make(lengths, optional=("D", "initial_state"), width=4, states=2)
    generator = torch.Generator().manual_seed(3)
    for name in ("A", "B", "C", "initial_state"):
        x = tensors[name].detach()
        imaginary = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        tensors[name] = torch.complex(x, imaginary).requires_grad_()
    settings: dict[str, Any] = {"delta_softplus": True, "offsets": offsets_of(lengths), "reverse": "both"}

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        out, final = selective_scan(**dict(zip(tensors, values, strict=True)), return_final_state=True, **settings)
        return out, final

    out, _ = scan(*tensors.values())
    assert out.dtype == torch.float64
    conjugated = {name: x.conj() if x.is_complex() else x for name, x in tensors.items()}
    torch.testing.assert_close(scan(*conjugated.values())[0], out)
    # A real A and everything else real, made complex, counts every state twice.
    real = {name: x.real if x.is_complex() else x for name, x in tensors.items() if name != "D"}
    double = {name: x.to(torch.complex128) if tensors[name].is_complex() else x for name, x in real.items()}
    torch.testing.assert_close(selective_scan(**double, **settings), 2 * selective_scan(**real, **settings))
    small = [x[:1] if name == "initial_state" else x for name, x in tensors.items()]
    settings["offsets"] = None
    assert torch.autograd.gradcheck(scan, small)
    with pytest.raises(ValueError, match="backend 'native' declines: it is for real tensors"):
        selective_scan(**tensors, offsets=offsets_of(lengths), backend="native")


# The fast forms

COMBINATIONS = [c for n in range(5) for c in itertools.combinations(OPTIONAL, n)]
# In the default run: none, each one, and all.
OPTIONS = [pytest.param(c, marks=[] if len(c) in (0, 1, 4) else pytest.mark.slow) for c in COMBINATIONS]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True, "both"])
@pytest.mark.parametrize("optional", OPTIONS)
def test_combinations(optional: tuple[str, ...], reverse: Reverse, backend: str) -> None:
    need(backend)
    lengths = LENGTHS["mixed"]
    for softplus in (False, True):
        tensors = make(lengths, optional=optional)
        if not softplus:
            tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()
        settings: dict[str, Any] = {
            "offsets": offsets_of(lengths),
            "reverse": reverse,
            "delta_softplus": softplus,
        }
        if "delta_bias" in tensors and not softplus:
            tensors["delta_bias"] = tensors["delta_bias"].detach().abs().requires_grad_()
        wanted = measure(tensors, **settings, backend="reference")
        assert_near(measure(tensors, **settings, backend=backend), wanted, 1e-13)
        single = {name: x.detach().float().requires_grad_() for name, x in tensors.items()}
        assert_near(measure(single, **settings, backend=backend), wanted, 3e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("shape", "width"),
    [
        pytest.param(shape, width, marks=[pytest.mark.slow] if (shape, width) == ("long", 33) else [])
        for shape in LENGTHS
        for width in ((5, 33) if sum(LENGTHS[shape]) > 100 else (4, 5, 17, 33, 131))
    ],
)
def test_lengths_and_widths(shape: str, width: int, backend: str) -> None:
    """Odd widths end within a vector, 131 in a second block; lengths cross the chunks of the backward pass."""
    need(backend)
    lengths = LENGTHS[shape]
    tensors = make(lengths, width=width, states=2)
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": "both", "delta_softplus": True}
    wanted = measure(tensors, **settings, backend="reference")
    assert_near(measure(tensors, **settings, backend=backend), wanted, 1e-12)
    single = {name: x.detach().float().requires_grad_() for name, x in tensors.items()}
    assert_near(measure(single, **settings, backend=backend), wanted, 1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_many_states(backend: str) -> None:
    """So many that a chunk of the backward pass has few steps."""
    need(backend)
    lengths = (50, 9)
    tensors = make(lengths, width=4, states=90)
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": True, "delta_softplus": True}
    wanted = measure(tensors, **settings, backend="reference")
    assert_near(measure(tensors, **settings, backend=backend), wanted, 1e-12)


@pytest.mark.parametrize("backend", FAST)
def test_stretches_of_the_torch_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """States kept for two steps at a time give the same gradients as all kept."""
    need(backend)
    lengths = LENGTHS["mixed"]
    tensors = make(lengths)
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": "both", "delta_softplus": True}
    wanted = measure(tensors, **settings, backend=backend)
    monkeypatch.setattr("ercfusion.ops.scan.torch_scan.RECOMPUTED", 2 * 2 * 5 * 2 * 6 * 3)
    assert_near(measure(tensors, **settings, backend=backend), wanted, 1e-14)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("directed", [("u", "A"), ("delta", "B", "C", "z"), (*OPTIONAL,), ("u", "delta", "B")])
@pytest.mark.parametrize("groups", [0, 2, 3])
def test_directions_are_two_scans(groups: int, directed: tuple[str, ...], backend: str) -> None:
    """Both directions in one call equal two calls; what is shared gets the sum of their gradients."""
    need(backend)
    lengths = (4, 1, 7)
    tensors = make(lengths, width=12, groups=groups, directed=directed)
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "delta_softplus": True, "backend": backend}
    found = measure(tensors, **settings, reverse="both")
    leaves = list(tensors.values())
    parts = []
    for k in range(2):
        chosen = {name: x[k] if name in directed else x for name, x in tensors.items()}
        parts.append(selective_scan(**chosen, **settings, reverse=k == 1, return_final_state=True))
    out, final = (torch.stack(part) for part in zip(*parts, strict=True))
    generator = torch.Generator().manual_seed(7)
    loss = (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum()
    loss = loss + (final * torch.randn(final.shape, generator=generator, dtype=torch.float64)).sum()
    wanted = dict(zip(tensors, torch.autograd.grad(loss, leaves), strict=True))
    assert_near(found, {"out": out.detach(), "final": final.detach(), **wanted}, 1e-13)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_static_and_unequal_groups(backend: str) -> None:
    """B the same for all utterances, C in groups: as if both were written out for every channel."""
    need(backend)
    lengths = (5, 2)
    tensors = make(lengths, width=12, groups=3)
    static = torch.randn(1, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors["B"] = static.requires_grad_()
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "delta_softplus": True, "reverse": "both"}
    if backend == "native":
        with pytest.raises(ValueError, match="at least 4 channels in a group"):
            selective_scan(**tensors, **settings, backend=backend)
        tensors["B"] = static.detach()[:, :3].expand(7, 3, 3).requires_grad_()
    found = measure(tensors, **settings, backend=backend)
    whole = {**tensors}
    if backend != "native":
        whole["B"] = tensors["B"].expand(7, 12, 3)
        whole["C"] = tensors["C"].repeat_interleave(4, 1)
    out, final = selective_scan(**whole, **settings, return_final_state=True, backend="reference")  # type: ignore[misc]
    generator = torch.Generator().manual_seed(7)
    loss = (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum()
    loss = loss + (final * torch.randn(final.shape, generator=generator, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    wanted = dict(zip(tensors, gradients, strict=True))
    assert_near(found, {"out": out.detach(), "final": final.detach(), **wanted}, 1e-13)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True, "both"])
def test_packed_equals_padded(reverse: Reverse, backend: str) -> None:
    """Padding is full of NaN: it is not read, and results and gradients are 0 there."""
    need(backend)
    lengths = (3, 0, 7, 1)
    packing = Packing((3, 7, 1))
    tensors = make(lengths, width=5)
    wanted = measure(tensors, offsets=offsets_of(lengths), delta_softplus=True, reverse=reverse, backend=backend)
    per_token = ("u", "delta", "z", "B", "C")
    real = torch.arange(8) < torch.tensor(lengths)[:, None]

    def pad(x: Tensor) -> Tensor:
        wide = torch.full((4, 8, *x.shape[1:]), torch.nan, dtype=x.dtype)
        return wide.masked_scatter(real.view(4, 8, *[1] * (x.ndim - 1)), x.detach()).requires_grad_()

    padded = {name: pad(x) if name in per_token else x for name, x in tensors.items()}
    for given in (torch.tensor(lengths), lengths):
        found = selective_scan(**padded, lengths=given, delta_softplus=True, reverse=reverse, backend=backend)
        assert torch.equal(found[..., real, :], wanted["out"])
        assert torch.equal(found[..., ~real, :], torch.zeros_like(found[..., ~real, :]))
    found.sum().backward()
    for name in per_token:
        assert torch.equal(padded[name].grad[~real], torch.zeros_like(padded[name].grad[~real]))
        assert bool(padded[name].grad[real].isfinite().all())
    # All of full length, where nothing needs to be moved; and a Packing instead of offsets.
    whole = make((4, 4), width=5, optional=("z",))
    square = {name: x.detach().unflatten(0, (2, 4)) if name in per_token else x for name, x in whole.items()}
    flat = selective_scan(**whole, offsets=torch.tensor([0, 4, 8]), reverse=reverse, backend=backend)
    assert torch.equal(selective_scan(**square, reverse=reverse, backend=backend).flatten(-3, -2), flat)
    some = make(packing.lengths)
    left = selective_scan(**some, offsets=packing, backend=backend)
    assert torch.equal(left, selective_scan(**some, offsets=packing.offsets.int(), backend=backend))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
def test_state_is_handed_on(reverse: bool, backend: str) -> None:
    """Two halves, the state passed from one to the other, equal the whole: values and gradients."""
    need(backend)
    lengths, cut = (40,), 13
    tensors = make(lengths)
    settings: dict[str, Any] = {"delta_softplus": True, "reverse": reverse, "backend": backend}
    wanted = measure(tensors, **settings)
    per_token = ("u", "delta", "z", "B", "C")
    state, outputs = tensors["initial_state"], {}
    for part in (slice(cut, None), slice(0, cut)) if reverse else (slice(0, cut), slice(cut, None)):
        piece = {name: x[part] if name in per_token else x for name, x in tensors.items()}
        piece["initial_state"] = state
        outputs[part.start], state = selective_scan(**piece, **settings, return_final_state=True)
    out = torch.cat([outputs[0], outputs[cut]])
    generator = torch.Generator().manual_seed(7)
    loss = (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum()
    loss = loss + (state * torch.randn(state.shape, generator=generator, dtype=torch.float64)).sum()
    gradients = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))
    assert_near({"out": out.detach(), "final": state.detach(), **gradients}, wanted, 1e-13)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alone_and_in_any_batch(dtype: torch.dtype, backend: str) -> None:
    """A conversation's output, state and token gradients are the same bits whatever stands beside it."""
    need(backend)
    lengths = (9, 140, 1, 33)
    tensors = make(lengths, width=35, states=5, dtype=dtype)
    settings: dict[str, Any] = {"delta_softplus": True, "reverse": "both", "backend": backend}
    weight = torch.randn(2, sum(lengths), 35, generator=torch.Generator().manual_seed(2)).to(dtype)

    def run(chosen: list[int]) -> list[dict[str, Tensor]]:
        rows = [slice(sum(lengths[:b]), sum(lengths[: b + 1])) for b in chosen]
        per_token = ("u", "delta", "z", "B", "C")
        picked = {name: torch.cat([x[r] for r in rows]) if name in per_token else x for name, x in tensors.items()}
        picked["initial_state"] = tensors["initial_state"][chosen]
        picked = {name: x.detach().requires_grad_() for name, x in picked.items()}
        sizes = tuple(lengths[b] for b in chosen)
        out, final = selective_scan(**picked, offsets=offsets_of(sizes), return_final_state=True, **settings)
        ((out * torch.cat([weight[:, r] for r in rows], 1)).sum() + final.sum()).backward()
        parts = {name: picked[name].grad.split(sizes) for name in per_token}
        parts |= {"out": out.split(sizes, 1), "final": final.unbind(1), "initial": picked["initial_state"].grad}
        return [{name: part[i].detach() for name, part in parts.items()} for i in range(len(chosen))]

    together = run([0, 1, 2, 3])
    for chosen in ([1], [3, 0], [2, 1, 0, 3]):
        for b, found in zip(chosen, run(chosen), strict=True):
            for name, value in found.items():
                if backend == "native":
                    assert torch.equal(value, together[b][name]), name
                else:  # torch's matrix products may use another order for another shape
                    near = 1e-5 if dtype == torch.float32 else 1e-13
                    torch.testing.assert_close(value, together[b][name], rtol=near, atol=near, msg=name)


@pytest.mark.parametrize("backend", FAST)
def test_poisoned_memory(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read that was not written: memory without content is full of NaN here."""
    need(backend)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x.fill_(255 if x.dtype == torch.uint8 else -(2**30))

    lengths = LENGTHS["mixed"]
    tensors = make(lengths, width=35)
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": "both", "delta_softplus": True}
    wanted = measure(tensors, **settings, backend=backend)
    if backend == "native":
        from ercfusion.ops.scan import native

        monkeypatch.setattr(native._local, "buffer", None, raising=False)
    monkeypatch.setattr(torch, "empty", poisoned)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with it, torch fills what it allocates itself
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        found = measure(tensors, **settings, backend=backend)
    finally:
        torch.use_deterministic_algorithms(before)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    """Rounded at the border only: float32 results of the rounded inputs, rounded once."""
    need(backend)
    lengths = LENGTHS["mixed"]
    exact = make(lengths, dtype=torch.float32)
    halved = ("u", "delta", "B", "C", "z")
    mixed = {name: x.detach().to(dtype) if name in halved else x.detach() for name, x in exact.items()}
    settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": "both", "delta_softplus": True}
    out, final = selective_scan(**mixed, **settings, backend=backend, return_final_state=True)  # type: ignore[misc]
    wide = {name: x.float() for name, x in mixed.items()}
    wanted, state = selective_scan(**wide, **settings, backend=backend, return_final_state=True)  # type: ignore[misc]
    assert out.dtype == dtype
    assert final.dtype == torch.float32
    assert torch.equal(out, wanted.to(dtype))
    assert torch.equal(final, state)
    leaves = {name: x.requires_grad_() for name, x in mixed.items()}
    selective_scan(**leaves, **settings, backend=backend).float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype and x.grad.isfinite().all() for x in leaves.values())


def assert_rounded(found: Tensor, exact: Tensor, name: str) -> None:
    """``found`` is ``exact`` rounded once to its dtype, but for what float32 cannot resolve of the whole."""
    info = torch.finfo(found.dtype)
    bound = info.eps / 2 * exact.abs() + 2e-6 * exact.abs().max() + info.smallest_normal * info.eps / 2
    excess = (found.double() - exact).abs() / bound
    assert excess.max() <= 1, f"{name}: {float(excess.max()):.1f} times the bound"


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("reverse", [False, "both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype: torch.dtype, reverse: Reverse, backend: str) -> None:
    """Every gradient is the exact one rounded once, also of what directions, utterances and groups share."""
    need(backend)
    lengths = LENGTHS["mixed"]
    forms: list[dict[str, Tensor]] = [make(lengths, width=12, states=8, dtype=dtype)]
    grouped = make(lengths, width=12, states=8, groups=3, dtype=dtype)
    if backend == "native":
        forms.append(grouped)  # it has no B for every channel
    else:
        static = {"B": make((12,), states=8, dtype=dtype)["B"].detach()[None].requires_grad_()}
        forms.append({**grouped, **static})
    for tensors in forms:
        exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        settings: dict[str, Any] = {"offsets": offsets_of(lengths), "reverse": reverse, "delta_softplus": True}
        shape = (2, sum(lengths), 12) if reverse == "both" else (sum(lengths), 12)
        direction = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        out = selective_scan(**tensors, **settings, backend=backend)
        wanted = selective_scan(**exact, **settings, backend="reference")
        assert_rounded(out.detach(), wanted.detach(), "out")  # type: ignore[union-attr]
        found = torch.autograd.grad(out, list(tensors.values()), direction)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(wanted, list(exact.values()), direction.double())  # type: ignore[arg-type]
        for name, one, other in zip(tensors, found, gradients, strict=True):
            assert one.dtype == dtype
            assert_rounded(one, other, name)


@pytest.mark.parametrize("given", ["offsets", "lengths"])
def test_shared_tensors_are_expanded_inside(given: str) -> None:
    """B for all utterances, packed or padded (one conversation of one utterance and an empty one too)."""
    for sizes in ((2, 3), (1,), (0,), (0, 1)):
        N, L = sum(sizes), max(*sizes, 1)
        padded = given == "lengths"
        shape = (len(sizes), L) if padded else (N,)
        u, A, B = torch.randn(*shape, 4), -torch.rand(4, 3), torch.randn(*[1] * len(shape), 4, 3, requires_grad=True)
        C = torch.randn(*shape, 3)
        more: dict[str, Any] = {"lengths": sizes} if padded else {"offsets": offsets_of(sizes)}
        out = selective_scan(u, u, A, B, C, delta_softplus=True, **more, reverse="both")
        written = B.expand(*shape, 4, 3)
        wanted = selective_scan(u, u, A, written, C, delta_softplus=True, **more, reverse="both", backend="reference")
        torch.testing.assert_close(out, wanted)
        gradients = [torch.autograd.grad(y.sum(), B)[0] for y in (out, wanted)]  # type: ignore[union-attr]
        torch.testing.assert_close(*gradients)


KINDS = {"infinite": torch.inf, "negative": -torch.inf, "not_a_number": torch.nan}


@pytest.mark.slow
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", *OPTIONAL])
def test_infinities_and_not_a_number(name: str, kind: str, backend: str) -> None:
    """Values and gradients are finite where the reference's are, and else the same kind of not finite.

    But for the gradients of B and C, which are sums over channels: infinite in one backend can be NaN in another.
    """
    need(backend)
    for optional, reverse in ((OPTIONAL, False), ((), False), (("z",), "both"), (("D", "initial_state"), "both")):
        if name in OPTIONAL and name not in optional:
            continue
        for last, states in ((False, 4), (True, 4), (False, 1)):
            tensors = make((5, 0, 7), width=6, states=states, optional=optional, dtype=torch.float32)
            with torch.no_grad():
                tensors[name].view(-1)[-1 if last else tensors[name].numel() // 2] = KINDS[kind]
            settings: dict[str, Any] = {"offsets": offsets_of((5, 0, 7)), "reverse": reverse, "delta_softplus": True}
            wanted = measure(tensors, **settings, backend="reference")
            found = measure(tensors, **settings, backend=backend)
            for which, exact in wanted.items():
                value = found[which]
                assert torch.equal(value.isfinite(), exact.isfinite()), which
                if which not in ("B", "C"):
                    rest = ~exact.isfinite()
                    assert torch.equal(value[rest].nan_to_num(7.0), exact[rest].nan_to_num(7.0)), which


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_not_a_number_stays_where_it_is(backend: str) -> None:
    """NaN and infinity reach what depends on them, and nothing else."""
    need(backend)
    tensors = {name: x.detach() for name, x in make((6, 6), width=20, optional=("D", "z")).items()}
    tensors["u"][2, 7] = torch.nan
    tensors["u"][8, 3] = torch.inf
    out = selective_scan(**tensors, offsets=torch.tensor([0, 6, 12]), delta_softplus=True, backend=backend)
    touched = torch.zeros(12, 20, dtype=torch.bool)
    touched[2:6, 7] = touched[8:, 3] = True
    assert torch.equal(~out.isfinite(), touched)  # type: ignore[union-attr]


# Errors


def test_backends_in_order() -> None:
    names = backends()
    assert [name for name in names if name in ("native", "torch", "reference")] == ["native", "torch", "reference"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": (4, 3, 2, 1)}, r"u must be floating and \(B, L, D\); found \(4, 3, 2, 1\)"),
        ({"delta": (7, 5)}, r"delta must be \(7, 4\) to fit u \(7, 4\); found \(7, 5\)"),
        ({"A": (5, 3)}, r"A must be \(4, 3\) to fit u \(7, 4\); found \(5, 3\)"),
        ({"B": (6, 3)}, r"B must be \(7, 3\), or \(7, 'G', 3\) where G divides 4.* found \(6, 3\)"),
        ({"C": (7, 3, 3)}, r"C must be \(7, 3\), or .* found \(7, 3, 3\)"),
        ({"B": (4, 3)}, r"B must be \(7, 3\), .*or \(1, 4, 3\), to fit u \(7, 4\) with 3 states; found \(4, 3\)"),
        ({"D": (5,)}, r"D must be \(4,\) to fit u \(7, 4\); found \(5,\)"),
        ({"z": (4, 7)}, r"z must be \(7, 4\) to fit u \(7, 4\); found \(4, 7\)"),
        ({"delta_bias": (1,)}, r"delta_bias must be \(4,\) to fit"),
        ({"initial_state": (3, 4, 3)}, r"initial_state must be \(2, 4, 3\) to fit u \(7, 4\); found \(3, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, tuple[int, ...]], message: str) -> None:
    tensors = make((5, 2), width=4)
    changed = {**tensors, **{name: torch.zeros(shape) for name, shape in change.items()}}
    settings = {} if "u" in change else {"offsets": torch.tensor([0, 5, 7])}
    with pytest.raises(ValueError, match=message):
        selective_scan(**changed, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offsets": torch.tensor([0, 5, 8])}, r"offsets must rise from 0 to the 7 utterances of u; found \[0, 5, 8\]"),
        ({"offsets": torch.tensor([0, 5, 4, 7])}, "must rise"),
        ({"offsets": torch.tensor([1, 7])}, "must rise"),
        ({"offsets": torch.tensor([0.0, 7.0])}, r"offsets must be \(B \+ 1\) integers"),
        ({"offsets": Packing((5, 3))}, "the packing has 8 utterances, u has 7"),
        ({"offsets": torch.tensor([0, 7]), "lengths": [7]}, "found both"),
        ({"reverse": "backward"}, "reverse must be False, True or \"both\"; found 'backward'"),
        ({"backend": "fastest"}, "backend 'fastest' does not exist. Choose from "),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(**make((5, 2), width=4, optional=()), **settings)


def test_padded_lengths_that_do_not_fit() -> None:
    u, B = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)
    for lengths in ([3, 4], [3], [-1, 2], torch.tensor([[3, 3]])):
        with pytest.raises(ValueError, match="lengths must be 2 integers"):
            selective_scan(u, u, torch.zeros(4, 5), B, B, lengths=lengths)


def test_a_shape_of_two_meanings() -> None:
    """Two utterances, two groups: the leading 2 could be either; an axis of directions settles it."""
    tensors = make((2,), width=4, groups=2, optional=())
    with pytest.raises(ValueError, match=r"B \(2, 2, 3\) fits .* with and without an axis of directions"):
        selective_scan(**tensors, reverse="both")
    clear = {name: x.expand(2, *x.shape) if name in "BC" else x for name, x in tensors.items()}
    assert selective_scan(**clear, reverse="both").shape == (2, 2, 4)  # type: ignore[union-attr]


def test_not_twice() -> None:
    tensors = make((3,), optional=())
    out = selective_scan(**tensors)
    (gradient,) = torch.autograd.grad(out.sum(), tensors["u"], create_graph=True)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), tensors["A"])
