"""The generated corpus: is its posterior the exact one, and does every variant make its own thing decisive?"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpora._demo_inference import View, cues_only, posterior
from ercfusion.data.corpora._demo_process import MODALITIES, SCHEMA, C, Floats, Process, Sample, draw, sources
from ercfusion.data.corpora.demo import PROCESSES, DemoCorpus, scores
from ercfusion.data.corpus import SPLITS
from ercfusion.data.store import ConversationStore

IDS = tuple(PROCESSES)
PAIRS = {  # Which emotions each modality takes for one another, in words of its own.
    "text": ("neutral anger", "joy surprise", "sadness fear"),
    "audio": ("neutral sadness", "joy anger", "surprise fear"),
    "visual": ("neutral joy", "sadness surprise", "anger fear"),
}
CODES = ("+++", "--+", "+--", "-+-", "---", "++-")
HADAMARD_ROWS = ("+-+-+-+-", "++--++--", "+--++--+")


@cache
def corpus() -> DemoCorpus:
    return DemoCorpus()


@cache
def ceilings(identifier: str) -> dict[str, dict[str, float]]:
    return corpus().ceilings(corpus().protocol(identifier), "test")


def f1(identifier: str, observer: str) -> float:
    return ceilings(identifier)[observer]["weighted_f1"]


def way(identifier: str, observer: str) -> float:
    """How far from the majority's score to the full observer's, from 0 to 1."""
    low = f1(identifier, "majority")
    return (f1(identifier, observer) - low) / (f1(identifier, "full") - low)


# Brute force: every hidden variable is enumerated and densities are those of the documented process, written anew.


def signs(text: str) -> Floats:
    return np.array([1.0 if letter == "+" else -1.0 for letter in text])


def normal(x: Floats, mean: Floats) -> float:
    return math.exp(-0.5 * float(np.sum((x.astype(np.float64) - mean) ** 2)))


def centre(modality: str, emotion: int) -> Floats:
    group = next(g for g, pair in enumerate(PAIRS[modality]) if SCHEMA.labels[emotion] in pair.split())
    return signs(HADAMARD_ROWS[group]) / math.sqrt(8)


def turn_evidence(process: Process, x: dict[str, Floats], y: int) -> dict[tuple[int, ...], float]:
    """p(features of a chain turn, label set | y) by label set; signs and flatness are enumerated."""
    found: dict[tuple[int, ...], float] = {}
    rates = process.cooccurrence or np.zeros((C, C)).tolist()
    base = 0.0
    for flat, probability in ((True, process.flat), (False, 1 - process.flat)):
        for m, modality in enumerate(MODALITIES):
            if modality in x:
                mean = np.zeros(8) if flat else process.groups[m] * centre(modality, y)
                probability *= normal(x[modality][:8], mean)
        base += probability
    product = 0.0
    for z in itertools.product((-1.0, 1.0), repeat=3):
        likelihood = 1 / 8
        if "text" in x:
            likelihood *= normal(x["text"][12:15], process.product * np.array(z))
        if "audio" in x:
            likelihood *= normal(x["audio"][12:15], process.product * np.array(z) * signs(CODES[y]))
        product += likelihood
    for further in itertools.product((0, 1), repeat=C):
        probability = 1.0
        for k, on in enumerate(further):
            rate = 1.0 if k == y else rates[y][k]
            probability *= rate if on else 1 - rate
            modality, place = MODALITIES[k // 2], 10 + k % 2
            if probability and modality in x:
                probability *= normal(x[modality][place : place + 1], np.array([process.cue * (on - 0.5)]))
        if probability:
            found[further] = base * product * probability
    return found


@cache
def chain_probability(
    process: Process, speaker: tuple[int, ...], path: tuple[int, ...], chained: tuple[int, ...]
) -> float:
    """p(emotions at the chain's turns), the initial moods of all speakers enumerated."""
    names = sorted(set(speaker))
    total = 0.0
    for moods in itertools.product(range(C), repeat=len(names)):
        mood = dict(zip(names, moods, strict=True))
        probability = math.prod(process.prior[e] for e in moods)
        for i, y in zip(chained, path, strict=True):
            own, others = speaker[i], [s for s in speaker[:i] if s != speaker[i]]
            step = process.inertia * (mood[own] == y)
            rest = 1 - process.inertia
            if others:
                step += process.contagion * (mood[others[-1]] == y)
                rest -= process.contagion
            probability *= step + rest * process.prior[y]
            mood[own] = y
        total += probability
    return total


def brute_force(process: Process, sample: Sample, target: int, shown: set[int]) -> tuple[Floats, Floats]:
    """p(y = c) and p(label k) of the turn ``target`` of a one-conversation sample, from the turns in ``shown``."""
    n = len(sample.speaker)
    speaker = tuple(int(s) for s in sample.speaker)
    x = [
        {name: sample.features[m][i] for m, name in enumerate(MODALITIES) if sample.available[i, m] and i in shown}
        for i in range(n)
    ]
    if sample.recall[target]:
        weights = np.ones(C)
        for i in range(n):
            if sample.key[i] and "text" in x[i]:
                weights = np.array([normal(x[i]["text"][15:21], process.key * np.eye(C)[k]) for k in range(C)])
        return weights / weights.sum(), weights / weights.sum()
    chained = tuple(i for i in range(n) if not sample.recall[i])
    evidence = {i: [turn_evidence(process, x[i], y) for y in range(C)] for i in chained}
    totals = {i: [sum(by_set.values()) for by_set in evidence[i]] for i in chained}
    primary, labels = np.zeros(C), np.zeros(C)
    for path in itertools.product(range(C), repeat=len(chained)):
        joint = chain_probability(process, speaker, path, chained)
        joint *= math.prod(totals[i][y] for i, y in zip(chained, path, strict=True))
        primary[path[chained.index(target)]] += joint
    primary /= primary.sum()
    for y in range(C):
        for members, probability in evidence[target][y].items():
            labels += primary[y] * probability / totals[target][y] * np.array(members)
    return primary, labels


def tiny(identifier: str, seed: int, three: bool) -> tuple[Process, Sample]:
    process = PROCESSES[identifier]
    if three:
        process = replace(process, turns=(3, 3), three_speakers=1.0, pass_floor=1.0, missing=0.4)
    else:
        process = replace(process, turns=(4, 4), three_speakers=0.0, missing=max(process.missing, 0.3))
    if process.recall_rate:
        # Weak keys, so that their posterior is no zero or one, and recall turns in the midst of the chain.
        process = replace(process, recall_gap=1, recall_rate=0.5, key=1.0)
    return process, draw(process, 1, np.random.default_rng([seed, len(identifier)]))


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("identifier", IDS)
def test_posterior_equals_enumeration(identifier: str, three: bool) -> None:
    process, sample = tiny(identifier, 5, three)
    n = len(sample.speaker)
    everything, near = posterior(process, sample), posterior(process, sample, View(radius=1))
    alone = posterior(process, sample, View(radius=0))
    for i in {0, n - 1, *np.flatnonzero(sample.recall).tolist()}:
        for found, shown in (
            (everything, set(range(n))),
            (near, {i - 1, i, i + 1}),
            (alone, {i}),
        ):
            primary, labels = brute_force(process, sample, i, shown)
            np.testing.assert_allclose(found.primary[i], primary, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.labels[i], labels, rtol=1e-9, atol=1e-12)


def test_tiny_samples_cover_recalls_absent_modalities_and_sources() -> None:
    samples = [tiny(identifier, 5, three)[1] for identifier in IDS for three in (False, True)]
    assert any(sample.recall.any() for sample in samples)
    assert all((~sample.available).any() for sample in samples[:2])
    assert any((sources(sample.speaker) < 0).sum() > 1 for sample in samples)


def test_a_view_without_a_modality_equals_its_absence() -> None:
    process = replace(PROCESSES["demo/balanced"], turns=(12, 16), recall_gap=3, recall_rate=0.3)
    sample = draw(process, 5, np.random.default_rng(1))
    only_text = replace(sample, available=sample.available & np.array([True, False, False]))
    expected = posterior(process, only_text)
    np.testing.assert_array_equal(posterior(process, sample, View(modalities=("text",))).primary, expected.primary)


def test_windows_that_cover_the_conversation_equal_the_full_posterior() -> None:
    for identifier in IDS:
        process = PROCESSES[identifier]
        sample = draw(process, 4, np.random.default_rng(2))
        wide = posterior(process, sample, View(radius=100))
        np.testing.assert_allclose(wide.labels, posterior(process, sample).labels, atol=1e-10)


# The generator keeps the posterior's promises.


def clustered_z(deviation: Floats, conversation: Floats) -> float:
    """Sum of ``deviation`` in standard errors, conversations being the independent units."""
    sums = np.bincount(conversation, weights=deviation)
    return float(sums.sum() / math.sqrt(np.sum(sums**2)))


@pytest.mark.parametrize("identifier", IDS)
def test_accuracy_and_calibration_are_those_that_the_posterior_promises(identifier: str) -> None:
    process = PROCESSES[identifier]
    sample = draw(process, 400, np.random.default_rng(12345))
    belief = posterior(process, sample)
    best = belief.primary.argmax(axis=1)
    right = (best == sample.primary).astype(np.float64)
    assert abs(clustered_z(right - belief.primary.max(axis=1), sample.conversation)) < 4
    for probability, truth in (
        (belief.primary, sample.primary[:, None] == np.arange(C)),
        (belief.labels, sample.labels),
    ):
        bins = np.minimum((probability * 10).astype(int), 9)
        for b in range(10):
            inside = bins == b
            # Fewer conversations than 30 in a bin: the normal limits do not hold.
            if len(np.unique(sample.conversation[inside.any(axis=1)])) < 30:
                continue
            deviation = np.where(inside, truth - probability, 0.0).sum(axis=1)
            assert abs(clustered_z(deviation, sample.conversation)) < 4.5, (identifier, b)


def test_every_turn_has_the_prior_as_its_marginal() -> None:
    process = PROCESSES["demo/speaker"]
    sample = draw(process, 2000, np.random.default_rng(7))
    for c in range(C):
        deviation = (sample.primary == c) - process.prior[c]
        assert abs(clustered_z(deviation, sample.conversation)) < 4


# Every variant makes its own thing decisive.


def test_balanced_needs_fusion_and_context() -> None:
    best = f1("demo/balanced", "full")
    assert 0.8 < best < 0.92
    assert 0.1 < f1("demo/balanced", "majority") < 0.2
    assert way("demo/balanced", "context_free") < 0.8
    assert max(way("demo/balanced", modality) for modality in MODALITIES) < 0.6
    # Products and far evidence matter, a little: a model without either can come near.
    assert 0.93 < way("demo/balanced", "no_product") < 1
    assert 0.93 < way("demo/balanced", "window") < 1


def test_speaker_needs_context() -> None:
    assert way("demo/speaker", "context_free") < 0.65
    assert way("demo/speaker", "window") > 0.95
    assert f1("demo/speaker", "full") > 0.75


def test_product_is_nothing_without_products() -> None:
    for observer in ("no_product", *MODALITIES):
        assert f1("demo/product", observer) == pytest.approx(f1("demo/product", "majority"))
    assert f1("demo/product", "full") > 0.8


def test_far_is_out_of_a_windows_reach() -> None:
    assert way("demo/far", "window") < 0.75
    assert f1("demo/far", "full") > 0.85
    for conversations in corpus().conversations(corpus().protocol("far")).values():
        assert min(len(conversation) for conversation in conversations) >= 34
    process = PROCESSES["demo/far"]
    sample = draw(process, 20, np.random.default_rng(0))
    for number in range(20):
        of = sample.conversation == number
        key, recall = np.flatnonzero(sample.key & of), np.flatnonzero(sample.recall & of)
        assert len(key) == 1
        assert len(recall) > 0
        assert recall.min() - key[0] >= 24
        assert len(set(sample.primary[recall])) == 1


def test_missing_needs_every_modality() -> None:
    assert f1("demo/missing", "complete") == f1("demo/missing", "full") < 0.95
    for modality in MODALITIES:
        assert 0.4 < way("demo/missing", modality) < 0.7


def test_multilabel_gains_from_what_labels_go_together() -> None:
    assert way("demo/multilabel", "cues_only") < 0.8
    assert way("demo/multilabel", "context_free") < 0.95
    # With nothing but cues, at the turn itself, what is left to gain is what the other labels' cues say of a label.
    process = replace(PROCESSES["demo/multilabel"], groups=(0.0, 0.0, 0.0))
    sample = draw(process, 200, np.random.default_rng(3))
    together = scores(sample.labels, posterior(process, sample, View(radius=0)).labels > 0.5)
    apart = scores(sample.labels, cues_only(process, sample) > 0.5)
    assert together["weighted_f1"] > apart["weighted_f1"] + 0.05
    assert together["accuracy"] > apart["accuracy"] + 0.05
    assert 1.2 < np.mean(corpus()._sample(corpus().protocol("multilabel"), "test").labels.sum(axis=1)) < 3


# The corpus as a corpus.


def test_the_first_protocol_is_the_default() -> None:
    assert corpus().protocol().id == "demo/balanced"
    assert isinstance(open_corpus("demo", seed=3), DemoCorpus)
    assert DemoCorpus.card.synthetic


def small(seed: int = 0, **sizes: int) -> DemoCorpus:
    return DemoCorpus(seed=seed, **{"train": 3, "dev": 2, "test": 4, **sizes})


@pytest.mark.parametrize("identifier", IDS)
def test_features_and_targets_fit_the_conversations(identifier: str) -> None:
    demo = small()
    protocol = demo.protocol(identifier)
    splits, tables = demo.conversations(protocol), demo.features(protocol)
    assert list(splits) == list(SPLITS)
    assert list(tables) == list(protocol.modalities) == list(MODALITIES)
    conversations = [conversation for part in splits.values() for conversation in part]
    assert len({conversation.id for conversation in conversations}) == len(conversations) == 9
    assert all(conversation.synthetic for conversation in conversations)
    assert all(turn.text for conversation in conversations for turn in conversation.turns)
    keys = {key for conversation in conversations for key in conversation.keys()}  # noqa: SIM118
    held = [set(table.keys) for table in tables.values()]
    assert set.union(*held) == keys
    if PROCESSES[identifier].missing == 0:
        assert all(part == keys for part in held)
    for table, width in zip(tables.values(), (24, 16, 16), strict=True):
        assert (table.width, table.level, table.values.dtype) == (width, "utterance", np.float32)
        assert np.isfinite(table.values).all()
    for split, part in splits.items():
        store = ConversationStore(part, list(tables.values()), [protocol.task])
        truth = demo._sample(protocol, split)
        target = store.targets[protocol.task.name].value.numpy()
        expected = truth.labels if protocol.task.kind == "multi_label" else truth.primary
        np.testing.assert_array_equal(target, expected)
        np.testing.assert_array_equal(store.available.numpy(), truth.available)
        np.testing.assert_array_equal(
            store.features["audio"].numpy()[truth.available[:, 1]], truth.features[1][truth.available[:, 1]]
        )


def test_at_least_one_modality_is_there() -> None:
    sample = draw(replace(PROCESSES["demo/missing"], missing=0.9), 50, np.random.default_rng(0))
    assert sample.available.any(axis=1).all()
    assert sample.available.mean() < 0.45


def blobs(demo: DemoCorpus, identifier: str) -> Iterator[bytes]:
    for split, part in demo.conversations(demo.protocol(identifier)).items():
        yield f"{split} {part}".encode()
    for table in demo.features(demo.protocol(identifier)).values():
        yield str(table.keys).encode()
        yield table.values.tobytes()


@pytest.mark.parametrize("identifier", IDS)
def test_a_seed_decides_every_byte(identifier: str) -> None:
    first, again, other = (list(blobs(small(seed), identifier)) for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert small(0).fingerprint() == small(0).fingerprint()
    assert len({small(0).fingerprint(), small(1).fingerprint(), small(0, train=5).fingerprint()}) == 3


def test_the_size_of_one_split_leaves_the_others_alone() -> None:
    one, two = small(), small(train=7)
    assert len(two.conversations(two.protocol())["train"]) == 7
    assert one.conversations(one.protocol())["test"] == two.conversations(two.protocol())["test"]


@pytest.mark.parametrize("identifier", IDS)
def test_reachable_is_the_full_ceiling_and_follows_from_the_posterior(identifier: str) -> None:
    protocol = corpus().protocol(identifier)
    reachable = corpus().reachable(protocol, "test")
    assert reachable == ceilings(identifier)["full"]
    assert set(reachable) == {"weighted_f1", "macro_f1", "accuracy"}
    belief = corpus().posterior(protocol, "test")
    truth = [
        turn.targets[protocol.task.name].value
        for conversation in corpus().conversations(protocol)["test"]
        for turn in conversation.turns
    ]
    if protocol.task.kind == "multi_label":
        said = [frozenset(SCHEMA.labels[k] for k in np.flatnonzero(row > 0.5)) for row in belief]
    else:
        said = [SCHEMA.labels[k] for k in belief.argmax(axis=1)]
    assert reachable["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(truth, said, strict=True)]))


def test_scores_by_hand() -> None:
    truth, said = np.zeros((4, C), dtype=bool), np.zeros((4, C), dtype=bool)
    truth[[0, 1, 2, 3], [0, 0, 0, 1]] = True
    said[[0, 1, 2, 3], [0, 0, 1, 1]] = True
    found = scores(truth, said)  # F1 of the first label 4/5, of the second 2/3.
    assert found["weighted_f1"] == pytest.approx(0.75 * 0.8 + 0.25 * 2 / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)  # the labels that occur
    assert found["accuracy"] == 0.75


def test_findings_say_that_it_is_generated() -> None:
    topics = {finding.topic: finding for finding in small().findings(small().protocol())}
    assert "not recorded" in topics["synthetic"].text
    assert not any(finding.level == "fault" for finding in topics.values())


@pytest.mark.parametrize(
    ("options", "part"),
    [({"seed": -1}, "seed"), ({"train": 0}, "train"), ({"raw": "folder"}, "reads no files"), ({"sede": 1}, "sede")],
)
def test_wrong_settings_are_named(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        open_corpus("demo", **options)


def test_a_wrong_split_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        small().reachable(small().protocol(), "tets")


DRAWN = {
    "demo/balanced": (3888743073, 7581.497),
    "demo/speaker": (2427337325, 6129.538),
    "demo/product": (1018609443, 6399.976),
    "demo/far": (2014662909, 12365.562),
    "demo/missing": (229863105, 5228.432),
    "demo/multilabel": (4209841133, 7264.469),
}
"""Checksum of labels, holes and speakers, and the sum of all features' absolute values, of the present fingerprint."""


@pytest.mark.parametrize("identifier", IDS)
def test_other_data_need_another_fingerprint(identifier: str) -> None:
    """If this fails, increase ``_GENERATION``: records of both versions would be compared as equal."""
    demo = DemoCorpus(train=3, dev=2, test=2)
    samples = [demo._sample(demo.protocol(identifier), split) for split in SPLITS]
    marks = [np.concatenate([one.labels, one.available], axis=1).ravel() for one in samples]
    content = np.concatenate([*marks, *(one.speaker for one in samples)]).astype(np.uint8)
    size = sum(float(np.abs(values).sum()) for one in samples for values in one.features)
    assert (zlib.crc32(content.tobytes()), size) == (
        DRAWN[identifier][0],
        pytest.approx(DRAWN[identifier][1], rel=1e-5),
    )
