"""Attention in blocks: values, gradients, dropout, and what it keeps for the backward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ercfusion.layers import FusionAttention, PackedTransformerLayer
from ercfusion.ops import Packing, attend, attend_reference, attention
from ercfusion.ops.attention import Mask

B, H, L, D = 2, 3, 7, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def draw() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, B, H, L, D, dtype=torch.float64).unbind()
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def rows_of(mask: Tensor | None) -> Mask:
    return lambda start, stop: mask if mask is None or mask.shape[2] == 1 else mask[:, :, start:stop]


MASKS = ("none", "keys", "causal", "bias")


def make_mask(kind: str) -> Tensor | None:
    if kind == "keys":
        return (torch.arange(L) < torch.tensor([[L], [3]]))[:, None, None]
    if kind == "causal":
        return torch.ones(1, 1, L, L, dtype=torch.bool).tril()
    if kind == "bias":
        causal = torch.ones(L, L, dtype=torch.bool).tril()
        return torch.randn(B, H, L, L, dtype=torch.float64).masked_fill(~causal, -math.inf).requires_grad_()
    return None


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("kind", MASKS)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, kind: str, rows: int) -> None:
    monkeypatch.setattr(attention, "PAIRS", rows * H * L)
    q, k, v = draw()
    mask = make_mask(kind)
    learned = [q, k, v] if mask is None or not mask.requires_grad else [q, k, v, mask]
    direction = torch.randn(B, H, L, D, dtype=torch.float64)
    expected = attend_reference(q, k, v, mask)
    found = attend(q, k, v, rows_of(mask))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, learned, direction), torch.autograd.grad(expected, learned, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, rows_of(mask)), expected, rtol=1e-12, atol=1e-12)


def test_the_backward_pass_drops_what_the_forward_pass_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are linear in v: with the same weights in both passes, the gradient along v gives the values back."""
    monkeypatch.setattr(attention, "PAIRS", 2 * H * L)
    q, k, v = draw()
    found = attend(q, k, v, rows_of(None), dropout=0.5)
    direction = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, v, direction, retain_graph=True)
    torch.testing.assert_close((gradient * v).sum(), (found * direction).sum(), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, attend(q, k, v, rows_of(None), dropout=0.5))


def test_a_short_conversation_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded results came from undivided attention: up to 512 utterances with eight heads nothing changes."""
    monkeypatch.setattr(attention, "checkpoint", None)
    q = torch.randn(1, 8, 512, 1, requires_grad=True)
    asked = []

    def mask(start: int, stop: int) -> None:
        asked.append((start, stop))

    attend(q, q, q, mask)
    assert asked == [(0, 512)]


@pytest.mark.parametrize("kind", ["none", "keys"])
def test_without_dropout_the_same_keys_for_all_queries_are_one_call(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Torch holds no scores then: dividing would only cost time."""
    monkeypatch.setattr(attention, "PAIRS", 2 * H * L)
    monkeypatch.setattr(attention, "checkpoint", None)
    q, k, v = draw()
    attend(q, k, v, rows_of(make_mask(kind)))
    with pytest.raises(TypeError):
        attend(q, k, v, rows_of(make_mask(kind)), dropout=0.5)


def test_blocks_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PAIRS", 2 * H * L)
    asked: list[tuple[int, int]] = []

    def mask(start: int, stop: int) -> None:
        asked.append((start, stop))

    for size in (1, 5):
        q = torch.randn(size, H, L, D)
        attend(q, q, q, mask, dropout=0.5)
    assert asked == [(0, 2), (2, 4), (4, 6), (6, 7)] * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(9,), (9, 4)])
@pytest.mark.parametrize("kind", ["transformer", "fusion", "fusion, some absent"])
def test_layers_give_the_same_in_blocks(
    monkeypatch: pytest.MonkeyPatch, kind: str, lengths: tuple[int, ...], causal: bool
) -> None:
    packing = Packing(lengths)
    x = torch.randn(packing.total, 8, dtype=torch.float64)
    speaker = torch.randint(0, 2, (packing.total,))
    present = torch.rand(packing.total, 2) < 0.4 if kind == "fusion, some absent" else None
    if kind == "transformer":
        layer: torch.nn.Module = PackedTransformerLayer(8, 2, 8, 0.0, causal=causal, lags=2).double()
        torch.nn.init.normal_(layer.bias.weight)  # type: ignore[union-attr, arg-type]
        inputs: tuple = (x, packing, speaker)
    else:
        layer = FusionAttention(8, 2, 2, 0.0, causal=causal).double()
        inputs = (x, [x.sin(), x.cos()], packing, present)
    results = []
    for pairs in (2**21, 40):
        monkeypatch.setattr(attention, "PAIRS", pairs)
        found = layer(*inputs)
        results.append([found, *torch.autograd.grad(found.square().sum(), list(layer.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["transformer", "fusion"])
def test_what_is_kept_grows_with_the_length_only(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Bytes kept for the backward pass, with dropout and biases: twice the length, twice the bytes."""
    monkeypatch.setattr(attention, "PAIRS", 2**10)

    def kept(length: int) -> int:
        packing = Packing([length])
        x = torch.randn(length, 8, requires_grad=True)
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
            return tensor

        alive: list[Tensor] = []  # or a later tensor could get the address of an earlier one
        layer: torch.nn.Module
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            if kind == "transformer":
                layer = PackedTransformerLayer(8, 2, 8, 0.5, causal=True, lags=2)
                layer(x, packing, torch.zeros(length, dtype=torch.long))
            else:
                layer = FusionAttention(8, 1, 2, 0.5, causal=True)
                layer(x, [x], packing, torch.ones(length, 1, dtype=torch.bool))
        return sum(storages.values())

    short, long = kept(100), kept(200)
    assert long < 2.2 * short
