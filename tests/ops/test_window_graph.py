from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ercfusion.ops import Packing, WindowGraph, window_edges, window_edges_reference

WINDOWS = [(past, future) for past in (-1, 0, 1, 3, 40) for future in (-1, 0, 2, 5, 40)]


@pytest.mark.parametrize(("past", "future"), WINDOWS)
@pytest.mark.parametrize("lengths", [(1,), (4, 1, 9, 2), (7,), (1, 1)])
def test_edges_equal_the_reference(lengths: tuple[int, ...], past: int, future: int) -> None:
    packing = Packing(lengths)
    edges = window_edges(packing, past, future)
    assert edges.dtype == torch.long
    assert torch.equal(edges, window_edges_reference(packing, past, future))


def test_the_reference_on_an_example() -> None:
    # Two conversations; utterance t hears one before, itself, and none after.
    edges = window_edges_reference(Packing((3, 2)), 1, 0)
    assert edges.t().tolist() == [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [3, 3], [3, 4], [4, 4]]


def test_counts() -> None:
    assert window_edges(Packing((5,)), -1, -1).shape == (2, 25)
    assert window_edges(Packing((5,)), 0, 0).shape == (2, 5)
    assert window_edges(Packing((5,)), -1, 0).shape == (2, 15)
    assert window_edges(Packing((100,)), 10, 10).shape[1] == 100 * 21 - 10 * 11


SPEAKER = torch.tensor([0, 1, 0, 0, 1, 2])
LENGTHS = (3, 3)


def relation_by_hand(graph: WindowGraph, speaker: Tensor, source: int, target: int) -> int:
    backward = 1 if source >= target else 0
    s, t = int(speaker[source]), int(speaker[target])
    if graph.relations == "same_other":
        return 2 * (s != t) + backward
    last = graph.num_speakers - 1
    return 2 * (graph.num_speakers * min(s, last) + min(t, last)) + backward


@pytest.mark.parametrize("relations", ["same_other", "speaker_pair"])
@pytest.mark.parametrize("num_speakers", [1, 2, 3, 4])
@pytest.mark.parametrize(("past", "future"), [(-1, -1), (1, 0), (0, 2), (0, 0)])
def test_relations(relations: str, num_speakers: int, past: int, future: int) -> None:
    graph = WindowGraph(Packing(LENGTHS), SPEAKER, past, future, relations, num_speakers)
    edges = graph.edges.t().tolist()
    expected = [relation_by_hand(graph, SPEAKER, source, target) for source, target in edges]
    assert graph.relation.tolist() == expected
    assert max(expected) < graph.num_relations == (4 if relations == "same_other" else 2 * num_speakers**2)


def test_released_relation_numbers() -> None:
    """For two speakers the released COGMEN code has 4 * speaker_s + 2 * speaker_t + [s >= t]; a self-loop has 1."""
    speaker = torch.tensor([0, 1])
    graph = WindowGraph(Packing((2,)), speaker, -1, -1, "speaker_pair", 2)
    found = {(s, t): r for (s, t), r in zip(graph.edges.t().tolist(), graph.relation.tolist(), strict=True)}
    assert found == {(0, 0): 1, (1, 0): 4 + 1, (0, 1): 2, (1, 1): 4 + 2 + 1}


@pytest.mark.parametrize("relations", ["same_other", "speaker_pair"])
@pytest.mark.parametrize(("past", "future"), WINDOWS)
def test_blocks_hold_the_same_graph(relations: str, past: int, future: int) -> None:
    torch.manual_seed(0)
    packing = Packing((4, 1, 6, 2))
    speaker = torch.randint(3, (packing.total,))
    graph = WindowGraph(packing, speaker, past, future, relations, 2)
    b, t, s = graph.adjacency.nonzero(as_tuple=True)
    first = packing.offsets[b]
    from_blocks = torch.stack([first + s, first + t])
    assert torch.equal(from_blocks, graph.edges)
    assert torch.equal(graph.relation_blocks[b, t, s], graph.relation)
    assert (graph.relation_blocks[~graph.adjacency] == graph.num_relations).all()


def test_same_other_does_not_see_numbers() -> None:
    graphs = [WindowGraph(Packing(LENGTHS), speaker, -1, -1) for speaker in (SPEAKER, 7 - 2 * SPEAKER)]
    assert torch.equal(graphs[0].relation, graphs[1].relation)
    other = WindowGraph(Packing(LENGTHS), torch.zeros_like(SPEAKER), -1, -1)
    assert not torch.equal(graphs[0].relation, other.relation)


def test_unknown_relations_are_refused() -> None:
    with pytest.raises(ValueError, match="relations must be one of"):
        WindowGraph(Packing((2,)), torch.tensor([0, 1]), 1, 1, "speakers")  # type: ignore[arg-type]
