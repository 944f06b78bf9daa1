"""Schema of a checkpoint."""

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


# Values outside tensors; 10,000 epochs have 200,000.
_MOST = 2_000_000


class Origin(Open):
    """The run behind a checkpoint (:mod:`ercfusion.training.origin`)."""

    format: Literal[1]
    run: Text
    config: dict[Name, Any]
    data: dict[Name, Text]
    packs: dict[Name, Text]
    sha256: Checksum


class Checkpoint(Open):
    """The parts read by the trainer and our callbacks."""

    epoch: Count
    global_step: Count
    state_dict: dict[Name, Any]
    callbacks: dict[Name, Any]
    loops: dict[Name, dict[str, Any]]
    optimizer_states: Annotated[list[dict[str, Any]], Field(max_length=100)]
    lr_schedulers: Annotated[list[dict[str, Any]], Field(max_length=100)]
    ercfusion: Origin | None = None  # a checkpoint of another program has none


class SelectionState(Open):
    """State of :class:`ercfusion.training.callbacks.Selection`."""

    history: Annotated[list[Scores], Field(min_length=1)]
    curriculum: Text | None = None
    model: Checksum


def read_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint of plain containers and tensors; no code in it can run.

    Raises:
        RunError: missing, damaged, or with other content.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise failure(RunError, path, " is missing", ADVICE)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
            total = sum(part.file_size for part in archive.infolist())
        if not stored or total > path.stat().st_size:  # a small file must not unpack to a huge one
            raise failure(RunError, path, " is not a checkpoint: its parts are compressed", ADVICE)
        with zipfile.ZipFile(path) as archive:
            if (changed := archive.testzip()) is not None:  # torch does not check the checksums
                raise failure(RunError, path, f" is damaged: {shown(changed)} has another checksum", ADVICE)
        loaded = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except (RunError, PermissionError):
        raise  # no damage
    except MemoryError as error:
        raise failure(RunError, path, " does not fit into memory", "Free memory, and try again.") from error
    except Exception as error:
        # torch raises many types here. Its text recommends loading without restriction, so it is not shown.
        reason = "it is damaged"
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            reason = "it is damaged or holds more than numbers, texts and tensors; no code in it was run"
        raise failure(RunError, path, f" cannot be read as a checkpoint: {reason}", ADVICE) from error
    check(loaded, Checkpoint, path, advice=ADVICE)
    checked: dict[str, Any] = loaded
    return checked


def content_checksum(value: Any, most: float = float("inf")) -> str:
    """SHA-256 of nested plain containers, numbers, texts and tensors, in their order.

    Args:
        most: Maximum bytes of all tensors.

    Raises:
        ValueError: larger tensors, or more than 2,000,000 other values.
    """
    import torch

    digest = hashlib.sha256()
    size, count, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        count += 1
        if count + len(waiting) > _MOST:
            raise ValueError("it holds too many values")
        if isinstance(item, torch.Tensor):
            size += item.numel() * item.element_size()
            if size > most:  # a view of a few bytes can claim any shape
                raise ValueError("its tensors are larger than the file")
            digest.update(f"tensor {item.dtype} {list(item.shape)}\n".encode())
            digest.update(tensor_bytes(item))
        elif isinstance(item, Mapping):
            digest.update(f"mapping {len(item)}\n".encode())
            for pair in item.items():
                waiting += pair
        elif isinstance(item, list | tuple):
            digest.update(f"list {len(item)}\n".encode())
            waiting += item
        else:
            text = repr(item).encode("utf-8", "surrogatepass")
            digest.update(f"{type(item).__name__} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def check_tensors(tensors: Mapping[str, Any], expected: Mapping[str, Any], path: str | Path, what: str) -> None:
    """Raise :class:`RunError` unless ``tensors`` has the names and shapes of ``expected``."""
    import torch

    for name in dict.fromkeys([*expected, *tensors]):
        if name not in tensors or name not in expected:
            problem = f"{shown(name)} is {'missing' if name not in tensors else 'unknown'}"
        elif not isinstance(tensors[name], torch.Tensor):
            problem = f"{shown(name)} is not a tensor"
        elif tensors[name].shape != expected[name].shape or tensors[name].is_floating_point() != (
            expected[name].is_floating_point()
        ):
            shape, wanted = list(tensors[name].shape), list(expected[name].shape)
            problem = f"{shown(name)} has the shape {shown(shape)} instead of {shown(wanted)}"
        else:
            continue
        raise failure(RunError, path, f": {what}: {problem}. The file is of another model or damaged", ADVICE)


def check_optimizer(state: Mapping[str, Any], parameters: Sequence[Any], path: str | Path) -> None:
    """Raise :class:`RunError` unless an optimiser's state fits its parameters."""
    import torch

    moments = state.get("state")
    if not isinstance(moments, dict):
        raise failure(RunError, path, ": the optimiser has no state", ADVICE)
    for number, entries in moments.items():
        known = isinstance(number, int) and 0 <= number < len(parameters)
        if not known or not isinstance(entries, dict):
            raise failure(RunError, path, f": the optimiser has a state for parameter {shown(number)}", ADVICE)
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[number].shape:
                problem = f": the optimiser's {shown(name)} of parameter {number} has the shape {list(value.shape)}"
                raise failure(RunError, path, problem, ADVICE)
