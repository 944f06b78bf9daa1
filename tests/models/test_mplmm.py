from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, keep_states, resume, train
from runs import read as read_file
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.literal_mplmm import LiteralPrompts
from ercfusion._core.errors import BatchError, ConfigError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.config.missing_policies import POLICIES
from ercfusion.layers.prompts import PaddedSteps
from ercfusion.models import build_architecture
from ercfusion.models.mplmm import Mplmm
from ercfusion.models.mult import MulT
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import check_model, fill_absent, make_task, random_batch, take
from ercfusion.testing.case import CHECKS, without_dropout

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "layers": 1, "self_layers": 1, "prompt_length": 3}
NAMES = ("text", "audio", "visual", "mocap")
KINDS = ("single_label", "multi_label", "distribution", "regression", "intensity")
VARIANTS: dict[str, dict[str, Any]] = {
    "mixer": {"generator": "mixer"},
    "causal": {"causal": True},
    "steps": {"axis": "steps"},
    "steps, mixer": {"axis": "steps", "generator": "mixer", "length": 2},
    "no prompts": {"prompts": False},
}


@pytest.mark.parametrize("kind", ["single_label", "regression"])
def test_meets_the_requirements(kind: str) -> None:
    """The others: tests/models/test_registry.py."""
    check_model(Mplmm, make_task(kind), SMALL, only=["finite", "gradients", "batch_invariance", "absent_content"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_meets_all_requirements_with_other_tasks(kind: str) -> None:
    check_model(Mplmm, make_task(kind), SMALL, unimodal=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_meet_the_requirements(name: str) -> None:
    """Without a length, the mixer reads no sequences; it groups utterances."""
    left = {"mixer": {"hidden_steps", "policies"}}
    # The size of a group is a size of its products: whether that changes their rounding depends on the processor.
    left["steps, mixer"] = {"context"}
    check_model(Mplmm, make_task(), {**SMALL, **VARIANTS[name]}, only=set(CHECKS) - left.get(name, set()))


def test_type_prompts_at_zero_never_get_a_gradient() -> None:
    """The literal initialisation fails the requirement by these parameters only."""
    only = ["gradients"]
    check_model(Mplmm, make_task(), {**SMALL, "type_init": "zero"}, only=only, exempt={"gradients": "dead by design"})
    for type_init in ("normal", "zero"):
        model, batch = build(3, type_init=type_init)
        torch.randn_like(hidden := model(batch).hidden).mul(hidden).sum().backward()
        dead = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max()}  # type: ignore[union-attr]
        assert dead == ({"prompts.type_tokens", "prompts.type_maps"} if type_init == "zero" else set())


def build(
    M: int, lengths: tuple[int, ...] = (3, 1, 6), *, steps: int = 0, absent: float = 0.4, **options: Any
) -> tuple[Mplmm, ConversationBatch]:
    """In double precision and train mode without dropout, with prompts of a size that shows."""
    names = NAMES[:M]
    widths = {name: 3 + m for m, name in enumerate(names)}
    batch = random_batch(
        lengths, widths=widths, absent=absent, steps=dict.fromkeys(names, steps) if steps else {}, dtype=torch.float64
    )
    torch.manual_seed(0)
    levels: Any = dict.fromkeys(names, "sequence") if steps else {}
    model = without_dropout(Mplmm(InputSpec(widths, levels), **{**SMALL, **options})).double()
    assert isinstance(model, Mplmm)
    if model.prompts is not None:
        torch.nn.init.normal_(model.prompts.signal)
    return model, batch


def gradients(model: Mplmm, hidden: Tensor) -> list[Tensor]:
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=hidden.dtype)
    return list(torch.autograd.grad((hidden * weight).sum(), list(model.parameters()), materialize_grads=True))


def assert_equal_to(model: Mplmm, hidden: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(hidden, expected, rtol=1e-9, atol=1e-10)
    for left, right in zip(gradients(model, hidden), gradients(model, expected), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


# The released algorithm


def released(model: Mplmm, batch: ConversationBatch, length: int) -> Tensor:
    """Samples completed one by one, then the Transformers without any mask; tokens at the end, the last one is read."""
    names = batch.modalities
    streams = []
    for name in names:
        stored = batch.sequence(name)
        values = torch.zeros(batch.num_utterances, length, stored.values.shape[1], dtype=torch.float64)
        for n in range(batch.num_utterances):
            own = stored.values[stored.offsets[n] : stored.offsets[n + 1]][:length]
            values[n, : len(own)] = own
        streams.append(PaddedSteps(values, torch.ones(values.shape[:2], dtype=torch.bool)))
    present = batch.present & torch.stack([batch.sequence(name).offsets.diff() > 0 for name in names], 1)
    assert isinstance(model.prompts, LiteralPrompts)
    projected = [model.project[name](x.values) for name, x in zip(names, streams, strict=True)]
    steps = [x.values for x in model.prompts.complete(streams, projected, present)]
    tokens = model.prompts.tokens(present)
    read = []
    for m, name in enumerate(names):
        forms = [
            model.cross[name][other](steps[m], steps[s])  # type: ignore[index, operator]
            for s, other in enumerate(names)
            if s != m
        ]
        joined = torch.cat([torch.cat(forms, -1) if forms else steps[m], tokens[m]], dim=1)
        read.append(model.own[name](joined)[:, -1])  # type: ignore[operator]
    z = torch.cat(read, dim=1)
    return z + model.second(F.relu(model.first(z)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_equals_the_released_algorithm(M: int, causal: bool) -> None:
    model, batch = build(M, (9, 8), steps=5, generator="mixer", length=4, causal=causal)
    patterns = batch.present.unique(dim=0)
    assert len(patterns) > min(4, 2**M - 1)
    hidden = model(batch).hidden
    assert model.prompts is not None
    model.prompts.__class__ = LiteralPrompts
    assert_equal_to(model, hidden, released(model, batch, length=4))


# The other forms, utterance by utterance


def attended(prompts: Any, m: int, vectors: dict[int, Tensor], M: int) -> Tensor:
    """Generated steps of modality m from the steps (T_s, D_s) of the present ones."""
    D = prompts.generate.width
    items = [prompts.generate.prompts[m]]
    for s, x in vectors.items():
        place = D * [k for k in range(M) if k != s].index(m)
        weight, bias = (part[place : place + D] for part in prompts.generate.sources[s].parameters())
        items.append(F.gelu(x @ weight.T + bias))
    keys = torch.cat(items)
    weights = (prompts.generate.queries[m] @ keys.T / math.sqrt(D)).softmax(-1)
    return F.gelu(prompts.generate.out[m](weights @ keys))


def type_tokens(prompts: Any, m: int, there: list[bool]) -> Tensor:
    return prompts.type_tokens[m] @ sum(prompts.signal[int(q), k].T @ prompts.type_maps[k] for k, q in enumerate(there))


@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_sequences_of_any_length_by_hand(M: int) -> None:
    model, batch = build(M, (6, 5), steps=5)
    prompts, names = model.prompts, batch.modalities
    assert prompts is not None
    rows = []
    for n in range(batch.num_utterances):
        raw = {}
        for m, name in enumerate(names):
            stored = batch.sequence(name)
            own = stored.values[stored.offsets[n] : stored.offsets[n + 1]]
            if batch.present[n, m] and len(own):
                raw[m] = own
        steps = []
        for m, name in enumerate(names):
            x = model.project[name](raw[m]) if m in raw else attended(prompts, m, raw, M)  # type: ignore[operator]
            steps.append((x + prompts.signal[int(m in raw), m].mean(0))[None])
        read = []
        for m, name in enumerate(names):
            forms = [model.cross[name][names[s]](steps[m], steps[s]) for s in range(M) if s != m]  # type: ignore[index, operator]
            tokens = type_tokens(prompts, m, [k in raw for k in range(M)])[None]
            joined = torch.cat([torch.cat(forms, -1) if forms else steps[m], tokens], dim=1)
            read.append(model.own[name](joined)[0, -1])  # type: ignore[operator]
        rows.append(torch.cat(read))
    z = torch.stack(rows)
    assert_equal_to(model, model(batch).hidden, z + model.second(F.relu(model.first(z))))


@pytest.mark.parametrize("generator", ["attention", "mixer"])
@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_dialogues_by_hand(M: int, generator: str) -> None:
    """Each turn is completed on its own and reads the tokens of its own pattern."""
    model, batch = build(M, generator=generator)
    prompts, names = model.prompts, batch.modalities
    assert prompts is not None
    rows = []
    first = 0
    for length in batch.packing.lengths:
        turns = range(first, first + length)
        steps: list[list[Tensor]] = [[] for _ in names]
        there = [batch.present[n].tolist() for n in turns]
        for n, status in zip(turns, there, strict=True):
            raw = {m: batch.features[name][n][None] for m, name in enumerate(names) if status[m]}
            one = [PaddedSteps(batch.values(name)[n][None, None], torch.ones(1, 1, dtype=torch.bool)) for name in names]
            for m, name in enumerate(names):
                if m in raw:
                    x = model.project[name](raw[m])  # type: ignore[operator]
                elif generator == "attention":
                    x = attended(prompts, m, raw, M)
                else:
                    x = prompts.generate(one, batch.present[n : n + 1])[m].values[0]
                steps[m].append(x[0] + prompts.signal[int(m in raw), m].mean(0))
        padded = [torch.stack(own)[None] for own in steps]
        read = []
        for m, name in enumerate(names):
            forms = [model.cross[name][names[s]](padded[m], padded[s]) for s in range(M) if s != m]  # type: ignore[index, operator]
            joined = (torch.cat(forms, -1) if forms else padded[m])[0]
            added = []
            for vector, status in zip(joined, there, strict=True):
                tokens = type_tokens(prompts, m, status)
                added.append(vector + (tokens @ vector / math.sqrt(len(vector))).softmax(0) @ tokens)
            read.append(model.own[name](torch.stack(added)[None])[0])  # type: ignore[operator]
        rows.append(torch.cat(read, dim=1))
        first += length
    z = torch.cat(rows)
    assert_equal_to(model, model(batch).hidden, z + model.second(F.relu(model.first(z))))


# Any utterance


@pytest.mark.parametrize("options", [{}, {"generator": "mixer", "length": 3}], ids=["any length", "fixed length"])
def test_sequences_do_not_depend_on_the_batch_or_on_absent_values(options: dict[str, Any]) -> None:
    model, batch = build(3, (7, 6), steps=6, **options)
    hidden = model(batch).hidden
    assert hidden.isfinite().all()
    assert not batch.present[-1].any()
    for content in (float("nan"), float("inf"), 1e30):
        filled = model(fill_absent(batch, content)).hidden
        assert torch.equal(filled, hidden)
    single = type(batch.packing)([1] * batch.num_utterances)
    for n in range(batch.num_utterances):
        own = model(take(ConversationBatch(**{**vars(batch), "packing": single, "ids": ()}), [n])).hidden
        torch.testing.assert_close(own[0], hidden[n], rtol=1e-9, atol=1e-10)


def test_remaining_steps_keep_their_places() -> None:
    """Encoders are told the places of real steps; tokens follow the last one; generated steps count from 0."""
    model, batch = build(2, (2,), steps=6, absent=0.0)
    name = batch.modalities[0]
    hidden = {name: torch.arange(len(batch.sequences[name].values)) % 2 == 0 for name in batch.modalities}
    drop = torch.tensor([[False, False], [True, False]])
    seen: list[Any] = []
    model.own[name].register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _, inputs, keywords, output: seen.append(keywords), with_kwargs=True
    )
    model(batch.hide(drop, hidden))
    kept = int(batch.sequences[name].offsets[1]) // 2
    (keywords,) = seen
    rows = [row[mask].tolist() for row, mask in zip(keywords["query_places"], keywords["query_mask"], strict=True)]
    own = [*range(1, 2 * kept, 2)]
    assert sorted(rows) == sorted([[*own, *(own[-1] + 1 + p for p in range(3))], [0, 1, 2, 3, 4, 5]])


def test_without_prompts_it_is_mult() -> None:
    """The first stage: prompts take no part, and every parameter is one of the second stage."""
    for options in ({}, {"steps": 4}):
        plain, batch = build(3, prompts=False, **options)
        prompted, _ = build(3, **options)
        names = {name for name, _ in prompted.named_parameters()}
        own = {name for name in names if name.startswith("prompts.")}
        assert own == names - {name for name, _ in plain.named_parameters()}
        shared = {name: SMALL[name] for name in ("width", "heads", "layers", "self_layers")}
        mult = without_dropout(MulT(plain.inputs, **shared)).double()
        mult.load_state_dict(plain.state_dict())
        assert torch.equal(mult(batch).hidden, plain(batch).hidden)


def test_without_prompts_sequences_have_the_fixed_length() -> None:
    """The first stage reads as many steps as the second one, padding included."""
    model, batch = build(2, (2, 3), steps=4, absent=0.0, prompts=False, length=6)
    hidden = model(batch).hidden
    streams = {}
    for name in batch.modalities:
        stored = batch.sequence(name)
        values = torch.zeros(batch.num_utterances, 6, stored.values.shape[1], dtype=torch.float64)
        for n in range(batch.num_utterances):
            own = stored.values[stored.offsets[n] : stored.offsets[n + 1]]
            values[n, : len(own)] = own
        streams[name] = model.project[name](values)
    text, audio = batch.modalities
    read = []
    for target, other in ((text, audio), (audio, text)):
        form = model.cross[target][other](streams[target], streams[other])  # type: ignore[index, operator]
        read.append(model.own[target](form)[:, -1])  # type: ignore[operator]
    z = torch.cat(read, dim=1)
    whole = torch.stack([batch.sequences[name].offsets.diff() > 0 for name in batch.modalities]).all(dim=0)
    assert whole[:-1].all()
    torch.testing.assert_close(hidden[whole], (z + model.second(F.relu(model.first(z))))[whole], rtol=1e-9, atol=1e-10)
    absent = batch.hide(torch.tensor([[False, True]] * batch.num_utterances))
    assert model(absent).hidden.isfinite().all()


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_replaces_what_is_generated(policy: str) -> None:
    inputs = InputSpec({"text": 3, "audio": 2}, policy=policy)
    with pytest.raises(ConfigError, match=f"missing.policy={policy}: mplmm generates absent modalities itself"):
        Recognizer("mplmm", inputs, make_task(), SMALL)
    Recognizer("mplmm", inputs, make_task(), {**SMALL, "prompts": False})


def test_a_mixer_needs_one_length() -> None:
    with pytest.raises(BatchError, match=r"generator=mixer needs sequences of one length. Set model\.length"):
        build(2, steps=4, generator="mixer")
    with pytest.raises(BatchError, match="at most 12 modalities, found 13"):
        Mplmm(InputSpec({f"m{m}": 2 for m in range(13)}), **{**SMALL, "generator": "mixer"})
    assert math.isfinite(sum(p.sum().item() for p in build(2, generator="mixer")[0].parameters()))


# Two stages

FROZEN = ("architecture.cross", "architecture.own", "architecture.first", "architecture.second")
TWO_STAGES = (
    *("recipe=mplmm", "data=demo/missing", "training.max_epochs=2", "recipe.stages.complete.training.max_epochs=1"),
    *("model.width=8", "model.heads=2", "model.layers=1", "model.prompt_length=3"),
)


@pytest.mark.usefixtures("no_pictures")
def test_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The Transformer of the first stage stays as it is; projections, head and prompts learn; the share is recorded."""
    record = train(tmp_path / "run", *TWO_STAGES)
    first = load_file(tmp_path / "run/stages/1-complete/model/model.safetensors")
    last = load_file(tmp_path / "run/model/model.safetensors")
    assert set(first) == {name for name in last if not name.startswith("architecture.prompts.")}
    for name, value in first.items():
        trained = name.startswith(("architecture.project.", "head."))
        assert torch.equal(value, last[name]) != trained or name.startswith("standardize."), name
    start, (stage,) = record["start"], record["recipe"]["stages"]
    assert start["left"] == ["architecture.prompts"]
    assert start["frozen"] == list(FROZEN)
    every = sum(value.numel() for name, value in last.items() if not name.startswith(("standardize.", "thresholds")))
    learned = sum(value.numel() for name, value in last.items() if name.startswith(("architecture.pro", "head.")))
    assert (start["trainable"], start["parameters"]) == (learned, every)
    assert f"{learned:,} of {every:,} parameters are trained ({learned / every:.0%})" in caplog.text
    assert "start" not in stage
    laws = [read_file(tmp_path / "run" / folder / "config.json") for folder in ("", "stages/1-complete")]
    assert [config.get("missing", {}).get("train") for config in laws] == ["patterns:0.7", None]
    assert [config["model"]["prompts"] for config in laws] == [True, False]


@pytest.mark.usefixtures("no_pictures")
def test_recipe_with_one_modality(tmp_path: Path) -> None:
    """There is no pair of modalities to freeze; the first stage is complete whatever the run hides."""
    holes = ("training.modality_dropout=0.3", "missing.dev=pattern:text")
    record = train(tmp_path / "run", *TWO_STAGES, "data.modalities=[text]", *holes)
    assert record["start"]["frozen"] == list(FROZEN)
    stage = read_file(tmp_path / "run/stages/1-complete/config.json")
    assert stage["training"]["modality_dropout"] == 0
    assert {stage.get("missing", {}).get(use) for use in ("train", "dev")} == {None}


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_recipe_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either stage, bit for bit."""
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path, tmp_path / "whole")
        train(tmp_path / "whole", *TWO_STAGES)
    for number in range(1, 4):
        resume(tmp_path / str(number))
        assert_same_run(tmp_path / str(number), tmp_path / "whole")


def test_size_of_the_released_form() -> None:
    """The released network for aligned CMU-MOSI, without its last layer, and the mixers without a present modality."""
    options = dict(Composer("train").compose(["model=mplmm_released"])["model"])
    names, (D, P, L) = ("text", "audio", "visual"), (30, 16, 50)
    widths = dict(zip(names, (300, 5, 20), strict=True))
    model = build_architecture(options.pop("name"), InputSpec(widths, dict.fromkeys(names, "sequence")), options)
    channels = 2 * sum((width + 1) * D for width in widths.values())
    mixers = 6 * (P + L + 1) * L + 3 * (P + 2 * L + 1) * L
    prompts = 3 * D * P + 6 * D * L + 3 * P * D + 3 * L * 2 * D
    own = 3 * (P + 1) * L
    assert model.prompts is not None
    assert sum(parameter.numel() for parameter in model.prompts.parameters()) == channels + mixers + prompts + own
    assert not model.prompts.type_tokens.any()
    backbone = dict(Composer("train").compose(["model=mult_released"])["model"])
    backbone.pop("name")
    mult = build_architecture("mult", model.inputs, backbone)
    rest = {name: value.shape for name, value in model.named_parameters() if not name.startswith("prompts.")}
    assert rest == {name: value.shape for name, value in mult.named_parameters()}
