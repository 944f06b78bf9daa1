"""Schema of files in the folders of runs and sweeps, and of records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ercfusion._core.schemas.common import (
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
from ercfusion.batch.task_schema import Task


class Typed(Open):
    """Typed arguments."""

    overrides: Annotated[list[Text], Field(max_length=10_000)]
    command: Text


class Overrides(Typed):
    """``overrides.json``: typed arguments and the run's identity."""

    run: Text


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
    processor: Text | None
    instructions: Text | None
    versions: dict[Name, Name]


class Winner(Open):
    """``rerun/winner.json`` of a sweep."""

    trial: Count
    settings: dict[Name, Value]


# Records


class Amount(Open):
    """Size of a split."""

    conversations: Count
    utterances: Count


class Corpus(Open):
    """The corpus of a run."""

    name: Name
    synthetic: bool
    fingerprint: Name
    dev_source: Text | None
    train: Amount
    reachable: dict[Name, Scores] | None = None


class Feature(Open):
    """The features of one modality."""

    modality: Name
    width: Positive
    level: Literal["utterance", "sequence"]
    source: dict[Name, Any]


class Selection(Open):
    """The chosen epoch."""

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
    """Cost of the run."""

    parameters: Annotated[int, Field(ge=0, lt=1 << 62)]
    seconds: Duration
    seconds_per_epoch: Duration
    peak_memory_mib: Annotated[float, Field(ge=0)] | None
    threads: Positive | None


class Optimism(Open):
    """Rise of scores if the epoch is chosen on test."""

    metric: Name
    dev_selected: float
    last_epoch: float
    test_selected: float
    test_selected_epoch: Count


Cells = Annotated[list[Annotated[list[Count], Field(min_length=3, max_length=3)]], Field(max_length=1_000_000)]


class Split(Open):
    """Scores and sums of a split (:func:`ercfusion.records.record.split_record`)."""

    conversations: Count
    utterances: Count
    per_class: dict[Name, dict[Name, float]] | None = None
    confusion: dict[str, Cells] | None = None
    shift: dict[str, Annotated[list[Count], Field(min_length=4, max_length=4)]] | None = None
    counts: dict[str, list[list[Count]]] | None = None
    divergence: dict[str, Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None
    moments: dict[str, list[list[float]]] | None = None


class File(Open):
    """Size and checksum of a file next to the record."""

    bytes: Count
    sha256: Checksum


class Unseen(Open):
    """Utterances of a split without any modality (:func:`ercfusion.records.missing.unseen_utterances`)."""

    utterances: Positive
    whole: Count
    of: Positive


# Of 10,000 conversations with 49 counts each.
SumsText = Annotated[str, Field(max_length=4_000_000)]


class LawResult(Open):
    """Test scores under one law of missing modalities."""

    metrics: Scores
    sums: dict[Name, SumsText | dict[Name, SumsText]]
    reachable: Scores | None = None
    unseen: Unseen | None = None


class Robustness(Open):
    """Test scores under several laws (:mod:`ercfusion.records.robustness`)."""

    seed: Seed
    laws: dict[Name, LawResult]


class RobustnessFile(Open):
    """``evaluation/robustness.json``: by task, for the model and the features with these checksums.

    ``asked`` are all laws of the commands that wrote it; after an interruption some of them have no scores.
    """

    model: Checksum
    features: Checksum
    asked: list[Name]
    tasks: dict[Name, Robustness]


class TaskResult(Open):
    """Results for one of a run's tasks."""

    protocol: Name
    task: Task
    selection: Selection
    metrics: dict[Name, Scores]
    intervals: Intervals
    majority: dict[Name, Scores]
    splits: dict[Name, Split]
    robustness: Robustness | None = None
    unlabelled: list[Name] | None = None
    conventions: dict[Name, Text] = {}

    @model_validator(mode="after")
    def _fits(self) -> TaskResult:
        for key, value in (("metrics", self.metrics), ("splits", self.splits)):
            if "test" not in value:
                raise ValueError(f"{key} has no split 'test'")
        size = self.task.spec().size
        for name, split in self.splits.items():
            _check_split(f"splits.{name}", split, size)
        return self


class ViewResult(TaskResult):
    """Scores of a run's outputs against a task with the same labels that it did not learn."""

    source: Name
    thresholds: Annotated[list[Share], Field(max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _has_thresholds(self) -> ViewResult:
        if self.thresholds is not None and len(self.thresholds) != self.task.spec().size:
            raise ValueError(f"thresholds has {len(self.thresholds)} values for {self.task.spec().size} outputs")
        return self


class Start(Open):
    """Initial weights and frozen parts (:class:`ercfusion.training.start.Start`)."""

    source: Name | None
    model: Name | None
    sha256: Checksum | None
    loaded: list[Name]
    left: list[Name]
    frozen: list[Name]
    fixed_mode: list[Name]
    trainable: Count
    parameters: Count


class Teacher(Open):
    """The model that a run learned from (:mod:`ercfusion.training.teacher`)."""

    source: Name
    model: Name
    protocol: Name
    modalities: Annotated[list[Name], Field(min_length=1, max_length=100)]
    sha256: Checksum


class TeacherFile(Teacher):
    """The description in ``teacher.safetensors``."""

    content: Checksum


class Stage(Open):
    """``stage.json``: a training before the run itself."""

    name: Name
    protocol: Name
    selection: Selection
    score: float
    parameters: Count
    seconds: Duration
    sha256: Checksum
    start: Start | None = None


class Recipe(Open):
    """The stages of a run with a recipe."""

    name: Name | None
    stages: list[Stage]


class MissingModalities(Open):
    """Laws of missing modalities (:func:`ercfusion.records.missing.missing_record`)."""

    laws: dict[Name, Name]
    seed: Count
    unseen: dict[Name, Unseen] = {}


class Record(TaskResult):
    """``record.json``; the top level has the task that chose the epoch."""

    format: Literal[2]
    finished: Name
    environment: Environment
    config: dict[Name, Any]
    command: Typed | None = None
    seed: Seed
    device: Name
    corpus: Corpus
    features: Annotated[list[Feature], Field(min_length=1, max_length=100)]
    cost: Cost
    others: dict[Name, TaskResult] = {}
    views: dict[Name, ViewResult] = {}
    optimism: Optimism | None = None
    batch_dependence: Text | None = None
    start: Start | None = None
    recipe: Recipe | None = None
    teacher: Teacher | None = None
    missing: MissingModalities | None = None
    files: dict[Name, File] | None = None


def _check_split(where: str, split: Split, size: int) -> None:
    """Raise ValueError unless a split's sums fit its task and each other."""
    first: list[str] | None = None
    for key in ("confusion", "shift", "counts", "divergence", "moments"):
        sums = getattr(split, key)
        if sums is None:
            continue
        if first is not None and sums.keys() != set(first):
            raise ValueError(f"{where}.{key} has other conversations than the sums before")
        first = list(sums)
        if len(sums) > split.conversations:  # fewer if two conversations have the same id
            raise ValueError(f"{where}.{key} has {len(sums)} conversations, more than {where}.conversations")
    for conversation, cells in (split.confusion or {}).items():
        positions = [(row, column) for row, column, _ in cells]
        if any(max(position) >= size for position in positions) or len(set(positions)) < len(positions):
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
    """An archive before its runs are expanded."""

    archive: Literal[2]
    shared: dict[Name, Any]
    runs: Annotated[list[dict[Name, Any]], Field(min_length=1, max_length=10_000)]


class OptimismFile(Optimism):
    """``evaluation/optimism.json``."""

    test_by_epoch: dict[Name, float]
