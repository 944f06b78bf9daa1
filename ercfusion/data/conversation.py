"""Conversations of corpora: turns with speakers, texts, times and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.maps import LabelMap

TargetValue = str | float | tuple[float, ...] | frozenset[str] | Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """Target of one task at one turn.

    Args:
        value: A label name (single-label), a frozenset of names (multi-label), a map from name to probability
            (distribution) or to intensity (intensity), or a number or tuple of numbers (regression). ``None``: not
            labelled, context only.
        votes: Counts of annotators by label name.
    """

    value: TargetValue | None
    votes: Mapping[str, int] | None = None

    @property
    def valid(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def mapped(self, label_map: LabelMap) -> Target:
        """The single-label target in another schema."""
        if not isinstance(self.value, str):
            raise TypeError("only single-label targets can be mapped between schemas")
        return Target(label_map(self.value))


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Args:
        id: Unique within its conversation.
        speaker: Name; models use only its identity within the conversation.
        text: The words, if known.
        start, end: Seconds in the recording, if known.
        targets: Targets by task name.
    """

    id: str
    speaker: str
    text: str | None = None
    start: float | None = None
    end: float | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Turns in order of speech.

    Args:
        id: Unique within the corpus.
        turns: At least one.
        synthetic: Generated, not recorded.
    """

    id: str
    turns: tuple[Turn, ...]
    synthetic: bool = False

    def __post_init__(self) -> None:
        if not self.turns:
            raise CorpusFormatError(f"conversation {self.id!r} has no turns. Remove it, or add its turns.")
        ids: set[str] = set()
        for turn in self.turns:
            if turn.id in ids:
                raise CorpusFormatError(
                    f"conversation {self.id!r} has two turns with the id {turn.id!r}. Rename or remove one."
                )
            ids.add(turn.id)

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers in order of their first turn."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    def speaker_numbers(self) -> list[int]:
        """The speaker of each turn, numbered from 0 in order of first appearance."""
        number = {name: position for position, name in enumerate(self.speakers)}
        return [number[turn.speaker] for turn in self.turns]

    def keys(self) -> list[tuple[str, str]]:
        """(conversation id, turn id) of every turn."""
        return [(self.id, turn.id) for turn in self.turns]


def count_label_shifts(conversations: Sequence[Conversation], task: str, *, same_speaker: bool) -> int:
    """Number of label changes between consecutive utterances.

    With ``same_speaker``, between consecutive utterances of a speaker (as in MELD's published counts); otherwise
    between neighbours. Unlabelled turns are skipped.
    """
    shifts = 0
    for conversation in conversations:
        last: dict[str, object] = {}
        for turn in conversation.turns:
            target = turn.targets.get(task)
            if target is None or target.value is None:
                continue
            chain = turn.speaker if same_speaker else ""
            shifts += chain in last and last[chain] != target.value
            last[chain] = target.value
    return shifts
