"""Losses of single-label classification.

Each is a weighted sum over labelled utterances and the sum of their weights, to be combined over batches and processes.
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
    r"""Cross-entropy with label smoothing (Szegedy et al., CVPR 2016, section 7).

    .. math:: L_i = -(1 - e) \log p_{y_i} - \frac{e}{C} \sum_c \log p_c

    Args:
        logits: (N, C).
        labels: (N) class indices; arbitrary if not ``valid``.
        smoothing: e, from 0 to 1.
        weights: (C) class weights, applied to both parts.
        valid: (N) bool, the labelled utterances; None for all.

    Returns:
        The sums of w_i L_i and of w_i.

    Raises:
        ValueError: ``smoothing`` is out of range.
    """
    logits, labels = rows_of(valid, logits, labels)
    loss, weight = _cross_entropy(logits, labels, smoothing, weights)
    return (weight * loss).sum(), weight.sum()


@in_full_precision
def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Focal loss (Lin et al., ICCV 2017, equation 5, for C classes): confident utterances count less.

    .. math:: L_i = (1 - p_{y_i})^{gamma} (-\log p_{y_i})

    With smoothing, the factor multiplies the smoothed cross-entropy. MMGCN's loss of this name differs
    (log-probabilities for probabilities, summed over all classes).

    Args:
        logits, labels, smoothing, weights, valid: As for :func:`smoothed_cross_entropy`.
        gamma: Exponent, at least 0; 0 is cross-entropy.
        factors: f (N), multiplied by the losses; None for 1.

    Returns:
        The sums of f_i w_i L_i and of w_i.

    Raises:
        ValueError: ``gamma`` or ``smoothing`` is out of range.
    """
    check_not_negative("gamma", gamma)
    logits, labels = rows_of(valid, logits, labels)
    loss, weight = _cross_entropy(logits, labels, smoothing, weights)
    # log(1 - p) from the other classes' logits: near p = 1 the difference has no digits, and its powers below 1 have
    # infinite slope.
    target = F.one_hot(labels, logits.shape[1]).bool()
    log_others = logits.masked_fill(target, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    each = weight * (gamma * log_others).exp() * loss
    if factors is not None:
        (factors,) = rows_of(valid, factors)
        each = factors * each
    return each.sum(), weight.sum()


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, found {smoothing}. Choose a number in this range.")
    loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return loss, torch.ones_like(loss) if weights is None else weights.to(loss).index_select(0, labels)


def class_balanced_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    r"""Class weights by the effective number of samples (Cui et al., CVPR 2019, equation 4).

    .. math:: w_c = \frac{1 - b}{1 - b^{n_c}}, \quad \text{scaled to } \sum_c w_c = C

    Args:
        counts: n_c (C), labelled training utterances per class.
        beta: b, at least 0 (equal weights) and below 1 (towards 1 / n_c).

    Returns:
        (C) float64; 0 for a class without utterances.

    Raises:
        ValueError: ``beta`` is out of range, or no count is positive.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, found {beta}. Choose a number in this range.")
    counts = counts.double()
    if not (counts > 0).any():
        raise ValueError("no class has a positive count. Check the training labels.")
    # expm1, because 1 - b ** n cancels for beta near 1. With beta 0, log(b) is -inf and every quotient 1.
    logarithm = torch.tensor(beta, dtype=torch.float64).log()
    occurs = counts > 0
    raw = torch.where(occurs, (1 - beta) / -torch.expm1(torch.where(occurs, counts, 1.0) * logarithm), 0.0)
    return raw * len(counts) / raw.sum()
