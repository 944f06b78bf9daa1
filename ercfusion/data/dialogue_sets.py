"""Dialogues as sets of emotions: a data view with scenes and speakers as the units of prediction.

Source of the idea: M. Srivastava, A. K. Singh, M. Tapaswi, "How you feelin'? Learning Emotions and Mental States in
Movie Scenes", CVPR 2023 (EmoTx), which predicts the labels of a movie scene and of each character. Dialogues in the
place of scenes, and speakers in the place of characters, are our reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.features import FeatureTable, Key

SCENE = "scene"
"""Turn id and speaker of the entity with all utterances of a dialogue."""
SPEAKER = "speaker/"
"""Prefix of the turn ids and the speakers of the other entities."""


@dataclass(frozen=True)
class DialogueSets:
    """The view: each dialogue becomes one conversation whose turns are entities.

    The first entity is the scene, with all utterances; then each speaker follows in order of first appearance. Their
    turn ids are ``scene`` and ``speaker/NAME``. An entity has

    - as features of each modality the sequence of its utterances' vectors, one step per utterance with the modality; a
      modality with a sequence per utterance contributes all its steps, in order. Without any step the modality is
      absent;
    - as target the set of labels over its utterances. An unlabelled utterance contributes nothing, and an entity
      without a labelled utterance is not labelled.

    Args:
        sources: Name of the utterances' task (single labels or label sets) by name of the entities' multi-label task.
        entities: ``scene``, ``speakers`` or ``both``.
        steps: Features of the first ``steps`` utterances of an entity only; None for all. Targets cover all utterances.
    """

    sources: Mapping[str, str]
    entities: Literal["scene", "speakers", "both"] = "both"
    steps: int | None = None

    def members(self, conversation: Conversation) -> Iterator[tuple[str, list[Turn]]]:
        """Turn id and utterances of each entity, in order."""
        if self.entities != "speakers":
            yield SCENE, list(conversation.turns)
        if self.entities != "scene":
            for name in conversation.speakers:
                yield f"{SPEAKER}{name}", [turn for turn in conversation.turns if turn.speaker == name]

    def conversations(self, splits: Mapping[str, Sequence[Conversation]]) -> dict[str, list[Conversation]]:
        """The entities of every dialogue, by split.

        Raises:
            TypeError: a target is neither a label nor a set of labels.
        """
        return {split: [self._entities(one) for one in part] for split, part in splits.items()}

    def tables(
        self, splits: Mapping[str, Sequence[Conversation]], tables: Sequence[FeatureTable]
    ) -> list[FeatureTable]:
        """Sequence-level tables of the entities from the tables of the utterances.

        Args:
            splits: The dialogues, before :meth:`conversations`.
            tables: Features of utterances, of either level.
        """
        members = {
            (one.id, name): [(one.id, turn.id) for turn in turns[: self.steps]]
            for part in splits.values()
            for one in part
            for name, turns in self.members(one)
        }
        return [_joined(table, members) for table in tables]

    def _entities(self, conversation: Conversation) -> Conversation:
        turns = (
            Turn(name, name, targets={task: self._target(turns, source) for task, source in self.sources.items()})
            for name, turns in self.members(conversation)
        )
        return replace(conversation, turns=tuple(turns))

    def _target(self, turns: Sequence[Turn], source: str) -> Target:
        labels: set[str] = set()
        labelled = False
        for turn in turns:
            value = turn.targets[source].value if source in turn.targets else None
            if isinstance(value, str):
                labels.add(value)
            elif isinstance(value, frozenset):
                labels |= value
            elif value is not None:
                raise TypeError(
                    f"target {source!r} of turn {turn.id!r} is neither a label nor a set of labels: {value!r}"
                )
            labelled |= value is not None
        return Target(frozenset(labels) if labelled else None)


def _joined(table: FeatureTable, members: Mapping[Key, Sequence[Key]]) -> FeatureTable:
    # One group of rows per entity: the rows of its utterances, in order.
    keys: list[Key] = []
    parts: list[np.ndarray] = []
    for entity, turns in members.items():
        groups = table.rows(turns)
        groups = groups[groups >= 0]
        if table.offsets is None:
            rows = groups
        else:
            spans = [np.arange(table.offsets[group], table.offsets[group + 1]) for group in groups]
            rows = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
        if len(rows):
            keys.append(entity)
            parts.append(rows)
    index = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
    return FeatureTable(table.modality, keys, table.values[index], offsets, {**table.source, "view": "dialogue sets"})
