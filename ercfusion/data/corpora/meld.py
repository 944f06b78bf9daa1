"""MELD: multi-party conversations from the series Friends, with emotion and sentiment per utterance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from ercfusion._core.errors import CorpusNotFoundError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.dialogue_sets import DialogueSets
from ercfusion.data.features import Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.tabular import Row, check_unique, group_rows, read_table

FILES: dict[str, str] = {split: f"{split}_sent_emo.csv" for split in SPLITS}
COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
EMOTION = get_schema("meld7")
SENTIMENT = get_schema("meld3")
CLIP_FOLDERS: dict[str, str] = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
"""Folders in the three archives in ``MELD.Raw.tar.gz``."""
CUT_AGAIN = "final_videos_test"
"""Prefix of test clips that were cut again; the file without it shows another scene."""
BAD_CLIPS: dict[Key, str] = {
    ("train/125", "3"): "damaged in the release: no tool decodes it",
    ("dev/110", "7"): "not in the release",
}
"""Turns without a usable clip."""
_ABSENT = 1000
"""Maximum number of absent dialogue numbers listed."""
_Cut = tuple[str, str, float, float]
LONG_CLIP = 60.0
"""Longer clips have a wrong end time."""


@dataclass(frozen=True)
class MeldOddities:
    """Oddities of one of MELD's files. Utterances are named ``dialogue/utterance``.

    Args:
        absent_dialogues: Numbers missing below the highest dialogue number, at most 1,000.
        late_starts: Dialogues not starting at utterance 0.
        gaps: Dialogues with missing utterance numbers.
        repeated_clips: (season, episode, start, end) of more than one utterance.
        no_duration: Utterances ending at or before their start.
        long_clips: Durations above :data:`LONG_CLIP` seconds.
        time_steps_back: Dialogues with an utterance starting before the previous one.
    """

    absent_dialogues: tuple[int, ...]
    late_starts: tuple[int, ...]
    gaps: tuple[int, ...]
    repeated_clips: tuple[_Cut, ...]
    no_duration: tuple[str, ...]
    long_clips: Mapping[str, float]
    time_steps_back: tuple[int, ...]


def _seven(*counts: int) -> dict[str, int]:
    return dict(zip(EMOTION.labels, counts, strict=True))


_TASKS = (
    TaskSpec("emotion", "single_label", get_schema("meld7")),
    TaskSpec("sentiment", "single_label", get_schema("meld3")),
)


def _protocol(name: str, task: TaskSpec, description: str) -> Protocol:
    return Protocol(
        id=f"meld/{name}",
        task=task,
        others=tuple(candidate for candidate in _TASKS if candidate != task),
        description=description,
        dev_source="dev_sent_emo.csv of the release",
        modalities=("text",),
    )


_SETS = (
    TaskSpec("emotion_set", "multi_label", get_schema("meld7"), metric="micro_f1"),
    TaskSpec("sentiment_set", "multi_label", get_schema("meld3"), metric="micro_f1"),
)


def _sets(name: str, entities: Literal["scene", "speakers", "both"], of: str) -> Protocol:
    view = DialogueSets({"emotion_set": "emotion", "sentiment_set": "sentiment"}, entities)
    description = f"the set of emotions of {of}, released split, micro F1"
    return replace(_protocol(name, _SETS[0], description), others=_SETS[1:], view=view)


class MeldCorpus(Corpus):
    """Reader of the released files ``{train,dev,test}_sent_emo.csv``.

    Conversations are called ``split/dialogue`` (``train/12``), because every file counts from 0; a turn's id is its
    utterance number. Targets: ``emotion`` and ``sentiment``, and under the protocols of dialogue sets
    (:class:`~ercfusion.data.dialogue_sets.DialogueSets`) ``emotion_set`` and ``sentiment_set``.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="meld",
        title="MELD (Multimodal EmotionLines Dataset)",
        licence="GPL-3.0 for the annotations (declare-lab/MELD); the clips come from television: research only.",
        obtain=(
            "Download the three CSV files from https://github.com/declare-lab/MELD, folder data/MELD. Audio and visual "
            "features also need the clips (MELD.Raw.tar.gz, about 11 GB, with three archives in it; see its read-me)."
        ),
        citation=(
            "Poria, Hazarika, Majumder, Naik, Cambria, Mihalcea. MELD: A Multimodal Multi-Party Dataset for Emotion "
            "Recognition in Conversations. ACL 2019."
        ),
        layout=(*FILES.values(), *(f"{folder}/ (for audio and video)" for folder in CLIP_FOLDERS.values())),
        counts={
            "train": {"conversations": 1038, "utterances": 9989},
            "dev": {"conversations": 114, "utterances": 1109},
            "test": {"conversations": 280, "utterances": 2610},
        },
        labels={
            "meld/7way": {
                "train": _seven(4710, 1205, 268, 683, 1743, 271, 1109),
                "dev": _seven(470, 150, 40, 111, 163, 22, 153),
                "test": _seven(1256, 281, 50, 208, 402, 68, 345),
            },
            "meld/3way": {
                "train": {"neutral": 4710, "positive": 2334, "negative": 2945},
                "dev": {"neutral": 470, "positive": 233, "negative": 406},
                "test": {"neutral": 1256, "positive": 521, "negative": 833},
            },
            "meld/sets": {
                "train": _seven(3029, 1456, 403, 845, 1781, 393, 1099),
                "dev": _seven(340, 181, 50, 109, 178, 36, 131),
                "test": _seven(825, 368, 87, 224, 422, 106, 330),
            },
        },
        known_issues=(
            "Train has 1,038 dialogues instead of the 1,039 of the read-me: number 60 is absent.",
            "10 dialogues of train do not start at utterance 0; 65 / 2 / 2 dialogues have gaps in the utterance "
            "numbers.",
            "20 / 1 / 4 clips have two utterances in one split, and 5 clips are in two splits: train/12 and test/85 "
            "share two utterances, three more pairs share one.",
            "Some times are wrong: one utterance of test has no duration, two of test last longer than a minute (up "
            "to 304.9 s), and in 23 / 4 / 4 dialogues start times step back.",
            "70 / 6 / 12 dialogues have only one utterance.",
            "Same-speaker emotion shifts are 4,001 / 427 / 1,003 (4,003 / 427 / 1,003 were published).",
            "'All' and other groups occur as a speaker.",
            "Clip dia125_utt3 of train is damaged and dia110_utt7 of dev is absent; 132 clips of test exist twice, and "
            "final_videos_test... has the annotated words.",
            "Dev and test also have clips (4 and 5) of utterances absent from the CSV files.",
        ),
        related={
            "emotionlines": "MELD was made from the Friends dialogues of EmotionLines",
            "emorynlp": "MELD and EmoryNLP are both made from episodes of Friends",
        },
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        protocol.id: protocol
        for protocol in (
            _protocol("7way", _TASKS[0], "seven emotions, released split, weighted F1 over all seven"),
            _protocol("3way", _TASKS[1], "three sentiments, released split, weighted F1 over all three"),
            _sets("sets", "both", "each dialogue and of each speaker in it"),
            _sets("scene-sets", "scene", "each dialogue"),
            _sets("speaker-sets", "speakers", "each speaker in a dialogue"),
        )
    }

    def files(self) -> list[Path]:
        """The three CSV files."""
        return self.require(list(FILES.values()))

    def conversations(self, protocol: Protocol) -> Splits:
        """The dialogues of the three files, sorted by utterance number."""
        return {
            split: [
                Conversation(f"{split}/{number}", tuple(map(_turn, rows))) for number, rows in _dialogues(path).items()
            ]
            for split, path in zip(SPLITS, self.files(), strict=True)
        }

    def oddities(self) -> dict[str, MeldOddities]:
        """Oddities of each file."""
        return {split: _oddities(_dialogues(path)) for split, path in zip(SPLITS, self.files(), strict=True)}

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Oddities of each file, clips in two splits, and the state of the video files."""
        findings = [finding for split, odd in self.oddities().items() for finding in _describe(split, odd)]
        if shared := self.shared_clips():
            pairs = ", ".join(" = ".join(places) for places in shared)
            text = f"clips (season, episode, start, end) in two splits: {len(shared)} ({pairs})"
            findings.append(Finding("note", "leakage", text))
        return findings + self._media_findings(protocol)

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The video of every turn; its sound track (of two or six channels) is the ``audio`` clip.

        The folders :data:`CLIP_FOLDERS` are searched in the raw folder, in its subfolder of the split's name, and both
        again in ``MELD.Raw``. Test clips with a second cut (:data:`CUT_AGAIN`) use it: it has the annotated words.

        Raises:
            CorpusNotFoundError: there is no clip.
        """
        folders = self._clip_folders()
        names = {split: _listed(folder) for split, folder in folders.items()}
        if not any(names.values()):
            folders_train = ", ".join(str(folder) for folder in self._candidates("train"))
            raise CorpusNotFoundError(
                f"{self.card.title}: no clips were found. Folders searched for the training split: {folders_train}; "
                f"for dev and test {CLIP_FOLDERS['dev']} and {CLIP_FOLDERS['test']}. Extract MELD.Raw.tar.gz, and then "
                f"train.tar.gz, dev.tar.gz and test.tar.gz, in the raw folder.\n"
                f"{self._how_to_get()}"
            )
        clips = {}
        for split, conversations in self.conversations(protocol).items():
            for conversation in conversations:
                for turn in conversation.turns:
                    name = clip_name(conversation.id.partition("/")[2], turn.id)
                    second = f"{CUT_AGAIN}{name}"
                    chosen = second if split == "test" and second in names[split] else name
                    clips[conversation.id, turn.id] = Clip(folders[split] / chosen)
        return clips

    def _candidates(self, split: str) -> list[Path]:
        root = self.root()
        return [
            parent / CLIP_FOLDERS[split]
            for parent in (root, root / split, root / "MELD.Raw", root / "MELD.Raw" / split)
        ]

    def _clip_folders(self) -> dict[str, Path]:
        # The first existing folder, or else the first one.
        folders = {}
        for split in SPLITS:
            candidates = self._candidates(split)
            folders[split] = next((folder for folder in candidates if folder.is_dir()), candidates[0])
        return folders

    def _media_findings(self, protocol: Protocol) -> list[Finding]:
        names = {split: _listed(folder) for split, folder in self._clip_folders().items()}
        if not any(names.values()):
            # Text needs the CSV files only.
            return []
        findings = []
        clips = self.clips(protocol, "visual")
        for split in SPLITS:
            wanted = {key: clip.path.name for key, clip in clips.items() if key[0].startswith(f"{split}/")}
            missing = ["/".join(key) for key, name in wanted.items() if name not in names[split]]
            text = f"{split}: {len(wanted) - len(missing)} of {len(wanted)} video files exist"
            if again := sum(name.startswith(CUT_AGAIN) for name in wanted.values()):
                text += f", {again} of them the second cut"
            if missing:
                text += f"; missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
            findings.append(Finding("note" if missing else "ok", "media", text))
        for key, reason in BAD_CLIPS.items():
            if key in clips:
                findings.append(Finding("note", "media", f"the clip of {'/'.join(key)} is {reason}"))
        return findings

    def shared_clips(self) -> list[tuple[str, ...]]:
        """Clips in more than one split, as tuples of utterances (``split/dialogue/utterance``)."""
        places: dict[_Cut, list[str]] = {}
        for split, path in zip(SPLITS, self.files(), strict=True):
            for number, rows in _dialogues(path).items():
                for row in rows:
                    places.setdefault(_cut(row), []).append(f"{split}/{number}/{row.integer('Utterance_ID')}")
        return [tuple(names) for names in places.values() if len({name.split("/")[0] for name in names}) > 1]


def clip_name(dialogue: str, utterance: str) -> str:
    """The release's name of a clip."""
    return f"dia{dialogue}_utt{utterance}.mp4"


def _listed(folder: Path) -> set[str]:
    # One listing instead of ten thousand checks; without macOS's "._dia0_utt0.mp4".
    return {path.name for path in folder.glob("[!.]*.mp4")} if folder.is_dir() else set()


def _dialogues(path: Path) -> dict[int, list[Row]]:
    rows = read_table(path, COLUMNS)
    check_unique(
        rows,
        lambda row: (row.integer("Dialogue_ID"), row.integer("Utterance_ID")),
        ("Dialogue_ID", "Utterance_ID"),
    )
    groups = group_rows(rows, lambda row: row.integer("Dialogue_ID"))
    return {number: sorted(groups[number], key=lambda row: row.integer("Utterance_ID")) for number in sorted(groups)}


def _cut(row: Row) -> _Cut:
    return row["Season"].strip(), row["Episode"].strip(), row.seconds("StartTime"), row.seconds("EndTime")


def _turn(row: Row) -> Turn:
    return Turn(
        id=str(row.integer("Utterance_ID")),
        speaker=row.text("Speaker"),
        text=row["Utterance"].strip(),
        start=row.seconds("StartTime"),
        end=row.seconds("EndTime"),
        targets={
            "emotion": Target(row.label("Emotion", EMOTION)),
            "sentiment": Target(row.label("Sentiment", SENTIMENT)),
        },
    )


def _oddities(dialogues: Mapping[int, list[Row]]) -> MeldOddities:
    late, gaps, back = [], [], []
    clips: Counter[_Cut] = Counter()
    no_duration: list[str] = []
    long_clips: dict[str, float] = {}
    for number, rows in dialogues.items():
        utterances = [row.integer("Utterance_ID") for row in rows]
        starts = [row.seconds("StartTime") for row in rows]
        if utterances[0] != 0:
            late.append(number)
        if utterances[-1] - utterances[0] + 1 != len(utterances):
            gaps.append(number)
        if starts != sorted(starts):
            back.append(number)
        for row, utterance, start in zip(rows, utterances, starts, strict=True):
            end = row.seconds("EndTime")
            clips[_cut(row)] += 1
            if end <= start:
                no_duration.append(f"{number}/{utterance}")
            elif end - start > LONG_CLIP:
                long_clips[f"{number}/{utterance}"] = end - start
    return MeldOddities(
        absent_dialogues=tuple(
            islice((number for number in range(max(dialogues)) if number not in dialogues), _ABSENT)
        ),
        late_starts=tuple(late),
        gaps=tuple(gaps),
        repeated_clips=tuple(clip for clip, count in clips.items() if count > 1),
        no_duration=tuple(no_duration),
        long_clips=long_clips,
        time_steps_back=tuple(back),
    )


def _describe(split: str, odd: MeldOddities) -> list[Finding]:
    def numbers(values: tuple[object, ...]) -> str:
        shown = ", ".join(map(str, values[:5]))
        return f"{len(values)} ({shown}{', ...' if len(values) > 5 else ''})"

    lines: list[tuple[str, str]] = []
    if odd.absent_dialogues:
        lines.append(("numbering", f"absent dialogue numbers: {numbers(odd.absent_dialogues)}"))
    if odd.late_starts:
        lines.append(("numbering", f"dialogues that do not start at utterance 0: {numbers(odd.late_starts)}"))
    if odd.gaps:
        lines.append(("numbering", f"dialogues with gaps in the utterance numbers: {numbers(odd.gaps)}"))
    if odd.repeated_clips:
        lines.append(
            ("clips", f"clips (season, episode, start, end) of more than one utterance: {len(odd.repeated_clips)}")
        )
    if odd.no_duration:
        lines.append(("clips", f"utterances that do not end after they start: {numbers(odd.no_duration)}"))
    if odd.long_clips:
        lines.append(
            (
                "clips",
                f"utterances longer than {LONG_CLIP:.0f} s: {numbers(tuple(odd.long_clips))}, "
                f"the longest {max(odd.long_clips.values()):.1f} s",
            )
        )
    if odd.time_steps_back:
        lines.append(("clips", f"dialogues in which start times step back: {numbers(odd.time_steps_back)}"))
    if not lines:
        return [Finding("ok", "oddities", f"{split}: none of MELD's known oddities")]
    return [Finding("note", topic, f"{split}: {text}") for topic, text in lines]
