"""Fusion of probabilities and compound emotions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import EMOTION, LABELS, VAD, random_predictions

from ercfusion._core.errors import ConfigError
from ercfusion.batch.compound import COMPOUND_SCHEMA, COMPOUNDS, compound_scores, decide_compounds, fuse
from ercfusion.batch.labels import get_schema

MELD = get_schema("meld7")


def row(**numbers: float) -> np.ndarray:
    return np.array([[numbers.get(label, 0.0) for label in MELD.labels]])


def test_pairs() -> None:
    assert COMPOUND_SCHEMA.labels == tuple(COMPOUNDS)
    assert decide_compounds(row(joy=0.4, surprise=0.3, anger=0.2, neutral=0.1), MELD) == ["happily surprised"]
    assert decide_compounds(row(sadness=0.35, anger=0.33, neutral=0.9), MELD) == ["sadly angry"]
    assert decide_compounds(row(fear=0.4, sadness=0.41, surprise=0.1), MELD) == ["sadly fearful"]
    scores = compound_scores(row(disgust=0.2, surprise=0.5), MELD)
    assert scores[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.7, 0.5, 0.0, 0.0])


def test_weights_of_compounds_and_other_names() -> None:
    even = row(sadness=0.5, anger=0.5, fear=0.5)
    assert decide_compounds(even, MELD) == ["sadly fearful"]  # the first of equal ones
    assert decide_compounds(even, MELD, {"sadly angry": 1.2}) == ["sadly angry"]
    daily = get_schema("dailydialog7")
    happy = np.eye(7)[[daily.index("happiness")]] + np.eye(7)[[daily.index("surprise")]]
    assert decide_compounds(happy, daily) == ["happily surprised"]


def test_fusion_by_definition() -> None:
    parts = [
        replace(random_predictions(EMOTION, 1), output=random_predictions(EMOTION, seed).output) for seed in (1, 2, 3)
    ]
    weights = np.random.default_rng(0).random((3, EMOTION.size))
    fused = fuse(parts, weights)
    expected = sum(weight / weights.sum(0) * part.output for weight, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(fused.output, expected / expected.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(fuse(parts).output, np.mean([part.output for part in parts], axis=0), atol=1e-12)
    np.testing.assert_allclose(fuse(parts, [0, 2, 0]).output, parts[1].output, atol=1e-12)
    sets = [random_predictions(LABELS, 1), random_predictions(LABELS, 1)]
    np.testing.assert_allclose(fuse(sets).output, sets[0].output)  # independent: no division


def test_refusals() -> None:
    one, other = random_predictions(EMOTION, 1), random_predictions(EMOTION, 1, (5, 45))
    for parts, weights, message in (
        ([], None, "no predictions to fuse"),
        ([one, other], None, "different utterances or labels"),
        ([random_predictions(VAD, 1)], None, "task 'vad' has no probabilities"),
        ([one, one], [1.0], r"weights of shape \(1,\) for 2 models"),
        ([one, one], [1.0, -1.0], "weights must be at least 0"),
        ([one, one], [0.0, 0.0], "weights must be at least 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            fuse(parts, weights)
    with pytest.raises(ConfigError, match="the labels emorynlp7 have no disgust, which compounds need"):
        compound_scores(np.eye(7), get_schema("emorynlp7"))
    with pytest.raises(ConfigError, match="'sadly angri' is not a compound"):
        compound_scores(np.eye(7), MELD, {"sadly angri": 1})
