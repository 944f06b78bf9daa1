"""Requirements about the policies for absent modalities."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch
from ercfusion.config.missing_policies import POLICIES
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing.assertions import assert_all_finite, assert_equal, assert_finite, outputs_of
from ercfusion.testing.batches import WIDTHS, fill_absent, spoil_absent
from ercfusion.testing.case import Case, without_dropout
from ercfusion.testing.missing import evidence

CONTENTS = (math.nan, math.inf, -math.inf)


def policies(case: Case) -> None:
    """Every policy that the architecture allows does what its name says.

    - NaN and infinity stored in absent modalities give bit for bit the results of zeros: outputs and gradients of
      parameters and inputs. All are finite, also without any modality and under bfloat16. Saving keeps the policy.
    - ``zero`` and ``mean`` equal these values stored as present ones. ``learned`` starts as ``mean``, and its vectors
      get a gradient.
    - With ``skip`` and a modality absent everywhere, the architecture's parameters with its name only get no gradient,
      such as ``encoders.audio.weight``.
    """
    if case.build().architecture.capabilities.absent == "generated":
        return  # it refuses every policy; absent_content checks its own way
    steps = {"audio": 4}
    batch = case.batch((5, 9, 2), absent=0.3, steps=steps, seed=5)
    generator = torch.Generator().manual_seed(5)
    batch = batch.hide(torch.rand(batch.available.shape, generator=generator) < 0.2)
    assert not batch.present[-1].any(), "the check's own batch is wrong"
    outputs: dict[str, dict[str, Tensor]] = {}
    for policy in _allowed(case):
        recognizer = case.build(steps=steps, policy=policy)
        when = f"with the policy {policy}"
        expected = evidence(case, recognizer, fill_absent(batch, 0.0))
        assert_all_finite(expected, when)
        for name, value in evidence(case, recognizer, spoil_absent(batch, CONTENTS)).items():
            assert_equal(value, expected[name], f"{name} {when} and NaN or infinity in absent modalities")
        nothing = batch.hide(torch.ones_like(batch.available))
        assert_all_finite(evidence(case, recognizer, nothing), f"{when} and without any modality")
        _check_half_precision(case, recognizer, batch, when)
        outputs[policy] = _check_saved(recognizer.eval(), batch, when)
        _check_meaning(case, recognizer, batch, policy)
    if recognizer.architecture.capabilities.learns:
        same = torch.equal(outputs["zero"]["logits"], outputs["mean"]["logits"])
        assert not same, "the policies zero and mean give the same logits, although no mean is 0"
    for name, value in outputs["learned"].items():
        assert_equal(value, outputs["mean"][name], f"{name} of the untrained policy learned instead of mean")


def _allowed(case: Case) -> Iterator[str]:
    can = case.build().architecture.capabilities
    return (policy for policy in POLICIES if can.skips or policy != "skip")


def _check_half_precision(case: Case, recognizer: Recognizer, batch: ConversationBatch, when: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        recognized = recognizer.train()(batch)
        loss = case.loss(recognizer, recognized, batch)
    assert_finite(loss, f"the loss {when} under autocast")
    loss.backward()


@torch.no_grad()
def _check_saved(recognizer: Recognizer, batch: ConversationBatch, when: str) -> dict[str, Tensor]:
    """The outputs in eval mode."""
    outputs = outputs_of(recognizer(batch))
    with tempfile.TemporaryDirectory() as temporary:
        loaded = Recognizer.from_pretrained(recognizer.save_pretrained(Path(temporary) / "model"))
    for name, value in outputs_of(loaded(batch)).items():
        assert_equal(value, outputs[name], f"{name} after saving and loading {when}")
    return outputs


def _check_meaning(case: Case, recognizer: Recognizer, batch: ConversationBatch, policy: str) -> None:
    recognizer = without_dropout(recognizer.train())  # type: ignore[assignment]
    if policy == "skip":
        for column, name in enumerate(batch.modalities):
            hidden = torch.zeros_like(batch.available)
            hidden[:, column] = True
            for parameter, value in case.gradients(recognizer, batch.hide(hidden)).items():
                own = parameter.startswith("architecture.") and set(parameter.split(".")) & {*WIDTHS} == {name}
                assert not own or not value.any(), (
                    f"the parameter {parameter} gets a gradient with the policy skip and {name} absent everywhere"
                )
        return

    def gradients_of(batch: ConversationBatch) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return case.gradients(copy.deepcopy(recognizer), batch)  # a copy, because of running statistics

    gradients = gradients_of(batch)
    if policy == "learned":
        for name, value in gradients.items():
            assert not name.startswith("fill.") or value.any(), f"the gradient of {name} is zero throughout"
        return
    stored = _stored(recognizer, batch, policy)
    for name, value in gradients_of(stored).items():
        assert_equal(gradients[name], value, f"the gradient of {name} with the policy {policy} and with stored values")


def _stored(recognizer: Recognizer, batch: ConversationBatch, policy: str) -> ConversationBatch:
    """The batch of the utterance-level modalities with 0 or the mean stored, and present."""
    features, present = dict(batch.features), batch.present.clone()
    for column, name in enumerate(batch.modalities):
        if name in batch.sequences:
            continue  # an absent sequence has no step to store a value in
        value = recognizer.standardize.get_buffer(f"mean_{name}") if policy == "mean" else torch.zeros(())
        features[name] = torch.where(present[:, column, None], features[name], value)
        present[:, column] = True
    return replace(batch, features=features, available=present, drop=None)
