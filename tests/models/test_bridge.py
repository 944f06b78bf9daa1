from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import train
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.models.bridge import Bridge
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch
from ercfusion.testing.case import CHECKS

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "feedforward": 8, "hidden": 8, "tokens": 2, "layers": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"context": False},
    "no refinement": {"refine": 0},
    "causal, no lags": {"causal": True, "lags": 0},
    "as in EmoQ": {"tokens": 4, "layers": 2, "token_attention": True},
}
SLOW = {"compile", "overfits", "policies"}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_meets_the_requirements(name: str) -> None:
    check_model(Bridge, options={**SMALL, **VARIANTS[name]}, only=set(CHECKS) - SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_and_learns(name: str) -> None:
    check_model(Bridge, options={**SMALL, "width": 16, "hidden": 16, **VARIANTS[name]}, only=SLOW)


@pytest.mark.parametrize("kind", ["regression", "multi_label", "distribution"])
def test_meets_the_requirements_with_other_tasks(kind: str) -> None:
    chosen = ["finite", "gradients", "batch_invariance", "absent_content", "single_utterance_training"]
    check_model(Bridge, make_task(kind), SMALL, unimodal=True, only=chosen)


def test_what_it_reads_depends_on_the_features() -> None:
    words = InputSpec({"text": 4, "audio": 3}, {"text": "sequence"})
    assert Bridge(words, **SMALL).capabilities.contextual
    assert Bridge(words, **SMALL).capabilities.speakers == "same_other"
    assert not Bridge(words, **SMALL, context=False).capabilities.contextual
    steps = InputSpec({"text": 4}, {"text": "sequence"})
    assert not Bridge(steps, **SMALL).capabilities.contextual
    assert list(Bridge(words, **SMALL, context=False).refine) == ["text"]


def test_any_modalities() -> None:
    for names in (("text",), ("audio", "visual")):
        widths = {name: WIDTHS[name] for name in names}
        model = Bridge(InputSpec(widths), **SMALL)
        encoded = model(random_batch((4, 2), widths=widths))
        assert encoded.hidden.shape == (6, 8)
        assert {name: tuple(value.shape) for name, value in encoded.modalities.items()} == dict.fromkeys(names, (6, 8))
    with pytest.raises(ValueError, match="width 8 is not a multiple of 3 heads"):
        Bridge(InputSpec(WIDTHS), **{**SMALL, "heads": 3})


COUNTS = (3, 1, 0, 2, 4)
"""Steps of five utterances; the third has none, and the fourth lacks the modality."""


def sequences() -> ConversationBatch:
    batch = random_batch((2, 3), widths={"text": 4, "audio": 3}, absent=0.0, dtype=torch.float64)
    available = batch.available.clone()
    available[3, 0] = False
    offsets = torch.tensor([0, *COUNTS]).cumsum(0)
    values = torch.randn(sum(COUNTS), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return replace(batch, available=available, sequences={"text": SequenceValues(values, offsets)})


def test_sequences_one_utterance_after_the_other() -> None:
    torch.manual_seed(0)
    inputs = InputSpec({"text": 4, "audio": 3}, {"text": "sequence"})
    model = Bridge(inputs, **SMALL, context=False).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = sequences()
    text, audio = model.project.project["text"], model.project.project["audio"]
    rows, means, first = [], [], 0
    for row, count in enumerate(COUNTS):
        own = batch.sequences["text"].values[first : first + count]
        first += count
        x: Tensor = model.project.absent["text"][None] if row == 3 or not count else text(own)
        x = x + model.refine["text"](x, Packing([len(x)]), torch.zeros(len(x), dtype=torch.long))
        means.append(x.mean(0))
        tokens = model.bridge([x[None], audio(batch.features["audio"][row])[None, None]])
        rows.append(F.gelu(model.readout(tokens[0].mean(0))))
    encoded = model(batch)
    torch.testing.assert_close(encoded.hidden, torch.stack(rows), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(encoded.modalities["text"], torch.stack(means), rtol=1e-10, atol=1e-12)
    assert torch.stack(rows).std() > 0.01
    # What is stored for an absent modality is not read.
    changed = batch.sequences["text"].values.clone()
    changed[4:6] = float("nan")
    other = replace(batch, sequences={"text": replace(batch.sequences["text"], values=changed)})
    assert torch.equal(model(other).hidden, encoded.hidden)


def test_utterances_by_its_equations() -> None:
    torch.manual_seed(0)
    model = Bridge(InputSpec(WIDTHS), **SMALL).double().eval()
    batch = random_batch((3, 1, 4), absent=0.4, dtype=torch.float64)
    streams = []
    for column, name in enumerate(WIDTHS):
        x = model.project.project[name](batch.features[name].nan_to_num())
        x = torch.where(batch.available[:, column, None], x, model.project.absent[name])
        streams.append((x + model.refine[name](x, batch.packing, batch.speaker))[:, None])
    expected = F.gelu(model.readout(model.bridge(streams).mean(1)))
    torch.testing.assert_close(model(batch).hidden, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("no_pictures")
def test_labels_and_numbers_together(tmp_path: Any) -> None:
    small = [f"model.{name}={value}" for name, value in SMALL.items()]
    record = train(tmp_path / "run", "model=bridge", *small, "data.tasks=[emotion,vad]", "training.max_epochs=2")
    assert record["config"]["objective"]["regression_loss"] == "ccc"
    assert record["config"]["training"]["modality_dropout"] == 0.2
    assert record["task"]["kind"] == "single_label"
    assert set(record["others"]) == {"vad"}
    assert "ccc" in record["others"]["vad"]["metrics"]["test"]
