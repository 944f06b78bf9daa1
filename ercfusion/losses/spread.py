"""Terms against collapsed representations (VICReg, Bardes et al., ICLR 2022).

Both need unnormalised vectors: on the unit sphere the deviation per dimension is about 1 / sqrt(D), and the variance
term constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ercfusion.losses._common import check_above_zero, in_full_precision, rows_of


@in_full_precision
def variance_loss(
    vectors: Tensor, *, target: float = 1.0, epsilon: float = 1e-4, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Shortfall of each dimension's standard deviation from ``target`` (VICReg, equations 1 and 2).

    .. math:: L = \frac{1}{D} \sum_d \max(0, t - \sqrt{s_d^2 + e})

    Args:
        vectors: (N, D), not normalised.
        target: t, in the unit of the vectors, above 0.
        epsilon: e; bounds the gradient of the root.
        valid: (N) bool, the n utterances used; None for all.

    Returns:
        n L and n; 0 for fewer than two utterances. s_d is the sample standard deviation.
    """
    check_above_zero("target", target)
    (vectors,) = rows_of(valid, vectors)
    variance = _centred(vectors).square().sum(0) / max(len(vectors) - 1, 1)
    deviation = (variance + epsilon).sqrt()
    return _whole((target - deviation).clamp(min=0).mean(), vectors)


@in_full_precision
def covariance_loss(vectors: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Squared covariances of different dimensions (VICReg, equations 3 and 4).

    .. math:: L = \frac{1}{D} \sum_{d \ne e} c_{de}^2

    Args:
        vectors: (N, D), not normalised.
        valid: (N) bool, the utterances used; None for all.

    Returns:
        As for :func:`variance_loss`.
    """
    (vectors,) = rows_of(valid, vectors)
    centred = _centred(vectors)
    matrix = centred.t() @ centred / max(len(vectors) - 1, 1)
    diagonal = torch.eye(matrix.shape[0], dtype=torch.bool, device=matrix.device)
    return _whole(matrix.masked_fill(diagonal, 0.0).square().sum() / vectors.shape[1], vectors)


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.sum(0) / max(len(vectors), 1)


def _whole(loss: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """A statistic of n utterances as a sum over them; for fewer than two 0, within the graph."""
    number = len(vectors) if len(vectors) > 1 else 0
    return loss * number, loss.new_tensor(float(number))
