"""The utterance encoder: its formula, the checks of every architecture, also on sequences, and its augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import pad_sequences, pool_frames
from ercfusion.models import build_architecture
from ercfusion.models.base import Encoded
from ercfusion.models.utterance_encoder import UtteranceEncoder
from ercfusion.testing import CHECKS, WIDTHS, check_model, make_task, random_store, take

LEVELS = {"audio": "sequence", "visual": "sequence"}
QUIET: dict[str, Any] = {"time_masks": 0, "band_masks": 0, "noise": 0.0, "dropout": 0.0}


class Unrolled(UtteranceEncoder):
    """An encoder of sequences, which it makes of the vectors that the checks feed: what they are depends on these."""

    varied = True

    def __init__(self, inputs: InputSpec, *, frames: int = 40) -> None:
        super().__init__(
            InputSpec(inputs.widths, LEVELS, inputs.speakers, policy=inputs.policy),
            embedding=12,
            channels=4,
            frames=frames,
            **QUIET,
        )

    def forward(self, batch: ConversationBatch) -> Encoded:
        sequences = {}
        for name in LEVELS:
            values = batch.values(name)
            steps = 1 + (values[:, 0].abs() * 20).long() % 50 if self.varied else values[:, 0].long() * 0 + 40
            offsets = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
            owner = torch.repeat_interleave(torch.arange(len(values)), steps)
            place = torch.arange(len(owner)) - offsets[owner]
            shape = 1 + torch.sin(0.5 * place + values[owner, 1])
            sequences[name] = SequenceValues(values[owner] * shape[:, None], offsets)
        return super().forward(replace(batch, sequences=sequences))


class UnrolledToOneLength(Unrolled):
    varied = False


@pytest.mark.filterwarnings("ignore")  # of the compiler: lengths that are read break its graph
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("compile", "policies") else []) for name in CHECKS]
)
def test_checks_on_sequences(name: str) -> None:
    # Bit for bit the context makes no difference where the longest sequence of the batch stays what it is: another
    # width of the padding adds the same numbers in another order. That all of it is rounding is what
    # batch_invariance finds.
    check_model(UnrolledToOneLength if name == "context" else Unrolled, only=[name])


def store_of_sequences(seed: int = 0) -> Any:
    return random_store((3, 4, 1), tasks=[make_task()], steps={"audio": 80, "visual": 6}, absent=0.3, seed=seed)


def test_by_its_formula() -> None:
    torch.manual_seed(0)
    store = store_of_sequences()
    model = UtteranceEncoder(store.inputs, embedding=5, channels=2, hidden=4).double().eval()
    assert list(model.spectrograms) == ["audio"]
    for vector in model.absent.values():
        torch.nn.init.normal_(vector)
    batch = store.batch([0, 1, 2]).map_tensors(lambda x: x.double() if x.is_floating_point() else x)
    encoded = model(batch)
    assert model.hidden_size == 15
    state = model.state_dict()
    empty = 0
    for name in WIDTHS:
        stored = batch.sequence(name)
        for row in range(batch.num_utterances):
            own = stored.values[stored.offsets[row] : stored.offsets[row + 1]]
            if not batch.present[row, batch.column(name)] or not len(own):
                empty += bool(batch.present[row, batch.column(name)])
                expected = state[f"absent.{name}"]
            else:
                if name == "audio":
                    frames = model.spectrograms["audio"](own[None], torch.ones(1, len(own), dtype=torch.bool))[0][0]
                else:
                    frames = F.relu(own @ state[f"dense.{name}.0.weight"].t() + state[f"dense.{name}.0.bias"])
                pooled = torch.cat([frames.mean(0), frames.amax(0)])
                expected = F.relu(state[f"project.{name}.1.weight"] @ pooled + state[f"project.{name}.1.bias"])
                expected = state[f"project.{name}.3.weight"] @ expected + state[f"project.{name}.3.bias"]
            torch.testing.assert_close(encoded.modalities[name][row], expected)
            if expected is not state[f"absent.{name}"]:
                expected = expected / expected.norm() * 5**0.5
            part = slice(5 * list(WIDTHS).index(name), 5 * list(WIDTHS).index(name) + 5)
            torch.testing.assert_close(encoded.hidden[row, part], expected)
    assert empty  # turns that have the modality, but no step


def test_parts_in_eval_mode_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    store = store_of_sequences()
    model = UtteranceEncoder(store.inputs, embedding=5, channels=2).double().eval()
    batch = store.batch([0, 1, 2]).map_tensors(lambda x: x.double() if x.is_floating_point() else x)
    whole = model(batch).hidden
    monkeypatch.setattr("ercfusion.models.utterance_encoder._FRAMES", 100)
    torch.testing.assert_close(model(batch).hidden, whole)
    torch.testing.assert_close(model(take(batch, [1])).hidden, whole[3:7])


def test_which_modalities_are_spectrograms() -> None:
    inputs = InputSpec(WIDTHS, LEVELS)
    assert list(UtteranceEncoder(inputs).spectrograms) == ["audio"]
    assert list(UtteranceEncoder(inputs, spectrogram="audio+visual").spectrograms) == ["audio", "visual"]
    assert list(UtteranceEncoder(inputs, spectrogram="").spectrograms) == []
    assert list(UtteranceEncoder(InputSpec(WIDTHS)).spectrograms) == []  # single vectors


def test_randomness_is_in_training_alone_and_is_torchs() -> None:
    torch.manual_seed(0)
    store = store_of_sequences()
    batch = store.batch([0, 1, 2])
    for options in (
        {"noise": 0.5},
        {"time_masks": 2, "time_width": 9},
        {"band_masks": 2, "band_width": 3},
        {"frames": 20},
        {"dropout": 0.5},
    ):
        model = UtteranceEncoder(store.inputs, **{**QUIET, "frames": 0, "channels": 2, **options})
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(model(batch).modalities["audio"])
        assert torch.equal(results[0], results[1]), options
        assert not torch.equal(results[0], results[2]), options
        model.eval()
        assert torch.equal(model(batch).hidden, model(batch).hidden)
    still = UtteranceEncoder(store.inputs, **{**QUIET, "frames": 0, "channels": 2})
    assert torch.equal(still(batch).hidden, still(batch).hidden)


def test_vectors_are_a_sequence_of_one() -> None:
    torch.manual_seed(0)
    model = UtteranceEncoder(InputSpec({"text": 12})).eval()
    x = torch.randn(3, 12)
    frames = model.dense["text"](x)
    stored = SequenceValues(frames, torch.arange(4))
    torch.testing.assert_close(pool_frames(*pad_sequences(stored)), torch.cat([frames, frames], 1))


@pytest.mark.parametrize("option", ["noise", "frames", "time_masks", "band_width"])
def test_bad_options(option: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{option} must be from 0 to .*, found -1"):
        build_architecture("utterance_encoder", InputSpec(WIDTHS), {option: -1})
