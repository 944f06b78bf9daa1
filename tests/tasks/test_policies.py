"""Policies for absent modalities in the recognizer."""

from __future__ import annotations

import json

import pytest
import torch

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.missing_policies import POLICIES
from ercfusion.layers.absent import FILLS
from ercfusion.models import Architecture, Capabilities, Encoded
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import WIDTHS, make_task, random_batch, random_store

TASK = make_task()


class Own(Architecture):
    """Reads the features and cannot skip one."""

    capabilities = Capabilities(contextual=False, causal=True, absent="mean")
    hidden_size = sum(WIDTHS.values())

    def forward(self, batch):
        return Encoded(torch.cat([batch.values(name) for name in batch.modalities], 1))


def built(policy=None, model="concat", **options):
    torch.manual_seed(0)
    recognizer = Recognizer(model, InputSpec(WIDTHS), TASK, options, policy=policy)
    recognizer.prepare(random_store((9, 8), tasks=[TASK], absent=0.2, seed=3))
    return recognizer.eval()


def test_without_a_policy_nothing_is_added():
    recognizer = built()
    assert "policy" not in recognizer.config["inputs"]
    assert recognizer.policy is recognizer.fill is None
    assert not [name for name in recognizer.state_dict() if "fill" in name]
    assert [name for name in recognizer.state_dict() if "absent" in name]


@pytest.mark.parametrize("policy", ["zero", "mean", "learned", "skip"])
def test_policy_keeps_the_other_initial_parameters(policy):
    own, other = built().state_dict(), built(policy).state_dict()
    assert {name for name in own if name not in other} == {f"architecture.absent.{name}" for name in WIDTHS}
    assert all(torch.equal(value, other[name]) for name, value in own.items() if name in other)
    vectors = {f"fill.vectors.{name}" for name in WIDTHS} if policy == "learned" else set()
    assert {name for name in other if name not in own} == vectors


@pytest.mark.parametrize("policy", ["zero", "mean", "learned", "skip"])
def test_saved_model_keeps_its_policy(tmp_path, policy):
    recognizer, batch = built(policy), random_batch(absent=0.4)
    for parameter in recognizer.parameters():
        parameter.data += 0.1
    loaded = Recognizer.from_pretrained(recognizer.save_pretrained(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["inputs"]["policy"] == policy
    assert loaded.policy == policy
    assert torch.equal(loaded(batch).logits, recognizer(batch).logits)


def test_unknown_policy_of_a_saved_model_is_refused(tmp_path):
    folder = built("mean").save_pretrained(tmp_path / "model")
    text = (folder / "config.json").read_text().replace('"policy": "mean"', '"policy": "meen"')
    (folder / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"missing\.policy: 'meen' is not a policy"):
        Recognizer.from_pretrained(folder)


def test_policies_are_those_of_the_list():
    assert {*FILLS, "skip"} == POLICIES.keys()
    with pytest.raises(ConfigError, match=r"missing\.policy: 'skipp' is not a policy\. Did you mean 'skip'\?"):
        built("skipp")


def test_skip_needs_an_architecture_that_can():
    with pytest.raises(
        ConfigError, match=r"policy=skip: .*Own cannot skip absent modalities\. Choose zero, mean, learned\."
    ):
        built("skip", Own)
    assert built("mean", Own).policy == "mean"


def test_majority_reads_no_learned_vector():
    recognizer = built("learned", "majority")
    assert not list(recognizer.fill.parameters())
    assert recognizer(random_batch(absent=0.4)).logits.isfinite().all()


def test_policy_of_a_trained_model_can_be_replaced():
    recognizer, batch = built(), random_batch(absent=0.4)
    before = torch.random.get_rng_state()
    mean = recognizer.with_policy("mean")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(mean(batch).logits, built("mean")(batch).logits)
    assert not torch.equal(mean(batch).logits, recognizer.with_policy("zero")(batch).logits)
    assert torch.equal(recognizer.with_policy(None)(batch).logits, recognizer(batch).logits)
    message = r"missing\.policy=learned: the model was trained with missing\.policy=null .*fill\.vectors\.audio"
    with pytest.raises(ConfigError, match=message):
        recognizer.with_policy("learned")
    with pytest.raises(ConfigError, match=r"missing\.policy=null: the model was trained with missing\.policy=skip"):
        built("skip").with_policy(None)


def test_utterance_without_any_modality_gets_a_finite_answer():
    batch = random_batch((3, 2))
    batch = batch.hide(torch.ones_like(batch.available))
    for policy in (None, "zero", "mean", "learned", "skip"):
        assert built(policy)(batch).logits.isfinite().all()
