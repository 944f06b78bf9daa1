from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ercfusion._core.errors import RunError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.records.predictions import read_predictions, write_predictions

TASKS = [
    TaskSpec("emotion", "single_label", get_schema("meld7")),
    TaskSpec("emotion", "distribution", get_schema("iemocap6")),
    TaskSpec("emotions", "multi_label", LabelSchema("three", ("a", "b", "c"))),
    TaskSpec("vad", "regression", dimensions=("valence", "arousal"), low=1, high=5),
    TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3),
]


def make(task: TaskSpec, seed: int = 0, lengths: tuple[int, ...] = (3, 1, 5)) -> Predictions:
    rng = np.random.default_rng(seed)
    count, size = sum(lengths), task.size
    valid = rng.random(count) < 0.7
    value: Any = {
        "single_label": rng.integers(0, size, count),
        "distribution": (rng.multinomial(3, np.full(size, 1 / size), count) / 3).astype(np.float32),
        "multi_label": (rng.random((count, size)) < 0.4).astype(np.float32),
        "regression": rng.normal(size=(count, size)).astype(np.float32),
    }[task.kind]
    value[~valid] = 0
    return Predictions(
        task=task,
        output=rng.normal(size=(count, size)) if task.kind == "regression" else rng.dirichlet(np.ones(size), count),
        value=value,
        valid=valid,
        lengths=lengths,
        speaker=rng.integers(0, 3, count),
        conversation_ids=tuple(f"c{number}" for number in range(len(lengths))),
        turn_ids=tuple(f"t{number}" for number in range(count)),
        thresholds=rng.random(size) if task.kind == "multi_label" else None,
    )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.kind}")
def test_round_trip_is_exact(task: TaskSpec, tmp_path: Path) -> None:
    written = {"dev": make(task, 1), "test": make(task, 2, (4, 2)).take([1, 0, 0])}
    # A folder name that looks like a partition must add no column.
    path = write_predictions(tmp_path / "split=dev" / "predictions.parquet", written)
    read = read_predictions(path, task)
    assert list(read) == ["dev", "test"]
    for split, expected in written.items():
        found = read[split]
        assert found.task == task
        for name in ("output", "value", "valid", "speaker", "thresholds"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
        for name in ("lengths", "conversation_ids", "turn_ids"):
            assert getattr(found, name) == getattr(expected, name)
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.parquet"]


def test_what_a_reader_of_the_table_sees(tmp_path: Path) -> None:
    task = TASKS[0]
    predictions = make(task)
    write_predictions(tmp_path / "p.parquet", {"test": predictions})
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert list(frame.columns[:8]) == [
        "split", "conversation", "turn", "position", "speaker", "valid", "truth", "prediction",
    ]  # fmt: skip
    assert list(frame.columns[8:]) == [f"p/{label}" for label in task.output_names]
    assert frame["conversation"].tolist() == ["c0"] * 3 + ["c1"] + ["c2"] * 5
    assert frame["position"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert frame["truth"].isna().tolist() == (~predictions.valid).tolist()
    names = np.array(task.output_names)
    assert frame["truth"][predictions.valid].tolist() == names[predictions.value[predictions.valid]].tolist()
    assert frame["prediction"].tolist() == names[predictions.output.argmax(1)].tolist()


def test_truth_of_other_kinds(tmp_path: Path) -> None:
    for task in TASKS[1:]:
        write_predictions(tmp_path / "p.parquet", {"test": make(task)})
        frame = pd.read_parquet(tmp_path / "p.parquet")
        truth = frame["truth"][frame["valid"]]
        if task.kind == "multi_label":
            assert {label for labels in truth for label in labels} <= {"a", "b", "c"}
            assert any(len(labels) == 0 for labels in truth), "no label is a truth, not a missing one"
        elif task.kind == "distribution":
            assert truth.isna().any(), "ties have no single right label"
            assert "t/happy" in frame
        elif task.size == 1:
            assert frame["prediction"].tolist() == frame["y/sentiment"].tolist()
        else:
            assert [row[1] for row in frame["prediction"]] == frame["y/arousal"].tolist()


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(RunError, match="missing"):
        read_predictions(path, TASKS[0])
    write_predictions(path, {"test": make(TASKS[0])})
    other = TaskSpec("emotion", "single_label", get_schema("emotionlines7"))
    with pytest.raises(RunError, match=r"has the outputs neutral, surprise.*has neutral, joy"):
        read_predictions(path, other)
    with pytest.raises(RunError, match="not of the multi_label task 'emotions'"):
        read_predictions(path, TASKS[2])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        read_predictions(path, TASKS[0])
    path.write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        read_predictions(path, TASKS[0])
    pd.DataFrame({"split": ["test"]}).to_parquet(path)
    with pytest.raises(RunError, match="not written by"):
        read_predictions(path, TASKS[0])
    with pytest.raises(ValueError, match="of one task"):
        write_predictions(path, {"dev": make(TASKS[0]), "test": make(TASKS[1])})
    with pytest.raises(ValueError, match="at least one"):
        write_predictions(path, {})


def test_damaged_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    write_predictions(path, {"test": make(TASKS[0])})
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(RunError, match="gaps"):
        read_predictions(path, TASKS[0])
    pq.write_table(table.drop_columns(["p/joy"]), path)
    with pytest.raises(RunError, match="column 'p/joy' is missing"):
        read_predictions(path, TASKS[0])
    names = table["truth"].to_pylist()
    changed = table.set_column(6, "truth", [["happiness" if name else None for name in names]])
    pq.write_table(changed, path)
    with pytest.raises(RunError, match="do not fit"):
        read_predictions(path, TASKS[0])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.parquet", {"test": make(TASKS[0])})
    before = path.read_bytes()
    broken = make(TASKS[0])
    broken.value[broken.valid] = 99
    with pytest.raises(IndexError):
        write_predictions(path, {"test": broken})
    assert path.read_bytes() == before
