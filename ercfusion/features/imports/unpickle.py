"""A reader of foreign pickles that runs nothing from them.

A pickle can name any function of any installed package and have it called. This reader accepts a closed list of names
and refuses others before they are imported. :mod:`ercfusion.features.imports.scan` bounds depth, memory and work.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.files import StrPath
from ercfusion._core.schemas.reading import failure
from ercfusion.features.imports.limits import UNPACKED, UNPACKED_PER_BYTE, Limits, factor
from ercfusion.features.imports.rebuild import UnpickleError
from ercfusion.features.imports.stream import Stream, load_stream
from ercfusion.features.imports.torchfile import TORCH_LEGACY, load_archive, load_legacy, rebuilder

_PIECE = 1 << 20
_XZ_MEMORY = 128 << 20
"""Bytes of memory for unpacking xz; its highest level takes half."""
_FOREIGN: Sequence[tuple[bytes, str]] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, .hdf5, .csd), not a pickle"),
    (b"\x93NUMPY", "a NumPy array (.npy), not a pickle"),
    (b"MATLAB", "a MATLAB file (.mat), not a pickle"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"Rar!", "a RAR archive"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer to the file (git lfs pull gets it)",
    ),
    (b"<", "a web page (a login or a warning) saved instead of the file"),
    (b"{", "text, probably JSON, not a pickle"),
)


def safe_load(path: StrPath) -> Any:
    """The content of a pickle or a file of ``torch.save``, also compressed (gzip, bzip2, xz), as harmless objects.

    Python 2's strings are read as latin-1. Arrays and tensors become arrays (a subclass of :class:`numpy.ndarray`),
    sample objects of COGMEN and its ancestor :class:`Record`.

    Raises:
        UnpickleError: a refused name, another kind of file, or damage. Nothing of the file was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise UnpickleError(f"{path}: no such file. Correct the path.")
    size = path.stat().st_size
    if size == 0:
        raise UnpickleError(f"{path}: the file is empty (0 bytes). Download it again.")
    with path.open("rb") as stream:
        head = stream.read(64)
        for magic, (what, opener) in _COMPRESSED.items():
            if head.startswith(magic):
                unpacked = _unpacked(path, what, opener, size)
                content = unpacked.getvalue()
                return _load_any(unpacked, content[:64], Limits.of(path, size, len(content)))
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _load_any(mapped, head, Limits.of(path, size, size))


def _load_any(stream: Stream, head: bytes, limits: Limits) -> Any:
    path = limits.path
    if head.startswith(b"PK\x03\x04"):
        try:
            # ZipFile needs seekable(), which mmap has from Python 3.13 on.
            with zipfile.ZipFile(path if isinstance(stream, mmap.mmap) else stream) as archive:
                return load_archive(archive, limits)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, struct.error) as error:
            # All that zipfile raises.
            raise failure(UnpickleError, path, f": damaged ZIP archive ({error}). Download it again") from error
    if head.startswith(TORCH_LEGACY):
        return load_legacy(stream, limits)
    start = head.lstrip()
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise failure(UnpickleError, path, f": this is {what}", "Download or unpack the published pickle")
    return load_stream(stream, limits, rebuilder)


def _pieces(stream: Any) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


def _xz_pieces(path: Path) -> Iterator[bytes]:
    # Like lzma.open, which has no limit on the memory announced by the file.
    with path.open("rb") as stream:
        waiting, decompressor = b"", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        while True:
            if decompressor.eof:
                waiting = decompressor.unused_data.lstrip(b"\0")
                if not waiting and not (waiting := stream.read(_PIECE).lstrip(b"\0")):
                    return
                decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            elif decompressor.needs_input and not waiting and not (waiting := stream.read(_PIECE)):
                raise EOFError("it ends before its content does")
            yield decompressor.decompress(waiting, _PIECE)
            waiting = b""


_COMPRESSED: Mapping[bytes, tuple[str, Callable[[Path], Iterator[bytes]]]] = {
    b"\x1f\x8b": ("gzip", lambda path: _pieces(gzip.GzipFile(path))),
    b"BZh": ("bzip2", lambda path: _pieces(bz2.BZ2File(path))),
    b"\xfd7zXZ\x00": ("xz", _xz_pieces),
}


def _unpacked(path: Path, what: str, opener: Callable[[Path], Iterator[bytes]], size: int) -> io.BytesIO:
    most = factor() * (UNPACKED + UNPACKED_PER_BYTE * size)
    unpacked = io.BytesIO()
    try:
        for piece in opener(path):
            unpacked.write(piece)
            if unpacked.tell() > most:
                raise failure(
                    UnpickleError,
                    path,
                    f": {what}-compressed, over {most >> 20:,} MiB unpacked. Unpack it yourself if you trust it",
                )
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise failure(UnpickleError, path, f": damaged {what} file ({error}). Download it again") from error
    unpacked.seek(0)
    return unpacked
