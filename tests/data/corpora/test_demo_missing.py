"""The exact posterior of the generated corpus under any mask of missing modalities."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from test_demo import brute_force

from ercfusion._core.errors import ConfigError
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing_laws import parse
from ercfusion.data.corpora._demo_inference import View, posterior
from ercfusion.data.corpora._demo_process import AUDIO, CUES, MODALITIES, C, Floats, Process, Sample, draw
from ercfusion.data.corpora.demo import PROCESSES, DemoCorpus, scores
from ercfusion.data.store import ConversationStore

PATTERNS = [names for size in (1, 2, 3) for names in itertools.combinations(MODALITIES, size)]


@cache
def corpus() -> DemoCorpus:
    return DemoCorpus(train=3, dev=2)


def shown(names: tuple[str, ...], count: int) -> dict[str, np.ndarray]:
    return dict.fromkeys(names, np.ones(count, dtype=bool))


def accuracy(names: tuple[str, ...]) -> float:
    protocol = corpus().protocol("missing")
    return corpus().reachable(protocol, "test", shown(names, len(corpus().posterior(protocol, "test"))))["accuracy"]


@pytest.mark.parametrize("seed", range(6))
def test_the_posterior_under_a_mask_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    process = replace(PROCESSES["demo/missing"], turns=(4, 4), three_speakers=0.0, product=0.7 * (seed % 2))
    sample = draw(process, 1, rng)
    mask = rng.random((4, len(MODALITIES))) < 0.5
    mask[seed % 4] = False  # One turn without any modality.
    holes = replace(sample, available=mask)
    belief = posterior(process, holes).primary
    for turn in range(4):
        expected, _ = brute_force(process, holes, turn, set(range(4)))
        np.testing.assert_allclose(belief[turn], expected, rtol=1e-9, atol=1e-12)


def test_hidden_features_are_not_used() -> None:
    demo, protocol = DemoCorpus(train=3, dev=2, test=4), corpus().protocol("missing")
    sample = demo._sample(protocol, "test")
    mask = np.random.default_rng(0).random((len(sample.primary), 3)) < 0.5
    available = dict(zip(MODALITIES, mask.T, strict=True))
    before = demo.posterior(protocol, "test", available)
    for m in range(len(MODALITIES)):
        sample.features[m][~mask[:, m]] = np.nan
    np.testing.assert_array_equal(demo.posterior(protocol, "test", available), before)


def test_nothing_visible_is_the_prior() -> None:
    protocol = corpus().protocol("missing")
    belief = corpus().posterior(protocol, "test", {})
    np.testing.assert_allclose(belief, np.tile(PROCESSES["demo/missing"].prior, (len(belief), 1)), atol=1e-12)


def test_the_rows_are_those_of_a_store() -> None:
    """A mask over the utterances of a store means the same utterances in the corpus."""
    demo = DemoCorpus(train=3, dev=2, test=20)
    protocol = demo.protocol("missing")
    task: TaskSpec = protocol.task
    store = ConversationStore(demo.conversations(protocol)["test"], list(demo.features(protocol).values()), [task])
    # A mask that depends on the targets of the store selects the same turns of the corpus.
    keep = store.targets[task.name].value.numpy() == 0
    sample = demo._sample(protocol, "test")
    expected = posterior(PROCESSES["demo/missing"], replace(sample, available=np.tile(sample.labels[:, :1], 3)))
    belief = demo.posterior(protocol, "test", dict.fromkeys(MODALITIES, keep))
    np.testing.assert_array_equal(belief, expected.labels)


@pytest.mark.parametrize("names", PATTERNS)
def test_a_pattern_is_the_view_of_its_modalities(names: tuple[str, ...]) -> None:
    protocol = corpus().protocol("missing")
    sample = corpus()._sample(protocol, "test")
    belief = posterior(PROCESSES["demo/missing"], sample, View(modalities=names)).labels
    best = np.arange(C) == belief.argmax(axis=1)[:, None]
    reached = corpus().reachable(protocol, "test", shown(names, len(sample.primary)))
    assert reached == scores(sample.labels, best)


def test_every_pattern_is_worth_another_score() -> None:
    """On this protocol each further modality raises the score of every pattern, by more than chance."""
    for names in PATTERNS:
        for further in set(MODALITIES) - set(names):
            more = tuple(name for name in MODALITIES if name in (*names, further))
            assert accuracy(more) > accuracy(names) + 0.02, (names, further)
    assert accuracy(("text",)) > max(PROCESSES["demo/missing"].prior) + 0.3


@pytest.mark.parametrize("text", ["none", "pattern:audio", "rate:0.5", "rmm:0.7", "rmfm", "stmfm:0.5", "block:0.4"])
def test_a_law_hides_the_same_from_models_and_from_the_posterior(text: str) -> None:
    demo = DemoCorpus(train=3, dev=2, test=20)
    protocol = demo.protocol("missing")
    store = ConversationStore(
        demo.conversations(protocol)["test"], list(demo.features(protocol).values()), [protocol.task]
    ).hidden(parse(text), 0, "test")
    batches = torch.cat([batch.present for batch in store.batches(3)])
    assert list(store.seen) == list(MODALITIES)
    np.testing.assert_array_equal(np.stack(list(store.seen.values()), axis=1), batches.numpy())
    process, sample = PROCESSES["demo/missing"], demo._sample(protocol, "test")
    belief = posterior(process, replace(sample, available=batches.numpy())).labels
    np.testing.assert_array_equal(demo.posterior(protocol, "test", store.seen), belief)
    assert (demo.reachable(protocol, "test", store.seen) == demo.reachable(protocol, "test")) == (text == "none")


def test_a_stored_hole_stays_a_hole() -> None:
    demo = DemoCorpus(train=3, dev=2, test=30)
    protocol = demo.protocol("balanced")
    count = len(demo.posterior(protocol, "test"))
    assert demo.reachable(protocol, "test", shown(MODALITIES, count)) == demo.reachable(protocol, "test")


def test_expected_ratings_follow_the_mask() -> None:
    demo = corpus()
    protocol = demo.with_tasks(demo.protocol("missing"), ["vad"])
    count = len(demo.ratings(protocol, "test"))
    complete, text = (demo.reachable(protocol, "test", shown(names, count)) for names in (MODALITIES, ("text",)))
    assert complete == demo.reachable(protocol, "test")
    assert text["rmse"] > complete["rmse"]
    assert text["ccc"] < complete["ccc"]


# More evidence is never worse in expectation. The expectation over the features of one more modality is an integral
# over two Gaussian dimensions, which Gauss-Hermite quadrature computes to rounding.

NODES = 32


def with_audio(process: Process, sample: Sample, turn: int) -> tuple[Sample, Floats]:
    """One copy of a conversation per node of the quadrature, with these audio cues at ``turn``, and p(node | rest)."""
    x, weight = np.polynomial.hermite_e.hermegauss(NODES)
    weight = weight / weight.sum()
    less = posterior(process, sample).primary[turn]
    means = process.cue * (np.arange(2) + 2 == np.arange(C)[:, None]) - 0.5 * process.cue  # (C, 2)
    points, masses = [], []
    for y in range(C):
        for i, j in itertools.product(range(NODES), repeat=2):
            points.append(means[y] + (x[i], x[j]))
            masses.append(less[y] * weight[i] * weight[j])
    count, turns = len(points), len(sample.primary)
    features = [np.tile(values.astype(np.float64), (count, 1)) for values in sample.features]
    features[AUDIO][turn::turns, CUES] = points
    available = np.tile(sample.available, (count, 1))
    available[turn::turns, AUDIO] = True
    copies: dict[str, Any] = {name: np.tile(getattr(sample, name), count) for name in ("speaker", "key", "recall")}
    copies |= {"primary": np.tile(sample.primary, count), "labels": np.tile(sample.labels, (count, 1))}
    many = Sample(np.full(count, turns), **copies, features=tuple(features), available=available)
    return many, np.array(masses)


@pytest.mark.parametrize("turn", [0, 2])
def test_one_more_modality_never_lowers_the_expected_scores(turn: int) -> None:
    process = replace(
        PROCESSES["demo/missing"], groups=(2.0, 0.0, 0.0), cue=1.0, turns=(3, 3), three_speakers=0.0, pass_floor=1.0
    )
    sample = draw(process, 1, np.random.default_rng(4))
    sample = replace(sample, available=np.array([[True, False, False], [False, True, True], [False, False, False]]))
    less = posterior(process, sample).primary
    many, mass = with_audio(process, sample, turn)
    more = posterior(process, many).primary.reshape(len(mass), 3, C)
    # The posterior is a martingale: what one more modality shows is, on average, what was believed before.
    np.testing.assert_allclose(np.einsum("k,ktc->tc", mass, more), less, rtol=1e-8)
    # So the expected accuracy of the most probable label and the expected log-likelihood cannot fall, at any turn.
    gain = mass @ more.max(axis=2) - less.max(axis=1)
    information = np.einsum("k,ktc,ktc->t", mass, more, np.log(more)) - (less * np.log(less)).sum(axis=1)
    assert (information > 0).all()
    assert gain[turn] > 0.01
    assert (gain > -1e-9).all()  # Rounding of the quadrature: with an unchanged decision the gain is exactly 0.


# Bad input


def test_a_mask_of_an_unknown_modality_is_an_error() -> None:
    demo = corpus()
    with pytest.raises(ConfigError, match=r"available: corpus 'demo' has no modality 'vidio'\. Choose from"):
        demo.reachable(demo.protocol("missing"), "test", {"vidio": np.ones(3, dtype=bool)})


def test_a_mask_of_another_length_is_an_error() -> None:
    demo = corpus()
    with pytest.raises(ConfigError, match=r"available\['text'\] has the shape \(3,\).*utterances in test\. Give"):
        demo.reachable(demo.protocol("missing"), "test", {"text": np.ones(3, dtype=bool)})
