"""Recordings behind the values of a pack, and detection of their changes.

``recordings.json`` has path, size, modification time and SHA-256 of each. If only the time differs, the checksum is
compared, and an equal one is remembered in the user's cache. Absent recordings do not count as changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from ercfusion._core.errors import PackError, RunError
from ercfusion._core.files import atomic_write, sha256_of, user_cache
from ercfusion._core.progress import track
from ercfusion._core.schemas.reading import MIB, read_json
from ercfusion.data.pack_schema import Recordings
from ercfusion.data.storage import AGAIN, CLOCK_GRAIN_NS, RECORDINGS, check_checksum, check_size

logger = logging.getLogger("ercfusion")

# About two million recordings.
_MOST = 512 * MIB


@dataclass(frozen=True, order=True)
class Source:
    """A file behind an item, as it was when read.

    Args:
        name: Path relative to the corpus.
        sha256: Checksum; empty if absent or unreadable.
        size: Bytes; -1 if unknown.
        modified: Modification time in nanoseconds; 0 if absent.
        used: A turn has values made from it.
    """

    name: str
    sha256: str = ""
    size: int = 0
    modified: int = 0
    used: bool = True


class State(Enum):
    """A file compared with a :class:`Source`."""

    SAME = "same"
    CHANGED = "changed"
    GONE = "gone"


def recorded_name(path: Path, root: Path | None) -> str:
    """``path`` relative to ``root``; above it begins with ``..``."""
    if root is None:
        return path.name
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:  # another drive
        return path.name


def source_of(path: Path, root: Path | None) -> Source:
    """State of a file, which may be absent."""
    name = recorded_name(path, root)
    try:
        status = path.stat()
    except OSError:
        return Source(name)
    return Source(name, _content(path, status), status.st_size, status.st_mtime_ns)


def compare(
    source: Source, path: Path, *, trusted: Mapping[str, Any] | None = None, doubt: bool = False
) -> tuple[State, Source]:
    """State of a file compared with its record, and the record, updated if unchanged.

    Args:
        source: The record.
        path: The file.
        trusted: Name to [size, modification time] of files with verified content.
        doubt: Compare the content in any case.
    """
    try:
        status = path.stat()
    except OSError:
        return (State.SAME if source.modified == 0 else State.GONE), source
    here = [status.st_size, status.st_mtime_ns]
    now = replace(source, size=status.st_size, modified=status.st_mtime_ns)
    if not doubt and here in ([source.size, source.modified], (trusted or {}).get(source.name)):
        return State.SAME, now
    if source.modified == 0 or source.size != status.st_size or _content(path, status) != source.sha256:
        return State.CHANGED, source
    return State.SAME, now


def compare_all(
    pairs: Iterable[tuple[Source, Path]], *, memory: Path | None = None, doubt: bool = False
) -> dict[Source, tuple[State, Source]]:
    """:func:`compare` for many; comparisons of content are remembered in ``memory``."""
    trusted = _remembered(memory)
    results: dict[Source, tuple[State, Source]] = {}
    slow: dict[Source, Path] = {}
    for source, path in dict(pairs).items():
        if doubt or _is_doubtful(source, path, trusted):
            slow[source] = path
        else:
            results[source] = compare(source, path, trusted=trusted)
    for source, path in track(list(slow.items()), "comparing recordings") if slow else ():
        results[source] = compare(source, path, doubt=True)
    if memory is not None:
        _remember(memory, trusted, [results[source][1] for source in slow if results[source][0] is State.SAME])
    return results


def digest_of(sources: Iterable[Source]) -> dict[str, str]:
    """Number and joint checksum of the recordings, for ``pack.json``."""
    files = {(Path(one.name).name if one.name.startswith("..") else one.name, one.sha256) for one in sources}
    digest = hashlib.sha256()
    for name, checksum in sorted(files):
        digest.update(f"{name} {checksum}\n".encode(errors="surrogateescape"))
    return {f"{len(files)} recordings": digest.hexdigest()} if files else {}


def write_recordings(path: Path, sources: Iterable[Source]) -> None:
    """Write ``recordings.json``, sorted by name."""
    lines = [
        json.dumps(
            {"path": one.name, "bytes": one.size, "modified": one.modified, "sha256": one.sha256}
            | ({} if one.used else {"used": False})
        )
        for one in sorted(sources)
    ]
    path.write_text('{"recordings": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def read_recordings(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Source] | None:
    """Recordings of a pack by name; None if it does not list them.

    Raises:
        PackError: the list is missing or damaged.
    """
    file = manifest["files"].get(RECORDINGS)
    if file is None:
        return None
    path = folder / RECORDINGS
    check_size(path, file["bytes"])
    check_checksum(path, file["sha256"])
    content = read_json(path, Recordings, error=PackError, advice=AGAIN, most=_MOST)
    return {
        one["path"]: Source(one["path"], one["sha256"], one["bytes"], one["modified"], one.get("used", True))
        for one in content["recordings"]
    }


def memory_of(manifest: Mapping[str, Any], root: Path) -> Path | None:
    """File for remembering verified recordings of a pack."""
    identity = json.dumps([manifest["files"][RECORDINGS]["sha256"], str(root.resolve())])
    try:
        return user_cache() / "verified" / f"recordings-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    except RunError:
        return None


def _is_doubtful(source: Source, path: Path, trusted: Mapping[str, Any]) -> bool:
    # Whether compare() would have to read the file.
    try:
        status = path.stat()
    except OSError:
        return False
    here = [status.st_size, status.st_mtime_ns]
    if here in ([source.size, source.modified], trusted.get(source.name)) or source.modified == 0:
        return False
    return source.size == status.st_size


def _content(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        return ""
    try:
        return _checksum(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _checksum(path: str, *state: int) -> str:
    # Many turns may share one long recording. A program can set the modification time, but not the change time.
    return sha256_of(path)


def _remembered(memory: Path | None) -> dict[str, Any]:
    try:
        content = {} if memory is None else json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(memory: Path, before: Mapping[str, Any], equal: Iterable[Source]) -> None:
    # A file modified this recently could change again without a visible change of its time.
    settled = [one for one in equal if time.time_ns() - one.modified > CLOCK_GRAIN_NS]
    if not settled:
        return
    try:
        with atomic_write(memory) as stream:
            json.dump({**before, **{one.name: [one.size, one.modified] for one in settled}}, stream)
    except OSError as error:
        logger.debug("compared recordings could not be remembered: %s", error)
