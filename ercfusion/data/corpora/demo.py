"""The embedded corpus ``demo``: generated conversations whose exact posterior is known.

Nothing is read and nothing was recorded. Speakers, labels and features of text, audio and visual are drawn from the
process that :mod:`ercfusion.data.corpora._demo_process` specifies. That process can be inverted exactly, so the corpus
knows the score of the most probable labels on its very splits (:meth:`DemoCorpus.reachable`), and what observers reach
that do without context, without fusion, or without one kind of evidence (:meth:`DemoCorpus.ceilings`).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar

import numpy as np

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.config.options import IfGiven, Range
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora._demo_inference import View, cues_only, posterior
from ercfusion.data.corpora._demo_process import MODALITIES, SCHEMA, Bools, C, Floats, Process, Sample, draw
from ercfusion.data.corpus import EXACT_LEVEL, EXACT_NOTE, SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable

WINDOW = 10
"""Radius, in turns, of the observer ``window`` in :meth:`DemoCorpus.ceilings`."""

_GENERATION = 1  # Raise it with every change of what a seed generates: it is part of the fingerprint.
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
        "demo/missing": Process(inertia=0.6, contagion=0.2, groups=(2.0, 1.8, 1.8), missing=0.5, sizes=(160, 30, 60)),
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
"""The parameters behind every protocol."""


VALENCE = TaskSpec(
    "valence", "single_label", LabelSchema("demo3", ("neutral", "positive", "negative"), neutral="neutral")
)
"""A second task of the single-label protocols: it follows from the emotion. Every fifth turn is not labelled for it."""
_VALENCES: Mapping[str, str] = MappingProxyType(
    {
        "neutral": "neutral",
        **dict.fromkeys(("joy", "surprise"), "positive"),
        **dict.fromkeys(("sadness", "anger", "fear"), "negative"),
    }
)


def _single(identifier: str, description: str) -> Protocol:
    task = TaskSpec("emotion", "single_label", SCHEMA)
    return Protocol(identifier, task, description, "drawn as such", MODALITIES, (VALENCE,))


def _protocols(*protocols: Protocol) -> Mapping[str, Protocol]:
    return MappingProxyType({protocol.id: protocol for protocol in protocols})


_Size = Annotated[int | None, Range(1, 100_000_000), IfGiven]


class DemoCorpus(Corpus):
    """Generated conversations with six emotions and the features text (24), audio (16) and visual (16 dimensions).

    The same arguments give the same bytes. The process behind a protocol does not depend on ``seed``: two seeds are two
    samples of one population, and a model trained on one may be scored on the other. A split does not depend on the
    sizes of the others.

    Args:
        raw: Must be None: there are no files.
        seed: Which sample is drawn.
        train, dev, test: Number of conversations of the split; None takes the protocol's own.

    Raises:
        ConfigError: ``raw`` is not None.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="demo",
        title="ercfusion demo (generated, not recorded)",
        licence="Generated by ercfusion; free of third-party rights.",
        obtain="Nothing to obtain: it is generated when it is opened.",
        citation="None: it is a generated corpus and no benchmark.",
        known_issues=(
            "The turns' texts are placeholders and carry no evidence; only the features do.",
            f"{EXACT_LEVEL.capitalize()}: {EXACT_NOTE}.",
        ),
        synthetic=True,
    )
    protocols: ClassVar[Mapping[str, Protocol]] = _protocols(
        _single("demo/balanced", "Everything matters a little: context, fusion, products, far evidence, gaps."),
        _single("demo/speaker", "The features say little; speakers' inertia and contagion are decisive."),
        _single("demo/product", "Only the product of text and audio features tells the emotions apart."),
        _single("demo/far", "A third of the turns depend on a key that was shown 24 or more turns before."),
        _single("demo/missing", "Half of all (turn, modality) pairs are missing."),
        Protocol(
            "demo/multilabel",
            TaskSpec("emotions", "multi_label", SCHEMA),
            "A set of labels a turn; which labels go together matters.",
            "drawn as such",
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
            raise ConfigError(f"corpus 'demo' is generated and reads no files; leave data.raw out (found {str(raw)!r})")
        self._seed = seed
        self._sizes = dict(zip(SPLITS, (train, dev, test), strict=True))
        self._samples: dict[tuple[str, str], Sample] = {}
        self._conversations: dict[str, Splits] = {}
        self._features: dict[str, dict[str, FeatureTable]] = {}

    def conversations(self, protocol: Protocol) -> Splits:
        """Train, dev and test: lists of conversations, generated once and kept."""
        if protocol.id not in self._conversations:
            self._conversations[protocol.id] = {
                split: _conversations(self._sample(protocol, split), split, protocol) for split in SPLITS
            }
        return {split: list(part) for split, part in self._conversations[protocol.id].items()}

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """One utterance-level float32 table a modality over all splits; missing modalities have no key."""
        if protocol.id not in self._features:
            keys = [key for part in self.conversations(protocol).values() for c in part for key in c.keys()]  # noqa: SIM118
            samples = [self._sample(protocol, split) for split in SPLITS]
            source = {"corpus": "demo", "protocol": protocol.id, "fingerprint": self.fingerprint(), "synthetic": True}
            tables = {}
            for m, modality in enumerate(protocol.modalities):
                kept = np.concatenate([sample.available[:, m] for sample in samples])
                values = np.concatenate([sample.features[m] for sample in samples])[kept]
                held = [key for key, available in zip(keys, kept, strict=True) if available]
                tables[modality] = FeatureTable(modality, held, values, source=source)
            self._features[protocol.id] = tables
        return dict(self._features[protocol.id])

    def posterior(self, protocol: Protocol, split: str) -> Floats:
        """(N, C) exact probabilities of the labels given the whole conversation, turns in the conversations' order.

        For a single-label task p(y_i = c), rows summing to 1; for the multi-label task p(label c in the set).
        """
        return posterior(_process(protocol), self._sample(protocol, split)).labels

    def reachable(self, protocol: Protocol, split: str) -> dict[str, float]:
        """``weighted_f1``, ``macro_f1`` and ``accuracy`` (0 to 1) of the exact posterior's decisions on a split.

        The decision is the most probable label, for the multi-label task every label with a probability above 0.5.
        Accuracy of the multi-label task is the share of turns whose whole set is right. Of other
        tasks nothing is known.
        """
        if protocol.task == VALENCE:
            return {}
        truth = self._sample(protocol, split).labels
        return scores(truth, _decide(self.posterior(protocol, split), _process(protocol)))

    def ceilings(self, protocol: Protocol, split: str) -> dict[str, dict[str, float]]:
        """Scores (see :meth:`reachable`) of exact observers who see only a part of the evidence, by observer.

        Speakers, flags and the process are known to all of them, and all decide by their own exact posterior.

        * ``majority``: always the process's most frequent label, alone.
        * ``context_free``: the turn's own features.
        * ``text``, ``audio``, ``visual``: one modality, of all turns.
        * ``no_product``: everything but the product dimensions.
        * ``window``: the features of the turns up to :data:`WINDOW` before and after.
        * ``cues_only`` (multi-label task): for each label the turn's own cue of this label.
        * ``full``: everything; equal to :meth:`reachable`.
        * ``complete``: everything, and the missing modalities as well.
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
        """That the corpus is generated, and the score of its exact posterior on dev."""
        metric = protocol.task.metric
        best = self.reachable(protocol, "dev").get(metric)
        return [
            Finding("note", "synthetic", f"generated from seed {self._seed}, not recorded: no finding about speech"),
            Finding("ok", EXACT_LEVEL, f"{metric} on dev: {best:.3f}" if best is not None else "unknown"),
        ]

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what is generated: the generator's version and parameters."""
        described = f"demo generation={_GENERATION} seed={self._seed} sizes={self._sizes} processes={PROCESSES}"
        return hashlib.sha256(described.encode()).hexdigest()

    def _sample(self, protocol: Protocol, split: str) -> Sample:
        if split not in SPLITS:
            raise ConfigError(f"corpus 'demo' has no split {split!r}. {did_you_mean(split, SPLITS)}")
        if (protocol.id, split) not in self._samples:
            process, number = _process(protocol), SPLITS.index(split)
            rng = np.random.default_rng([self._seed, zlib.crc32(protocol.id.encode()), number])
            self._samples[protocol.id, split] = draw(process, self._sizes[split] or process.sizes[number], rng)
        return self._samples[protocol.id, split]


def scores(truth: Bools, predicted: Bools) -> dict[str, float]:
    """``weighted_f1``, ``macro_f1`` and ``accuracy`` (share of rows that are equal), 0 to 1, as the library has them.

    Args:
        truth, predicted: (N, C) label sets; one label a row in a single-label task. ``macro_f1`` is a mean over the
            labels that occur on either side.
    """
    right = (truth & predicted).sum(axis=0)
    support = truth.sum(axis=0)
    occurs = support + predicted.sum(axis=0) > 0
    f1 = 2 * right / np.maximum(support + predicted.sum(axis=0), 1)
    return {
        "weighted_f1": float(f1 @ support / support.sum()),
        "macro_f1": float(f1[occurs].mean()),
        "accuracy": float((truth == predicted).all(axis=1).mean()),
    }


def _process(protocol: Protocol) -> Process:
    return PROCESSES[protocol.id]


def _decide(probability: Floats, process: Process) -> Bools:
    """(N, C) decisions: the most probable label, or every label above 0.5 where turns have several."""
    if process.cooccurrence is not None:
        return probability > 0.5
    decided: Bools = np.arange(C) == probability.argmax(axis=1)[:, None]
    return decided


def _conversations(sample: Sample, split: str, protocol: Protocol) -> list[Conversation]:
    made = []
    for number, (first, length) in enumerate(zip(sample.first, sample.lengths, strict=True)):
        turns = tuple(
            Turn(
                id=f"{i:02d}",
                speaker=f"speaker-{sample.speaker[first + i]}",
                text=_placeholder(number + i),
                targets=_targets(sample.labels[first + i], i, protocol),
            )
            for i in range(length)
        )
        made.append(Conversation(f"demo-{split}-{number:04d}", turns, synthetic=True))
    return made


def _targets(labels: Bools, turn: int, protocol: Protocol) -> dict[str, Target]:
    names = [SCHEMA.labels[k] for k in np.flatnonzero(labels)]
    if _process(protocol).cooccurrence is not None:
        return {protocol.task.name: Target(frozenset(names))}
    valence = Target(None if turn % 5 == 4 else _VALENCES[names[0]])
    return {protocol.task.name: Target(names[0]), VALENCE.name: valence}


def _placeholder(number: int) -> str:
    """Words that nobody takes for speech and that depend on the turn's place alone."""
    return "[generated] " + " ".join(_WORDS[(number * step) % len(_WORDS)] for step in (1, 3, 5))
