"""M3ED: dialogues of two from Chinese TV series, with one or more emotions per utterance by three annotators.

The layout is that of the repository AIM3-RUC/RUCM3ED according to public readers; tested on generated files only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion._core.schemas.reading import shown
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import RULES
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.dialogue_sets import DialogueSets
from ercfusion.data.features import Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.tabular import pick, read_json, read_text
from ercfusion.data.vote_targets import vote_findings, vote_targets, vote_task

ANNOTATION = "annotation.json"
LISTS: dict[str, str] = {
    "train": "splitInfo/movie_list_train.txt",
    "dev": "splitInfo/movie_list_val.txt",
    "test": "splitInfo/movie_list_test.txt",
}
SPEECH = "modality_speech"
"""Folder of the utterances' recordings, ``SPEAKER_UTTERANCE.wav``."""
SCHEMA = get_schema("m3ed7")
FRAMES = 25
"""Frames per second in the times HH:MM:SS:FF, from the authors' own statistics."""

_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2}):(\d{1,3})")
_ANNOTATOR = "EmoAnnotator"
_RULES: Mapping[str, str] = {
    "emotion_distribution": "distribution",
    "emotion_majority": "majority",
    "emotion_plurality": "plurality",
    "emotion_smoothed": "smoothed",
    "emotions_all": "all_inclusive",
}
_TASKS: Mapping[str, TaskSpec] = {
    "emotion": TaskSpec("emotion", "single_label", SCHEMA, metric="weighted_f1"),
    "emotions": TaskSpec("emotions", "multi_label", SCHEMA, metric="micro_f1"),
    **{name: vote_task(name, rule, SCHEMA) for name, rule in _RULES.items()},
}


@dataclass(frozen=True)
class _Utterance:
    # One utterance with its oddities.
    turn: Turn
    letter: str
    unknown: tuple[str, ...]
    bad_times: bool


@dataclass(frozen=True)
class _Dialogue:
    series: str
    name: str
    utterances: tuple[_Utterance, ...]

    def conversation(self) -> Conversation:
        return Conversation(self.name, tuple(utterance.turn for utterance in self.utterances))


def _protocol(name: str, task: str, description: str) -> Protocol:
    return Protocol(
        id=f"m3ed/{name}",
        task=_TASKS[task],
        description=description,
        dev_source=f"{LISTS['dev']} of the release",
        modalities=("text",),
        others=tuple(other for other in _TASKS.values() if other.name != task),
    )


def _dialogue(name: str, steps: int | None, description: str) -> Protocol:
    view = DialogueSets({"emotion_set": "emotions"}, "scene", steps)
    task = TaskSpec("emotion_set", "multi_label", SCHEMA, metric="micro_f1")
    return replace(_protocol(name, "emotions", description), task=task, others=(), view=view)


class M3edCorpus(Corpus):
    """Reader of ``annotation.json`` and of the three lists of series.

    Conversations (``anjia_1``) and turns (``anjia_1_1``) have the release's names. A speaker is called ``series/name``,
    or ``dialogue/A`` without different names. Times are seconds of the dialogue, or None if malformed.

    Targets, with raw votes: ``emotion`` (``final_main_emo``), ``emotions`` (``final_mul_emo``) and
    ``emotion_distribution`` (the annotators' votes). An annotator votes for each named emotion of the seven, as in the
    authors' rule. ``emotion_majority``, ``emotion_plurality``, ``emotion_smoothed`` and ``emotions_all`` are computed
    from the votes (:mod:`ercfusion.batch.votes`); a majority is one of the annotators who named an emotion. The
    dialogue protocols predict ``emotion_set``, the set of all final emotions of a dialogue
    (:class:`~ercfusion.data.dialogue_sets.DialogueSets`).
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="m3ed",
        title="M3ED (Multi-modal Multi-scene Multi-label Emotional Dialogue)",
        licence="Research use only; the recordings come from television.",
        obtain=(
            "https://github.com/AIM3-RUC/RUCM3ED: annotation.json and the folder splitInfo. Request recordings of the "
            f"utterances there; their folder {SPEECH} is needed only to extract audio features."
        ),
        citation=(
            "Zhao, Zhang, Hu, Liu, Jin, Wang, Li. M3ED: Multi-modal Multi-scene Multi-label Emotional Dialogue "
            "Database. ACL 2022."
        ),
        layout=(ANNOTATION, *LISTS.values(), f"{SPEECH}/SPEAKER_UTTERANCE.wav (for audio features)"),
        counts={
            "train": {"conversations": 685, "utterances": 17427},
            "dev": {"conversations": 126, "utterances": 2821},
            "test": {"conversations": 179, "utterances": 4201},
        },
        known_issues=(
            "Texts are Chinese: choose an encoder for Chinese (data.encoder); the default is for English.",
            "CARAT predicts one set of emotions per dialogue; its code reads the first 60 utterances, but the set "
            "covers all (m3ed/dialogue-released). Its other scores cannot be compared with those per utterance.",
            "Some recordings are reported to be empty (12 of 24,449); extraction records them as missing.",
            "Frame numbers of 25 and above occur in the release's times; they are added unchanged.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        protocol.id: protocol
        for protocol in (
            _protocol("main", "emotion", "the main emotion of seven, released split"),
            _protocol("multilabel", "emotions", "the set of final emotions, including neutral"),
            _protocol("votes", "emotion_distribution", "shares of the annotators' votes"),
            _protocol("majority", "emotion_majority", RULES["majority"].description),
            _protocol("plurality", "emotion_plurality", RULES["plurality"].description),
            _protocol("votes-smoothed", "emotion_smoothed", RULES["smoothed"].description),
            _protocol("all-inclusive", "emotions_all", RULES["all_inclusive"].description),
            _dialogue("dialogue", None, "the set of final emotions of a dialogue (CARAT's task), all utterances read"),
            _dialogue("dialogue-released", 60, "as m3ed/dialogue, but only 60 utterances are read (CARAT's code)"),
        )
    }

    def files(self) -> list[Path]:
        """``annotation.json`` and the lists of series."""
        return self.require([ANNOTATION, *LISTS.values()])

    def conversations(self, protocol: Protocol) -> Splits:
        """Dialogues of the series of each split, in file order.

        Raises:
            CorpusNotFoundError: a file is missing.
            CorpusFormatError: a final emotion is not one of the seven, a key is missing, a series is in two lists, or a
                split is empty.
        """
        return {split: [dialogue.conversation() for dialogue in part] for split, part in self._dialogues().items()}

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recording of every utterance, ``modality_speech/SPEAKER_UTTERANCE.wav`` (``audio`` only).

        Raises:
            ConfigError: ``kind`` is ``visual``; the layout of the videos is unknown.
            CorpusNotFoundError: the folder has none of the recordings.
        """
        if kind != "audio":
            return super().clips(protocol, kind)
        folder = self.root() / SPEECH
        clips = {
            (dialogue.name, utterance.turn.id): Clip(folder / f"{utterance.letter}_{utterance.turn.id}.wav")
            for part in self._dialogues().values()
            for dialogue in part
            for utterance in dialogue.utterances
        }
        if not any(clip.path.is_file() for clip in clips.values()):
            raise CorpusNotFoundError(
                f"{self.card.title}: no recording in {folder} (the first would be "
                f"{next(iter(clips.values())).path.name}). Copy the recordings, or correct the path.\n"
                f"{self._how_to_get()}"
            )
        return clips

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Unlisted series, names that do not count as votes, contradicting labels and votes, odd times."""
        listed = {series for names in self._lists().values() for series in names}
        annotated = set(read_json(self.files()[0]))
        findings = []
        for text, names in (
            ("series are in no list of splitInfo and are omitted", annotated - listed),
            (f"series of the lists are not in {ANNOTATION}", listed - annotated),
        ):
            if names:
                findings.append(Finding("note", "splits", f"{len(names)} {text} (first: {min(names)})"))
        for split, part in self._dialogues().items():
            utterances = [utterance for dialogue in part for utterance in dialogue.utterances]
            unknown = Counter(name for utterance in utterances for name in utterance.unknown)
            listing = ", ".join(f"{name!r} {count}" for name, count in unknown.most_common(5))
            counts = {
                f"answers of annotators are not votes ({listing})": sum(unknown.values()),
                "utterances have no votes": sum(
                    utterance.turn.targets["emotion"].votes == {} for utterance in utterances
                ),
                "main emotions are not in the set of final emotions": sum(map(_main_outside, utterances)),
                "main emotions were named by no annotator": sum(map(_main_unvoted, utterances)),
                "utterances have times unlike HH:MM:SS:FF": sum(utterance.bad_times for utterance in utterances),
                "utterances do not end after they start": sum(
                    turn.start is not None and turn.end is not None and turn.end <= turn.start
                    for turn in (utterance.turn for utterance in utterances)
                ),
            }
            findings += [
                Finding("note", "labels", f"{split}: {count} {text}") for text, count in counts.items() if count
            ]
            findings += vote_findings(split, (dialogue.conversation() for dialogue in part), _RULES)
        return findings

    def _lists(self) -> dict[str, list[str]]:
        lists: dict[str, list[str]] = {}
        place: dict[str, Path] = {}
        for split, path in zip(SPLITS, self.files()[1:], strict=True):
            lists[split] = []
            for number, line in enumerate(read_text(path).splitlines(), start=1):
                series = line.strip()
                if not series:
                    continue
                if series in place:
                    raise CorpusFormatError(
                        f"{path}, line {number}: the series {series!r} is already in {place[series].name}, but belongs "
                        f"to one split. Get the lists again."
                    )
                place[series] = path
                lists[split].append(series)
        return lists

    def _dialogues(self) -> dict[str, list[_Dialogue]]:
        path = self.files()[0]
        content = read_json(path)
        owners: dict[str, str] = {}
        splits: dict[str, list[_Dialogue]] = {}
        for split, listed in self._lists().items():
            splits[split] = []
            for series in content if isinstance(content, dict) else ():
                if series not in listed:
                    continue
                for name in pick(content, series, dict, path, "top level"):
                    if owners.setdefault(name, series) != series:
                        raise CorpusFormatError(
                            f"{path}, {series!r}: the dialogue {name!r} is also one of {owners[name]!r}; names of "
                            f"dialogues must differ. Get the file again."
                        )
                    dialogue = pick(content[series], name, dict, path, repr(series))
                    splits[split].append(_Dialogue(series, name, tuple(_utterances(path, series, name, dialogue))))
            if not splits[split]:
                raise CorpusFormatError(
                    f"{path}: none of the {len(listed)} series of {LISTS[split]} has dialogues: the file was cut off, "
                    f"or is not of this release. Get both again."
                )
        return splits


def _utterances(path: Path, series: str, name: str, content: dict[str, Any]) -> Iterator[_Utterance]:
    where = f"{series!r}, {name!r}"
    dialog = pick(content, "Dialog", dict, path, where)
    if not dialog:
        raise CorpusFormatError(f"{path}, {where}, key 'Dialog': there is no utterance. Get the file again.")
    for key in dialog:
        if not re.fullmatch(r".*_[0-9]{1,9}", key, re.ASCII | re.DOTALL):
            raise CorpusFormatError(
                f"{path}, {where}, key 'Dialog': found the utterance {shown(key)}, but a name ending in an underscore "
                f"and a number is expected (such as anjia_1_1). Get the file again."
            )
    speakers = _speakers(series, name, content.get("SpeakerInfo"))
    for key in sorted(dialog, key=lambda utterance: int(utterance.rsplit("_", 1)[1])):
        here = f"{where}, {key!r}"
        letter = pick(dialog[key], "Speaker", str, path, here).strip()
        labels = pick(dialog[key], "EmoAnnotation", dict, path, here)
        main, *more = _labels(path, here, labels, "final_main_emo")
        if more:
            raise CorpusFormatError(
                f"{path}, {here}, key 'final_main_emo': {1 + len(more)} emotions, but one is main. Get the file again."
            )
        votes, unknown, raters = _votes(labels)
        start, end = (_seconds(dialog[key].get(name)) for name in ("StartTime", "EndTime"))
        bad = start is None or end is None
        turn = Turn(
            id=key,
            speaker=speakers.get(letter, f"{name}/{letter}"),
            text=pick(dialog[key], "Text", str, path, here).strip() or None,
            start=None if bad else start,
            end=None if bad else end,
            targets={
                "emotion": Target(main, votes),
                "emotions": Target(frozenset(_labels(path, here, labels, "final_mul_emo")), votes),
                **vote_targets(votes, _RULES, SCHEMA.labels, raters),
            },
        )
        yield _Utterance(turn, letter, unknown, bad)


def _speakers(series: str, dialogue: str, info: object) -> dict[str, str]:
    # Letter to name; empty if names are missing or equal.
    names: dict[str, str] = {}
    for letter, person in info.items() if isinstance(info, dict) else ():
        name = person.get("Name") if isinstance(person, dict) else None
        if isinstance(name, str) and name.strip():
            names[letter] = f"{series}/{name.strip()}"
    return names if len(set(names.values())) == len(names) else {}


def _split(text: str) -> list[str]:
    # "Sad,Anger": the strongest first. Some tools write the full-width comma.
    return [part.strip() for part in re.split("[,，]", text) if part.strip()]


def _labels(path: Path, where: str, labels: dict[str, Any], key: str) -> list[str]:
    names = _split(pick(labels, key, str, path, where))
    if not names:
        raise CorpusFormatError(
            f"{path}, {where}, key {key!r}: the text is empty, but an emotion is expected. Fill it."
        )
    for label in names:
        if label.lower() not in SCHEMA:
            raise CorpusFormatError(
                f"{path}, {where}, key {key!r}: {label!r} is not a label of {SCHEMA.name}. "
                f"{did_you_mean(label.lower(), SCHEMA.labels)}"
            )
    return [SCHEMA.canonical(label.lower()) for label in names]


def _votes(labels: dict[str, Any]) -> tuple[dict[str, int], tuple[str, ...], int]:
    # Votes, answers which are none, and annotators with a vote.
    votes: Counter[str] = Counter()
    unknown: list[str] = []
    raters = 0
    for key in sorted(name for name in labels if name.startswith(_ANNOTATOR)):
        names = _split(labels[key]) if isinstance(labels[key], str) else [str(labels[key])]
        unknown += [name for name in names if name.lower() not in SCHEMA]
        # A set: repeated names are one vote.
        ballot = {SCHEMA.canonical(name.lower()) for name in names if name.lower() in SCHEMA}
        votes.update(ballot)
        raters += bool(ballot)
    return {label: votes[label] for label in SCHEMA.labels if votes[label]}, tuple(unknown), raters


def _seconds(value: object) -> float | None:
    match = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    hours, minutes, seconds, frames = map(int, match.groups())
    return (hours * 60 + minutes) * 60 + seconds + frames / FRAMES


def _main_outside(utterance: _Utterance) -> bool:
    targets = utterance.turn.targets
    final = targets["emotions"].value
    return isinstance(final, frozenset) and targets["emotion"].value not in final


def _main_unvoted(utterance: _Utterance) -> bool:
    target = utterance.turn.targets["emotion"]
    return bool(target.votes) and target.value not in (target.votes or {})
