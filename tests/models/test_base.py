"""The contract of an architecture, and for every preset: what it declares of its limits is what it does."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from ercfusion import testing
from ercfusion._core.errors import BatchError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.models import architecture_limits, build_architecture
from ercfusion.models.base import Architecture, Capabilities, Encoded, Limits, Outcomes, Request
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_batch, take

PRESETS = sorted(Composer("train").groups()["model"])
WIDTHS = {"text": 40, "audio": 40, "visual": 40}  # heads of all presets divide the sum


class Plain(Architecture):
    """Reads one modality; declares what its option decides after ``super().__init__()``."""

    capabilities = Capabilities(contextual=False, requires=("text",))

    def __init__(self, inputs: InputSpec, *, causal: bool = True, longest: int = 3) -> None:
        super().__init__(inputs)
        self.capabilities = replace(self.capabilities, causal=causal)
        self.hidden_size = inputs.widths["text"]
        self.asked: list[str] = []

    @classmethod
    def limits(cls, options: Any) -> Limits:
        return Limits(longest=options["longest"])

    def forward(self, batch: ConversationBatch, outcomes: Outcomes | None = None) -> Encoded:
        value = batch.values("text")
        if outcomes is not None:
            self.asked.append("text")
            outcomes("text", value)
        return Encoded(value, modalities={"text": value})


class Asking(Plain):
    capabilities = Capabilities(asks=("outcomes",))


def test_capabilities_are_a_value_of_the_class_or_of_an_instance() -> None:
    model = Plain(InputSpec(WIDTHS), causal=True)
    assert model.capabilities == replace(Plain.capabilities, causal=True)
    assert not Plain.capabilities.causal
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.capabilities == model.capabilities
        with pytest.raises(BatchError, match="width 40, the data has 12"):
            copied(random_batch((2,)))
    with pytest.raises(BatchError, match="Plain needs the modality 'text'"):
        Plain(InputSpec({"audio": 3}))


def test_forward_sees_only_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Plain(InputSpec(WIDTHS))
    monkeypatch.setattr(Plain, "forward", lambda self, batch: pytest.fail("forward was reached"))
    with pytest.raises(BatchError, match="'text': the model was built for width 40, the data has 12"):
        model(random_batch((2, 3)))


def test_what_is_asked_for_is_lent() -> None:
    inputs = InputSpec(dict(testing.WIDTHS))
    batch = random_batch((2, 3))
    asking = Recognizer(Asking, inputs, make_task())
    asking(batch)
    assert isinstance(asking.architecture, Asking)
    assert asking.architecture.asked == ["text"]
    assert list(asking.unimodal_heads) == ["text"]
    plain = Recognizer(Plain, inputs, make_task())
    plain(batch)
    assert isinstance(plain.architecture, Plain)
    assert not plain.architecture.asked
    assert not plain.unimodal_heads


def test_every_request_is_lent() -> None:
    recognizer = Recognizer(Plain, InputSpec(dict(testing.WIDTHS)), make_task())
    recognizer.architecture.capabilities = Capabilities(asks=get_args(Request))
    assert list(recognizer.lent()) == list(get_args(Request))
    with pytest.raises(ValueError, match="asks: unknown request 'weather'"):
        Capabilities(asks=("weather",))  # type: ignore[arg-type]


def test_limits_are_told_all_options() -> None:
    assert architecture_limits(Plain).longest == 3
    assert architecture_limits(Plain, {"longest": 7}).longest == 7


@functools.cache
def composed(preset: str) -> dict[str, Any]:
    found: dict[str, Any] = Composer("train").compose([f"model={preset}"])["model"]
    return found


def built(preset: str, **changed: Any) -> tuple[str, dict[str, Any], torch.nn.Module]:
    settings = {**composed(preset), **changed}
    name = settings.pop("name")
    torch.manual_seed(0)
    levels = {"audio": "sequence"} if name == "utterance_encoder" else {}
    inputs = InputSpec({"audio": 40} if levels else WIDTHS, levels)  # type: ignore[arg-type]
    return name, settings, build_architecture(name, inputs, settings).eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_declared_dependence_on_the_batch_is_what_is_found(preset: str) -> None:
    name, options, model = built(preset)
    found = model.inputs.widths  # type: ignore[union-attr]
    steps = {"audio": 3} if name == "utterance_encoder" else {}
    batch = random_batch((2, 9, 4), widths=dict(found), steps=steps)
    with torch.no_grad():
        together = model(batch).hidden[:2]
        alone = model(take(batch, [0])).hidden
    depends = not torch.allclose(together, alone, atol=1e-5, rtol=1e-4)
    why = architecture_limits(name, options).batch_dependence
    assert bool(why) == depends == (preset == "cogmen_released")
    assert not why or "padding" in why


@pytest.mark.parametrize("preset", PRESETS)
def test_the_declared_longest_conversation_is_the_longest(preset: str) -> None:
    settings = dict(composed(preset))
    longest = architecture_limits(settings.pop("name"), settings).longest
    assert (longest is not None) == (preset == "dialoguegcn_released")
    if longest is None:
        return
    _, _, model = built(preset, positions=5)
    with torch.no_grad():
        model(random_batch((5, 2), widths=WIDTHS))
        with pytest.raises(BatchError, match="has 5 positions"):
            model(random_batch((6, 2), widths=WIDTHS))
