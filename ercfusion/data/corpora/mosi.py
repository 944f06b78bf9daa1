"""CMU-MOSI with the utterance features of Poria et al. (ACL 2017): opinions in videos of one speaker."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion._core.schemas.reading import shown
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable
from ercfusion.data.permute import seeded_permutation
from ercfusion.data.tabular import pick, read_json, read_records, read_text

PARTS = ("train", "test")
FOLDERS: dict[str, str] = {"text": "text", "audio": "audio", "visual": "video"}
"""Modality to its folder in the release."""
WIDTHS: dict[str, int] = {"text": 100, "audio": 73, "visual": 100}
"""Widths of the release."""
TRANSCRIPTS = "transcripts.csv"
SCORES = "utterances.json"
TRAINING_VIDEOS = 62
"""Videos 1 to 62 are for training."""
DEV_SHARE = 0.2
DEV_SEED = 0
_LABELS = ("negative", "positive")
_DEV = f"the last 20 % of the training videos in a seeded order (seed {DEV_SEED})"


@dataclass(frozen=True)
class _Utterance:
    # One CSV row.
    video: str
    number: int
    label: int
    text: str
    score: float | None

    @property
    def id(self) -> str:
        return f"{self.video}_{self.number}"


class MosiCorpus(Corpus):
    """Reader of three feature CSVs per part, transcripts and, if given, sentiment scores.

    A conversation is a video, its turns sorted by the number at the end of their ids. ``utterances.json`` lists the ids
    in row order of the CSVs; without it the order is rebuilt from ``transcripts.csv`` (positive before negative, ids in
    alphabetical order), without scores. Targets: ``sentiment`` and, if known, ``sentiment_score``.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="mosi",
        title="CMU-MOSI with the features of Poria et al. 2017",
        licence="Research use only, under the terms of CMU-MOSI; no redistribution.",
        obtain=(
            "From https://github.com/soujanyaporia/contextual-utterance-level-multimodal-sentiment-analysis: "
            "transcripts.csv and, in dataset/mosi, the folders text, audio and video. The protocol mosi/score also "
            'needs utterances.json, {"train": [{"id", "label", "score"}, ...], "test": [...]} in row order, with the '
            "scores of CMU-MOSI."
        ),
        citation=(
            "Zadeh, Zellers, Pincus, Morency. MOSI: Multimodal Corpus of Sentiment Intensity. 2016. Features: Poria, "
            "Cambria, Hazarika, Majumder, Zadeh, Morency. Context-Dependent Sentiment Analysis in User-Generated "
            "Videos. ACL 2017."
        ),
        layout=(
            *(f"{folder}/{folder}_{part}0.csv" for folder in FOLDERS.values() for part in PARTS),
            TRANSCRIPTS,
            f"{SCORES} (for mosi/score)",
        ),
        counts={
            "train": {"conversations": 50, "utterances": 1131},
            "dev": {"conversations": 12, "utterances": 316},
            "test": {"conversations": 31, "utterances": 752},
        },
        known_issues=(
            "The release has no dev split; its script stops early on the last 20 % of the training videos in file "
            "order. Here dev is drawn by a fixed seed and not trained on.",
            "All positive rows of a video come before all negative ones: the row order would reveal the label.",
            "Utterances with the score 0 (65 of the training videos, 31 of the test videos) are labelled positive.",
            "32 of the 100 visual columns are constant.",
            "Text and visual vectors come from networks trained on the labels of all 62 training videos, including "
            "dev. A linear classifier reaches 98 % (text) and 92 % (visual) on train, 99 % and 91 % on dev, but 76 % "
            "and 52 % on test: dev scores are far too high, and early stopping on them means little.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        "mosi/binary": Protocol(
            id="mosi/binary",
            task=TaskSpec("sentiment", "single_label", get_schema("sentiment2"), metric="accuracy"),
            description="negative or positive (score 0 counts as positive), released test videos, accuracy",
            dev_source=_DEV,
            modalities=tuple(FOLDERS),
        ),
        "mosi/score": Protocol(
            id="mosi/score",
            task=TaskSpec("sentiment_score", "regression", dimensions=("sentiment",), low=-3.0, high=3.0, metric="mae"),
            description="sentiment from -3 to 3, released test videos, mean absolute error",
            dev_source=_DEV,
            modalities=tuple(FOLDERS),
        ),
    }

    def files(self) -> list[Path]:
        """The feature CSVs, the transcripts and, if it exists, the file of scores."""
        files = self.require([_csv(modality, part) for modality in FOLDERS for part in PARTS] + [TRANSCRIPTS])
        scores = self.root() / SCORES
        return [*files, scores] if scores.is_file() else files

    def conversations(self, protocol: Protocol) -> Splits:
        """Videos, sorted by id within each split."""
        rows = self._rows()
        if protocol.task.name == "sentiment_score" and rows["train"][0].score is None:
            raise CorpusNotFoundError(
                f"{self.card.title}: {SCORES} not found in {self.root()}, but the protocol {protocol.id} needs scores. "
                f"Add the file, or use mosi/binary.\n{self._how_to_get()}"
            )
        videos = {part: _videos(rows[part]) for part in PARTS}
        order = seeded_permutation(videos["train"], DEV_SEED)
        dev = set(order[len(order) - round(DEV_SHARE * len(order)) :])
        return {
            "train": [video for name, video in videos["train"].items() if name not in dev],
            "dev": [video for name, video in videos["train"].items() if name in dev],
            "test": list(videos["test"].values()),
        }

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """One vector per utterance: ``text``, ``audio`` and ``visual``."""
        rows = self._rows()
        keys = [(row.video, str(row.number)) for part in PARTS for row in rows[part]]
        tables = {}
        for modality in FOLDERS:
            paths = {part: self.root() / _csv(modality, part) for part in PARTS}
            parts = [_features(paths[part], rows[part]) for part in PARTS]
            if parts[0].shape[1] != parts[1].shape[1]:
                raise CorpusFormatError(
                    f"{paths['test']}: {parts[1].shape[1]} feature columns, but {paths['train'].name} has "
                    f"{parts[0].shape[1]}: they are not of one release. Get both again."
                )
            source = {"corpus": self.card.name, "files": [str(path.name) for path in paths.values()]}
            tables[modality] = FeatureTable(modality, keys, np.concatenate(parts), source=source)
        return tables

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Zero scores, scores against labels, and widths unlike the release's."""
        findings = []
        for part, rows in self._rows().items():
            scored = [row for row in rows if row.score is not None]
            if not scored:
                text = f"{part}: no {SCORES}; the order of CSV rows is rebuilt from {TRANSCRIPTS}, scores are unknown"
                findings.append(Finding("note", "scores", text))
                continue
            zero = sum(row.score == 0 for row in scored)
            findings.append(
                Finding("note", "scores", f"{part}: {zero} utterances have the score 0 and count as positive")
            )
            against = [row.id for row in scored if row.score is not None and (row.score >= 0) != (row.label == 1)]
            if against:
                text = f"{part}: {len(against)} labels contradict the score's sign (first: {against[0]})"
                findings.append(Finding("fault", "scores", text))
        # Repeated from the card, because it makes dev scores misleading.
        text = "text and visual vectors were trained on the labels of the dev videos too: dev scores are far too high"
        findings.append(Finding("note", "features", text))
        for modality, table in self.features(protocol).items():
            if table.width != WIDTHS[modality]:
                text = f"{modality} vectors have {table.width} dimensions; the release has {WIDTHS[modality]}"
                findings.append(Finding("fault", "features", text))
        return findings

    def _rows(self) -> dict[str, list[_Utterance]]:
        # Utterances of the CSV rows, by part.
        self.files()
        spoken = _transcripts(self.root() / TRANSCRIPTS)
        path = self.root() / SCORES
        return _listed(path, spoken) if path.is_file() else _rebuilt(self.root() / TRANSCRIPTS, spoken)


def _csv(modality: str, part: str) -> str:
    folder = FOLDERS[modality]
    return f"{folder}/{folder}_{part}0.csv"


def _identifier(text: str, where: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)_([0-9]{1,9})", text.strip())
    if match is None:
        raise CorpusFormatError(
            f"{where}: found the id {shown(text)}, but VIDEO_NUMBER (for example abc_12) is expected. Get it again."
        )
    return match[1], int(match[2])


def _transcripts(path: Path) -> dict[tuple[str, int], tuple[str, int, int]]:
    # (video, number) -> text, number of the video, label. The file has no header.
    spoken: dict[tuple[str, int], tuple[str, int, int]] = {}
    lines: dict[tuple[str, int], int] = {}
    numbers: dict[str, tuple[str, int]] = {}
    for line, cells in read_records(path):
        where = f"{path}, line {line}"
        if len(cells) != 4:
            raise CorpusFormatError(
                f"{where}: {len(cells)} cells, but id, text, video number and label are expected. Get the file again."
            )
        key = _identifier(cells[0], f"{where}, column 1")
        if key in spoken:
            raise CorpusFormatError(
                f"{where}: the id {cells[0]!r} is also on line {lines[key]}. Remove one of the lines."
            )
        if not re.fullmatch("[0-9]{1,9}", cells[2]):
            raise CorpusFormatError(
                f"{where}, column 3: found {shown(cells[2])}, but the video's number is expected. Get the file again."
            )
        if cells[3] not in ("0", "1"):
            raise CorpusFormatError(
                f"{where}, column 4: found {cells[3]!r}, but the label 0 or 1 is expected. Get the file again."
            )
        number, first = numbers.setdefault(key[0], (cells[2], line))
        if number != cells[2]:
            raise CorpusFormatError(
                f"{where}, column 3: the video {key[0]!r} has the number {cells[2]}, but on line {first} {number}. The "
                "number decides between training and testing. Correct it, or get the file again."
            )
        spoken[key] = (cells[1].strip(), int(cells[2]), int(cells[3]))
        lines[key] = line
    return spoken


def _listed(path: Path, spoken: Mapping[tuple[str, int], tuple[str, int, int]]) -> dict[str, list[_Utterance]]:
    content = read_json(path)
    seen: dict[tuple[str, int], str] = {}
    part_of: dict[str, tuple[str, str]] = {}
    rows: dict[str, list[_Utterance]] = {}
    for part in PARTS:
        rows[part] = []
        items: list[Any] = pick(content, part, list, path, "top level")
        if not items:
            raise CorpusFormatError(f"{path}, key {part!r}: the list is empty. Get the file again.")
        for position, item in enumerate(items):
            where = f"{part} item {position} (from 0)"
            identifier = pick(item, "id", str, path, where)
            label = pick(item, "label", int, path, where)
            score = pick(item, "score", float, path, where)
            key = _identifier(identifier, f"{path}, {where}, key 'id'")
            first = seen.setdefault(key, where)
            if first is not where:
                raise CorpusFormatError(
                    f"{path}, {where}: the id {identifier!r} is already that of {first}. Remove one."
                )
            part_before, earlier = part_of.setdefault(key[0], (part, where))
            if part_before != part:
                raise CorpusFormatError(
                    f"{path}, {where}: the video {key[0]!r} is that of {earlier} too, but belongs to one part only. "
                    "Remove it from one, or get the file again."
                )
            if key not in spoken:
                raise CorpusFormatError(
                    f"{path}, {where}: the id {identifier!r} is not in {TRANSCRIPTS}: they are not of one release. "
                    "Get both again."
                )
            if not -3.0 <= score <= 3.0:
                raise CorpusFormatError(f"{path}, {where}, key 'score': {score} is not between -3 and 3. Correct it.")
            text, _, transcribed = spoken[key]
            if label != transcribed:
                raise CorpusFormatError(
                    f"{path}, {where}, key 'label': {label}, but {TRANSCRIPTS} has {transcribed} for {identifier!r}: "
                    f"the files are not of one release. Get both again."
                )
            rows[part].append(_Utterance(*key, label, text, score))
    return rows


def _rebuilt(path: Path, spoken: Mapping[tuple[str, int], tuple[str, int, int]]) -> dict[str, list[_Utterance]]:
    rows: dict[str, list[_Utterance]] = {part: [] for part in PARTS}
    for key, (text, video, label) in spoken.items():
        rows["train" if video <= TRAINING_VIDEOS else "test"].append(_Utterance(*key, label, text, None))
    for part, utterances in rows.items():
        if not utterances:
            raise CorpusFormatError(
                f"{path}: no video belongs to {part} (numbers up to {TRAINING_VIDEOS} train, others test): the file is "
                f"cut off. Get it again."
            )
        # The release sorts ids as text ("_10" before "_2").
        utterances.sort(key=lambda row: (-row.label, row.id))
    return rows


def _videos(rows: Sequence[_Utterance]) -> dict[str, Conversation]:
    turns: dict[str, list[Turn]] = {}
    for row in sorted(rows, key=lambda row: (row.video, row.number)):
        targets = {"sentiment": Target(_LABELS[row.label])}
        if row.score is not None:
            targets["sentiment_score"] = Target(row.score)
        turns.setdefault(row.video, []).append(Turn(str(row.number), row.video, row.text, targets=targets))
    return {video: Conversation(video, tuple(spoken)) for video, spoken in turns.items()}


def _features(path: Path, rows: Sequence[_Utterance]) -> NDArray[np.float32]:
    matrix = _matrix(path)
    if len(matrix) != len(rows):
        raise CorpusFormatError(
            f"{path}: {len(matrix)} rows, but {len(rows)} utterances are listed for them: the files are not of one "
            f"release, or this one was cut off. Get it again."
        )
    wrong = np.flatnonzero(matrix[:, -1] != np.array([row.label for row in rows]))
    if len(wrong):
        first = int(wrong[0])
        raise CorpusFormatError(
            f"{path}, line {_line(path, first)}, last column: the label {matrix[first, -1]:g} is not that of "
            f"{rows[first].id!r}, {rows[first].label} ({len(wrong)} rows differ): the rows were reordered, or the "
            f"files are not of one release. Get them again."
        )
    return matrix[:, :-1].astype(np.float32)


def _matrix(path: Path) -> NDArray[np.float64]:
    text = read_text(path)
    try:
        matrix = np.loadtxt(io.StringIO(text), delimiter=",", quotechar='"', comments=None, ndmin=2)
    except ValueError as error:
        # numpy does not report the line reliably.
        _explain(path)
        raise CorpusFormatError(f"{path}: not a table of numbers ({error}). Get the file again.") from error
    if matrix.shape[1] < 2:
        raise CorpusFormatError(f"{path}: one column only, but features and a label are expected. Get the file again.")
    odd = np.argwhere(~np.isfinite(matrix))
    if len(odd):
        row, column = map(int, odd[0])
        raise CorpusFormatError(
            f"{path}, line {_line(path, row)}, column {column + 1}: {matrix[row, column]} is not a finite number "
            f"({len(odd)} such cells). Get the file again."
        )
    return matrix


def _explain(path: Path) -> None:
    width: int | None = None
    for line, cells in read_records(path):
        width = width or len(cells)
        if len(cells) != width:
            raise CorpusFormatError(
                f"{path}, line {line}: {len(cells)} cells, but the first line has {width}. Get the file again."
            )
        for column, cell in enumerate(cells):
            try:
                float(cell)
            except ValueError as error:
                raise CorpusFormatError(
                    f"{path}, line {line}, column {column + 1}: found {cell!r}, but a number is expected. Get the file "
                    f"again."
                ) from error


def _line(path: Path, row: int) -> int:
    return next(line for position, (line, _) in enumerate(read_records(path)) if position == row)
