"""Schemas of the files of feature packs and of unfinished extractions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ercfusion._core.schemas.common import MOST, Bytes, Checksum, Count, FileEntry, Name, Open, Text


class Files(Open):
    """The files next to ``pack.json``."""

    keys_: FileEntry = Field(alias="utterances.parquet")
    values_: FileEntry = Field(alias="values.safetensors")
    recordings_: FileEntry | None = Field(default=None, alias="recordings.json")


class Remark(Open):
    """A turn without features, or with odd ones."""

    conversation: Text
    turn: Text
    reason: Text
    remark: Text = ""


class Recording(Open):
    """A source file of the values of a pack."""

    path: Name
    bytes: Bytes
    modified: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
    sha256: Checksum | Literal[""]
    used: bool = True


class Recordings(Open):
    """``recordings.json``."""

    recordings: list[Recording]


class TrainedOn(Open):
    """Labels behind trained values."""

    corpus: Name
    corpus_fingerprint: Text = ""
    protocol: Name
    split: Name
    conversations: dict[str, list[str]]


class Machine(Open):
    """The processor that wrote a pack."""

    processor: Text
    instructions: Text | None = None
    threads: Count | None = None


class Manifest(Open):
    """``pack.json``."""

    format: Literal["ercfusion-pack"]
    format_version: Literal[1]
    modality: Name
    level: Literal["utterance", "sequence"]
    tool: Name
    tool_version: Text
    settings: dict[str, Any]
    dimensions: Annotated[list[Text], Field(max_length=10_000_000)] | None
    rows: Bytes
    keys: Count
    width: Annotated[int, Field(ge=0, le=MOST)]
    dtype: Literal["float32", "float16"]
    corpus: Name
    corpus_fingerprint: Name
    sources: dict[str, Text]
    licence: Text
    created: Text
    files: Files
    ercfusion: Text
    machine: Machine | None = None
    missing: list[Remark] = []
    notes: list[Remark] = []
    trained_on: list[TrainedOn] | None = None


class Work(Open):
    """``work.json`` of an extraction: origin of its results."""

    tool_version: Text
    corpus: Name
    corpus_fingerprint: Name
