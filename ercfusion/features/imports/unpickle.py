"""Reading other people's pickles without running anything that they ask for.

A pickle is a small program: it may name any function of any installed package and have it called. The reader here
knows a closed list of names instead (containers, numbers, text, NumPy arrays, the storages of torch tensors, and the
sample classes of two code bases as plain records). Everything else is refused by name before it could be imported.

How deep objects are nested, and how much memory and work they take, is bounded: :mod:`ercfusion.features.imports.scan`
finds it out before anything is built.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.files import StrPath
from ercfusion._core.schemas.reading import MAX_CHARACTERS, failure
from ercfusion.features.imports.limits import UNPACKED, UNPACKED_PER_BYTE, Limits, factor
from ercfusion.features.imports.rebuild import KNOWN, SAMPLES, Call, Sample, UnpickleError
from ercfusion.features.imports.scan import Scan

Stream = io.BytesIO | mmap.mmap

_PIECE = 1 << 20
_XZ_MEMORY = 128 << 20
"""Bytes that unpacking xz may take; its highest level takes half of them."""
_FOREIGN: Sequence[tuple[bytes, str]] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, .hdf5, .csd), not a pickle"),
    (b"\x93NUMPY", "a NumPy array (.npy), not a pickle"),
    (b"MATLAB", "a MATLAB file (.mat), not a pickle"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive. Unpack it first"),
    (b"Rar!", "a RAR archive. Unpack it first"),
    (
        b"version https://git-lfs",
        "a pointer to a large file that git-lfs keeps elsewhere. Fetch it with 'git lfs pull'",
    ),
    (b"<", "a web page: the download gave a page (a login, or a warning) instead of the file. Download it again"),
    (b"{", "text, probably JSON, not a pickle"),
)
TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of ``torch.save`` begin that were written before torch 1.6: a pickled magic number."""


def safe_load(path: StrPath) -> Any:
    """The content of a pickle, or of a file of ``torch.save``, made of harmless objects only.

    Python 2's strings are read as latin-1. Files compressed with gzip, bzip2 or xz are unpacked on the way. Arrays and
    torch tensors come as arrays (a subclass of :class:`numpy.ndarray` without behaviour of its own), the sample objects
    of COGMEN and of its ancestor as :class:`Record`.

    Raises:
        UnpickleError: the file asks for anything else (module, name and byte are named), is no pickle (what it is
            instead is named), or is damaged. Nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise UnpickleError(f"{path}: there is no such file. Correct the path.")
    size = path.stat().st_size
    if size == 0:
        raise UnpickleError(f"{path} is empty (0 bytes). The download or copy was cut off: get the file again.")
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
        from ercfusion.features.imports.torchfile import load_archive

        try:
            # ZipFile wants seekable(), which mmap has only from Python 3.13 on.
            with zipfile.ZipFile(path if isinstance(stream, mmap.mmap) else stream) as archive:
                return load_archive(archive, limits)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, struct.error) as error:
            # What zipfile raises.
            raise failure(UnpickleError, path, f" is a damaged ZIP archive: {error}. Get the file again") from error
    if head.startswith(TORCH_LEGACY):
        from ercfusion.features.imports.torchfile import load_legacy

        return load_legacy(stream, limits)
    start = head.lstrip()
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise failure(UnpickleError, path, f" is {what}")
    return load_stream(stream, limits)


def _pieces(stream: Any) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


def _xz_pieces(path: Path) -> Iterator[bytes]:
    # As lzma.open, which takes as much memory as the file's header says.
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
                problem = f" is {what}-compressed and unpacks to more than {most >> 20:,} MiB, which no features do"
                raise failure(UnpickleError, path, problem, "If you trust the file, unpack it and give what it holds")
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise failure(UnpickleError, path, f" is a damaged {what} file: {error}. Get the file again") from error
    unpacked.seek(0)
    return unpacked


def load_stream(
    stream: Stream, limits: Limits, persistent: Callable[[Any], Any] | None = None, *, inner: bool = False
) -> Any:
    """One pickle from where the stream stands, which is behind it afterwards.

    Args:
        stream: Seekable.
        limits: What reading may take; it is less afterwards.
        persistent: What to make of the file's references to objects outside of the pickle (torch uses them for the
            contents of tensors); None refuses them.
        inner: The pickle is inside a tensor of another pickle: nothing may be nested any deeper.

    Raises:
        UnpickleError: see :func:`safe_load`.
    """
    path = limits.path
    data: Any = stream if isinstance(stream, mmap.mmap) else stream.getvalue()
    start = stream.tell()

    def check_name(module: str, name: str, place: int) -> None:
        if _known(module, name, path, limits, inner) is None:
            raise _refusal(path, module, name, place)

    end = Scan(data, limits, persistent is not None, check_name).run(start)
    stream.seek(start)
    try:
        result = _Unpickler(stream, path, persistent, limits, inner).load()
    except UnpickleError as error:
        # What stands for the file's functions does not know the file.
        text = str(error)
        named = text.startswith((str(path), "..."))
        if named and len(text) <= MAX_CHARACTERS:
            raise
        problem = text.removeprefix(str(path)) if named else f": {text}"
        raise failure(UnpickleError, path, problem, "Get the file again.") from error
    except MemoryError as error:
        raise failure(UnpickleError, path, " does not fit into this machine's memory") from error
    except Exception as error:
        # The interpreter of pickles raises whatever an ill-formed one leads to; all of it means the same here.
        reason = f"{type(error).__name__}: {error}"[:200]
        raise failure(UnpickleError, path, f" cannot be read as a pickle ({reason}). Get the file again") from error
    stream.seek(end)
    return result


# Reading


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, stream: Stream, path: Path, persistent: Callable[[Any], Any] | None, limits: Limits, inner: bool
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        self._persistent = persistent
        self._limits = limits
        self._inner = inner

    def find_class(self, module: str, name: str) -> Any:
        found = _known(module, name, self._path, self._limits, self._inner)
        if found is None:
            raise _refusal(self._path, module, name, None)
        return found

    def persistent_load(self, reference: Any) -> Any:
        if self._persistent is None:
            raise failure(UnpickleError, self._path, ": the pickle refers to objects outside of it")
        return self._persistent(reference)


def _known(module: str, name: str, path: Path, limits: Limits, inner: bool) -> Any:
    # What stands for a name of a file; None for one that is refused.
    if (module, name) in SAMPLES:
        return Sample
    function = KNOWN.get((module, name))
    if function is None and module.partition(".")[0] == "torch":
        from ercfusion.features.imports.torchfile import rebuilder

        function = rebuilder(module, name, limits, inner)
    return None if function is None else Call(f"{module.replace('__builtin__', 'builtins')}.{name}", function)


def _refusal(path: Path, module: str, name: str, place: int | None) -> ErcfusionError:
    where = "" if place is None else f" (byte {place})"
    asked = f"{module}.{name}"
    asked = asked if len(asked) <= 60 and asked.isprintable() else ascii(asked)[1:57] + "..."
    problem = f": refused to build {asked}{where}; nothing of the file was executed"
    return failure(
        UnpickleError, path, problem, "If you trust it, convert it: docs/import-pickles.md, 'What is refused'"
    )
