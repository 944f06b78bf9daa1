"""Read one pickle of a stream with a closed list of names."""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.schemas.reading import MAX_CHARACTERS, failure
from ercfusion.features.imports.limits import Limits
from ercfusion.features.imports.rebuild import KNOWN, SAMPLES, Call, Sample, UnpickleError
from ercfusion.features.imports.scan import Scan

Stream = io.BytesIO | mmap.mmap

Names = Callable[[str, str, Limits, bool], Callable[..., Any] | None]
"""Replacement of torch's module and name, given limits and nesting; None refuses it."""


def load_stream(
    stream: Stream,
    limits: Limits,
    tensor_names: Names,
    persistent: Callable[[Any], Any] | None = None,
    *,
    inner: bool = False,
) -> Any:
    """Read the pickle at the stream's position, and move behind it.

    Args:
        stream: Seekable.
        limits: Reduced by what reading takes.
        tensor_names: Replacements of torch's names.
        persistent: Resolves references to objects outside (torch's storages); None refuses them.
        inner: The pickle is inside a tensor, and may contain none.

    Raises:
        UnpickleError: see :func:`~ercfusion.features.imports.unpickle.safe_load`.
    """
    path = limits.path
    data: Any = stream if isinstance(stream, mmap.mmap) else stream.getvalue()
    start = stream.tell()

    def replacement(module: str, name: str) -> Any:
        if (module, name) in SAMPLES:
            return Sample
        function = KNOWN.get((module, name))
        if function is None and module.partition(".")[0] == "torch":
            function = tensor_names(module, name, limits, inner)
        return None if function is None else Call(f"{module.replace('__builtin__', 'builtins')}.{name}", function)

    def check_name(module: str, name: str, place: int) -> None:
        if replacement(module, name) is None:
            raise _refusal(path, module, name, place)

    end = Scan(data, limits, persistent is not None, check_name).run(start)
    stream.seek(start)
    try:
        result = _Unpickler(stream, path, persistent, replacement).load()
    except UnpickleError as error:
        # The replacements do not know the file.
        text = str(error)
        named = text.startswith((str(path), "..."))
        if named and len(text) <= MAX_CHARACTERS:
            raise
        problem = text.removeprefix(str(path)) if named else f": {text}"
        raise failure(UnpickleError, path, problem) from error
    except MemoryError as error:
        raise failure(UnpickleError, path, ": too large for this machine's memory. Use a larger machine") from error
    except Exception as error:
        # An ill-formed pickle can raise anything.
        reason = f"{type(error).__name__}: {error}"[:200]
        raise failure(UnpickleError, path, f": damaged pickle ({reason}). Download it again") from error
    stream.seek(end)
    return result


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: Stream,
        path: Path,
        persistent: Callable[[Any], Any] | None,
        replacement: Callable[[str, str], Any],
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        self._persistent = persistent
        self._replacement = replacement

    def find_class(self, module: str, name: str) -> Any:
        function = self._replacement(module, name)
        if function is None:
            raise _refusal(self._path, module, name, None)
        return function

    def persistent_load(self, reference: Any) -> Any:
        if self._persistent is None:
            raise failure(UnpickleError, self._path, ": refers to objects outside the pickle. Download it again")
        return self._persistent(reference)


def _refusal(path: Path, module: str, name: str, place: int | None) -> ErcfusionError:
    byte = "" if place is None else f" (byte {place})"
    full = f"{module}.{name}"
    full = full if len(full) <= 60 and full.isprintable() else ascii(full)[1:57] + "..."
    return failure(
        UnpickleError,
        path,
        f": refused to build {full}{byte}; nothing of the file was executed",
        "Convert it if you trust it: docs/import-pickles.md, 'What is refused'",
    )
