"""Schema of a sweep's storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ercfusion._core.schemas.common import MOST, Count, Duration, Name, Open, Positive, Text
from ercfusion._core.schemas.reading import described_problem

# Written before "ready".
_FOUNDED = ("format", "founder", "identity", "trials")
_Number = Annotated[int, Field(ge=-MOST, le=MOST)] | float


class StudyAttributes(Open):
    """Of the study, as far as written."""

    format: Positive | None = None
    founder: Name | None = None
    identity: dict[Name, Any] = {}
    trials: Positive = 1
    ready: bool = False


class Result(Open):
    """The end of a trial (:mod:`ercfusion.search.worker`)."""

    value: float | None = None
    epoch: Count | None = None
    epochs: Count | None = None
    seconds: Duration | None = None
    settings: dict[Name, Any] = {}
    reason: Text | None = None


class TrialAttributes(Open):
    """Of a trial."""

    owner: Annotated[list[Any], Field(min_length=2, max_length=2)] | None = None
    starts: Annotated[list[Count], Field(max_length=100_000)] = []
    beat: _Number | None = None
    lost: Text | None = None
    continues: Annotated[list[Any], Field(min_length=2, max_length=2)] | None = None
    result: Result = Result()

    @model_validator(mode="after")
    def _fits(self) -> TrialAttributes:
        for name, pair in (("owner", self.owner), ("continues", self.continues)):
            if pair is not None and not (isinstance(pair[0], str) and type(pair[1]) is int and 0 <= pair[1] <= MOST):
                raise ValueError(f"{name} is not a place and a number")
        return self


def study_problem(attributes: Mapping[str, Any], trials: Sequence[Any], space: Mapping[str, Any] | None) -> str:
    """The first problem of a study, or empty.

    Args:
        trials: Optuna's frozen trials.
        space: None if the study may be another sweep's.
    """
    try:
        StudyAttributes.model_validate(attributes, strict=True)
    except ValidationError as error:
        return f"the study{described_problem(error, StudyAttributes)}"
    if attributes.get("ready") and (lacking := [key for key in _FOUNDED if key not in attributes]):
        return f"the study has no {lacking[0]!r}"
    for place, trial in enumerate(trials):
        if trial.number != place:
            return f"trial {trial.number} is in position {place}"
        try:
            TrialAttributes.model_validate(trial.user_attrs, strict=True)
        except ValidationError as error:
            return f"trial {place}{described_problem(error, TrialAttributes)}"
        if space is not None and (unknown := [name for name in trial.params if name not in space]):
            return f"trial {place} has a setting {unknown[0][:60]!r} outside the search space"
        if trial.state.name == "COMPLETE" and (trial.value is None or not isfinite(trial.value)):
            return f"trial {place} is complete without a score"
        if any(type(step) is not int or step < 0 for step in trial.intermediate_values):
            return f"trial {place} has a score without an epoch"
    return ""
