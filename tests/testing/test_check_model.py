"""The checks themselves: each lets a sound architecture pass and catches one with the fault it is there for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.kinds import KINDS
from ercfusion.models import ARCHITECTURES
from ercfusion.models.base import Architecture, Capabilities, Encoded, Outcomes
from ercfusion.testing import CHECKS, check_finite, check_model, make_task, without_dropout


class Sound(Architecture):
    """Two layers on one utterance; the base of everything faulty here."""

    capabilities = Capabilities(contextual=False, causal=True, absent="mean")

    def __init__(self, inputs: InputSpec, *, hidden: int = 64) -> None:
        super().__init__(inputs)
        self.hidden_size = hidden
        self.first = nn.Linear(sum(inputs.widths.values()), hidden)
        self.second = nn.Linear(hidden, hidden)

    def read(self, batch: ConversationBatch) -> Tensor:
        return torch.cat([batch.values(name) for name in batch.modalities], 1)

    def encode(self, batch: ConversationBatch) -> Tensor:
        return self.second(self.first(self.read(batch)).relu())

    def forward(self, batch: ConversationBatch) -> Encoded:
        return Encoded(self.encode(batch))


class Infinite(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch).log()


class WrongWidth(Sound):
    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.hidden_size = 1

    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch)[:-1, :1]


class Unused(Sound):
    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.forgotten = nn.Linear(3, 3)


class Detached(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        return self.second(0 * self.first(self.read(batch)) + 1)


class Blind(Sound):
    """Has parameters that get gradients, but cannot tell utterances apart."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch).mean(0).expand(batch.num_utterances, -1)


class AcrossTheBatch(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        x = super().encode(batch)
        return x - x.mean(0)


class Ordered(Sound):
    """Each conversation is told its place in the batch."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch) + 0.1 * batch.packing.conversation[:, None]


class Deviations(Sound):
    """Divides by a deviation, which a single utterance does not have."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        x = super().encode(batch)
        return x / x.std(0)


class Normalized(Sound):
    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.norm = nn.BatchNorm1d(64)

    def encode(self, batch: ConversationBatch) -> Tensor:
        return self.norm(super().encode(batch))


class Embedded(Sound):
    """A vector for each of the speakers of the training data, and none for others."""

    capabilities = replace(Sound.capabilities, speakers="numbered")

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.who = nn.Embedding(inputs.speakers, self.hidden_size)

    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch) + self.who(batch.speaker)


class Multiplying(Sound):
    """Masks by multiplication: not-a-number times zero is not a number."""

    def read(self, batch: ConversationBatch) -> Tensor:
        present = batch.present.float()
        return torch.cat([v * present[:, m, None] for m, v in enumerate(batch.features.values())], 1)


class CountsSteps(Sound):
    """Uses the number of steps of a sequence, also if the modality is absent."""

    def read(self, batch: ConversationBatch) -> Tensor:
        return super().read(batch) * (1 + batch.sequence("audio").offsets.diff()[:, None])


class ReadsStored(Sound):
    """Reads stored means, hidden steps included."""

    def read(self, batch: ConversationBatch) -> Tensor:
        stored = batch.features["audio"].sum(1, keepdim=True)
        return super().read(batch) + 1e-3 * stored


class IgnoresDrop(Sound):
    def read(self, batch: ConversationBatch) -> Tensor:
        return super().read(replace(batch, drop=None))


class Unaware(Sound):
    capabilities = replace(Sound.capabilities, absent="vector")


class SecretlyAware(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch) + batch.present.sum(1, keepdim=True)


class ClaimsToSkip(Sound):
    """A bias per modality, also of absent ones."""

    capabilities = replace(Sound.capabilities, absent="vector", skips=True)

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.project = nn.ModuleDict({name: nn.Linear(width, 8) for name, width in inputs.widths.items()})
        self.first = nn.Linear(8 * len(inputs.widths), self.hidden_size)

    def read(self, batch: ConversationBatch) -> Tensor:
        return torch.cat([layer(batch.values(name)) for name, layer in self.project.items()], 1)


class Counting(Sound):
    """Divides by the stored numbers of absent modalities, if they were filled."""

    def read(self, batch: ConversationBatch) -> Tensor:
        x = super().read(batch)
        return x if self.inputs.policy is None else x / (x[:, :1] != 0)


class Reverse(Sound):
    """Adds the sum over later utterances, whatever it declares."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        x = super().encode(batch)
        rest = [part.sum(0) - part.cumsum(0) for part in x.split(batch.packing.lengths)]
        return x + torch.cat(rest)


class ReverseCausal(Reverse):
    capabilities = replace(Sound.capabilities, contextual=True)


class FromTheEnd(Sound):
    """Knows how many utterances are still to come."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        left = batch.packing.length[batch.packing.conversation] - batch.packing.position
        return super().encode(batch) + left[:, None]


class Forward(Sound):
    """Reads the past only and does not say so."""

    capabilities = replace(Sound.capabilities, contextual=True, causal=False)

    def encode(self, batch: ConversationBatch) -> Tensor:
        return torch.cat([part.cumsum(0) for part in super().encode(batch).split(batch.packing.lengths)])


class ClaimsContext(Sound):
    capabilities = replace(Sound.capabilities, contextual=True)


class SecretSpeakers(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch) + (batch.speaker == 0)[:, None]


class NumberedSpeakers(SecretSpeakers):
    capabilities = replace(Sound.capabilities, speakers="same_other")


class ClaimsSameOther(Sound):
    capabilities = replace(Sound.capabilities, speakers="same_other")


class ClaimsNumbered(Sound):
    capabilities = replace(Sound.capabilities, speakers="numbered")


class Unsaved(Sound):
    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)
        self.offset = torch.randn(self.hidden_size)

    def encode(self, batch: ConversationBatch) -> Tensor:
        return super().encode(batch) + self.offset.to(batch.features["text"].dtype)


class MixedTypes(Sound):
    """Adds what autocast has made bfloat16 into a float32 sum."""

    def encode(self, batch: ConversationBatch) -> Tensor:
        x = super().encode(batch)
        zeros = batch.features["text"].new_zeros(x.shape)
        return zeros.index_add(0, torch.arange(len(x)), x)


class OtherwiseCompiled(Sound):
    def encode(self, batch: ConversationBatch) -> Tensor:
        x = super().encode(batch)
        return x + 1 if torch.compiler.is_compiling() else x


class NotCompiled(Sound):
    capabilities = replace(Sound.capabilities, compiles=False)


class Trusting(Sound):
    def check_inputs(self, batch: ConversationBatch) -> None:
        """Whatever comes."""


class Demanding(Sound):
    """Does not run without what a recognizer lends."""

    capabilities = replace(Sound.capabilities, asks=("outcomes",))

    def forward(self, batch: ConversationBatch, outcomes: Outcomes) -> Encoded:  # type: ignore[override]
        return Encoded(self.encode(batch))


FAULTS: list[tuple[str, type[Sound], str]] = [
    ("finite", Infinite, "numbers are not finite"),
    ("finite", WrongWidth, "logits have shape"),
    ("finite", Demanding, "missing 1 required positional argument: 'outcomes'"),
    ("gradients", Unused, "the parameter architecture.forgotten.weight gets no gradient"),
    ("gradients", Detached, "the gradient of architecture.first.weight is zero throughout"),
    ("overfits", Blind, "steps on two conversations"),
    ("batch_invariance", AcrossTheBatch, "differ by up to"),
    ("batch_invariance", Ordered, "in another order of the batch"),
    ("small_batches", Deviations, r"logits of conversations of lengths \[1\]"),
    ("single_utterance_training", Normalized, "raised ValueError: Expected more than 1 value"),
    ("many_speakers", Embedded, "raised IndexError"),
    ("absent_content", Multiplying, "with nan instead of 0 in a modality that is absent"),
    ("absent_content", IgnoresDrop, "in a modality that is dropped"),
    ("hidden_steps", CountsSteps, "logits with all steps hidden instead of the modality dropped"),
    ("hidden_steps", ReadsStored, "numbers are not finite"),
    ("policies", ClaimsToSkip, "project.text.bias gets a gradient with the policy skip and text absent everywhere"),
    ("policies", Counting, "numbers are not finite"),
    ("missing_aware", Unaware, "absent text gives the result of zeros"),
    ("missing_aware", SecretlyAware, "not declared missing-aware"),
    ("context", Reverse, "logits after a change of the future"),
    ("context", ReverseCausal, "logits after a change of the future"),
    ("context", FromTheEnd, "after the future was cut off"),
    ("context", Forward, "a change of all later utterances changes nothing"),
    ("context", ClaimsContext, "a change of all earlier utterances changes nothing"),
    ("speakers", SecretSpeakers, "logits after a change of speakers"),
    ("speakers", NumberedSpeakers, "after a renumbering of the speakers"),
    ("speakers", ClaimsSameOther, "other speakers change nothing"),
    ("speakers", ClaimsNumbered, "other numbers change nothing"),
    ("pretrained", Unsaved, "logits after saving and loading"),
    ("autocast", MixedTypes, "raised RuntimeError"),
    ("compile", OtherwiseCompiled, "compiled logits"),
    ("compile", NotCompiled, "without a compile_note"),
    ("inputs", Trusting, "instead of BatchError"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_architecture_passes(kind: str) -> None:
    check_model(Sound, make_task(kind), only=[name for name in CHECKS if name != "compile"])


def test_a_sound_architecture_compiles() -> None:
    check_model(Sound, only=["compile"])


@pytest.mark.parametrize(("check", "model", "message"), FAULTS, ids=[f"{c}-{m.__name__}" for c, m, _ in FAULTS])
def test_a_fault_is_caught(check: str, model: type[Sound], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{model.__name__}, single_label, requirement '{check}': .*{message}"):
        CHECKS[check](model)


def test_every_check_is_tested_here() -> None:
    assert {check for check, _, _ in FAULTS} == CHECKS.keys()


def test_exemptions() -> None:
    check_model(Normalized, only=["single_utterance_training"], exempt={"single_utterance_training": "batch norm"})
    with pytest.raises(AssertionError, match=r"exemption from 'finite' is not needed \(its reason: no reason\)"):
        check_model(Sound, only=["finite"], exempt={"finite": "no reason"})
    with pytest.raises(ValueError, match="has no reason"):
        check_model(Sound, exempt={"finite": " "})
    with pytest.raises(ValueError, match="no requirement 'finit'"):
        check_model(Sound, only=["finit"])


def test_exempt_checks_do_not_hide_others() -> None:
    with pytest.raises(AssertionError, match="requirement 'single_utterance_training'"):
        check_model(
            Normalized,
            only=["finite", "single_utterance_training", "speakers"],
            exempt={"batch_invariance": "not checked here"},
        )


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = set()
    encode = Sound.encode
    monkeypatch.setattr(Sound, "encode", lambda self, batch: widths.add(self.hidden_size) or encode(self, batch))
    check_finite(Sound, options={"hidden": 16})
    assert widths == {16}
    with pytest.raises(AssertionError, match="Sound, single_label, requirement 'finite': raised ConfigError"):
        check_finite(Sound, options={"hiden": 16})


def test_a_class_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is imported, because the caller names it; the saved model names the class."""
    (tmp_path / "named_for_check.py").write_text(
        "from ercfusion.models.concat import Concat\n\nclass Mine(Concat):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(ARCHITECTURES)
    check_model("named_for_check:Mine", options={"hidden": 8}, only=["finite", "pretrained"])
    assert known == ARCHITECTURES
    with pytest.raises(AssertionError, match="the module named_for_check has no class 'Other'"):
        check_finite("named_for_check:Other")
    with pytest.raises(AssertionError, match=r"pathlib:Path is not a subclass of"):
        check_finite("pathlib:Path")
    monkeypatch.delitem(sys.modules, "named_for_check")


def test_randomness_outside_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_model(Sound, only=["finite", "overfits", "pretrained"])
    assert torch.equal(torch.rand(3), expected)


def test_without_dropout() -> None:
    torch.manual_seed(0)
    modules: list[tuple[nn.Module, Any]] = [
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)), lambda m, x: m(x)),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5), lambda m, x: m(x)[0]),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5), lambda m, x: m(x)),
        (nn.AlphaDropout(0.5), lambda m, x: m(x)),
    ]
    x = torch.randn(6, 4)
    for module, run in modules:
        assert not torch.equal(run(module, x), run(module, x))
        assert without_dropout(module) is module
        assert torch.equal(run(module, x), run(module, x))
