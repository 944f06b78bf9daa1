"""Losses of a student against a teacher: representations, outputs, and inputs that only the teacher has.

Gradients flow into the student's arguments; a caller detaches those of the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.losses._common import in_full_precision, unit


@in_full_precision
def representation_distance(student: Tensor, teacher: Tensor, *, distance: str = "cosine") -> tuple[Tensor, Tensor]:
    r"""Distance of N vectors from the teacher's.

    .. math:: 1 - \cos(s_i, t_i) \quad\text{or}\quad \frac{1}{D} \sum_d (s_{id} - t_{id})^2

    Args:
        student, teacher: (N, D).
        distance: ``cosine`` (CIDer's consistency of joint representations) or ``mse``. The cosine with a vector
            shorter than 1e-6 is 0.

    Returns:
        The sum, and N.
    """
    if distance == "cosine":
        each = 1 - (unit(student) * unit(teacher)).sum(-1)
    else:
        each = (student - teacher).square().mean(-1)
    return each.sum(), each.new_tensor(len(each))


@in_full_precision
def softened_divergence(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Divergence of probabilities with the sum 1 from the teacher's (Hinton et al., 2015).

    .. math:: \tau^2 \sum_c q_{ic} (\log q_{ic} - \log p_{ic}), \quad
        p = \mathrm{softmax}(s / \tau), \; q = \mathrm{softmax}(t / \tau)

    Shapes:
        (N, C) logits of the student and of the teacher -> (N).
    """
    own, given = (values.div(temperature).log_softmax(-1) for values in (logits, teacher))
    return temperature**2 * (given.exp() * (given - own)).sum(-1)


@in_full_precision
def softened_binary_divergence(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Divergence of the probabilities of C independent labels from the teacher's, mean over the labels.

    .. math:: \frac{\tau^2}{C} \sum_c \Bigl( q_{ic} \log \frac{q_{ic}}{p_{ic}}
        + (1 - q_{ic}) \log \frac{1 - q_{ic}}{1 - p_{ic}} \Bigr), \quad
        p = \sigma(s / \tau), \; q = \sigma(t / \tau)

    Shapes:
        (N, C) logits of the student and of the teacher -> (N).
    """
    own, given = logits / temperature, teacher / temperature
    yes, no = given.sigmoid(), (-given).sigmoid()
    each = yes * (F.logsigmoid(given) - F.logsigmoid(own)) + no * (F.logsigmoid(-given) - F.logsigmoid(-own))
    return temperature**2 * each.mean(-1)


@in_full_precision
def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor, *, floor: float = 0.0
) -> Tensor:
    r"""Kullback-Leibler divergence of normal distributions from the teacher's, for each number.

    .. math:: \frac12 \left( \log \frac{s^2}{t^2} + \frac{t^2 + (m_t - m_s)^2}{s^2} - 1 \right)

    Args:
        mean, log_variance: Of the student.
        other_mean, other_log_variance: Of the teacher.
        floor: As for :func:`ercfusion.losses.gaussian_nll`.

    Shapes:
        (N, K) each -> (N, K).
    """
    own, given = log_variance.exp() + floor**2, other_log_variance.exp() + floor**2
    return 0.5 * (own.log() - given.log() + (given + (other_mean - mean).square()) / own - 1)


@in_full_precision
def imputation_loss(predicted: Tensor, target: Tensor, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Smooth L1 loss of N vectors, mean over the dimensions.

    .. math:: \ell(x) = x^2 / 2 \beta \;\text{if}\; |x| < \beta, \quad |x| - \beta / 2 \;\text{otherwise}

    Args:
        predicted, target: (N, D).
        beta: Above 0.

    Returns:
        The sum, and N.
    """
    each = F.smooth_l1_loss(predicted, target, beta=beta, reduction="none").mean(-1)
    return each.sum(), torch.as_tensor(len(each), dtype=each.dtype, device=each.device)
