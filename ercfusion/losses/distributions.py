"""Losses against distributions over labels, such as shares of annotators' votes (after Chou et al.).

Each is a weighted sum over labelled utterances and the sum of their weights. ``factors`` multiply an utterance's loss
but not its weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ercfusion.batch.predictions import PROBABILITY_TOLERANCE
from ercfusion.batch.votes import SMOOTHING
from ercfusion.losses._common import in_full_precision, rows_of


@in_full_precision
def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy against distributions.

    .. math:: L_i = -\sum_c y_{ic} \log p_{ic}, \quad v_i = \sum_c w_c y_{ic}

    Args:
        logits: (N, C).
        target: y (N, C), rows sum to 1; arbitrary if not ``valid``.
        weights: w (C) class weights; None for v_i = 1.
        factors: (N), see the module.
        valid: (N) bool, the labelled utterances; None for all.

    Returns:
        The sums of f_i v_i L_i and of v_i.
    """
    logits, target = rows_of(valid, logits, target)
    each = -(target * logits.log_softmax(-1)).sum(-1)
    return _weighted(each, target, weights, factors, valid)


@in_full_precision
def kl_divergence(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Kullback-Leibler divergence of the predictions from the targets, 0 if they are equal.

    .. math:: L_i = \sum_c y_{ic} (\log y_{ic} - \log p_{ic})

    Without factors its gradient is that of :func:`soft_cross_entropy`.

    Args:
        logits, target, weights, factors, valid: As for :func:`soft_cross_entropy`.

    Returns:
        The sums of f_i v_i L_i and of v_i.
    """
    logits, target = rows_of(valid, logits, target)
    each = (torch.special.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)
    return _weighted(each, target, weights, factors, valid)


@in_full_precision
def chosen_label_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Binary cross-entropy: every label that any annotator chose is 1 (:func:`chosen_labels`).

    .. math:: L_i = -\frac{1}{C} \sum_c \bigl( b_{ic} \log p_{ic} + (1 - b_{ic}) \log (1 - p_{ic}) \bigr)

    Our reading: p are the probabilities of the softmax, the outputs of a distribution, so that the minimum is the
    uniform distribution over the chosen labels. With a sigmoid per label it is the loss of a label set.

    Args:
        logits, target, weights, factors, valid: As for :func:`soft_cross_entropy`.

    Returns:
        The sums of f_i v_i L_i and of v_i.
    """
    logits, target = rows_of(valid, logits, target)
    log_yes = logits.log_softmax(-1)
    each = -torch.where(chosen_labels(target), log_yes, _log_others(logits)).mean(-1)
    return _weighted(each, target, weights, factors, valid)


def _log_others(logits: Tensor) -> Tensor:
    # log(1 - p) from the logits of the other labels: near p = 1 the difference has no digits.
    size = logits.shape[-1]
    own = torch.eye(size, dtype=torch.bool, device=logits.device)
    others = logits.unsqueeze(-2).expand(*logits.shape, size).masked_fill(own, -torch.inf)
    return others.logsumexp(-1) - logits.logsumexp(-1, keepdim=True)


def _weighted(
    each: Tensor, target: Tensor, weights: Tensor | None, factors: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(each) if weights is None else target @ weights.to(target)
    if factors is not None:
        (factors,) = rows_of(valid, factors)
        each = factors * each
    return (weight * each).sum(), weight.sum()


def chosen_labels(target: Tensor) -> Tensor:
    """(N, C) bool: the labels with a vote, from shares (N, C) with or without rater smoothing.

    The threshold is what :data:`ercfusion.batch.votes.SMOOTHING` gives a label without votes, 0.05 / (C - 1); a single
    vote has more unless there are 20 (C - 1) votes.
    """
    return target > SMOOTHING / max(target.shape[-1] - 1, 1) + PROBABILITY_TOLERANCE


def smooth_raters(target: Tensor, smoothing: float) -> Tensor:
    """Shares (N, C) after rater smoothing; see :func:`ercfusion.batch.votes.vote_shares`.

    Args:
        target: Shares of the votes.
        smoothing: Share of each vote that is spread over the other labels, from 0 to 1.

    Raises:
        ValueError: ``smoothing`` is out of range, or there is one label.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, found {smoothing}. Choose a number in this range.")
    if smoothing == 0:
        return target
    if target.shape[-1] < 2:
        raise ValueError("smoothing needs at least two labels. Set smoothing to 0.")
    return (1 - smoothing) * target + smoothing / (target.shape[-1] - 1) * (1 - target)


def cooccurrence_penalties(chosen: Tensor) -> Tensor:
    r"""Penalty of predicting label k for an utterance with label j: high for labels that rarely occur together.

    .. math:: P_{jk} = 1 - K_{jk} / K_{jj} \; (j \ne k), \quad P_{jj} = 1

    K_jk is the number of utterances with votes for both. Our reading of the penalisation of Chou et al. (Interspeech
    2022), whose normalisation was not available.

    Args:
        chosen: (N, C) bool, the labels with a vote in the training split.

    Returns:
        P (C, C) float64, from 0 to 1; 1 in the row of a label without votes.
    """
    votes = chosen.double()
    together = votes.t() @ votes
    own = together.diagonal()[:, None]
    penalties = torch.where(own > 0, 1 - together / own.clamp(min=1), 1.0)
    return penalties.fill_diagonal_(1.0)


def penalty_factors(penalties: Tensor, target: Tensor, outputs: Tensor) -> Tensor:
    r"""Factor of the loss of each utterance, without gradient (our reading, as :func:`cooccurrence_penalties`).

    .. math:: \rho_i = \sum_j y_{ij} \sum_k P_{jk} \hat{y}_{ik}

    Both y and the prediction are divided by their sums first (label sets); without a label the factor is 1.

    Args:
        penalties: P (C, C).
        target: y (N, C), at least 0.
        outputs: (N, C) probabilities.

    Returns:
        (N), from 0 to 1.
    """
    outputs = outputs.detach()
    mass, predicted = target.sum(-1), outputs.sum(-1)
    factors = torch.einsum("nj,jk,nk->n", target, penalties.to(target), outputs.to(target))
    known = (mass > 0) & (predicted > 0)
    return torch.where(known, factors / torch.where(known, mass * predicted, 1.0), 1.0)


def label_counts(target: Tensor) -> Tensor:
    """(C) number of utterances with a share above 1/C of each label, for class-balanced weights (as Chou's code)."""
    return (target > 1 / target.shape[-1] + PROBABILITY_TOLERANCE).sum(0)
