"""Twins of text corpora and of corpora with features: MELD's CSV files, EmoryNLP, CMU-MOSI, EmotionLines."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion.data.corpora.emorynlp import COLUMNS as EMORYNLP_COLUMNS
from ercfusion.data.corpora.meld import COLUMNS as MELD_COLUMNS

SIZES: Mapping[str, int] = {"train": 12, "dev": 4, "test": 5}
"""Default number of conversations by split."""

_NAMES = ("Ada", "Bruno", "Chioma", "Dilek", "Emil", "Farida")
_SURNAMES = ("Quill", "Marsh", "Okon", "Aydin", "Holm", "Rahimi")
_CUES = {
    "neutral": ("The parcel is on the shelf", "The tram leaves at nine", "It is the second door"),
    "joy": ("Wonderful, it grew three leaves", "Hooray, the kite flies", "What a lovely song"),
    "surprise": ("Really, the clock runs backwards", "Wow, a goat on the roof", "Since when do you juggle"),
    "anger": ("Enough, stop moving my tools", "You broke the loom again", "This is outrageous"),
    "sadness": ("I miss the old bakery", "The lantern went out for good", "Nobody came to the reading"),
    "fear": ("Something moved in the cellar", "Please do not open that hatch", "The bridge is shaking"),
    "disgust": ("Yuck, the soup has fur", "That smell is unbearable", "Do not put it on my plate"),
}
_TAILS = ("", ", you know", ", said the postman", " once more", ", as I told you", " today")
_MELD_SENTIMENT = {
    "neutral": "neutral",
    "joy": "positive",
    "anger": "negative",
    "sadness": "negative",
    "fear": "negative",
    "disgust": "negative",
}
_EMORYNLP_CUE = {
    "Neutral": "neutral",
    "Joyful": "joy",
    "Peaceful": "neutral",
    "Powerful": "surprise",
    "Scared": "fear",
    "Mad": "anger",
    "Sad": "sadness",
}
_VOTE_ORDER = ("neutral", "joy", "sadness", "fear", "anger", "surprise", "disgust")


def write_meld(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> Path:
    """A twin of MELD's three CSV files, each with a one-utterance dialogue and one of more than two speakers.

    Args:
        folder: Output folder.
        seed: Of all random numbers.
        sizes: Conversations by split.
    """
    chance = random.Random(f"meld {seed}")
    for split, size in sizes.items():
        rows: list[list[object]] = []
        for dialogue in range(size):
            speakers = _cast(chance, dialogue)
            clock = 60_000 * (dialogue + 1)
            for utterance in range(_length(chance, dialogue)):
                emotion = chance.choice(list(_CUES))
                sentiment = _MELD_SENTIMENT.get(emotion) or chance.choice(("positive", "negative"))
                text = _sentence(chance, emotion)
                start, clock = clock, clock + chance.randrange(800, 4000)
                times = (_time(start, ","), _time(clock, ","))
                place = (dialogue, utterance, 1 + dialogue % 3, 1 + dialogue)
                rows.append([len(rows) + 1, text, chance.choice(speakers), emotion, sentiment, *place, *times])
        header = ["Sr No.", *MELD_COLUMNS]
        _write_csv(Path(folder) / f"{split}_sent_emo.csv", [header, *rows])
    return Path(folder)


def write_emorynlp(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> Path:
    """A twin of EmoryNLP's three CSV files; the second scene has an utterance of two speakers."""
    chance = random.Random(f"emorynlp {seed}")
    for season, (split, size) in enumerate(sizes.items(), start=1):
        rows: list[list[object]] = []
        for scene in range(size):
            names = [f"{name} {_SURNAMES[_NAMES.index(name)]}" for name in _cast(chance, scene)]
            clock = 60_000 * (scene + 1)
            for utterance in range(1, 1 + _length(chance, scene)):
                emotion = chance.choice(list(_EMORYNLP_CUE))
                speakers = names[:2][::-1] if (scene, utterance) == (1, 2) else [chance.choice(names)]
                text = _sentence(chance, _EMORYNLP_CUE[emotion])
                start, clock = clock, clock + chance.randrange(800, 4000)
                place = (1 + scene % 4, utterance, season, 1 + scene // 4)
                rows.append([text, repr(speakers), emotion, *place, _time(start, ","), _time(clock, ",")])
        _write_csv(Path(folder) / f"emorynlp_{split}_final.csv", [EMORYNLP_COLUMNS, *rows])
    return Path(folder)


def write_mosi(
    folder: str | Path,
    seed: int = 0,
    videos: tuple[int, int] = (15, 5),
    widths: Mapping[str, int] | None = None,
    scores: bool = True,
) -> Path:
    """A twin of Poria's CMU-MOSI files.

    Args:
        folder, seed: As for :func:`write_meld`.
        videos: Numbers of training and of test videos.
        widths: Feature columns by folder; default: those of the release.
        scores: Whether to write ``utterances.json``.
    """
    folder = Path(folder)
    widths = widths or {"text": 100, "audio": 73, "video": 100}
    chance = random.Random(f"mosi {seed}")
    direction = {name: [chance.gauss(0, 1) for _ in range(width)] for name, width in widths.items()}
    transcripts: list[list[object]] = []
    listed: dict[str, list[dict[str, Any]]] = {}
    for part, first, count in (("train", 1, videos[0]), ("test", 63, videos[1])):
        entries = []
        for video in range(first, first + count):
            name = f"twin_{part[:2]}{video:03d}"
            for number in range(1, 1 + chance.randrange(4, 14)):
                score = round(chance.uniform(-3, 3), 1)
                entries.append({"id": f"{name}_{number}", "label": int(score >= 0), "score": score})
                text = _sentence(chance, "joy" if score >= 0 else "sadness").upper()
                transcripts.append([entries[-1]["id"], text, video, entries[-1]["label"]])
        # The release's order: positive rows first, then ids sorted as text.
        listed[part] = sorted(entries, key=lambda row: (-row["label"], row["id"]))
        for name, weights in direction.items():
            rows = [
                [*(round(row["score"] * w / 4 + chance.gauss(0, 1), 5) for w in weights), row["label"]]
                for row in listed[part]
            ]
            _write_csv(folder / name / f"{name}_{part}0.csv", rows, quote_all=True)
    _write_csv(folder / "transcripts.csv", sorted(transcripts, key=lambda row: str(row[0])), quote_all=True)
    if scores:
        (folder / "utterances.json").write_text(json.dumps(listed, indent=0), encoding="utf-8")
    return folder


def write_emotionlines(folder: str | Path, seed: int = 0, dialogues: int = 30, split: bool = False) -> Path:
    """A twin of EmotionLines' ``friends.json`` with five votes per utterance.

    Args:
        folder, seed: As for :func:`write_meld`.
        dialogues: Their number.
        split: Whether to write ``friends_{train,dev,test}.json`` instead of one file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"emotionlines {seed}")
    made = []
    for dialogue in range(dialogues):
        speakers = _cast(chance, dialogue)
        made.append([_voted(chance, speakers) for _ in range(_length(chance, dialogue) + 1)])
    edges = (0, round(0.8 * dialogues), round(0.9 * dialogues), dialogues)
    parts: dict[str, list[list[dict[str, str]]]] = {"friends.json": made}
    if split:
        parts = {
            f"friends_{name}.json": made[edges[at] : edges[at + 1]] for at, name in enumerate(("train", "dev", "test"))
        }
    for name, content in parts.items():
        (folder / name).write_text(json.dumps(content, indent=4), encoding="utf-8")
    return folder


def _voted(chance: random.Random, speakers: Sequence[str]) -> dict[str, str]:
    emotion = chance.choice(_VOTE_ORDER)
    votes = dict.fromkeys(_VOTE_ORDER, 0)
    for _ in range(5):
        votes[emotion if chance.random() < 0.6 else chance.choice(_VOTE_ORDER)] += 1
    best = max(votes, key=lambda label: votes[label])
    return {
        "speaker": chance.choice(speakers),
        # As in the real file: an apostrophe of cp1252 read as Latin-1.
        "utterance": _sentence(chance, emotion).replace("It is", "It\x92s"),
        "emotion": best if votes[best] >= 3 else "non-neutral",
        "annotation": "".join(str(votes[label]) for label in _VOTE_ORDER),
    }


def _cast(chance: random.Random, conversation: int) -> list[str]:
    # Every third conversation has more than two speakers.
    return chance.sample(_NAMES, 4 if conversation % 3 == 2 else 2)


def _length(chance: random.Random, conversation: int) -> int:
    # The first conversation of every split has one utterance, a case for models.
    return 1 if conversation == 0 else chance.randrange(4, 12)


def _sentence(chance: random.Random, emotion: str) -> str:
    return chance.choice(_CUES[emotion]) + chance.choice(_TAILS) + chance.choice((".", "!"))


def _time(milliseconds: int, mark: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{rest:03d}"


def _write_csv(path: Path, rows: Iterable[Sequence[object]], quote_all: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="\n").writerows(
            rows
        )
