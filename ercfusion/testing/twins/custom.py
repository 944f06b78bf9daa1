"""A twin of an own corpus: a table of utterances with every kind of target, and recordings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from ercfusion.testing.media import tone, write_video, write_wav
from ercfusion.testing.twins.text import _cast, _sentence, _write_csv

CUSTOM_SIZES: Mapping[str, int] = {"train": 8, "dev": 3, "test": 3}
"""Default number of conversations by split."""

_RATE = 16000
# Emotion -> pitch in Hz, valence, and a second emotion.
_VOICES: Mapping[str, tuple[float, float, str]] = {
    "neutral": (120.0, 0.0, "surprise"),
    "joy": (240.0, 0.8, "surprise"),
    "anger": (190.0, -0.7, "disgust"),
    "sadness": (95.0, -0.6, "fear"),
}
_SETTINGS = """\
title: Twin of a corpus of one's own (made up)
licence: Made up by ercfusion; free of third-party rights.
citation: None.
synthetic: true
targets:
  emotion:
    kind: single_label
    labels: [neutral, joy, anger, sadness]
    synonyms: {happiness: joy}
    neutral: neutral
  emotions:
    kind: multi_label
    labels: [joy, anger, sadness, surprise, fear, disgust]
  affect:
    kind: regression
    dimensions: [valence, arousal]
    low: -1
    high: 1
    metric: ccc
  votes:
    kind: distribution
    labels: [neutral, joy, anger, sadness]
"""


def write_custom(
    folder: str | Path,
    seed: int = 0,
    sizes: Mapping[str, int] = CUSTOM_SIZES,
    *,
    split: bool = True,
    settings: bool = True,
    video: bool = False,
) -> Path:
    """A twin of an own corpus, with 16 kHz recordings in ``recordings/``.

    Conversations alternate between one file per turn and one file for all turns. Every seventh turn has no emotion; the
    first conversation of a split has one turn.

    Args:
        folder, seed, sizes: As for :func:`ercfusion.testing.twins.text.write_meld`.
        split: Whether the table has the column ``split``.
        settings: Whether to write ``corpus.yaml``; without it only ``emotion`` is a target.
        video: Write MP4 files (column ``video``, needs PyAV) instead of WAV files (``audio``).
    """
    folder = Path(folder)
    chance = random.Random(f"custom {seed}")
    medium, ending = ("video", "mp4") if video else ("audio", "wav")
    header = ["conversation", "turn", "speaker", "text", "start", "end", medium, *(["split"] if split else [])]
    targets = ["emotion", "emotions", "affect.valence", "affect.arousal", *(f"votes.{label}" for label in _VOICES)]
    rows: list[list[object]] = []
    for part, size in sizes.items():
        for number in range(size):
            name = f"{part}{number:02d}"
            own_files = number % 2 == 0
            speakers = _cast(chance, number)
            clock = 0.5
            spoken: list[tuple[float, float, float]] = []
            for turn in range(1 if number == 0 else chance.randrange(3, 6)):
                emotion = chance.choice(list(_VOICES))
                pitch, valence, second = _VOICES[emotion]
                seconds = round(chance.uniform(0.6, 1.2), 2)
                start, end = round(clock, 2), round(clock + seconds, 2)
                clock = end + 0.1
                spoken.append((start, seconds, pitch))
                path = f"recordings/{name}_{turn}.{ending}" if own_files else f"recordings/{name}.{ending}"
                if own_files:
                    _record(folder / path, [(0.0, seconds, pitch)], seconds, chance.randrange(2**31))
                place = [name, turn, chance.choice(speakers), _sentence(chance, emotion), start, end, path]
                rows.append([*place, *([part] if split else []), *_cells(chance, len(rows), emotion, valence, second)])
            if not own_files:
                _record(folder / f"recordings/{name}.{ending}", spoken, clock, chance.randrange(2**31))
    _write_csv(folder / "utterances.csv", [[*header, *targets], *rows])
    if settings:
        (folder / "corpus.yaml").write_text(_SETTINGS, encoding="utf-8")
    return folder


def _cells(chance: random.Random, row: int, emotion: str, valence: float, second: str) -> list[object]:
    emotions = [] if emotion == "neutral" else [emotion]
    if chance.random() < 0.3:
        emotions.append(second)
    votes = dict.fromkeys(_VOICES, 0)
    for _ in range(5):
        votes[emotion if chance.random() < 0.7 else chance.choice(list(_VOICES))] += 1
    name = "happiness" if emotion == "joy" and row % 2 else emotion
    moved = [round(max(-1.0, min(1.0, value + chance.gauss(0, 0.1))), 3) for value in (valence, abs(valence))]
    return ["" if row % 7 == 6 else name, "|".join(emotions) or "-", *moved, *votes.values()]


def _record(path: Path, spoken: list[tuple[float, float, float]], length: float, seed: int) -> None:
    # Voices (start and length in seconds, pitch in Hz) with silence between.
    import numpy as np

    sound = np.zeros(round(length * _RATE), dtype=np.float32)
    for start, seconds, pitch in spoken:
        voice = tone(seconds, _RATE, pitch, seed)
        first = round(start * _RATE)
        sound[first : first + len(voice)] = voice[: len(sound) - first]
    if path.suffix == ".mp4":
        write_video(path, length, sound=sound, rate=_RATE, seed=seed)
    else:
        write_wav(path, sound, _RATE)
