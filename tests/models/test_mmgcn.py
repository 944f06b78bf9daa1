from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from quick import every
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.gcn2 import angular_adjacency_reference
from ercfusion.models import architecture_limits
from ercfusion.models.mmgcn import Mmgcn
from ercfusion.testing import CHECKS, WIDTHS, check_model, make_task, random_batch, take

SMALL: dict[str, Any] = {"projection": 12, "hidden": 6}
RELEASED: dict[str, Any] = {"speakers": "text", "variant": True, "activation": "relu", "layers": 6}


def make(widths: Any = WIDTHS, **options: Any) -> Mmgcn:
    torch.manual_seed(0)
    model = Mmgcn(InputSpec(widths), **{**SMALL, **options})
    return model.double().eval()


def literal(model: Mmgcn, batch: ConversationBatch, speakers: str, recurrent: str) -> Tensor:
    """The whole network one conversation at a time, with the dense matrix of its nodes."""
    outputs = []
    names = batch.modalities
    starts = batch.offsets.tolist()
    for first, last in pairwise(starts):
        rows = slice(first, last)
        nodes = []
        for m, name in enumerate(names):
            here = batch.present[rows, m]
            x = torch.stack(
                [
                    model.project.project[name](value) if there else model.project.absent[name]
                    for value, there in zip(batch.features[name][rows], here, strict=True)
                ]
            )
            if recurrent == "all" or recurrent == name:
                x = model.context[name].lstm(x)[0]
            if speakers == "all" or speakers == name:
                x = x + torch.stack([model.speaker.weight[min(int(s), 1)] for s in batch.speaker[rows]])
            nodes.append(x)
        x = torch.stack(nodes)
        present = batch.present[rows]
        A = angular_adjacency_reference(x, present)
        stack = model.graph
        initial = h = F.linear(x.flatten(0, 1), stack.narrow.weight, stack.narrow.bias).relu()
        for conv in stack.convs:
            mixed = A @ h
            base = (1 - conv.alpha) * mixed + conv.alpha * initial
            support = torch.cat([mixed, initial], 1) if conv.variant else base
            h = ((1 - conv.beta) * base + conv.beta * support @ conv.weight).relu()
        h = h.view(len(names), last - first, -1) * present.t()[:, :, None]
        outputs.append(model.activate(torch.cat([x, h], 2)).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        RELEASED,
        {"recurrent": "all", "speakers": "none", "lstm_layers": 1},
        {"recurrent": "none", "layers": 0},
        {"alpha": 0.4, "theta": 1.5, "layers": 2},
    ],
    ids=["default", "released", "recurrent", "shallow", "other"],
)
def test_against_the_dense_form(options: dict[str, Any]) -> None:
    """Values and all gradients, with absent modalities and a speaker that training did not know."""
    model = make(**options)
    batch = random_batch((4, 1, 7), absent=0.3, speakers=3, dtype=torch.float64)
    scope = {"speakers": "all", "recurrent": "text", **options}
    results = []
    for run in (lambda: model(batch).hidden, lambda: literal(model, batch, scope["speakers"], scope["recurrent"])):
        model.zero_grad()
        value = run()
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        (value * weight).sum().backward()
        results.append(
            {"value": value.detach(), **{name: entry.grad.clone() for name, entry in model.named_parameters()}}
        )
    for name, expected in results[1].items():
        torch.testing.assert_close(
            results[0][name], expected, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_activation() -> None:
    batch = random_batch(dtype=torch.float64)
    assert make(**RELEASED)(batch).hidden.min() == 0
    assert -0.2 < make()(batch).hidden.min() < 0  # the lowest value of GELU is -0.17


VARIANTS: list[tuple[Any, dict[str, Any]]] = [
    ("single_label", {}),
    ("multi_label", RELEASED),
    ("regression", {"recurrent": "none", "speakers": "none", "layers": 1}),
    ("distribution", {"recurrent": "all", "layers": 0}),
]
SLOW = {"compile", "overfits", "policies", "hidden_steps"}


@pytest.mark.parametrize(("task", "options"), every(2, VARIANTS))
def test_requirements(task: Any, options: dict[str, Any]) -> None:
    only = set(CHECKS) - SLOW
    check_model(Mmgcn, make_task(task), {**SMALL, **options}, unimodal=task == "single_label", only=only)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "options"), VARIANTS)
def test_compiles_and_learns(task: Any, options: dict[str, Any]) -> None:
    check_model(Mmgcn, make_task(task), {**SMALL, **options}, unimodal=task == "single_label", only=SLOW)


def test_requirements_of_many_layers() -> None:
    only = ["finite", "gradients", "batch_invariance", "autocast", "absent_content"]
    check_model(Mmgcn, options={**SMALL, **RELEASED, "layers": 64}, only=only)


@pytest.mark.parametrize(
    "widths", [{"text": 5}, {"audio": 4}, {"audio": 4, "visual": 3}, {"audio": 4, "text": 5, "visual": 3, "mocap": 6}]
)
def test_any_modalities(widths: dict[str, int]) -> None:
    model = make(widths)
    batch = random_batch((4, 1, 6), widths=widths, absent=0.2, dtype=torch.float64)
    encoded = model(batch)
    assert encoded.hidden.shape == (11, len(widths) * 18)
    assert list(encoded.modalities) == list(widths)
    assert ("text" in model.context) is ("text" in widths)
    assert model.capabilities.compiles is ("text" not in widths)
    torch.testing.assert_close(encoded.hidden, literal(model, batch, "all", "text"), rtol=1e-9, atol=1e-11)


def test_an_absent_modality_is_no_node() -> None:
    """What an absent modality's learned vector is does not reach other utterances, nor other modalities."""
    model = make(recurrent="none")
    batch = random_batch((8,), dtype=torch.float64)
    drop = torch.zeros_like(batch.available)
    drop[3, 1] = True
    hidden = batch.hide(drop)
    before = model(hidden).modalities
    with torch.no_grad():
        model.project.absent["audio"].normal_()
    after = model(hidden).modalities
    assert torch.equal(before["text"], after["text"])
    assert torch.equal(before["visual"], after["visual"])
    changed = (before["audio"] != after["audio"]).any(1)
    assert changed.tolist() == [t == 3 for t in range(8)]
    # And the node is missed: in its conversation, by all others.
    assert (before["audio"] != model(batch).modalities["audio"]).any(1).all()


@pytest.mark.parametrize(
    ("scope", "heard"), [("all", {"text", "audio", "visual"}), ("text", {"text"}), ("none", set())]
)
def test_to_whom_speakers_are_told(scope: str, heard: set[str]) -> None:
    torch.manual_seed(0)
    model = Mmgcn(InputSpec(WIDTHS), **SMALL, speakers=scope, layers=0, recurrent="none").double().eval()
    batch = random_batch((6,), dtype=torch.float64)
    before = {name: value.detach() for name, value in model(batch).modalities.items()}
    batch.speaker[:] = 1 - batch.speaker
    after = model(batch).modalities
    assert {name for name in WIDTHS if not torch.equal(before[name], after[name])} == heard
    assert model.capabilities.speakers == ("none" if scope == "none" else "numbered")


def test_with_one_speaker_numbers_say_nothing() -> None:
    assert Mmgcn(InputSpec(WIDTHS, speakers=1), **SMALL).capabilities.speakers == "none"
    assert Mmgcn(InputSpec(WIDTHS, speakers=9), **SMALL).speaker.weight.shape == (9, 12)


def test_conversations_do_not_meet() -> None:
    model = make()
    batch = random_batch((3, 14, 1, 9), absent=0.2, dtype=torch.float64)
    together = model(batch).hidden
    torch.testing.assert_close(model(take(batch, [2, 0])).hidden[:1], together[17:18], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(take(batch, [1])).hidden, together[3:17], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": 7}, "projection must be even and above 0, found 7"),
    ],
)
def test_wrong_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mmgcn(InputSpec(WIDTHS), **options)


def test_speakers_of_a_text_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="speakers='text' needs the modality 'text'; the data has audio"):
        Mmgcn(InputSpec({"audio": 3}), speakers="text")


@pytest.mark.parametrize("twice", [True, False])
def test_dropout_of_the_residual(twice: bool) -> None:
    """As released, what goes around the graph is dropped with it and again before the classifier."""
    model = make(
        projection=40, layers=1, dropout=0.5, recurrent="none", speakers="none", residual_dropout=twice
    ).train()
    seen: list[Tensor] = []
    model.graph.narrow.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    torch.manual_seed(1)
    x = model(random_batch((60,), dtype=torch.float64)).hidden.unflatten(1, (3, -1))[:, :, :40].transpose(0, 1)
    assert float((x == 0).double().mean()) == pytest.approx(0.75 if twice else 0.5, abs=0.02)
    assert bool((x[seen[0] == 0] == 0).all()) == twice
    assert float((seen[0] == 0).double().mean()) == pytest.approx(0.5, abs=0.02)  # the graph's input: once


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_initial_embedding_of_speakers(std: float) -> None:
    model = Mmgcn(InputSpec(WIDTHS, speakers=9), projection=200, speaker_std=std)
    assert float(model.speaker.weight.detach().std()) == pytest.approx(std, rel=0.1)


def test_an_lstm_that_reads_padding() -> None:
    """As released: shorter conversations are followed by projected zeros, and the score depends on the batch."""
    model = make(mask_padding=False)
    batch = random_batch((3, 6), dtype=torch.float64)
    layer, project = model.context["text"].lstm, model.project.project["text"]
    padded = batch.packing.pad(batch.features["text"])
    expected = batch.packing.pack(layer(project(padded))[0])
    seen: list[Tensor] = []
    model.context["text"].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    together = model(batch).hidden
    torch.testing.assert_close(seen[0], expected)
    assert not torch.allclose(model(take(batch, [0])).hidden, together[:3])
    assert architecture_limits("mmgcn", {"mask_padding": False}).batch_dependence
    assert not architecture_limits("mmgcn").batch_dependence
