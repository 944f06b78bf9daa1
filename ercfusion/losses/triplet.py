"""Triplet losses with mining inside the batch, from one matrix of distances."""

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

# Triplets that are held at a time: 16 MiB for each float32 tensor of them.
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
    r"""Triplet loss with a fixed margin and mining within the batch (Schroff et al., CVPR 2015; Hermans et al., 2017).

    .. math:: L_{apn} = \max(0, D_{ap} - D_{an} + m)

    for an anchor a, a positive p with its label and a negative n with another one. With ``normalize``, D is half the
    Euclidean distance of unit vectors, from 0 to 1; otherwise the Euclidean distance.

    Over all triplets the negatives of each anchor are sorted once, and the sum over those closer than D_ap + m is a
    running sum: O(N^2 log N) where a loop over triplets needs O(N^3).

    Args:
        vectors: (N, D).
        labels: (N) class indices; arbitrary where not ``valid``.
        mining: ``hard``, the most distant positive and the closest negative of each anchor; ``all``, the mean over all
            triplets; ``active``, over all triplets with a loss above 0.
        margin: m, in the unit of D, 0 or more.
        normalize: Scale the vectors to length 1 first.
        valid: (N) bool, the utterances that count; None for all.

    Returns:
        The sum over triplets, and their number: for ``hard``, that of the anchors with a positive and a negative.

    Raises:
        ValueError: ``mining`` or ``margin`` is out of its range, or shapes do not fit.
    """
    check_not_negative("margin", margin)
    vectors, positive, negative = _prepared(vectors, labels, mining, valid, normalize, halves=normalize)
    if mining == "hard":
        far, near, _, counted = _hardest(vectors, positive, negative)
        each = torch.where(counted, (far - near + margin).clamp(min=0), 0.0)
        return each.sum(), counted.sum().to(each)
    if len(vectors) == 0:
        return vectors.sum(), vectors.new_zeros(())
    matrix = distances(vectors)
    # Distances to negatives in rising order, the others behind them. A zero in front of the running sums is the sum of
    # no negative. The number of negatives that are close enough is no function with a gradient.
    rising = matrix.masked_fill(~negative, torch.inf).sort(dim=1).values
    closer = torch.searchsorted(rising.detach().contiguous(), matrix.detach() + margin)
    closer = closer.where(positive, 0)
    # Sum over p of (sum of the first closer_p distances) = sum over places of (number of p that reach it) * distance.
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
    r"""Triplet loss with margins that depend on the distances (M2FNet, Chudasama et al., CVPRW 2022).

    .. math::
        L_{apn} &= \max\left(0,\; D_{ap} - (D_{an} + D_{pn}) / 2 + k (m_s + m_d)\right) \\
        m_s &= 1 + 2 / (\exp(4 D_{ap}) + e), \quad m_d = 1 + 2 / (\exp(4 - 4 D_{an}) + e)

    By default D is half the Euclidean distance of unit vectors, from 0 to 1, where the margins are made for; the
    margins carry no gradient; and k = ``scale`` brings their sum, from 2 to 6, into the range of the distances: a
    margin between 0.2 and 0.6, larger for positives that are close already and negatives that are far already.

    ``literal=True`` is the published form: D the Euclidean distance, k = 1, and margins that are differentiated. It is
    degenerate. The margins' sum is above 2 while the rest is hardly below -1, so that the hinge (``hinge=True``, the
    paper's) never closes for distances up to 1; and the gradient through the margins drives D_ap towards
    log(8) / 4 = 0.52, so that closer positives are pushed apart, and (without D_pn) D_an towards 1 - log(16) / 4 =
    0.31, so that negatives farther than that are pulled together. Without the hinge (``hinge=False``, as in public
    re-implementations) nothing else remains. Beyond D_an = 1 the margin m_d grows like exp(4 D_an).

    Args:
        vectors, labels, mining, normalize, valid: As for :func:`triplet_loss`. Without ``normalize`` D is the Euclidean
            distance in any case.
        scale: k of the default form, above 0; not used by the literal one.
        literal: The published form.
        hinge: Cut triplets off at 0; only the literal form can do without.

    Returns:
        As for :func:`triplet_loss`; without a hinge every triplet is active.

    Raises:
        ValueError: ``mining`` or ``scale`` is out of its range, ``hinge=False`` without ``literal=True``, or shapes do
            not fit.
    """
    check_above_zero("scale", scale)
    if not hinge and not literal:
        raise ValueError("hinge=False goes with literal=True only")
    halves = normalize and not literal
    vectors, positive, negative = _prepared(vectors, labels, mining, valid, normalize, halves=halves)
    form = partial(_adaptive, scale=scale, literal=literal, hinge=hinge)
    if mining == "hard":
        far, near, between, counted = _hardest(vectors, positive, negative)
        each = torch.where(counted, form(far, near, between), 0.0)
        return each.sum(), counted.sum().to(each)
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
    """(n, D) vectors between which D is the Euclidean distance, and which pairs (n, n) are positive and negative."""
    if mining not in MININGS:
        raise ValueError(f"mining must be one of {', '.join(MININGS)}; found {mining!r}")
    check_labels(vectors, labels)
    vectors, labels = rows_of(valid, vectors, labels)
    if normalize:
        vectors = unit(vectors)
    same = labels[:, None] == labels
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return vectors / 2 if halves else vectors, same & ~own, ~same


def _hardest(vectors: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n) D_ap, D_an and D_pn of each anchor's hardest triplet, and which anchors have one (others: any numbers).

    The matrix only decides which triplet that is; the distances in it are then computed from differences, with all
    digits, however close the vectors are.
    """
    counted = positive.any(1) & negative.any(1)
    if len(vectors) == 0:
        empty = vectors.sum(1)
        return empty, empty, empty, counted
    with torch.no_grad():
        matrix = distances(vectors)
        far = matrix.masked_fill(~positive, -torch.inf).argmax(1)
        near = matrix.masked_fill(~negative, torch.inf).argmin(1)
    positives, negatives = vectors.index_select(0, far), vectors.index_select(0, near)
    pairs = ((vectors, positives), (vectors, negatives), (positives, negatives))
    ap, an, pn = ((one - other).norm(dim=1) for one, other in pairs)
    return ap, an, pn, counted


def _adaptive(ap: Tensor, an: Tensor, pn: Tensor, *, scale: float, literal: bool, hinge: bool) -> Tensor:
    margins = adaptive_margins(ap, an) if literal else scale * adaptive_margins(ap.detach(), an.detach())
    each = ap - (an + pn) / 2 + margins
    return each.clamp(min=0) if hinge else each


def adaptive_margins(ap: Tensor, an: Tensor) -> Tensor:
    """The sum m_s + m_d of both margins (see :func:`adaptive_triplet_loss`), in float32 or float64.

    Shapes:
        D_ap and D_an of any shapes that broadcast -> that shape.
    """
    return 2 + 2 / ((4 * ap).exp() + _EPSILON) + 2 / ((4 - 4 * an).exp() + _EPSILON)


def _all_of(
    ap: Tensor, positive: Tensor, negative: Tensor, matrix: Tensor, *, form: partial[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sum over the triplets [a, p, n] of some anchors, and how many of them are above 0."""
    each = form(ap[:, :, None], ap[:, None, :], matrix)
    each = torch.where(positive[:, :, None] & negative[:, None, :], each, 0.0)
    return each.sum(), (each > 0).sum()
