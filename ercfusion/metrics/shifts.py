"""Accuracy at emotion shifts and without them."""

from __future__ import annotations

from collections.abc import Mapping

from ercfusion.metrics.metric import Formula, Metric, quotient


def _accuracy(place: int) -> Mapping[str, Formula]:
    return {"shift": lambda sums, task: quotient(sums[..., place, 0], sums[..., place, 1])}


METRICS = (
    Metric(
        "shift_accuracy",
        "shift accuracy",
        "accuracy of turns with another emotion than the speaker's previous labelled turn",
        sums=_accuracy(0),
        always=True,  # averages hide it
    ),
    Metric(
        "same_accuracy",
        "same accuracy",
        "accuracy of turns with the same emotion as the speaker's previous labelled turn",
        sums=_accuracy(1),
    ),
)
