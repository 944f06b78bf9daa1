"""Targets of IEMOCAP computed from its ratings of valence, activation and dominance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Target, Turn
from ercfusion.data.corpora._iemocap_files import HIGH, LOW, Dialogue
from ercfusion.data.corpus import Splits
from ercfusion.data.label_mixture import mixture_of
from ercfusion.data.raters import combine

DIMENSIONS = ("valence", "activation", "dominance")
VAD = TaskSpec("vad", "regression", dimensions=DIMENSIONS, low=LOW, high=HIGH, metric="ccc")
EWE = TaskSpec("vad_ewe", "regression", dimensions=DIMENSIONS, low=LOW, high=HIGH, metric="ccc")
EMOTIONS = TaskSpec("vad_emotions", "distribution", get_schema("iemocap6"), metric="kl")
ABOUT: Mapping[str, str] = {
    VAD.name: "mean ratings from 1 to 5",
    EWE.name: "ratings from 1 to 5, raters weighted by agreement (evaluator-weighted estimator)",
    EMOTIONS.name: "six emotions as Gaussians of the mean ratings, estimated on train",
}
OWN = (EWE.name, EMOTIONS.name)
"""Tasks of their own protocols only: their targets are computed from the whole corpus or training split."""


def with_estimates(splits: Splits, dialogues: Sequence[Dialogue]) -> Splits:
    """Add the target :data:`EWE`: the raters' numbers, combined by the evaluator-weighted estimator.

    Weights are those of all utterances of the corpus, as published: they say how reliable a rater is, not what an
    utterance means.

    Raises:
        CorpusFormatError: there are no ratings; or see :func:`ercfusion.data.raters.evaluator_weights`.
    """
    keys = [(dialogue.name, utterance.id) for dialogue in dialogues for utterance in dialogue.utterances]
    given = [utterance.ratings for dialogue in dialogues for utterance in dialogue.utterances]
    raters = sorted({rater for one in given for rater in one})
    if not raters:
        raise CorpusFormatError(
            "the evaluations of IEMOCAP have no ratings of single raters (A-E1: val 3; act 2; dom 3;). Get the full "
            "release, or use the protocol iemocap/vad-ses5, which has their means."
        )
    missing = (np.nan,) * len(DIMENSIONS)
    ratings = np.array([[one.get(rater, missing) for rater in raters] for one in given])
    numbers = dict(zip(keys, combine(ratings, "ewe", raters=raters, dimensions=DIMENSIONS), strict=True))

    def target(conversation: str, turn: Turn) -> Target:
        values = numbers[conversation, turn.id]
        return Target(None if np.isnan(values).any() else tuple(float(value) for value in values))

    return _with(splits, EWE, target)


def with_emotions(splits: Splits, emotion: TaskSpec) -> Splits:
    """Add the target :data:`EMOTIONS`: probabilities of the labels given the mean ratings.

    The Gaussians of the labels are those of the training split (:class:`ercfusion.data.label_mixture.LabelMixture`).

    Raises:
        CorpusFormatError: a label does not occur in the training split.
    """
    mixture = mixture_of(splits["train"], emotion, VAD)

    def target(conversation: str, turn: Turn) -> Target:
        value = turn.targets[VAD.name].value
        if value is None:
            return Target(None)
        shares = mixture.distribution([VAD.rules.encode(value, VAD)])[0]
        return Target({label: float(share) for label, share in zip(mixture.labels, shares, strict=True)})

    return _with(splits, EMOTIONS, target)


def _with(splits: Splits, task: TaskSpec, target: Callable[[str, Turn], Target]) -> Splits:
    return {
        split: [
            replace(
                part,
                turns=tuple(
                    replace(turn, targets={**turn.targets, task.name: target(part.id, turn)}) for turn in part.turns
                ),
            )
            for part in conversations
        ]
        for split, conversations in splits.items()
    }
