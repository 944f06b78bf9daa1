from __future__ import annotations

import json

import pytest

from ercfusion._core.errors import BatchError
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.testing import make_task


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_json(kind: str) -> None:
    task = make_task(kind)
    again = TaskSpec.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert again.output_names == task.output_names


def test_round_trip_keeps_what_is_not_a_default() -> None:
    schema = LabelSchema("s", ("a", "b"), {"x": "a"}, neutral="b")
    task = TaskSpec("t", "single_label", schema, metric="accuracy")
    again = TaskSpec.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert again.schema is not None
    assert again.schema.index("x") == 0
    assert again.schema.neutral == "b"
    numbers = TaskSpec("t", "regression", dimensions=("v",), low=1, high=5, metric="ccc")
    assert TaskSpec.from_dict(json.loads(json.dumps(numbers.to_dict()))) == numbers


def test_sizes_names_and_metrics() -> None:
    labels = TaskSpec("t", "multi_label", get_schema("meld3"))
    assert (labels.size, labels.output_names, labels.metric) == (
        3,
        ("neutral", "positive", "negative"),
        "weighted_f1",
    )
    numbers = TaskSpec("t", "regression", dimensions=("v", "a"))
    assert (numbers.size, numbers.output_names, numbers.metric) == (2, ("v", "a"), "mae")


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="'ranking' is not a task kind"):
        TaskSpec("t", "ranking", get_schema("meld3"))
    with pytest.raises(ValueError, match="a single_label task needs a schema"):
        TaskSpec("t", "single_label")
    with pytest.raises(ValueError, match="a regression task takes no schema"):
        TaskSpec("t", "regression", get_schema("meld3"), ("v",))
    with pytest.raises(ValueError, match="a regression task names its dimensions"):
        TaskSpec("t", "regression")


def test_input_spec() -> None:
    spec = InputSpec({"text": 3, "mocap": 4}, {"mocap": "sequence"}, speakers=5)
    assert spec.modalities == ("text", "mocap")
    assert dict(spec.levels) == {"text": "utterance", "mocap": "sequence"}
    again = InputSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.modalities == spec.modalities
    with pytest.raises(BatchError, match="at least one modality"):
        InputSpec({})
