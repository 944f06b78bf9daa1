"""EmoryNLP: scenes of the series Friends with seven emotions from the feeling wheel."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ercfusion.batch.labels import get_schema
from ercfusion.batch.maps import map_between
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.tabular import Row, check_unique, group_rows, read_table

FILES: dict[str, str] = {split: f"emorynlp_{split}_final.csv" for split in SPLITS}
COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Scene_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "Start_Time",
    "End_Time",
)
UNKNOWN_SPEAKER = "(unknown)"
QUOTED_COUNTS: dict[str, dict[str, int]] = {
    "train": {"conversations": 659, "utterances": 7551},
    "dev": {"conversations": 89, "utterances": 954},
    "test": {"conversations": 79, "utterances": 984},
}
"""Counts quoted in papers; unconfirmed, and not part of the card."""

_TO_SENTIMENT = map_between("emorynlp7", "emorynlp3")
_SCENE = ("Season", "Episode", "Scene_ID")


def _protocol(name: str, task: str, schema: str, description: str) -> Protocol:
    return Protocol(
        id=f"emorynlp/{name}",
        task=TaskSpec(task, "single_label", get_schema(schema)),
        description=description,
        dev_source="emorynlp_dev_final.csv of the release",
        modalities=("text",),
    )


class EmoryNlpCorpus(Corpus):
    """Reader of the released files ``emorynlp_{train,dev,test}_final.csv``.

    A conversation is one scene, called ``split/s01e02c03`` after season, episode and scene. Several speakers become
    one, called by all names in alphabetical order (``Joey Tribbiani & Ross Geller``); without a name ``(unknown)``.
    Targets: ``emotion`` and ``sentiment`` (its usual grouping).
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="emorynlp",
        title="EmoryNLP emotion detection (Friends)",
        licence="Apache-2.0 for the annotations (emorynlp/emotion-detection); the transcripts come from television.",
        obtain=(
            "Download the three CSV files from https://github.com/declare-lab/MELD, folder data/emorynlp (the "
            "annotation is from https://github.com/emorynlp/emotion-detection)."
        ),
        citation=(
            "Zahiri, Choi. Emotion Detection on TV Show Transcripts with Sequence-based Convolutional Neural Networks. "
            "AAAI Workshop on Affective Content Analysis 2018."
        ),
        layout=tuple(FILES.values()),
        known_issues=(
            "The card has no counts: the reader was tested on generated files only. Papers quote 659 / 89 / 79 scenes "
            "and 7,551 / 954 / 984 utterances for these files; doctor notes differences.",
            "The original JSON release is larger (12,606 utterances): results on the two are not comparable.",
            "Several people may speak one utterance; they count as one further speaker.",
        ),
        related={
            "meld": "MELD and EmoryNLP are both made from episodes of Friends",
            "emotionlines": "EmotionLines and EmoryNLP are both made from episodes of Friends",
        },
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        protocol.id: protocol
        for protocol in (
            _protocol("7way", "emotion", "emorynlp7", "seven emotions, released split, weighted F1 over all seven"),
            _protocol("3way", "sentiment", "emorynlp3", "emotions grouped to three sentiments, released split"),
        )
    }

    def files(self) -> list[Path]:
        """The three CSV files."""
        return self.require(list(FILES.values()))

    def conversations(self, protocol: Protocol) -> Splits:
        """The scenes of the three files in order of broadcast, sorted by utterance number."""
        return {split: _scenes(split, path) for split, path in zip(SPLITS, self.files(), strict=True)}

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Counts unlike the quoted ones, and scenes in two files."""
        findings = []
        places: dict[str, list[str]] = {}
        for split, scenes in self.conversations(protocol).items():
            counts = {"conversations": len(scenes), "utterances": sum(map(len, scenes))}
            if counts != QUOTED_COUNTS[split]:
                quoted = ", ".join(f"{number} {unit}" for unit, number in QUOTED_COUNTS[split].items())
                text = (
                    f"{split}: {counts['conversations']} conversations, {counts['utterances']} utterances; papers quote"
                )
                findings.append(Finding("note", "quoted counts", f"{text} {quoted}"))
            for scene in scenes:
                places.setdefault(scene.id.partition("/")[2], []).append(split)
        if twice := {name: splits for name, splits in places.items() if len(splits) > 1}:
            name, splits = next(iter(twice.items()))
            text = f"{len(twice)} scenes are in two splits (first: {name} in {' and '.join(splits)})"
            findings.append(Finding("note", "leakage", text))
        return findings

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Turns with several speakers or none."""
        findings = []
        for split, scenes in self.conversations(protocol).items():
            speakers = [turn.speaker for scene in scenes for turn in scene.turns]
            joint = sum(" & " in speaker for speaker in speakers)
            nobody = speakers.count(UNKNOWN_SPEAKER)
            if joint or nobody:
                text = f"{split}: {joint} turns have several speakers, {nobody} none"
                findings.append(Finding("note", "joint speakers", text))
        return findings


def _scenes(split: str, path: Path) -> list[Conversation]:
    rows = read_table(path, COLUMNS)
    check_unique(
        rows,
        lambda row: (*_scene(row), row.integer("Utterance_ID")),
        (*_SCENE, "Utterance_ID"),
    )
    groups = group_rows(rows, _scene)
    return [
        Conversation(
            "{}/s{:02d}e{:02d}c{:02d}".format(split, *scene),
            tuple(map(_turn, sorted(groups[scene], key=lambda row: row.integer("Utterance_ID")))),
        )
        for scene in sorted(groups)
    ]


def _scene(row: Row) -> tuple[int, int, int]:
    return row.integer("Season"), row.integer("Episode"), row.integer("Scene_ID")


def _turn(row: Row) -> Turn:
    emotion = row.label("Emotion", get_schema("emorynlp7"))
    return Turn(
        id=str(row.integer("Utterance_ID")),
        speaker=_speaker(row),
        text=row["Utterance"].strip(),
        start=row.seconds("Start_Time") if row["Start_Time"].strip() else None,
        end=row.seconds("End_Time") if row["End_Time"].strip() else None,
        targets={"emotion": Target(emotion), "sentiment": Target(_TO_SENTIMENT(emotion))},
    )


def _speaker(row: Row) -> str:
    try:
        names = ast.literal_eval(row["Speaker"].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        row.fail(
            "Speaker",
            f"found {row['Speaker']!r}, but a list of names such as ['Rachel Green'] is expected. Correct the cell, or "
            f"get the file again from the release.",
        )
    return " & ".join(sorted(name.strip() for name in names)) or UNKNOWN_SPEAKER
