"""The block-wise angular graph and GCNII: against loops over pairs of nodes, and against PyTorch Geometric."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers.gcn2 import (
    GCN2,
    SELF,
    SHRINK,
    AngularGraph,
    GCN2Conv,
    LengthBuckets,
    angular,
    angular_adjacency_reference,
    unit,
)
from ercfusion.ops import Packing

LENGTHS = (5, 1, 13, 2, 12, 4)
IEMOCAP_LIKE = (110, 28, 31, 35, 38, 40, 42, 44, 46, 47, 49, 51, 53, 56, 60, 38)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def nodes(modalities: int, lengths: tuple[int, ...] = LENGTHS, width: int = 4) -> tuple[Tensor, Tensor, Packing]:
    packing = Packing(lengths)
    x = torch.randn(modalities, packing.total, width, dtype=torch.float64, requires_grad=True)
    present = torch.rand(packing.total, modalities) < 0.8
    present[0] = False  # an utterance without anything
    present[5] = True  # the conversation of one utterance has everything
    return x, present, packing


def reference(x: Tensor, present: Tensor, h: Tensor, packing: Packing) -> Tensor:
    """(M, N, F) products, one conversation at a time."""
    parts = []
    lengths = packing.lengths
    for xs, here, hs in zip(x.split(lengths, 1), present.split(lengths), h.split(lengths, 1), strict=True):
        A = angular_adjacency_reference(xs, here)
        parts.append((A @ hs.flatten(0, 1)).view_as(hs))
    return torch.cat(parts, 1)


def propagated(x: Tensor, present: Tensor, h: Tensor, packing: Packing) -> Tensor:
    graph = AngularGraph(x, present, packing)
    return graph.buckets.collect(graph.propagate(graph.buckets.spread(h)))


def value_and_gradients(run: Callable[[], Tensor], wanted: list[Tensor]) -> list[Tensor]:
    value = run()
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=value.dtype)
    return [value.detach(), *torch.autograd.grad((value * weight).sum(), wanted)]


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_graph_against_loops(modalities: int) -> None:
    x, present, packing = nodes(modalities)
    with torch.no_grad():
        x[0, 8] = 0  # a vector without direction
        present[8] = True
    h = torch.randn(modalities, packing.total, 3, dtype=torch.float64, requires_grad=True)
    found = value_and_gradients(lambda: propagated(x, present, h, packing), [x, h])
    expected = value_and_gradients(lambda: reference(x, present, h, packing), [x, h])
    for left, right in zip(found, expected, strict=True):
        assert right.abs().max() > 0.1
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    absent = ~present.t()
    for value in found:
        assert (value[absent] == 0).all()
    assert (found[1][0, 8] == 0).all()


def test_by_hand() -> None:
    """Two utterances, two modalities; one node is absent."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 1.0]]], dtype=torch.float64)
    present = torch.tensor([[True, True], [True, False]])
    right = 0.5  # arccos(0) = pi / 2
    # The first node is at a right angle to both of its neighbours, which do not know each other.
    A = torch.tensor(
        [[SELF, right, right, 0], [right, SELF, 0, 0], [right, 0, SELF, 0], [0, 0, 0, 0]], dtype=torch.float64
    )
    degree = torch.tensor([SELF + 1.0, SELF + 0.5, SELF + 0.5, 1.0], dtype=torch.float64)
    expected = A / (degree[:, None] * degree[None, :]).sqrt()
    torch.testing.assert_close(angular_adjacency_reference(x, present), expected)
    h = torch.eye(4, dtype=torch.float64).view(2, 2, 4)
    torch.testing.assert_close(propagated(x, present, h, Packing([2])).flatten(0, 1), expected)
    assert abs(SELF - 0.99858) < 1e-5


def test_absent_content_does_not_matter() -> None:
    x, present, packing = nodes(3)
    h = torch.randn(3, packing.total, 2, dtype=torch.float64)
    other = torch.where(present.t()[:, :, None], x, torch.randn_like(x))
    assert torch.equal(propagated(x, present, h, packing), propagated(other, present, h, packing))


def test_conversations_do_not_meet() -> None:
    """The same alone and among others, and whatever the order of the batch."""
    x, present, packing = nodes(2)
    h = torch.randn(2, packing.total, 3, dtype=torch.float64)
    together = propagated(x, present, h, packing).split(LENGTHS, 1)
    parts = list(zip(x.split(LENGTHS, 1), present.split(LENGTHS), h.split(LENGTHS, 1), strict=True))
    for (xs, here, hs), expected in zip(parts, together, strict=True):
        torch.testing.assert_close(propagated(xs, here, hs, Packing([len(here)])), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("lengths", [(1,), (7, 7, 7), (1, 2, 3, 4, 5, 6, 7, 8), LENGTHS, IEMOCAP_LIKE])
@pytest.mark.parametrize("modalities", [1, 3])
def test_buckets(modalities: int, lengths: tuple[int, ...]) -> None:
    packing = Packing(lengths)
    buckets = LengthBuckets(packing, modalities)
    assert sum(rows for rows, _ in buckets.shapes) == len(lengths)
    assert len(set(buckets.index.tolist())) == modalities * packing.total
    x = torch.randn(modalities, packing.total, 2, requires_grad=True)
    slots = buckets.spread(x)
    assert len(slots) == sum(buckets.sizes)
    assert torch.equal(buckets.collect(slots), x)
    assert torch.equal(torch.autograd.grad(slots.square().sum(), x)[0], 2 * x)
    # Every conversation lies in one row of one bucket, in order, and rows are hardly longer than what they hold.
    for b, own in enumerate(buckets.index.view(modalities, -1).split(lengths, 1)):
        assert (own.diff(dim=1) == 1).all()
        first, sizes = 0, buckets.sizes
        place = next(k for k in range(len(sizes)) if int(own[0, 0]) < sum(sizes[: k + 1]))
        first = sum(sizes[:place])
        rows, length = buckets.shapes[place]
        assert ((own[:, 0] - first) % length == 0).all()
        assert (((own[:, 0] - first) // length // rows) == torch.arange(modalities)).all()
        assert lengths[b] <= length
        assert length <= 8 or lengths[b] >= 0.75 * length


def test_gradcheck() -> None:
    packing = Packing((3, 1))
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, h: propagated(x, present, h, packing), (x, h))


def test_equal_vectors_have_small_gradients() -> None:
    """A conversation that repeats itself, in single precision: the published diagonal turns rounding into gradients."""
    packing = Packing((6,))
    x = torch.randn(1, 1, 16).expand(1, 6, 16).clone().requires_grad_()
    present = torch.ones(6, 1, dtype=torch.bool)
    h = torch.randn(1, 6, 2)
    (gradient,) = torch.autograd.grad(propagated(x, present, h, packing).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e-2


def test_unit_and_angular_at_their_ends() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [1e15, 0.0]], requires_grad=True)
    value = unit(x)
    torch.testing.assert_close(value, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()
    cosine = torch.tensor([-1.01, -1.0, 0.0, 1.0, 1.01], dtype=torch.float64, requires_grad=True)
    value = angular(cosine)
    torch.testing.assert_close(value.tolist(), [1 - SELF, 1 - SELF, 0.5, SELF, SELF])
    assert torch.autograd.grad(value.sum(), cosine)[0].abs().max() <= 224 * SHRINK / math.pi + 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, present, packing = nodes(3)
    h = torch.randn(3, packing.total, 4, dtype=torch.float64)
    exact = propagated(x, present, h, packing).detach()
    found = propagated(x.detach().to(dtype), present, h.to(dtype), packing)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = propagated(x.detach().float(), present, h.float(), packing)
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("variant", [False, True])
@pytest.mark.parametrize("layer", [1, 4])
def test_layer_against_pytorch_geometric(layer: int, variant: bool) -> None:
    from torch_geometric.nn import GCN2Conv as Oracle

    n, width, alpha, theta = 6, 5, 0.2, 0.7
    A = torch.rand(n, n, dtype=torch.float64)
    A = A + A.t()
    edges = A.nonzero().t()
    ours = GCN2Conv(width, layer, alpha=alpha, theta=theta, variant=variant).double()
    oracle = Oracle(width, alpha, theta, layer, shared_weights=not variant, normalize=False).double()
    h, initial = (torch.randn(n, width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    # The library's second form has 1 - alpha and alpha in front of its two matrices.
    scales = (1 - alpha, alpha) if variant else (1.0,)
    names = ("weight1", "weight2")[: len(scales)]
    with torch.no_grad():
        for name, scale, part in zip(names, scales, ours.weight.chunk(len(scales)), strict=True):
            oracle.get_parameter(name).copy_(part / scale)
    found = value_and_gradients(lambda: ours(A @ h, initial), [h, initial, ours.weight])
    expected = value_and_gradients(
        lambda: oracle(h, initial, edges, A[edges[0], edges[1]]),
        [h, initial, *(oracle.get_parameter(name) for name in names)],
    )
    weights = torch.cat([gradient / scale for gradient, scale in zip(expected[3:], scales, strict=True)])
    for left, right in zip(found, [*expected[:3], weights], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("variant", [False, True])
def test_stack_against_loops(variant: bool, layers: int) -> None:
    """The whole stack, node by node, with the matrix of one conversation at a time."""
    x, present, packing = nodes(3, (4, 1, 2))
    stack = GCN2(4, 5, layers, alpha=0.3, theta=0.8, variant=variant).double()
    wanted = [x, *stack.parameters()]

    def literal() -> Tensor:
        parts = []
        for xs, here in zip(x.split(packing.lengths, 1), present.split(packing.lengths), strict=True):
            A = angular_adjacency_reference(xs, here)
            initial = [F.linear(v, stack.narrow.weight, stack.narrow.bias).relu() for v in xs.flatten(0, 1)]
            h = initial
            for number, conv in enumerate(stack.convs, 1):
                beta = math.log(0.8 / number + 1)
                new = []
                for u in range(len(h)):
                    mixed = sum((A[u, v] * h[v] for v in range(len(h))), torch.zeros_like(h[u]))
                    base = 0.7 * mixed + 0.3 * initial[u]
                    support = torch.cat([mixed, initial[u]]) if variant else base
                    new.append(((1 - beta) * base + beta * support @ conv.weight).relu())
                h = new
            parts.append(torch.stack(h).view(3, -1, 5))
        return torch.cat(parts, 1)

    found = value_and_gradients(lambda: stack(x, AngularGraph(x, present, packing)), wanted[: 3 + layers])
    expected = value_and_gradients(literal, wanted[: 3 + layers])
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_dropout_is_off_in_eval_mode() -> None:
    x, present, packing = nodes(2)
    stack = GCN2(4, 6, 2, dropout=0.5).double()
    graph = AngularGraph(x, present, packing)
    assert not torch.equal(stack(x, graph), stack(x, graph))
    stack.eval()
    assert torch.equal(stack(x, graph), stack(x, graph))
    stack.train().dropout = nn.Dropout(0.0)
    torch.testing.assert_close(stack(x, graph), stack.eval()(x, graph))


def test_layers_are_numbered_from_one() -> None:
    with pytest.raises(ValueError, match="layer must be at least 1, found 0"):
        GCN2Conv(3, 0)
    assert [conv.beta for conv in GCN2(3, 3, 3, theta=0.5).convs] == pytest.approx(
        [math.log(1.5), math.log(1.25), math.log(0.5 / 3 + 1)]
    )


def dense_graph(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The matrix over all nodes of a batch with zeros stored, and otherwise as sparing as it can be."""
    M, N, _ = x.shape
    directions = F.normalize(x, dim=-1).flatten(0, 1)
    conversation = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).repeat(M)
    modality, utterance = torch.arange(M).repeat_interleave(N), torch.arange(N).repeat(M)
    joined = (conversation[:, None] == conversation) & (modality[:, None] == modality)
    joined |= utterance[:, None] == utterance
    weight = 1 - torch.acos(SHRINK * (directions @ directions.t()).clamp(-1, 1)) / math.pi
    weight = torch.where(torch.eye(M * N, dtype=torch.bool), SELF, weight.masked_fill(~joined, 0.0))
    scale = weight.sum(1).rsqrt()
    return weight * scale[:, None] * scale


def peak_of_tensors(function: Callable[[], object]) -> int:
    """Bytes of tensors alive at once, from the allocations and releases that torch's profiler records."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_memory() -> None:
    """Forward and backward through graph and product, 16 conversations of IEMOCAP's lengths, three modalities."""
    packing = Packing(IEMOCAP_LIKE)
    assert (packing.size, packing.total / packing.size, packing.longest) == (16, 48, 110)
    x = torch.randn(3, packing.total, 200, requires_grad=True)
    h = torch.randn(3, packing.total, 100)
    present = torch.ones(packing.total, 3, dtype=torch.bool)
    results = {}

    def ours() -> None:
        results["ours"] = value_and_gradients(lambda: propagated(x, present, h, packing), [x])

    def dense() -> None:
        results["dense"] = value_and_gradients(lambda: (dense_graph(x, IEMOCAP_LIKE) @ h.flatten(0, 1)).view_as(h), [x])

    small, large = peak_of_tensors(ours), peak_of_tensors(dense)
    for left, right in zip(results["ours"], results["dense"], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert 2**20 < small < large / 10


class Doubled(nn.Module):
    """In the place of a dropout: shows where it acts."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_where_dropout_acts() -> None:
    x, present, packing = nodes(2)
    stack = GCN2(4, 3, 2).double()
    stack.dropout = Doubled()  # type: ignore[assignment]
    graph = AngularGraph(x, present, packing)
    initial = h = graph.buckets.spread(F.relu(stack.narrow(2 * x)))
    for conv in stack.convs:
        h = F.relu(conv(graph.propagate(2 * h), initial))
    torch.testing.assert_close(stack(x, graph), graph.buckets.collect(2 * h))
    undropped = stack(x / 2, graph)
    torch.testing.assert_close(stack(x, graph, dropped=True), undropped)
