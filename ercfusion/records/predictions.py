"""Predictions as a Parquet file, lossless. One row is one utterance, with the columns

* ``split``, ``conversation``, ``turn``: names; ``position``: in the conversation, from 0; ``speaker``: number in the
  conversation; ``valid``: whether the utterance is labelled;
* ``truth`` and ``prediction``: a label name (of a distribution the most probable; null if two share the maximum), a
  list of names (multi-label), a number, or a list of numbers (several dimensions). ``truth`` is null without a label;
* ``p/<label>``: predicted probabilities (and ``i/<label>``: intensities), or ``y/<dimension>``: predicted numbers;
* ``s/<dimension>``: predicted standard deviations, if the head has them;
* ``t/<label>``: target probabilities, only for distributions.

The file has no text of the corpus. Task and decision thresholds are in its metadata, key ``ercfusion``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import CorpusFormatError, RunError
from ercfusion._core.files import atomic_write, sha256_of
from ercfusion._core.schemas.reading import check, failure, parse_json
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.records.record import RECORD, read_record
from ercfusion.tasks.model_schema import PredictionsHead

FORMAT = 1
FILE = "predictions.parquet"
DAMAGED = "Copy the file again, or evaluate the run again."
_KEY = b"ercfusion"
_KEYS = ("split", "conversation", "turn", "position", "speaker", "valid", "truth", "prediction")


def prediction_file(record: Mapping[str, Any], task: str) -> str:
    """Name of the file with a task's predictions in a run folder."""
    return FILE if task == record["task"]["name"] else further_file(task)


def further_file(task: str) -> str:
    """Name of the file of a task other than the run's first."""
    return f"predictions-{task}.parquet"


def write_predictions(path: str | Path, predictions: Mapping[str, Predictions]) -> Path:
    """Write one task's predictions of some splits, atomically; returns ``path``.

    Raises:
        ValueError: no split, splits of different tasks, or standard deviations of some splits only.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tasks = [part.task.to_dict() for part in predictions.values()]
    if not tasks or any(task != tasks[0] for task in tasks):
        raise ValueError("at least one split is needed, and all splits must be of one task")
    spread = {part.spread is not None for part in predictions.values()}
    if len(spread) > 1:
        raise ValueError("some splits have standard deviations and others do not. Predict all with one model.")
    task = TaskSpec.from_dict(tasks[0])
    metadata = {
        "format": FORMAT,
        "task": tasks[0],
        "thresholds": {
            split: None if part.thresholds is None else [float(number) for number in part.thresholds]
            for split, part in predictions.items()
        },
    }
    table = pa.concat_tables(
        [pa.table(_columns(split, part), schema=_schema(task, *spread)) for split, part in predictions.items()]
    ).replace_schema_metadata({_KEY: json.dumps(metadata).encode()})
    path = Path(path)
    with atomic_write(path, "wb") as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    return path


def read_predictions(path: str | Path, task: TaskSpec) -> dict[str, Predictions]:
    """Read the predictions by split, as passed to :func:`write_predictions`.

    Raises:
        RunError: missing, damaged, of another format, or of another task.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: the file is missing. Copy the file back, or evaluate the run again.")
    check_recorded(path)
    try:
        # Given a path, pyarrow would take "split=.." in a folder's name for a column.
        with path.open("rb") as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True).read(use_threads=False)
        text = (table.schema.metadata or {}).get(_KEY, b"null").decode("utf-8")
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        problem = f" cannot be read; it is damaged or not a Parquet file: {error}"
        raise failure(RunError, path, problem, DAMAGED) from error
    metadata = parse_json(text, path, advice=DAMAGED)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        problem = f" was not written by this version of ercfusion (predictions, format {FORMAT})"
        raise failure(RunError, path, problem, "Run evaluate again.")
    check(metadata, PredictionsHead, path, advice=DAMAGED)
    stored = metadata["task"]
    if (stored["name"], stored["kind"]) != (task.name, task.kind):
        problem = (
            f" holds predictions of the {stored['kind']} task {stored['name']!r}, not of the {task.kind} task "
            f"{task.name!r}"
        )
        raise failure(RunError, path, problem, "Give the file of that task.")
    names = TaskSpec.from_dict(stored).output_names
    if names != task.output_names:
        problem = f" has the outputs {', '.join(names)}; task {task.name!r} has {', '.join(task.output_names)}"
        raise failure(RunError, path, problem, "Run evaluate again.")
    for column in _schema(task, any(name in table.column_names for name in _spreads(task))):
        if column.name not in table.column_names:
            raise failure(RunError, path, f" is damaged: column {column.name!r} is missing", DAMAGED)
        field = table.schema.field(column.name)
        if field.type != column.type or (column.name != "truth" and table[column.name].null_count):
            problem = f" is damaged: column {column.name!r} is {field.type} or has gaps, not {column.type} without gaps"
            raise failure(RunError, path, problem, DAMAGED)
    try:
        return _splits(table, task, metadata["thresholds"])
    except (CorpusFormatError, ValueError, TypeError, LookupError, AssertionError, pa.ArrowException) as error:
        problem = f" is damaged: its rows do not fit the task {task.name!r} ({error})"
        raise failure(RunError, path, problem, DAMAGED) from error


def check_recorded(path: Path) -> None:
    """Raise :class:`RunError` if a record next to the file has another checksum for it, or none."""
    record = path.parent / RECORD
    if not record.is_file():
        return
    expected = read_record(path.parent).get("files", {}).get(path.name)
    if expected is None or path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
        raise failure(RunError, path, f" was changed or damaged: {RECORD} has another checksum for it", DAMAGED)


def _schema(task: TaskSpec, spread: bool = False) -> Any:
    import pyarrow as pa

    answer = task.rules.answer_type(task)
    kinds = (pa.string(), pa.string(), pa.string(), pa.int32(), pa.int32(), pa.bool_(), answer, answer)
    fields = list(zip(_KEYS, kinds, strict=True))
    numbers = (*_outputs(task), *(_spreads(task) if spread else ()), *_targets(task))
    fields += [(name, pa.float64()) for name in numbers]
    return pa.schema(fields)


def _outputs(task: TaskSpec) -> list[str]:
    return task.rules.output_columns(task)


def _spreads(task: TaskSpec) -> list[str]:
    return [f"s/{name}" for name in task.output_names]


def _targets(task: TaskSpec) -> list[str]:
    return [f"t/{name}" for name in task.output_names] if task.rules.keeps_targets else []


def _columns(split: str, part: Predictions) -> dict[str, Any]:
    task = part.task
    conversation = [part.conversation_ids[number] for number in part.conversation]
    columns: dict[str, Any] = {
        "split": [split] * len(part),
        "conversation": conversation,
        "turn": list(part.turn_ids),
        "position": np.concatenate([np.arange(length) for length in part.lengths] or [np.zeros(0, dtype=int)]),
        "speaker": np.asarray(part.speaker),
        "valid": np.asarray(part.valid, dtype=bool),
        "truth": [truth if valid else None for truth, valid in zip(task.rules.truths(part), part.valid, strict=True)],
        "prediction": task.rules.answers(part),
    }
    columns |= {name: part.output[:, place].astype(float) for place, name in enumerate(_outputs(task))}
    if part.spread is not None:
        columns |= {name: part.spread[:, place].astype(float) for place, name in enumerate(_spreads(task))}
    columns |= {name: part.value[:, place].astype(float) for place, name in enumerate(_targets(task))}
    return columns


def _splits(table: Any, task: TaskSpec, thresholds: Mapping[str, list[float] | None]) -> dict[str, Predictions]:
    names = np.array(table["split"].to_pylist(), dtype=object)
    result = {}
    for split in dict.fromkeys(names):
        part = table.filter(names == split)
        # A conversation starts at position 0: a repeated one stays two.
        position = part["position"].to_numpy()
        starts = np.flatnonzero(position == 0)
        lengths = np.diff(np.append(starts, len(part)))
        if not np.array_equal(position, np.concatenate([np.arange(length) for length in lengths] or [starts])):
            raise ValueError(f"the positions within the conversations of split {split!r} have gaps")
        conversations = part["conversation"].to_pylist()
        cut = thresholds[split]
        valid = part["valid"].to_numpy()
        result[split] = Predictions(
            task=task,
            output=_matrix(part, _outputs(task)),
            value=_values(part, task, valid),
            valid=valid,
            lengths=tuple(lengths.tolist()),
            speaker=part["speaker"].to_numpy().astype(np.int64),
            conversation_ids=tuple(conversations[start] for start in starts),
            turn_ids=tuple(part["turn"].to_pylist()),
            thresholds=None if cut is None else np.array(cut),
            spread=_matrix(part, _spreads(task)) if _spreads(task)[0] in table.column_names else None,
        )
    return result


def _matrix(table: Any, columns: list[str]) -> NDArray[np.float64]:
    return np.stack([table[column].to_numpy() for column in columns], axis=1)


def _values(table: Any, task: TaskSpec, valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Targets in the form of :class:`Predictions`; 0 for missing ones."""
    rules = task.rules
    if rules.keeps_targets:
        return np.where(valid[:, None], _matrix(table, _targets(task)), 0).astype(np.float32)
    value = np.zeros(len(table), np.int64) if rules.index_targets else np.zeros((len(table), task.size), np.float32)
    for row, truth in enumerate(table["truth"].to_pylist()):
        if valid[row]:
            value[row] = rules.decode(truth, task)
    return value
