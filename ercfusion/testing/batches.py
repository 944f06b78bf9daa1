"""Random conversations, stores and batches: small, seeded, with the irregularities of real data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.batch.kinds import task_kind
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import ConversationStore

WIDTHS: Mapping[str, int] = MappingProxyType({"text": 12, "audio": 7, "visual": 5})
"""Three modalities with different widths, so that a mix-up is detected."""

LENGTHS: tuple[int, ...] = (1, 4, 9, 2, 14)
"""Unsorted lengths of conversations, from a single utterance to the longest one at the end."""

SCHEMA = LabelSchema("testing4", ("neutral", "joy", "anger", "fear"), neutral="neutral")
"""The labels of :func:`make_task`."""


def make_task(kind: str = "single_label", name: str = "emotion") -> TaskSpec:
    """A small task of a kind: four classes, or two regressed numbers between -3 and 3."""
    if task_kind(kind).scaled:
        return TaskSpec(name, kind, SCHEMA, low=1, high=3)
    if task_kind(kind).has_schema:
        return TaskSpec(name, kind, SCHEMA)
    return TaskSpec(name, kind, dimensions=("valence", "arousal"), low=-3.0, high=3.0)


def random_conversations(
    lengths: Sequence[int] = LENGTHS,
    *,
    tasks: Sequence[TaskSpec] = (),
    speakers: int = 2,
    labelled: float = 1.0,
    seed: int = 0,
) -> list[Conversation]:
    """Conversations with random targets.

    Args:
        lengths: Utterances of each conversation.
        tasks: Tasks with targets; distribution tasks get votes too.
        speakers: Speakers per conversation; the first turns introduce one each.
        labelled: Probability of a label per turn. The first turn of all has one.
        seed: Of all random numbers.
    """
    generator = np.random.default_rng(seed)
    conversations = []
    for b, length in enumerate(lengths):
        turns = []
        for t in range(length):
            speaker = t if t < speakers else int(generator.integers(speakers))
            targets = {}
            for task in tasks:
                value, votes = task.rules.random_target(task, generator)
                if (b, t) == (0, 0) or generator.random() < labelled:
                    targets[task.name] = Target(value, votes)
            turns.append(Turn(f"u{t}", f"speaker {speaker}", targets=targets))
        conversations.append(Conversation(f"conversation {b}", tuple(turns), synthetic=True))
    return conversations


def random_tables(
    conversations: Sequence[Conversation],
    *,
    widths: Mapping[str, int] = WIDTHS,
    absent: float = 0.0,
    steps: Mapping[str, int] = MappingProxyType({}),
    seed: int = 0,
) -> list[FeatureTable]:
    """Normally distributed features for every turn, with different means and scales per modality.

    Args:
        conversations: Their turns get features.
        widths: Dimensions of each modality.
        absent: Probability of a missing modality, per turn and modality. If positive, the last turn of all has none and
            the first has all.
        steps: Largest number of steps T of each modality with sequence features; the last turn has none, the first the
            most.
        seed: Of all random numbers.
    """
    generator = np.random.default_rng([seed, 1])
    keys = [key for conversation in conversations for key in conversation.keys()]  # noqa: SIM118
    tables = []
    for number, (name, width) in enumerate(widths.items()):
        gone = generator.random(len(keys)) < absent
        if absent:
            gone[-1] = True
            gone[0] = False
        present = [key for key, missing in zip(keys, gone, strict=True) if not missing]
        offsets = None
        rows = len(present)
        if name in steps:
            counts = generator.integers(0, steps[name] + 1, len(present))
            counts[-1], counts[0] = 0, steps[name]  # in this order: a single turn has steps
            offsets = np.concatenate([[0], np.cumsum(counts)])
            rows = int(offsets[-1])
        values = generator.normal(number, 1 + number, (rows, width)).astype(np.float32)
        tables.append(FeatureTable(name, present, values, offsets))
    return tables


def random_store(
    lengths: Sequence[int] = LENGTHS,
    *,
    widths: Mapping[str, int] = WIDTHS,
    tasks: Sequence[TaskSpec] = (),
    speakers: int = 2,
    absent: float = 0.0,
    labelled: float = 1.0,
    steps: Mapping[str, int] = MappingProxyType({}),
    seed: int = 0,
) -> ConversationStore:
    """A store of random conversations and features; see :func:`random_conversations`, :func:`random_tables`."""
    conversations = random_conversations(lengths, tasks=tasks, speakers=speakers, labelled=labelled, seed=seed)
    tables = random_tables(conversations, widths=widths, absent=absent, steps=steps, seed=seed)
    return ConversationStore(conversations, tables, tasks)


def random_batch(
    lengths: Sequence[int] = LENGTHS,
    *,
    widths: Mapping[str, int] = WIDTHS,
    tasks: Sequence[TaskSpec] = (),
    speakers: int = 2,
    absent: float = 0.0,
    labelled: float = 1.0,
    steps: Mapping[str, int] = MappingProxyType({}),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ConversationBatch:
    """All conversations of a :func:`random_store` as one batch.

    Absent modalities and targets of unlabelled turns are NaN (an impossible class in a single-label task), so that any
    use of them shows.
    """
    store = random_store(
        lengths,
        widths=widths,
        tasks=tasks,
        speakers=speakers,
        absent=absent,
        labelled=labelled,
        steps=steps,
        seed=seed,
    )
    batch = store.batch(range(len(store)))
    targets = {name: _spoil_unlabelled(target) for name, target in batch.targets.items()}
    return cast(fill_absent(replace(batch, targets=targets), math.nan), dtype)


def _spoil_unlabelled(target: TaskTargets) -> TaskTargets:
    if target.value.is_floating_point():
        return replace(target, value=torch.where(target.valid[:, None], target.value, math.nan))
    return replace(target, value=torch.where(target.valid, target.value, -(10**6)))


def fill_absent(batch: ConversationBatch, content: float) -> ConversationBatch:
    """The batch with ``content`` stored for every absent or dropped modality."""
    features, sequences = dict(batch.features), dict(batch.sequences)
    for name in batch.modalities:
        present = batch.present[:, batch.column(name)]
        features[name] = torch.where(present[:, None], features[name], content)
        if name in sequences:
            rows = torch.repeat_interleave(present, sequences[name].offsets.diff())
            filled = torch.where(rows[:, None], sequences[name].values, content)
            sequences[name] = replace(sequences[name], values=filled)
    return replace(batch, features=features, sequences=sequences)


def spoil_absent(batch: ConversationBatch, contents: Sequence[float]) -> ConversationBatch:
    """:func:`fill_absent` with several contents: utterance by utterance the next one."""
    spoiled, turn = batch, torch.arange(batch.num_utterances, device=batch.device)
    for number, content in enumerate(contents):
        other = fill_absent(batch, content)
        rows = turn % len(contents) == number
        features = {
            name: torch.where(rows[:, None], other.features[name], value) for name, value in spoiled.features.items()
        }
        sequences = {}
        for name, stored in spoiled.sequences.items():
            steps = torch.repeat_interleave(rows, stored.offsets.diff())
            values = torch.where(steps[:, None], other.sequences[name].values, stored.values)
            sequences[name] = replace(stored, values=values)
        spoiled = replace(spoiled, features=features, sequences=sequences)
    return spoiled


def cast(batch: ConversationBatch, dtype: torch.dtype) -> ConversationBatch:
    """The batch with features of another floating-point type; targets keep theirs."""
    return replace(
        batch,
        features={name: value.to(dtype) for name, value in batch.features.items()},
        sequences={name: replace(stored, values=stored.values.to(dtype)) for name, stored in batch.sequences.items()},
    )


def take(batch: ConversationBatch, conversations: Sequence[int], turns: int | None = None) -> ConversationBatch:
    """Some conversations of a batch by position, in this order; with ``turns``, only the first turns of each."""
    starts = batch.offsets.tolist()
    lengths = [batch.packing.lengths[b] for b in conversations]
    if turns is not None:
        lengths = [min(turns, length) for length in lengths]
    rows = torch.cat(
        [torch.arange(starts[b], starts[b] + length) for b, length in zip(conversations, lengths, strict=True)]
    ).to(batch.device)
    return replace(
        batch,
        packing=Packing(lengths, batch.device),
        features={name: value[rows] for name, value in batch.features.items()},
        speaker=batch.speaker[rows],
        available=batch.available[rows],
        drop=None if batch.drop is None else batch.drop[rows],
        targets={
            name: TaskTargets(
                target.value[rows], target.valid[rows], None if target.votes is None else target.votes[rows]
            )
            for name, target in batch.targets.items()
        },
        sequences={name: _take_sequences(stored, rows) for name, stored in batch.sequences.items()},
        ids=tuple(batch.ids[b] for b in conversations) if batch.ids else (),
    )


def _take_sequences(stored: SequenceValues, rows: Tensor) -> SequenceValues:
    bounds = stored.offsets.tolist()
    steps = torch.cat([torch.arange(bounds[row], bounds[row + 1], device=rows.device) for row in rows.tolist()])
    counts = torch.tensor([0, *(bounds[row + 1] - bounds[row] for row in rows.tolist())], device=rows.device)
    positions = None if stored.positions is None else stored.positions[steps]
    return SequenceValues(stored.values[steps], counts.cumsum(0), positions)
