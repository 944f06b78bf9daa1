"""Triplet losses with mining inside the batch."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ercfusion.losses._common import (
    check_above_zero,
    check_labels,
    check_not_negative,
    distances,
    in_full_precision,
    rows_of,
    unit,
)

Mining = Literal["hard", "all", "active"]
MININGS: tuple[Mining, ...] = ("hard", "all", "active")

# Triplets per chunk: 16 MiB per float32 tensor.
_ENTRIES = 1 << 22
# In the exponential margins' denominators.
_EPSILON = 1e-8


@in_full_precision
def triplet_loss(
    vectors: Tensor,
    labels: Tensor,
    *,
    mining: str = "hard",
    margin: float = 0.2,
    normalize: bool = True,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Triplet loss with mining in the batch (Schroff et al., CVPR 2015; Hermans et al., 2017).

    .. math:: L_{apn} = \max(0, D_{ap} - D_{an} + m)

    for an anchor a, a positive p of its class and a negative n of another. With ``normalize``, D is half the Euclidean
    distance of unit vectors, from 0 to 1. Over all triplets, sorting needs O(N^2 log N) instead of O(N^3).

    Args:
        vectors: (N, D).
        labels: (N) class indices; arbitrary if not ``valid``.
        mining: ``hard``: farthest positive and closest negative per anchor; ``all``; ``active``: loss above 0.
        margin: m, in units of D, at least 0.
        normalize: Scale the vectors to length 1 first.
        valid: (N) bool, the utterances used; None for all.

    Returns:
        The sum over triplets, and their number (``hard``: anchors with both).

    Raises:
        ValueError: ``mining`` or ``margin`` is out of range, or shapes do not match.
    """
    check_not_negative("margin", margin)
    vectors, positive, negative = _prepared(vectors, labels, mining, valid, normalize, halves=normalize)
    if mining == "hard":
        far, near, _, included = _hardest(vectors, positive, negative)
        losses = torch.where(included, (far - near + margin).clamp(min=0), 0.0)
        return losses.sum(), included.sum().to(losses)
    if len(vectors) == 0:
        return vectors.sum(), vectors.new_zeros(())
    matrix = distances(vectors)
    # Distances to negatives in rising order, then infinity. The number of negatives within the margin has no gradient.
    rising = matrix.masked_fill(~negative, torch.inf).sort(dim=1).values
    closer = torch.searchsorted(rising.detach().contiguous(), matrix.detach() + margin)
    closer = closer.where(positive, 0)
    # Sum over p of the first closer_p distances = sum over ranks of (number of p reaching the rank) * distance.
    reach = torch.zeros(len(matrix), len(matrix) + 1, device=matrix.device, dtype=torch.long)
    reach = reach.scatter_add_(1, closer, positive.long())[:, 1:].flip(1).cumsum(1).flip(1)
    nearby = torch.where(reach > 0, rising, 0.0)
    total = (closer * torch.where(positive, matrix + margin, 0.0)).sum() - (reach * nearby).sum()
    if mining == "active":
        return total, closer.sum().to(total)
    return total, (positive.sum(1) * negative.sum(1)).sum().to(total)


@in_full_precision
def adaptive_triplet_loss(
    vectors: Tensor,
    labels: Tensor,
    *,
    mining: str = "hard",
    scale: float = 0.1,
    literal: bool = False,
    hinge: bool = True,
    normalize: bool = True,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Triplet loss with margins depending on the distances (M2FNet, Chudasama et al., CVPRW 2022).

    .. math::
        L_{apn} &= \max\left(0,\; D_{ap} - (D_{an} + D_{pn}) / 2 + k (m_s + m_d)\right) \\
        m_s &= 1 + 2 / (\exp(4 D_{ap}) + e), \quad m_d = 1 + 2 / (\exp(4 - 4 D_{an}) + e)

    By default D is half the Euclidean distance of unit vectors, as the margins intend, and margins have no gradient.
    The factor k (``scale``) brings their sum, 2 to 6, to 0.2 to 0.6: larger for close positives and far negatives.

    ``literal=True`` is the published form: Euclidean D, k = 1, margins with gradient. It is degenerate:

    - The margins exceed 2 and the rest is hardly below -1, so the hinge never closes for distances up to 1.
    - The margins' gradient drives D_ap towards log(8) / 4 = 0.52, and pushes closer positives apart.
    - Without D_pn, it drives D_an towards 1 - log(16) / 4 = 0.31, and pulls farther negatives closer.
    - Beyond D_an = 1, m_d grows like exp(4 D_an).

    Args:
        vectors, labels, mining, normalize, valid: As for :func:`triplet_loss`; without ``normalize``, D is Euclidean.
        scale: k of the default form, above 0.
        literal: Use the published form.
        hinge: Limit triplets to at least 0; false only with ``literal``, as in public re-implementations.

    Returns:
        As for :func:`triplet_loss`; without a hinge every triplet is active.

    Raises:
        ValueError: ``mining`` or ``scale`` is out of range, ``hinge=False`` without ``literal=True``, or shapes do not
            match.
    """
    check_above_zero("scale", scale)
    if not hinge and not literal:
        raise ValueError("hinge=False goes with literal=True only. Set literal=True.")
    halves = normalize and not literal
    vectors, positive, negative = _prepared(vectors, labels, mining, valid, normalize, halves=halves)
    form = partial(_adaptive, scale=scale, literal=literal, hinge=hinge)
    if mining == "hard":
        far, near, between, included = _hardest(vectors, positive, negative)
        losses = torch.where(included, form(far, near, between), 0.0)
        return losses.sum(), included.sum().to(losses)
    matrix, number = distances(vectors), len(vectors)
    sums, active = [matrix.sum() * 0.0], [torch.zeros((), dtype=torch.long, device=matrix.device)]
    rows = max(1, _ENTRIES // max(1, number * number))
    for start in range(0, number, rows):
        part = slice(start, start + rows)
        total, above = checkpoint(
            partial(_all_of, form=form),
            *(matrix[part], positive[part], negative[part], matrix),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        sums.append(total)
        active.append(above)
    total = torch.stack(sums).sum()
    if mining == "active" and hinge:
        return total, torch.stack(active).sum().to(total)
    return total, (positive.sum(1) * negative.sum(1)).sum().to(total)


def _prepared(
    vectors: Tensor, labels: Tensor, mining: str, valid: Tensor | None, normalize: bool, *, halves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, D) vectors with Euclidean distances D, and the positive and negative pairs (n, n)."""
    if mining not in MININGS:
        raise ValueError(f"mining must be one of {', '.join(MININGS)}; found {mining!r}. Choose one of them.")
    check_labels(vectors, labels)
    vectors, labels = rows_of(valid, vectors, labels)
    if normalize:
        vectors = unit(vectors)
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return vectors / 2 if halves else vectors, same & ~itself, ~same


def _hardest(vectors: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n) D_ap, D_an, D_pn of each anchor's hardest triplet, and whether it has one (otherwise arbitrary).

    The matrix only selects triplets; differences give exact distances.
    """
    included = positive.any(1) & negative.any(1)
    if len(vectors) == 0:
        empty = vectors.sum(1)
        return empty, empty, empty, included
    with torch.no_grad():
        matrix = distances(vectors)
        far = matrix.masked_fill(~positive, -torch.inf).argmax(1)
        near = matrix.masked_fill(~negative, torch.inf).argmin(1)
    positives, negatives = vectors.index_select(0, far), vectors.index_select(0, near)
    pairs = ((vectors, positives), (vectors, negatives), (positives, negatives))
    ap, an, pn = ((first - second).norm(dim=1) for first, second in pairs)
    return ap, an, pn, included


def _adaptive(ap: Tensor, an: Tensor, pn: Tensor, *, scale: float, literal: bool, hinge: bool) -> Tensor:
    margins = adaptive_margins(ap, an) if literal else scale * adaptive_margins(ap.detach(), an.detach())
    losses = ap - (an + pn) / 2 + margins
    return losses.clamp(min=0) if hinge else losses


def adaptive_margins(ap: Tensor, an: Tensor) -> Tensor:
    """m_s + m_d of :func:`adaptive_triplet_loss`, in float32 or float64.

    Shapes:
        D_ap and D_an of broadcasting shapes -> that shape.
    """
    return 2 + 2 / ((4 * ap).exp() + _EPSILON) + 2 / ((4 - 4 * an).exp() + _EPSILON)


def _all_of(
    ap: Tensor, positive: Tensor, negative: Tensor, matrix: Tensor, *, form: partial[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sum over the triplets [a, p, n] of some anchors, and the number above 0."""
    losses = form(ap[:, :, None], ap[:, None, :], matrix)
    losses = torch.where(positive[:, :, None] & negative[:, None, :], losses, 0.0)
    return losses.sum(), (losses > 0).sum()
