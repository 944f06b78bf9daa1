"""Ratings of several raters: one number per item, and agreement.

Ratings are arrays (N, R) of N items and R raters, or (N, R, K) with K dimensions (valence, arousal, ...); NaN is a
missing rating. Dimensions are independent: each has its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ercfusion._core.errors import CorpusFormatError
from ercfusion.metrics.regression import concordance, correlation

Floats = NDArray[np.float64]
Reference = Literal["all", "others"]
Rule = Literal["mean", "ewe"]


def mean_rating(ratings: ArrayLike) -> Floats:
    """Unweighted mean of the raters.

    Shapes:
        ratings (N, R) -> (N), or (N, R, K) -> (N, K); NaN for an item without ratings.
    """
    values, trailing = _cube(ratings)
    return _weighted(values, np.ones(values.shape[1:])).reshape(-1, *trailing)


def evaluator_weights(
    ratings: ArrayLike, *, reference: Reference = "all", raters: Sequence[str] = (), dimensions: Sequence[str] = ()
) -> Floats:
    """Weight of each rater: Pearson correlation of the rater with the mean of the raters; negative ones become 0.

    Grimm and Kroschel (ASRU 2005), our reading: the mean includes the rater. With few raters this raises every
    correlation. With ``reference="others"`` the mean is that of the other raters. Each rater's correlation covers the
    items of the rater for which the mean exists.

    Args:
        ratings: (N, R) or (N, R, K), NaN for a missing rating.
        reference: Raters of the mean: ``all`` or ``others``.
        raters, dimensions: R and K names for messages.

    Returns:
        (R) or (R, K), 0 to 1.

    Raises:
        CorpusFormatError: A rater gave fewer than two ratings or always the same, a mean is constant, or no weight of a
            dimension is above 0.
        ValueError: Another shape, no rater, or infinite ratings.
    """
    values, trailing = _cube(ratings)
    weights = np.empty(values.shape[1:])
    for k in range(values.shape[2]):
        dimension = f" of {dimensions[k]}" if dimensions else f" of dimension {k + 1}" if trailing else ""
        for r in range(values.shape[1]):
            own, means = _pairs(values[:, :, k], r, reference)
            rater = f"rater {raters[r]!r}" if raters else f"rater {r + 1}"
            for numbers, problem in ((own, "the ratings are equal"), (means, "the means of the raters are equal")):
                if len(own) < 2 or np.ptp(numbers) == 0:
                    few = f"{len(own)} usable ratings" if len(own) < 2 else f"{len(own)} ratings, but {problem}"
                    raise CorpusFormatError(
                        f"{rater}: {few}{dimension}; a weight needs two different ones. Remove the rater, or use the "
                        "unweighted mean."
                    )
            x, y = own - own.mean(), means - means.mean()
            weights[r, k] = max(0.0, float(correlation((x * x).sum(), (y * y).sum(), (x * y).sum())))
        if not weights[:, k].any():
            raise CorpusFormatError(
                f"no rater{dimension} correlates with the mean of the raters. Check the ratings, or use the unweighted "
                "mean."
            )
    return weights.reshape(-1, *trailing)


def evaluator_weighted_estimate(ratings: ArrayLike, weights: ArrayLike | None = None, **settings: Any) -> Floats:
    """The evaluator-weighted estimator: mean of an item's ratings with one weight per rater.

    ``x_n = sum_r w_r x_nr / sum_r w_r`` over the raters of item n (Grimm and Kroschel, ASRU 2005).

    Args:
        ratings: (N, R) or (N, R, K), NaN for a missing rating.
        weights: (R) or (R, K), for example those of other items; None: :func:`evaluator_weights` of ``ratings`` with
            ``settings``.

    Returns:
        (N) or (N, K); NaN for an item without a rater of weight above 0.

    Raises:
        CorpusFormatError, ValueError: See :func:`evaluator_weights`; or weights of another shape, negative or NaN.
    """
    values, trailing = _cube(ratings)
    own = evaluator_weights(ratings, **settings) if weights is None else np.asarray(weights, dtype=np.float64)
    if own.shape != (values.shape[1], *trailing) or not (own >= 0).all():
        raise ValueError(
            f"expected weights of shape {(values.shape[1], *trailing)}, at least 0; found shape {own.shape}. "
            "Give one weight per rater and dimension."
        )
    return _weighted(values, own.reshape(values.shape[1:])).reshape(-1, *trailing)


def combine(ratings: ArrayLike, rule: Rule, **settings: Any) -> Floats:
    """One number per item and dimension: ``mean`` (:func:`mean_rating`) or ``ewe``
    (:func:`evaluator_weighted_estimate`, with its ``settings``).

    Raises:
        ValueError: Unknown rule.
    """
    if rule == "mean":
        return mean_rating(ratings)
    if rule == "ewe":
        return evaluator_weighted_estimate(ratings, **settings)
    raise ValueError(f"a rule for raters is mean or ewe; found {rule!r}. Choose one of them.")


def rater_agreement(ratings: ArrayLike) -> Floats:
    """Agreement of each rater with the others: concordance correlation with the mean of the others.

    Shapes:
        ratings (N, R) -> (R), or (N, R, K) -> (R, K); NaN for a rater with fewer than two items rated by others too, 0
        if one side is constant. The mean over the raters describes the corpus.
    """
    values, trailing = _cube(ratings)
    agreement = np.full(values.shape[1:], np.nan)
    for r, k in np.ndindex(*values.shape[1:]):
        own, means = _pairs(values[:, :, k], r, "others")
        if len(own) > 1:
            x, y = own - own.mean(), means - means.mean()
            xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
            agreement[r, k] = concordance(xx, yy, xy, own.mean() - means.mean())
    return agreement.reshape(-1, *trailing)


def check_ratings(ratings: ArrayLike, low: float, high: float, place: Callable[[int, int], str]) -> None:
    """Check that all ratings are within the scale.

    Args:
        ratings: (N, R) or (N, R, K), NaN for a missing rating.
        low, high: Ends of the scale, both allowed.
        place: File and line of a rating by item and rater, for the message.

    Raises:
        CorpusFormatError: A rating is outside; the message has the first place and the number of such ratings.
    """
    values, _ = _cube(ratings, finite=False)
    outside = (values < low) | (values > high)
    if outside.any():
        item, rater, dimension = (int(position) for position in np.argwhere(outside)[0])
        raise CorpusFormatError(
            f"{place(item, rater)}: the rating {values[item, rater, dimension]:g} is not between {low:g} and {high:g} "
            f"({int(outside.sum())} such ratings). Correct it, or the range."
        )


def _cube(ratings: ArrayLike, finite: bool = True) -> tuple[Floats, tuple[int, ...]]:
    """(N, R, K) ratings, and the trailing shape of results."""
    values = np.asarray(ratings, dtype=np.float64)
    if values.ndim not in (2, 3) or values.shape[1] == 0:
        raise ValueError(
            f"expected ratings (items, raters) or (items, raters, dimensions), found shape {values.shape}. Give one "
            "column per rater."
        )
    if finite and np.isinf(values).any():
        raise ValueError("ratings must be finite, or NaN if missing. Remove infinite ones.")
    return (values[:, :, None], ()) if values.ndim == 2 else (values, values.shape[2:])


def _pairs(ratings: Floats, rater: int, reference: Reference) -> tuple[Floats, Floats]:
    """Ratings of one rater (of an (N, R) table) and the means of the reference, on the items with both."""
    if reference not in ("all", "others"):
        raise ValueError(f"the reference of a rater is all or others; found {reference!r}. Choose one of them.")
    kept = ratings if reference == "all" else np.delete(ratings, rater, axis=1)
    means = _weighted(kept[:, :, None], np.ones((kept.shape[1], 1)))[:, 0]
    both = ~np.isnan(ratings[:, rater]) & ~np.isnan(means)
    return ratings[both, rater], means[both]


def _weighted(values: Floats, weights: Floats) -> Floats:
    """(N, K) weighted means of (N, R, K) ratings by (R, K) weights; NaN without weight."""
    known = ~np.isnan(values)
    total = (known * weights).sum(axis=1)
    summed = (np.where(known, values, 0.0) * weights).sum(axis=1)
    return np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)
