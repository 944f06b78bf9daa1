"""Twins of EmoDB and RAVDESS, corpora of single acted utterances, as tones in small sound files.

Pitch and length depend on the emotion, so audio features separate the labels.
"""

from __future__ import annotations

import random
from pathlib import Path

from ercfusion.data.corpora.emodb import EMOTIONS, SENTENCES, SPEAKERS
from ercfusion.data.corpora.ravdess import ACTORS, SCHEMA
from ercfusion.testing.media import tone, write_video, write_wav

_PITCH = (120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0, 330.0)


def write_emodb(folder: str | Path, seed: int = 0, takes: int = 1) -> Path:
    """A twin of EmoDB: ``takes`` recordings (1 to 10 sentences) of 16 kHz in ``wav/`` per speaker (ten) and emotion
    (seven).
    """
    folder = Path(folder)
    chance = random.Random(f"emodb {seed}")
    for speaker in SPEAKERS:
        for position, letter in enumerate(EMOTIONS):
            for sentence in sorted(chance.sample(list(SENTENCES), takes)):
                words = len(SENTENCES[sentence].split())
                name = f"{speaker}{sentence}{letter}a.wav"
                _write_tone(folder / "wav" / name, chance, position, 0.1 * words, 16000)
    return folder


def write_ravdess(folder: str | Path, seed: int = 0, takes: int = 1, video_actors: int = 0) -> Path:
    """A twin of RAVDESS's speech part: ``takes`` sound files for each of 24 actors and eight emotions.

    Args:
        folder, seed: As for :func:`ercfusion.testing.twins.text.write_meld`.
        takes: 1 to 4: sentences and repetitions at normal intensity.
        video_actors: Number of actors who also have videos, with sound and without (needs PyAV).
    """
    folder = Path(folder)
    chance = random.Random(f"ravdess {seed}")
    choices = [f"{statement}-{repetition}" for repetition in ("01", "02") for statement in ("01", "02")]
    for number, actor in enumerate(ACTORS):
        for position in range(len(SCHEMA)):
            for choice in choices[:takes]:
                take = f"01-{position + 1:02d}-01-{choice}-{actor}"
                path = folder / "Audio_Speech_Actors_01-24" / f"Actor_{actor}" / f"03-{take}.wav"
                _write_tone(path, chance, position, 0.7, 16000)
                if number < video_actors:
                    place = folder / f"Video_Speech_Actor_{actor}" / f"Actor_{actor}"
                    sound = tone(0.5, 16000, _PITCH[position], number)
                    write_video(place / f"01-{take}.mp4", 0.5, sound=sound, seed=number)
                    write_video(place / f"02-{take}.mp4", 0.5, seed=number)
    return folder


def _write_tone(path: Path, chance: random.Random, emotion: int, seconds: float, rate: int) -> None:
    # Length and pitch vary, so that no two files are equal.
    length = seconds * chance.uniform(0.9, 1.1) * (1 + emotion / 20)
    pitch = _PITCH[emotion] * chance.uniform(0.95, 1.05)
    write_wav(path, tone(length, rate, pitch, chance.randrange(2**31)), rate)
