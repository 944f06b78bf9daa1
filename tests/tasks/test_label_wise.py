"""Architectures that represent the labels of the first task, and lend its loss and its outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from runs import history, restored, train
from torch import nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.models import register
from ercfusion.models.base import Architecture, Capabilities, Encoded, LabelLoss, Labels
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer, TaskLabels
from ercfusion.testing import check_model, make_task, random_batch, random_store

KINDS = ("single_label", "distribution", "multi_label")


class PerLabel(Architecture):
    """A vector per label; the prediction is the mean of two readings of it, in the space of the outputs.

    Args:
        inputs: Modalities, widths and labels.
        width: Width of each label's vector.
        second: Also learn a second reading.
    """

    capabilities = Capabilities(contextual=False, causal=True, absent="mean", asks=("labels",), label_wise=True)
    loss_weights = MappingProxyType({"first": 0.25, "second": 2.0, "task": 0.0})

    def __init__(self, inputs: InputSpec, *, width: int = 8, second: bool = True) -> None:
        super().__init__(inputs)
        self.labels = inputs.labels or ("any",)
        self.hidden_size = width * len(self.labels)
        self.represent = nn.Linear(sum(inputs.widths.values()), self.hidden_size)
        self.first = nn.Parameter(torch.randn(len(self.labels), width))
        self.second = nn.Parameter(torch.randn(len(self.labels), width)) if second else None

    def forward(self, batch: ConversationBatch, labels: Labels | None = None) -> Encoded:
        values = torch.cat([batch.values(name) for name in self.inputs.widths], dim=1)
        vectors = self.represent(values).unflatten(1, (len(self.labels), -1))
        first = (vectors * self.first).sum(-1)
        second = first if self.second is None else (vectors * self.second).sum(-1)
        logits, losses = first, {}
        if labels is not None:
            logits = labels.logits((labels.outputs(first) + labels.outputs(second)) / 2)
            if self.training and labels.targets(batch) is not None:
                losses["first"] = labels.loss(first, batch)
                if self.second is not None:
                    losses["second"] = labels.loss(second, batch)
        return Encoded(vectors.flatten(1), losses=losses, logits=logits)  # type: ignore[arg-type]


def make(kind: str, **arguments: Any) -> tuple[Recognizer, ConversationBatch]:
    torch.manual_seed(0)
    task = make_task(kind)
    recognizer = Recognizer(PerLabel, random_store(tasks=[task]).inputs, task, **arguments)
    return recognizer, random_batch(tasks=recognizer.tasks, labelled=0.7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_meets_the_requirements(kind: str) -> None:
    check_model(PerLabel, make_task(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_invert_outputs(kind: str) -> None:
    task = make_task(kind)
    logits = 5 * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = task.rules.outputs(logits, task)
    torch.testing.assert_close(task.rules.outputs(task.rules.logits(outputs, task), task), outputs, rtol=1e-12, atol=0)
    for dtype in (torch.float32, torch.float64):
        certain = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        result = task.rules.logits(certain, task)
        result.sum().backward()
        assert result.isfinite().all()
        assert certain.grad is not None
        assert certain.grad.isfinite().all()
        torch.testing.assert_close(task.rules.outputs(result, task), certain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_targets(kind: str) -> None:
    recognizer, batch = make(kind)
    labels = TaskLabels(recognizer.head)
    result = labels.targets(batch)
    assert result is not None
    mass, valid = result
    target = batch.targets["emotion"]
    assert torch.equal(valid, target.valid)
    assert mass.shape == (batch.num_utterances, 4)
    assert (mass[~valid] == 0).all()
    expected = torch.eye(4)[target.value[valid]] if kind == "single_label" else target.value[valid]
    assert torch.equal(mass[valid].float(), expected)
    assert labels.targets(replace(batch, targets={})) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_weighs_its_losses(kind: str) -> None:
    recognizer, batch = make(kind)
    recognized = recognizer.train()(batch)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0])
    gamma = 1.5 if kind == "single_label" else 0.0
    total, terms = Objective({}, weights, gamma=gamma)(recognizer, recognized, batch)
    assert list(terms) == ["task", "first", "second"]
    torch.testing.assert_close(total, 0.25 * terms["first"] + 2 * terms["second"])
    target = batch.targets["emotion"]
    for name in ("first", "second"):
        loss = recognized.encoded.losses[name]
        assert isinstance(loss, LabelLoss)
        value, count = recognizer.head.loss(
            loss.values[0][:, 0], TaskTargets(target.value, target.valid), weights, gamma=gamma
        )
        torch.testing.assert_close(terms[name], value / count)
    total, terms = Objective({"first": 3.0, "task": 1.0})(recognizer, recognized, batch)
    torch.testing.assert_close(total, terms["task"] + 3 * terms["first"] + 2 * terms["second"])


def test_a_loss_that_the_options_leave_out_may_have_a_weight() -> None:
    recognizer, batch = make("multi_label", options={"second": False})
    recognized = recognizer.train()(batch)
    total, terms = Objective(PerLabel.loss_weights)(recognizer, recognized, batch)
    torch.testing.assert_close(total, 0.25 * terms["first"])
    with pytest.raises(ConfigError, match=r"no term 'secnd'. Did you mean 'second'\?"):
        Objective({"secnd": 1.0})(*make("multi_label")[:1], make("multi_label")[0].train()(batch), batch)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_saved_models(kind: str, tmp_path: Path) -> None:
    recognizer, batch = make(kind)
    store = random_store(tasks=[recognizer.task])
    recognizer.prepare(store)
    assert recognizer.head.linear is None
    assert recognizer.inputs.labels == recognizer.task.output_names
    predictions = recognizer.predict(store)
    loaded = Recognizer.from_pretrained(recognizer.save_pretrained(tmp_path))
    assert loaded.inputs == recognizer.inputs
    assert json.loads((tmp_path / "config.json").read_text())["inputs"]["labels"] == list(recognizer.task.output_names)
    assert (loaded.predict(store).output == predictions.output).all()
    encoded = loaded(batch).encoded
    assert not encoded.losses
    assert encoded.logits is not None
    assert torch.equal(loaded(batch).logits, encoded.logits)


def test_further_tasks_read_the_hidden_vectors() -> None:
    other = make_task("regression", "valence")
    recognizer, batch = make("distribution", others=[other])
    recognizer.prepare(random_store(tasks=recognizer.tasks))
    recognized = recognizer.train()(batch)
    expected = recognizer.heads("valence").head(recognized.encoded.hidden)
    assert torch.equal(recognized.others["valence"].logits, expected)
    total, terms = Objective({"valence": 0.5})(recognizer, recognized, batch)
    torch.testing.assert_close(total, 0.25 * terms["first"] + 2 * terms["second"] + 0.5 * terms["valence"])


def test_probe_stops_the_gradient_of_the_logits() -> None:
    recognizer, batch = make("multi_label", probe=True)
    recognized = recognizer.train()(batch)
    Objective({"task": 1.0, "first": 0.0, "second": 0.0})(recognizer, recognized, batch)[0].backward()
    assert all(not parameter.grad.any() for parameter in recognizer.parameters() if parameter.grad is not None)


def test_other_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"PerLabel represents each label, but the first task 'emotion' is regression. Choose a first task of the"
    with pytest.raises(ConfigError, match=message + r" kinds distribution, multi_label, single_label, or"):
        make("regression")
    recognizer, _ = make("single_label")
    monkeypatch.setattr(type(recognizer.task.rules), "num_logits", lambda self, task: 2 * task.size)
    with pytest.raises(ConfigError, match=message.replace("regression", "single_label")):
        make("single_label")


def test_other_models_have_no_labels(tmp_path: Path) -> None:
    assert InputSpec({"text": 3}).to_dict() == {"widths": {"text": 3}, "levels": {"text": "utterance"}, "speakers": 2}
    task = make_task()
    recognizer = Recognizer("concat", random_store(tasks=[task]).inputs, task)
    assert "labels" not in recognizer.config["inputs"]  # type: ignore[operator]
    assert recognizer.inputs.labels == ()


@pytest.fixture
def registered() -> Iterator[None]:
    with restored():
        register("per_label", f"{__name__}:PerLabel")
        yield


@pytest.mark.usefixtures("registered")
def test_weights_in_the_configuration() -> None:
    def weights(*arguments: str) -> dict[str, float]:
        result: dict[str, float] = Composer("train").compose(["model=per_label", *arguments])["objective"]["weights"]
        return result

    assert weights() == {"task": 0.0, "unimodal": 0.0, "first": 0.25, "second": 2.0}
    assert weights("objective.weights.first=0.5", "objective.weights.task=1") == {
        **{"task": 1.0, "unimodal": 0.0, "first": 0.5, "second": 2.0},
    }
    assert weights("objective=metric_learning")["triplet"] > 0
    assert weights("objective=metric_learning")["first"] == 0.25
    plain = Composer("train").compose(["model=concat"])["objective"]["weights"]
    assert plain == {"task": 1.0, "unimodal": 0.0}


@pytest.mark.usefixtures("registered", "no_pictures")
def test_a_run(tmp_path: Path) -> None:
    record = train(tmp_path / "run", "model=per_label", "data=demo/multilabel", "training.max_epochs=2")
    assert record["config"]["objective"]["weights"]["second"] == 2
    row = history(tmp_path / "run")[0]
    expected = 0.25 * float(row["train/first"]) + 2 * float(row["train/second"])
    assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-5)
    assert "train/task" in row
