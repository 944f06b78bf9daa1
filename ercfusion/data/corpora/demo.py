"""The embedded corpus ``demo``: generated conversations with a known exact posterior.

They are drawn from the process of :mod:`ercfusion.data.corpora._demo_process`, whose exact inverse gives the scores of
observers with all (:meth:`DemoCorpus.reachable`) or a part (:meth:`DemoCorpus.ceilings`) of the evidence.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, ClassVar

import numpy as np

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.config.options import IfGiven, Range
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora._demo_inference import View, cues_only, posterior
from ercfusion.data.corpora._demo_process import MODALITIES, SCHEMA, Bools, C, Floats, Ints, Process, Sample, draw
from ercfusion.data.corpora._demo_vad import VAD, draw_ratings, expected_ratings, vad_scores
from ercfusion.data.corpus import (
    EXACT_LEVEL,
    EXACT_NOTE,
    SPLITS,
    Available,
    Corpus,
    CorpusCard,
    Finding,
    Protocol,
    Splits,
)
from ercfusion.data.features import FeatureTable

WINDOW = 10
"""Radius, in turns, of the observer ``window`` in :meth:`DemoCorpus.ceilings`."""

_GENERATION = 1  # Part of the fingerprint: increase it with every change of the data.
_WORDS = ("lorem", "ipsum", "dolor", "amet", "elit", "magna", "nulla", "velit")

PROCESSES: Mapping[str, Process] = MappingProxyType(
    {
        "demo/balanced": Process(
            inertia=0.6,
            contagion=0.3,
            groups=(3.4, 3.2, 3.2),
            flat=0.5,
            product=0.5,
            key=5.0,
            recall_rate=0.05,
            recall_gap=12,
            missing=0.03,
            three_speakers=0.3,
            sizes=(200, 40, 80),
        ),
        "demo/speaker": Process(inertia=0.76, contagion=0.19, groups=(2.0, 2.0, 2.0), flat=0.6, sizes=(200, 40, 80)),
        "demo/product": Process(inertia=0.3, contagion=0.1, groups=(0.0, 0.0, 0.0), product=1.8, sizes=(240, 40, 60)),
        "demo/far": Process(
            inertia=0.6,
            contagion=0.2,
            groups=(2.2, 2.0, 2.0),
            flat=0.15,
            key=8.0,
            recall_rate=0.9,
            recall_gap=24,
            turns=(34, 46),
            sizes=(240, 40, 60),
        ),
        "demo/missing": Process(
            inertia=0.55, contagion=0.2, groups=(2.4, 2.0, 1.7), flat=0.3, cue=1.5, sizes=(160, 40, 100)
        ),
        "demo/multilabel": Process(
            inertia=0.65,
            contagion=0.25,
            groups=(1.8, 1.6, 1.6),
            flat=0.35,
            cue=1.2,
            cooccurrence=(
                (1.00, 0.10, 0.05, 0.05, 0.05, 0.02),
                (0.10, 1.00, 0.02, 0.02, 0.70, 0.05),
                (0.15, 0.02, 1.00, 0.30, 0.02, 0.65),
                (0.02, 0.02, 0.65, 1.00, 0.30, 0.05),
                (0.05, 0.60, 0.02, 0.05, 1.00, 0.30),
                (0.02, 0.02, 0.35, 0.05, 0.70, 1.00),
            ),
            sizes=(160, 30, 60),
        ),
    }
)
"""Process of every protocol."""

# All protocols share the fingerprint, and recorded runs hold it: it keeps the parameters that demo/missing had before
# laws of missing modalities, when the corpus itself omitted half of its features. Runs on that corpus, which was never
# released, share it; compare refuses them because their labels differ.
_OMITTED_HALF = Process(inertia=0.6, contagion=0.2, groups=(2.0, 1.8, 1.8), missing=0.5, sizes=(160, 30, 60))
_FINGERPRINTED: Mapping[str, Process] = MappingProxyType({**PROCESSES, "demo/missing": _OMITTED_HALF})


VALENCE = TaskSpec(
    "valence", "single_label", LabelSchema("demo3", ("neutral", "positive", "negative"), neutral="neutral")
)
"""A second task, a function of the emotion; every fifth turn is not labelled."""
_VALENCES: Mapping[str, str] = MappingProxyType(
    {
        "neutral": "neutral",
        **dict.fromkeys(("joy", "surprise"), "positive"),
        **dict.fromkeys(("sadness", "anger", "fear"), "negative"),
    }
)


_EMOTION = "emotion"


def _single(identifier: str, description: str) -> Protocol:
    task = TaskSpec(_EMOTION, "single_label", SCHEMA)
    return Protocol(identifier, task, description, "drawn as a split of its own", MODALITIES, (VALENCE, VAD))


def _protocols(*protocols: Protocol) -> Mapping[str, Protocol]:
    return MappingProxyType({protocol.id: protocol for protocol in protocols})


_Size = Annotated[int | None, Range(1, 100_000_000), IfGiven]


class DemoCorpus(Corpus):
    """Generated conversations with six emotions and the features text (24), audio (16) and visual (16 dimensions).

    Equal arguments give equal bytes. Two seeds are two samples of one population. A split does not depend on the sizes
    of the others.

    Further tasks of single-label protocols: ``valence`` (three classes of emotions) and ``vad`` (mean ratings of
    valence, arousal and dominance, 1 to 5; see :mod:`ercfusion.data.corpora._demo_vad`).

    Args:
        raw: Must be None: there are no files.
        seed: Seed of the sample.
        train, dev, test: Number of conversations of the split; None uses the protocol's.

    Raises:
        ConfigError: ``raw`` is not None.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="demo",
        title="ercfusion demo (generated, not recorded)",
        licence="Generated by ercfusion; free of third-party rights.",
        obtain="Nothing to obtain: it is generated when opened.",
        citation="None: a generated corpus, not a benchmark.",
        known_issues=(
            "The texts are placeholders without evidence; only the features have evidence.",
            f"{EXACT_LEVEL.capitalize()}: {EXACT_NOTE}.",
        ),
        synthetic=True,
    )
    protocols: ClassVar[Mapping[str, Protocol]] = _protocols(
        _single("demo/balanced", "Everything matters a little: context, fusion, products, far evidence, gaps."),
        _single("demo/speaker", "The features say little; speakers' inertia and contagion are decisive."),
        _single("demo/product", "Only the product of text and audio features tells the emotions apart."),
        _single("demo/far", "A third of the turns depend on a key shown 24 or more turns before."),
        _single("demo/missing", "No modality is redundant and all are stored: made for laws of missing modalities."),
        Protocol(
            "demo/multilabel",
            TaskSpec("emotions", "multi_label", SCHEMA),
            "A set of labels per turn; which labels go together matters.",
            "drawn as a split of its own",
            MODALITIES,
        ),
    )

    def __init__(
        self,
        raw: str | os.PathLike[str] | None = None,
        *,
        seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0,
        train: _Size = None,
        dev: _Size = None,
        test: _Size = None,
    ) -> None:
        super().__init__(None)
        if raw is not None:
            raise ConfigError(
                f"corpus 'demo' is generated and reads no files, but data.raw is {str(raw)!r}. Add data=custom "
                "for your own utterances or data=NAME for another corpus, or remove data.raw."
            )
        self._seed = seed
        self._sizes = dict(zip(SPLITS, (train, dev, test), strict=True))
        self._samples: dict[tuple[str, str], Sample] = {}
        self._ratings: dict[tuple[str, str], Ints] = {}
        self._conversations: dict[str, Splits] = {}
        self._features: dict[str, dict[str, FeatureTable]] = {}

    def conversations(self, protocol: Protocol) -> Splits:
        """Conversations of train, dev and test, generated once."""
        if protocol.id not in self._conversations:
            self._conversations[protocol.id] = {split: self._drawn_conversations(protocol, split) for split in SPLITS}
        return {split: list(part) for split, part in self._conversations[protocol.id].items()}

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """One utterance-level float32 table per modality, over all splits; missing modalities have no key."""
        if protocol.id not in self._features:
            keys = [key for part in self.conversations(protocol).values() for c in part for key in c.keys()]  # noqa: SIM118
            samples = [self._sample(protocol, split) for split in SPLITS]
            source = {"corpus": "demo", "protocol": protocol.id, "fingerprint": self.fingerprint(), "synthetic": True}
            tables = {}
            for m, modality in enumerate(protocol.modalities):
                available = np.concatenate([sample.available[:, m] for sample in samples])
                values = np.concatenate([sample.features[m] for sample in samples])[available]
                present = [key for key, is_available in zip(keys, available, strict=True) if is_available]
                tables[modality] = FeatureTable(modality, present, values, source=source)
            self._features[protocol.id] = tables
        return dict(self._features[protocol.id])

    def posterior(self, protocol: Protocol, split: str, available: Available | None = None) -> Floats:
        """(N, C) exact probabilities of the labels given the conversation: p(y_i = c), or p(label c in the set).

        Args:
            protocol: Protocol.
            split: Split of N utterances.
            available: The visible modalities of every utterance, as in :meth:`reachable`.
        """
        return posterior(_process(protocol), self._seen(protocol, split, available)).labels

    def reachable(self, protocol: Protocol, split: str, available: Available | None = None) -> dict[str, float]:
        """``weighted_f1``, ``macro_f1`` and ``accuracy`` (0 to 1) of the exact posterior's decisions on a split.

        With ``available`` the observer sees the same holes as a model: the posterior given the remaining features.

        The decision is the most probable label, or every label above 0.5 (accuracy: whole sets). Empty for ``valence``.
        For ``vad``, ``mae``, ``rmse``, ``pearson`` and ``ccc`` of the expected ratings, which are optimal for RMSE and
        correlation: no CCC of the whole population is above this correlation.

        Raises:
            ConfigError: ``available`` has an unknown modality or another number of utterances.
        """
        if protocol.task == VALENCE:
            return {}
        if protocol.task == VAD:
            expected = self.expected_ratings(protocol, split, available)
            return vad_scores(expected, self.ratings(protocol, split).mean(axis=1))
        truth = self._sample(protocol, split).labels
        return scores(truth, _decide(self.posterior(protocol, split, available), _process(protocol)))

    def ratings(self, protocol: Protocol, split: str) -> Ints:
        """(N, raters, 3) ratings of valence, arousal and dominance, 1 to 5; their mean is the target of ``vad``.

        They have a random stream of their own: other targets and the features do not depend on them.

        Raises:
            ConfigError: a multi-label protocol, which has no ratings.
        """
        identifier = _base(protocol)
        if PROCESSES[identifier].cooccurrence is not None:
            raise ConfigError(f"{identifier} has no ratings. Choose a protocol of demo with one emotion per turn.")
        if (identifier, split) not in self._ratings:
            emotion = self._sample(protocol, split).primary
            stream = [self._seed, zlib.crc32(identifier.encode()), SPLITS.index(split), zlib.crc32(b"vad")]
            self._ratings[identifier, split] = draw_ratings(emotion, np.random.default_rng(stream))
        return self._ratings[identifier, split]

    def expected_ratings(self, protocol: Protocol, split: str, available: Available | None = None) -> Floats:
        """(N, 3) expectation of the target of ``vad`` given all visible features of the conversation."""
        belief = posterior(_process(protocol), self._seen(protocol, split, available)).primary
        expected: Floats = belief @ expected_ratings()
        return expected

    def ceilings(self, protocol: Protocol, split: str) -> dict[str, dict[str, float]]:
        """Scores (see :meth:`reachable`) of exact observers who know process, speakers and flags, by observer.

        * ``majority``: always the most frequent label.
        * ``context_free``: the turn's own features.
        * ``text``, ``audio``, ``visual``: one modality, of all turns.
        * ``no_product``: everything but the product dimensions.
        * ``window``: the turns up to :data:`WINDOW` before and after.
        * ``cues_only`` (multi-label task): for each label, its cue at the turn.
        * ``full``: everything; equal to :meth:`reachable`.
        * ``complete``: also the missing modalities.
        """
        process, sample = _process(protocol), self._sample(protocol, split)
        views = {
            "context_free": View(radius=0),
            **{modality: View(modalities=(modality,)) for modality in MODALITIES},
            "no_product": View(product=False),
            "window": View(radius=WINDOW),
            "full": View(),
            "complete": View(complete=True),
        }
        beliefs = {"majority": np.tile(np.eye(C)[np.argmax(process.prior)], (len(sample.primary), 1))}
        if process.cooccurrence is not None:
            beliefs["cues_only"] = cues_only(process, sample)
        beliefs.update({name: posterior(process, sample, view).labels for name, view in views.items()})
        return {name: scores(sample.labels, _decide(belief, process)) for name, belief in beliefs.items()}

    def findings(self, protocol: Protocol) -> list[Finding]:
        """The synthetic origin, and the score of the exact posterior on dev."""
        metric = protocol.task.metric
        best = self.reachable(protocol, "dev").get(metric)
        return [
            Finding("note", "synthetic", f"generated from seed {self._seed}, not recorded: no finding about speech"),
            Finding("ok", EXACT_LEVEL, f"{metric} on dev: {best:.3f}" if best is not None else "unknown"),
        ]

    def fingerprint(self) -> str:
        """SHA-256 of the generator's version and parameters."""
        described = f"demo generation={_GENERATION} seed={self._seed} sizes={self._sizes} processes={_FINGERPRINTED}"
        return hashlib.sha256(described.encode()).hexdigest()

    def _sample(self, protocol: Protocol, split: str) -> Sample:
        if split not in SPLITS:
            raise ConfigError(f"corpus 'demo' has no split {split!r}. {did_you_mean(split, SPLITS)}")
        identifier = _base(protocol)
        if (identifier, split) not in self._samples:
            process, number = _process(protocol), SPLITS.index(split)
            rng = np.random.default_rng([self._seed, zlib.crc32(identifier.encode()), number])
            self._samples[identifier, split] = draw(process, self._sizes[split] or process.sizes[number], rng)
        return self._samples[identifier, split]

    def _seen(self, protocol: Protocol, split: str, available: Available | None) -> Sample:
        """The sample of a split without the features that ``available`` hides."""
        sample = self._sample(protocol, split)
        if available is None:
            return sample
        for name, column in available.items():
            if name not in MODALITIES:
                raise ConfigError(
                    f"available: corpus 'demo' has no modality {name!r}. {did_you_mean(name, MODALITIES)}"
                )
            if np.shape(column) != sample.primary.shape:
                raise ConfigError(
                    f"available[{name!r}] has the shape {np.shape(column)}, but {protocol.id} has "
                    f"{len(sample.primary)} utterances in {split}. Give one truth value per utterance."
                )
        hidden = np.zeros(len(sample.primary), dtype=bool)
        seen = np.stack([np.asarray(available.get(name, hidden), dtype=bool) for name in MODALITIES], axis=1)
        return replace(sample, available=sample.available & seen)

    def _drawn_conversations(self, protocol: Protocol, split: str) -> list[Conversation]:
        one_emotion = _process(protocol).cooccurrence is None
        vad = self.ratings(protocol, split).mean(axis=1) if one_emotion else None
        return _conversations(self._sample(protocol, split), split, protocol, vad)


def scores(truth: Bools, predicted: Bools) -> dict[str, float]:
    """``weighted_f1``, ``macro_f1`` (over labels in either) and ``accuracy`` (share of equal rows) of (N, C) sets."""
    right = (truth & predicted).sum(axis=0)
    support = truth.sum(axis=0)
    occurs = support + predicted.sum(axis=0) > 0
    f1 = 2 * right / np.maximum(support + predicted.sum(axis=0), 1)
    return {
        "weighted_f1": float(f1 @ support / support.sum()),
        "macro_f1": float(f1[occurs].mean()),
        "accuracy": float((truth == predicted).all(axis=1).mean()),
    }


def _base(protocol: Protocol) -> str:
    """Id of the protocol in :data:`PROCESSES`; with another first task the id ends in its name."""
    return protocol.id if protocol.id in PROCESSES else protocol.id.removesuffix(f"-{protocol.task.name}")


def _process(protocol: Protocol) -> Process:
    return PROCESSES[_base(protocol)]


def _decide(probability: Floats, process: Process) -> Bools:
    """(N, C) decisions: the most probable label, or for label sets every label above 0.5."""
    if process.cooccurrence is not None:
        return probability > 0.5
    decided: Bools = np.arange(C) == probability.argmax(axis=1)[:, None]
    return decided


def _conversations(sample: Sample, split: str, protocol: Protocol, vad: Floats | None) -> list[Conversation]:
    conversations = []
    for number, (first, length) in enumerate(zip(sample.first, sample.lengths, strict=True)):
        turns = tuple(
            Turn(
                id=f"{i:02d}",
                speaker=f"speaker-{sample.speaker[first + i]}",
                text=_placeholder(number + i),
                targets=_targets(sample.labels[first + i], i, protocol, None if vad is None else vad[first + i]),
            )
            for i in range(length)
        )
        conversations.append(Conversation(f"demo-{split}-{number:04d}", turns, synthetic=True))
    return conversations


def _targets(labels: Bools, turn: int, protocol: Protocol, vad: Floats | None) -> dict[str, Target]:
    names = [SCHEMA.labels[k] for k in np.flatnonzero(labels)]
    if vad is None:
        return {protocol.task.name: Target(frozenset(names))}
    valence = Target(None if turn % 5 == 4 else _VALENCES[names[0]])
    numbers = tuple(float(number) for number in vad)
    return {_EMOTION: Target(names[0]), VALENCE.name: valence, VAD.name: Target(numbers)}


def _placeholder(number: int) -> str:
    """Words unlike speech, depending only on the position."""
    return "[generated] " + " ".join(_WORDS[(number * step) % len(_WORDS)] for step in (1, 3, 5))
