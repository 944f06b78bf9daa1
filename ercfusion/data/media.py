"""Where the recording of a turn lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MediaKind = Literal["audio", "visual"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("audio", "visual")


@dataclass(frozen=True)
class Clip:
    """The recording of one turn: a file, or a part of one.

    Args:
        path: A file of sound, video or, for ``visual``, a picture. It need not exist: what is missing or damaged is
            found when it is read, and recorded.
        start: Seconds into the file at which the turn begins.
        end: Seconds at which it ends; None for the end of the file.
    """

    path: Path
    start: float = 0.0
    end: float | None = None
