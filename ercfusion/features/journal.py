"""The journal of an extraction: a file to which every result is appended at once.

If the writer is interrupted, at most the last record is incomplete; it is cut off at the next opening.
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

# Mark, item, rows, columns, bytes of the remarks, flags (1: float16, 2: no values), CRC-32 of these and the body.
_HEAD = struct.Struct("<4sIIIIBI")
_MARK = b"ERC2"
_CHECKSUM = struct.calcsize("<I")
# Seconds between syncs to disk: the most that a power failure costs.
_SYNC = 5.0


_AGAIN = "Move it away, or start again with --fresh."


def _valid_remarks(remarks: Any) -> bool:
    if not (isinstance(remarks, list) and len(remarks) == 3 and isinstance(remarks[0], str)):
        return False
    source = remarks[2]
    named = (
        isinstance(source, list)
        and len(source) == 4
        and all(isinstance(part, str) for part in source[:2])
        and all(type(part) is int for part in source[2:])
    )
    return type(remarks[1]) in (int, float) and remarks[1] >= 0 and (source is None or named)


def _source(fields: list[Any] | None) -> Source | None:
    return None if fields is None else Source(*fields)


@dataclass(frozen=True)
class Result:
    """The outcome for one item.

    Args:
        values: (T, D) float32 or float16, or None.
        reason: Of missing values, or an oddity.
        seconds: Duration of the recording.
        source: The file as read; None for texts.
    """

    values: NDArray[np.floating[Any]] | None
    reason: str = ""
    seconds: float = 0.0
    source: Source | None = None


@dataclass(frozen=True)
class Record:
    """A result with the position of its values in the file (-1 without values)."""

    position: int
    rows: int
    width: int
    half: bool
    reason: str
    seconds: float
    source: Source | None


class Journal:
    """The results of an extraction by item number.

    Raises:
        PackError: the file is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[int, Record] = {}
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
        """Append a result; a power failure costs at most the last seconds."""
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
        start = -1 if values is None else position
        self.records[item] = Record(start, rows, width, half, result.reason, result.seconds, result.source)

    def values(self, item: int) -> NDArray[np.floating[Any]]:
        """Values (T, D) of an item."""
        record = self.records[item]
        return self._read(record.position, record.rows, record.width, record.half)

    def close(self) -> None:
        """Sync to disk and close the file."""
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
        # Read all complete records; returns where they end.
        end = 0
        for position, item, record in self._records():
            self.records[item] = record
            end = position
        return end

    def _records(self) -> Iterator[tuple[int, int, Record]]:
        length_of_file = os.fstat(self._stream.fileno()).st_size
        while True:
            head = self._stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            mark, item, rows, width, length, flags, checksum = _HEAD.unpack(head)
            if mark != _MARK:
                if self._stream.tell() == _HEAD.size:
                    raise PackError(
                        f"{self.path}: not a journal of an extraction. Move it away, or start again with --fresh."
                    )
                return  # incomplete: the machine stopped during this write
            half, absent = bool(flags & 1), bool(flags & 2)
            size = length + (0 if absent else rows * width * (2 if half else 4))
            if size > length_of_file - self._stream.tell():
                return  # incomplete, or a damaged head; read() would allocate the announced size
            body = self._stream.read(size)
            if zlib.crc32(body, zlib.crc32(head[:-_CHECKSUM])) != checksum:
                return
            remarks = parse_json(body[:length], self.path, error=PackError, advice=_AGAIN)
            if not _valid_remarks(remarks):
                raise failure(PackError, self.path, f": found {shown(remarks)} as the remarks of item {item}", _AGAIN)
            reason, seconds, source = remarks
            after = self._stream.tell()
            position = -1 if absent else after - size + length
            yield after, item, Record(position, rows, width, half, reason, seconds, _source(source))
