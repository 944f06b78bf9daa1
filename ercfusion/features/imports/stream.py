"""Reads one pickle of a stream with a closed list of names; see :mod:`ercfusion.features.imports.unpickle`."""

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
"""What stands for a module and a name of torch, given the limits and whether the pickle is nested; None refuses it."""


def load_stream(
    stream: Stream,
    limits: Limits,
    tensor_names: Names,
    persistent: Callable[[Any], Any] | None = None,
    *,
    inner: bool = False,
) -> Any:
    """One pickle from where the stream stands, which is behind it afterwards.

    Args:
        stream: Seekable.
        limits: What reading may take; it is less afterwards.
        tensor_names: What stands for a name of torch.
        persistent: What to make of the file's references to objects outside of the pickle (torch uses them for the
            contents of tensors); None refuses them.
        inner: The pickle is inside a tensor of another pickle: nothing may be nested any deeper.

    Raises:
        UnpickleError: see :func:`~ercfusion.features.imports.unpickle.safe_load`.
    """
    path = limits.path
    data: Any = stream if isinstance(stream, mmap.mmap) else stream.getvalue()
    start = stream.tell()

    def known(module: str, name: str) -> Any:
        # What stands for a name of a file; None for one that is refused.
        if (module, name) in SAMPLES:
            return Sample
        function = KNOWN.get((module, name))
        if function is None and module.partition(".")[0] == "torch":
            function = tensor_names(module, name, limits, inner)
        return None if function is None else Call(f"{module.replace('__builtin__', 'builtins')}.{name}", function)

    def check_name(module: str, name: str, place: int) -> None:
        if known(module, name) is None:
            raise _refusal(path, module, name, place)

    end = Scan(data, limits, persistent is not None, check_name).run(start)
    stream.seek(start)
    try:
        result = _Unpickler(stream, path, persistent, known).load()
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


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: Stream,
        path: Path,
        persistent: Callable[[Any], Any] | None,
        known: Callable[[str, str], Any],
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        self._persistent = persistent
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        found = self._known(module, name)
        if found is None:
            raise _refusal(self._path, module, name, None)
        return found

    def persistent_load(self, reference: Any) -> Any:
        if self._persistent is None:
            raise failure(UnpickleError, self._path, ": the pickle refers to objects outside of it")
        return self._persistent(reference)


def _refusal(path: Path, module: str, name: str, place: int | None) -> ErcfusionError:
    where = "" if place is None else f" (byte {place})"
    asked = f"{module}.{name}"
    asked = asked if len(asked) <= 60 and asked.isprintable() else ascii(asked)[1:57] + "..."
    problem = f": refused to build {asked}{where}; nothing of the file was executed"
    return failure(
        UnpickleError, path, problem, "If you trust it, convert it: docs/import-pickles.md, 'What is refused'"
    )
