"""Types shared by the schemas."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Larger sizes would overflow 32-bit indices.
MOST = (1 << 31) - 1

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, Field(ge=0, le=1e12)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Scores = dict[Name, float]


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list) and all(isinstance(item, bool | int | float | str | None) for item in value):
        return value
    raise ValueError(
        f"found a {type(value).__name__} inside; a number, a text, true, false, null or a list is expected"
    )


Value = Annotated[Any, AfterValidator(_value)]
"""A setting's value: a scalar, or a list of scalars."""


class Open(BaseModel):
    """A mapping whose listed keys are checked; other keys, from other versions, are ignored."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Closed(BaseModel):
    """A mapping with the listed keys and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class FileEntry(Open):
    """Size and checksum of a file."""

    bytes: Bytes
    sha256: Checksum
