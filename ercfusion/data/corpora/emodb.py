"""EmoDB, the Berlin Database of Emotional Speech: ten sentences, acted by ten speakers in seven emotions.

Sentences and file names are from the database's documentation (spelling differs a little between copies). The counts
are those of the 535 files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError, did_you_mean
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
from ercfusion.data.corpus import CorpusCard, Protocol
from ercfusion.data.features import Key
from ercfusion.data.media import Clip, MediaKind

SCHEMA = get_schema("emodb7")
EMOTIONS: Mapping[str, str] = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
"""Sixth character of a file's name, the first of the German word."""
SENTENCES: Mapping[str, str] = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute Abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
"""Third to fifth character of a file's name, and the sentence."""

# Files by speaker: anger, boredom, disgust, fear, happiness, sadness, neutral.
_FILES: Mapping[str, tuple[int, ...]] = {
    "03": (14, 5, 1, 4, 7, 7, 11),
    "08": (12, 10, 0, 6, 11, 9, 10),
    "09": (13, 4, 8, 1, 4, 4, 9),
    "10": (10, 8, 1, 8, 4, 3, 4),
    "11": (11, 8, 2, 10, 8, 7, 9),
    "12": (12, 5, 2, 6, 2, 4, 4),
    "13": (12, 10, 8, 7, 10, 5, 9),
    "14": (16, 8, 8, 12, 8, 10, 7),
    "15": (13, 9, 5, 8, 6, 4, 11),
    "16": (14, 14, 11, 7, 11, 9, 5),
}
SPEAKERS = tuple(_FILES)
FOLDS = cyclic_folds("emodb/7way-spk", {speaker: (speaker,) for speaker in SPEAKERS})
_LABELS = label_counts(
    FOLDS, {speaker: dict(zip(EMOTIONS.values(), counts, strict=True)) for speaker, counts in _FILES.items()}
)
_DEFAULT = next(iter(FOLDS))
_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[A-Z])[a-z]")
_SCHEME = (
    "two digits for the speaker, a sentence's code, a letter for the emotion and one for the version (03a01Fa.wav)"
)


class EmodbCorpus(SpeechCorpus):
    """Reader of the wav files in the raw folder or its subfolder ``wav``.

    A file is a conversation of one utterance, called after it (``03a01Fa``); the speaker is the first two digits. Every
    protocol tests one speaker; dev is the next one in the order 03, 08, 09, 10, 11, 12, 13, 14, 15, 16.
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="emodb",
        title="EmoDB (Berlin Database of Emotional Speech)",
        licence="Freely available; cite the paper.",
        obtain="Download http://emodb.bilderbar.info (also as emodb among audeering's public datasets) and extract it.",
        citation=(
            "Burkhardt, Paeschke, Rolfes, Sendlmeier, Weiss. A Database of German Emotional Speech. Interspeech 2005."
        ),
        layout=("wav/03a01Fa.wav", "... (535 files; the folder wav is optional)"),
        counts=utterance_counts(_LABELS[_DEFAULT]),
        labels=_LABELS,
        known_issues=(
            "Acted: five women and five men say ten sentences. Texts repeat in all splits and carry no emotion.",
            "Only recordings recognised by 80 % and found natural by 60 % of listeners were released: emotions are "
            "uneven (127 of anger, 46 of disgust, none by speaker 08).",
            "The recordings have 16 kHz; copies resampled to 22.05 kHz circulate, with other features.",
            "Scores depend much on the fold: report the mean over all ten.",
        ),
    )
    folds: ClassVar[Mapping[str, Fold]] = FOLDS
    protocols: ClassVar[Mapping[str, Protocol]] = fold_protocols(
        FOLDS, SCHEMA, "speaker", "the speaker after that of test in the order of numbers, taken out of training"
    )

    def files(self) -> list[Path]:
        """The recordings, sorted by name."""
        root = self.root()
        folder = root / "wav" if (root / "wav").is_dir() else root
        paths = [path for path in recordings(folder, [".wav"]) if path.parent == folder]
        if not paths:
            raise CorpusNotFoundError(
                f"{self.card.title}: no wav file in {folder}. Copy the files, or correct the path.\n"
                f"{self._how_to_get()}"
            )
        return paths

    def utterances(self) -> list[Utterance]:
        """One utterance per file; see :meth:`SpeechCorpus.utterances`."""
        return [_utterance(path) for path in self.files()]

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The wav files; each is read whole. There are no pictures."""
        if kind != "audio":
            return super().clips(protocol, kind)
        paths = {path.stem: path for path in self.files()}
        return {
            (conversation.id, TURN): Clip(paths[conversation.id])
            for part in self.conversations(protocol).values()
            for conversation in part
        }


def _utterance(path: Path) -> Utterance:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise CorpusFormatError(f"{path}: files of EmoDB are named by {_SCHEME}. Rename or remove it.")
    for part, codes in (("speaker", SPEAKERS), ("sentence", tuple(SENTENCES)), ("emotion", tuple(EMOTIONS))):
        if match[part] not in codes:
            raise CorpusFormatError(
                f"{path}: EmoDB has no {part} {match[part]!r}. {did_you_mean(match[part], codes)} Rename or remove it."
            )
    return Utterance(path.stem, match["speaker"], EMOTIONS[match["emotion"]], SENTENCES[match["sentence"]])
