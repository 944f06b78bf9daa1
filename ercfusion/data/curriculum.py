"""Curricula: epochs use a part of the training conversations, the easy ones first.

Difficulty of a conversation (Yang, Shen, Mao, Cai: "Hybrid Curriculum Learning for Emotion Recognition in
Conversation", AAAI 2022)::

    DIF = (N_shift + N_spk) / (N_utt + N_spk)

with N_shift changes of label, N_spk speakers and N_utt utterances. In Li, Xu and Qiao (LSDGNN with improved curriculum
learning, ECAI 2025) a change a -> b counts ``weight * S(a, b) + beta`` instead of 1, with a similarity S from an
emotion wheel.

Conversations are sorted by difficulty, cut into buckets and introduced at a pace, depending only on settings, seed and
epoch. Differences from released programs:

- No change is counted to or from an unlabelled utterance (one program counts "no label" as a label).
- Sizes of buckets differ by at most one (programs cut off ``ceil(n / K)`` at a time, which may give too few buckets).
- Equally hard conversations are ordered by a hash of seed and id, not by position in a file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion._core.files import atomic_write
from ercfusion.batch.labels import LabelSchema, wheel_angles
from ercfusion.batch.task import TaskSpec
from ercfusion.config import choices
from ercfusion.config.fields import fields_of
from ercfusion.data.conversation import Conversation

_KNOWN = fields_of(choices.EmotionShift)
SCOPES = _KNOWN["scope"].known.choices or ()
PACINGS = _KNOWN["pacing"].known.choices or ()
TABLE = "curriculum.csv"

# Difficulty


def label_changes(conversation: Conversation, task: TaskSpec, scope: str = "same") -> list[tuple[str, str]]:
    """Changes of label as (label before, label after), in order.

    Args:
        conversation: With targets of ``task``; an unlabelled utterance breaks the chain.
        task: A single-label task.
        scope: ``same``: between consecutive utterances of a speaker; ``different``: between neighbouring utterances of
            different speakers; ``both``: between any neighbours.

    Raises:
        ValueError: unknown scope, or another kind of task.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}; found {scope!r}")
    if not task.rules.changes:
        raise ValueError(f"task {task.name!r} is {task.kind}: only single labels change from one to another")
    changes: list[tuple[str, str]] = []
    chains: dict[str, tuple[str, str | None]] = {}  # speaker and label of the last utterance, by chain
    for turn in conversation.turns:
        target = turn.targets.get(task.name)
        label = None
        if target is not None and target.value is not None:
            label = task.rules.label(target.value, task)
        chain = turn.speaker if scope == "same" else ""
        speaker, before = chains.get(chain, ("", None))
        chains[chain] = (turn.speaker, label)
        if before is None or label is None or before == label:
            continue
        if scope != "different" or speaker != turn.speaker:
            changes.append((before, label))
    return changes


def shift_difficulty(
    conversation: Conversation,
    task: TaskSpec,
    *,
    scope: str = "same",
    cost: Callable[[str, str], float] | None = None,
) -> float:
    """DIF of a conversation, above 0; at most 1 if no change costs more than 1.

    N_utt includes unlabelled utterances; the order of the costs does not matter. ``cost`` is that of a change between
    two labels (None: 1); for the others see :func:`label_changes`.
    """
    changes = label_changes(conversation, task, scope)
    shifts = float(len(changes)) if cost is None else math.fsum(cost(before, after) for before, after in changes)
    speakers = len(conversation.speakers)
    return (shifts + speakers) / (len(conversation) + speakers)


def wheel_similarity(schema: LabelSchema) -> NDArray[np.float64]:
    """(C, C) similarities S of the labels, from 0 to 1, symmetric, with 1 on the diagonal.

    0 between labels of opposite valence; 1 / C between neutral and any other; otherwise the cosine of their angle on
    the wheel, at least 0 (Yang et al. 2022).

    Raises:
        ConfigError: a label is not on the wheel.
    """
    angles = list(wheel_angles(schema).values())
    similarity = np.eye(len(angles))
    for row, first in enumerate(angles):
        for column, second in enumerate(angles):
            if row == column:
                continue
            if first is None or second is None:
                similarity[row, column] = 1 / len(angles)
                continue
            # In whole units of pi / 20, opposite and right angles are exact.
            angle = _folded(first - second)
            if (_folded(first) - 10) * (_folded(second) - 10) >= 0 and angle < 10:
                similarity[row, column] = math.cos(angle * math.pi / 20)
    return similarity


def _folded(angle: int) -> int:
    """Angle from the positive axis, 0 to 20, of an angle from 0 to 39 (units of pi / 20)."""
    angle %= 40
    return min(angle, 40 - angle)


def change_cost(schema: LabelSchema, weight: float = 1.0, beta: float = 0.4) -> Callable[[str, str], float]:
    """Cost of a change a -> b, ``weight * S(a, b) + beta`` (Li et al. 2025)."""
    similarity = wheel_similarity(schema)
    return lambda before, after: weight * float(similarity[schema.index(before), schema.index(after)]) + beta


# Pace


@dataclass(frozen=True)
class Curriculum:
    """Conversations in the order of their introduction, and the pace.

    With K buckets of p epochs each, and epoch t (from 0):

    - ``baby_step``: buckets 1 to t // p + 1, then all (Yang et al. 2022, with p = 1).
    - ``one_pass``: only bucket t // p + 1, then all.
    - ``linear``: the first share c(t) = c0 + (1 - c0) t / T of the conversations (Platanios et al., NAACL 2019), with
      c0 = 1 / K and T = (K - 1) p, as with baby steps.
    - ``root``: c(t) = sqrt(c0^2 + (1 - c0^2) t / T) (same source).

    Shares are rounded up to whole conversations, in integer arithmetic.

    Args:
        ids: Ids of the n conversations, in the order of the split.
        difficulty: Their difficulties.
        order: Their positions in the split, in the order of introduction.
        buckets: K, from 1 to n.
        pacing: One of :data:`PACINGS`.
        epochs_per_bucket: p, at least 1.
    """

    ids: tuple[str, ...]
    difficulty: tuple[float, ...]
    order: tuple[int, ...]
    buckets: int = 5
    pacing: str = "baby_step"
    epochs_per_bucket: int = 1

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.ids))) or len(self.difficulty) != len(self.ids):
            raise ValueError("order and difficulty must have every conversation, once")
        if not 1 <= self.buckets <= len(self.ids):
            raise ValueError(f"buckets must be from 1 to the {len(self.ids)} conversations, found {self.buckets}")
        if self.pacing not in PACINGS:
            raise ValueError(f"pacing must be one of {', '.join(PACINGS)}; found {self.pacing!r}")
        if self.epochs_per_bucket < 1:
            raise ValueError(f"epochs_per_bucket must be at least 1, found {self.epochs_per_bucket}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def full_from(self) -> int:
        """First epoch with all conversations in use."""
        if self.buckets == 1:
            return 0
        steps = self.buckets if self.pacing == "one_pass" else self.buckets - 1
        return steps * self.epochs_per_bucket

    def _bound(self, bucket: int) -> int:
        """Number of conversations in the first ``bucket`` buckets: ceil(bucket n / K)."""
        return -(-bucket * len(self) // self.buckets)

    def part(self, epoch: int) -> slice:
        """Slice of ``order`` used by an epoch; never empty."""
        n, k, p = len(self), self.buckets, self.epochs_per_bucket
        if epoch >= self.full_from:
            return slice(0, n)
        step = epoch // p
        if self.pacing == "one_pass":
            return slice(self._bound(step), self._bound(step + 1))
        if self.pacing == "baby_step":
            return slice(0, self._bound(step + 1))
        # With c0 = 1 / K and T = (K - 1) p the shares are (p + t) / (p K) and sqrt((p + (K + 1) t) / p) / K.
        if self.pacing == "linear":
            return slice(0, -(-n * (p + epoch) // (p * k)))
        square = -(-n * n * (p + (k + 1) * epoch) // (p * k * k))
        return slice(0, math.isqrt(square - 1) + 1)

    def count(self, epoch: int) -> int:
        """Number of conversations of an epoch."""
        part = self.part(epoch)
        return int(part.stop - part.start)

    def conversations(self, epoch: int) -> list[int]:
        """Positions in the split of the conversations of an epoch, ascending."""
        return sorted(self.order[self.part(epoch)])

    @property
    def fewest(self) -> int:
        """Smallest number of conversations of any epoch."""
        return min(self.count(epoch) for epoch in range(self.full_from + 1))

    @cached_property
    def bucket_of(self) -> tuple[int, ...]:
        """Bucket, from 1, of every conversation of the split."""
        buckets = [0] * len(self)
        for bucket in range(1, self.buckets + 1):
            for index in self.order[self._bound(bucket - 1) : self._bound(bucket)]:
                buckets[index] = bucket
        return tuple(buckets)

    @cached_property
    def digest(self) -> str:
        """Checksum of order, buckets and pace."""
        content = [[self.ids[index] for index in self.order], self.buckets, self.pacing, self.epochs_per_bucket]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def build_curriculum(
    settings: choices.Curriculum, conversations: Sequence[Conversation], task: TaskSpec, seed: int
) -> Curriculum | None:
    """The curriculum of the configuration group ``curriculum``; None for ``curriculum=none``.

    There are at most as many buckets as conversations; ``seed`` orders equally hard ones.

    Raises:
        ConfigError: a task that is not single-label, or labels without an emotion wheel.
    """
    if not isinstance(settings, choices.EmotionShift):
        return None
    name = settings.choice
    if not task.rules.changes or task.schema is None:
        raise ConfigError(
            f"curriculum={name} counts changes of a single label; {task.name!r} is a {task.kind} task. Use "
            "curriculum=none."
        )
    cost = None
    if isinstance(settings, choices.WeightedShift):
        try:
            cost = change_cost(task.schema, settings.weight, settings.beta)
        except ConfigError as error:
            raise ConfigError(f"curriculum={name}: {error}.") from error
    difficulties = [shift_difficulty(one, task, scope=settings.scope, cost=cost) for one in conversations]
    sign = -1 if settings.reverse else 1
    keys = [
        (sign * difficulty, hashlib.sha256(f"{seed}/{one.id}".encode()).digest())
        for difficulty, one in zip(difficulties, conversations, strict=True)
    ]
    return Curriculum(
        ids=tuple(one.id for one in conversations),
        difficulty=tuple(difficulties),
        order=tuple(sorted(range(len(keys)), key=keys.__getitem__)),
        buckets=min(settings.buckets, len(keys)),
        pacing=settings.pacing,
        epochs_per_bucket=settings.epochs_per_bucket,
    )


def write_table(path: Path, curriculum: Curriculum) -> None:
    """Conversation, difficulty and bucket (from 1) as CSV, in the order of introduction."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["conversation", "difficulty", "bucket"])
        for index in curriculum.order:
            writer.writerow([curriculum.ids[index], curriculum.difficulty[index], curriculum.bucket_of[index]])
