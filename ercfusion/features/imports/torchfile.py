"""Read files of ``torch.save`` as NumPy arrays, without torch.

Formats: the ZIP archive (``data.pkl`` and one raw file per storage, since torch 1.6) and the older sequence of pickles
and raw storages. Models, optimisers, sparse and quantised tensors are refused.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ercfusion._core.schemas.reading import failure, shown
from ercfusion.features.imports.limits import Limits
from ercfusion.features.imports.rebuild import UnpickleError
from ercfusion.features.imports.stream import Stream, load_stream

TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Start of files before torch 1.6: a pickled magic number."""

_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
    "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


class _Storage:
    # The numbers of one or more tensors.
    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values


def rebuilder(module: str, name: str, limits: Limits, inner: bool) -> Callable[..., Any] | None:
    """Replacement of torch's module and name; None if plain tensors do not need it."""
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return _tensor
    if module == "torch.storage" and name == "_load_from_bytes" and not inner:
        return lambda data: _nested(data, limits)
    if module == "torch" and name in _STORAGES:
        return lambda *arguments: _storage_type(name)
    if module == "torch" and name == "Size":
        return lambda extents=(): tuple(extents)
    return None


def _storage_type(name: str) -> Any:
    raise UnpickleError(f"the pickle calls a tensor's {name}. Download the file again.")


def load_archive(archive: zipfile.ZipFile, limits: Limits) -> Any:
    """The content of a ZIP archive of ``torch.save``.

    Raises:
        UnpickleError: another archive, or a storage is missing or has a wrong length.
    """
    path = limits.path
    names = set(archive.namelist())
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        what = "a NumPy archive (.npz)" if any(name.endswith(".npy") for name in names) else "a ZIP archive"
        some = ", ".join(archive.namelist()[:5])[:80]
        raise failure(UnpickleError, path, f": this is {what} with {some}, not a pickle. Unpack it first")
    folder = pickles[0].removesuffix("data.pkl")
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size > part.compress_size for part in parts):
        raise failure(UnpickleError, path, ": a compressed archive. Unpack it, and pack it without compression")
    if len(names) < len(parts) or sum(part.file_size for part in parts) > path.stat().st_size:
        raise failure(UnpickleError, path, ": parts of the archive overlap. Download it again")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise UnpickleError(f"{path}: written on a big-endian machine. Convert it there.")
    storages: dict[str, _Storage] = {}

    def persistent(reference: Any) -> _Storage:
        dtype, key, count = _reference(reference, path)
        if key not in storages:
            name = f"{folder}data/{key}"
            if name not in names:
                raise UnpickleError(f"{path}: the numbers of a tensor ({name}) are missing. Download it again.")
            data = archive.read(name)
            if len(data) != count * dtype.itemsize:
                raise UnpickleError(f"{path}: {name} has {len(data)} bytes for {count} numbers. Download it again.")
            storages[key] = _Storage(np.frombuffer(bytearray(data), dtype))
        return storages[key]

    return load_stream(io.BytesIO(archive.read(pickles[0])), limits, rebuilder, persistent)


def load_legacy(stream: Stream, limits: Limits, *, inner: bool = False) -> Any:
    """The content of a file from before torch 1.6; ``inner`` if it is part of a pickle.

    Raises:
        UnpickleError: cut off, or from a big-endian machine.
    """
    path = limits.path
    size = len(stream) if isinstance(stream, mmap.mmap) else stream.getbuffer().nbytes
    stream.seek(len(TORCH_LEGACY))
    load_stream(stream, limits, rebuilder)  # format version
    system = load_stream(stream, limits, rebuilder)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnpickleError(f"{path}: written on a big-endian machine. Convert it there.")
    storages: dict[str, _Storage] = {}
    reserved = 0

    def persistent(reference: Any) -> _Storage:
        nonlocal reserved
        dtype, key, count = _reference(reference, path)
        if key not in storages:
            # Tensors are views of their storages, which follow at the end of the file and are filled then.
            reserved += count * dtype.itemsize
            if reserved > size:
                raise UnpickleError(
                    f"{path}: cut off, {reserved} bytes of tensors announced, {size} found. Download it again."
                )
            storages[key] = _Storage(np.zeros(count, dtype))
        return storages[key]

    result = load_stream(stream, limits, rebuilder, persistent, inner=inner)
    keys = load_stream(stream, limits, rebuilder)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise UnpickleError(f"{path}: the list of tensors does not match the tensors. Download it again.")
    for key in keys:
        values = storages[str(key)].values
        count = int.from_bytes(stream.read(8), "little")
        data = stream.read(values.nbytes)
        if count != len(values) or len(data) != values.nbytes:
            raise UnpickleError(f"{path}: cut off inside the numbers of a tensor. Download it again.")
        values[:] = np.frombuffer(data, values.dtype)
    return result


def _nested(data: Any, limits: Limits) -> Any:
    # In an ordinary pickle, a tensor contains its storage as the bytes of a small file.
    if not isinstance(data, bytes) or not data.startswith(TORCH_LEGACY):
        raise failure(UnpickleError, limits.path, ": a tensor has an unknown format. Convert it with numpy()")
    limits.take(memory=2 * len(data), instructions=100)
    return load_legacy(io.BytesIO(data), limits, inner=True)


def _reference(reference: Any, path: Path) -> tuple[np.dtype[Any], str, int]:
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise UnpickleError(f"{path}: refers to something other than a tensor storage. Download it again.")
    name = str(getattr(reference[1], "name", "")).removeprefix("torch.")
    key, count = reference[2], reference[4]
    if name not in _STORAGES:
        raise UnpickleError(
            f"{path}: a tensor has the type {name or shown(reference[1])}. Convert it to plain numbers."
        )
    if len(reference) == 6 and reference[5] is not None:
        raise UnpickleError(
            f"{path}: a tensor is stored as a view, as before torch 0.4. Convert it with a later torch."
        )
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise UnpickleError(f"{path}: a tensor storage has no name or length. Download it again.")
    return np.dtype(_STORAGES[name]), key, count


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> NDArray[Any]:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UnpickleError("a tensor does not have torch's form. Download the file again.")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UnpickleError("a tensor has an invalid shape. Download the file again.")
    values = storage.values
    count = 1
    for extent in size:
        count *= extent
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if count and (last >= len(values) or count > len(values)):
        raise UnpickleError(f"a tensor of shape {size} has {len(values)} numbers. Download the file again.")
    if not count:
        return np.zeros(size, values.dtype)
    return as_strided(values[offset:], size, [step * values.itemsize for step in stride])
