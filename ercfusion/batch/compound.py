"""Fusion of several models' probabilities, and compound emotions from pairs of basic ones: rules without training.

Sources: the SUN team's entries on C-EXPR-DB (compound expression recognition of the ABAW challenges). Read from
summaries: our reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.maps import emotion_of
from ercfusion.batch.predictions import Floats, Predictions

COMPOUNDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "fearfully surprised": ("fear", "surprise"),
        "happily surprised": ("joy", "surprise"),
        "sadly surprised": ("sadness", "surprise"),
        "disgustedly surprised": ("disgust", "surprise"),
        "angrily surprised": ("anger", "surprise"),
        "sadly fearful": ("sadness", "fear"),
        "sadly angry": ("sadness", "anger"),
    }
)
"""The seven compounds of C-EXPR-DB, each with its two basic emotions."""
COMPOUND_SCHEMA = LabelSchema("cexpr7", tuple(COMPOUNDS))


def fuse(parts: Sequence[Predictions], weights: ArrayLike | None = None) -> Predictions:
    """Weighted mean of the probabilities of several models on the same utterances.

    Args:
        parts: M predictions of one task and split, with probabilities.
        weights: (M) or (M, C) non-negative weights of models, or of models by label; None for equal ones. Exclusive
            probabilities are divided by their sum afterwards.

    Raises:
        ConfigError: other utterances or labels, or weights of another shape, negative, or all 0 for a label.
    """
    if not parts:
        raise ConfigError("no predictions to fuse. Give at least one model's.")
    first = parts[0]
    if not first.task.rules.probabilities:
        raise ConfigError(f"task {first.task.name!r} has no probabilities to fuse. Give predictions with labels.")
    for part in parts[1:]:
        same = (part.conversation_ids, part.turn_ids) == (first.conversation_ids, first.turn_ids)
        if not same or part.task.output_names != first.task.output_names:
            raise ConfigError(
                "predictions of different utterances or labels cannot be fused. Give one split of runs with equal data."
            )
    count, size = len(parts), first.task.size
    given = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape not in ((count,), (count, size)):
        raise ConfigError(f"weights of shape {given.shape} for {count} models. Give ({count}) or ({count}, {size}).")
    by_label = given[:, None] * np.ones(size) if given.ndim == 1 else given
    if not (np.isfinite(by_label).all() and (by_label >= 0).all() and (by_label.sum(axis=0) > 0).all()):
        raise ConfigError("weights must be at least 0, and above 0 for one model of every label. Correct them.")
    share = by_label / by_label.sum(axis=0)
    output = np.einsum("mnc,mc->nc", np.stack([part.output for part in parts]), share)
    if first.task.rules.probabilities == "exclusive":
        output = output / output.sum(axis=1, keepdims=True)
    return replace(first, output=output)


def compound_scores(
    probabilities: NDArray[np.float64], schema: LabelSchema, weights: Mapping[str, float] | None = None
) -> Floats:
    """(N, 7) scores of the compounds: the sum of the probabilities of their two basic emotions.

    Args:
        probabilities: (N, C) of basic emotions, from one model or from :func:`fuse`.
        schema: Their labels; other labels, such as neutral, are ignored.
        weights: Factor of a compound's sum, by name; 1 by default.

    Raises:
        ConfigError: a basic emotion is not among the labels, or a weight names no compound.
    """
    places = {emotion_of(label): place for place, label in enumerate(schema.labels)}
    for name in weights or {}:
        if name not in COMPOUNDS:
            raise ConfigError(f"{name!r} is not a compound. {did_you_mean(name, COMPOUNDS)}")
    for emotion in sorted({basic for pair in COMPOUNDS.values() for basic in pair}):
        if emotion not in places:
            raise ConfigError(
                f"the labels {schema.name} have no {emotion}, which compounds need. Use a model with the six basic "
                "emotions."
            )
    columns = [
        (weights or {}).get(name, 1.0) * (probabilities[:, places[one]] + probabilities[:, places[other]])
        for name, (one, other) in COMPOUNDS.items()
    ]
    return np.stack(columns, axis=1)


def decide_compounds(
    probabilities: NDArray[np.float64], schema: LabelSchema, weights: Mapping[str, float] | None = None
) -> list[str]:
    """The compound with the largest score for every utterance; the first of equal ones. See :func:`compound_scores`."""
    best = compound_scores(probabilities, schema, weights).argmax(axis=1)
    return [COMPOUND_SCHEMA.labels[place] for place in best]
