"""Focal loss, label smoothing and class-balanced weights against plain loops and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.losses import class_balanced_weights, concordance, focal_loss, smoothed_cross_entropy
from ercfusion.losses.reference import class_balanced_weights_reference, concordance_reference, focal_reference

WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)


def made(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(4, (rows,), generator=generator)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_the_loop(gamma: float, smoothing: float, weights: Tensor | None) -> None:
    logits, labels = made()
    total, count = focal_loss(logits, labels, gamma=gamma, smoothing=smoothing, weights=weights)
    expected = focal_reference(logits, labels, gamma, weights, smoothing)
    torch.testing.assert_close(total / count, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (total / count, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_focal_without_gamma_is_cross_entropy_and_with_it_spares_the_easy() -> None:
    logits, labels = made()
    total, count = focal_loss(logits, labels, gamma=0.0)
    torch.testing.assert_close(total / count, F.cross_entropy(logits, labels))
    easy, hard = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    label = torch.tensor([0])
    shares = [float(focal_loss(row, label, gamma=2.0)[0] / F.cross_entropy(row, label)) for row in (easy, hard)]
    assert shares[0] < 0.001
    assert shares[1] > 0.95


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_focal_is_finite_where_the_answer_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [1e4, 0.0]], requires_grad=True)
    total, _ = focal_loss(logits, torch.zeros(3, dtype=torch.long), gamma=gamma)
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert float(total.detach()) == pytest.approx(200.0)


def test_smoothing() -> None:
    logits, labels = made()
    total, count = smoothed_cross_entropy(logits, labels, smoothing=0.2)
    torch.testing.assert_close(total / count, F.cross_entropy(logits, labels, label_smoothing=0.2))
    torch.testing.assert_close(total / count, focal_reference(logits, labels, 0.0, smoothing=0.2))
    weighted = smoothed_cross_entropy(logits, labels, smoothing=0.2, weights=WEIGHTS)
    torch.testing.assert_close(weighted[0] / weighted[1], focal_reference(logits, labels, 0.0, WEIGHTS, 0.2))
    assert float(weighted[1]) == float(WEIGHTS[labels].sum())


def test_only_valid_rows_count() -> None:
    logits, labels = made()
    valid = torch.arange(12) % 3 != 0
    spoilt = torch.where(valid[:, None], logits, torch.nan)
    labels = labels.where(valid, -7)
    for loss in (focal_loss, smoothed_cross_entropy):
        found = loss(spoilt, labels, valid=valid)
        torch.testing.assert_close(found, loss(logits[valid], labels[valid]))
        empty = loss(logits, labels, valid=torch.zeros(12, dtype=torch.bool))
        assert (float(empty[0].detach()), float(empty[1])) == (0.0, 0.0)
        assert (torch.autograd.grad(empty[0], logits)[0] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999999])
def test_class_balanced_weights(beta: float) -> None:
    counts = [1.0, 40.0, 0.0, 4000.0]
    found = class_balanced_weights(torch.tensor(counts), beta)
    expected = torch.tensor(class_balanced_weights_reference(counts, beta), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert float(found.sum()) == pytest.approx(4.0)
    assert found[2] == 0
    if beta == 0:
        assert len(set(found[[0, 1, 3]].tolist())) == 1


def test_class_balanced_weights_tend_to_the_inverse_frequency() -> None:
    counts = torch.tensor([2.0, 10.0])
    found = class_balanced_weights(counts, 1 - 1e-10)
    assert float(found[0] / found[1]) == pytest.approx(5.0, rel=1e-6)


def test_concordance_equals_the_loop() -> None:
    x, y = made()[0].detach().t()[:2]
    assert concordance(x[:, None], y[:, None]).item() == pytest.approx(concordance_reference(x.tolist(), y.tolist()))


def test_values_out_of_range_are_named() -> None:
    logits, labels = made()
    with pytest.raises(ValueError, match="gamma must be at least 0, found -1"):
        focal_loss(logits, labels, gamma=-1)
    with pytest.raises(ValueError, match="smoothing must be from 0 to 1, found 2"):
        smoothed_cross_entropy(logits, labels, smoothing=2)
    with pytest.raises(ValueError, match="beta must be at least 0 and below 1, found 1"):
        class_balanced_weights(torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="no class has a positive count"):
        class_balanced_weights(torch.zeros(2))
