"""Archives: the records of several runs in one small file to share.

An archive has no texts, weights or paths, and of dev only scores. Common content is stored once (``shared``), then one
line per run (``runs``). Sums of test conversations are texts in the order of ``conversations``: ``"0,0,3 0,4"`` is a
confusion matrix with 3 in row 0, column 0, and 1 in row 0, column 4. Moments and divergences are stored by column, to
share the truth's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ercfusion._core.errors import RunError
from ercfusion._core.files import atomic_write
from ercfusion._core.schemas.reading import check, failure, read_json, shown
from ercfusion.batch.task import TaskSpec
from ercfusion.config.settings import fields_in
from ercfusion.metrics.classification import ClassCounts, per_class_of
from ercfusion.metrics.sums import SUMS
from ercfusion.records.record import DAMAGED, checked_record
from ercfusion.records.record import FORMAT as RECORD_FORMAT
from ercfusion.records.run_schema import Archive

FORMAT = 2

# Paths do not matter to scores and may identify people.
_LOCAL: dict[str, Any] = {
    field.key: {} if field.is_open else None
    for field in (*fields_in("").values(), *fields_in("data").values())
    if field.known.path and field.known.decides == "nothing"
}


def write_archive(path: str | Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records in the order of their seeds.

    Raises:
        ValueError: no record.
    """
    if not records:
        raise ValueError("an archive needs at least one record")
    compacted = sorted((_compact(record) for record in records), key=lambda record: record["seed"])
    shared = _common(compacted)
    head = {"archive": FORMAT, "shared": shared}
    lines = [_line(head)[:-1] + ',"runs":[']
    lines += [
        _line(_without(record, shared)) + ("," if number < len(compacted) else "")
        for number, record in enumerate(compacted, start=1)
    ]
    path = Path(path)
    with atomic_write(path) as stream:
        stream.write("\n".join([*lines, "]}"]) + "\n")
    return path


def read_archive(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of an archive, without the omitted parts.

    Raises:
        RunError: no such file, damaged, or of another format.
    """
    path = Path(path)
    content = read_json(path, advice=DAMAGED)
    version = content.get("archive") if isinstance(content, dict) else None
    if version != FORMAT:
        problem = f": archive format {shown(version)}; this version reads {FORMAT}"
        raise failure(RunError, path, problem, "Install a matching version of ercfusion, or do the runs again.")
    check(content, Archive, path, advice=DAMAGED)
    records = []
    for number, own in enumerate(content["runs"]):
        try:
            record = _expand(_merged(content["shared"], own))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError) as error:
            words = f": runs[{number}] is damaged: {type(error).__name__} {shown(str(error))}"
            raise failure(RunError, path, words, DAMAGED) from error
        records.append(checked_record(record, path))
    return records


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False)


# One record


def _compact(record: Mapping[str, Any]) -> dict[str, Any]:
    compact = json.loads(json.dumps(record))  # a copy in plain containers
    compact.pop("command", None)  # beyond the configuration it has only paths
    compact.pop("files", None)  # they are not next to an archive
    config = compact["config"]
    training = config.get("training", {})
    training.pop("start_from", None)
    if training.get("teacher") not in config.get("recipe", {}).get("stages", {}):
        training.pop("teacher", None)
    for key, value in _LOCAL.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    for table in compact["features"]:
        if "pack" in table["source"]:
            table["source"]["pack"] = Path(table["source"]["pack"]).name
    for own in (compact, *compact.get("others", {}).values(), *compact.get("views", {}).values()):
        own["splits"] = {"test": _compact_split(own["splits"]["test"])}
    return compact


def _compact_split(split: dict[str, Any]) -> dict[str, Any]:
    if "confusion" in split:
        split.pop("per_class", None)  # follows from the confusion matrices
    for key, write in _WRITERS.items():
        if key in split:
            counts = split[key]
            split["ids"] = list(counts)
            split[key] = [write(value) for value in counts.values()]
    if "moments" in split:
        split["moments"] = _write_columns(split["moments"])
    if "divergence" in split:
        split["divergence"] = _write_columns([[row] for row in split["divergence"]])
    return split


def _expand(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("format") != RECORD_FORMAT:
        raise ValueError(f"record format {record.get('format')!r}")
    for own in (record, *record.get("others", {}).values(), *record.get("views", {}).values()):
        _expand_split(own["splits"]["test"], own["task"])
    return record


def _expand_split(split: dict[str, Any], task: Mapping[str, Any]) -> None:
    ids = split.pop("ids", [])
    if "moments" in split:
        split["moments"] = _read_columns(split["moments"])
    if "divergence" in split:
        split["divergence"] = [row for (row,) in _read_columns(split["divergence"])]
    for key, read in _READERS.items():
        if key in split:
            if len(split[key]) != len(ids):
                raise ValueError(f"{len(split[key])} values in {key} for {len(ids)} conversations")
            split[key] = {name: read(value) for name, value in zip(ids, split[key], strict=True)}
    if "confusion" in split and "per_class" not in split:
        spec = TaskSpec.from_dict(dict(task))
        matrices = SUMS["confusion"].read(list(split["confusion"].values()), spec)
        split["per_class"] = per_class_of(ClassCounts(matrices.sum(axis=0)), spec.output_names)


def _write_cells(cells: list[list[int]]) -> str:
    return " ".join(",".join(map(str, cell if cell[2] > 1 else cell[:2])) for cell in cells)


def _read_cells(text: str) -> list[list[int]]:
    cells = [[int(number) for number in cell.split(",")] for cell in text.split()]
    return [cell if len(cell) == 3 else [*cell, 1] for cell in cells]


def _write_numbers(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _read_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def _unchanged(value: Any) -> Any:
    return value


def _write_columns(moments: Sequence[Sequence[Sequence[float]]]) -> dict[str, str]:
    """Values of all conversations by dimension and index of the sum (``"0.3"``)."""
    table = np.asarray(moments, dtype=np.float64)
    return {
        f"{dimension}.{number}": " ".join(f"{value:.9g}" for value in table[:, dimension, number])
        for dimension in range(table.shape[1])
        for number in range(table.shape[2])
    }


def _read_columns(columns: Mapping[str, str]) -> list[list[list[float]]]:
    indices = [tuple(map(int, name.split("."))) for name in columns]
    values = [[float(number) for number in text.split()] for text in columns.values()]
    table = np.empty((len(values[0]), *(max(index) + 1 for index in zip(*indices, strict=True))))
    if table[0].size != len(columns):
        raise ValueError(f"{len(columns)} columns of moments instead of {table[0].size}")
    for (dimension, number), column in zip(indices, values, strict=True):
        table[:, dimension, number] = column
    moments: list[list[list[float]]] = table.tolist()
    return moments


_WRITERS: dict[str, Callable[[Any], Any]] = {
    "confusion": _write_cells,
    "shift": _write_numbers,
    "counts": _unchanged,
    "divergence": _unchanged,
    "moments": _unchanged,
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "confusion": _read_cells,
    "shift": _read_numbers,
    "counts": _unchanged,
    "divergence": _unchanged,
    "moments": _unchanged,
}


# Parts shared by records


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keys with equal values in all of ``values``, recursively."""
    first = values[0]
    shared: dict[str, Any] = {}
    for key in first:
        if not all(key in value for value in values):
            continue
        items = [value[key] for value in values]
        if all(isinstance(item, dict) for item in items):
            shared[key] = _common(items)
        elif all(item == items[0] for item in items):
            shared[key] = items[0]
    return shared


def _without(value: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and isinstance(shared.get(key), dict):
            if rest := _without(item, shared[key]):
                own[key] = rest
        elif key not in shared:
            own[key] = item
    return own


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = json.loads(json.dumps(shared))
    for key, item in own.items():
        merged[key] = _merged(merged.get(key, {}), item) if isinstance(item, dict) else item
    return merged
