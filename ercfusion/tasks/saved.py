"""Checks of the files of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ercfusion._core.errors import RunError
from ercfusion._core.files import sha256_of
from ercfusion._core.schemas.reading import failure, shown
from ercfusion._core.schemas.tensors import Header

DAMAGED = "Copy the folder again, or train again: the file was changed or damaged."


def file_state(path: Path) -> dict[str, Any] | None:
    """Size and checksum of a file, or None."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)} if path.is_file() else None


def check_sum(config: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`RunError` unless the checksum of the tensors is in the configuration."""
    known = [config[name][path.name] for name in ("files", "before") if path.name in config.get(name, {})]
    if file_state(path) not in known:
        raise failure(RunError, path, " was changed or damaged: config.json has another checksum of it", DAMAGED)


def check_tensors(state: Mapping[str, Tensor], tensors: Mapping[str, Header], path: Path) -> None:
    """Raise :class:`RunError` unless a file contains the tensors of ``state``, by name and shape."""
    expected = {name: list(value.shape) for name, value in state.items()}
    for name in dict.fromkeys([*expected, *tensors]):
        if name not in tensors or name not in expected:
            problem = f"the tensor {shown(name)} is {'missing' if name not in tensors else 'unknown'}"
        elif tensors[name].shape != expected[name]:
            problem = (
                f"the tensor {shown(name)} is {shown(tensors[name].shape)}, but {shown(expected[name])} is expected"
            )
        else:
            continue
        raise failure(RunError, path, f" does not fit its config.json: {problem}", DAMAGED)
