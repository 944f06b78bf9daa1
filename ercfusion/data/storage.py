"""The files of a feature pack, and the memory of verified files; used by :mod:`ercfusion.data.pack` only."""

from __future__ import annotations

import hashlib
import json
import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import PackError, RunError
from ercfusion._core.files import atomic_write, sha256_of, user_cache
from ercfusion._core.schemas.reading import failure, shown
from ercfusion._core.schemas.tensors import Header, read_header
from ercfusion.data.features import Key

MANIFEST, KEYS, VALUES = "pack.json", "utterances.parquet", "values.safetensors"
RECORDINGS = "recordings.json"
AGAIN = "Build the pack again, or copy it again from its source."

_DTYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
# 16 MB of float32.
_BLOCK = 1 << 22
# A file modified this recently could change again within the resolution of its modification time.
CLOCK_GRAIN_NS = 2_000_000_000


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Write the keys, in order, as zstd-compressed Parquet."""
    import pyarrow
    import pyarrow.parquet

    columns = {
        name: pyarrow.array([key[position] for key in keys], type=pyarrow.string())
        for position, name in enumerate(("conversation", "turn"))
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def read_keys(path: Path) -> list[Key]:
    """Keys in order.

    Raises:
        PackError: damaged, or without the two columns of strings.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read(columns=["conversation", "turn"], use_threads=False)
        conversation, turn = table.column("conversation"), table.column("turn")
    except (pyarrow.ArrowException, OSError, LookupError, ValueError, MemoryError) as error:
        raise failure(PackError, path, f" cannot be read as a table of keys: {error}", AGAIN) from error
    if any(not pyarrow.types.is_string(column.type) or column.null_count for column in (conversation, turn)):
        raise PackError(f"{path}: the columns 'conversation' and 'turn' must be strings without gaps. {AGAIN}")
    try:
        return list(zip(conversation.to_pylist(), turn.to_pylist(), strict=True))
    except UnicodeDecodeError as error:
        raise failure(PackError, path, f": a key is not UTF-8 ({error})", AGAIN) from error


def write_values(path: Path, values: NDArray[Any], offsets: NDArray[Any] | None) -> None:
    """Write ``values`` (R, D) and ``offsets`` as a safetensors file, block by block.

    The bytes equal those of the safetensors package, which would need a second copy of the values in memory: too much
    for the memory-mapped matrix of a corpus.
    """
    import safetensors

    tensors = {"values": values} if offsets is None else {"offsets": offsets, "values": values}
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():  # the widest numbers first: all are aligned
        dtype = next(code for code, numpy in _DTYPES.items() if np.dtype(numpy) == tensor.dtype.newbyteorder("<"))
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for _, block in _blocks(tensor):
                stream.write(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).tobytes())
    # The package reads the header back: an unreadable file never becomes a pack.
    with safetensors.safe_open(path, framework="numpy") as opened:
        if set(opened.keys()) != set(tensors):
            raise OSError(f"{path} was not written as intended")


def map_values(path: Path, manifest: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``values`` (R, D), memory-mapped, and ``offsets``, in memory.

    The header is read here, because the safetensors package returns copies of slices; a numpy map is an array.

    Raises:
        PackError: not a safetensors file, or without the tensors of a pack.
    """
    header = read_header(path, error=PackError, advice=AGAIN)
    names = ("values", "offsets") if manifest["level"] == "sequence" else ("values",)
    for name in names:
        if name not in header:
            raise failure(PackError, path, f": the tensor '{name}' is missing", AGAIN)
        tensor, (kinds, rank) = header[name], (("F32", "F16"), 2) if name == "values" else (("I64",), 1)
        if tensor.dtype not in kinds or len(tensor.shape) != rank:
            problem = f": the tensor '{name}' is {shown(tensor.dtype)} of shape {shown(tensor.shape)}"
            raise failure(PackError, path, f"{problem}, unlike a pack's", AGAIN)
    values = _map_tensor(path, header["values"])
    return values, np.array(_map_tensor(path, header["offsets"])) if "offsets" in names else None


def _map_tensor(path: Path, tensor: Header) -> NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[tensor.dtype]), tuple(tensor.shape)
    if 0 in shape:
        return np.empty(shape, dtype)  # an empty range cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", offset=tensor.first, shape=shape)


# Checks


def check_size(path: Path, expected: int) -> None:
    """Raise :class:`PackError` unless the file has ``expected`` bytes."""
    if not path.is_file():
        raise PackError(f"{path} is missing. {AGAIN}")
    size = path.stat().st_size
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise PackError(f"{path} is {fault}: {size} bytes, but {MANIFEST} says {expected}. {AGAIN}")


def check_checksum(path: Path, expected: str) -> None:
    """Raise :class:`PackError` unless the file has the SHA-256 ``expected``."""
    checksum = sha256_of(path)
    if checksum != expected:
        raise PackError(
            f"{path} was changed or damaged: its SHA-256 is {checksum[:12]}, {MANIFEST} says {str(expected)[:12]}. "
            f"{AGAIN}"
        )


def first_not_finite(
    values: NDArray[Any], keys: Sequence[Key], offsets: NDArray[Any] | None, names: Sequence[str] | None
) -> str:
    """Place of the first NaN or infinite value of (R, D) values in words; empty without one."""
    for start, block in _blocks(values):
        finite = np.isfinite(block)
        if finite.all():
            continue
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        row += start
        owner = row if offsets is None else int(np.searchsorted(offsets, row, side="right")) - 1
        conversation, turn = keys[owner]
        place = f"dimension {column}" + (f" ({names[column]!r})" if names and column < len(names) else "")
        step_in_turn = "" if offsets is None else f", step {row - int(offsets[owner])}"
        return f"conversation {conversation!r}, turn {turn!r}{step_in_turn} has {values[row, column]} in {place}"
    return ""


def _blocks(tensor: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    # The memory of a mapped block is released afterwards.
    mapped = getattr(tensor, "_mmap", None)
    step = max(1, _BLOCK // max(1, int(np.prod(tensor.shape[1:]))))
    for start in range(0, len(tensor), step):
        yield start, tensor[start : start + step]
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


# Verified files


def state_of(path: Path, checksum: str) -> dict[str, Any]:
    """State of a file for which a verification stays valid; take it before verifying."""
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": checksum}


def is_remembered(state: Mapping[str, Any]) -> bool:
    """Whether this user has verified a file in this state."""
    try:
        return bool(json.loads(_memory_of(state).read_text(encoding="utf-8")) == state)
    except (OSError, ValueError, RecursionError, RunError):
        return False


def remember(state: Mapping[str, Any]) -> None:
    """Note a verified file."""
    if time.time_ns() - state["mtime_ns"] < CLOCK_GRAIN_NS:
        return
    try:
        with atomic_write(_memory_of(state)) as stream:
            json.dump(state, stream)
    except (OSError, RunError):
        pass  # without the cache, the next reader verifies again


def _memory_of(state: Mapping[str, Any]) -> Path:
    return user_cache() / "verified" / f"{hashlib.sha256(state['path'].encode()).hexdigest()[:32]}.json"
