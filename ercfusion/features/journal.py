"""What an extraction has done so far: a file to which every result is appended the moment it is there.

A record holds the number of an item, its values or the reason why there are none, the file that it was read from, and
a checksum. Whatever stops the writer, all records but the last are whole; a torn one at the end is cut off when the
file is opened again.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import PackError
from ercfusion._core.schemas.reading import failure, parse_json, shown
from ercfusion.data.recordings import Source

# Item, rows, columns, bytes of the remarks, whether the numbers are float16; then the checksum of all that follows.
_HEAD = struct.Struct("<4sIIIIBI")
_MARK = b"ERC2"
_CHECKSUM = struct.calcsize("<I")
# Seconds between two times that everything is forced to disk: what a loss of power could cost.
_SYNC = 5.0


_AGAIN = "Move it away, or begin again with --fresh."


def _are_remarks(found: Any) -> bool:
    """Whether the remarks of a record are a reason, a duration, and a source or none."""
    if not (isinstance(found, list) and len(found) == 3 and isinstance(found[0], str)):
        return False
    source = found[2]
    named = (
        isinstance(source, list)
        and len(source) == 4
        and all(isinstance(part, str) for part in source[:2])
        and all(type(part) is int for part in source[2:])
    )
    return type(found[1]) in (int, float) and found[1] >= 0 and (source is None or named)


def _source(found: list[Any] | None) -> Source | None:
    return None if found is None else Source(*found)


@dataclass(frozen=True)
class Result:
    """What became of one item.

    Args:
        values: (T, D) float32 or float16; None where there are none.
        reason: Why there are none, or what is odd about them; empty where nothing is.
        seconds: Duration of what was processed.
        source: The file that the item was read from, as it was then; None for texts.
    """

    values: NDArray[np.floating[Any]] | None
    reason: str = ""
    seconds: float = 0.0
    source: Source | None = None


@dataclass(frozen=True)
class Entry:
    """Where a result lies in the file, and all of it but the values."""

    position: int
    rows: int
    width: int
    half: bool
    reason: str
    seconds: float
    source: Source | None


class Journal:
    """The results of an extraction, by the number of their item.

    Args:
        path: The file; what is in it is taken over, and a torn record at its end is cut off.

    Raises:
        PackError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[int, Entry] = {}
        path.touch()
        self._stream: BinaryIO = path.open("r+b")
        end = self._scan()
        self._stream.truncate(end)
        self._stream.seek(end)
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, item: int, result: Result) -> None:
        """Add a result. It survives the end of this process at once, and that of the machine after some seconds."""
        values = result.values
        half = values is not None and values.dtype == np.float16
        rows, width = (0, 0) if values is None else values.shape
        source = result.source
        file = None if source is None else [source.name, source.sha256, source.size, source.modified]
        remarks = json.dumps([result.reason, result.seconds, file]).encode()
        numbers = b"" if values is None else np.ascontiguousarray(values, dtype="<f2" if half else "<f4").tobytes()
        body = remarks + numbers
        flags = int(half) | (2 if values is None else 0)
        fields = _HEAD.pack(_MARK, item, rows, width, len(remarks), flags, 0)[:-_CHECKSUM]
        head = fields + struct.pack("<I", zlib.crc32(body, zlib.crc32(fields)))
        position = self._stream.tell() + _HEAD.size + len(remarks)
        self._stream.write(head + body)
        self._stream.flush()
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()
        kept = -1 if values is None else position
        self.entries[item] = Entry(kept, rows, width, half, result.reason, result.seconds, result.source)

    def values(self, item: int) -> NDArray[np.floating[Any]]:
        """The values (T, D) of an item that has some."""
        entry = self.entries[item]
        return self._read(entry.position, entry.rows, entry.width, entry.half)

    def close(self) -> None:
        """Force everything to disk, and let go of the file."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def _read(self, position: int, rows: int, width: int, half: bool) -> NDArray[np.floating[Any]]:
        here = self._stream.tell()
        self._stream.seek(position)
        data = self._stream.read(rows * width * (2 if half else 4))
        self._stream.seek(here)
        return np.frombuffer(data, dtype="<f2" if half else "<f4").reshape(rows, width)

    def _scan(self) -> int:
        # Take over all whole records; returns where they end.
        end = 0
        for position, item, entry in self._records():
            self.entries[item] = entry
            end = position
        return end

    def _records(self) -> Iterator[tuple[int, int, Entry]]:
        length_of_file = os.fstat(self._stream.fileno()).st_size
        while True:
            head = self._stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            mark, item, rows, width, length, flags, checksum = _HEAD.unpack(head)
            if mark != _MARK:
                if self._stream.tell() == _HEAD.size:
                    raise PackError(
                        f"{self.path} is no journal of an extraction. Move it away, or add --fresh to begin anew."
                    )
                return  # torn: the machine stopped while this was written
            half, absent = bool(flags & 1), bool(flags & 2)
            size = length + (0 if absent else rows * width * (2 if half else 4))
            if size > length_of_file - self._stream.tell():
                return  # torn, or a damaged head; read() would reserve what it asks for
            body = self._stream.read(size)
            if zlib.crc32(body, zlib.crc32(head[:-_CHECKSUM])) != checksum:
                return
            remarks = parse_json(body[:length], self.path, error=PackError, advice=_AGAIN)
            if not _are_remarks(remarks):
                raise failure(PackError, self.path, f": found {shown(remarks)} as the remarks of item {item}", _AGAIN)
            reason, seconds, source = remarks
            after = self._stream.tell()
            position = -1 if absent else after - size + length
            yield after, item, Entry(position, rows, width, half, reason, seconds, _source(source))
