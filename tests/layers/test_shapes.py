"""Every public layer on packed utterances refuses values of other rank, width and number, in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ercfusion.layers
from ercfusion.batch.packing import Packing
from ercfusion.layers import (
    GCN2,
    AngularGraph,
    BidirectionalMamba,
    DagStack,
    DialogueRecurrence,
    GraphAttention,
    Mamba,
    PackedLSTM,
    PackedTransformer,
    PackedTransformerLayer,
    RelationalConv,
    RelativeBias,
)
from ercfusion.ops.graph import WindowGraph

PACKING = Packing([3, 2])
SPEAKER = torch.tensor([0, 1, 0, 0, 1])
D = 4
Call = Callable[[Any, Tensor], Any]


def graph(relations: str = "same_other") -> WindowGraph:
    return WindowGraph(PACKING, SPEAKER, 2, 2, relations)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "BidirectionalMamba": (lambda: BidirectionalMamba(D), lambda layer, x: layer(x, PACKING)),
    "DagStack": (lambda: DagStack(D, 1), lambda layer, x: layer(x, SPEAKER, PACKING)),
    "DialogueRecurrence": (lambda: DialogueRecurrence(D, 3, 3, 3), lambda layer, x: layer(x, SPEAKER, PACKING)),
    "GraphAttention": (lambda: GraphAttention(D, 3), lambda layer, x: layer(x, graph())),
    "Mamba": (lambda: Mamba(D), lambda layer, x: layer(x, PACKING)),
    "PackedLSTM": (lambda: PackedLSTM(D, 3), lambda layer, x: layer(x, PACKING)),
    "PackedTransformer": (lambda: PackedTransformer(1, D, 2, 8), lambda layer, x: layer(x, PACKING)),
    "PackedTransformerLayer": (lambda: PackedTransformerLayer(D, 2, 8), lambda layer, x: layer(x, PACKING)),
    "RelationalConv": (
        lambda: RelationalConv(D, 3, graph().num_relations),
        lambda layer, x: layer(x, graph()),
    ),
}
OTHERWISE = {"GCN2", "RelativeBias"}  # tested below: (M, N, D) nodes, speakers
STREAMS = {"FusionAttention", "ModalityDropout"}  # tested in test_fusion.py


def test_every_layer_on_packed_utterances_is_tested() -> None:
    layers = {name: getattr(ercfusion.layers, name) for name in ercfusion.layers.__all__}
    packed = {
        name
        for name, layer in layers.items()
        if inspect.isclass(layer)
        and issubclass(layer, nn.Module)
        and {"packing", "graph"} & set(inspect.signature(layer.forward).parameters)
    }
    assert packed == {*CASES, *OTHERWISE, *STREAMS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(D,), (5, D + 1), (4, D), (1, 1, 5, D), (2, 3, D + 1)])
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    build, call = CASES[name]
    layer = build()
    call(layer, torch.zeros(5, D))
    with pytest.raises(ValueError, match=r" must be (packed|padded) utterances") as caught:
        call(layer, torch.zeros(shape))
    assert f"found {shape}." in str(caught.value)
    assert f"{D})" in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"Mamba", "BidirectionalMamba"}))
def test_padded_values_are_to_be_packed(name: str) -> None:
    build, call = CASES[name]
    message = r"must be packed utterances \(5, 4\); found \(2, 3, 4\). Pack padded values with packing.pack\(x\)."
    with pytest.raises(ValueError, match=message):
        call(build(), torch.zeros(2, 3, D))


def test_without_a_packing_any_number_of_rows_is_one_conversation() -> None:
    for layer in (Mamba(D), BidirectionalMamba(D)):
        assert layer(torch.zeros(7, D)).shape == (7, D)
        with pytest.raises(ValueError, match=r"packed utterances \(N, 4\) or padded \(B, L, 4\); found \(16,\)"):
            layer(torch.zeros(16))
    with pytest.raises(ValueError, match=r"packed utterances \(N, 4\); found \(2, 1, 4\)"):
        Mamba(D).step(torch.zeros(2, 1, D))


def test_nodes_masks_and_speakers_that_do_not_fit() -> None:
    present = torch.ones(5, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"present must be packed utterances \(5, D\); found \(4, 2\)"):
        AngularGraph(torch.zeros(2, 5, D), present[:4], PACKING)
    with pytest.raises(ValueError, match=r"x must be \(2, 5, D\) to fit present; found \(5, 4\)"):
        AngularGraph(torch.zeros(5, D), present, PACKING)
    nodes = AngularGraph(torch.ones(2, 5, D), present, PACKING)
    with pytest.raises(ValueError, match=r"x must be \(2, 5, 4\), the nodes of the graph; found \(2, 5, 3\)"):
        GCN2(D, 3, 1)(torch.zeros(2, 5, 3), nodes)
    message = r"speaker must be \(5\), one number per utterance; found \(6,\)."
    speaker = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        RelativeBias(2, 1)(PACKING, speaker)
    with pytest.raises(ValueError, match=message):
        DagStack(D, 1)(torch.zeros(5, D), speaker, PACKING)
    with pytest.raises(ValueError, match=message):
        DialogueRecurrence(D, 3, 3, 3)(torch.zeros(5, D), speaker, PACKING)
    with pytest.raises(ValueError, match=message):
        PackedTransformer(1, D, 2, 8, lags=1)(torch.zeros(5, D), PACKING, speaker)
