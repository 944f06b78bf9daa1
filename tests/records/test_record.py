"""The parts of a record that need no run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ercfusion._core.errors import RunError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.metrics.registry import metric_names, score_source, scores
from ercfusion.records.record import record_sums, split_record

TASKS = {
    "single_label": TaskSpec("emotion", "single_label", get_schema("iemocap6")),
    "distribution": TaskSpec("emotion", "distribution", get_schema("iemocap6")),
    "multi_label": TaskSpec("emotions", "multi_label", LabelSchema("three", ("a", "b", "c"))),
    "regression": TaskSpec("sentiment", "regression", dimensions=("own", "other"), low=-3, high=3),
}
LENGTHS = (6, 1, 9, 4)


def make(task: TaskSpec) -> Predictions:
    rng = np.random.default_rng(0)
    count, size = sum(LENGTHS), task.size
    output = rng.dirichlet(np.ones(size), count)
    value: Any = (rng.random((count, size)) < 0.4).astype(np.float32)
    if task.kind == "single_label":
        value = rng.integers(0, 2, count)
    elif task.kind == "distribution":
        value = rng.dirichlet([9, 6, 1, 1, 1, 1], count).astype(np.float32)
    elif task.kind == "regression":
        value = rng.uniform(-3, 3, (count, size)).astype(np.float32)
        output = value + rng.normal(size=value.shape)
    return Predictions(
        task=task,
        output=output,
        value=value,
        valid=np.arange(count) < count - LENGTHS[-1],  # nothing of the last conversation is labelled
        lengths=LENGTHS,
        speaker=rng.integers(0, 2, count),
        conversation_ids=("d", "b", "a", "c"),
        turn_ids=tuple(map(str, range(count))),
    )


def record_of(predictions: Predictions) -> dict[str, Any]:
    """A record as it is read back from its file."""
    record = {"task": predictions.task.to_dict(), "splits": {"test": split_record(predictions)}}
    read: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
    return read


@pytest.mark.parametrize("kind", TASKS)
def test_sums_come_back(kind: str) -> None:
    predictions = make(TASKS[kind])
    ids, sums = record_sums(record_of(predictions))
    expected = conversation_sums(predictions)
    assert ids == ["d", "b", "a", "c"]
    assert set(sums) == set(expected)
    for key, array in sums.items():
        assert array.dtype == expected[key].dtype
        if key in ("divergence", "moments"):
            assert array == pytest.approx(expected[key], rel=6e-9)
        else:
            assert np.array_equal(array, expected[key])


@pytest.mark.parametrize("kind", TASKS)
def test_scores_come_back(kind: str) -> None:
    predictions = make(TASKS[kind])
    _, sums = record_sums(record_of(predictions))
    point = scores(predictions)
    for metric in metric_names(predictions.task):
        if source := score_source(predictions.task, metric):
            assert source[1](sums[source[0]].sum(axis=0)) == pytest.approx(point[metric], abs=1e-7), metric


def test_what_is_kept() -> None:
    predictions = make(TASKS["single_label"])
    kept = split_record(predictions)
    assert list(kept) == ["conversations", "utterances", "per_class", "confusion", "shift"]
    shift = conversation_sums(predictions)["shift"]
    assert kept["shift"]["a"] == [shift[2, 0, 0], shift[2, 0, 1], shift[2, 1, 0], shift[2, 1, 1]]
    assert kept["confusion"]["c"] == []
    assert sum(cell[2] for cell in kept["confusion"]["a"]) == 9
    assert list(split_record(make(TASKS["multi_label"]))) == ["conversations", "utterances", "per_class", "counts"]
    moments = split_record(make(TASKS["regression"]))["moments"]
    assert moments["c"] == [[0.0] * 18] * 2
    assert moments["a"][1][0] == 9
    assert all(float(f"{number:.9g}") == number for number in moments["a"][0])


def test_order_is_that_of_the_first_key() -> None:
    record = record_of(make(TASKS["single_label"]))
    shift = record["splits"]["test"]["shift"]
    record["splits"]["test"]["shift"] = dict(sorted(shift.items()))
    ids, sums = record_sums(record)
    assert ids == ["d", "b", "a", "c"]
    assert [counts.ravel().tolist() for counts in sums["shift"]] == [shift[name] for name in ids]


def test_records_without_sums_and_errors() -> None:
    record = record_of(make(TASKS["distribution"]))
    del record["splits"]["test"]["shift"]
    ids, sums = record_sums(record)
    assert len(ids) == 4
    assert list(sums) == ["confusion", "divergence"]
    record = record_of(make(TASKS["regression"]))
    for rows in record["splits"]["test"]["moments"].values():
        rows[:] = [row[:5] for row in rows]
    with pytest.raises(RunError, match=r"splits\.test\.moments .* shape \(\d, 5\) .* of \(\d, \d+\)"):
        record_sums(record)
    del record["splits"]["test"]["moments"]
    assert record_sums(record) == ([], {})
    with pytest.raises(RunError, match=r"no split 'dev'\. Choose from: test"):
        record_sums(record, "dev")
