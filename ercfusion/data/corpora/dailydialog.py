"""DailyDialog: written everyday dialogues of two, with one of seven emotions per utterance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits, drawn_splits
from ercfusion.data.tabular import read_text

SCHEMA = get_schema("dailydialog7")
"""Labels in the order of the release's numbers 0 to 6."""
PARTS: dict[str, str] = {"train": "train", "dev": "validation", "test": "test"}
"""Split to the name of its folder and files in the release."""
WHOLE = ("dialogues_text.txt", "dialogues_emotion.txt")
END = "__eou__"
"""Mark at the end of every utterance."""
SPLIT_SEED = 0
CUT_UTTERANCE = ("train", 7852, 12, 11)
"""Split, line, utterances and labels of a dialogue with an extra cut in one of two circulating texts."""
_CUT_AFTER = 5
MISMATCHES = 1
"""Accepted number of dialogues of the unsplit files with unequal numbers of labels and utterances."""


class DailyDialogCorpus(Corpus):
    """Reader of the release's split folders, or without them of its unsplit files (split 80/10/10 by a fixed seed).

    The six split files may be one folder deeper or directly in the raw folder. Conversations are called ``train/12``
    (unsplit: ``all/12``) after their line, from 0, turns after their position. Two speakers alternate:
    ``train/12/A`` and ``train/12/B``. Acts and topics are not read.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="dailydialog",
        title="DailyDialog",
        licence="CC BY-NC-SA 4.0: research only, as the release says.",
        obtain=(
            "http://yanran.li/dailydialog: extract ijcnlp_dailydialog.zip, and in it train.zip, validation.zip and "
            "test.zip; data.raw is the folder with the folders train, validation and test."
        ),
        citation=(
            "Li, Su, Shen, Li, Cao, Niu. DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset. IJCNLP 2017."
        ),
        layout=(
            *(
                f"{part}/{name}"
                for part in PARTS.values()
                for name in (f"dialogues_{part}.txt", f"dialogues_emotion_{part}.txt")
            ),
            f"or {' and '.join(WHOLE)}",
        ),
        counts={
            "train": {"conversations": 11118, "utterances": 87170},
            "dev": {"conversations": 1000, "utterances": 8069},
            "test": {"conversations": 1000, "utterances": 7740},
        },
        labels={
            "dailydialog/7way": {
                split: dict(zip(SCHEMA.labels, numbers, strict=True))
                for split, numbers in {
                    "train": (72143, 827, 303, 146, 11182, 969, 1600),
                    "dev": (7108, 77, 3, 11, 684, 79, 107),
                    "test": (6321, 118, 47, 17, 1019, 102, 116),
                }.items()
            }
        },
        known_issues=(
            "83 % of the utterances are neutral ('no emotion'); the field's score is micro F1 without neutral.",
            "Many dialogues occur more than once, also in two splits (Wen et al., LREC 2022): test scores are too "
            "high. doctor reports a fault; the reader removes nothing.",
            "Speakers are not released; they are assumed to alternate.",
            "One of two circulating train texts has 12 utterances for the 11 labels of line 7852; utterances 5 and 6 "
            "are read as one, which gives the published counts.",
            "Results on the unsplit files are not comparable with those on the released split.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        "dailydialog/7way": Protocol(
            id="dailydialog/7way",
            task=TaskSpec("emotion", "single_label", SCHEMA, metric="micro_f1_without_neutral"),
            description="seven emotions, released split, micro F1 over the six that are not neutral",
            dev_source=f"the release's folder validation; else all split 80/10/10 by dialogue, seed {SPLIT_SEED}",
            modalities=("text",),
        )
    }

    def __init__(self, raw: str | os.PathLike[str] | None = None) -> None:
        super().__init__(raw)
        try:
            released = bool(self._split_files())
        except CorpusNotFoundError:
            return  # raised with full advice when the files are requested
        if not released:
            # The card's counts are those of the released split.
            self.card = replace(self.card, counts={}, labels={})  # type: ignore[misc]

    def files(self) -> list[Path]:
        """Texts and emotions of train, dev and test in turn, or the two unsplit files."""
        files = self._split_files()
        if files:
            return files
        if all((self.root() / name).is_file() for name in WHOLE):
            return self.require(WHOLE)
        # Neither layout is complete: the error names the missing split files.
        return self.require([f"{part}/{name}" for part in PARTS.values() for name in _names(part)])

    def conversations(self, protocol: Protocol) -> Splits:
        """Dialogues in file order within each split."""
        files = self.files()
        if len(files) > len(WHOLE):
            return {
                split: _read(files[2 * place], files[2 * place + 1], split, allowed=0)[0]
                for place, split in enumerate(SPLITS)
            }
        dialogues, _ = _read(files[0], files[1], "all", allowed=MISMATCHES)
        return drawn_splits(dialogues, SPLIT_SEED)

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Use of the train text with the extra cut (:data:`CUT_UTTERANCE`)."""
        files = self.files()
        split, line, utterances, labels = CUT_UTTERANCE
        if len(files) == len(WHOLE):
            return []
        spoken, labelled = _lines(files[0]), _lines(files[1])
        if len(spoken) < line or not _is_cut(split, line, _utterances(spoken[line - 1]), labelled[line - 1].split()):
            return []
        text = (
            f"{files[0].name}, line {line}: {utterances} utterances, but {labels} labels, as in one of two circulating "
            f"texts; utterances {_CUT_AFTER} and {_CUT_AFTER + 1} are read as one, as in the other text"
        )
        return [Finding("note", "labels", text)]

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Layout of the files, omitted dialogues, and dialogues repeated within a split."""
        files = self.files()
        findings = []
        if len(files) == len(WHOLE):
            text = f"{WHOLE[0]} is split by this library: the results are not comparable with published ones"
            findings.append(Finding("note", "splits", text))
            for line, texts, labels in _read(files[0], files[1], "all", allowed=MISMATCHES)[1]:
                text = f"{WHOLE[0]}, line {line}: {texts} utterances, but {labels} labels; the dialogue is omitted"
                findings.append(Finding("note", "labels", text))
        for split, dialogues in self.conversations(protocol).items():
            different = {tuple(turn.text for turn in dialogue.turns) for dialogue in dialogues}
            if again := len(dialogues) - len(different):
                findings.append(
                    Finding("note", "repetition", f"{split}: {again} dialogues repeat an earlier one word for word")
                )
        return findings

    def _split_files(self) -> list[Path]:
        # Empty unless all six files exist.
        root = self.root()
        files = []
        for part in PARTS.values():
            folders = (root / part, root / part / part, root)
            for name in _names(part):
                files += [folder / name for folder in folders if (folder / name).is_file()][:1]
        return files if len(files) == 2 * len(PARTS) else []


def _names(part: str) -> tuple[str, str]:
    return f"dialogues_{part}.txt", f"dialogues_emotion_{part}.txt"


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which would also cut at characters inside utterances.
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    while not lines[-1].strip():
        lines.pop()
    return lines


def _read(
    texts: Path, emotions: Path, prefix: str, allowed: int
) -> tuple[list[Conversation], list[tuple[int, int, int]]]:
    # Also the omitted dialogues: line, number of utterances, number of labels.
    spoken, labelled = _lines(texts), _lines(emotions)
    if len(spoken) != len(labelled):
        raise CorpusFormatError(
            f"{texts} has {len(spoken)} lines, but {emotions.name} has {len(labelled)}; both have one line per "
            f"dialogue. Get them again, from one release."
        )
    dialogues: list[Conversation] = []
    skipped: list[tuple[int, int, int]] = []
    for line, (text, numbers) in enumerate(zip(spoken, labelled, strict=True), start=1):
        utterances = _utterances(text)
        if not utterances:
            raise CorpusFormatError(f"{texts}, line {line}: an empty line instead of a dialogue. Get the file again.")
        labels = [_label(emotions, line, number) for number in numbers.split()]
        if _is_cut(prefix, line, utterances, labels):
            joined = " ".join(part.strip() for part in utterances[_CUT_AFTER - 1 : _CUT_AFTER + 1])
            utterances[_CUT_AFTER - 1 : _CUT_AFTER + 1] = [joined]
        if len(labels) != len(utterances):
            skipped.append((line, len(utterances), len(labels)))
            if len(skipped) > allowed:
                raise CorpusFormatError(
                    f"{texts}, line {line}: {len(utterances)} utterances (each ends with {END}), but line {line} of "
                    f"{emotions.name} has {len(labels)} labels: lines were lost or moved. Get both files again."
                )
            continue
        name = f"{prefix}/{line - 1}"
        dialogues.append(
            Conversation(
                name,
                tuple(
                    Turn(
                        id=str(place),
                        speaker=f"{name}/{'AB'[place % 2]}",
                        text=utterance.strip() or None,
                        targets={"emotion": Target(label)},
                    )
                    for place, (utterance, label) in enumerate(zip(utterances, labels, strict=True))
                ),
            )
        )
    return dialogues, skipped


def _utterances(text: str) -> list[str]:
    utterances = text.split(END)
    if not utterances[-1].strip():
        utterances.pop()
    return utterances


def _is_cut(split: str, line: int, utterances: Sequence[str], labels: Sequence[str]) -> bool:
    return (split, line, len(utterances), len(labels)) == CUT_UTTERANCE


def _label(path: Path, line: int, number: str) -> str:
    if number not in {str(index) for index in range(len(SCHEMA))}:
        raise CorpusFormatError(
            f"{path}, line {line}: found {number!r}, but numbers from 0 to {len(SCHEMA) - 1} are expected "
            f"({', '.join(f'{index} {label}' for index, label in enumerate(SCHEMA.labels))}). Get the file again."
        )
    return SCHEMA.labels[int(number)]
