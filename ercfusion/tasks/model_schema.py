"""Schemas of a saved model's configuration and of the description in a predictions file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ercfusion._core.schemas.common import FileEntry, Name, Open, Positive, Share, Value
from ercfusion.batch.task_schema import Task

# Limit of memory: every input and speaker has parameters.
_MOST = 1_000_000


class Inputs(Open):
    """:meth:`ercfusion.batch.InputSpec.to_dict`."""

    widths: Annotated[dict[Name, Annotated[int, Field(ge=1, le=_MOST)]], Field(min_length=1, max_length=100)]
    levels: dict[Name, Literal["utterance", "sequence"]]
    speakers: Annotated[int, Field(ge=1, le=_MOST)]
    labels: Annotated[list[Name], Field(max_length=_MOST)] = []
    dimensions: Annotated[list[Name], Field(max_length=_MOST)] = []
    policy: Name | None = None


class ModelConfig(Open):
    """``model/config.json``; the options are checked by the architecture."""

    format: Literal[1]
    architecture: Name
    options: dict[Name, Value]
    inputs: Inputs
    task: Task
    others: list[Task] = []
    unimodal: bool
    label_smoothing: Share
    regression_loss: Name
    label_dimension: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    probe: bool
    files: dict[Name, FileEntry] = {}
    before: dict[Name, FileEntry] = {}  # while the weights are replaced


class PredictionsHead(Open):
    """The description in ``predictions.parquet``."""

    format: Positive
    task: Task
    thresholds: dict[Name, list[Share] | None]

    @model_validator(mode="after")
    def _fits(self) -> PredictionsHead:
        size = self.task.spec().size
        for split, cut in self.thresholds.items():
            if cut is not None and len(cut) != size:
                raise ValueError(f"thresholds.{split} has {len(cut)} values for {size} outputs")
        return self
