"""Extraction tools and a small corpus with recordings, for tests of the pipeline."""

from __future__ import annotations

import os
import signal
import time
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import Corpus, CorpusCard, Protocol, Splits
from ercfusion.data.features import Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.features.clip_error import ClipError
from ercfusion.features.executors import in_this_process
from ercfusion.features.extractor import Extracted
from ercfusion.features.recipe import Recipe

if TYPE_CHECKING:
    import pytest


def own_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs and caches of one test, in ``folder``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    monkeypatch.delenv("ERCFUSION_PACKS", raising=False)


def do_clips_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are done in this process: starting another takes a second."""
    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *arguments: in_this_process)


class Loudness:
    """Loudness of each tenth of a second (or of the whole), with misbehaviour on request.

    Settings: ``level``, ``wait`` (seconds a clip), ``log`` (a file to which the name of every clip is appended),
    ``die`` (a clip's name over which the process is killed), ``fail`` (one over which it raises something odd),
    ``broken`` (nothing can be loaded).
    """

    kind = "audio"
    modality = "audio"
    tool = "loudness"
    tool_version = "1"
    licence = "Free to use in tests."

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {key: value for key, value in settings.items() if key != "tool"}
        self.level = self.settings.get("level", "utterance")

    @property
    def dimension_names(self) -> list[str]:
        return ["loudness", "square"]

    def prepare(self) -> None:
        if self.settings.get("broken"):
            raise ConfigError("the weights cannot be loaded")

    def __call__(self, clip: Clip) -> Extracted:
        if log := self.settings.get("log"):
            with open(log, "a") as stream:
                stream.write(f"{clip.path.name}\n")
        if clip.path.name == self.settings.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if clip.path.name == self.settings.get("fail"):
            raise ZeroDivisionError("who would have thought\nthat")
        time.sleep(self.settings.get("wait", 0))
        try:
            with wave.open(str(clip.path)) as stream:
                rate = stream.getframerate()
                samples = np.frombuffer(stream.readframes(stream.getnframes()), "<i2") / 32768
        except (OSError, EOFError, wave.Error) as error:
            raise ClipError(f"cannot be read: {type(error).__name__}") from error
        samples = samples[round(clip.start * rate) : None if clip.end is None else round(clip.end * rate)]
        parts = np.array_split(samples, 1 if self.level == "utterance" else max(1, len(samples) // (rate // 10)))
        values = np.array([[np.abs(part).mean(), np.square(part).mean()] for part in parts], np.float32)
        return Extracted(values, "" if values.any() else "silent", len(samples) / rate)


class Letters:
    """How many letters a text has, and how many of them are capitals."""

    modality, level, tool, tool_version, licence, batch = "text", "utterance", "letters", "1", "", 8

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {key: value for key, value in settings.items() if key != "tool"}

    def identity(self, texts: str) -> dict[str, str]:
        return {"tool": self.tool, "texts": texts}

    def prepare(self) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> list[Any]:
        return [np.array([[len(text), sum(map(str.isupper, text))]], np.float32) for text in texts]

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        return {}, {}


class Recordings(Corpus):
    """Conversations of three turns, each with a recording ``CONVERSATION-TURN.wav``."""

    card: ClassVar[CorpusCard] = CorpusCard("recordings", "Recordings", "made up", "write_recordings", "none")
    protocols: ClassVar[Mapping[str, Protocol]] = {
        "recordings/emotion": Protocol(
            "recordings/emotion", TaskSpec("emotion", "single_label", get_schema("meld3")), "", "", ("audio",)
        )
    }

    def files(self) -> list[Path]:
        return [self.root() / "list.txt"]

    def conversations(self, protocol: Protocol) -> Splits:
        names = (self.root() / "list.txt").read_text().split()
        made = [
            Conversation(
                name,
                tuple(
                    Turn(str(turn), "ab"[turn % 2], f"{name} says {turn}", targets={"emotion": Target("neutral")})
                    for turn in range(3)
                ),
            )
            for name in names
        ]
        return {"train": made[:-2], "dev": made[-2:-1], "test": made[-1:]}

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        return {
            (talk.id, turn.id): Clip(self.root() / f"{talk.id}-{turn.id}.wav")
            for part in self.conversations(protocol).values()
            for talk in part
            for turn in talk.turns
        }


def write_recordings(folder: Path, count: int = 4, seconds: float = 0.3) -> Recordings:
    """The corpus with ``count`` conversations."""
    from ercfusion.testing.media import tone, write_wav  # brings torch, which no worker needs

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"talk{number}" for number in range(count)]
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    for number, name in enumerate(names):
        for turn in range(3):
            sound = tone(seconds + 0.1 * turn, 8000, pitch=120 + 10 * number, seed=10 * number + turn)
            write_wav(folder / f"{name}-{turn}.wav", sound, 8000)
    return Recordings(folder)


def loudness(**settings: Any) -> Recipe:
    """The recipe of :class:`Loudness`."""
    return Recipe("loudness", "extraction_tools:Loudness", settings)
