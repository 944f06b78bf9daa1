"""Recordings of turns, and headers of sound files."""

from __future__ import annotations

import importlib.util
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MediaKind = Literal["audio", "visual"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("audio", "visual")


@dataclass(frozen=True)
class Clip:
    """The recording of one turn: a file, or a part of one.

    Args:
        path: A file of sound, video or, for ``visual``, a picture; it need not exist.
        start: Start of the turn, in seconds of the file.
        end: End of the turn; None for the end of the file.
    """

    path: Path
    start: float = 0.0
    end: float | None = None


BEYOND = 0.5
"""Seconds by which a turn may end after its recording without a note."""
RATES = (1000, 192_000)
"""Accepted sampling rates in Hz; others mean a damaged header."""


def sampling_rate(path: Path) -> int | None:
    """Samples per second according to the header; None if unreadable."""
    header = _wave_header(path)
    return header[0] if header is not None else _plain_rate(path) or _track_rate(path)


def announced_frames(path: Path) -> int | None:
    """Frames of sound according to the header of a WAV file; None if unknown."""
    header = _wave_header(path)
    return None if header is None else header[1]


def _wave_header(path: Path) -> tuple[int, int | None] | None:
    # Rate and frames. Programs writing into a pipe announce the largest length.
    if path.suffix.lower() != ".wav":
        return None
    try:
        with wave.open(str(path), "rb") as stream:
            rate, frames = stream.getframerate(), stream.getnframes()
            size = frames * stream.getnchannels() * stream.getsampwidth()
    except (wave.Error, EOFError, OSError, RuntimeError):  # RuntimeError: a part is longer than the file
        return None
    return rate, frames if size < 0x7FFFFF00 else None


def _plain_rate(path: Path) -> int | None:
    if importlib.util.find_spec("soundfile") is None:
        return None
    import soundfile

    try:
        return int(soundfile.info(str(path)).samplerate)
    except (soundfile.SoundFileError, OSError):
        return None


def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def track_rate(container: Any) -> int | None:
    """Samples per second of the first sound track of an open container of PyAV; None without sound or decoder."""
    tracks = container.streams.audio
    return int(getattr(tracks[0], "rate", None) or 0) or None if tracks else None


def _track_rate(path: Path) -> int | None:
    if not has_av():
        return None
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return track_rate(container)
    except (av.error.FFmpegError, OSError, ValueError):
        return None
