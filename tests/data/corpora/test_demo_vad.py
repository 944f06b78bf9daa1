"""Ratings of the generated corpus: their exact expectation, and a stream that changes nothing else."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from made_predictions import make

from ercfusion._core.errors import ConfigError
from ercfusion.data.corpora._demo_process import SCHEMA, C, draw
from ercfusion.data.corpora._demo_vad import CENTRES, RATER_DEVIATIONS, VAD, draw_ratings, expected_ratings, vad_scores
from ercfusion.data.corpora.demo import PROCESSES, DemoCorpus
from ercfusion.data.raters import evaluator_weights, mean_rating, rater_agreement
from ercfusion.metrics.registry import scores

RECORDED = "8f74156d369aa255f90bf4442df5cdc99b23b1b99a5a93d9eb094f959ac878f3"  # In the records of experiments/demo.
SINGLE = tuple(name for name, process in PROCESSES.items() if process.cooccurrence is None)


def small() -> DemoCorpus:
    return DemoCorpus(train=3, dev=2, test=4)


def test_everything_else_is_what_it_was_before_there_were_ratings() -> None:
    """The seeds of the samples and the fingerprint are part of recorded runs."""
    assert DemoCorpus().fingerprint() == RECORDED
    for identifier, process in PROCESSES.items():
        demo = small()
        protocol = demo.protocol(identifier)
        turns = [turn for conversation in demo.conversations(protocol)["test"] for turn in conversation.turns]
        sample = draw(process, 4, np.random.default_rng([0, zlib.crc32(identifier.encode()), 2]))
        for row, turn in zip(sample.labels, turns, strict=True):
            value = turn.targets[protocol.task.name].value
            assert ({value} if isinstance(value, str) else value) == {SCHEMA.labels[c] for c in np.flatnonzero(row)}
        for m, table in enumerate(demo.features(protocol).values()):
            kept = sample.features[m][sample.available[:, m]]
            np.testing.assert_array_equal(table.values[len(table.values) - len(kept) :], kept)


@pytest.mark.parametrize("identifier", SINGLE)
def test_the_target_is_the_mean_of_the_ratings(identifier: str) -> None:
    demo = small()
    protocol = demo.with_tasks(demo.protocol(identifier), ["emotion", "vad"])
    assert protocol.others == (VAD,)
    ratings = demo.ratings(protocol, "test")
    turns = [turn for conversation in demo.conversations(protocol)["test"] for turn in conversation.turns]
    assert ratings.shape == (len(turns), len(RATER_DEVIATIONS), 3)
    assert set(np.unique(ratings)) <= {1, 2, 3, 4, 5}
    np.testing.assert_array_equal([turn.targets["vad"].value for turn in turns], mean_rating(ratings))
    # The same data under the protocol in which the ratings come first.
    first = demo.with_tasks(demo.protocol(identifier), ["vad", "emotion"])
    assert first.id == f"{identifier}-vad"
    again = [turn for conversation in demo.conversations(first)["test"] for turn in conversation.turns]
    assert [turn.targets for turn in again] == [turn.targets for turn in turns]


def test_label_sets_have_no_ratings() -> None:
    with pytest.raises(ConfigError, match="has no ratings"):
        small().ratings(small().protocol("multilabel"), "test")


def test_the_expectation_is_that_of_the_ratings() -> None:
    rng = np.random.default_rng(0)
    emotion = np.repeat(np.arange(C), 20_000)
    target = draw_ratings(emotion, rng).mean(axis=1)
    expected = expected_ratings()
    for c in range(C):
        own = target[emotion == c]
        error = own.std(axis=0) / math.sqrt(len(own))
        assert (np.abs(own.mean(axis=0) - expected[c]) < 4.5 * error).all(), SCHEMA.labels[c]
    # Rounding and the ends of the scale move the expectation, by less than half a step.
    assert np.abs(expected - np.array([CENTRES[label] for label in SCHEMA.labels])).max() < 0.5


def test_the_reachable_scores_are_those_of_the_expectation() -> None:
    demo = DemoCorpus()
    protocol = demo.with_tasks(demo.protocol(), ["vad"])
    best = demo.reachable(protocol, "test")
    expected = demo.expected_ratings(protocol, "test")
    target = demo.ratings(protocol, "test").mean(axis=1)
    own = scores(make(VAD, expected, target))
    assert best == pytest.approx({name: own[name] for name in best}, abs=1e-6)
    assert 0.7 < best["ccc"] < best["pearson"] < 0.95
    # The emotion itself is better; one number for all utterances and a perturbed answer are worse.
    emotions = demo._sample(protocol, "test").primary
    assert vad_scores(expected_ratings()[emotions], target)["rmse"] < best["rmse"]
    constant = vad_scores(np.broadcast_to(target.mean(axis=0), target.shape), target)
    assert abs(constant["ccc"]) < 1e-9
    assert constant["rmse"] > best["rmse"]
    noise = 0.3 * np.random.default_rng(0).standard_normal(expected.shape)
    assert vad_scores(expected + noise, target)["rmse"] > best["rmse"]
    assert {finding.topic: finding.text for finding in demo.findings(protocol)}["exact posterior"].startswith("ccc on")


def test_the_raters_differ_in_reliability() -> None:
    ratings = DemoCorpus().ratings(DemoCorpus().protocol(), "train")
    weights, agreement = evaluator_weights(ratings), rater_agreement(ratings)
    for k in range(3):
        assert weights[0, k] > weights[1, k] > weights[2, k] > 0.5
        assert agreement[0, k] > agreement[2, k]
