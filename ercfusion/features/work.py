"""Work lists: distinct recordings or texts of a corpus, and their turns."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ercfusion._core.errors import BatchError
from ercfusion.data.corpus import Corpus, Protocol, Splits
from ercfusion.data.features import Key
from ercfusion.data.media import Clip
from ercfusion.features.text import distinct_texts, spoken_texts, texts_digest


@dataclass(frozen=True)
class WorkList:
    """The work of one extraction.

    Args:
        items: Distinct recordings or texts, in processing order.
        keys: Turns, in the order of the pack's rows.
        owners: Position in ``items`` per key.
        digest: SHA-256 over keys and items.
        root: Folder for relative file names.
    """

    items: Sequence[Any]
    keys: list[Key]
    owners: list[int]
    digest: str
    root: Path | None = None


def text_work(corpus: Corpus, splits: Splits) -> WorkList:
    """All texts of a corpus.

    Raises:
        BatchError: there is none.
    """
    everyone = [conversation for split in splits.values() for conversation in split]
    spoken = spoken_texts(everyone)
    if not spoken:
        raise BatchError(
            f"{corpus.name}: none of the {sum(map(len, everyone))} turns has a text, which text features need. Add "
            "the transcripts, or choose a recipe for recordings."
        )
    items = distinct_texts(spoken)
    number = {text: position for position, text in enumerate(items)}
    return WorkList(items, [key for key, _ in spoken], [number[text] for _, text in spoken], texts_digest(spoken))


def clip_work(corpus: Corpus, protocol: Protocol, kind: Any) -> WorkList:
    """All recordings of a corpus.

    Raises:
        ConfigError, CorpusNotFoundError: no such recordings, or they are missing.
        BatchError: no turn has one.
    """
    clips = corpus.clips(protocol, kind)
    if not clips:
        raise BatchError(
            f"{corpus.name}: no turn has a recording of kind {kind!r}. Add the recordings, or choose another recipe."
        )
    root = corpus.root()
    items: dict[Clip, int] = {}
    owners = [items.setdefault(clip, len(items)) for clip in clips.values()]
    digest = hashlib.sha256()
    for key, clip in clips.items():
        digest.update(json.dumps([*key, relative_name(clip.path, root), clip.start, clip.end]).encode())
    return WorkList(list(items), list(clips), owners, digest.hexdigest(), root)


def relative_name(path: Path, root: Path | None) -> str:
    """``path`` relative to ``root``, or its last part if outside."""
    if root is None:
        return path.name
    name = os.path.relpath(path, root)
    return path.name if name.startswith("..") else Path(name).as_posix()
