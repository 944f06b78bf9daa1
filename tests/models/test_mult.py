from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.literal_mult import literal
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.packing import Packing
from ercfusion.config.compose import Composer
from ercfusion.models import build_architecture, mult
from ercfusion.models.mult import MulT, buckets
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch, take, without_dropout
from ercfusion.testing.case import CHECKS

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "layers": 2}
RELEASED: dict[str, Any] = {"axis": "steps", "layers": 5, "self_layers": 0, "causal": True}
STEPS = {"text": 6, "visual": 9}
FOUR = {**WIDTHS, "mocap": 3}


def make(widths: Any = WIDTHS, sequences: Any = (), **options: Any) -> MulT:
    torch.manual_seed(0)
    model = MulT(InputSpec(widths, dict.fromkeys(sequences, "sequence")), **{**SMALL, **options}).double()
    without_dropout(model)
    return model


def output(model: MulT, batch: ConversationBatch) -> Tensor:
    return model(batch).hidden


# Requirements

VARIANTS: dict[str, dict[str, Any]] = {"steps": {"axis": "steps"}, "causal": {"causal": True}, "released": RELEASED}
MAIN = ["finite", "gradients", "policies"]
QUICK = ["gradients", "batch_invariance", "small_batches", "missing_aware", "context"]
OTHER_KINDS = [kind for kind in KINDS if kind != "single_label"]


def test_meets_the_requirements() -> None:
    """With classifiers of single modalities; all others without them: tests/models/test_registry.py."""
    check_model("mult", options=SMALL, unimodal=True, only=MAIN)


@pytest.mark.slow
def test_meets_the_other_requirements() -> None:
    check_model("mult", options=SMALL, unimodal=True, only=set(CHECKS) - set(MAIN))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_meet_the_requirements(name: str) -> None:
    check_model("mult", options={**SMALL, **VARIANTS[name]}, only=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_meet_the_other_requirements(name: str) -> None:
    check_model("mult", options={**SMALL, **VARIANTS[name]}, only=set(CHECKS) - set(QUICK))


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_meets_the_requirements_with_other_kinds(kind: str) -> None:
    check_model("mult", make_task(kind), SMALL, unimodal=True, only=["finite", "gradients"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_meets_the_other_requirements_with_other_kinds(kind: str) -> None:
    check_model("mult", make_task(kind), SMALL, unimodal=True, only=["batch_invariance", "absent_content"])


# Values and gradients


def assert_literal(model: MulT, batch: ConversationBatch) -> None:
    ours, theirs = output(model, batch), literal(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(ours)
    for (name, _), left, right in zip(
        model.named_parameters(),
        *(torch.autograd.grad((each * weight).sum(), list(model.parameters())) for each in (ours, theirs)),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("widths", [{"audio": 5}, {"audio": 4, "text": 6}, WIDTHS, FOUR], ids=len)
def test_by_dialogue_as_one_conversation_after_the_other(widths: dict[str, int], causal: bool) -> None:
    batch = random_batch((3, 1, 7), widths=widths, absent=0.3, dtype=torch.float64)
    assert_literal(make(widths, causal=causal), batch)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("causal", [False, True])
def test_by_steps_as_one_utterance_after_the_other(
    causal: bool, pooling: str, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two modalities are sequences of different lengths; some utterances have no step."""
    monkeypatch.setattr(mult, "BUCKET", 2)
    batch = random_batch((3, 1, 7), absent=0.3, steps=STEPS, dtype=torch.float64)
    if hidden:  # The others keep their places.
        generator = torch.Generator().manual_seed(1)
        steps = {
            name: torch.rand(len(batch.sequences[name].values), generator=generator) < 0.4 for name in batch.sequences
        }
        batch = batch.hide(torch.zeros_like(batch.available), steps)
        assert batch.sequences["visual"].positions is not None
    assert_literal(make(WIDTHS, STEPS, causal=causal, pooling=pooling), batch)


@pytest.mark.parametrize("sequences", [(), ("audio",)])
def test_single_modality_by_steps(sequences: tuple[str, ...]) -> None:
    batch = random_batch(
        (4, 2), widths={"audio": 5}, absent=0.3, steps=dict.fromkeys(sequences, 5), dtype=torch.float64
    )
    assert_literal(make({"audio": 5}, sequences, axis="steps"), batch)


# The axis


def test_axis() -> None:
    for axis, sequences, by_steps in (
        ("auto", (), False),
        ("auto", STEPS, True),
        ("dialogue", STEPS, False),
        ("steps", (), True),
    ):
        model = make(WIDTHS, sequences, axis=axis)
        assert model.by_steps == by_steps
        assert model.capabilities.contextual == (not by_steps)
        assert model.capabilities.causal == by_steps
        assert model.capabilities.compiles == (not by_steps)
    assert make(causal=True).capabilities.causal
    assert make(causal=True).capabilities.contextual


def test_dialogue_of_sequences_reads_their_means() -> None:
    batch = random_batch((4, 3), steps=STEPS, dtype=torch.float64)
    model = make(WIDTHS, STEPS, axis="dialogue")
    assert torch.equal(output(model, batch), output(model, replace(batch, sequences={})))


def test_causal_by_dialogue_ignores_later_utterances() -> None:
    batch = random_batch((6,), absent=0.3, dtype=torch.float64)
    for causal in (False, True):
        model = make(causal=causal)
        with torch.no_grad():
            cut = output(model, take(batch, [0], turns=3))
            assert torch.allclose(output(model, batch)[:3], cut) == causal


@pytest.mark.parametrize("steps", [{}, STEPS])
def test_order_of_modalities(steps: dict[str, int]) -> None:
    """Modalities in another order, with the same weights, give the same vectors."""
    order = ("visual", "text", "audio")
    model, other = make(WIDTHS, steps), make({name: WIDTHS[name] for name in order}, steps)
    # The sources of each target too are in another order.
    within = {name: [[n for n in WIDTHS if n != name].index(n) for n in order if n != name] for name in order}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        batch = random_batch((4, 3), absent=0.3, steps=steps, dtype=torch.float64)
        moved = replace(
            batch,
            features={name: batch.features[name] for name in order},
            available=batch.available[:, [list(WIDTHS).index(name) for name in order]],
        )
        # The second Transformers mix the parts of their input: compare the first ones.
        for target in order:
            other.cross[target].load_state_dict(
                {
                    key.removeprefix(f"cross.{target}."): value
                    for key, value in state.items()
                    if f"cross.{target}." in key
                }
            )
            other.project[target].load_state_dict({"weight": state[f"project.{target}.weight"]})
        for each in (model, other):
            each.own = torch.nn.ModuleDict({name: Untouched() for name in each.own})
        first, second = model(batch).modalities, other(moved).modalities
        assert list(second) == list(order)
        for name in order:
            parts = first[name].unflatten(1, (2, -1))[:, within[name]].flatten(1)
            torch.testing.assert_close(second[name], parts)


class Untouched(torch.nn.Module):
    def forward(self, query: Tensor, query_mask: Tensor, **rest: Any) -> Tensor:
        return torch.where(query_mask[..., None], query, 0.0)


# Missing modalities


@pytest.mark.parametrize("steps", [{}, STEPS])
def test_absent_modalities_are_left_out(steps: dict[str, int]) -> None:
    batch = random_batch((4, 3), absent=0.4, steps=steps, dtype=torch.float64)
    encoded = make(WIDTHS, steps)(batch)
    for m, name in enumerate(WIDTHS):
        vectors, here = encoded.modalities[name], batch.present[:, m]
        if name in steps:
            here = here & (batch.sequences[name].offsets.diff() > 0)
        assert torch.equal(vectors.abs().sum(1) > 0, here)
    none = ~batch.present.any(1)
    assert none.any()
    assert encoded.hidden.isfinite().all()
    assert len(encoded.hidden[none].unique(dim=0)) == 1


def test_only_one_modality_left() -> None:
    """Its vector is that of an encoder whose attention to others finds nothing."""
    batch = random_batch((4, 3), dtype=torch.float64)
    hidden = batch.hide(torch.ones_like(batch.available) & torch.tensor([False, True, True]))
    model = make()
    vectors = model(hidden).modalities
    assert torch.equal(vectors["audio"], torch.zeros_like(vectors["audio"]))
    torch.testing.assert_close(output(model, hidden), literal(model, hidden))


# Steps


def test_an_utterance_does_not_depend_on_its_batch() -> None:
    batch = random_batch((30, 41), absent=0.3, steps={"text": 40, "visual": 90}, dtype=torch.float64)
    model = make(WIDTHS, STEPS, causal=True)
    single = replace(batch, packing=Packing([1] * batch.num_utterances), ids=())
    with torch.no_grad():
        together = output(model, batch)
        for n in range(0, batch.num_utterances, 7):
            torch.testing.assert_close(output(model, take(single, [n]))[0], together[n], rtol=1e-9, atol=1e-11)


def test_no_utterance_has_steps() -> None:
    batch = random_batch((2, 3), steps=STEPS, dtype=torch.float64)
    empty = replace(
        batch, sequences={n: s.without(torch.ones(len(s.values)).bool()) for n, s in batch.sequences.items()}
    )
    model = make(WIDTHS, STEPS)
    torch.testing.assert_close(output(model, empty), literal(model, empty))


def test_buckets() -> None:
    long, short = [100, 90, 60, 51, *[50] * 14], [49, *[20] * 20, 1]
    lengths = [*short, *long]
    groups = list(buckets([lengths, [0] * len(lengths)]))
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    sizes = [[lengths[row] for row in rows] for rows in groups]
    assert sizes == [[100, 90, 60, 51, *[50] * 12], [50, 50, 49, *[20] * 13], [*[20] * 7, 1]]
    assert list(buckets([[3]])) == [[0]]


# Attention, sizes, presets


def test_attention_maps() -> None:
    batch = random_batch((4, 2), absent=0.3, dtype=torch.float64)
    model = make()
    assert not model(batch).attention
    model.keep_attention = True
    attention = model(batch).attention
    pairs = [f"{target} from {source}" for target in WIDTHS for source in WIDTHS if source != target]
    assert set(attention) == {f"{name} {n}" for name in pairs for n in (1, 2)} | {f"{name} 1" for name in WIDTHS}
    present = batch.packing.pad(batch.present[:, 1])
    for value in attention.values():
        assert value.shape == (2, 2, 4, 4)
    seen = attention["text from audio 1"]
    assert not seen.masked_select(~present[:, None, None, :].expand_as(seen)).any()
    torch.testing.assert_close(seen.sum(-1), present.any(1).double()[:, None, None].expand(2, 2, 4))


def test_size_of_the_released_form() -> None:
    """The released network with widths 300, 74 and 35 on CMU-MOSEI, without its layer of one output."""
    options = dict(Composer("train").compose(["model=mult_released"])["model"])
    options.pop("name")
    inputs = InputSpec({"text": 300, "audio": 74, "visual": 35}, dict.fromkeys(("text", "audio", "visual"), "sequence"))
    model = build_architecture("mult", inputs, options)

    def layer(d: int) -> int:
        return 4 * d * (d + 1) + (d + 1) * 4 * d + (4 * d + 1) * d + 4 * d

    cross, own = 5 * layer(30) + 60, 5 * layer(60) + 120
    assert model.hidden_size == 180
    expected = 30 * (300 + 74 + 35) + 6 * cross + 3 * own + 2 * 180 * 181
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_dropout_of_the_released_form() -> None:
    options = dict(Composer("train").compose(["model=mult_released"])["model"])
    options.pop("name")
    model = build_architecture("mult", InputSpec(WIDTHS), options)
    assert isinstance(model, MulT)
    assert {name: part.p for name, part in model.drop.items()} == {"text": 0.25, "audio": 0.0, "visual": 0.0}  # type: ignore[union-attr]
    rates = {
        f"{target} from {source}": encoder.layers[0].dropout_rate  # type: ignore[union-attr, index]
        for target, encoders in model.cross.items()
        for source, encoder in encoders.items()  # type: ignore[operator, union-attr]
    }
    assert rates == {name: 0.1 if name.endswith("text") else 0.0 for name in rates}
    assert {each.layers[0].dropout_rate for each in model.own.values()} == {0.1}  # type: ignore[union-attr, index]
