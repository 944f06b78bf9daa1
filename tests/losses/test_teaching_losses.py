"""Losses of a student against a teacher: values and gradients against plain formulas, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.batch.kinds import KINDS
from ercfusion.losses import (
    gaussian_divergence,
    imputation_loss,
    representation_distance,
    softened_binary_divergence,
    softened_divergence,
)
from ercfusion.tasks.kinds.regression import GaussianRegression
from ercfusion.testing import make_task


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(loss: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], student: Tensor) -> None:
    """Same value and same gradient; the gradient also as finite differences."""
    one, other = (student.clone().requires_grad_() for _ in range(2))
    result, expected = loss(one), plain(other)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    result.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(loss, (student.clone().requires_grad_(),))


def plain_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    parts = [1 - s @ t / (s.norm() * t.norm()) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(parts).sum()


def plain_squares(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher) ** 2).sum() / student.shape[1]


@pytest.mark.parametrize(("distance", "plain"), [("cosine", plain_cosine), ("mse", plain_squares)])
def test_representations(distance: str, plain: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = numbers(5, 4), numbers(5, 4, seed=1)
    total, count = representation_distance(student, teacher, distance=distance)
    assert count == 5
    assert_same(
        lambda given: representation_distance(given, teacher, distance=distance)[0],
        lambda given: plain(given, teacher),
        student,
    )
    same, _ = representation_distance(teacher, teacher, distance=distance)
    assert float(same) == pytest.approx(0, abs=1e-12)
    assert float(total) > 0


def test_a_vector_of_zeros_has_no_direction() -> None:
    student = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    total, _ = representation_distance(student, numbers(2, 3))
    total.backward()
    assert float(total.detach()) == 2
    assert torch.equal(student.grad, torch.zeros(2, 3, dtype=torch.float64))


def plain_softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    rows = []
    for s, t in zip(student, teacher, strict=True):
        p, q = ((v / temperature).exp() / (v / temperature).exp().sum() for v in (s, t))
        rows.append(temperature**2 * sum(q[c] * (q[c] / p[c]).log() for c in range(len(s))))
    return torch.stack(rows)


def plain_binary(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    rows = []
    for s, t in zip(student, teacher, strict=True):
        p, q = (1 / (1 + (-v / temperature).exp()) for v in (s, t))
        each = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
        rows.append(temperature**2 * each.sum() / len(s))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("loss", "plain"), [(softened_divergence, plain_softened), (softened_binary_divergence, plain_binary)]
)
def test_probabilities(loss: Any, plain: Any, temperature: float) -> None:
    student, teacher = numbers(5, 4), numbers(5, 4, seed=1)
    assert_same(lambda s: loss(s, teacher, temperature), lambda s: plain(s, teacher, temperature), student)
    torch.testing.assert_close(loss(teacher, teacher, temperature), torch.zeros(5, dtype=torch.float64))


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = -student.detach()
    for loss in (softened_divergence, softened_binary_divergence):
        (gradient,) = torch.autograd.grad(loss(student, teacher).sum(), student)
        assert loss(student, teacher).isfinite().all()
        assert gradient.isfinite().all()


def test_normal_distributions() -> None:
    mean, log_variance, other, other_variance = (numbers(4, 2, seed=seed) for seed in range(4))

    def plain(given: Tensor) -> Tensor:
        p = torch.distributions.Normal(given, (log_variance.exp() + 0.01).sqrt())
        q = torch.distributions.Normal(other, (other_variance.exp() + 0.01).sqrt())
        return torch.distributions.kl_divergence(q, p)

    def loss(given: Tensor) -> Tensor:
        return gaussian_divergence(given, log_variance, other, other_variance, floor=0.1)

    assert_same(loss, plain, mean)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_imputation(beta: float) -> None:
    predicted, target = numbers(6, 3), numbers(6, 3, seed=1)

    def plain(given: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for x in (given - target).flatten():
            total = total + (x * x / (2 * beta) if abs(float(x.detach())) < beta else x.abs() - beta / 2)
        return total / 3

    assert_same(lambda given: imputation_loss(given, target, beta=beta)[0], plain, predicted)
    assert imputation_loss(predicted, target, beta=beta)[1] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_divergence(kind: str) -> None:
    task = make_task(kind)
    width = task.rules.num_logits(task)
    student, teacher = numbers(5, width).requires_grad_(), numbers(5, width, seed=1)
    result = task.rules.divergence(student, teacher, task, temperature=2.0)
    assert result.shape == (5,)
    assert (result > 0).all()
    assert torch.autograd.gradcheck(lambda s: task.rules.divergence(s, teacher, task, temperature=2.0), (student,))
    same = task.rules.divergence(teacher, teacher, task, temperature=2.0)
    torch.testing.assert_close(same, torch.zeros(5, dtype=torch.float64))


def test_divergence_of_numbers() -> None:
    task = make_task("regression")
    student, teacher = numbers(5, task.size), numbers(5, task.size, seed=1)
    expected = (student - teacher).square().mean(1)
    torch.testing.assert_close(task.rules.divergence(student, teacher, task, temperature=3.0), expected)
    first = task.rules.divergence(student, teacher, task, dimension_weights=dict.fromkeys(task.dimensions[1:], 0.0))
    torch.testing.assert_close(first, (student - teacher)[:, 0].square())
    rules = GaussianRegression()
    spread = [torch.cat([part, torch.zeros_like(part)], 1) for part in (student, teacher)]
    variance = 1 + (1e-3 * (task.high - task.low)) ** 2
    torch.testing.assert_close(rules.divergence(*spread, task), expected / (2 * variance))


def test_divergence_of_intensities() -> None:
    task = make_task("intensity")
    student, teacher = numbers(3, 2 * task.size), numbers(3, 2 * task.size, seed=1)
    result = task.rules.divergence(student, teacher, task, temperature=1.0)
    for row in range(3):
        total = 0.0
        for label in range(task.size):
            p, q = (1 / (1 + math.exp(-float(one[row, label]))) for one in (student, teacher))
            error = float(student[row, task.size + label] - teacher[row, task.size + label]) / (task.high - task.low)
            total += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) + q * error**2
        assert float(result[row]) == pytest.approx(total / task.size)
