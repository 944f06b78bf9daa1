"""What ``corpus.yaml`` says about a corpus of one's own, and how the cells of its targets are read."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from ercfusion._core.errors import CorpusFormatError, did_you_mean, nearest
from ercfusion._core.schemas.reading import failure, read_yaml, shown
from ercfusion.batch.kinds import KINDS, TaskKind, task_kind
from ercfusion.batch.labels import LabelSchema, label_key
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Target
from ercfusion.data.tabular import Row, read_text

Recordings = Literal["turn", "conversation"]
TABLE = "utterances.csv"
DEFAULT_TARGET = "emotion"
RESERVED = ("conversation", "turn", "speaker", "text", "split", "start", "end", "audio", "video")
"""Columns of ``utterances.csv`` that have a meaning of their own."""

_KEYS: Mapping[str, type] = {
    "title": str, "licence": str, "citation": str, "synthetic": bool, "recordings": str, "targets": dict,
}  # fmt: skip
_COMMON: Mapping[str, type] = {"kind": str, "metric": str}
_LABELLED: Mapping[str, type] = {"labels": list, "synonyms": dict, "neutral": str}
_REGRESSED: Mapping[str, type] = {"low": float, "high": float, "dimensions": list}
_TYPES: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "a mapping (key: value)",
}


@dataclass(frozen=True)
class Settings:
    """The content of ``corpus.yaml``, checked for keys and types.

    Args:
        path: The file; None where there is none.
        values: By key; ``targets`` is left out.
        targets: Target name to its entries; None where the file names no targets.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def recordings(self) -> Recordings | None:
        """Whether files hold turns or conversations; None lets every file be judged by itself."""
        return self.values.get("recordings")


def read_settings(path: Path) -> Settings:
    """Read ``corpus.yaml``.

    Raises:
        CorpusFormatError: no YAML, an unknown key, or a value of another type; file and key are named.
    """
    text = read_text(path, remedy="Save it as UTF-8.")
    found = read_yaml(path, error=CorpusFormatError, advice="Correct it.", text=text)
    entries = _checked(path, "", found, _KEYS)
    recordings = entries.get("recordings")
    if recordings is not None and recordings not in get_args(Recordings):
        _fail(path, "recordings", f"found {shown(recordings)}. {did_you_mean(recordings, get_args(Recordings))}")
    targets = entries.pop("targets", None)
    if targets is not None:
        if not targets:
            _fail(path, "targets", "the mapping is empty. Name a column of utterances.csv, or leave the key out")
        targets = {name: _target_entries(path, name, entry) for name, entry in targets.items()}
    return Settings(path, entries, targets)


def _target_entries(path: Path, name: Any, found: Any) -> dict[str, Any]:
    where = f"targets.{name}"
    # Names become part of protocol ids and of the names of weights, where "/" and "." have a meaning.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        _fail(path, where, "a target's name is made of letters, digits, _ and -. Rename it and its column")
    if name in RESERVED:
        _fail(path, where, f"the column {name!r} has another meaning. Give the target another name")
    entries = _checked(path, where, found, {**_COMMON, **_LABELLED, **_REGRESSED})
    kind = entries.setdefault("kind", "single_label")
    if kind not in KINDS:
        _fail(path, f"{where}.kind", f"found {shown(kind)}. {did_you_mean(kind, KINDS)}")
    rules = task_kind(kind)
    foreign = _REGRESSED if rules.has_schema else _LABELLED
    for key in entries:
        if key in foreign:
            _fail(path, f"{where}.{key}", f"a target of the kind {kind} has no such key. Remove it, or correct 'kind'")
    _check_names(path, where, entries, rules)
    if not rules.has_schema:
        for key in ("low", "high"):
            if key not in entries:
                _fail(path, where, f"the key {key!r} is missing: a {kind} needs the range of its values, low, high")
        if not (math.isfinite(entries["low"]) and entries["low"] < entries["high"] < math.inf):
            _fail(path, where, f"low is {entries['low']:g} and high {entries['high']:g}; low must be the smaller one")
    return entries


def _check_names(path: Path, where: str, entries: Mapping[str, Any], rules: TaskKind) -> None:
    for key in ("labels", "dimensions"):
        names = entries.get(key)
        if names is None:
            continue
        for entry in names:
            if not isinstance(entry, str) or not entry.strip() or entry != entry.strip():
                # Unquoted, YAML reads no, off and 1 as other things than words.
                _fail(path, f"{where}.{key}", f"found {shown(entry)}, but text is expected. Put the word in quotes")
            if rules.parts(entry) != [entry]:
                signs = " and ".join(map(repr, rules.signs))
                _fail(path, f"{where}.{key}", f"{entry!r} cannot be told from the signs {signs}")
        forms = _composed(names)
        if len(set(forms)) < len(forms):
            twice = next(entry for entry in forms if forms.count(entry) > 1)
            _fail(path, f"{where}.{key}", f"{twice!r} stands there twice. Remove one")
        least = rules.least_labels if rules.has_schema else 1
        if len(names) < least:
            _fail(path, f"{where}.{key}", f"{len(names)} names, but at least {least} are needed")
    for spelling, label in entries.get("synonyms", {}).items():
        if not isinstance(spelling, str) or not isinstance(label, str):
            _fail(
                path,
                f"{where}.synonyms",
                f"found {shown(spelling)}: {shown(label)}, but two words are expected; quote them",
            )


def _checked(path: Path, where: str, found: Any, keys: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(found, dict):
        _fail(path, where, f"found {shown(found)}, but a mapping (key: value) is expected")
    entries: dict[str, Any] = {}
    for key, value in found.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in keys:
            _fail(path, place, f"there is no such key. {did_you_mean(str(key), keys)}")
        kind = keys[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            _fail(path, place, f"found {shown(value)}, but {_TYPES[kind]} is expected")
        entries[key] = value
    return entries


def _fail(path: Path, key: str, problem: str) -> NoReturn:
    place = f", key {shown(key)}" if key else ""
    raise failure(CorpusFormatError, path, f"{place}: {problem.rstrip('.')}.")


# Targets


@dataclass(frozen=True)
class TargetReader:
    """One target of ``utterances.csv``.

    Args:
        task: What it is.
        columns: The columns it is read from: its own, or one a label (distribution) or dimension (regression).
    """

    task: TaskSpec
    columns: tuple[str, ...]

    def read(self, row: Row) -> Target:
        """The target of a row; not labelled where its cells are empty.

        Raises:
            CorpusFormatError: a cell holds no label, no number, or a number out of range; or some cells are empty.
        """
        cells = [row[column].strip() for column in self.columns]
        if not any(cells):
            return Target(None)
        for column, cell in zip(self.columns, cells, strict=True):
            if not cell:
                others = ", ".join(name for name, other in zip(self.columns, cells, strict=True) if other)
                row.fail(
                    column,
                    f"the cell is empty or says that the value is missing, but {others} is not. Fill all of the "
                    f"target's cells, or none.",
                )
        return Target(self.task.rules.read(row, self.columns, self.task))


def target_readers(settings: Settings, header: Sequence[str], rows: Sequence[Row]) -> list[TargetReader]:
    """The targets in the order of ``corpus.yaml``; the column ``emotion`` alone where it names none.

    Raises:
        CorpusFormatError: a target has no column, or its labels are neither given nor to be found.
    """
    if settings.targets is not None:
        return [_reader(settings, name, entries, header, rows) for name, entries in settings.targets.items()]
    if DEFAULT_TARGET not in header:
        near = nearest(DEFAULT_TARGET, header, count=1)
        hint = f" Is it the one called {near[0]!r}?" if near else ""
        raise CorpusFormatError(
            f"{rows[0].path}, line 1: no column {DEFAULT_TARGET!r}, and no targets are named in corpus.yaml. Found: "
            f"{', '.join(map(repr, header))}.{hint} Rename the column, or name it in corpus.yaml below 'targets'."
        )
    return [_reader(settings, DEFAULT_TARGET, {"kind": "single_label"}, header, rows)]


def _reader(
    settings: Settings, name: str, entries: Mapping[str, Any], header: Sequence[str], rows: Sequence[Row]
) -> TargetReader:
    table = rows[0].path
    kind, rules = entries["kind"], task_kind(entries["kind"])
    metric = entries.get("metric", "")
    if not rules.has_schema:
        dimensions = tuple(_composed(entries.get("dimensions", [name])))
        columns = rules.columns(name, dimensions)
        _require(table, name, columns, header)
        task = TaskSpec(name, kind, None, dimensions, entries["low"], entries["high"], metric)
        return TargetReader(task, tuple(columns))
    labels = _composed(entries["labels"]) if "labels" in entries else None
    if labels is None and rules.column_per_label:
        labels = [column.removeprefix(f"{name}.") for column in header if column.startswith(f"{name}.")]
        if len(labels) < rules.least_labels:
            _require(table, name, rules.columns(name, ["LABEL"]), header)
    columns = rules.columns(name, labels or [])
    _require(table, name, columns, header)
    if labels is None:
        # Other spellings are no labels of their own.
        labels = _composed(_found_labels(name, rules, rows, entries.get("synonyms", {})))
    schema = _schema(settings, name, entries, labels)
    return TargetReader(TaskSpec(name, kind, schema, metric=metric), tuple(columns))


def _composed(names: Sequence[str]) -> list[str]:
    # Names of columns are read in this form too.
    return [unicodedata.normalize("NFC", name) for name in names]


def _schema(settings: Settings, name: str, entries: Mapping[str, Any], labels: Sequence[str]) -> LabelSchema:
    spelled: Mapping[str, str] = entries.get("synonyms", {})
    synonyms = dict(zip(_composed(list(spelled)), _composed(list(spelled.values())), strict=True))
    neutral = entries.get("neutral", next((label for label in labels if label.lower() == "neutral"), None))
    neutral = neutral if neutral is None else unicodedata.normalize("NFC", neutral)
    if settings.path is not None:
        where = f"targets.{name}"
        for spelling, label in synonyms.items():
            if label not in labels:
                _fail(
                    settings.path,
                    f"{where}.synonyms.{spelling}",
                    f"{label!r} is no label. {did_you_mean(label, labels)}",
                )
            if spelling in labels:
                _fail(settings.path, f"{where}.synonyms.{spelling}", "this is a label already. Remove the synonym")
        if neutral is not None and neutral not in labels:
            _fail(settings.path, f"{where}.neutral", f"{neutral!r} is no label. {did_you_mean(neutral, labels)}")
    return LabelSchema(f"custom/{name}", tuple(labels), synonyms, neutral)


def _require(table: Path, name: str, columns: Sequence[str], header: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise CorpusFormatError(
                f"{table}, line 1: the target {name!r} needs the column {column!r}. Found: "
                f"{', '.join(map(repr, header))}. Add or rename the column, or correct 'targets' in corpus.yaml."
            )


def _found_labels(name: str, rules: TaskKind, rows: Sequence[Row], synonyms: Mapping[str, str]) -> list[str]:
    # The labels of a column: neutral first, the others in alphabetical order. Spellings of one label are one label.
    spellings: Counter[str] = Counter()
    meant = {label_key(spelling): label for spelling, label in synonyms.items()}
    for row in rows:
        for part in rules.parts(row[name]):
            spellings[meant.get(label_key(part), part)] += 1
    # A label that a synonym stands for keeps the spelling that it has there.
    found = usual_spellings(spellings)
    found.update({label_key(label): label for label in meant.values() if label in spellings})
    least = rules.least_labels
    if len(found) < least:
        raise CorpusFormatError(
            f"{rows[0].path}, column {name!r}: {len(found)} labels in {len(rows)} rows, but at least {least} are "
            f"needed. Fill the column, or list all labels in corpus.yaml below targets.{name}.labels."
        )
    return sorted(found.values(), key=lambda label: (label.lower() != "neutral", label))


def usual_spellings(spellings: Counter[str]) -> dict[str, str]:
    """The most frequent spelling of every label by its :func:`~ercfusion.batch.labels.label_key`.

    Of equally frequent ones it is the one in composed Unicode, then the first.
    """
    best: dict[str, str] = {}
    for spelling in spellings:  # in order of first appearance
        key = label_key(spelling)
        other = best.setdefault(key, spelling)
        rank, known = ((spellings[name], unicodedata.is_normalized("NFC", name)) for name in (spelling, other))
        if rank > known:
            best[key] = spelling
    return best
