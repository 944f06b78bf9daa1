from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.models.broad_mamba import BroadMamba, BroadMambaBlock
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import CHECKS, WIDTHS, check_model, make_task, random_batch, take
from ercfusion.testing.case import Case

SMALL: dict[str, Any] = {
    "width": 16,
    "state": 4,
    "feature_groups": 2,
    "feature_width": 8,
    "enhancement_groups": 2,
    "enhancement_width": 8,
}


class Small(BroadMamba):
    def __init__(self, inputs: InputSpec, **options: Any) -> None:
        super().__init__(inputs, **{**SMALL, **options})


def make(**options: Any) -> BroadMamba:
    torch.manual_seed(0)
    return Small(InputSpec(WIDTHS), **options).double().eval()


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"bidirectional": False, "speakers": "same_other", "fusion": "entropy", "layers": 2}, "multi_label"),
    "published": ({"joint_layers": 0, "detach": True, "speakers": "none", "tied": True}, "distribution"),
    "other": ({"combine": "gate", "fusion": "uniform", "trainable": False, "taps": 1, "joint_layers": 2}, "regression"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("overfits", "compile")])
def test_requirements_of_variants(name: str, check: str) -> None:
    options, kind = VARIANTS[name]
    unimodal = bool(options.get("detach"))
    check_model(BroadMamba, make_task(kind), {**SMALL, **options}, unimodal=unimodal, only=[check])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn(name: str) -> None:
    options, kind = VARIANTS[name]
    check_model(
        BroadMamba, make_task(kind), {**SMALL, "width": 32, **options}, unimodal="detach" in options, only=["overfits"]
    )


def test_guidance_without_probabilities_is_even() -> None:
    """Regression with guidance asked for: heads exist, say nothing, and all that are present weigh the same."""
    check_model(BroadMamba, make_task("regression"), SMALL, only=["finite", "gradients", "missing_aware"])
    model = make()
    batch = random_batch(dtype=torch.float64, absent=0.3)
    plain, silent = model(batch), model(batch, outcomes=lambda modality, representation: None)
    assert torch.equal(plain.hidden, silent.hidden)
    uniform = make(fusion="uniform")
    uniform.load_state_dict(model.state_dict())
    assert torch.equal(
        uniform(batch, outcomes=lambda modality, representation: 1 / 0).hidden, plain.hidden
    )  # not even asked


# Fusion


@pytest.mark.parametrize("options", [{}, {"fusion": "entropy", "temperature": 0.3, "epsilon": 0.0}])
def test_fusion_weighs_by_what_the_heads_say(options: dict[str, Any]) -> None:
    """The whole model from its parts: the fused vector by hand, one utterance at a time."""
    model = make(**options)
    batch = random_batch(dtype=torch.float64, absent=0.3)
    heads = {name: nn.Linear(16, 4).double() for name in WIDTHS}

    def outcomes(name: str, value: Tensor) -> Tensor:
        return 3 * heads[name](value).unsqueeze(1)

    with torch.no_grad():
        encoded = model(batch, outcomes=outcomes)
        fused = []
        for i in range(batch.num_utterances):
            here = [name for m, name in enumerate(WIDTHS) if batch.present[i, m]] or list(WIDTHS)
            scores = []
            for name in here:
                p = outcomes(name, encoded.modalities[name][i : i + 1])[0, 0].softmax(0)
                entropy = -(p * p.log()).sum() / torch.tensor(4.0).log()
                scores.append(-entropy if "fusion" in options else p.max())
            w = (torch.stack(scores) / model.fuse.temperature).softmax(0)
            w = (1 - model.fuse.epsilon) * w + model.fuse.epsilon / len(here)
            fused.append(sum(each * encoded.modalities[name][i] for each, name in zip(w, here, strict=True)))
        x = torch.stack(fused)  # type: ignore[arg-type]
        for block in model.joint:
            x = block(x, batch.packing)
        torch.testing.assert_close(encoded.hidden, model.joint_norm(x))
        assert not torch.allclose(encoded.hidden, model(batch).hidden)


def recognizer(**options: Any) -> Recognizer:
    with torch.random.fork_rng(devices=[]):
        case = Case(BroadMamba, options={**SMALL, **options}, unimodal=bool(options.get("detach")))
        return case.build(torch.float64).eval()


def test_the_recognizer_lends_its_heads() -> None:
    found = recognizer()
    assert list(found.unimodal_heads) == list(WIDTHS)
    batch = random_batch(dtype=torch.float64)
    before = found(batch)
    assert list(before.unimodal) == list(WIDTHS)
    with torch.no_grad():
        found.unimodal_heads["audio"].linear.weight.mul_(50)  # audio is suddenly sure
    assert not torch.equal(found(batch).logits, before.logits)
    assert torch.equal(found(batch).unimodal["text"], before.unimodal["text"])
    assert not recognizer(fusion="uniform").unimodal_heads


def test_detached_weights_teach_the_heads_nothing() -> None:
    batch = random_batch(dtype=torch.float64)
    for detach in (False, True):
        found = recognizer(detach=detach)
        found(batch).logits.square().sum().backward()
        reached = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in found.unimodal_heads.parameters()]
        assert all(reached) is not detach
        assert any(reached) is not detach
    with pytest.raises(ConfigError, match=r"objective.weights.unimodal=1"):
        Recognizer(BroadMamba, InputSpec(WIDTHS), make_task(), {"detach": True})


# Context


def one_turn(batch: ConversationBatch, t: int) -> ConversationBatch:
    """Turn t of every conversation (all are longer) as a batch of single utterances."""
    rows = [first + t for first in batch.packing.offsets[:-1].tolist()]
    return ConversationBatch(
        Packing([1] * len(rows)),
        {name: value[rows] for name, value in batch.features.items()},
        batch.speaker[rows],
        batch.available[rows],
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"speakers": "same_other", "layers": 2, "joint_layers": 2},
        {"speakers": "none", "joint_layers": 0, "taps": 1},
    ],
)
def test_steps_equal_the_whole(options: dict[str, Any]) -> None:
    found = recognizer(bidirectional=False, **options)
    model = found.architecture
    assert isinstance(model, BroadMamba)
    assert model.capabilities.causal
    batch = random_batch((7, 7, 7), dtype=torch.float64, absent=0.3)
    with torch.no_grad():
        whole = found(batch).logits.view(3, 7, -1)
        standard = found.standardize(batch)
        state, rows = None, []
        for t in range(7):
            encoded, state = model.step(one_turn(standard, t), state, found.outcomes)
            rows.append(found.head(encoded.hidden))
        torch.testing.assert_close(torch.stack(rows, 1), whole)
        # A state can be kept and continued twice.
        _, kept = model.step(one_turn(standard, 0))
        first, again = (model.step(one_turn(standard, 1), kept)[0].hidden for _ in range(2))
        assert torch.equal(first, again)


def test_steps_are_for_causal_models() -> None:
    batch = random_batch((1, 1), dtype=torch.float64)
    with pytest.raises(ValueError, match="bidirectional=False"):
        make().step(batch)
    with pytest.raises(ValueError, match="a conversation has 4 utterances"):
        make(bidirectional=False).step(random_batch((1, 4), dtype=torch.float64))


def test_causal_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = BroadMamba(InputSpec(WIDTHS), bidirectional=False).eval()
    batch = random_batch((6, 40))
    changed = random_batch((6, 40))
    later = batch.packing.position > 4
    for value in changed.features.values():
        value[later] = 7.0
    with torch.no_grad():
        one, other = model(batch).hidden, model(changed).hidden
        cut = model(take(batch, [0, 1], turns=5)).hidden
    assert torch.equal(one[~later], other[~later])
    assert not torch.equal(one[later], other[later])
    torch.testing.assert_close(cut, one[~later])


def test_a_model_without_blocks_reads_one_utterance() -> None:
    check_model(BroadMamba, options={**SMALL, "layers": 0, "joint_layers": 0}, only=["context", "speakers", "finite"])


# Options


def test_write_keeps_the_forgetting() -> None:
    models = [make(write=write).single["text"][0].mixer.forwards for write in (1.0, 8.0)]
    steps = [nn.functional.softplus(mixer.dt_proj.bias) for mixer in models]
    torch.testing.assert_close(steps[1], 8 * steps[0], rtol=1e-4, atol=1e-7)
    decay = [(-step[:, None] * mixer.A_log.exp()).exp() for step, mixer in zip(steps, models, strict=True)]
    torch.testing.assert_close(decay[1], decay[0], rtol=1e-4, atol=1e-7)
    expected = torch.arange(1.0, 5.0, dtype=torch.float64).expand(32, 4)
    torch.testing.assert_close(models[0].A_log.exp(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [["text"], ["visual", "audio"]])
def test_any_modalities(names: list[str]) -> None:
    batch = random_batch(widths={name: WIDTHS[name] for name in names}, absent=0.2)
    model = Small(InputSpec({name: WIDTHS[name] for name in names})).eval()
    encoded = model(batch)
    assert list(encoded.modalities) == names
    assert encoded.hidden.isfinite().all()


def test_numbered_speakers_come_from_the_training_data() -> None:
    for speakers in (1, 5):
        assert Small(InputSpec(WIDTHS, speakers=speakers)).speaker.num_embeddings == speakers  # type: ignore[union-attr]
        assert Small(InputSpec(WIDTHS, speakers=speakers), speakers="same_other").speaker.num_embeddings == 3  # type: ignore[union-attr]


def test_fixed_nodes_are_no_parameters() -> None:
    names = [name for name, _ in make(trainable=False).named_parameters()]
    assert not [name for name in names if "feature_weight" in name or "enhancement" in name]
    assert not [name for name, _ in make(feature_groups=0).named_parameters() if "broad" in name]


def test_a_block_keeps_what_it_reads() -> None:
    """Around the state space model and around the broad nodes, whole and step by step."""
    model = BroadMamba(InputSpec(WIDTHS), width=8, bidirectional=False).eval()
    block = next(part for part in model.modules() if isinstance(part, BroadMambaBlock))
    packing = Packing((5,))
    x = torch.randn(5, 8)
    y = x + block.mixer(block.norm(x), packing)
    expected = y + block.broad(block.broad_norm(y))
    torch.testing.assert_close(block(x, packing), expected)
    assert not torch.allclose(expected, block.broad(block.broad_norm(y)), atol=0.1)
