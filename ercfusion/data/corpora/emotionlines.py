"""EmotionLines (Friends): utterances labelled by five people each, with released votes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import RULES, majority
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits, drawn_splits
from ercfusion.data.tabular import pick, read_json
from ercfusion.data.vote_targets import vote_findings, vote_targets, vote_task

WHOLE = "friends.json"
SPLIT_FILES: dict[str, str] = {split: f"friends_{split}.json" for split in SPLITS}
SCHEMA = get_schema("emotionlines7")
"""Labels in the order of the digits in ``annotation``."""
VOTERS = 5
NO_MAJORITY = "non-neutral"
SPLIT_SEED = 0
_RELEASED = "emotion"
_RULES: Mapping[str, str] = {
    "emotion_plurality": "plurality",
    "emotion_distribution": "distribution",
    "emotion_smoothed": "smoothed",
    "emotions": "at_least_two",
    "emotions_all": "all_inclusive",
}
# Targets computed from the votes, by the rule.
_TASKS: Mapping[str, TaskSpec] = {
    _RELEASED: vote_task(_RELEASED, "majority", SCHEMA),
    **{name: vote_task(name, rule, SCHEMA) for name, rule in _RULES.items()},
}
PUSH_FILE = "emotionpush.json"
PUSH_COUNTS = (1000, 14742)
"""Dialogues and utterances of EmotionPush, from its paper."""
_PUSH = "push"

# cp1252 bytes were read as Latin-1: an apostrophe is the control character U+0092. Five codes are undefined.
_C1_TO_CP1252 = {
    code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


def repair_text(text: str) -> str:
    """The text with control characters U+0080 to U+009F replaced by their meaning in cp1252."""
    return text.translate(_C1_TO_CP1252)


def _protocol(name: str, task: str, description: str) -> Protocol:
    return Protocol(
        id=f"emotionlines/{name}",
        task=_TASKS[task],
        description=description,
        dev_source=(
            f"friends_dev.json if it exists; else friends.json is split 80/10/10 by dialogue, seed {SPLIT_SEED}"
        ),
        modalities=("text",),
        others=tuple(other for other in _TASKS.values() if other.name != task),
    )


def _counts(*numbers: int) -> dict[str, int]:
    return dict(zip(SCHEMA.labels, numbers, strict=True))


class EmotionLinesCorpus(Corpus):
    """Reader of ``friends.json`` (split 80/10/10 by a fixed seed), or of ``friends_{train,dev,test}.json``.

    Conversations are called ``friends/12`` or ``train/12``, and turns, after their position. EmotionPush (chats) has
    the same format: ``emotionpush.json``, or another file recognised by its counts or its speakers (numbers), gives
    conversations ``push/12`` and protocols ``emotionlines/push-majority`` and so on.

    Targets under every protocol: ``emotion`` (the released majority label), and by the rules of
    :mod:`ercfusion.batch.votes` ``emotion_plurality``, ``emotion_distribution``, ``emotion_smoothed``, ``emotions`` (at
    least two votes) and ``emotions_all`` (all-inclusive; with five votes for seven labels every label with a vote).
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="emotionlines",
        title="EmotionLines, Friends part (as in EmotionX 2019)",
        licence="Research use only; no redistribution.",
        obtain=(
            "Ask the authors (http://doraemon.iis.sinica.edu.tw/emotionlines) for the Friends data with the votes, "
            "friends.json."
        ),
        citation=(
            "Hsu, Chen, Kuo, Huang, Ku. EmotionLines: An Emotion Corpus of Multi-Party Conversations. LREC 2018."
        ),
        layout=(WHOLE,),
        counts={
            "train": {"conversations": 800, "utterances": 11593},
            "dev": {"conversations": 100, "utterances": 1474},
            "test": {"conversations": 100, "utterances": 1436},
        },
        labels={
            "emotionlines/majority": {
                "train": _counts(5203, 1386, 393, 200, 606, 1334, 264),
                "dev": _counts(680, 183, 63, 19, 71, 154, 26),
                "test": _counts(647, 141, 42, 27, 82, 169, 41),
            },
            "emotionlines/multilabel": {
                "train": _counts(6975, 2229, 834, 584, 1201, 2412, 774),
                "dev": _counts(925, 276, 112, 61, 148, 283, 96),
                "test": _counts(887, 248, 107, 67, 169, 306, 101),
            },
            "emotionlines/plurality": {
                "train": _counts(5480, 1473, 465, 261, 737, 1486, 348),
                "dev": _counts(726, 193, 68, 21, 86, 171, 38),
                "test": _counts(683, 152, 50, 33, 103, 187, 51),
            },
            "emotionlines/all-inclusive": {
                "train": _counts(8946, 3815, 1979, 1780, 2512, 4599, 2253),
                "dev": _counts(1180, 482, 275, 215, 310, 536, 274),
                "test": _counts(1136, 457, 248, 205, 340, 576, 310),
            },
        },
        known_issues=(
            "1,000 dialogues, 14,503 utterances, five votes each; 2,772 utterances have no majority ('non-neutral') "
            "and no single label.",
            "friends.json has no official split: results are comparable only under the same seed of this library.",
            "cp1252 characters are stored as control characters; the reader repairs them.",
            "MELD was made from the same dialogues: do not train on one and test on the other.",
        ),
        related={
            "meld": "MELD was made from the Friends dialogues of EmotionLines",
            "emorynlp": "EmotionLines and EmoryNLP are both made from episodes of Friends",
        },
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        protocol.id: protocol
        for protocol in (
            _protocol("majority", _RELEASED, "the label of most voters, if at least three chose it"),
            _protocol("distribution", "emotion_distribution", "the share of votes of every label"),
            _protocol("multilabel", "emotions", "all labels chosen by at least two voters"),
            _protocol("plurality", "emotion_plurality", RULES["plurality"].description),
            _protocol("distribution-smoothed", "emotion_smoothed", RULES["smoothed"].description),
            _protocol("all-inclusive", "emotions_all", RULES["all_inclusive"].description),
        )
    }

    def __init__(self, raw: str | os.PathLike[str] | None = None) -> None:
        super().__init__(raw)
        self._push = False
        try:
            self._push = all(map(_is_push, self.files()))
        except (CorpusNotFoundError, CorpusFormatError):
            return  # raised with full advice when the conversations are requested
        if self._push:
            # Counts and protocols of Friends do not apply to the chats.
            card = replace(self.card, title="EmotionLines, EmotionPush part (chats)", counts={}, labels={})
            self.card = card  # type: ignore[misc]
            names = {old: f"{card.name}/{_PUSH}-{old.partition('/')[2]}" for old in type(self).protocols}
            own = {name: replace(type(self).protocols[old], id=name) for old, name in names.items()}
            self.protocols = own  # type: ignore[misc]

    def files(self) -> list[Path]:
        """``friends.json``, or the three files of the splits; else ``emotionpush.json``."""
        root = self.root()
        if all((root / name).is_file() for name in SPLIT_FILES.values()):
            return self.require(list(SPLIT_FILES.values()))
        if not (root / WHOLE).is_file() and (root / PUSH_FILE).is_file():
            return self.require([PUSH_FILE])
        return self.require([WHOLE])

    def notes(self, protocol: Protocol) -> list[Finding]:
        """EmotionPush in a file named after the Friends part."""
        names = [path.name for path in self.files() if path.name != PUSH_FILE]
        if not self._push or not names:
            return []
        text = f"{', '.join(names)}: by its counts or its speakers (numbers) this is EmotionPush, not Friends"
        return [Finding("note", "corpus", f"{text}; its protocols are {', '.join(self.protocols)}")]

    def conversations(self, protocol: Protocol) -> Splits:
        """Dialogues in file order within each split."""
        files = self.files()
        if len(files) == len(SPLITS):
            prefix = f"{_PUSH}-" if self._push else ""
            return {split: _read(path, f"{prefix}{split}") for split, path in zip(SPLITS, files, strict=True)}
        dialogues = _read(files[0], _PUSH if self._push else "friends")
        return drawn_splits(dialogues, SPLIT_SEED)

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Agreement of the voters, and labels contradicting the votes."""
        findings = []
        for split, dialogues in self.conversations(protocol).items():
            emotions = [turn.targets["emotion"] for dialogue in dialogues for turn in dialogue.turns]
            winners = [majority(target.votes or {}, SCHEMA.labels) for target in emotions]
            wrong = sum(target.value != winner for target, winner in zip(emotions, winners, strict=True))
            total = [sum((target.votes or {}).values()) for target in emotions]
            text = (
                f"{split}: {winners.count(None)} of {len(emotions)} utterances have no label with a majority of votes"
            )
            findings.append(Finding("note", "votes", text))
            if wrong:
                text = f"{split}: the label of {wrong} utterances is not the majority of their votes"
                findings.append(Finding("note", "votes", text))
            if unusual := sum(count != VOTERS for count in total):
                findings.append(Finding("note", "votes", f"{split}: {unusual} utterances do not have {VOTERS} votes"))
            findings += vote_findings(split, dialogues, {_RELEASED: "majority", **_RULES})
        return findings


def _is_push(path: Path) -> bool:
    # Speakers of Friends have names, those of the chats numbers.
    content = read_json(path)
    dialogues = [part for part in content if isinstance(part, list)] if isinstance(content, list) else []
    utterances = [utterance for part in dialogues for utterance in part]
    if (len(dialogues), len(utterances)) == PUSH_COUNTS:
        return True
    speakers = {str(utterance.get("speaker")).strip() for utterance in utterances if isinstance(utterance, dict)}
    return bool(speakers) and all(speaker.isdigit() for speaker in speakers)


def _read(path: Path, prefix: str) -> list[Conversation]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise CorpusFormatError(f"{path}: the top level is not a list of dialogues. Get the file again.")
    dialogues = []
    for number, utterances in enumerate(content):
        where = f"dialogue {number}"
        if not isinstance(utterances, list) or not utterances:
            raise CorpusFormatError(f"{path}, {where} (from 0): a list of utterances is expected. Get the file again.")
        turns = tuple(
            _turn(path, f"{where}, utterance {position} (from 0)", position, utterance)
            for position, utterance in enumerate(utterances)
        )
        dialogues.append(Conversation(f"{prefix}/{number}", turns))
    return dialogues


def _turn(path: Path, where: str, position: int, utterance: Any) -> Turn:
    votes = _votes(path, where, pick(utterance, "annotation", str, path, where))
    emotion = pick(utterance, "emotion", str, path, where)
    if emotion != NO_MAJORITY and emotion not in SCHEMA:
        choices = (*SCHEMA.labels, NO_MAJORITY)
        raise CorpusFormatError(
            f"{path}, {where}, key 'emotion': {emotion!r} is not a label of {SCHEMA.name}. "
            f"{did_you_mean(emotion, choices)}"
        )
    released = Target(None if emotion == NO_MAJORITY else SCHEMA.canonical(emotion), votes)
    return Turn(
        id=str(position),
        speaker=repair_text(pick(utterance, "speaker", str, path, where)).strip(),
        text=repair_text(pick(utterance, "utterance", str, path, where)).strip(),
        targets={_RELEASED: released, **vote_targets(votes, _RULES, SCHEMA.labels)},
    )


def _votes(path: Path, where: str, text: str) -> dict[str, int]:
    if len(text) != len(SCHEMA) or not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise CorpusFormatError(
            f"{path}, {where}, key 'annotation': found {text!r}, but {len(SCHEMA)} digits are expected: votes for "
            f"{', '.join(SCHEMA.labels)}. Correct the string, or get the file again."
        )
    return {label: int(count) for label, count in zip(SCHEMA.labels, text, strict=True)}
