from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.models.dialoguernn import DialogueRnn
from ercfusion.testing import CHECKS, WIDTHS, check_model, random_batch, without_dropout

SMALL: dict[str, Any] = {
    "projection": 16,
    "global_size": 10,
    "party_size": 9,
    "emotion_size": 8,
    "hidden": 12,
}
RELEASED: dict[str, Any] = {"projection": 0, "residual": False}
CAUSAL: dict[str, Any] = {"bidirectional": False, "emotion_attention": False}


def make(**options: Any) -> DialogueRnn:
    torch.manual_seed(0)
    model = without_dropout(DialogueRnn(InputSpec(WIDTHS), **{**SMALL, **options}).double())
    assert isinstance(model, DialogueRnn)
    return model


def by_parts(model: DialogueRnn, batch: ConversationBatch) -> Tensor:
    """One conversation at a time, one receiving utterance at a time, from the parameters."""
    if not model.project.out_features:
        x = torch.cat([batch.values(name) for name in WIDTHS], 1)
    else:
        rows = []
        for i in range(batch.num_utterances):
            there = {name: bool(batch.present[i, m]) for m, name in enumerate(WIDTHS)}
            parts = [
                model.project.project[name](batch.features[name][i]) if there[name] else model.project.absent[name]
                for name in WIDTHS
            ]
            rows.append(model.fuse[2](F.gelu(torch.stack(parts).sum(0))))  # type: ignore[index]
        x = torch.stack(rows)
    emotions = model.recurrence.forward_reference(x, batch.speaker, batch.packing)
    outputs = []
    for own, states in zip(x.split(batch.packing.lengths), emotions.split(batch.packing.lengths), strict=True):
        for u, e in zip(own, states, strict=True):
            read = e
            if model.match is not None:
                weights = (states @ (model.match.weight @ e + model.match.bias)).softmax(0)
                read = weights @ states
                if model.residual:
                    read = torch.cat([read, e])
            if model.residual:
                read = torch.cat([read, u])
            outputs.append((model.dense.weight @ read + model.dense.bias).relu())
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "options",
    [{}, RELEASED, CAUSAL, {**CAUSAL, **RELEASED}, {"listener": True}, {"bidirectional": False, "residual": False}],
    ids=["default", "released", "causal", "causal_released", "listener", "attention_without_backward"],
)
def test_by_its_parts(options: dict[str, Any]) -> None:
    """Values and all gradients, with absent modalities and three speakers."""
    model = make(**options)
    batch = random_batch((4, 1, 7), absent=0.3, speakers=3, dtype=torch.float64)
    results = []
    for run in (lambda: model(batch).hidden, lambda: by_parts(model, batch)):
        model.zero_grad()
        value = run()
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        (value * weight).sum().backward()
        assert (value > 0).any(0).sum() > 3
        results.append({"value": value.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}})
    for name, expected in results[1].items():
        torch.testing.assert_close(
            results[0][name], expected, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_attention_maps() -> None:
    model = make()
    batch = random_batch((4, 1, 7), dtype=torch.float64)
    assert model(batch).attention == {}
    model.keep_attention = True
    emotions: list[Tensor] = []
    model.emotion_dropout.register_forward_hook(lambda module, entered, out: emotions.append(out))
    weights = model(batch).attention["emotions"]
    assert weights.shape == (3, 1, 7, 7)
    mask = batch.packing.mask
    torch.testing.assert_close(weights.sum(3)[:, 0], mask.double(), rtol=0, atol=1e-12)
    assert (weights * ~mask[:, None, None] == 0).all()
    # It is what mixes the states.
    mixed = batch.packing.pack(weights[:, 0] @ batch.packing.pad(emotions[0]))
    torch.testing.assert_close(mixed, model._attend(emotions[0], batch.packing), rtol=1e-10, atol=1e-12)
    plain = make(emotion_attention=False)
    plain.keep_attention = True
    assert plain(batch).attention == {}


def test_each_dropout_is_where_it_says() -> None:
    """With one of them alone in force, training differs from evaluation; with none it does not."""
    batch = random_batch((5, 3))
    for option, place in (("dropout", "dropout"), ("state_dropout", "recurrence"), ("emotion_dropout", "emotion")):
        torch.manual_seed(0)
        none = dict.fromkeys(("dropout", "state_dropout", "emotion_dropout"), 0.0)
        model = DialogueRnn(InputSpec(WIDTHS), **{**SMALL, **none, option: 0.5})
        inside: dict[str, list[Tensor]] = {"recurrence": [], "emotion": [], "dropout": []}

        def note(name: str, seen: dict[str, list[Tensor]] = inside) -> Any:
            return lambda module, entered, out: seen[name].append(out)

        model.recurrence.register_forward_hook(note("recurrence"))
        model.emotion_dropout.register_forward_hook(note("emotion"))
        model.dropout.register_forward_hook(note("dropout"))
        model.eval()(batch)
        model.train()(batch)
        changed = [name for name, (before, after) in inside.items() if not torch.equal(before, after)]
        order = list(inside)
        # The projected input's is under `dropout`, too, and so reaches everything.
        assert changed == (order if option == "dropout" else order[order.index(place) :])
    model = DialogueRnn(InputSpec(WIDTHS), **{**SMALL, **none})
    assert torch.equal(model.train()(batch).hidden, model.eval()(batch).hidden)


@pytest.mark.parametrize(("options", "causal"), [({}, False), (CAUSAL, True), ({"bidirectional": False}, False)])
def test_causal_where_nothing_reads_ahead(options: dict[str, Any], causal: bool) -> None:
    model = make(**options)
    assert model.capabilities.causal is causal
    batch, changed = (random_batch((6,), dtype=torch.float64) for _ in range(2))
    changed.features["text"][-1] += 1
    moved = (model(batch).hidden != model(changed).hidden).any(1)
    assert moved[-1]
    assert bool(moved[0]) is not causal


def test_requirements_of_the_released_form() -> None:
    # Without its own emotion states it may not leave the mean that all utterances begin with.
    check_model(DialogueRnn, options={**SMALL, **RELEASED}, only=[name for name in CHECKS if name != "overfits"])


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("state_dropout", 1.0, "state_dropout must be at least 0 and below 1, found 1"),
    ],
)
def test_wrong_options(option: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DialogueRnn(InputSpec(WIDTHS), **{option: value})


def test_the_released_preset_is_the_released_form() -> None:
    preset = Composer().compose(["model=dialoguernn_released"])["model"]
    assert {name: preset[name] for name in RELEASED} == RELEASED


def test_parameters_of_the_released_form() -> None:
    """At the authors' text vectors: the three GRUs, the query and the matching attention, counted by hand."""
    with torch.device("meta"):
        model = DialogueRnn(
            InputSpec({"text": 100}),
            **RELEASED,
            global_size=500,
            party_size=500,
            emotion_size=300,
            hidden=600,
        )
    gru = 3 * 500 * (600 + 500 + 2)
    direction = 2 * gru + 3 * 300 * (500 + 300 + 2) + 100 * 500
    assert sum(p.numel() for p in model.recurrence.parameters()) == 2 * direction
    assert sum(p.numel() for p in model.parameters()) == 2 * direction + 2 * (600 * 600 + 600)
