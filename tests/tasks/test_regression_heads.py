"""Weights of dimensions, concordance over the training set, and heads with a variance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ercfusion._core.errors import ConfigError
from ercfusion.batch.task import TaskSpec
from ercfusion.config.settings import section_of
from ercfusion.losses import concordance
from ercfusion.metrics.registry import metrics_of, scores
from ercfusion.tasks.heads import Head, check_dimension_weights
from ercfusion.tasks.objective import Objective, build_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_store

VAD = TaskSpec("vad", "regression", dimensions=("valence", "arousal", "dominance"), low=1.0, high=5.0)
EMOTION = replace(make_task("single_label"), name="emotion")


def made(tasks: tuple[TaskSpec, ...], *, model: str = "concat", **objective: Any) -> tuple[Recognizer, Objective, Any]:
    torch.manual_seed(0)
    settings = section_of("objective", objective)
    store = random_store((5, 3, 8, 4), tasks=list(tasks), labelled=0.8, seed=3)
    recognizer = Recognizer(
        model,
        store.inputs,
        tasks[0],
        others=tasks[1:],
        unimodal=settings.weights["unimodal"] > 0,
        regression_loss=settings.regression_loss,
    )
    recognizer.prepare(store)
    own, *others = tasks
    further = {task.name: store.targets[task.name] for task in others}
    built = build_objective(settings, recognizer, store.targets[own.name], None, further, store)
    return recognizer.eval(), built.train(), store


@pytest.mark.parametrize("loss", ["mse", "mae", "ccc", "gaussian"])
def test_weights_of_dimensions(loss: str) -> None:
    weights = {"valence": 2.0, "dominance": 0.0}
    recognizer, objective, store = made((VAD,), regression_loss=loss, dimension_weights=weights)
    batch = store.batch(range(4))
    logits = recognizer(batch).logits
    found = objective(recognizer, recognizer(batch), batch)[0]
    parts = []
    targets = store.targets["vad"]
    for k, name in enumerate(VAD.dimensions):
        one = TaskSpec("one", "regression", dimensions=(name,), low=1.0, high=5.0)
        own = logits[:, [k, k + 3]] if loss == "gaussian" else logits[:, [k]]
        total, count = Head(one, 3, regression_loss=loss).loss(own, replace(targets, value=targets.value[:, [k]]))
        parts.append(total / count)
    torch.testing.assert_close(found, (2 * parts[0] + parts[1]) / 3)
    plain = made((VAD,), regression_loss=loss)
    torch.testing.assert_close(plain[1](plain[0], plain[0](batch), batch)[0], torch.stack(parts).mean())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"valance": 1.0}, "no task of the run has a dimension 'valance'. Did you mean 'valence'"),
        (dict.fromkeys(VAD.dimensions, 0.0), "all dimensions of the task 'vad' have weight 0"),
    ],
)
def test_wrong_weights_of_dimensions_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made((EMOTION, VAD), dimension_weights=weights)
    with pytest.raises(ConfigError, match="no task of the run is a regression"):
        check_dimension_weights(weights, [EMOTION])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ccc_over": "set"}, "objective.ccc_over=set is for objective.regression_loss=ccc, but it is mse"),
        ({"gaussian_beta": 0.5, "regression_loss": "ccc"}, "gaussian_beta is for objective.regression_loss=gaussian"),
    ],
)
def test_settings_of_another_loss_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made((VAD,), **settings)


def test_concordance_over_the_set_needs_the_set() -> None:
    settings = section_of("objective", {"regression_loss": "ccc", "ccc_over": "set"})
    recognizer, _, store = made((VAD,), regression_loss="ccc")
    with pytest.raises(ConfigError, match="needs the training split"):
        build_objective(settings, recognizer, store.targets["vad"])


def test_concordance_over_the_set_of_every_head() -> None:
    """Batches of two conversations: the last one's loss is that of the whole set, per head and task."""
    settings = {"regression_loss": "ccc", "ccc_over": "set", "weights": {"unimodal": 1.0}}
    recognizer, objective, store = made((EMOTION, VAD), **settings)
    assert objective.over_set is not None
    assert len(objective.over_set.heads) == 1 + len(recognizer.others["vad"].unimodal_heads) > 1
    first, second = store.batch([2, 0]), store.batch([3, 1])
    objective(recognizer, recognizer(first), first)
    terms = objective(recognizer, recognizer(second), second)[1]
    whole = store.batch(range(4))
    logits, targets = recognizer(whole).others["vad"], store.targets["vad"]
    valid = targets.valid
    expected = 1 - concordance(logits.logits[valid], targets.value[valid]).mean()
    torch.testing.assert_close(terms["vad"], expected)
    unimodal = sum(1 - concordance(own[valid], targets.value[valid]).mean() for own in logits.unimodal.values())
    emotion = recognizer(second)
    own = store.batch([3, 1]).targets["emotion"]
    heads = [recognizer.head.loss(logits, own) for logits in emotion.unimodal.values()]
    torch.testing.assert_close(terms["unimodal"], unimodal + sum(total / count for total, count in heads))
    # The predictions are part of the checkpoint.
    assert any(name.endswith("prediction") for name in objective.state_dict())


def test_a_head_with_a_variance_starts_from_the_training_targets() -> None:
    recognizer, _, store = made((VAD,), regression_loss="gaussian")
    head, targets = recognizer.head, store.targets["vad"]
    with torch.no_grad():
        head.linear.weight.zero_()
        logits = head(torch.zeros(1, head.linear.in_features))
    value = targets.value[targets.valid].double()
    torch.testing.assert_close(head.outputs(logits)[0].double(), value.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.spread(logits)[0].double(), value.std(0, correction=0), rtol=1e-4, atol=1e-5)
    constant = Head(VAD, 2, regression_loss="gaussian")
    constant.start_from_prior(replace(targets, value=torch.full_like(targets.value, 2.0)))
    assert constant.linear is not None
    assert constant.linear.bias.isfinite().all()


def test_predictions_with_standard_deviations() -> None:
    recognizer, _, store = made((EMOTION, VAD), regression_loss="gaussian")
    predictions = recognizer.predict_all(store)
    assert predictions["emotion"].spread is None
    vad = predictions["vad"]
    assert vad.spread is not None
    assert vad.output.shape == vad.spread.shape == (20, 3)
    with torch.no_grad():
        logits = recognizer(store.batch(range(4))).others["vad"].logits.double().numpy()
    np.testing.assert_allclose(vad.output, logits[:, :3].clip(1, 5), rtol=1e-6)
    np.testing.assert_allclose(vad.spread, np.sqrt(np.exp(logits[:, 3:]) + 0.004**2), rtol=1e-6)
    named = {metric.name for metric in metrics_of(VAD)}
    assert {"gaussian_nll", "coverage90", "mean_spread", "ccc"} <= set(scores(vad)) & named
    assert not {"gaussian_nll", "coverage90", "mean_spread"} & set(scores(replace(vad, spread=None)))
    part = vad.take([1, 1])
    assert part.spread is not None
    np.testing.assert_array_equal(part.spread[:3], vad.spread[5:8])


def test_a_trained_variance_follows_the_noise() -> None:
    """Two groups of utterances with noise 0.2 and 1: the head learns both, and 90 % intervals hold 90 %."""
    torch.manual_seed(0)
    task = TaskSpec("x", "regression", dimensions=("x",), low=-9.0, high=9.0)
    group = torch.randint(0, 2, (4000, 1)).float()
    value = 2 * group + (0.2 + 0.8 * group) * torch.randn(4000, 1)
    targets = replace(random_store((1,), tasks=[task], seed=0).targets["x"], value=value, valid=value[:, 0] > -99)
    for beta in (0.0, 0.5):
        head = Head(task, 1, regression_loss="gaussian")
        head.start_from_prior(targets)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(700):
            optimizer.zero_grad()
            total, count = head.loss(head(group), targets, gaussian_beta=beta)
            (total / count).backward()
            optimizer.step()
        with torch.no_grad():
            logits = head(torch.tensor([[0.0], [1.0]]))
            assert head.spread(logits).flatten().tolist() == pytest.approx([0.2, 1.0], rel=0.1)
            assert head.outputs(logits).flatten().tolist() == pytest.approx([0.0, 2.0], abs=0.1)
            logits = head(group)
            covered = (value - head.outputs(logits)).abs() <= 1.6449 * head.spread(logits)
        assert float(covered.float().mean()) == pytest.approx(0.9, abs=0.02)
