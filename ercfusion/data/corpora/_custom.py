"""Content of ``corpus.yaml`` of a user's own corpus, and readers of the cells of its targets."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from ercfusion._core.errors import CorpusFormatError, did_you_mean
from ercfusion._core.schemas.reading import failure, read_yaml, shown
from ercfusion.batch.kinds import KINDS, TaskKind, task_kind
from ercfusion.batch.labels import LabelSchema, label_key
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Target
from ercfusion.data.tabular import Row, likely_columns, read_text

Recordings = Literal["turn", "conversation"]
TABLE = "utterances.csv"
DEFAULT_TARGET = "emotion"
RESERVED = ("conversation", "turn", "speaker", "text", "split", "start", "end", "audio", "video")
"""Columns of ``utterances.csv`` with a fixed meaning."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "conversation": ("conversation_id", "conv_id", "dialogue", "dialogue_id", "dialog", "dialog_id"),
    "turn": ("turn_id", "number", "utterance_id", "utt_id", "index"),
    "speaker": ("speaker_id", "speaker_name", "name"),
    "text": ("utterance", "sentence", "transcript", "transcription"),
    "split": ("set", "partition", "fold", "subset"),
    DEFAULT_TARGET: ("emotion_label", "feeling", "label"),
}
"""Usual other names of the columns; they are suggested, not read."""

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
    """Content of ``corpus.yaml``.

    Args:
        path: The file, if it exists.
        values: Values by key, without ``targets``.
        targets: Target name to its settings; None if the file names none.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def recordings(self) -> Recordings | None:
        """Whether a file holds one turn or a conversation; None decides per file."""
        return self.values.get("recordings")


def read_settings(path: Path) -> Settings:
    """Read ``corpus.yaml``.

    Raises:
        CorpusFormatError: not YAML, an unknown key, or a value of another type.
    """
    text = read_text(path, remedy="Save it as UTF-8.")
    content = read_yaml(path, error=CorpusFormatError, advice="Correct it.", text=text)
    settings = _checked(path, "", content, _KEYS)
    recordings = settings.get("recordings")
    if recordings is not None and recordings not in get_args(Recordings):
        _fail(path, "recordings", f"found {shown(recordings)}. {did_you_mean(recordings, get_args(Recordings))}")
    targets = settings.pop("targets", None)
    if targets is not None:
        if not targets:
            _fail(path, "targets", "the mapping is empty. Name a column of utterances.csv, or remove the key")
        # YAML reads "feeling:" with nothing below as null.
        targets = {
            name: _target_settings(path, name, {} if value is None else value) for name, value in targets.items()
        }
    return Settings(path, settings, targets)


def _target_settings(path: Path, name: Any, value: Any) -> dict[str, Any]:
    where = f"targets.{name}"
    # Names become parts of protocol ids and of names of weights.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        _fail(path, where, "a target's name has letters, digits, _ and - only. Rename it and its column")
    if name in RESERVED:
        _fail(path, where, f"the column {name!r} has another meaning. Give the target another name")
    entries = _checked(path, where, value, {**_COMMON, **_LABELLED, **_REGRESSED})
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
                _fail(path, where, f"the key {key!r} is missing. Give the range of the values of a {kind}: low, high")
        if not (math.isfinite(entries["low"]) and entries["low"] < entries["high"] < math.inf):
            _fail(path, where, f"low is {entries['low']:g} and high {entries['high']:g}. Give a smaller low than high")
    return entries


def _check_names(path: Path, where: str, entries: Mapping[str, Any], rules: TaskKind) -> None:
    for key in ("labels", "dimensions"):
        names = entries.get(key)
        if names is None:
            continue
        for name in names:
            if not isinstance(name, str) or not name.strip() or name != name.strip():
                # YAML does not read unquoted no, off and 1 as text.
                _fail(path, f"{where}.{key}", f"found {shown(name)}, but text is expected. Put the word in quotes")
            if rules.parts(name) != [name]:
                signs = " and ".join(map(repr, rules.signs))
                _fail(path, f"{where}.{key}", f"{name!r} contains one of the signs {signs}. Choose another name")
        forms = _composed(names)
        if len(set(forms)) < len(forms):
            twice = next(form for form in forms if forms.count(form) > 1)
            _fail(path, f"{where}.{key}", f"{twice!r} is listed twice. Remove one")
        least = rules.least_labels if rules.has_schema else 1
        if len(names) < least:
            _fail(path, f"{where}.{key}", f"{len(names)} names, but at least {least} are needed. Add the others")
    for spelling, label in entries.get("synonyms", {}).items():
        if not isinstance(spelling, str) or not isinstance(label, str):
            _fail(
                path,
                f"{where}.synonyms",
                f"found {shown(spelling)}: {shown(label)}, but two words are expected. Put them in quotes",
            )


def _checked(path: Path, where: str, content: Any, keys: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(content, dict):
        _fail(path, where, f"found {shown(content)}, but a mapping (key: value) is expected. Correct it")
    entries: dict[str, Any] = {}
    for key, value in content.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in keys:
            _fail(path, place, f"there is no such key. {did_you_mean(str(key), keys)}")
        kind = keys[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            _fail(path, place, f"found {shown(value)}, but {_TYPES[kind]} is expected. Correct it")
        entries[key] = value
    return entries


def _fail(path: Path, key: str, problem: str) -> NoReturn:
    place = f", key {shown(key)}" if key else ""
    raise failure(CorpusFormatError, path, f"{place}: {problem.rstrip('.')}.")


# Targets


@dataclass(frozen=True)
class TargetReader:
    """Reader of one target of ``utterances.csv``, from its columns."""

    task: TaskSpec
    columns: tuple[str, ...]

    def read(self, row: Row) -> Target:
        """The target of a row; not labelled if its cells are empty."""
        cells = [row[column].strip() for column in self.columns]
        if not any(cells):
            return Target(None)
        for column, cell in zip(self.columns, cells, strict=True):
            if not cell:
                filled = ", ".join(name for name, text in zip(self.columns, cells, strict=True) if text)
                row.fail(
                    column,
                    f"the cell is empty or marked as missing, but {filled} is not. Fill all cells of the target, or "
                    f"none.",
                )
        return Target(self.task.rules.read(row, self.columns, self.task))


def target_readers(settings: Settings, header: Sequence[str], rows: Sequence[Row]) -> list[TargetReader]:
    """Readers of the targets of ``corpus.yaml``, by default of the column ``emotion``."""
    if settings.targets is not None:
        return [_reader(settings, name, entries, header, rows) for name, entries in settings.targets.items()]
    if DEFAULT_TARGET not in header:
        near = likely_columns([DEFAULT_TARGET], header, SYNONYMS)
        hint = f" Is it {near[DEFAULT_TARGET]!r}?" if near else ""
        raise CorpusFormatError(
            f"{rows[0].path}, line 1: no column {DEFAULT_TARGET!r}, and corpus.yaml names no targets. Found: "
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
        # Synonyms are not labels of their own.
        labels = _composed(_labels_in(name, rules, rows, entries.get("synonyms", {})))
    schema = _schema(settings, name, entries, labels)
    return TargetReader(TaskSpec(name, kind, schema, metric=metric), tuple(columns))


def _composed(names: Sequence[str]) -> list[str]:
    # Names of columns are in the same Unicode form.
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
                    f"{label!r} is not a label. {did_you_mean(label, labels)}",
                )
            if spelling in labels:
                _fail(settings.path, f"{where}.synonyms.{spelling}", "this is a label already. Remove the synonym")
        if neutral is not None and neutral not in labels:
            _fail(settings.path, f"{where}.neutral", f"{neutral!r} is not a label. {did_you_mean(neutral, labels)}")
    return LabelSchema(f"custom/{name}", tuple(labels), synonyms, neutral)


def _require(table: Path, name: str, columns: Sequence[str], header: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise CorpusFormatError(
                f"{table}, line 1: the target {name!r} needs the column {column!r}. Found: "
                f"{', '.join(map(repr, header))}. Add or rename the column, or correct 'targets' in corpus.yaml."
            )


def _labels_in(name: str, rules: TaskKind, rows: Sequence[Row], synonyms: Mapping[str, str]) -> list[str]:
    # Neutral first, the others in alphabetical order.
    spellings: Counter[str] = Counter()
    meant = {label_key(spelling): label for spelling, label in synonyms.items()}
    for row in rows:
        for part in rules.parts(row[name]):
            spellings[meant.get(label_key(part), part)] += 1
    # A label with a synonym keeps the spelling given there.
    labels = usual_spellings(spellings)
    labels.update({label_key(label): label for label in meant.values() if label in spellings})
    least = rules.least_labels
    if len(labels) < least:
        raise CorpusFormatError(
            f"{rows[0].path}, column {name!r}: {len(labels)} labels in {len(rows)} rows, but at least {least} are "
            f"needed. Fill the column, or list all labels in corpus.yaml below targets.{name}.labels."
        )
    return sorted(labels.values(), key=lambda label: (label.lower() != "neutral", label))


def usual_spellings(spellings: Counter[str]) -> dict[str, str]:
    """Most frequent spelling of every label, by :func:`~ercfusion.batch.labels.label_key`; ties: composed Unicode."""
    best: dict[str, str] = {}
    for spelling in spellings:  # in order of first appearance
        key = label_key(spelling)
        usual = best.setdefault(key, spelling)
        rank, known = ((spellings[name], unicodedata.is_normalized("NFC", name)) for name in (spelling, usual))
        if rank > known:
            best[key] = spelling
    return best
