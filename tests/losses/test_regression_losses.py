"""Concordance over a training set, and the Gaussian likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ercfusion.losses import SetConcordance, concordance, gaussian_nll, gaussian_spread
from ercfusion.losses.concordance import SetRows


def _pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    prediction = 0.7 * target + 0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64) + 0.3
    return prediction.requires_grad_(), target


def _batches(count: int, seed: int) -> list[Tensor]:
    return list(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(7))


def test_a_batch_of_the_whole_set_gives_the_plain_concordance() -> None:
    prediction, target = _pairs(20)
    whole = SetConcordance(20, 2).double()
    rows = torch.randperm(20)
    for _ in range(2):  # also with every utterance stored
        value = whole(prediction[rows], target[rows], rows)
        (gradient,) = torch.autograd.grad(value.sum(), prediction)
        expected = concordance(prediction, target)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), prediction)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_batches_replace_their_own_predictions_and_keep_those_of_the_others() -> None:
    size = 20
    whole = SetConcordance(size, 2).double()
    latest = torch.full((size, 2), math.nan, dtype=torch.float64)
    _, target = _pairs(size)
    for epoch in range(3):
        prediction, _ = _pairs(size, seed=epoch)
        for rows in _batches(size, epoch):
            latest[rows] = prediction.detach()[rows]
            seen = ~latest.isnan().any(1)
            parts = torch.where(torch.isin(torch.arange(size), rows)[:, None], prediction, latest)
            expected = concordance(parts[seen], target[seen])
            value = whole(prediction[rows], target[rows], rows)
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
            (gradient,) = torch.autograd.grad(value.sum(), prediction, retain_graph=True)
            (plain,) = torch.autograd.grad(expected.sum(), prediction, retain_graph=True)
            torch.testing.assert_close(gradient, plain * int(seen.sum()) / len(rows), rtol=1e-9, atol=1e-12)
    assert whole.seen.all()


def test_the_batches_of_an_epoch_add_up_to_the_gradient_over_the_set() -> None:
    """With stored predictions equal to the present ones, the mean gradient is that of the whole set."""
    prediction, target = _pairs(21)
    whole = SetConcordance(21, 2).double()
    whole(prediction, target, torch.arange(21))
    batches = _batches(21, 0)
    total = sum(whole(prediction[rows], target[rows], rows).sum() for rows in batches) / len(batches)
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, prediction)
    (expected,) = torch.autograd.grad(concordance(prediction, target).sum(), prediction)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_nothing_is_stored_in_eval_mode_and_the_state_continues() -> None:
    prediction, target = _pairs(8)
    whole = SetConcordance(8, 2).double().eval()
    rows = torch.arange(4)
    whole(prediction[:4], target[:4], rows)
    assert not whole.seen.any()
    whole.train()(prediction[:4], target[:4], rows)
    resumed = SetConcordance(8, 2).double()
    resumed.load_state_dict(whole.state_dict())
    rest = torch.arange(4, 8)
    assert torch.equal(resumed(prediction[4:], target[4:], rest), whole(prediction[4:], target[4:], rest))


def test_constant_predictions_and_empty_batches_are_finite() -> None:
    whole = SetConcordance(6, 1)
    constant = torch.ones(6, 1, requires_grad=True)
    value = whole(constant, torch.arange(6.0)[:, None], torch.arange(6))
    (gradient,) = torch.autograd.grad(value.sum(), constant)
    assert float(value.detach()) == 0
    assert gradient.isfinite().all()
    nothing = whole(torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    assert nothing.isfinite().all()


def test_rows_of_a_batch() -> None:
    rows = SetRows(("a", "b", "c"), (2, 1, 3))
    assert rows.size == 6
    assert rows.of(("c", "a"), (3, 2)).tolist() == [3, 4, 5, 0, 1]
    assert rows.of((), ()).tolist() == []


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_likelihood_is_that_of_the_normal_distribution(floor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, target = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    spread = gaussian_spread(log_variance, floor)
    expected = -Normal(mean, spread).log_prob(target)
    torch.testing.assert_close(gaussian_nll(mean, log_variance, target, floor=floor), expected)
    torch.testing.assert_close(spread.square(), log_variance.exp() + floor**2)
    inputs = (mean.requires_grad_(), log_variance.requires_grad_(), target)
    assert torch.autograd.gradcheck(lambda *parts: gaussian_nll(*parts, floor=floor), inputs)


def test_beta_weighs_the_gradient_by_the_variance() -> None:
    mean, log_variance, target = (torch.randn(5, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    (plain,) = torch.autograd.grad(gaussian_nll(mean, log_variance, target).sum(), mean)
    for beta in (0.5, 1.0):
        (gradient,) = torch.autograd.grad(gaussian_nll(mean, log_variance, target, beta=beta).sum(), mean)
        torch.testing.assert_close(gradient, plain * log_variance.exp() ** beta)
    # With 1 it is the gradient of half the squared error.
    torch.testing.assert_close(gradient, mean - target)


def test_the_likelihood_is_computed_in_single_precision_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        values = gaussian_nll(*(torch.randn(4, 1).bfloat16() for _ in range(3)))
    assert values.dtype == torch.float32


def test_a_tiny_variance_stays_finite_with_a_floor() -> None:
    log_variance = torch.full((1, 1), -200.0, requires_grad=True)
    value = gaussian_nll(torch.zeros(1, 1), log_variance, torch.ones(1, 1), floor=1e-3)
    value.sum().backward()
    assert value.isfinite().all()
    assert log_variance.grad is not None
    assert log_variance.grad.isfinite().all()
