"""Losses of single-label classification: smoothed cross-entropy, focal, and class-balanced weights.

Each returns a weighted sum over the labelled utterances and the sum of their weights. The quotient is the loss; the two
are kept apart so that the loss over several batches or processes is that over all their utterances.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.losses._common import check_not_negative, in_full_precision, rows_of


@in_full_precision
def smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy with a share of the target spread evenly over all classes (Szegedy et al., CVPR 2016, section 7).

    .. math:: L_i = -(1 - e) \log p_{y_i} - \frac{e}{C} \sum_c \log p_c

    Args:
        logits: (N, C).
        labels: (N) class indices; arbitrary where not ``valid``.
        smoothing: The share e, from 0 to 1.
        weights: (C) of the classes. An utterance weighs as much as its own class, in both of its parts.
        valid: (N) bool, True where the utterance is labelled; None for all.

    Returns:
        The sum of w_i L_i and the sum of w_i.

    Raises:
        ValueError: ``smoothing`` is out of its range.
    """
    logits, labels = rows_of(valid, logits, labels)
    each, weight = _cross_entropy(logits, labels, smoothing, weights)
    return (weight * each).sum(), weight.sum()


@in_full_precision
def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Focal loss: utterances that are right already count less (Lin et al., ICCV 2017, equation 5, for C classes).

    .. math:: L_i = (1 - p_{y_i})^{gamma} (-\log p_{y_i})

    With ``gamma=0`` it is the cross-entropy. With smoothing, the same factor multiplies the smoothed cross-entropy.

    The script released with MMGCN has a loss of this name that is another one: it puts log-probabilities where
    probabilities belong and sums over all classes. It is not offered.

    Args:
        logits, labels, smoothing, weights, valid: As for :func:`smoothed_cross_entropy`.
        gamma: 0 or more.

    Returns:
        The sum of w_i L_i and the sum of w_i.

    Raises:
        ValueError: ``gamma`` or ``smoothing`` is out of its range.
    """
    check_not_negative("gamma", gamma)
    logits, labels = rows_of(valid, logits, labels)
    each, weight = _cross_entropy(logits, labels, smoothing, weights)
    # The probability of all other classes from their own logits: 1 - p has no digits left where p is nearly 1, and its
    # powers below 1 an infinite slope.
    own = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    return (weight * (gamma * others).exp() * each).sum(), weight.sum()


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, found {smoothing}")
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return each, torch.ones_like(each) if weights is None else weights.to(each).index_select(0, labels)


def class_balanced_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    r"""Weights by the effective number of samples (Cui et al., CVPR 2019, equation 4).

    .. math:: w_c = \frac{1 - b}{1 - b^{n_c}}, \quad \text{scaled to } \sum_c w_c = C

    Args:
        counts: (C) labelled utterances of each class in the training split, any real numbers from 0.
        beta: b, from 0 (all classes alike) to below 1 (towards 1 / n_c).

    Returns:
        (C) float64 weights; a class that never occurs gets 0.

    Raises:
        ValueError: ``beta`` is out of its range, or there is no class with a positive count.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, found {beta}")
    counts = counts.double()
    if not (counts > 0).any():
        raise ValueError("no class has a positive count")
    # expm1: 1 - b ** n would cancel for beta close to 1. A beta of 0 makes log(b) -inf and every quotient 1.
    logarithm = torch.tensor(beta, dtype=torch.float64).log()
    occurs = counts > 0
    raw = torch.where(occurs, (1 - beta) / -torch.expm1(torch.where(occurs, counts, 1.0) * logarithm), 0.0)
    return raw * len(counts) / raw.sum()
