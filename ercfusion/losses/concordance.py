"""Concordance correlation, for regression."""

from __future__ import annotations

from torch import Tensor


def concordance(prediction: Tensor, target: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Concordance correlation of each column, :math:`2 s_{xy} / (s_x^2 + s_y^2 + (m_x - m_y)^2)`.

    Lin (1989), with biased variances; the covariance form is finite for a constant prediction.

    Shapes:
        prediction, target (N, K) -> (K).
    """
    mean_p, mean_t = prediction.mean(0), target.mean(0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(0)
    spread = prediction.var(0, correction=0) + target.var(0, correction=0) + (mean_p - mean_t).square()
    return 2 * covariance / (spread + epsilon)
