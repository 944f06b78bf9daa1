"""Schema of a task in files; see :meth:`ercfusion.batch.task.TaskSpec.to_dict`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ercfusion._core.schemas.common import Name, Open, Text
from ercfusion.batch.task import TaskSpec


class Labels(Open):
    """:class:`ercfusion.batch.labels.LabelSchema`."""

    name: Name
    labels: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    synonyms: dict[Name, Name]
    neutral: Name | None


class Task(Open):
    """:meth:`ercfusion.batch.task.TaskSpec.to_dict`."""

    name: Name
    kind: Name
    labels: Labels | None = Field(alias="schema")
    dimensions: Annotated[list[Name], Field(max_length=10_000)]
    low: float
    high: float
    metric: Text

    @model_validator(mode="after")
    def _fits(self) -> Task:
        if len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError("dimensions contains a name twice")
        if self.labels is not None and self.labels.neutral not in (None, *self.labels.labels):
            raise ValueError("schema.neutral is not one of the labels")
        self.spec()
        return self

    def spec(self) -> TaskSpec:
        """The task.

        Raises:
            ValueError: the parts do not fit together.
        """
        return TaskSpec.from_dict(self.model_dump(by_alias=True))
