"""IEMOCAP's two text files per dialogue: evaluation and transcription.

An utterance's first line has times, name, agreed label (``xxx`` without one) and means of valence, activation and
dominance. ``C-E1`` and so on are categorical raters, ``A-E1`` dimensional ones; ``C-F1`` or ``A-M1`` are actors rating
themselves, who do not count. Source: the release's notes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ercfusion._core.errors import CorpusFormatError, did_you_mean
from ercfusion.batch.labels import get_schema
from ercfusion.batch.votes import majority
from ercfusion.data.tabular import read_text

CODES = ("neu", "hap", "sad", "ang", "exc", "fru", "fea", "sur", "dis", "oth", "xxx")
"""Labels in the files; ``oth`` is another emotion, ``xxx`` no agreement."""
NO_AGREEMENT = "xxx"
OTHER = "other"
RATED: Mapping[str, str] = {
    "neutral": "neutral",
    "neutral state": "neutral",
    "happiness": "happy",
    "sadness": "sad",
    "anger": "angry",
    "excited": "excited",
    "frustration": "frustrated",
    "fear": "fear",
    "surprise": "surprise",
    "disgust": "disgust",
    "other": OTHER,
}
"""Choices of a rater, in lower case, and their labels in ``iemocap9`` (or :data:`OTHER`)."""
LOW, HIGH = 1.0, 5.0
"""Range of the raters' valence, activation and dominance."""

_DIALOGUE = re.compile(r"Ses0([1-5])[FM]_(?:impro|script)\w+")
_NUMBER = r"(\d{1,9}(?:\.\d{1,99})?)"
_HEAD = re.compile(
    rf"\[\s*{_NUMBER}\s*-\s*{_NUMBER}\s*\]\s+(\S+)\s+(\S+)\s+\[\s*{_NUMBER},\s*{_NUMBER},\s*{_NUMBER}\s*\]"
)
_SPOKEN = re.compile(rf"(\S+?)\s*\[\s*{_NUMBER}\s*-\s*{_NUMBER}\s*\]\s*:(.*)")
_RATING = re.compile(r"(C-\w+)\s*:(.*)")
_ATTRIBUTES = re.compile(
    r"A-((?![FM])\w+)\s*:\s*" + r"\s*".join(rf"{name}\s*{_NUMBER}?\s*;" for name in ("val", "act", "dom"))
)
_TURN = re.compile(r"[FM][0-9A-Za-z]+")
_AGAIN = "Get the file again from the release."


@dataclass(frozen=True)
class Utterance:
    """One utterance of an evaluation file.

    Args:
        id: For example ``F000``; the letter is the speaker's sex.
        start, end: Seconds of the dialogue's recording.
        code: One of :data:`CODES`.
        vad: Means of valence, activation and dominance, 1 to 5; None out of range.
        ballots: Labels of ``iemocap9`` or :data:`OTHER`, by categorical rater, without the actors.
        ratings: Valence, activation and dominance by rater (``E3``), without the actors; NaN if missing or outside 1 to
            5.
    """

    id: str
    start: float
    end: float
    code: str
    vad: tuple[float, float, float] | None
    ballots: tuple[frozenset[str], ...]
    ratings: Mapping[str, tuple[float, ...]]

    @property
    def votes(self) -> dict[str, int]:
        """Number of raters per label of ``iemocap9``."""
        named = Counter(label for ballot in self.ballots for label in ballot)
        return {label: named[label] for label in get_schema("iemocap9").labels}

    @property
    def majority(self) -> str | None:
        """The label (or :data:`OTHER`) named by more than half of the raters, or None."""
        named = Counter(label for ballot in self.ballots for label in ballot)
        labels = (*get_schema("iemocap9").labels, OTHER)
        return majority(named, labels, len(self.ballots)) if named else None


@dataclass(frozen=True)
class Dialogue:
    """The two files of one dialogue.

    Args:
        name: For example ``Ses01F_impro01``; the letter is the person with the markers.
        session: 1 to 5.
        utterances: In order of their start.
        texts: Words by utterance id.
        pieces: Ids with ``XX``: sounds and fragments.
        nameless: Number of lines without an utterance's name.
    """

    name: str
    session: int
    utterances: tuple[Utterance, ...]
    texts: Mapping[str, str]
    pieces: tuple[str, ...]
    nameless: int


def dialogue_files(folder: Path) -> list[Path]:
    """Files of a folder named after a dialogue, sorted by name."""
    files = [path for path in folder.glob("Ses*.txt") if path.is_file() and _DIALOGUE.fullmatch(path.stem)]
    return sorted(files, key=lambda path: path.name)


def read_dialogue(evaluation: Path, transcription: Path, session: int) -> Dialogue:
    """A dialogue from its files in ``dialog/EmoEvaluation`` and ``dialog/transcriptions``.

    Raises:
        CorpusFormatError: a line differs from the release, an utterance is repeated, or the session is another one.
    """
    name = evaluation.stem
    match = _DIALOGUE.fullmatch(name)
    if match is None or int(match[1]) != session:
        raise CorpusFormatError(
            f"{evaluation}: the name is not that of a dialogue of session {session}. Move the file to its place in the "
            f"release."
        )
    utterances = _evaluation(evaluation, name)
    texts, pieces, nameless = _transcription(transcription, name)
    ordered = tuple(sorted(utterances, key=lambda utterance: (utterance.start, utterance.end)))
    return Dialogue(name, session, ordered, texts, pieces, nameless)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise CorpusFormatError(f"{path}, line {line}: {problem}")


def _turn_id(path: Path, line: int, name: str, dialogue: str) -> str:
    identifier = name.removeprefix(f"{dialogue}_")
    if identifier == name or not _TURN.fullmatch(identifier):
        _fail(path, line, f"found {name!r}, but an utterance of {dialogue} ({dialogue}_F000) is expected. {_AGAIN}")
    return identifier


def _evaluation(path: Path, dialogue: str) -> list[Utterance]:
    heads: dict[str, tuple[int, re.Match[str]]] = {}
    ballots: dict[str, list[frozenset[str]]] = {}
    ratings: dict[str, dict[str, tuple[float, ...]]] = {}
    current: str | None = None
    for line, text in _lines(path):
        if text.startswith("%"):
            continue
        if text.startswith("["):
            match = _HEAD.fullmatch(text)
            if match is None:
                _fail(
                    path,
                    line,
                    f"found {text[:80]!r}, but [START - END], name, label and [V, A, D] are expected. {_AGAIN}",
                )
            current = _turn_id(path, line, match[3], dialogue)
            if current in heads:
                _fail(path, line, f"{match[3]!r} is also on line {heads[current][0]}. Remove one of the two.")
            if match[4] not in CODES:
                _fail(path, line, f"{match[4]!r} is not a label of IEMOCAP. {did_you_mean(match[4], CODES)}")
            heads[current] = (line, match)
            ballots[current] = []
            ratings[current] = {}
        elif text.startswith(("C-", "A-")):
            if current is None:
                _fail(path, line, f"there is a rating before the first utterance. {_AGAIN}")
            # Ratings by the actors themselves ("C-F1", "C-M1") are not votes of observers.
            if text.startswith("C-") and text[2:3] not in ("F", "M"):
                ballots[current].append(_ballot(path, line, text))
            elif (match := _ATTRIBUTES.match(text)) is not None:
                ratings[current][match[1]] = _attributes(match)
        else:
            _fail(path, line, f"found {text[:80]!r}, which is neither an utterance nor a rating. {_AGAIN}")
    if not heads:
        raise CorpusFormatError(f"{path} has no utterance: the copy was cut off. Get the file again.")
    return [
        _utterance(identifier, match, tuple(ballots[identifier]), ratings[identifier])
        for identifier, (_, match) in heads.items()
    ]


def _utterance(
    identifier: str,
    match: re.Match[str],
    ballots: tuple[frozenset[str], ...],
    ratings: Mapping[str, tuple[float, ...]],
) -> Utterance:
    valence, activation, dominance = float(match[5]), float(match[6]), float(match[7])
    inside = all(LOW <= value <= HIGH for value in (valence, activation, dominance))
    vad = (valence, activation, dominance) if inside else None
    return Utterance(identifier, float(match[1]), float(match[2]), match[4], vad, ballots, ratings)


def _attributes(match: re.Match[str]) -> tuple[float, ...]:
    # "A-E3:\tval 3; act 2; dom  ;\t()": a number may be missing. Lines of another form have none.
    numbers = [float(number) if number else math.nan for number in match.groups()[1:]]
    return tuple(number if LOW <= number <= HIGH else math.nan for number in numbers)


def _ballot(path: Path, line: int, text: str) -> frozenset[str]:
    # "C-E2:\tNeutral; Anger;\t(a remark)"; the remark is free text.
    match = _RATING.match(text)
    if match is None:
        _fail(path, line, f"found {text[:80]!r}, but a rater, a colon and labels are expected. {_AGAIN}")
    rater, rest = match.groups()
    named = [" ".join(part.lower().split()) for part in rest.partition("(")[0].split(";")]
    for label in filter(None, named):
        if label not in RATED:
            _fail(path, line, f"{rater}: {label!r} is not a choice of raters. {did_you_mean(label, RATED)}")
    return frozenset(RATED[label] for label in named if label)


def _transcription(path: Path, dialogue: str) -> tuple[dict[str, str], tuple[str, ...], int]:
    texts: dict[str, str] = {}
    places: dict[str, int] = {}
    pieces = []
    nameless = 0
    for line, text in _lines(path):
        if not text.startswith("Ses"):
            nameless += 1
            continue
        match = _SPOKEN.fullmatch(text)
        if match is None:
            _fail(path, line, f"found {text[:80]!r}, but 'NAME [START-END]: words' is expected. {_AGAIN}")
        identifier = _turn_id(path, line, match[1], dialogue)
        if "XX" in identifier:
            pieces.append(identifier)
            continue
        if identifier in texts:
            _fail(path, line, f"{match[1]!r} is also on line {places[identifier]}. Remove one of the two.")
        texts[identifier], places[identifier] = match[4].strip(), line
    return texts, tuple(pieces), nameless
