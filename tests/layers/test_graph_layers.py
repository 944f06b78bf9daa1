"""The two graph layers: dense against sparse against PyTorch Geometric, in values and in every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ercfusion.layers import GraphAttention, RelationalConv
from ercfusion.layers import graph as graph_layers
from ercfusion.ops import Packing, WindowGraph

LENGTHS = (5, 1, 8, 2)
WINDOWS = [(-1, -1), (2, 0), (0, 3), (0, 0), (10, 1)]
RELATIONS = [("same_other", 2), *(("speaker_pair", number) for number in (1, 2, 3, 4))]
DENSE, SPARSE = 2**26, -1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_graph(relations: str, num_speakers: int, past: int, future: int) -> WindowGraph:
    packing = Packing(LENGTHS)
    speaker = torch.randint(5, (packing.total,))  # five speakers, of whom at most four have a number
    return WindowGraph(packing, speaker, past, future, relations, num_speakers)  # type: ignore[arg-type]


def measure(run: Callable[[Tensor], Tensor], parameters: dict[str, nn.Parameter], x: Tensor) -> dict[str, Tensor]:
    """Value and gradients of a fixed random projection of the value."""
    x = x.clone().requires_grad_()
    value = run(x)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    gradients = torch.autograd.grad((value * weight).sum(), [x, *parameters.values()])
    return {"value": value.detach(), "x": gradients[0], **dict(zip(parameters, gradients[1:], strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(("past", "future"), WINDOWS)
@pytest.mark.parametrize(("relations", "num_speakers"), RELATIONS)
def test_relational_conv(
    relations: str, num_speakers: int, past: int, future: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_geometric.nn import RGCNConv

    graph = make_graph(relations, num_speakers, past, future)
    layer = RelationalConv(6, 4, graph.num_relations).double()
    nn.init.normal_(layer.root.bias)
    x = torch.randn(graph.packing.total, 6, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    found = {}
    for limit in (DENSE, SPARSE):
        monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
        found[limit] = measure(lambda x: layer(x, graph), parameters, x)
    assert_same(found[SPARSE], found[DENSE])

    oracle = RGCNConv(6, 4, graph.num_relations).double()
    with torch.no_grad():
        oracle.weight.copy_(layer.weight)
        oracle.root.copy_(layer.root.weight.t())
        oracle.bias.copy_(layer.root.bias)
    names = {"weight": oracle.weight, "root.weight": oracle.root, "root.bias": oracle.bias}
    expected = measure(lambda x: oracle(x, graph.edges, graph.relation), names, x)
    expected["root.weight"] = expected["root.weight"].t()
    assert_same(found[DENSE], expected)


@pytest.mark.parametrize(("past", "future"), WINDOWS)
@pytest.mark.parametrize("heads", [1, 3])
def test_graph_attention(heads: int, past: int, future: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric.nn import TransformerConv

    graph = make_graph("same_other", 2, past, future)
    layer = GraphAttention(6, 4, heads).double()
    x = 3 * torch.randn(graph.packing.total, 6, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    found = {}
    for limit in (DENSE, SPARSE):
        monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
        found[limit] = measure(lambda x: layer(x, graph), parameters, x)
    assert_same(found[SPARSE], found[DENSE])

    oracle = TransformerConv(6, 4, heads).double()
    names: dict[str, nn.Parameter] = {}
    for name in ("query", "key", "value", "skip"):
        linear = getattr(oracle, f"lin_{name}")
        linear.load_state_dict(getattr(layer, name).state_dict())
        names |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
    assert_same(found[DENSE], measure(lambda x: oracle(x, graph.edges), names, x))


@pytest.mark.parametrize(("past", "future"), WINDOWS)
@pytest.mark.parametrize("lags", [1, 3, 20])
def test_graph_attention_with_lags(lags: int, past: int, future: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula, one utterance and one head at a time."""
    graph = make_graph("same_other", 2, past, future)
    layer = GraphAttention(6, 4, 2, lags=lags).double()
    assert layer.bias is not None
    assert (layer.bias.weight == 0).all()
    table = nn.init.normal_(layer.bias.weight)
    x = torch.randn(graph.packing.total, 6, dtype=torch.float64)
    source, target = graph.edges

    def reference(x: Tensor) -> Tensor:
        query, key, value = (part(x).view(-1, 2, 4) for part in (layer.query, layer.key, layer.value))
        rows = []
        for t in range(len(x)):
            heard = source[target == t]
            mixed = []
            for h in range(2):
                bias = []
                for s in heard.tolist():
                    lag = max(-lags, min(lags, t - s)) + lags
                    bias.append(table[h, lag + (2 * lags + 1) * int(graph.speaker[s] == graph.speaker[t])])
                score = key[heard, h] @ query[t, h] / 2 + torch.stack(bias)
                mixed.append(score.softmax(0) @ value[heard, h])
            rows.append(torch.cat(mixed))
        return layer.skip(x) + torch.stack(rows)

    parameters = dict(layer.named_parameters())
    expected = measure(reference, parameters, x)
    for limit in (DENSE, SPARSE):
        monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
        assert_same(measure(lambda x: layer(x, graph), parameters, x), expected)


@pytest.mark.parametrize("limit", [DENSE, SPARSE])
@pytest.mark.parametrize("relations", ["same_other", "speaker_pair"])
def test_gradcheck(limit: int, relations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
    packing = Packing((3, 2))
    graph = WindowGraph(packing, torch.tensor([0, 1, 0, 0, 1]), 1, 2, relations, 2)  # type: ignore[arg-type]
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    conv = RelationalConv(3, 2, graph.num_relations).double()
    attention = GraphAttention(3, 2, heads=2, lags=1).double()
    assert attention.bias is not None
    nn.init.normal_(attention.bias.weight)
    for layer in (conv, attention):
        names = [name for name, _ in layer.named_parameters()]
        values = [value.detach().clone().requires_grad_() for value in layer.parameters()]

        def run(x: Tensor, *values: Tensor, layer: nn.Module = layer, names: list[str] = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, graph))

        assert torch.autograd.gradcheck(run, (x, *values))


def test_relational_conv_by_hand() -> None:
    # One dimension, weight 10 ** r: the value shows from which relations messages came, and that they are averaged.
    graph = WindowGraph(Packing((3,)), torch.tensor([0, 1, 1]), -1, -1)
    layer = RelationalConv(1, 1, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None])
        layer.root.weight.zero_()
        layer.root.bias.fill_(0.5)
    out = layer(torch.tensor([[1.0], [2.0], [4.0]]), graph)
    # t=0 hears itself (same, not before), and 1 and 2 (other, not before): 10 * 1 + 1000 * 3.
    # t=1 hears 0 (other, before), itself and 2 (same, not before): 100 * 1 + 10 * 3.
    # t=2 hears 0 (other, before), 1 (same, before), itself: 100 * 1 + 1 * 2 + 10 * 4.
    torch.testing.assert_close(out.squeeze(1), torch.tensor([3010.5, 130.5, 142.5]))


def test_a_graph_with_other_relations_is_refused() -> None:
    graph = make_graph("speaker_pair", 3, 1, 1)
    with pytest.raises(ValueError, match="18 relations, the layer 4"):
        RelationalConv(2, 2, 4)(torch.zeros(graph.packing.total, 2), graph)


@pytest.mark.parametrize("limit", [DENSE, SPARSE])
def test_attention_dropout(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
    graph = make_graph("same_other", 2, -1, -1)
    layer = GraphAttention(6, 4, 2, dropout=0.5)
    x = torch.randn(graph.packing.total, 6)
    assert torch.equal(layer.eval()(x, graph), layer(x, graph))
    layer.train()
    assert not torch.equal(layer(x, graph), layer(x, graph))
    # With everything dropped only the skip connection is left.
    layer.dropout = 1.0
    torch.testing.assert_close(layer(x, graph), layer.skip(x))


@pytest.mark.parametrize("limit", [DENSE, SPARSE])
def test_large_scores_stay_finite(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
    graph = make_graph("same_other", 2, -1, -1)
    layer = GraphAttention(6, 4)
    x = (1e4 * torch.randn(graph.packing.total, 6)).requires_grad_()
    out = layer(x, graph)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("lags", [0, 3])
@pytest.mark.parametrize("relations", ["same_other", "speaker_pair"])
def test_both_forms_under_autocast(relations: str, lags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_graph(relations, 3, 4, 4)
    conv = RelationalConv(6, 4, graph.num_relations)
    attention = GraphAttention(4, 4, 2, lags=lags)
    x = torch.randn(graph.packing.total, 6)
    exact = attention(conv(x, graph), graph)
    for limit in (DENSE, SPARSE):
        monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(conv(x, graph), graph)
        torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


def test_long_conversation_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """More neighbours than bfloat16 can count: a mean of ones is one."""
    packing = Packing((700,))
    graph = WindowGraph(packing, torch.zeros(700, dtype=torch.long), -1, -1)
    x = torch.ones(700, 2, dtype=torch.bfloat16)
    for limit in (DENSE, SPARSE):
        monkeypatch.setattr(graph_layers, "DENSE_LIMIT", limit)
        layer = RelationalConv(2, 1, 4).bfloat16()
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.root.weight.zero_()
        out = layer(x, graph).float().squeeze(1)
        # Two slots have neighbours (before; not before), each with the mean (1, 1); the first turn has one slot.
        torch.testing.assert_close(out[1:], torch.full((699,), 4.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("lags", [0, 2])
def test_attention_map(lags: int) -> None:
    """Rows of utterances are distributions over the neighbours, rows of padding are zero."""
    graph = make_graph("same_other", 2, 2, 1)
    layer = GraphAttention(6, 4, 3, lags=lags).double()
    found = layer.attention_map(torch.randn(graph.packing.total, 6, dtype=torch.float64), graph)
    rows = graph.packing.mask[:, None].expand(found.shape[:3])
    assert graph.packing.size > 1
    assert not rows.all()
    assert (found[~rows] == 0).all()
    torch.testing.assert_close(found[rows].sum(-1), torch.ones(int(rows.sum()), dtype=torch.float64))
    assert torch.equal(found > 0, graph.adjacency[:, None].expand_as(found))
