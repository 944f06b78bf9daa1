"""What a run folder, a sweep's folder, and the records of runs hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

import ercfusion.conf
from ercfusion._core.overrides import NULLABLE, TEXT_OR_SECTION
from ercfusion._core.schemas.common import (
    MOST,
    Checksum,
    Closed,
    Count,
    Duration,
    Name,
    Open,
    Positive,
    Scores,
    Seed,
    Share,
    Text,
    Value,
)
from ercfusion._core.schemas.reading import read_yaml
from ercfusion.batch.task_schema import Task

# Settings


def _module(name: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise ValueError(f"found {name[:40]!r}, but the name of a module is expected")
    return name


Module = Annotated[str, AfterValidator(_module)]


class Preset(Open):
    """The choices of the groups ``model`` and ``data``."""

    model: Name
    data: Name


class Data(Open):
    """The group ``data``."""

    name: Name
    raw: Text | None
    protocol: Text | None
    modalities: Annotated[list[Name], Field(max_length=100)] | None
    encoder: Text | None
    packs: dict[Name, Text]
    options: dict[Name, Value]


class Model(BaseModel):
    """The group ``model``; the options are checked by the architecture."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, Value]
    name: Name


class Overrides(Open):
    """``overrides.json``: what was typed, and which run it is."""

    overrides: Annotated[list[Text], Field(max_length=10_000)]
    command: Text
    run: Text = ""


class Revision(Open):
    """A commit of the sources."""

    commit: Name
    dirty: bool


class Environment(Open):
    """``environment.json``."""

    ercfusion: Name
    revision: Revision | None
    python: Name
    system: Name
    cpus: Positive | None
    processor: Text | None = None
    instructions: Text | None = None
    versions: dict[Name, Name]


# Settings that the first version had: they are in every run's folder.
_FIRST = {
    "training": (
        *("batch_size", "length_aware", "standardize", "max_epochs", "patience", "gradient_clip", "metric"),
        *("keep_every_epoch", "threads", "tensorboard", "bootstrap"),
    ),
    "objective": ("weights", "class_weights", "label_smoothing", "regression_loss"),
    "trainer": ("accelerator", "devices", "strategy", "precision"),
    "optimizer": ("name", "lr"),
    "scheduler": ("name",),
    "curriculum": ("name",),
}
# A setting that no default tells the type of.
_KINDS: dict[type, Any] = {bool: bool, int: Annotated[int, Field(ge=-MOST, le=MOST)], float: float, str: Text}


@cache
def run_config() -> type[BaseModel]:
    """``config.json`` of a run: types are those of the defaults in the package's configuration groups."""
    return create_model("RunConfig", __base__=Open, **_fields(data=(Data, ...), model=(Model, ...)))


@cache
def record_config() -> type[BaseModel]:
    """The configuration in a record; an archive leaves out where things were."""
    return create_model("RecordConfig", __base__=Open, **_fields(data=(Data, ...), model=(Model, ...), local=False))


def _fields(*, local: bool = True, **parts: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "preset": (Preset, ...),
        "seed": (Seed, ...),
        "imports": (Annotated[list[Module], Field(max_length=1_000)], ...),
        "run": (Text | None, ... if local else None),
        "output": (Text, ...) if local else (Text | None, None),
        "resume": (Text | None, None),
    }
    for section, needed in _FIRST.items():
        required = section != "curriculum"
        found = _section(section, _defaults(section), needed)
        fields[section] = (found, ... if required else None)
    fields["task"] = (_section("task", {"name": "recognition", "export": False}, ()), None)
    return {**fields, **parts}


def _section(name: str, defaults: Mapping[str, Any], needed: tuple[str, ...]) -> Any:
    fields: dict[str, Any] = {}
    for key, default in defaults.items():
        full = f"{name}.{key}"
        example = NULLABLE.get(full) if default is None else default
        kind: Any
        if full == "objective.weights":
            kind = dict[Name, float]
        elif full in TEXT_OR_SECTION:
            kind = Text | dict[Name, float]
        elif isinstance(example, dict):
            kind = _section(full, example, ())
        elif isinstance(example, list):
            kind = Annotated[
                list[float] if example and isinstance(example[0], float) else list[Text], Field(max_length=1000)
            ]
        else:
            kind = _KINDS.get(type(example), Value)
        if default is None or full in NULLABLE:
            kind = kind | None if example is not None else Value
        fields[key] = (kind, ... if key in needed else None)
    return create_model(name.replace(".", "_"), __base__=Open, **fields)


def _defaults(section: str) -> dict[str, Any]:
    """The settings of all choices of a group with an example of a value each."""
    found: dict[str, Any] = {}
    for path in sorted((Path(ercfusion.conf.__file__).parent / section).glob("*.yaml")):
        for key, value in read_yaml(path, floats=True).items():
            if key == "defaults":
                continue
            if isinstance(value, dict):
                value = {**found.get(key, {}), **value}
            if found.get(key) is None or isinstance(value, dict | float):
                found[key] = value
    return found


class Study(Open):
    """What a sweep's folder says about its study."""

    metric: Name
    synthetic: bool
    identity: dict[Name, Any]
    data: dict[Name, Text] = {}  # earlier versions wrote none


@cache
def sweep_config() -> type[BaseModel]:
    """``config.json`` of a sweep."""
    settings = read_yaml(Path(ercfusion.conf.__file__).parent / "sweep.yaml", floats=True)["sweep"]
    parts: dict[str, Any] = {
        "sweep": (_section("sweep", settings, tuple(settings)), ...),
        "space": (dict[Name, dict[Name, Value]], ...),
        "typed": (dict[Name, Any], ...),
        "place": (Name, ...),
        "command": (Text, ...),
        "study": (Study, ...),
    }
    return create_model("SweepConfig", __base__=Open, **_fields(data=(Data, ...), model=(Model, ...), **parts))


class Winner(Open):
    """``rerun/winner.json`` of a sweep."""

    trial: Count
    settings: dict[Name, Value] = {}


# Records


class Amount(Open):
    """Of a split."""

    conversations: Count
    utterances: Count


class Corpus(Open):
    """The corpus of a run."""

    name: Name
    synthetic: bool
    fingerprint: Name
    dev_source: Text | None = None
    train: Amount
    reachable: dict[Name, Scores] | None = None


class Feature(Open):
    """The features of one modality."""

    modality: Name
    width: Positive
    level: Literal["utterance", "sequence"]
    source: dict[Name, Any]


class Selection(Open):
    """Which epoch was chosen."""

    split: Name
    metric: Name
    epoch: Positive
    epochs: Positive


Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]


class Intervals(Open):
    """Of the test scores."""

    level: Share
    resampled: Name
    test: dict[Name, Bounds]
    none: dict[Name, Text] | None = None


class Cost(Open):
    """What the run cost."""

    parameters: Annotated[int, Field(ge=0, lt=1 << 62)]
    seconds: Duration
    seconds_per_epoch: Duration
    peak_memory_mib: Annotated[float, Field(ge=0)] | None = None
    threads: Positive | None = None


class Optimism(Open):
    """How far scores rise if the epoch is chosen on test."""

    metric: Name
    dev_selected: float
    last_epoch: float
    test_selected: float
    test_selected_epoch: Count


Cells = Annotated[list[Annotated[list[Count], Field(min_length=3, max_length=3)]], Field(max_length=1_000_000)]


class Split(Open):
    """Scores and sums of a split; see :func:`ercfusion.records.record.split_record`."""

    conversations: Count
    utterances: Count
    per_class: dict[Name, dict[Name, float]] | None = None
    confusion: dict[str, Cells] | None = None
    shift: dict[str, Annotated[list[Count], Field(min_length=4, max_length=4)]] | None = None
    counts: dict[str, list[list[Count]]] | None = None
    moments: dict[str, list[list[float]]] | None = None


class File(Open):
    """Size and checksum of a file next to the record."""

    bytes: Count
    sha256: Checksum


class Record(Open):
    """``record.json``, and an entry of an archive once it is expanded."""

    format: Literal[1]
    finished: Name
    environment: Environment
    config: dict[Name, Any]
    command: Overrides | None = None
    seed: Seed
    device: Name
    protocol: Name
    task: Task
    corpus: Corpus
    features: Annotated[list[Feature], Field(min_length=1, max_length=100)]
    selection: Selection
    metrics: dict[Name, Scores]
    intervals: Intervals
    majority: dict[Name, Scores]
    splits: dict[Name, Split]
    cost: Cost
    optimism: Optimism | None = None
    unlabelled: list[Name] | None = None
    conventions: dict[Name, Text] = {}
    batch_dependence: Text | None = None
    files: dict[Name, File] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Record:
        for key, value in (("metrics", self.metrics), ("splits", self.splits)):
            if "test" not in value:
                raise ValueError(f"{key} has no split 'test'")
        size = self.task.spec().size
        for name, split in self.splits.items():
            _check_split(f"splits.{name}", split, size)
        return self


def _check_split(where: str, split: Split, size: int) -> None:
    """Raise ValueError unless the sums of a split fit the outputs of its task and each other."""
    first: list[str] | None = None
    for key in ("confusion", "shift", "counts", "moments"):
        kept = getattr(split, key)
        if kept is None:
            continue
        if first is not None and kept.keys() != set(first):
            raise ValueError(f"{where}.{key} has other conversations than the sums before it")
        first = list(kept)
        if len(kept) > split.conversations:  # fewer where two conversations have the same id
            raise ValueError(f"{where}.{key} has {len(kept)} conversations, but {where}.conversations says otherwise")
    for conversation, cells in (split.confusion or {}).items():
        places = [(row, column) for row, column, _ in cells]
        if any(max(place) >= size for place in places) or len(set(places)) < len(places):
            raise ValueError(f"{where}.confusion of {conversation[:40]!r} does not fit {size} labels")
    if split.confusion is not None:
        total = sum(count for cells in split.confusion.values() for _, _, count in cells)
        if total > split.utterances:
            raise ValueError(f"{where}.confusion counts {total} utterances, {where}.utterances is {split.utterances}")
    for key, least in (("counts", 3), ("moments", 1)):
        widths = set()
        for conversation, rows in (getattr(split, key) or {}).items():
            widths |= {len(row) for row in rows}
            if len(rows) != size or len(widths) > 1 or min(widths) < least:
                raise ValueError(f"{where}.{key} of {conversation[:40]!r} does not fit {size} outputs")


class Archive(Closed):
    """An archive before its entries are expanded."""

    archive: Literal[1]
    shared: dict[Name, Any]
    runs: Annotated[list[dict[Name, Any]], Field(min_length=1, max_length=10_000)]


class OptimismFile(Optimism):
    """``evaluation/optimism.json``."""

    test_by_epoch: dict[Name, float]
