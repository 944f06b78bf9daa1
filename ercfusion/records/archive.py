"""Archives: the records of some runs in one small file that can be committed and shared.

An archive holds no text, no weights, no path of a machine and nothing of the dev split but its scores. What all runs
have in common stands in it once (``shared``), then comes one line a run (``runs``). The counts of the test
conversations, from which every statistic follows, are written as short texts in the order of ``conversations``:
``"0,0,3 0,4"`` is a confusion matrix with 3 in row 0, column 0 and 1 in row 0, column 4. The moments of a regression
stand column by column, so that those of the truth, which all runs have in common, stand there once.
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

# Where a run lay and where its inputs lay says nothing about its scores, and may say something about its owner.
_LOCAL: dict[str, Any] = {
    field.key: {} if field.is_open else None
    for field in (*fields_in("").values(), *fields_in("data").values())
    if field.known.path and field.known.decides == "nothing"
}


def write_archive(path: str | Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records (as :func:`ercfusion.records.record.read_record` gives them) in the order of their seeds.

    Raises:
        ValueError: no record.
    """
    if not records:
        raise ValueError("an archive of no records says nothing")
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
    """The records of an archive, each in the form of ``record.json`` (without what an archive leaves out).

    Raises:
        RunError: no such file, damaged, or of another format.
    """
    path = Path(path)
    found = read_json(path, advice=DAMAGED)
    version = found.get("archive") if isinstance(found, dict) else None
    if version != FORMAT:
        raise failure(RunError, path, f": archive format {shown(version)}; this version reads {FORMAT}")
    check(found, Archive, path, advice=DAMAGED)
    records = []
    for number, own in enumerate(found["runs"]):
        try:
            record = _expand(_merged(found["shared"], own))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError) as error:
            words = f": runs[{number}] is damaged: {type(error).__name__} {shown(str(error))}"
            raise failure(RunError, path, words, DAMAGED) from error
        records.append(checked_record(record, path))
    return records


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False)


# One record


def _compact(record: Mapping[str, Any]) -> dict[str, Any]:
    compact = json.loads(json.dumps(record))  # a copy of plain containers
    compact.pop("command", None)  # what it says beyond the configuration is where things lay
    compact.pop("files", None)  # an archive is not next to them
    config = compact["config"]
    for key, value in _LOCAL.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    for table in compact["features"]:
        if "pack" in table["source"]:
            table["source"]["pack"] = Path(table["source"]["pack"]).name
    for own in (compact, *compact.get("others", {}).values()):
        own["splits"] = {"test": _compact_split(own["splits"]["test"])}
    return compact


def _compact_split(split: dict[str, Any]) -> dict[str, Any]:
    if "confusion" in split:
        split.pop("per_class", None)  # follows from the confusion
    for key, write in _WRITERS.items():
        if key in split:
            counts = split[key]
            split["ids"] = list(counts)
            split[key] = [write(value) for value in counts.values()]
    if "moments" in split:
        split["moments"] = _write_columns(split["moments"])
    return split


def _expand(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("format") != RECORD_FORMAT:
        raise ValueError(f"record format {record.get('format')!r}")
    for own in (record, *record.get("others", {}).values()):
        _expand_split(own["splits"]["test"], own["task"])
    return record


def _expand_split(split: dict[str, Any], task: Mapping[str, Any]) -> None:
    ids = split.pop("ids", [])
    if "moments" in split:
        split["moments"] = _read_columns(split["moments"])
    for key, read in _READERS.items():
        if key in split:
            if len(split[key]) != len(ids):
                raise ValueError(f"{len(split[key])} entries in {key} for {len(ids)} conversations")
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


def _as_it_is(value: Any) -> Any:
    return value


def _write_columns(moments: Sequence[Sequence[Sequence[float]]]) -> dict[str, str]:
    """By dimension and number of the sum ("0.3") its values of all conversations: sums of the truth are then shared."""
    table = np.asarray(moments, dtype=np.float64)
    return {
        f"{dimension}.{number}": " ".join(f"{value:.9g}" for value in table[:, dimension, number])
        for dimension in range(table.shape[1])
        for number in range(table.shape[2])
    }


def _read_columns(columns: Mapping[str, str]) -> list[list[list[float]]]:
    places = [tuple(map(int, name.split("."))) for name in columns]
    values = [[float(number) for number in text.split()] for text in columns.values()]
    table = np.empty((len(values[0]), *(max(place) + 1 for place in zip(*places, strict=True))))
    if table[0].size != len(columns):
        raise ValueError(f"{len(columns)} columns of moments for {table[0].size}")
    for (dimension, number), column in zip(places, values, strict=True):
        table[:, dimension, number] = column
    found: list[list[list[float]]] = table.tolist()
    return found


_WRITERS: dict[str, Callable[[Any], Any]] = {
    "confusion": _write_cells,
    "shift": _write_numbers,
    "counts": _as_it_is,
    "moments": _as_it_is,
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "confusion": _read_cells,
    "shift": _read_numbers,
    "counts": _as_it_is,
    "moments": _as_it_is,
}


# What records share


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keys with equal values in all of ``values``; mappings are compared entry by entry."""
    first = values[0]
    shared: dict[str, Any] = {}
    for key in first:
        if not all(key in value for value in values):
            continue
        found = [value[key] for value in values]
        if all(isinstance(entry, dict) for entry in found):
            shared[key] = _common(found)
        elif all(entry == found[0] for entry in found):
            shared[key] = found[0]
    return shared


def _without(value: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict) and isinstance(shared.get(key), dict):
            if rest := _without(entry, shared[key]):
                own[key] = rest
        elif key not in shared:
            own[key] = entry
    return own


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = json.loads(json.dumps(shared))
    for key, entry in own.items():
        merged[key] = _merged(merged.get(key, {}), entry) if isinstance(entry, dict) else entry
    return merged
