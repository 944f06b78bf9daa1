from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same_run, keep_states, read, resume, train
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.inconvad import FLOOR, LIMIT, Inconvad, inconsistency_loss, tower_loss
from ercfusion.ops.processes import Shares
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch
from ercfusion.testing.case import CHECKS

SMALL: dict[str, Any] = {"width": 8, "projection": 8, "hidden": 8, "pair": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"context": "none"},
    "transformer": {"context": "transformer"},
    "towers only": {"fusion": "precision"},
    "causal, absent is learned": {"absent": "learned", "bidirectional": False},
}
SLOW = {"compile", "overfits", "policies"}
TASKS = ("regression", "single_label")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_meets_the_requirements(name: str, kind: str) -> None:
    check_model(Inconvad, make_task(kind), {**SMALL, **VARIANTS[name]}, only=set(CHECKS) - SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_and_learns(name: str, kind: str) -> None:
    check_model(Inconvad, make_task(kind), {**SMALL, **VARIANTS[name]}, only=SLOW)


@pytest.mark.parametrize("kind", ["multi_label", "distribution"])
def test_meets_the_requirements_with_other_tasks(kind: str) -> None:
    check_model(Inconvad, make_task(kind), SMALL, unimodal=True, only=["finite", "gradients", "batch_invariance"])


def built(*tasks: str, widths: Any = WIDTHS, **options: Any) -> tuple[Recognizer, ConversationBatch]:
    torch.manual_seed(0)
    first, *others = (make_task(kind, kind) for kind in tasks)
    recognizer = Recognizer(Inconvad, InputSpec(widths), first, {**SMALL, **options}, others=others)
    batch = random_batch(
        (3, 1, 5), tasks=[first, *others], widths=widths, absent=0.3, labelled=0.7, dtype=torch.float64
    )
    for parameter in recognizer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return recognizer.double().eval(), batch


def test_numbers_of_the_towers() -> None:
    """Of the regression task wherever it is, scaled by its range; else the shares of the labels."""
    for tasks in (("regression",), ("single_label", "regression"), ("regression", "multi_label")):
        recognizer, batch = built(*tasks)
        assert recognizer.inputs.dimensions == ("valence", "arousal")
        value, valid = recognizer.task_ratings.targets(batch) or (torch.empty(0), torch.empty(0))
        stored = batch.targets["regression"]
        assert torch.equal(valid, stored.valid)
        torch.testing.assert_close(value[valid], stored.value[valid] / 3, check_dtype=False)
        assert not value[~valid].any()
    recognizer, batch = built("single_label")
    assert recognizer.inputs.dimensions == ("neutral", "joy", "anger", "fear")
    value, valid = recognizer.task_ratings.targets(batch) or (torch.empty(0), torch.empty(0))
    assert torch.equal(value[valid].argmax(1), batch.targets["single_label"].value[valid])
    assert torch.equal(value.sum(1), valid.to(value.dtype))
    unlabelled = random_batch((2,))
    assert recognizer.task_ratings.targets(unlabelled) is None


def by_hand(model: Inconvad, batch: ConversationBatch, value: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Output and losses, one utterance, one modality and one pair after the other."""
    z = model.vectors(batch)
    names, present = list(z), model.vectors.present(batch)
    K = value.shape[1]
    rows: list[Tensor] = []
    nll: dict[str, list[Tensor]] = {name: [] for name in names}
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    logits: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in pairs}
    distances: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for n in range(batch.num_utterances):
        here = [present is None or bool(present[n, m]) for m in range(len(names))]
        h, mean, log_variance, deviation = [], [], [], []
        for name in names:
            out = model.estimates[name].weight @ z[name][n] + model.estimates[name].bias
            h.append(z[name][n])
            mean.append(out[:K])
            log_variance.append(LIMIT * torch.tanh(out[K:] / LIMIT))
            deviation.append((log_variance[-1].exp() + FLOOR**2).sqrt())
            if valid[n] and batch.present[n, len(h) - 1]:
                gaussian = torch.distributions.Normal(mean[-1], deviation[-1])
                nll[name].append(-gaussian.log_prob(value[n]).mean())
        chosen = [m for m, counts in enumerate(here) if counts]
        total = sum((-log_variance[m].mean()).exp() for m in chosen)
        fused = sum(((-log_variance[m].mean()).exp() / total * h[m] for m in chosen), torch.zeros_like(h[0]))
        agreements = []
        for p, (a, b) in enumerate(pairs):
            features = [h[a], h[b], (mean[a] - mean[b]).abs(), deviation[a], deviation[b]]
            logit = model.classifiers[p](torch.cat(features).detach())[0]
            if here[a] and here[b]:
                agreements.append(1 - torch.sigmoid(logit))
            if batch.present[n, a] and batch.present[n, b]:
                variance = deviation[a] ** 2 + deviation[b] ** 2
                distances[a, b].append(math.sqrt(float(((mean[a] - mean[b]) ** 2 / variance).mean().detach())))
                logits[a, b].append(logit)
        if agreements and model.gate is not None:
            agreement = sum(agreements) / len(agreements)
            mask = torch.tensor([here])
            joint = model.gate([vector[None] for vector in h], mask)[0]
            fused = agreement * joint + (1 - agreement) * fused
        rows.append(F.gelu(model.readout.weight @ fused + model.readout.bias))
    terms = []
    for pair in pairs:
        labels = torch.tensor(distances[pair]) > np.quantile(distances[pair], model.quantile, method="lower")
        terms.append(F.binary_cross_entropy_with_logits(torch.stack(logits[pair]), labels.double()))
    losses = {"towers": torch.stack([torch.stack(own).mean() for own in nll.values()]).sum()}
    if terms:
        losses["inconsistency"] = torch.stack(terms).mean()
    return {"hidden": torch.stack(rows), **losses}


@pytest.mark.parametrize("context", ["none", "lstm"])
@pytest.mark.parametrize("names", [("text",), ("text", "audio"), tuple(WIDTHS)])
def test_values_and_gradients(names: tuple[str, ...], context: str) -> None:
    recognizer, batch = built("regression", widths={name: WIDTHS[name] for name in names}, context=context)
    model = recognizer.architecture
    assert isinstance(model, Inconvad)
    assert len(model.classifiers) == {1: 0, 2: 1, 3: 3}[len(names)]
    value, valid = recognizer.task_ratings.targets(batch) or (torch.empty(0), torch.empty(0))
    value = value.double()
    expected = by_hand(model, batch, value, valid)
    encoded = model(batch, ratings=recognizer.task_ratings)
    shares = Shares(batch.packing, batch.stand_in)
    results = {"hidden": encoded.hidden, **{name: loss(shares) for name, loss in encoded.losses.items()}}
    assert set(results) == set(expected)
    parameters = list(model.parameters())
    for name, one in expected.items():
        torch.testing.assert_close(results[name], one, rtol=1e-7, atol=1e-9)
        probe = torch.randn_like(one)
        ours, theirs = (
            torch.autograd.grad((value * probe).sum(), parameters, allow_unused=True, retain_graph=True)
            for value in (results[name], one)
        )
        for parameter, mine, other in zip(parameters, ours, theirs, strict=True):
            zero = torch.zeros_like(parameter)
            mine, other = (zero if part is None else part for part in (mine, other))
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)
        assert any(part is not None and part.abs().max() > 1e-4 for part in ours)


def test_the_classifier_does_not_change_the_towers() -> None:
    recognizer, batch = built("regression")
    model = recognizer.architecture
    loss = model(batch, ratings=recognizer.task_ratings).losses["inconsistency"]
    loss(Shares(batch.packing, False)).backward()
    changed = {name.partition(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert changed == {"classifiers"}


def test_labels_of_inconsistency() -> None:
    distance = torch.tensor([[0.1], [5.0], [0.2], [9.0], [0.3]], dtype=torch.float64)
    both = torch.tensor([[True], [True], [True], [False], [True]])
    for quantile, labels in ((0.5, [0, 1, 0, 0, 1]), (0.75, [0, 1, 0, 0, 0]), (1.0, [0] * 5), (0.0, [0, 1, 1, 0, 1])):
        logits = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
        inconsistency_loss(logits, distance, both, None, quantile=quantile).backward()  # type: ignore[arg-type]
        grad = logits.grad
        assert grad is not None
        expected = torch.tensor([(0.5 - label) / 4 for label in labels], dtype=torch.float64)
        torch.testing.assert_close(grad[:, 0], torch.where(both[:, 0], expected, 0.0))
    nothing = inconsistency_loss(
        torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool), None, quantile=0.5
    )  # type: ignore[arg-type]
    assert nothing == 0


def test_targets_of_unlabelled_utterances_do_not_count() -> None:
    mean, log_variance = torch.zeros(2, 1, 1), torch.zeros(2, 1, 1)
    value, known = torch.tensor([[1.0], [50.0]]), torch.tensor([[True], [False]])
    one = tower_loss(mean, log_variance, value, known, None)  # type: ignore[arg-type]
    assert one == pytest.approx(0.5 * (math.log(2 * math.pi * (1 + FLOOR**2)) + 1 / (1 + FLOOR**2)), rel=1e-6)


def test_without_a_recognizer_and_its_report() -> None:
    torch.manual_seed(0)
    model = Inconvad(InputSpec(WIDTHS), **SMALL).eval()
    batch = random_batch((4, 2))
    encoded = model(batch)
    assert encoded.losses == {}
    assert encoded.hidden.shape == (6, 8)
    pairs = model.inconsistency(batch)
    assert list(pairs) == [("text", "audio"), ("text", "visual"), ("audio", "visual")]
    assert all(value.shape == (6,) and value.min() > 0 and value.max() < 1 for value in pairs.values())
    assert Inconvad(InputSpec({"text": 3}), **SMALL).inconsistency(random_batch((2,), widths={"text": 3})) == {}


def test_agreement_decides_how_much_is_fused() -> None:
    recognizer, batch = built("regression", widths={"text": 12, "audio": 7})
    model = recognizer.architecture
    last = model.classifiers[0][2]  # type: ignore[index]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(40.0)  # never consistent
        separate = model(batch).hidden
        model.gate.gate.weight.mul_(-3)  # type: ignore[union-attr]
        assert torch.allclose(model(batch).hidden, separate)
        last.bias.fill_(-40.0)
        assert not torch.allclose(model(batch).hidden, separate)


def test_objective_has_its_losses() -> None:
    for tasks in (("regression",), ("single_label", "regression")):
        recognizer, batch = built(*tasks)
        _, terms = Objective({"towers": 0.5})(recognizer, recognizer(batch), batch)
        assert {"task", "towers", "inconsistency"} <= set(terms)
    recognizer, batch = built("regression", fusion="precision")
    _, terms = Objective({"inconsistency": 1.0})(recognizer, recognizer(batch), batch)
    assert "inconsistency" not in terms


TWO_STAGES = (
    *("recipe=inconvad", "data.tasks=[vad]", "training.max_epochs=2"),
    *(f"model.{name}={value}" for name, value in SMALL.items()),
)


@pytest.mark.usefixtures("no_pictures")
def test_the_recipe(tmp_path: Any) -> None:
    record = train(tmp_path / "whole", *TWO_STAGES)
    assert record["recipe"]["name"] == "inconvad"
    assert [stage["name"] for stage in record["recipe"]["stages"]] == ["towers"]
    assert record["start"]["frozen"] == ["architecture.vectors", "architecture.estimates"]
    assert record["start"]["left"] == ["architecture.classifiers", "architecture.gate"]
    assert "Dropout" in record["start"]["fixed_mode"]
    towers = load_file(tmp_path / "whole/stages/1-towers/model/model.safetensors")
    final = load_file(tmp_path / "whole/model/model.safetensors")
    assert not any(name.startswith("architecture.classifiers") for name in towers)
    assert any(name.startswith("architecture.classifiers") for name in final)
    for name, value in towers.items():
        if name.startswith(("architecture.vectors", "architecture.estimates")):
            assert torch.equal(final[name], value), name
    weights = read(tmp_path / "whole/stages/1-towers/config.json")["objective"]["weights"]
    assert (weights["towers"], weights["inconsistency"]) == (1.0, 0.0)
    assert record["config"]["objective"]["weights"]["towers"] == 0.0


@pytest.mark.usefixtures("no_pictures")
def test_towers_learn_from_the_regression_next_to_labels(tmp_path: Any) -> None:
    small = [f"model.{name}={value}" for name, value in SMALL.items()]
    record = train(tmp_path / "run", "model=inconvad", *small, "data.tasks=[emotion,vad]", "training.max_epochs=1")
    saved = read(tmp_path / "run" / "model" / "config.json")
    assert saved["inputs"]["dimensions"] == ["valence", "arousal", "dominance"]
    assert set(record["others"]) == {"vad"}
    assert record["config"]["objective"]["weights"]["towers"] == 1.0


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_recipe_is_continued(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path, tmp_path / "whole")
        train(tmp_path / "whole", *TWO_STAGES)
    for number in range(1, 5):
        resume(tmp_path / str(number))
        assert_same_run(tmp_path / str(number), tmp_path / "whole")
