"""What a checkpoint of the trainer holds, checked before the trainer takes it over."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ercfusion._core.errors import RunError
from ercfusion._core.schemas.common import Checksum, Count, Name, Open, Scores, Text
from ercfusion._core.schemas.reading import check, failure, shown
from ercfusion._core.schemas.tensors import tensor_bytes

if TYPE_CHECKING:
    pass

ADVICE = "Restore the file, or begin a new run."


# Values in a checkpoint, besides those in tensors: a run of 10,000 epochs has 200,000.
_MOST = 2_000_000


class Origin(Open):
    """The run that made a checkpoint; see :mod:`ercfusion.training.origin`."""

    format: Literal[1]
    run: Text
    config: dict[Name, Any]
    data: dict[Name, Text]
    packs: dict[Name, Text]
    sha256: Checksum


class Checkpoint(Open):
    """The parts that the trainer and our callbacks read."""

    epoch: Count
    global_step: Count
    state_dict: dict[Name, Any]
    callbacks: dict[Name, Any]
    loops: dict[Name, dict[str, Any]]
    optimizer_states: Annotated[list[dict[str, Any]], Field(max_length=100)]
    lr_schedulers: Annotated[list[dict[str, Any]], Field(max_length=100)]
    ercfusion: Origin | None = None  # what a copied checkpoint of another program lacks


class SelectionState(Open):
    """State of :class:`ercfusion.training.callbacks.Selection`."""

    history: Annotated[list[Scores], Field(min_length=1)]
    curriculum: Text | None = None
    model: Checksum


def read_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint of plain containers and tensors; nothing in the file can run.

    Raises:
        RunError: missing, damaged, or with other content.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise failure(RunError, path, " is missing", ADVICE)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            total = sum(entry.file_size for entry in archive.infolist())
        if not stored or total > path.stat().st_size:  # a few bytes must not become many
            raise failure(RunError, path, " is not a checkpoint: its parts are compressed", ADVICE)
        with zipfile.ZipFile(path) as archive:
            if (changed := archive.testzip()) is not None:  # torch does not compare the checksums
                raise failure(RunError, path, f" is damaged: {shown(changed)} has another checksum", ADVICE)
        loaded = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:
        # torch raises various types here, among them bare RuntimeError and pickle's own. Its words advise to load
        # without restriction, which would let the file run code.
        reason = "it is damaged"
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            reason = "it holds other things than numbers, texts and tensors, or is damaged; nothing in it was run"
        raise failure(RunError, path, f" cannot be read as a checkpoint: {reason}", ADVICE) from error
    check(loaded, Checkpoint, path, advice=ADVICE)
    checked: dict[str, Any] = loaded
    return checked


def content_checksum(value: Any, most: float = float("inf")) -> str:
    """SHA-256 of plain containers, numbers, texts and tensors, in their order.

    Args:
        value: As it is saved, or as it was read.
        most: Bytes that its tensors may have together.

    Raises:
        ValueError: it has larger tensors, or more than 2,000,000 other values.
    """
    import torch

    digest = hashlib.sha256()
    size, count, waiting = 0, 0, [value]
    while waiting:
        entry = waiting.pop()
        count += 1
        if count + len(waiting) > _MOST:
            raise ValueError("it holds too many values")
        if isinstance(entry, torch.Tensor):
            size += entry.numel() * entry.element_size()
            if size > most:  # a view of a few bytes can have any shape
                raise ValueError("its tensors are larger than the file")
            digest.update(f"tensor {entry.dtype} {list(entry.shape)}\n".encode())
            digest.update(tensor_bytes(entry))
        elif isinstance(entry, Mapping):
            digest.update(f"mapping {len(entry)}\n".encode())
            for pair in entry.items():
                waiting += pair
        elif isinstance(entry, list | tuple):
            digest.update(f"list {len(entry)}\n".encode())
            waiting += entry
        else:
            text = repr(entry).encode("utf-8", "surrogatepass")
            digest.update(f"{type(entry).__name__} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def check_tensors(found: Mapping[str, Any], expected: Mapping[str, Any], path: str | Path, what: str) -> None:
    """Raise :class:`RunError` unless ``found`` has the tensors of ``expected``, by name and shape."""
    import torch

    for name in dict.fromkeys([*expected, *found]):
        if name not in found or name not in expected:
            problem = f"{shown(name)} is {'missing' if name not in found else 'unknown'}"
        elif not isinstance(found[name], torch.Tensor):
            problem = f"{shown(name)} is no tensor"
        elif found[name].shape != expected[name].shape or found[name].is_floating_point() != (
            expected[name].is_floating_point()
        ):
            shape, wanted = list(found[name].shape), list(expected[name].shape)
            problem = f"{shown(name)} is {shown(shape)}, but {shown(wanted)} is expected"
        else:
            continue
        raise failure(RunError, path, f": {what}: {problem}. It is of another model or damaged", ADVICE)


def check_optimizer(state: Mapping[str, Any], parameters: Sequence[Any], path: str | Path) -> None:
    """Raise :class:`RunError` unless an optimiser's state fits the parameters, in the optimiser's order."""
    import torch

    kept = state.get("state")
    if not isinstance(kept, dict):
        raise failure(RunError, path, ": the optimiser has no state", ADVICE)
    for number, entries in kept.items():
        known = isinstance(number, int) and 0 <= number < len(parameters)
        if not known or not isinstance(entries, dict):
            raise failure(RunError, path, f": the optimiser has a state of {shown(number)}", ADVICE)
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[number].shape:
                problem = f": the optimiser's {shown(name)} of parameter {number} has the shape {list(value.shape)}"
                raise failure(RunError, path, problem, ADVICE)
