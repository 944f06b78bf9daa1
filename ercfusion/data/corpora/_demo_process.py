"""The process generating the corpus ``demo``: parameters, layout of features, and drawing of a split.

This module is the specification; :mod:`ercfusion.data.corpora._demo_inference` inverts it exactly.

**Emotions.** Every speaker s has an emotion e_s, one of the C labels of ``demo6``, first drawn from ``prior``. At turn
i of the speaker s_i the shown emotion y_i is

* with probability ``inertia`` the speaker's e_s,
* with probability ``contagion`` the emotion of the *source*, the most recent other speaker (without one, as below),
* otherwise a new draw from ``prior``.

Then e_s becomes y_i. Without features, p(y_i = c) = prior[c] except at recall turns. With probability ``pass_floor``
the next turn is another speaker's.

**Features.** Unit Gaussian noise on every dimension except the flags, around a mean:

* *groups*: each modality separates three pairs of emotions (:data:`GROUPS_OF`); the pairings share no pair, so two
  modalities separate all six. With probability ``flat`` the means are 0 in all modalities, unmarked.
* *product*: for each of three bits a sign z = +1 or -1; text shows ``product * z``, audio ``product * z * g(y)``, with
  the emotion's code g(y) (:data:`PRODUCT_CODES`). Either one says nothing about y.
* *cues*: one dimension per label, two per modality: ``+cue / 2`` if the label is in the set, else ``-cue / 2``.
* *far evidence*: a conversation has a uniform, independent key K. The key turn, one of the first ``KEY_SPAN``, shows K
  in the text's code dimensions. At a recall turn, at least ``recall_gap`` turns later, y_i = K, only flags and noise
  are shown, and e_s does not change.
* *flags*: two dimensions of every modality, exactly 0 or 1: key turn, recall turn.

**Label sets.** The set contains y_i; every other label k is added independently with probability
``cooccurrence[y_i][k]``. At recall turns the set is {K}.

**Missing modalities.** Each (turn, modality) is missing independently with probability ``missing``; if all three would
be, one drawn uniformly is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.labels import get_schema

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SCHEMA = get_schema("demo6")
C = len(SCHEMA)
MODALITIES = ("text", "audio", "visual")
TEXT, AUDIO, VISUAL = range(3)
MAX_SPEAKERS = 3
KEY_SPAN = 4

# Layout of the vectors; all other dimensions are noise.
WIDTHS = (24, 16, 16)
GROUPS = slice(0, 8)
FLAGS = slice(8, 10)
CUES = slice(10, 12)
PRODUCT = slice(12, 15)
CODE = slice(15, 21)

GROUPS_OF: tuple[tuple[int, ...], ...] = (
    (0, 1, 2, 0, 1, 2),  # text: neutral and anger | joy and surprise | sadness and fear
    (0, 1, 0, 1, 2, 2),  # audio: neutral and sadness | joy and anger | surprise and fear
    (0, 0, 1, 2, 1, 2),  # visual: neutral and joy | sadness and surprise | anger and fear
)
"""For each modality, the group of each of the C labels in schema order."""

PRODUCT_CODES: Floats = np.array(
    [[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, -1], [1, 1, -1]], dtype=np.float64
)
"""(C, 3) of +1 and -1, all rows different: g(y)."""


def _group_centres() -> Floats:
    # Rows 1 to 3 of the 8 by 8 Hadamard matrix, at unit length: all dimensions are informative, all distances equal.
    two = np.array([[1.0, 1.0], [1.0, -1.0]])
    hadamard: Floats = np.kron(np.kron(two, two), two) / np.sqrt(8.0)
    return hadamard[1:4]


GROUP_CENTRES: Floats = np.stack([_group_centres()[list(groups)] for groups in GROUPS_OF])
"""(modality, C, 8): unit vectors; a modality's groups are orthogonal."""


@dataclass(frozen=True)
class Process:
    """Parameters of the process; strengths are in units of the noise's standard deviation.

    Args:
        inertia: Probability of keeping the emotion.
        contagion: Probability of taking the source's emotion.
        groups: Strength of groups in text, audio and visual: length of the mean vector.
        flat: Probability of a turn without groups.
        product: Strength of the product per dimension.
        cue: Distance between the two means of a cue.
        key: Strength of the key's code.
        recall_rate: Probability of recall at a late enough turn; 0 also means no key turn.
        recall_gap: Minimum number of turns between key and recall.
        missing: Probability of a missing modality.
        cooccurrence: (C, C) probabilities of further labels given the primary one; None: a single-label task.
        turns: Minimum and maximum turns per conversation, uniform.
        sizes: Conversations in train, dev and test.
        prior: (C) probabilities of a new emotion.
        three_speakers: Probability of three speakers instead of two.
        pass_floor: Probability of another speaker at the next turn.
    """

    inertia: float
    contagion: float
    groups: tuple[float, float, float]
    flat: float = 0.0
    product: float = 0.0
    cue: float = 0.0
    key: float = 0.0
    recall_rate: float = 0.0
    recall_gap: int = 1
    missing: float = 0.0
    cooccurrence: tuple[tuple[float, ...], ...] | None = None
    turns: tuple[int, int] = (10, 30)
    sizes: tuple[int, int, int] = (120, 30, 60)
    prior: tuple[float, ...] = (0.30, 0.15, 0.15, 0.14, 0.13, 0.13)
    three_speakers: float = 0.4
    pass_floor: float = 0.75

    @property
    def label_rates(self) -> Floats:
        """(C, C): probability that label k (column) is in the set, given the primary emotion (row)."""
        rates = np.zeros((C, C)) if self.cooccurrence is None else np.array(self.cooccurrence)
        np.fill_diagonal(rates, 1.0)
        return rates


@dataclass(frozen=True)
class Sample:
    """One drawn split with all variables: B conversations of N turns in all, concatenated.

    Args:
        lengths: (B) turns.
        speaker: (N) 0 to 2.
        key, recall: (N) the flags.
        primary: (N) class index y_i.
        labels: (N, C) the label set.
        features: For each modality (N, D) float32, also if missing.
        available: (N, 3) False if missing.
    """

    lengths: Ints
    speaker: Ints
    key: Bools
    recall: Bools
    primary: Ints
    labels: Bools
    features: tuple[NDArray[np.float32], ...]
    available: Bools

    @property
    def first(self) -> Ints:
        """(B) index of each conversation's first turn."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def conversation(self) -> Ints:
        """(N) index of each turn's conversation."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def sources(speaker: Ints) -> Ints:
    """(n) the most recent other speaker before each turn of a conversation; -1 without one."""
    latest = np.full(len(speaker), -1, dtype=np.int64)
    for i in range(1, len(speaker)):
        latest[i] = speaker[i - 1] if speaker[i - 1] != speaker[i] else latest[i - 1]
    return latest


def draw(process: Process, conversations: int, rng: np.random.Generator) -> Sample:
    """Draw a split of ``conversations`` conversations."""
    low, high = process.turns
    lengths = rng.integers(low, high + 1, size=conversations)
    drawn = [_draw_emotions(process, int(length), rng) for length in lengths]
    speaker, key, recall, primary, codes = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    labels = rng.random((len(primary), C)) < process.label_rates[primary]
    labels[recall] = np.eye(C, dtype=bool)[primary[recall]]
    return Sample(
        lengths=lengths,
        speaker=speaker,
        key=key,
        recall=recall,
        primary=primary,
        labels=labels,
        features=_draw_features(process, key, recall, primary, labels, codes, rng),
        available=_draw_availability(process, len(primary), rng),
    )


def _draw_emotions(process: Process, n: int, rng: np.random.Generator) -> tuple[Ints, Bools, Bools, Ints, Ints]:
    """Speakers, key flags, recall flags, emotions and K (repeated) of one conversation of n turns."""
    count = 3 if rng.random() < process.three_speakers else 2
    # The speaker moves on by 0 (stays) or by 1 .. count - 1 places.
    moves = np.where(rng.random(n) < process.pass_floor, rng.integers(1, count, size=n), 0)
    speaker = np.cumsum(moves) % count

    place = int(rng.integers(min(KEY_SPAN, n)))
    late = np.arange(n) >= place + process.recall_gap
    recall = late & (rng.random(n) < process.recall_rate)
    key = (np.arange(n) == place) & (process.recall_rate > 0)
    code = int(rng.integers(C))

    mood = rng.choice(C, size=MAX_SPEAKERS, p=process.prior)
    new = rng.choice(C, size=n, p=process.prior)
    cause = rng.random(n)
    primary = np.empty(n, dtype=np.int64)
    for i, (own, source) in enumerate(zip(speaker, sources(speaker), strict=True)):
        if recall[i]:
            primary[i] = code
            continue
        if cause[i] < process.inertia:
            primary[i] = mood[own]
        elif cause[i] < process.inertia + process.contagion and source >= 0:
            primary[i] = mood[source]
        else:
            primary[i] = new[i]
        mood[own] = primary[i]
    return speaker, key, recall, primary, np.full(n, code)


def _draw_features(
    process: Process, key: Bools, recall: Bools, primary: Ints, labels: Bools, codes: Ints, rng: np.random.Generator
) -> tuple[NDArray[np.float32], ...]:
    n = len(primary)
    signs = rng.integers(0, 2, size=(n, PRODUCT_CODES.shape[1])) * 2.0 - 1.0
    strength = np.where(rng.random(n) < process.flat, 0.0, 1.0)[:, None] * process.groups
    tables = []
    for m, width in enumerate(WIDTHS):
        mean = np.zeros((n, width))
        mean[:, GROUPS] = strength[:, m, None] * GROUP_CENTRES[m, primary]
        mean[:, CUES] = process.cue * (labels[:, 2 * m : 2 * m + 2] - 0.5)
        if m == TEXT:
            mean[:, PRODUCT] = process.product * signs
            mean[:, CODE] = process.key * np.eye(C)[codes] * key[:, None]
        if m == AUDIO:
            mean[:, PRODUCT] = process.product * signs * PRODUCT_CODES[primary]
        mean[recall] = 0.0
        values = mean + rng.standard_normal((n, width))
        values[:, FLAGS] = np.stack([key, recall], axis=1)
        tables.append(values.astype(np.float32))
    return tuple(tables)


def _draw_availability(process: Process, n: int, rng: np.random.Generator) -> Bools:
    available: Bools = rng.random((n, len(MODALITIES))) >= process.missing
    kept = rng.integers(len(MODALITIES), size=n)
    empty = ~available.any(axis=1)
    available[empty, kept[empty]] = True
    return available
