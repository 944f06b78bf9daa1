"""Inputs of metrics, declared by task kinds: sums over conversations, and rows of labelled utterances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Bools, Floats, Ints, Predictions
from ercfusion.metrics.sums import SUMS


def conversation_sums(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """Sums of every conversation by key, first axis B (:mod:`ercfusion.metrics.sums`), of labelled utterances only."""
    return {name: SUMS[name].of(predictions) for name in predictions.task.rules.inputs if name in SUMS}


@dataclass(frozen=True)
class Labelled:
    """The n utterances with one right label (input ``labelled``): its index, probabilities (n, C), and whether the
    prediction is correct.
    """

    truth: Ints
    probability: Floats
    right: Bools

    @property
    def confidence(self) -> Floats:
        """(n) largest probability."""
        return np.asarray(self.probability.max(axis=1))


@dataclass(frozen=True)
class Pairs:
    """Predictions and targets (n, K) of the labelled utterances.

    Input ``distributions``: probabilities of C labels. ``sets``: bool, whether an utterance has the label.
    ``label_probabilities``: probabilities of C labels, and whether an utterance has each. ``numbers``: regressed
    values.
    """

    output: NDArray[Any]
    target: NDArray[Any]


@dataclass(frozen=True)
class Gaussians:
    """Predicted means and standard deviations, and targets, (n, K) each, of the labelled utterances."""

    mean: Floats
    spread: Floats
    target: Floats


def labelled(predictions: Predictions) -> Labelled | None:
    """Utterances with one right label; None if there are none."""
    truth, chosen = predictions.labels()
    if not chosen.any():
        return None
    right = predictions.decisions() == truth
    return Labelled(truth[chosen], predictions.output[chosen], right[chosen])


def _numbers(predictions: Predictions) -> Pairs:
    valid = np.asarray(predictions.valid, dtype=bool)
    return Pairs(predictions.output[valid].astype(np.float64), predictions.value[valid].astype(np.float64))


def _sets(predictions: Predictions) -> Pairs:
    valid = np.asarray(predictions.valid, dtype=bool)
    return Pairs(predictions.decisions()[valid], predictions.value[valid] > 0.5)


def _gaussians(predictions: Predictions) -> Gaussians | None:
    """None if the head predicts no standard deviations."""
    if predictions.spread is None:
        return None
    numbers, valid = _numbers(predictions), np.asarray(predictions.valid, dtype=bool)
    return Gaussians(numbers.output, predictions.spread[valid].astype(np.float64), numbers.target)


def _label_probabilities(predictions: Predictions) -> Pairs:
    valid = np.asarray(predictions.valid, dtype=bool)
    # Intensities follow the C probabilities.
    probabilities = predictions.output[valid, : predictions.task.size].astype(np.float64)
    return Pairs(probabilities, predictions.value[valid] > 0.5)


ROWS: dict[str, Callable[[Predictions], Any]] = {
    "labelled": labelled,
    "distributions": _numbers,
    "sets": _sets,
    "label_probabilities": _label_probabilities,
    "numbers": _numbers,
    "gaussians": _gaussians,
}


class Inputs:
    """All inputs of a split's predictions, each computed on first use.

    Raises:
        ValueError: no utterance is labelled, or an output of a labelled one is not finite.
    """

    def __init__(self, predictions: Predictions) -> None:
        self.predictions, self.task = predictions, predictions.task
        self.names = self.task.rules.inputs
        valid = np.asarray(predictions.valid, dtype=bool)
        if not valid.any():
            raise ValueError(
                f"none of the {len(valid)} utterances is labelled for task {self.task.name!r}. Choose a labelled split."
            )
        finite = np.isfinite(predictions.output[valid])
        if not finite.all():
            raise ValueError(f"{int((~finite).sum())} outputs of task {self.task.name!r} are not finite")
        self._rows: dict[str, Any] = {}
        self._summed: dict[str, NDArray[Any]] = {}

    def rows(self, name: str) -> Any:
        """The rows called ``name``; None if there are no such utterances."""
        if name not in self._rows:
            self._rows[name] = ROWS[name](self.predictions)
        return self._rows[name]

    def summed(self, key: str) -> NDArray[Any]:
        """The sums called ``key`` over the whole split."""
        if key not in self._summed:
            self._summed[key] = SUMS[key].summed(self.predictions)
        return self._summed[key]
