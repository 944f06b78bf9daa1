"""Gaussian likelihood of numbers with a predicted variance, for regression."""

from __future__ import annotations

import math

from torch import Tensor

from ercfusion.losses._common import in_full_precision


def gaussian_spread(log_variance: Tensor, floor: float = 0.0) -> Tensor:
    """Standard deviation ``sqrt(exp(log_variance) + floor ** 2)``, in the unit of the targets; same shape."""
    return (log_variance.exp() + floor**2).sqrt()


@in_full_precision
def gaussian_nll(
    mean: Tensor, log_variance: Tensor, target: Tensor, *, beta: float = 0.0, floor: float = 0.0
) -> Tensor:
    r"""Negative log-likelihood of each number, in nats.

    .. math:: s^{2 \beta} \left(\frac{\log 2 \pi s^2}{2} + \frac{(y - m)^2}{2 s^2}\right)

    The factor has no gradient. ``beta`` 0 is the likelihood; with 1 the gradient of the mean is that of squared errors
    (beta-NLL; Seitzer et al., ICLR 2022). Values between weigh hard utterances less than squared errors do.

    Args:
        mean, log_variance: Predictions.
        target: Numbers.
        beta: 0 to 1.
        floor: Smallest standard deviation. Its square is added to the variance, so that gradients do not vanish.

    Shapes:
        (N, K) each -> (N, K).
    """
    variance = log_variance.exp() + floor**2
    each = 0.5 * (math.log(2 * math.pi) + variance.log() + (target - mean).square() / variance)
    return variance.detach() ** beta * each if beta else each
