"""The header of a safetensors file, checked before a tensor is read or mapped."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, RootModel

from ercfusion._core.errors import ErcfusionError, RunError
from ercfusion._core.schemas.common import Bytes, Closed, Name
from ercfusion._core.schemas.reading import check, failure, parse_json, shown

if TYPE_CHECKING:
    import torch

_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"U16": 2, "U32": 4, "U64": 8},
}
# Limit of the safetensors package.
_MOST = 100_000_000


class _Tensor(Closed):
    dtype: Name
    shape: Annotated[list[Bytes], Field(max_length=16)]
    data_offsets: Annotated[list[Bytes], Field(min_length=2, max_length=2)]


class _Tensors(RootModel[dict[Name, _Tensor]]):
    pass


@dataclass(frozen=True)
class Header:
    """Type (``F32``, ``I64``, ...), shape and first byte of a tensor in a file."""

    dtype: str
    shape: list[int]
    first: int


def read_header(path: str | Path, *, error: type[ErcfusionError] = RunError, advice: str = "") -> dict[str, Header]:
    """The tensors of a safetensors file by name, with sizes checked against the file."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _MOST):
                problem = f" is not a safetensors file: a header of {length} bytes does not fit into {size}"
                raise failure(error, path, problem, advice)
            text = stream.read(length)
    except OSError as bad:
        raise failure(error, path, f" cannot be read: {bad.strerror}", advice) from bad
    content: Any = parse_json(text, path, error=error, advice=advice)
    if isinstance(content, dict):
        content.pop("__metadata__", None)
    check(content, _Tensors, path, error=error, advice=advice)
    headers = {}
    end = 0
    for name, tensor in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = tensor["data_offsets"]
        width = _BYTES.get(tensor["dtype"])
        if width is None or first != end or last - first != width * prod(tensor["shape"]) or 8 + length + last > size:
            problem = f": the tensor {shown(name)} ({tensor['dtype'][:8]}, {shown(tensor['shape'])}) does not fit"
            raise failure(error, path, f"{problem} into bytes {first} to {last} of {size}", advice)
        end = last
        headers[name] = Header(tensor["dtype"], tensor["shape"], 8 + length + first)
    if 8 + length + end != size:
        raise failure(error, path, f": {size} bytes, but the header describes {8 + length + end}", advice)
    return headers


def tensor_bytes(tensor: torch.Tensor) -> memoryview | bytes:
    """The content of a tensor in row-major order, for a checksum."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
