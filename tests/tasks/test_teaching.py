"""Objective terms with a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.missing import draw
from ercfusion.config.compose import Composer
from ercfusion.config.missing_laws import parse
from ercfusion.config.schema import run_config
from ercfusion.config.settings import Config, section_from, section_of
from ercfusion.config.terms import TEACHER_TERMS, Term, term
from ercfusion.data.store import ConversationStore
from ercfusion.models import ARCHITECTURES
from ercfusion.tasks.objective import Objective, build_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.tasks.teaching import Taught, hidden_rows
from ercfusion.testing import make_task, random_store, without_dropout

WEIGHTS = {"guidance": 0.5, "distillation": 0.1, "imputation": 0.6}


def made(
    model: str = "concat",
    kind: str = "single_label",
    others: tuple[str, ...] = (),
    *,
    weights: dict[str, float] = WEIGHTS,
    teacher: int | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Recognizer, Objective, ConversationStore]:
    torch.manual_seed(0)
    further = [replace(make_task(other), name=f"other {other}") for other in others]
    steps = {"audio": 70} if model == "utterance_encoder" else {}
    store = random_store(tasks=[make_task(kind), *further], absent=0.2, labelled=0.7, steps=steps)
    section = section_of("objective", {"weights": weights, **settings})
    recognizer = Recognizer(
        model,
        store.inputs,
        store.tasks[0],
        options,
        others=further,
        unimodal=section.weights["unimodal"] > 0,
        regression_loss=section.regression_loss,
    )
    recognizer.prepare(store)
    objective = build_objective(
        section,
        recognizer,
        store.targets[store.tasks[0].name],
        others={task.name: store.targets[task.name] for task in further},
        complete=teacher is None,
        teacher=teacher,
    )
    return without_dropout(recognizer.train()), objective.train(), store


def view_of(batch: ConversationBatch, seed: int = 3) -> ConversationBatch:
    drop = torch.rand(batch.available.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    return batch.hide(drop)


def taught_by(recognizer: Recognizer, batch: ConversationBatch) -> Taught:
    return Taught.by(recognizer, recognizer(batch), batch)


def test_terms_are_the_plain_formulas() -> None:
    recognizer, objective, store = made(others=("regression",), weights={**WEIGHTS, "other regression": 0.5})
    batch = store.batch(range(len(store)))
    taught, view = taught_by(recognizer, batch), view_of(batch)
    recognized = recognizer(view)
    total, terms = objective(recognizer, recognized, view, taught)
    hidden = recognized.encoded.hidden
    torch.testing.assert_close(terms["guidance"], (1 - F.cosine_similarity(hidden, taught.hidden, dim=1)).mean())
    own, given = (logits.log_softmax(1) for logits in (recognized.logits, taught.logits["emotion"]))
    labels = F.kl_div(own, given, log_target=True, reduction="batchmean")
    further = "other regression"
    numbers = F.mse_loss(recognized.others[further].logits, taught.logits[further])
    torch.testing.assert_close(terms["distillation"], labels + 0.5 * numbers)
    losses = []
    assert objective.teaching is not None
    for number, (name, values) in enumerate(batch.features.items()):
        mean, scale = (recognizer.standardize.get_buffer(f"{part}_{name}") for part in ("mean", "scale"))
        decoder = objective.teaching.decoders[f"modality {name}"]
        for row in range(len(values)):
            if batch.available[row, number] and not view.present[row, number]:
                losses.append(F.smooth_l1_loss(decoder(hidden[row]), (values[row] - mean) * scale))
    assert 0 < len(losses) < batch.available.sum()
    torch.testing.assert_close(terms["imputation"], torch.stack(losses).mean())
    expected = terms["task"] + 0.5 * terms[further]
    expected = expected + sum(weight * terms[name] for name, weight in WEIGHTS.items())
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task(kind: str) -> None:
    recognizer, objective, store = made(kind=kind, options={"hidden": 8})
    batch = store.batch(range(len(store)))
    taught = taught_by(recognizer, batch)
    same = objective(recognizer, recognizer(batch), batch, taught)[1]
    other = objective(recognizer, recognizer(view_of(batch)), view_of(batch), taught)[1]
    for name in WEIGHTS:  # of the same view all are zero: nothing differs, and nothing is hidden
        assert float(same[name].detach()) == pytest.approx(0, abs=1e-6)
        assert float(other[name].detach()) > 0


def test_the_teacher_has_no_gradient() -> None:
    recognizer, objective, store = made()
    batch = store.batch(range(len(store)))
    recognized = recognizer(batch)
    taught = Taught.by(recognizer, recognized, batch)
    assert not taught.hidden.requires_grad
    assert not any(logits.requires_grad for logits in taught.logits.values())
    # The outputs of the first pass are not changed by what the second one makes of them.
    recognized.encoded.hidden.retain_grad()
    view = view_of(batch)
    objective(recognizer, recognizer(view), view, taught)[0].backward()
    assert recognized.encoded.hidden.grad is None


def test_gradient_is_that_of_constants() -> None:
    recognizer, objective, store = made(weights={"task": 0.0, **WEIGHTS})
    batch = store.batch(range(len(store)))
    view = view_of(batch)
    result = []
    with torch.no_grad():
        constants = taught_by(recognizer, batch)
    for taught in (taught_by(recognizer, batch), constants):
        recognizer.zero_grad()
        objective(recognizer, recognizer(view), view, taught)[0].backward()
        result.append({name: value.grad.clone() for name, value in recognizer.named_parameters()})
    for name, value in result[0].items():
        assert torch.equal(value, result[1][name]), name
    assert any(value.abs().sum() > 0 for value in result[0].values())


def test_the_pass_on_the_complete_batch_has_no_term_but_all_gradients() -> None:
    recognizer, objective, store = made()
    batch = store.batch(range(len(store)))
    total, terms = objective(recognizer, recognizer(batch), batch)
    assert list(terms) == ["task"]
    assert total == terms["task"]
    total.backward()
    assert objective.teaching is not None
    for name, parameter in objective.teaching.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_a_stored_teacher_of_another_width() -> None:
    weights = {"guidance": 1.0, "distillation": 1.0}
    recognizer, objective, store = made(
        weights=weights, teacher=5, guidance={"distance": "mse"}, distillation={"temperature": 2.0}
    )
    batch = store.batch(range(len(store)))
    taught = Taught(torch.randn(batch.num_utterances, 5), {"emotion": torch.randn(batch.num_utterances, 4)})
    recognized = recognizer(batch)
    _, terms = objective(recognizer, recognized, batch, taught)
    assert objective.teaching is not None
    projected = objective.teaching.project(recognized.encoded.hidden)
    torch.testing.assert_close(terms["guidance"], F.mse_loss(projected, taught.hidden))
    own, given = ((logits / 2).log_softmax(1) for logits in (recognized.logits, taught.logits["emotion"]))
    kl = F.kl_div(own, given, log_target=True, reduction="batchmean")
    torch.testing.assert_close(terms["distillation"], 4 * kl)


@pytest.mark.parametrize("law", ["rmfm:0.3", "stmfm:0.5", "rate:0.5"])
def test_a_modality_counts_as_hidden_if_any_of_its_steps_is(law: str) -> None:
    store = random_store(tasks=[make_task()], absent=0.2, steps={"audio": 5, "visual": 3})
    batch = store.batch(range(len(store)))
    holes = draw(parse(law), batch, torch.Generator().manual_seed(1))
    view = batch.hide(holes.drop, holes.steps)
    lost = {name: hidden_rows(batch, view, name).tolist() for name in batch.modalities}
    for number, name in enumerate(batch.modalities):
        for row in range(batch.num_utterances):
            gone = bool(holes.drop[row, number])
            if name in holes.steps:
                offsets = batch.sequences[name].offsets
                gone = gone or bool(holes.steps[name][int(offsets[row]) : int(offsets[row + 1])].any())
            assert lost[name][row] == (gone and bool(batch.present[row, number])), (name, row)
    assert any(any(rows) for rows in lost.values())


LEARNING = [name for name in ARCHITECTURES if name != "majority"]
KIND = {"emotx": "multi_label", "carat": "multi_label"}


@pytest.mark.slow
@pytest.mark.parametrize("model", LEARNING)
@pytest.mark.parametrize("teacher", [None, 5])
def test_every_architecture(model: str, teacher: int | None) -> None:
    config = Composer().compose([f"model={model}"])
    weights = {name: value for name, value in WEIGHTS.items() if teacher is None or name != "imputation"}
    options = {key: min(value, 24) if type(value) is int else value for key, value in config["model"].items()}
    options.pop("name")
    recognizer, objective, store = made(
        model,
        KIND.get(model, "single_label"),
        weights={**config["objective"]["weights"], **weights},
        teacher=teacher,
        options=options,
    )
    batch = store.batch(range(len(store)))
    if teacher is None:
        taught = taught_by(recognizer, batch)
    else:
        taught = Taught(torch.randn(batch.num_utterances, teacher), {"emotion": torch.randn(batch.num_utterances, 4)})
    view = view_of(batch)
    total, terms = objective(recognizer, recognizer(view), view, taught)
    total.backward()
    assert total.isfinite()
    for name in weights:
        assert float(terms[name].detach()) > 0, name
    gradients = [value.grad for value in recognizer.parameters() if value.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("weights", "complete", "teacher", "message"),
    [
        ({"guidance": 0.5}, False, None, r"objective.weights.guidance=0.5 needs a teacher. Choose recipe="),
        ({"imputation": 1.0}, False, 5, r"imputation is for training.complete_pass=true"),
        ({"guidance": 1.0}, True, 5, r"training.complete_pass=true and training.teacher are two teachers"),
        ({}, False, 5, r"training.teacher has no effect without a weight on guidance or distillation"),
    ],
)
def test_what_does_not_fit(weights: dict[str, float], complete: bool, teacher: int | None, message: str) -> None:
    recognizer, _, store = made()
    with pytest.raises(ConfigError, match=message):
        build_objective(
            section_of("objective", {"weights": weights}),
            recognizer,
            store.targets["emotion"],
            complete=complete,
            teacher=teacher,
        )


def test_a_users_term_cannot_take_their_names() -> None:
    with pytest.raises(ConfigError, match=r"the loss term name 'guidance' belongs to ercfusion.config.terms:Guidance"):

        @term("guidance")
        class Mine(Term):
            """A user's term."""


def test_settings_are_in_a_configuration_only_if_changed() -> None:
    plain = Composer().compose(["model=concat"])
    assert not set(TEACHER_TERMS) & set(plain["objective"])
    assert not {"complete_pass", "teacher"} & set(plain["training"])
    assert Composer().compose(["model=concat", "objective.distillation.temperature=1"]) == plain
    changed = Composer().compose(["model=concat", "objective.distillation.temperature=2"])
    assert changed["objective"]["distillation"] == {"temperature": 2.0}
    assert not {"guidance", "imputation"} & set(changed["objective"])
    assert Config.from_dict(changed).to_dict() == changed
    run_config().model_validate(changed)
    section = section_from("objective", plain["objective"])
    assert section.parts["distillation"].temperature == 1.0
    with pytest.raises(ConfigError, match=r"objective.guidance.distance must be one of cosine, mse; found 'cos'"):
        Config.from_dict(Composer().compose(["model=concat", "objective.guidance.distance=cos"]))


def test_outputs_are_kept_in_their_order() -> None:
    recognizer, _, store = made(others=("multi_label",))
    recognized = recognizer(store.batch([1, 0]))
    taught = Taught.by(recognizer, recognized)
    tensors: dict[str, Tensor] = {name: task.logits for name, task in recognized.of(recognizer).items()}
    assert list(taught.logits) == list(tensors)
    assert all(torch.equal(taught.logits[name], value) for name, value in tensors.items())
    assert taught.complete is None
