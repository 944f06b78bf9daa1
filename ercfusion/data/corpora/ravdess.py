"""RAVDESS: two English sentences, acted by 24 actors in eight emotions, as sound and as video.

Layout, names and counts are from the release's page (Zenodo 1188976). The five folds are those of Luna-Jiménez, Griol,
Callejas, Kleinlein, Montero and Fernández-Martínez (Sensors 2021, 21, 7665), section 3.1.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.batch.labels import get_schema
from ercfusion.data.corpora._speech import (
    TURN,
    Fold,
    SpeechCorpus,
    Utterance,
    cyclic_folds,
    fold_protocols,
    label_counts,
    recordings,
    utterance_counts,
)
from ercfusion.data.corpus import CorpusCard, Finding, Protocol
from ercfusion.data.features import Key
from ercfusion.data.media import MEDIA_KINDS, Clip, MediaKind

SCHEMA = get_schema("ravdess8")
"""Labels in the order of the codes 01 to 08 in the files' names."""
STATEMENTS: Mapping[str, str] = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
ACTORS = tuple(f"{number:02d}" for number in range(1, 25))
GROUPS: Mapping[str, tuple[str, ...]] = {
    "0": ("02", "05", "14", "15", "16"),
    "1": ("03", "06", "07", "13", "18"),
    "2": ("10", "11", "12", "19", "20"),
    "3": ("08", "17", "21", "23", "24"),
    "4": ("01", "04", "09", "22"),
}
"""Actors of the five published folds, numbered as in the paper."""
FOLDS = cyclic_folds("ravdess/8way-fold", GROUPS)
MODALITIES: Mapping[MediaKind, tuple[str, ...]] = {"audio": ("03", "01"), "visual": ("01", "02")}
"""Codes of recordings by modality, the preferred one first: 03 sound, 01 both, 02 pictures."""
_ENDINGS = {"01": ".mp4", "02": ".mp4", "03": ".wav"}
# Two sentences, twice, at two intensities; neutral at one.
_TAKES = {label: 4 if label == "neutral" else 8 for label in SCHEMA.labels}
_LABELS = label_counts(FOLDS, dict.fromkeys(ACTORS, _TAKES))
_DEFAULT = next(iter(FOLDS))
_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
_SPEECH = "01"


class RavdessCorpus(SpeechCorpus):
    """Reader of the speech part: ``.wav`` and ``.mp4`` files at any depth below the raw folder.

    A name consists of modality, channel, emotion, intensity, statement, repetition and actor. Files with equal names
    except for the modality (03 sound, 01 video with sound, 02 video without) are one take: a conversation of one
    utterance, called by the other six parts (``01-06-01-02-01-01``). Protocols ``ravdess/8way-fold0`` to ``fold4`` test
    that fold of Luna-Jiménez et al.; dev is the next one.

    The fingerprint covers the names of the utterances: packs stay valid when videos are added.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="ravdess",
        title="RAVDESS (Ryerson Audio-Visual Database of Emotional Speech and Song), speech part",
        licence="CC BY-NC-SA 4.0: research and other non-commercial use.",
        obtain=(
            "https://zenodo.org/record/1188976: extract Audio_Speech_Actors_01-24.zip and, for pictures, "
            "Video_Speech_Actor_01.zip to Video_Speech_Actor_24.zip (about 0.5 GB each) into one folder."
        ),
        citation=(
            "Livingstone, Russo. The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS). PLoS ONE "
            "13(5), 2018."
        ),
        layout=("**/Actor_01/03-01-01-01-01-01-01.wav", "**/Actor_01/01-01-01-01-01-01-01.mp4 (for pictures)"),
        counts=utterance_counts(_LABELS[_DEFAULT]),
        labels=_LABELS,
        known_issues=(
            "Acted: 12 men (odd numbers) and 12 women say two sentences; texts carry no emotion.",
            "96 utterances are neutral, 192 have each other emotion; other work often merges calm with neutral.",
            "The published folds have no dev split; here the fold after that of test is dev: about 14 actors train "
            "instead of 19.",
            "A widespread copy has every sound file twice; the reader uses the first.",
        ),
    )
    folds: ClassVar[Mapping[str, Fold]] = FOLDS
    protocols: ClassVar[Mapping[str, Protocol]] = fold_protocols(
        FOLDS, SCHEMA, "actor", "the fold after that of test (after the last, the first), taken out of training"
    )

    def utterances(self) -> list[Utterance]:
        """Takes with at least one recording; see :meth:`SpeechCorpus.utterances`."""
        takes = dict.fromkeys(sorted(take for _, take in self._files()))
        return [_utterance(take) for take in takes]

    def fingerprint(self) -> str:
        """SHA-256 over the corpus's name and the names of its utterances."""
        names = [self.card.name, *(utterance.id for utterance in self.utterances())]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """For ``audio`` the sound file, or else the video; for ``visual`` the video."""
        files = self._files()
        codes = MODALITIES[kind]
        if not any(code in codes for code, _ in files):
            raise CorpusNotFoundError(
                f"{self.card.title}: no {kind} recordings in {self.root()}. Copy them, or choose another modality.\n"
                f"{self._how_to_get()}"
            )
        clips = {}
        for part in self.conversations(protocol).values():
            for conversation in part:
                take = conversation.id
                paths = [files[code, take] for code in codes if (code, take) in files]
                path = paths[0] if paths else self.root() / f"Actor_{take[-2:]}" / _file_name(codes[0], take)
                clips[take, TURN] = Clip(path)
        return clips

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Number of utterances with sound and pictures, repeated files, and files of the song part."""
        files = self._files()
        takes = {take for _, take in files}
        texts = []
        for kind in MEDIA_KINDS:
            count = sum(any((code, take) in files for code in MODALITIES[kind]) for take in takes)
            if count:
                texts.append(f"{count} have {kind} recordings")
        findings = [Finding("ok", "recordings", f"of {len(takes)} utterances, {' and '.join(texts)}")]
        names = Counter(path.name for path in recordings(self.root(), {*_ENDINGS.values()}))
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            text = f"{len(twice)} files exist more than once (first: {twice[0]}); the first of each is used"
            findings.append(Finding("note", "recordings", text))
        if songs := sum(name.split("-")[1:2] == ["02"] for name in names):
            findings.append(Finding("note", "recordings", f"{songs} files of the song part are skipped"))
        return findings

    def _files(self) -> dict[tuple[str, str], Path]:
        # (modality code, take) of the speech part -> file.
        root = self.root()
        files: dict[tuple[str, str], Path] = {}
        for path in recordings(root, {*_ENDINGS.values()}):
            match = _NAME.fullmatch(path.stem)
            if match is None or path.suffix.lower() != _ENDINGS[match[1]]:
                raise CorpusFormatError(
                    f"{path}: not a file name of RAVDESS: seven numbers of two digits, such as 03-01-06-01-02-01-12, "
                    f"with 03 in front for .wav and 01 or 02 for .mp4. Rename the file, or remove it from the folder."
                )
            if match[2] == _SPEECH:
                files.setdefault((match[1], path.stem[3:]), path)
        if not files:
            raise CorpusNotFoundError(
                f"{self.card.title}: no recording of speech below {root}. Copy the files, or correct the path.\n"
                f"{self._how_to_get()}"
            )
        return files


def _utterance(take: str) -> Utterance:
    _, emotion, _, statement, _, actor = take.split("-")
    return Utterance(take, actor, SCHEMA.labels[int(emotion) - 1], STATEMENTS[statement])


def _file_name(code: str, take: str) -> str:
    return f"{code}-{take}{_ENDINGS[code]}"
