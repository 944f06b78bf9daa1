"""Base of corpora of single utterances: conversations of one turn, and splits by speaker."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ercfusion._core.errors import CorpusNotFoundError
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, Protocol, Splits

TASK = "emotion"
TURN = "0"
"""Id of the turn in every conversation."""

Fold = Mapping[str, tuple[str, ...]]
"""Split to its speakers."""


@dataclass(frozen=True)
class Utterance:
    """One recorded sentence.

    Args:
        id: Name of its conversation.
        speaker: Name of the speaker.
        emotion: Label name.
        text: The sentence.
    """

    id: str
    speaker: str
    emotion: str
    text: str

    def conversation(self) -> Conversation:
        """A conversation of this utterance."""
        return Conversation(self.id, (Turn(TURN, self.speaker, self.text, targets={TASK: Target(self.emotion)}),))


class SpeechCorpus(Corpus):
    """Base of corpora of unconnected utterances. Subclasses list :meth:`utterances` and define ``folds``."""

    folds: ClassVar[Mapping[str, Fold]]

    @abstractmethod
    def utterances(self) -> list[Utterance]:
        """All utterances in order of their ids."""

    def conversations(self, protocol: Protocol) -> Splits:
        """The utterances of each split's speakers, sorted by id."""
        spoken = self.utterances()
        splits: Splits = {}
        for split in SPLITS:
            speakers = self.folds[protocol.id][split]
            splits[split] = [one.conversation() for one in spoken if one.speaker in speakers]
            if not splits[split]:
                raise CorpusNotFoundError(
                    f"{self.card.title}: {self.root()} has no utterance of {', '.join(speakers)}, the speakers of "
                    f"{split} under {protocol.id}. Copy all files of the release.\n{self._how_to_get()}"
                )
        return splits


def cyclic_folds(prefix: str, groups: Mapping[str, Sequence[str]]) -> dict[str, Fold]:
    """Protocol id (``prefix`` and name of a group) to fold: the group is test, the next one dev, all others train."""
    names = list(groups)
    folds: dict[str, Fold] = {}
    for position, name in enumerate(names):
        dev = names[(position + 1) % len(names)]
        train = tuple(speaker for group in names if group not in (name, dev) for speaker in groups[group])
        folds[prefix + name] = {"train": train, "dev": tuple(groups[dev]), "test": tuple(groups[name])}
    return folds


def fold_protocols(folds: Mapping[str, Fold], schema: LabelSchema, role: str, dev_source: str) -> dict[str, Protocol]:
    """Protocols of folds, with a single label and unweighted average recall; ``role`` is a word for a speaker."""
    task = TaskSpec(TASK, "single_label", schema, metric="uar")
    protocols = {}
    for identifier, fold in folds.items():
        test, dev = (f"{role} {', '.join(fold[split])}" for split in ("test", "dev"))
        protocols[identifier] = Protocol(
            id=identifier,
            task=task,
            description=f"{len(schema)} emotions; test: {test}; dev: {dev}; unweighted average recall",
            dev_source=dev_source,
            modalities=("audio",),
        )
    return protocols


def label_counts(
    folds: Mapping[str, Fold], by_speaker: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Protocol id to split to ``{label: utterances}``, from the labels of every speaker."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for identifier, fold in folds.items():
        counts[identifier] = {}
        for split, speakers in fold.items():
            total: dict[str, int] = {}
            for speaker in speakers:
                for label, number in by_speaker[speaker].items():
                    total[label] = total.get(label, 0) + number
            counts[identifier][split] = total
    return counts


def utterance_counts(labels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """``CorpusCard.counts`` of a protocol from its label counts, with one utterance per conversation."""
    totals = {split: sum(counted.values()) for split, counted in labels.items()}
    return {split: {"conversations": total, "utterances": total} for split, total in totals.items()}


def recordings(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Files with these endings (such as ``.wav``) at any depth below ``folder``, sorted, without hidden ones."""
    wanted = tuple(endings)
    # Copying programs leave hidden twins of files ("._03a01Fa.wav").
    paths = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(path for path in paths if path.is_file())
