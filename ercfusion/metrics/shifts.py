"""Metrics of emotion shifts: accuracy where a speaker's emotion changes, and where it stays."""

from __future__ import annotations

from collections.abc import Mapping

from ercfusion.metrics.metric import Formula, Metric, quotient


def _accuracy(place: int) -> Mapping[str, Formula]:
    return {"shift": lambda sums, task: quotient(sums[..., place, 0], sums[..., place, 1])}


METRICS = (
    Metric(
        "shift_accuracy",
        "shift accuracy",
        "accuracy where the speaker's emotion differs from that of his or her previous labelled turn",
        sums=_accuracy(0),
        always=True,  # what an average hides
    ),
    Metric(
        "same_accuracy",
        "same accuracy",
        "accuracy where the speaker's emotion is that of his or her previous labelled turn",
        sums=_accuracy(1),
    ),
)
