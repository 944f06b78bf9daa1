from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ercfusion.batch.votes import vote_shares
from ercfusion.losses import (
    chosen_label_loss,
    chosen_labels,
    cooccurrence_penalties,
    focal_loss,
    kl_divergence,
    label_counts,
    penalty_factors,
    smooth_raters,
    soft_cross_entropy,
)

SIZE = 5


def shares(*, rows: int = 7, smoothing: float = 0.0) -> Tensor:
    # One vote and all votes equal are the ends.
    torch.manual_seed(1)
    votes = torch.randint(0, 3, (rows, SIZE))
    votes[0] = torch.tensor([0, 1, 0, 0, 0])
    votes[1] = 2
    votes[:, 2] += votes.sum(1) == 0
    return torch.from_numpy(vote_shares(votes.numpy(), smoothing))


def cross_entropy(probabilities: Tensor, target: Tensor) -> Tensor:
    return sum((-share * p.log() for share, p in zip(target, probabilities, strict=True)), torch.zeros(()).double())


def divergence(probabilities: Tensor, target: Tensor) -> Tensor:
    terms = [
        share * (share.log() - p.log()) for share, p in zip(target, probabilities, strict=True) if float(share) > 0
    ]
    return torch.stack(terms).sum()


def binary(probabilities: Tensor, target: Tensor) -> Tensor:
    threshold = 0.05 / (len(target) - 1) + 1e-6
    terms = [
        -p.log() if float(share) > threshold else -(1 - p).log() for share, p in zip(target, probabilities, strict=True)
    ]
    return torch.stack(terms).mean()


def loop(
    each: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None,
    factors: Tensor | None,
    valid: Tensor,
) -> Tensor:
    total, count = torch.zeros(()).double(), torch.zeros(()).double()
    for row in range(len(logits)):
        if not valid[row]:
            continue
        probabilities = logits[row].exp() / logits[row].exp().sum()
        weight = torch.ones(()).double()
        if weights is not None:
            weight = torch.stack([weights[c] * target[row, c] for c in range(SIZE)]).sum()
        factor = 1.0 if factors is None else factors[row]
        total = total + weight * factor * each(probabilities, target[row])
        count = count + weight
    return total / count


PAIRS = [(soft_cross_entropy, cross_entropy), (kl_divergence, divergence), (chosen_label_loss, binary)]


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("function", "each"), PAIRS, ids=[function.__name__ for function, _ in PAIRS])
def test_losses_are_the_loops(function, each, weighted: bool, smoothing: float) -> None:
    target = shares(smoothing=smoothing)
    logits = torch.randn(7, SIZE, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(SIZE, dtype=torch.float64) if weighted else None
    factors = torch.rand(7, dtype=torch.float64) if weighted else None
    valid = torch.tensor([True, True, False, True, True, True, False])
    spoiled = torch.where(valid[:, None], target, torch.nan)
    total, count = function(logits, spoiled, weights=weights, factors=factors, valid=valid)
    expected = loop(each, logits, target, weights, factors, valid)
    torch.testing.assert_close(total / count, expected, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(total / count, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_single_vote_is_cross_entropy_and_an_equal_prediction_has_no_divergence() -> None:
    logits = torch.randn(3, SIZE, dtype=torch.float64)
    target = torch.eye(SIZE, dtype=torch.float64)[[0, 3, 3]]
    total, count = soft_cross_entropy(logits, target)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 3]), reduction="sum")
    torch.testing.assert_close(total, expected)
    assert count == 3
    assert kl_divergence(logits, target)[0] == pytest.approx(float(expected))
    assert float(kl_divergence(logits, logits.softmax(-1))[0]) == pytest.approx(0, abs=1e-12)


def test_the_binary_loss_is_smallest_for_equal_probabilities_of_the_chosen_labels() -> None:
    logits = torch.zeros(1, SIZE, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.2, 0.8, 0.0, 0.0, 0.0]], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = chosen_label_loss(logits, target)[0]
        total.backward()
        return total

    optimizer.step(closure)
    assert logits.softmax(-1)[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("function", [function for function, _ in PAIRS])
def test_extreme_logits_are_finite(function) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0, 0.0, 0.0], [0.0, 0.0, 90.0, 0.0, 0.0]], requires_grad=True)
    total, _ = function(logits, shares()[:2].float())
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite()
    assert gradient.isfinite().all()


def test_under_autocast_single_precision_is_used() -> None:
    logits = torch.randn(7, SIZE)
    expected = kl_divergence(logits, shares().float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kl_divergence(logits, shares().float())[0] == expected


def test_smoothing_of_shares_is_that_of_votes() -> None:
    for smoothing in (0.05, 0.3):
        torch.testing.assert_close(smooth_raters(shares(), smoothing), shares(smoothing=smoothing))
    plain = shares()
    assert smooth_raters(plain, 0.0) is plain
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            smooth_raters(plain, wrong)
    with pytest.raises(ValueError, match="two labels"):
        smooth_raters(torch.ones(3, 1), 0.05)


def test_chosen_labels_with_and_without_smoothing() -> None:
    plain = shares()
    assert torch.equal(chosen_labels(plain), plain > 0)
    # In single precision the smoothed share of a label without votes may exceed 0.05 / (C - 1).
    for size in range(2, 40):
        one = torch.zeros(1, size, dtype=torch.float64)
        one[0, 0] = 1
        assert chosen_labels(smooth_raters(one, 0.05).float()).sum() == 1


def test_counts_above_one_over_c() -> None:
    target = torch.tensor([[0.2, 0.8, 0, 0, 0], [0.4, 0.6, 0, 0, 0], [0.2] * 5])
    assert label_counts(target).tolist() == [1, 2, 0, 0, 0]


def test_penalties_against_a_loop() -> None:
    chosen = shares(rows=30) > 0
    chosen[:, 4] = False
    found = cooccurrence_penalties(chosen)
    for j in range(SIZE):
        for k in range(SIZE):
            both = sum(bool(row[j] and row[k]) for row in chosen)
            own = sum(bool(row[j]) for row in chosen)
            expected = 1.0 if j == k or own == 0 else 1 - both / own
            assert float(found[j, k]) == pytest.approx(expected)
    assert found.dtype == torch.float64


def test_factors_against_a_loop_and_without_gradient() -> None:
    penalties = cooccurrence_penalties(shares(rows=30) > 0)
    target = shares()
    logits = torch.randn(7, SIZE, dtype=torch.float64, requires_grad=True)
    outputs = logits.softmax(-1)
    found = penalty_factors(penalties, target, outputs)
    for row in range(7):
        expected = sum(
            float(target[row, j] * penalties[j, k] * outputs.detach()[row, k]) for j in range(SIZE) for k in range(SIZE)
        )
        assert float(found[row]) == pytest.approx(expected)
    assert not found.requires_grad
    assert bool(((found >= 0) & (found <= 1 + 1e-12)).all())


def test_factors_of_label_sets() -> None:
    penalties = torch.tensor([[1.0, 0.25], [0.5, 1.0]])
    target = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    outputs = torch.tensor([[0.9, 0.3], [0.0, 0.4], [0.5, 0.5]])
    first = 0.5 * (1.0 * 0.75 + 0.25 * 0.25) + 0.5 * (0.5 * 0.75 + 1.0 * 0.25)
    # The second utterance has label 0 and a prediction of label 1 only; the third has no label.
    assert penalty_factors(penalties, target, outputs).tolist() == pytest.approx([first, 0.25, 1.0])


def test_focal_loss_with_factors() -> None:
    logits = torch.randn(4, SIZE, dtype=torch.float64)
    labels, valid = torch.tensor([0, 1, 2, 3]), torch.tensor([True, False, True, True])
    factors = torch.tensor([0.5, 9.0, 0.0, 2.0], dtype=torch.float64)
    each = [focal_loss(logits[[i]], labels[[i]], gamma=1.5)[0] * factors[i] for i in (0, 2, 3)]
    total, count = focal_loss(logits, labels, gamma=1.5, factors=factors, valid=valid)
    torch.testing.assert_close(total, torch.stack(each).sum())
    assert count == 3


def test_one_label() -> None:
    logits, target = torch.randn(3, 1), torch.ones(3, 1)
    for function, _ in PAIRS:
        assert float(function(logits, target)[0]) == pytest.approx(0.0)
    assert math.isclose(float(cooccurrence_penalties(target > 0)), 1.0)
