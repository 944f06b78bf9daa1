"""Ratings of valence, arousal and dominance of the corpus ``demo``, and their exact expectation.

The emotion y of a turn has a centre m_y in the space of the three dimensions, on the scale 1 to 5. The turn's true
value is v = m_y + e with e normal, of deviation :data:`TURN_DEVIATION`. Rater r gives in each dimension the whole
number from 1 to 5 nearest to v + n_r, with n_r normal, of deviation :data:`RATER_DEVIATIONS`. The target is the mean of
the raters.

Given the emotion, ratings are independent of the features. So the expectation of a target given all features is the
mean of :func:`expected_ratings` under the posterior of the emotion.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.task import TaskSpec
from ercfusion.data.corpora._demo_process import SCHEMA, C, Floats, Ints
from ercfusion.metrics.regression import concordance, correlation

LOW, HIGH = 1, 5
VAD = TaskSpec(
    "vad", "regression", dimensions=("valence", "arousal", "dominance"), low=float(LOW), high=float(HIGH), metric="ccc"
)
CENTRES: dict[str, tuple[float, float, float]] = {
    "neutral": (3.0, 2.0, 3.0),
    "joy": (4.5, 3.8, 3.7),
    "sadness": (1.6, 1.8, 2.0),
    "anger": (1.7, 4.4, 4.2),
    "surprise": (3.6, 4.3, 2.7),
    "fear": (1.5, 4.0, 1.6),
}
"""Centre of each emotion: invented, not from a study."""
TURN_DEVIATION = 0.4
RATER_DEVIATIONS = (0.3, 0.6, 1.2)
"""One deviation per rater: the raters differ in reliability."""
_CENTRES: Floats = np.array([CENTRES[label] for label in SCHEMA.labels])


def draw_ratings(emotion: Ints, rng: np.random.Generator) -> NDArray[np.int64]:
    """(N, raters, 3) whole numbers from 1 to 5 for the emotions (N), as class indices."""
    size = (len(emotion), len(RATER_DEVIATIONS), VAD.size)
    true = _CENTRES[emotion] + TURN_DEVIATION * rng.standard_normal((len(emotion), VAD.size))
    noise = rng.standard_normal(size) * np.array(RATER_DEVIATIONS)[:, None]
    return np.clip(np.rint(true[:, None] + noise), LOW, HIGH).astype(np.int64)


def expected_ratings() -> Floats:
    """(C, 3) expectation of the target given the emotion: E[x] = 1 + sum over k > 1 of p(x >= k)."""
    expected = np.full((C, VAD.size), float(LOW))
    for (c, k), centre in np.ndenumerate(_CENTRES):
        for deviation in RATER_DEVIATIONS:
            spread = math.hypot(TURN_DEVIATION, deviation) * math.sqrt(2)
            above = [0.5 * math.erfc((step - 0.5 - centre) / spread) for step in range(LOW + 1, HIGH + 1)]
            expected[c, k] += sum(above) / len(RATER_DEVIATIONS)
    return expected


def vad_scores(predicted: Floats, target: Floats) -> dict[str, float]:
    """``mae``, ``rmse``, ``pearson`` and ``ccc`` of (N, 3) numbers, each the mean over the dimensions."""
    x, y = predicted - predicted.mean(0), target - target.mean(0)
    xx, yy, xy = (x * x).mean(0), (y * y).mean(0), (x * y).mean(0)
    error = predicted - target
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean(0)).mean()),
        "pearson": float(correlation(xx, yy, xy).mean()),
        "ccc": float(concordance(xx, yy, xy, predicted.mean(0) - target.mean(0)).mean()),
    }
