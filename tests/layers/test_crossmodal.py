from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ercfusion.layers import CrossModalEncoder
from ercfusion.layers.crossmodal import CrossModalLayer, position_table

D, H = 6, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def encoder(layers: int = 2, **options: Any) -> CrossModalEncoder:
    made = CrossModalEncoder(D, layers, H, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def position(place: int, width: int) -> Tensor:
    """The released code's table, number by number."""
    half = width // 2
    angles = [(place + 1) / 10_000 ** (i / (half - 1)) for i in range(half)]
    return torch.tensor(
        [math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [0.0] * (width % 2), dtype=torch.float64
    )


def literal(
    model: CrossModalEncoder,
    query: dict[int, Tensor],
    memory: dict[int, Tensor] | None,
    ahead: int,
    places: tuple[list[int], list[int]],
) -> dict[int, Tensor]:
    """One sample, row by row: elements by index, only those that are there."""
    x = {i: math.sqrt(D) * row + position(places[0][i], D) for i, row in query.items()}
    fixed = None if memory is None else {j: math.sqrt(D) * row + position(places[1][j], D) for j, row in memory.items()}
    for layer in model.layers:
        assert isinstance(layer, CrossModalLayer)
        weights, biases = layer.qkv.weight.split(D), layer.qkv.bias.split(D)
        source = x if fixed is None else fixed
        keys = {j: normalised(row, layer.norm_attention) for j, row in source.items()}
        after = {}
        for i, row in x.items():
            seen = [j for j in keys if not model.causal or j <= i + ahead]
            q = weights[0] @ normalised(row, layer.norm_attention) + biases[0]
            if seen:
                heads = []
                for h in range(H):
                    part = slice(h * D // H, (h + 1) * D // H)
                    scores = [q[part] @ (weights[1] @ keys[j] + biases[1])[part] / math.sqrt(D / H) for j in seen]
                    share = torch.stack(scores).softmax(0)
                    heads.append(sum(share[n] * (weights[2] @ keys[j] + biases[2])[part] for n, j in enumerate(seen)))
                row = row + layer.out.weight @ torch.cat(heads) + layer.out.bias
            inner = (layer.up.weight @ normalised(row, layer.norm_feedforward) + layer.up.bias).clamp(min=0)
            after[i] = row + layer.down.weight @ inner + layer.down.bias
        x = after
    return {i: normalised(row, model.norm) for i, row in x.items()}


@pytest.mark.parametrize("own", [False, True], ids=["cross", "self"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masks", ["none", "padding", "holes"])
def test_values_and_gradients_by_the_formulas(masks: str, causal: bool, own: bool) -> None:
    G, Lq, Lk = 4, 5, 5 if own else 3
    model = encoder(causal=causal)
    query = torch.randn(G, Lq, D, dtype=torch.float64, requires_grad=True)
    memory = None if own else torch.randn(G, Lk, D, dtype=torch.float64, requires_grad=True)
    query_mask, memory_mask = torch.ones(G, Lq, dtype=torch.bool), torch.ones(G, Lk, dtype=torch.bool)
    if masks == "padding":
        query_mask = torch.arange(Lq) < torch.tensor([5, 1, 3, 4])[:, None]
        memory_mask = torch.arange(Lk) < torch.tensor([1, 3, 0, 2])[:, None]
    elif masks == "holes":
        query_mask = torch.rand(G, Lq) < 0.6
        memory_mask = torch.rand(G, Lk) < 0.5
    if own:
        memory_mask = query_mask
    given = masks != "none"
    ahead = torch.tensor([0, 1, 2, -1]) if masks == "holes" else None
    places = torch.randint(0, 50, (G, Lq)), torch.randint(0, 50, (G, Lk))
    if own:
        places = (places[0], places[0])
    shown = {"query_places": places[0], "memory_places": None if own else places[1]} if masks == "holes" else {}
    result = model(
        query,
        memory,
        query_mask if given else None,
        memory_mask if given and not own else None,
        ahead=ahead,
        **shown,
    )
    expected = torch.zeros_like(result)
    for g in range(G):
        rows = literal(
            model,
            {i: query[g, i] for i in range(Lq) if query_mask[g, i]},
            None if memory is None else {j: memory[g, j] for j in range(Lk) if memory_mask[g, j]},
            0 if ahead is None else int(ahead[g]),
            tuple(place[g].tolist() if shown else list(range(9)) for place in places),  # type: ignore[arg-type]
        )
        for i, row in rows.items():
            expected[g, i] = row
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    wanted = [query, *([] if memory is None else [memory]), *model.parameters()]
    weight = torch.randn_like(result)
    ours, theirs = (
        torch.autograd.grad((output * weight).sum(), wanted, retain_graph=True) for output in (result, expected)
    )
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


def test_attention_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are divided into blocks of queries, of other length than the memory."""
    query, memory = torch.randn(2, 7, D, dtype=torch.float64), torch.randn(2, 4, D, dtype=torch.float64)
    masks = torch.rand(2, 7) < 0.7, torch.tensor([[True, False, True, False], [False] * 4])
    for causal in (False, True):
        model = encoder(causal=causal)
        whole = model(query, memory, *masks)
        monkeypatch.setattr("ercfusion.ops.attention.PAIRS", 2 * H * 7)
        torch.testing.assert_close(model(query, memory, *masks), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30])
def test_content_of_padding_never_reaches_a_result(content: float) -> None:
    model = encoder(causal=True)
    masks = torch.rand(3, 5) < 0.6, torch.rand(3, 4) < 0.4
    masks[1][0] = False
    evidence = []
    for fill in (0.0, content):
        query, memory = (
            torch.full((3, length, D), fill, dtype=torch.float64).masked_scatter(
                mask[..., None].expand(-1, -1, D), torch.linspace(-1, 1, 3 * length * D, dtype=torch.float64)
            )
            for mask, length in zip(masks, (5, 4), strict=True)
        )
        result = model(query.requires_grad_(), memory.requires_grad_(), *masks)
        evidence.append([result, *torch.autograd.grad(result.square().sum(), [query, memory, *model.parameters()])])
    for zero, other in zip(*evidence, strict=True):
        assert torch.equal(zero, other)
        assert zero.isfinite().all()


def test_attention_maps() -> None:
    model = encoder()
    query, memory = torch.randn(2, 3, D, dtype=torch.float64), torch.randn(2, 4, D, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    maps: list[Tensor] = []
    result = model(query, memory, None, mask, maps=maps)
    torch.testing.assert_close(result, model(query, memory, None, mask))
    assert [tuple(each.shape) for each in maps] == [(2, H, 3, 4)] * 2
    for each in maps:
        assert torch.equal(each[1], torch.zeros_like(each[1]))
        assert torch.equal(each[0, :, :, 1], torch.zeros(H, 3, dtype=torch.float64))
        torch.testing.assert_close(each[0].sum(-1), torch.ones(H, 3, dtype=torch.float64))


@pytest.mark.parametrize("width", [2, 3, 4, 30, 31])
def test_positions(width: int) -> None:
    table = position_table(torch.tensor([[0, 1], [7, 499]]), width, torch.float64)
    assert table.shape == (2, 2, width)
    if width >= 4:
        for row, place in zip(table.flatten(0, 1), (0, 1, 7, 499), strict=True):
            torch.testing.assert_close(row, position(place, width), rtol=1e-9, atol=1e-9)


def test_positions_at_low_precision_are_rounded_once() -> None:
    """Angles of late places are exact: in bfloat16 neighbouring places would share one."""
    places = torch.arange(600)
    table = position_table(places, 8, torch.bfloat16)
    assert table.dtype == torch.bfloat16
    torch.testing.assert_close(table.double(), position_table(places, 8, torch.float64), rtol=0.0, atol=0.005)


def test_each_dropout_acts() -> None:
    query, memory = torch.randn(2, 3, D, dtype=torch.float64), torch.randn(2, 4, D, dtype=torch.float64)
    for name in ("attention_dropout", "relu_dropout", "residual_dropout", "embedding_dropout"):
        model = encoder(**{name: 0.5})
        assert not torch.equal(model(query, memory), model(query, memory)), name
        model.eval()
        assert torch.equal(model(query, memory), model(query, memory)), name
    model = encoder()
    assert torch.equal(model(query, memory), model(query, memory))


def test_unsuitable_input() -> None:
    model, query = CrossModalEncoder(D, 1, H), torch.zeros(2, 3, D)
    with pytest.raises(ValueError, match=r"query must be padded sequences \(2, L, 6\) with L at least 1; found \(2, 3"):
        model(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"memory must be padded sequences .* found \(2, 0, 6\)"):
        model(query, torch.zeros(2, 0, D))
    with pytest.raises(ValueError, match=r"memory must be padded sequences .* found \(1, 3, 6\)"):
        model(query, torch.zeros(1, 3, D))
    with pytest.raises(ValueError, match=r"query_mask must be \(2, 3\) booleans; found \(2, 3\) of torch.float32"):
        model(query, None, torch.ones(2, 3))
    with pytest.raises(ValueError, match="memory_mask needs a memory"):
        model(query, None, None, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="width 7 is not a multiple of 3 heads"):
        CrossModalEncoder(7, 1, 3)
