"""Several tasks on one architecture: losses, masks, and what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.config.settings import section_of
from ercfusion.tasks.objective import Objective, build_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_batch, random_store

EMOTION = make_task("single_label", "emotion")
NUMBERS = make_task("regression", "numbers")
SETS = make_task("multi_label", "sets")
TASKS = (EMOTION, NUMBERS, SETS)


def build(*tasks, unimodal: bool = False, architecture: str = "m2fnet") -> Recognizer:
    torch.manual_seed(3)
    store = random_store(tasks=TASKS)
    recognizer = Recognizer(architecture, store.inputs, tasks[0], others=tasks[1:], unimodal=unimodal)
    recognizer.prepare(store)
    return recognizer.eval()


def gradients(recognizer: Recognizer, weights: dict[str, float], batch: ConversationBatch) -> dict[str, Tensor]:
    recognizer.zero_grad(set_to_none=True)
    Objective(weights, others=dict.fromkeys(recognizer.others))(recognizer, recognizer(batch), batch)[0].backward()
    return {name: value.grad.clone() for name, value in recognizer.named_parameters() if value.grad is not None}


def test_gradients_of_a_weighted_sum_are_the_weighted_sum_of_gradients() -> None:
    recognizer = build(*TASKS).double()
    batch = random_batch(tasks=TASKS, dtype=torch.float64, labelled=0.7)
    weights = {"task": 0.5, "numbers": 2.0, "sets": 0.25}
    whole = gradients(recognizer, weights, batch)
    parts = [
        (weight, gradients(recognizer, {**dict.fromkeys(weights, 0.0), name: 1.0}, batch))
        for name, weight in weights.items()
    ]
    shared = [name for name in whole if name.startswith("architecture.")]
    assert len(shared) > 5
    for name, value in whole.items():
        expected = sum(weight * part[name] for weight, part in parts if name in part)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    assert all(float(part["architecture." + shared[0].removeprefix("architecture.")].abs().sum()) for _, part in parts)


def test_an_utterance_without_a_label_is_masked_for_that_task_only() -> None:
    recognizer = build(EMOTION, NUMBERS)
    batch = random_batch(tasks=TASKS)
    valid = torch.zeros_like(batch.targets["numbers"].valid)
    valid[3:9] = True
    spoiled = torch.where(valid[:, None], batch.targets["numbers"].value, torch.nan)
    partly = replace(batch, targets={**batch.targets, "numbers": TaskTargets(spoiled, valid)})
    objective = Objective({}, others={"numbers": None})
    whole, terms = (objective(recognizer, recognizer(one), one)[1] for one in (batch, partly))
    assert torch.equal(whole["task"], terms["task"])
    logits = recognizer(batch).others["numbers"].logits[valid]
    expected = (logits - batch.targets["numbers"].value[valid]).square().mean()
    torch.testing.assert_close(terms["numbers"], expected)
    assert not torch.equal(whole["numbers"], terms["numbers"])
    nothing = replace(partly, targets={**partly.targets, "numbers": TaskTargets(spoiled, torch.zeros_like(valid))})
    assert torch.isfinite(objective(recognizer, recognizer(nothing), nothing)[0])


def test_one_task_is_as_it_was_before_there_were_several() -> None:
    one, several = build(EMOTION), build(EMOTION, NUMBERS, SETS)
    own = one.state_dict()
    more = several.state_dict()
    assert list(own) == list(more)[: len(own)]
    assert all(torch.equal(own[name], more[name]) for name in own)  # further heads are drawn last
    assert not any("others" in name for name in own)
    assert "others" not in one.config
    batch = random_batch(tasks=TASKS)
    assert torch.equal(one(batch).logits, several(batch).logits)
    assert one.tasks == (EMOTION,)
    assert several.tasks == TASKS


def test_unimodal_heads_of_every_task() -> None:
    recognizer = build(EMOTION, SETS, unimodal=True)
    batch = random_batch(tasks=TASKS)
    recognized = recognizer(batch)
    assert recognized.unimodal.keys() == recognized.others["sets"].unimodal.keys()
    both = Objective({"sets": 0.5}, others={"sets": None})(recognizer, recognized, batch)[1]["unimodal"]
    alone = [
        sum(
            total / count
            for logits in found.unimodal.values()
            for total, count in [recognizer.heads(name).head.loss(logits, batch.targets[name])]
        )
        for name, found in recognized.of(recognizer).items()
    ]
    torch.testing.assert_close(both, alone[0] + 0.5 * alone[1])


def test_several_tasks_are_saved_and_predicted(tmp_path: Path) -> None:
    recognizer, store = build(EMOTION, SETS), random_store(tasks=TASKS)
    recognizer.set_thresholds(np.array([0.1, 0.9, 0.5, 0.25]), "sets")
    before = recognizer.checksum()
    loaded = Recognizer.from_pretrained(recognizer.save_pretrained(tmp_path / "model"))
    assert loaded.tasks == (EMOTION, SETS)
    found, again = recognizer.predict_all(store), loaded.predict_all(store)
    assert list(found) == ["emotion", "sets"]
    for name, part in found.items():
        assert part.task.name == name
        np.testing.assert_array_equal(part.output, again[name].output)
    np.testing.assert_array_equal(recognizer.predict(store).output, found["emotion"].output)
    np.testing.assert_allclose(again["sets"].thresholds, [0.1, 0.9, 0.5, 0.25], atol=1e-7)
    assert again["emotion"].thresholds is None
    recognizer.choose_thresholds(found["sets"])
    assert recognizer.checksum() == before  # thresholds are chosen when all is trained


def test_mistakes_name_the_task() -> None:
    with pytest.raises(ConfigError, match="two tasks have one name"):
        build(EMOTION, make_task("regression", "emotion"))
    recognizer, batch = build(EMOTION, SETS), random_batch(tasks=TASKS)
    with pytest.raises(ConfigError, match=r"objective\.weights: no term 'stes'"):
        Objective({"stes": 1.0}, others={"sets": None})(recognizer, recognizer(batch), batch)


@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced"])
def test_class_weights_of_every_task(loss: str) -> None:
    recognizer, store = build(EMOTION, SETS, NUMBERS), random_store(tasks=TASKS)
    scheme = "balanced" if loss == "cross_entropy" else "none"
    settings = section_of("objective", {"weights": {}, "loss": loss, "class_weights": scheme})
    others = {task.name: store.targets[task.name] for task in (SETS, NUMBERS)}
    objective = build_objective(settings, recognizer, store.targets["emotion"], None, others)
    found = {name: getattr(objective, buffer) for name, buffer in objective.others.items()}
    assert found["numbers"] is None
    assert (found["sets"] is not None) is (loss == "cross_entropy")
