"""SemEval-2025 Task 11 (BRIGHTER): sentences in many languages with sets of emotions, or with their intensities."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.tabular import Row, check_unique, read_records, read_table

SCHEMA = get_schema("semeval6")
"""All labels; some languages have five."""
TRACKS: Mapping[str, str] = {"a": "track_a", "b": "track_b"}
"""Track to folder."""
TRACK_A = (
    *("afr", "amh", "arq", "ary", "chn", "deu", "eng", "esp", "hau", "hin", "ibo", "kin", "mar", "orm", "pcm"),
    *("ptbr", "ptmz", "ron", "rus", "som", "sun", "swa", "swe", "tat", "tir", "ukr", "vmw", "yor"),
)
"""Languages of track A with training data, by the release's codes."""
TRACK_B = ("amh", "arq", "chn", "deu", "eng", "esp", "hau", "ptbr", "ron", "rus", "ukr")
"""Languages of track B."""
INTENSITIES = (1, 3)
"""Scale of track B for emotions that are present; 0 is absent."""
LEAST_LABELS = 3
_ROOTS = ("", "semeval-2025-task11-dataset")
_TEXT = ("id", "text")
_NO_SPEAKER = "writer"


class SemEval2025Corpus(Corpus):
    """Reader of the released files ``track_a/SPLIT/LANG.csv`` and ``track_b/SPLIT/LANG.csv`` of one language.

    The folder ``semeval-2025-task11-dataset`` may be the raw folder or one of its folders. Every sentence is a
    conversation of one turn, named after its id. Labels are the columns of the language's training file, in upper or
    lower case: English has no disgust, Afrikaans no surprise. A sentence without any number is not labelled.

    Targets: ``emotions`` (track A) or ``intensities`` (track B).

    Args:
        language: Language by the release's code, such as ``eng`` or ``ptbr``.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="semeval2025",
        title="SemEval-2025 Task 11 (BRIGHTER): text-based emotion detection",
        licence="CC BY 4.0 for BRIGHTER's annotations; Amharic, Oromo, Somali and Tigrinya as in their own paper.",
        obtain=(
            "Download the folder task-dataset/semeval-2025-task11-dataset of "
            "https://github.com/emotion-analysis-project/SemEval2025-Task11."
        ),
        citation=(
            "Muhammad et al. BRIGHTER: BRIdging the Gap in Human-Annotated Textual Emotion Recognition Datasets for 28 "
            "Languages. ACL 2025. Muhammad et al. SemEval-2025 Task 11: Bridging the Gap in Text-Based Emotion "
            "Detection. SemEval 2025."
        ),
        layout=tuple(f"{folder}/{split}/LANG.csv" for folder in TRACKS.values() for split in SPLITS),
        known_issues=(
            "The card has no counts: the reader was tested on generated files only.",
            "Single sentences: context and speakers carry no information.",
            "The two tracks of a language have different ids and may have different sentences.",
            "Languages of track C without training data (ind, jav, xho, zul) have no protocol.",
            "Per-annotator files differ between languages and have no ids; they are not read.",
            "Early copies of the test files have no labels: such a split has predictions only.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {}

    def __init__(self, raw: str | os.PathLike[str] | None = None, *, language: str = "eng") -> None:
        super().__init__(raw)
        if language not in TRACK_A:
            raise ConfigError(
                f"data.options.language={language}: {self.card.title} has no such language with training data. "
                f"{did_you_mean(language, TRACK_A)}"
            )
        self.language = language
        schemas = {}
        for track in TRACKS:
            try:
                schemas[track] = self._schema(track)
            except (CorpusNotFoundError, CorpusFormatError):
                continue  # raised with full advice when the conversations are requested
        self.protocols = _protocols(language, schemas)  # type: ignore[misc]

    def protocol(self, identifier: str | None = None) -> Protocol:
        """A protocol of the language; see :meth:`ercfusion.data.corpus.Corpus.protocol`.

        Raises:
            ConfigError: unknown protocol, or one of another language.
        """
        wanted = (identifier or "").rpartition("/")[2].removesuffix("-intensity")
        if wanted in TRACK_A and wanted != self.language:
            raise ConfigError(
                f"{identifier} is another language than data.options.language={self.language}. Set "
                f"data.options.language={wanted}."
            )
        return super().protocol(identifier)

    def files(self) -> list[Path]:
        """The language's files of both tracks, as far as they exist; track A or B is complete."""
        paths = [path for track in TRACKS for path in self._files(track)]
        if not paths:
            self.require([f"{TRACKS['a']}/{split}/{self.language}.csv" for split in SPLITS])
        return paths

    def conversations(self, protocol: Protocol) -> Splits:
        """The sentences in file order."""
        track = "b" if protocol.id.endswith("-intensity") else "a"
        paths = self._files(track)
        if not paths:
            paths = self.require([f"{TRACKS[track]}/{split}/{self.language}.csv" for split in SPLITS])
        schema = self._schema(track)
        return {split: _read(path, schema, track) for split, path in zip(SPLITS, paths, strict=True)}

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Labels that the language lacks."""
        assert protocol.task.schema is not None
        lacking = [label for label in SCHEMA.labels if label not in protocol.task.schema]
        if not lacking:
            return []
        text = f"{self.language} has no {' and no '.join(lacking)}: {len(protocol.task.schema)} labels"
        return [Finding("note", "labels", text)]

    def _files(self, track: str) -> list[Path]:
        """The three files of a track; empty unless all exist."""
        root = self.root()
        for place in _ROOTS:
            paths = [root / place / TRACKS[track] / split / f"{self.language}.csv" for split in SPLITS]
            if all(path.is_file() for path in paths):
                return paths
        return []

    def _schema(self, track: str) -> LabelSchema:
        """The labels of the language's training file."""
        paths = self._files(track)
        if not paths:
            return SCHEMA
        _, header = next(iter(read_records(paths[0])))
        columns = {column.strip().lower() for column in header}
        return _reduced([label for label in SCHEMA.labels if label in columns], paths[0])


def _reduced(labels: Sequence[str], path: Path) -> LabelSchema:
    if tuple(labels) == SCHEMA.labels:
        return SCHEMA
    if len(labels) < LEAST_LABELS:
        raise CorpusFormatError(
            f"{path}, line 1: the columns {', '.join(SCHEMA.labels)} are expected, one may be missing. Get the file "
            "again from the release."
        )
    lacking = [label for label in SCHEMA.labels if label not in labels]
    return LabelSchema(f"{SCHEMA.name}-without-{'-'.join(lacking)}", tuple(labels))


def _protocols(language: str, schemas: Mapping[str, LabelSchema]) -> dict[str, Protocol]:
    low, high = INTENSITIES
    tasks = {
        "a": (language, TaskSpec("emotions", "multi_label", schemas.get("a", SCHEMA), metric="macro_f1")),
        "b": (
            f"{language}-intensity",
            TaskSpec("intensities", "intensity", schemas.get("b", SCHEMA), low=low, high=high),
        ),
    }
    descriptions = {"a": "track A: sets of emotions, macro F1", "b": "track B: intensities 0 to 3, mean Pearson"}
    return {
        f"semeval2025/{name}": Protocol(
            id=f"semeval2025/{name}",
            task=task,
            description=f"{descriptions[track]}, language {language}",
            dev_source=f"{TRACKS[track]}/dev/{language}.csv of the release",
            modalities=("text",),
        )
        for track, (name, task) in tasks.items()
        if track == "a" or language in TRACK_B
    }


SemEval2025Corpus.protocols = _protocols("eng", {})


def _read(path: Path, schema: LabelSchema, track: str) -> list[Conversation]:
    _, header = next(iter(read_records(path)))
    columns = {column.strip().lower(): column for column in header}
    wanted = [columns.get(name, name) for name in (*_TEXT, *schema.labels)]
    rows = read_table(path, wanted)
    extra = [label for label in SCHEMA.labels if label in columns and label not in schema]
    if extra:
        raise CorpusFormatError(
            f"{path}, line 1: the column {extra[0]!r} is not in the training file of the language. Get all files"
            " again, from one release."
        )
    check_unique(rows, lambda row: row[wanted[0]].strip(), (wanted[0],))
    cells = dict(zip(schema.labels, wanted[len(_TEXT) :], strict=True))
    return [_conversation(row, wanted, cells, track) for row in rows]


def _conversation(row: Row, wanted: Sequence[str], cells: Mapping[str, str], track: str) -> Conversation:
    name = row.text(wanted[0])
    filled = [column for column in cells.values() if row[column].strip()]
    target: Target
    if not filled:
        target = Target(None)
    elif len(filled) < len(cells):
        missing = next(column for column in cells.values() if column not in filled)
        row.fail(missing, f"the cell is empty, but {filled[0]} is not. Get the file again from the release.")
    else:
        numbers = {label: row.number(column) for label, column in cells.items()}
        most = 1 if track == "a" else INTENSITIES[1]
        for label, number in numbers.items():
            if number not in range(most + 1):
                row.fail(cells[label], f"found {number:g}, but 0 to {most} is expected. Correct the cell.")
        active = {label: int(number) for label, number in numbers.items() if number}
        target = Target(frozenset(active) if track == "a" else active)
    task = "emotions" if track == "a" else "intensities"
    turn = Turn(id="0", speaker=_NO_SPEAKER, text=row[wanted[1]].strip() or None, targets={task: target})
    return Conversation(name, (turn,))
