"""Metrics of numbers: errors, agreement, and the classes of the scales of CMU-MOSI and CH-SIMS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ercfusion.batch.predictions import Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import ClassCounts, accuracy, weighted_f1
from ercfusion.metrics.inputs import Gaussians, Pairs
from ercfusion.metrics.metric import AGREEMENT, ERROR, Formula, Metric, quotient, ratio
from ercfusion.metrics.moments import CELLS, SENTIMENT, SIMS, Scale, moments_of

# Records round to nine digits, so a variance below this share of the mean square around the middle is rounding: the
# side counts as constant.
_CONSTANT = 1e-8
_Named = Mapping[str, Floats]


def _moments(formula: Callable[[_Named], Floats]) -> Mapping[str, Formula]:
    """A formula of the moments by name, each (..., K)."""
    return {
        "moments": lambda sums, task: formula({name: sums[..., place] for place, name in enumerate(moments_of(task))})
    }


def _mean(name: str) -> Mapping[str, Formula]:
    return _moments(lambda sums: quotient(sums[name], sums["utterances"]))


def _two_classes(name: str, formula: Callable[[ClassCounts], Floats]) -> Mapping[str, Formula]:
    """A formula of the two-class confusion matrix in four moments; NaN if all are 0."""

    def of(sums: _Named) -> Floats:
        cells = np.stack([sums[f"{name}_{cell}"] for cell in CELLS], axis=-1)
        counts = ClassCounts(cells.reshape(*cells.shape[:-1], 2, 2))
        return np.where(counts.defined, formula(counts), np.nan)

    return _moments(of)


# Agreement


def correlation(xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Pearson's correlation from sums or means of squares and products around the means; 0 if a side is constant."""
    # Rounding can give 1.0000000000000002.
    return np.clip(ratio(xy, np.sqrt(xx * yy)), -1.0, 1.0)


def concordance(xx: Floats, yy: Floats, xy: Floats, difference: Floats) -> Floats:
    """2 cov / (var + var + (difference of means)^2) with biased moments (Lin, 1989); 0 if a side is constant.

    Args:
        xx, yy, xy: Variances and covariance.
        difference: Of the means.
    """
    return ratio(2 * xy, xx + yy + difference**2)


def _spread_of(sums: _Named) -> tuple[Floats, Floats, Floats, Floats]:
    """Arguments of :func:`concordance` from moments; NaN if nothing was counted."""
    count = sums["utterances"]
    mean_x, mean_y, xx, yy, xy = (
        quotient(sums[key], count) for key in ("output", "target", "output_squared", "target_squared", "product")
    )
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    constant_x, constant_y = var_x <= _CONSTANT * xx, var_y <= _CONSTANT * yy
    covariance = np.where(constant_x | constant_y, 0.0, xy - mean_x * mean_y)
    covariance = np.where(count > 0, covariance, np.nan)
    return np.where(constant_x, 0.0, var_x), np.where(constant_y, 0.0, var_y), covariance, mean_x - mean_y


def _squares(rows: Pairs) -> tuple[Floats, Floats, Floats, Floats]:
    """(K) sums of squares and products around the means, and the difference of the means; two passes round less than
    moments.
    """
    sides, means = [], []
    for side in (rows.output, rows.target):
        # numpy adds contiguous columns in pairs, with less rounding.
        columns = np.ascontiguousarray(side.T)
        # Relative to the magnitude, because the mean of equal numbers may differ from them by rounding.
        constant = np.ptp(columns, axis=1) <= 1e-12 * np.abs(columns).max(axis=1)
        means.append(columns.mean(axis=1))
        sides.append(np.where(constant[:, None], 0.0, columns - means[-1][:, None]))
    x, y = sides
    return (x**2).sum(axis=1), (y**2).sum(axis=1), (x * y).sum(axis=1), means[0] - means[1]


def _pearson(rows: Pairs, task: TaskSpec) -> Floats:
    return correlation(*_squares(rows)[:3])


def _ccc(rows: Pairs, task: TaskSpec) -> Floats:
    *squares, difference = _squares(rows)
    xx, yy, xy = (summed / len(rows.output) for summed in squares)
    return concordance(xx, yy, xy, difference)


_NUMBERS = (
    Metric(
        "mae",
        "MAE",
        "mean absolute error",
        sums=_mean("absolute_error"),
        higher_is_better=False,
        unit="task",
        bounds=ERROR,
        outputs="all",
    ),
    Metric(
        "rmse",
        "RMSE",
        "root of the mean squared error",
        sums=_moments(lambda sums: np.sqrt(quotient(sums["squared_error"], sums["utterances"]))),
        higher_is_better=False,
        unit="task",
        bounds=ERROR,
        outputs="all",
        loss="root mean squared error",
    ),
    Metric(
        "pearson",
        "pearson",
        "Pearson correlation (0 if a side is constant)",
        rows={"numbers": _pearson},
        sums=_moments(lambda sums: correlation(*_spread_of(sums)[:3])),
        unit="none",
        bounds=AGREEMENT,
        outputs="all",
    ),
    Metric(
        "ccc",
        "CCC",
        "concordance correlation coefficient (0 if a side is constant)",
        rows={"numbers": _ccc},
        sums=_moments(lambda sums: concordance(*_spread_of(sums))),
        unit="none",
        bounds=AGREEMENT,
        outputs="all",
    ),
)


# Predicted standard deviations


def _likelihood(rows: Gaussians, task: TaskSpec) -> Floats:
    variance = rows.spread**2
    each = 0.5 * (np.log(2 * np.pi * variance) + (rows.target - rows.mean) ** 2 / variance)
    return np.asarray(each.mean(axis=0))


def _covered(rows: Gaussians, task: TaskSpec) -> Floats:
    return np.asarray((np.abs(rows.target - rows.mean) <= COVERAGE_REACH * rows.spread).mean(axis=0))


def _sharpness(rows: Gaussians, task: TaskSpec) -> Floats:
    return np.asarray(rows.spread.mean(axis=0))


COVERAGE_REACH = 1.6448536269514722
"""Standard deviations on each side of the mean that hold 90 % of a normal distribution."""

_GAUSSIANS = (
    Metric(
        "gaussian_nll",
        "NLL (Gaussian)",
        "mean negative log-likelihood of the targets under the predicted means and standard deviations",
        rows={"gaussians": _likelihood},
        higher_is_better=False,
        unit="nats",
        bounds=(-np.inf, np.inf),
        outputs="all",
    ),
    Metric(
        "coverage90",
        "coverage (90 %)",
        "share of targets within 1.645 predicted standard deviations of the mean: 0.9 if they are right, less if they "
        "are too small",
        rows={"gaussians": _covered},
        outputs="all",
    ),
    Metric(
        "mean_spread",
        "spread",
        "mean predicted standard deviation: of two models with the right coverage, the lower is more precise",
        rows={"gaussians": _sharpness},
        higher_is_better=False,
        unit="task",
        bounds=ERROR,
        outputs="all",
    ),
)


# Scales with classes of their own


def _on_scale(scale: Scale, name: str, title: str, meaning: str, sums: Mapping[str, Formula]) -> Metric:
    return Metric(name, title, meaning, sums=sums, outputs="all", fits=scale.fits)


_CLASSES = (
    _on_scale(
        SENTIMENT,
        "acc7",
        "Acc-7",
        "seven-class accuracy: both sides clipped to [-3, 3] and rounded half to even",
        _mean("right7"),
    ),
    _on_scale(
        SENTIMENT,
        "acc5",
        "Acc-5",
        "five-class accuracy: both sides clipped to [-2, 2] and rounded half to even",
        _mean("right5"),
    ),
    _on_scale(
        SENTIMENT,
        "acc2_non0",
        "Acc-2 (non-zero)",
        "accuracy of the sign (> 0) over utterances whose truth is not 0",
        _two_classes("non0", accuracy),
    ),
    _on_scale(
        SENTIMENT,
        "f1_non0",
        "F1 (non-zero)",
        "weighted F1 of the sign (> 0) over utterances whose truth is not 0",
        _two_classes("non0", weighted_f1),
    ),
    _on_scale(
        SENTIMENT,
        "acc2_has0",
        "Acc-2 (with zero)",
        "accuracy of the sign (>= 0) over all utterances",
        _two_classes("has0", accuracy),
    ),
    _on_scale(
        SENTIMENT,
        "f1_has0",
        "F1 (with zero)",
        "weighted F1 of the sign (>= 0) over all utterances",
        _two_classes("has0", weighted_f1),
    ),
    _on_scale(
        SIMS,
        "sims_acc3",
        "Acc-3 (SIMS)",
        "accuracy of three classes, cut at -0.1 and 0.1 (CH-SIMS)",
        _mean("sims_right3"),
    ),
    _on_scale(
        SIMS,
        "sims_acc5",
        "Acc-5 (SIMS)",
        "accuracy of five classes, cut at -0.7, -0.1, 0.1 and 0.7 (CH-SIMS)",
        _mean("sims_right5"),
    ),
    _on_scale(
        SIMS,
        "sims_acc2",
        "Acc-2 (SIMS)",
        "accuracy of the classes [-1, 0] and (0, 1] (CH-SIMS)",
        _two_classes("sims", accuracy),
    ),
    _on_scale(
        SIMS,
        "sims_f1",
        "F1 (SIMS)",
        "weighted F1 of the classes [-1, 0] and (0, 1] (CH-SIMS)",
        _two_classes("sims", weighted_f1),
    ),
)
METRICS = (*_NUMBERS, *_GAUSSIANS, *_CLASSES)
