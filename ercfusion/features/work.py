"""What there is to extract: the distinct recordings or texts of a corpus, and which turn each belongs to."""

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
        items: Recordings or texts, each once, in the order in which they are taken up.
        keys: The turns, in the order of the pack's rows.
        owners: For every key the number of its item.
        digest: SHA-256 over keys and items: another work list has another.
        root: Folder that the names of files are relative to, for what is recorded of them.
    """

    items: Sequence[Any]
    keys: list[Key]
    owners: list[int]
    digest: str
    root: Path | None = None


def text_work(corpus: Corpus, splits: Splits) -> WorkList:
    """The texts of all turns that have one.

    Raises:
        BatchError: none has.
    """
    everyone = [conversation for split in splits.values() for conversation in split]
    spoken = spoken_texts(everyone)
    if not spoken:
        raise BatchError(
            f"none of the {sum(map(len, everyone))} turns of {corpus.name} has a text, so text features cannot be made."
        )
    items = distinct_texts(spoken)
    number = {text: position for position, text in enumerate(items)}
    return WorkList(items, [key for key, _ in spoken], [number[text] for _, text in spoken], texts_digest(spoken))


def clip_work(corpus: Corpus, protocol: Protocol, kind: Any) -> WorkList:
    """The recordings of all turns that have one, in the order of the conversations.

    Raises:
        ConfigError, CorpusNotFoundError: the corpus has no such recordings, or they are not there.
        BatchError: no turn has one.
    """
    clips = corpus.clips(protocol, kind)
    if not clips:
        raise BatchError(f"no turn of {corpus.name} has a recording of kind {kind!r}: nothing can be extracted.")
    root = corpus.root()
    items: dict[Clip, int] = {}
    owners = [items.setdefault(clip, len(items)) for clip in clips.values()]
    digest = hashlib.sha256()
    for key, clip in clips.items():
        digest.update(json.dumps([*key, relative_name(clip.path, root), clip.start, clip.end]).encode())
    return WorkList(list(items), list(clips), owners, digest.hexdigest(), root)


def relative_name(path: Path, root: Path | None) -> str:
    """``path`` as seen from ``root``, or its last part where it lies elsewhere."""
    if root is None:
        return path.name
    name = os.path.relpath(path, root)
    return path.name if name.startswith("..") else Path(name).as_posix()
