from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import TaskTargets
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.losses import concordance
from ercfusion.tasks.heads import Head, check_class_weights, class_weights
from ercfusion.testing import make_task, random_batch

LENGTHS = (7, 20, 13)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_targets(kind: str, labelled: float = 1.0) -> TaskTargets:
    """Random targets; those of unlabelled utterances are impossible numbers."""
    return random_batch(LENGTHS, tasks=[make_task(kind)], labelled=labelled).targets["emotion"]


def make_logits(kind: str) -> Tensor:
    task = make_task(kind)
    return torch.randn(sum(LENGTHS), task.rules.num_logits(task), requires_grad=True)


WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.5])


def quotient(head: Head, logits: Tensor, targets: TaskTargets, weights: Tensor | None = None) -> Tensor:
    total, count = head.loss(logits, targets, weights)
    return total / count


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_single_label_loss(weights: Tensor | None) -> None:
    targets, logits = make_targets("single_label"), make_logits("single_label")
    head = Head(make_task(), 3)
    expected = F.cross_entropy(logits, targets.value, weight=weights)
    torch.testing.assert_close(quotient(head, logits, targets, weights), expected)


def test_label_smoothing() -> None:
    targets, logits = make_targets("single_label"), make_logits("single_label")
    expected = F.cross_entropy(logits, targets.value, label_smoothing=0.2)
    torch.testing.assert_close(quotient(Head(make_task(), 3, label_smoothing=0.2), logits, targets), expected)
    assert not torch.allclose(quotient(Head(make_task(), 3), logits, targets), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_multi_label_loss(weights: Tensor | None) -> None:
    targets, logits = make_targets("multi_label"), make_logits("multi_label")
    expected = F.binary_cross_entropy_with_logits(logits, targets.value, weight=weights)
    torch.testing.assert_close(quotient(Head(make_task("multi_label"), 3), logits, targets, weights), expected)


def test_distribution_loss() -> None:
    targets, logits = make_targets("distribution"), make_logits("distribution")
    head = Head(make_task("distribution"), 3)
    expected = F.cross_entropy(logits, targets.value)
    torch.testing.assert_close(quotient(head, logits, targets), expected)
    each = F.cross_entropy(logits, targets.value, reduction="none").detach().numpy()
    by_hand = np.average(each, weights=targets.value.numpy() @ WEIGHTS.numpy())
    assert quotient(head, logits, targets, WEIGHTS).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_distribution_on_one_label_weighs_like_that_label() -> None:
    logits = make_logits("single_label")
    hard = make_targets("single_label")
    soft = TaskTargets(F.one_hot(hard.value, 4).float(), hard.valid)
    found = Head(make_task("distribution"), 3).loss(logits, soft, WEIGHTS)
    expected = Head(make_task(), 3).loss(logits, hard, WEIGHTS)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "oracle"), [("mse", F.mse_loss), ("mae", F.l1_loss)])
def test_regression_losses(name: str, oracle: object) -> None:
    targets, logits = make_targets("regression"), make_logits("regression")
    head = Head(make_task("regression"), 3, regression_loss=name)
    torch.testing.assert_close(quotient(head, logits, targets), oracle(logits, targets.value))  # type: ignore[operator]


def numpy_concordance(x: np.ndarray, y: np.ndarray) -> float:
    covariance = np.cov(x, y, bias=True)
    return 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)


def test_concordance() -> None:
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    y = 0.5 * x + y + torch.tensor([0.0, 1.0, -2.0])
    expected = [numpy_concordance(x[:, k].numpy(), y[:, k].numpy()) for k in range(3)]
    np.testing.assert_allclose(concordance(x, y).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(concordance(x, x), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    z = x - x.mean(0)
    torch.testing.assert_close(concordance(z, -z), -torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    x.requires_grad_()
    assert torch.autograd.gradcheck(concordance, (x, y))


def test_concordance_of_constants_is_finite() -> None:
    x = torch.ones(5, 2, requires_grad=True)
    value = concordance(x, torch.randn(5, 2))
    value.sum().backward()
    assert torch.equal(value, torch.zeros(2))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_concordance_loss() -> None:
    targets, logits = make_targets("regression", labelled=0.5), make_logits("regression")
    head = Head(make_task("regression"), 3, regression_loss="ccc")
    rows = logits.detach()[targets.valid].numpy()
    value = targets.value[targets.valid].numpy()
    expected = np.mean([1 - numpy_concordance(rows[:, k], value[:, k]) for k in range(2)])
    assert quotient(head, logits, targets).item() == pytest.approx(expected, rel=1e-5)


HEADS = [(kind, {}) for kind in KINDS] + [("regression", {"regression_loss": name}) for name in ("mae", "ccc")]


@pytest.mark.parametrize(("kind", "options"), HEADS)
def test_unlabelled_utterances_never_matter(kind: str, options: dict[str, str]) -> None:
    targets = make_targets(kind, labelled=0.5)
    valid = targets.valid
    assert 0 < int(valid.sum()) < len(valid)
    head = Head(make_task(kind), 3, **options)  # type: ignore[arg-type]
    logits = make_logits(kind)
    total, count = head.loss(logits, targets)
    assert float(count) == int(valid.sum())
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).any(1).all()
    # Garbage in their outputs, and only the labelled rows by themselves: the same loss.
    spoiled = torch.where(valid[:, None], logits, torch.nan)
    only = TaskTargets(targets.value[valid], valid[valid])
    torch.testing.assert_close(head.loss(spoiled, targets), (total, count))
    torch.testing.assert_close(head.loss(logits[valid], only), (total, count))


@pytest.mark.parametrize(("kind", "options"), HEADS)
def test_no_labelled_utterance(kind: str, options: dict[str, str]) -> None:
    targets, logits = make_targets(kind), make_logits(kind)
    nothing = replace(targets, valid=torch.zeros_like(targets.valid))
    total, count = Head(make_task(kind), 3, **options).loss(logits, nothing)  # type: ignore[arg-type]
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    (gradient,) = torch.autograd.grad(total, logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_single_precision(kind: str) -> None:
    targets, logits = make_targets(kind), make_logits(kind)
    head = Head(make_task(kind), 3)
    half = head.loss(logits.bfloat16(), targets)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, head.loss(logits.bfloat16().float(), targets)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_prior(kind: str) -> None:
    """Without evidence the head answers with the distribution of the labelled training utterances."""
    targets = make_targets(kind, labelled=0.6)
    head = Head(make_task(kind), 3)
    head.start_from_prior(targets)
    value = targets.value[targets.valid]
    if kind == "single_label":
        value = F.one_hot(value, 4)
    answer = head.outputs(head(torch.zeros(1, 3)))[0]
    expected = value.float().mean(0)
    if head.task.rules.scaled:  # probabilities, then intensities of active labels
        active = (value > 0).float()
        expected = torch.cat([active.mean(0), value.sum(0) / active.sum(0)])
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "distribution"])
def test_prior_of_a_label_that_never_occurs(kind: str) -> None:
    targets = make_targets(kind)
    if kind == "single_label":
        targets = replace(targets, value=targets.value.clamp(max=2))
    else:
        targets.value[:, 3] = 0
    head = Head(make_task(kind), 3)
    head.start_from_prior(targets)
    assert head.linear.bias.isfinite().all()
    assert 0 < head.outputs(head(torch.zeros(1, 3)))[0, 3].item() < 2e-4


def test_outputs() -> None:
    logits = torch.tensor([[-9.0, 0.0, 1.0, 9.0]])
    for kind in ("single_label", "distribution"):
        assert torch.equal(Head(make_task(kind), 3).outputs(logits), logits.softmax(1))  # type: ignore[arg-type]
    assert torch.equal(Head(make_task("multi_label"), 3).outputs(logits), logits.sigmoid())
    numbers = Head(make_task("regression"), 3).outputs(logits[:, [0, 2]])
    assert numbers.tolist() == [[-3.0, 1.0]]  # kept between the task's -3 and 3


def test_balanced_weights() -> None:
    targets = make_targets("single_label", labelled=0.7)
    value = targets.value[targets.valid].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(4), y=value)
    weights = class_weights(targets, make_task(), "balanced")
    assert weights is not None
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert float(weights[value].mean()) == pytest.approx(1, rel=1e-5)


def test_effective_weights() -> None:
    """Cui et al.: (1 - b) / (1 - b ** n), here with b = (N - 1) / N, scaled to a mean of 1 over the utterances."""
    targets = make_targets("single_label", labelled=0.7)
    value = targets.value[targets.valid].numpy()
    count, total = np.bincount(value, minlength=4), len(value)
    b = (total - 1) / total
    raw = (1 - b) / (1 - b**count)
    weights = class_weights(targets, make_task(), "effective")
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), raw * total / (raw * count).sum(), rtol=1e-5)
    balanced = class_weights(targets, make_task(), "balanced")
    assert balanced is not None
    assert weights.max() / weights.min() < balanced.max() / balanced.min()


@pytest.mark.parametrize("scheme", ["balanced", "effective"])
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "distribution"])
def test_class_that_never_occurs_weighs_nothing(kind: str, scheme: str) -> None:
    targets = make_targets(kind)
    if kind == "single_label":
        targets = replace(targets, value=targets.value.clamp(max=2))
        count = F.one_hot(targets.value, 4).sum(0)
    else:
        targets.value[:, 3] = 0
        count = targets.value.sum(0)
    weights = class_weights(targets, make_task(kind), scheme)
    assert weights is not None
    assert weights[3] == 0
    assert (weights[:3] > 0).all()
    assert float((weights * count).sum() / count.sum()) == pytest.approx(1, rel=1e-5)
    assert (weights[:3].argsort() == (-count[:3]).argsort()).all()


def test_no_weights() -> None:
    assert class_weights(make_targets("single_label"), make_task(), "none") is None
    assert class_weights(make_targets("regression"), make_task("regression"), "balanced") is None


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"objective\.class_weights must be one of none, balanced, effective"):
        class_weights(make_targets("single_label"), make_task(), "sqrt")
    with pytest.raises(
        ConfigError, match=r"objective\.regression_loss must be one of mse, mae, ccc, gaussian; found 'huber'"
    ):
        Head(make_task("regression"), 3, regression_loss="huber")


# Class weights by label name


def schema_task() -> TaskSpec:
    schema = LabelSchema("three", ("neutral", "joy", "anger"), {"happiness": "joy"})
    return TaskSpec("emotion", "single_label", schema)


def test_class_weights_by_name_are_taken_as_they_are() -> None:
    task = schema_task()
    targets = TaskTargets(torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool))
    found = class_weights(targets, task, {"anger": 0, "happiness": 2.5, "neutral": 1})
    assert found is not None
    assert found.tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"neutral": 1, "jy": 2}, r"'jy' is not a label. Did you mean 'joy'\? Without a weight: joy, anger\."),
        ({"neutral": 1, "joy": 1, "happiness": 1, "anger": 1}, "'joy' has two weights"),
        ({"neutral": 1, "joy": -1, "anger": "much"}, "at least 0; found joy: -1, anger: 'much'"),
        ({"neutral": 1, "joy": float("nan"), "anger": True}, "found joy: nan, anger: True"),
        ({"neutral": 0, "joy": 0, "anger": 0}, "no label has a weight above 0"),
        ({}, "no label has a weight above 0"),
        ("balansed", "must be one of none, balanced, effective; found 'balansed'"),
        ([1, 2, 3], "or weights by label"),
    ],
)
def test_class_weights_that_do_not_fit(scheme: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_class_weights(scheme, schema_task())


def test_class_weights_by_name_need_labels() -> None:
    task = TaskSpec("valence", "regression", dimensions=("valence",))
    with pytest.raises(ConfigError, match="the regression task 'valence' has no labels"):
        check_class_weights({"joy": 1}, task)
    assert check_class_weights("balanced", task) is None
