"""Reading other people's pickles without running anything that they ask for.

A pickle is a small program: it may name any function of any installed package and have it called. The reader here
knows a closed list of names instead (containers, numbers, text, NumPy arrays, the storages of torch tensors, and the
sample classes of two code bases as plain records). Everything else is refused by name before it could be imported.

A file can still ask for much memory or time; it cannot get more memory for its arrays than it has bytes in it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ercfusion.features.imports.rebuild import KNOWN, SAMPLES, Call, Sample, UnpickleError
from ercfusion.files import StrPath

Stream = IO[bytes] | mmap.mmap

_COMPRESSED: Mapping[bytes, tuple[str, Callable[[Path], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
}
_MOST_EXPANSION = 1000
"""A compressed file may hold this many times its own size; feature files of zeros stay far below."""
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
                data = _unpacked(path, what, opener, size)
                return _load_any(io.BytesIO(data), data[:64], len(data), path)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _load_any(mapped, head, size, path)


def _load_any(stream: Stream, head: bytes, size: int, path: Path) -> Any:
    if head.startswith(b"PK\x03\x04"):
        from ercfusion.features.imports.torchfile import load_archive

        try:
            # ZipFile wants seekable(), which mmap has only from Python 3.13 on.
            with zipfile.ZipFile(path if isinstance(stream, mmap.mmap) else stream) as archive:
                return load_archive(archive, path)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError) as error:  # whatever zipfile raises
            raise UnpickleError(f"{path} is a damaged ZIP archive: {error}. Get the file again.") from error
    if head.startswith(TORCH_LEGACY):
        from ercfusion.features.imports.torchfile import load_legacy

        return load_legacy(stream, size, path)
    start = head.lstrip()
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise UnpickleError(f"{path} is {what}.")
    return load_stream(stream, path)


def _unpacked(path: Path, what: str, opener: Callable[[Path], Any], size: int) -> bytes:
    most = _MOST_EXPANSION * size + (1 << 20)
    try:
        with opener(path) as stream:
            data = stream.read(most + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UnpickleError(f"{path} is a damaged {what} file: {error}. Get the file again.") from error
    if len(data) > most:
        raise UnpickleError(
            f"{path} is {what}-compressed and holds more than {_MOST_EXPANSION} times its size, which no features do. "
            f"If it is what you expect, unpack it yourself and give the unpacked file."
        )
    return data


def load_stream(
    stream: Stream, path: Path, persistent: Callable[[Any], Any] | None = None, *, inner: bool = False
) -> Any:
    """One pickle from where the stream stands, which is behind it afterwards.

    Args:
        stream: Seekable.
        path: Its file, for messages.
        persistent: What to make of the file's references to objects outside of the pickle (torch uses them for the
            contents of tensors); None refuses them.
        inner: The pickle is inside a tensor of another pickle: nothing may be nested any deeper.

    Raises:
        UnpickleError: see :func:`safe_load`.
    """
    start = stream.tell()
    places, end = _scan(stream, path, persistent is not None)
    stream.seek(start)
    try:
        result = _Unpickler(stream, path, places, persistent, inner).load()
    except UnpickleError:
        raise
    except MemoryError as error:
        raise UnpickleError(f"{path} does not fit into this machine's memory.") from error
    except Exception as error:
        # The interpreter of pickles raises whatever an ill-formed one leads to; all of it means the same here.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UnpickleError(f"{path} cannot be read as a pickle ({reason}). Get the file again.") from error
    stream.seek(end)
    return result


# Looking before reading

_OPCODES: Mapping[int, Any] = {ord(code.code): code for code in pickletools.opcodes}
_LENGTH_BYTES: Mapping[int, int] = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_NAME = re.compile(rb"[\w.<>]+\r?\n")
_TWO_LINES = frozenset({"GLOBAL", "INST"})
_NAMING = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_EXTENSIONS = frozenset({"EXT1", "EXT2", "EXT4"})
_PERSISTENT = frozenset({"PERSID", "BINPERSID"})


def _scan(stream: Stream, path: Path, persistent: bool) -> tuple[list[int], int]:
    # Passes over the instructions without following them: the bytes at which something is named (pickles have no
    # jumps, so they are followed in this order), and where the pickle ends. What neither features nor any pickler
    # need is refused here: names by number, objects from elsewhere, and a memo with gaps, for which the interpreter
    # of pickles would reserve memory up to the largest number.
    places: list[int] = []
    steps = 0
    while True:
        place = stream.tell()
        byte = stream.read(1)
        if not byte:
            raise UnpickleError(
                f"{path} ends at byte {place}, in the middle of the pickle. The download or copy was cut off: get the "
                f"file again."
            )
        opcode = _OPCODES.get(byte[0])
        if opcode is None or (steps == 0 and place == 0 and not _may_start(opcode.name)):
            raise UnpickleError(
                f"{path} is no pickle: found {byte!r} at byte {place}, which no pickle has there. Give the file that "
                f"the features were published in, or get it again."
            )
        steps += 1
        name = opcode.name
        argument = b""
        if opcode.arg is not None:
            argument = _pass_argument(stream, path, place, name, opcode.arg.n)
        if name in _NAMING:
            places.append(place)
        elif name in _PUTS:
            line = argument.strip()
            known = name != "PUT" or (line.isdigit() and len(line) < 20)
            number = int(line) if name == "PUT" and known else int.from_bytes(argument, "little")
            if not known or number > steps:
                raise UnpickleError(f"{path}, byte {place}: the pickle was tampered with (its memo). Do not use it.")
        elif name in _EXTENSIONS or (name in _PERSISTENT and not persistent):
            raise UnpickleError(
                f"{path}, byte {place}: the pickle refers to objects outside of it ({name}), which feature files do "
                f"not. Nothing of the file was executed."
            )
        elif name == "STOP":
            return places, stream.tell()


def _may_start(name: str) -> bool:
    # Text files begin with letters that are instructions too; no pickler begins with one that takes from the stack.
    return name in (
        "PROTO",
        "MARK",
        "EMPTY_LIST",
        "EMPTY_DICT",
        "EMPTY_TUPLE",
        "GLOBAL",
        "NONE",
        "LONG",
        "INT",
        "FLOAT",
    )


def _pass_argument(stream: Stream, path: Path, place: int, name: str, length: int) -> bytes:
    # Large arguments are stepped over, not read.
    if length == pickletools.UP_TO_NEWLINE:
        lines = [stream.readline() for _ in range(2 if name in _TWO_LINES else 1)]
        if not all(line.endswith(b"\n") for line in lines):
            raise UnpickleError(f"{path}, byte {place}: the pickle ends inside a line. Get the file again.")
        if name in _TWO_LINES and not all(_NAME.fullmatch(line) for line in lines):
            raise UnpickleError(f"{path} is no pickle: {lines[0][:40]!r} at byte {place} is no name of a module.")
        return lines[0]
    if length >= 0:
        return stream.read(length)
    size = int.from_bytes(stream.read(_LENGTH_BYTES[length]), "little")
    here = stream.tell()
    if size > _end_of(stream) - here:
        raise UnpickleError(
            f"{path}, byte {place}: {size} bytes are announced, but the file ends before. The download or copy was cut "
            f"off: get the file again."
        )
    stream.seek(here + size)
    return b""


def _end_of(stream: Stream) -> int:
    if isinstance(stream, mmap.mmap):
        return len(stream)
    here = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    return end


# Reading


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: Stream,
        path: Path,
        places: Sequence[int],
        persistent: Callable[[Any], Any] | None,
        inner: bool,
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        self._places = iter(places)
        self._persistent = persistent
        self._inner = inner

    def find_class(self, module: str, name: str) -> Any:
        place = next(self._places, None)
        if (module, name) in SAMPLES:
            return Sample
        function = KNOWN.get((module, name))
        if function is None and module.partition(".")[0] == "torch":
            from ercfusion.features.imports.torchfile import rebuilder

            function = rebuilder(module, name, self._path, self._inner)
        if function is None:
            raise UnpickleError(_refusal(self._path, module, name, place))
        return Call(f"{module.replace('__builtin__', 'builtins')}.{name}", function)

    def persistent_load(self, reference: Any) -> Any:
        if self._persistent is None:
            raise UnpickleError(f"{self._path}: the pickle refers to objects outside of it, which feature files do not")
        return self._persistent(reference)


def _refusal(path: Path, module: str, name: str, place: int | None) -> str:
    where = "" if place is None else f" (byte {place})"
    return (
        f"{path}: refused to build {module}.{name}{where}; nothing of the file was executed. Imports read containers, "
        f"numbers, text, NumPy arrays and torch tensors only. If you trust the file, convert it where it came from, "
        f"with the packages that it needs:\n"
        f"  import pickle\n"
        f'  data = pickle.load(open("{path.name}", "rb"), encoding="latin1")  # turn objects into vars(object)\n'
        f'  pickle.dump(data, open("plain.pkl", "wb"), protocol=4)'
    )
