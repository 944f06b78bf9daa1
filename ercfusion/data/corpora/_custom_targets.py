"""Readers of the cells of targets in ``utterances.csv``: labels, marks, votes, raters' labels and ratings."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ercfusion._core.errors import CorpusFormatError, did_you_mean
from ercfusion.batch.kinds import TaskKind, task_kind
from ercfusion.batch.labels import LabelSchema, label_key, shown_pair
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import RULES
from ercfusion.data.conversation import Target
from ercfusion.data.corpora._custom import DEFAULT_TARGET, RATING_RULES, SYNONYMS, Settings, fail
from ercfusion.data.raters import Rule, check_ratings, combine, evaluator_weights
from ercfusion.data.tabular import Row, likely_columns
from ercfusion.data.vote_targets import vote_targets
from ercfusion.tasks.kinds.multi_label import NOTHING, label_parts

RATER = "@"
"""Between a target (or its dimension) and a rater in the name of a column: ``emotion@ada``."""


@dataclass(frozen=True)
class TargetReader:
    """Reader of one target of ``utterances.csv``, from its columns.

    Args:
        task: The task.
        columns: Names of the columns.
    """

    task: TaskSpec
    columns: tuple[str, ...]

    def read(self, row: Row) -> Target:
        """The target of a row; not labelled if its cells are empty."""
        return Target(self.task.rules.read(row, self.columns, self.task) if self._filled(row) else None)

    def _filled(self, row: Row) -> bool:
        """Whether all cells of the target are filled; only some of them are an error."""
        cells = [row[column].strip() for column in self.columns]
        if not any(cells):
            return False
        for column, cell in zip(self.columns, cells, strict=True):
            if not cell:
                filled = ", ".join(name for name, text in zip(self.columns, cells, strict=True) if text)
                row.fail(
                    column,
                    f"the cell is empty or marked as missing, but {filled} is not. Fill all cells of the target, or "
                    f"none.",
                )
        return True

    @property
    def labelled(self) -> tuple[str, ...]:
        """Columns with spellings of labels."""
        return () if self.task.schema is None or self.task.rules.column_per_label else self.columns[:1]

    def parts(self, cell: str) -> list[str]:
        """Spellings of labels in a cell of a column of :attr:`labelled`."""
        return self.task.rules.parts(cell, self.known)

    def form(self, cell: str) -> str:
        """See :meth:`ercfusion.batch.kinds.TaskKind.form`."""
        return self.task.rules.form(cell, self.known)

    @property
    def known(self) -> tuple[str, ...]:
        """Labels and synonyms."""
        schema = self.task.schema
        return () if schema is None else (*schema.labels, *schema.synonyms)

    @property
    def rule(self) -> str:
        """Rule of votes; empty without one."""
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions of the reader."""
        return ()


@dataclass(frozen=True)
class MarkReader(TargetReader):
    """A label set in one column per label, with a mark in each."""

    def read(self, row: Row) -> Target:
        """The labels with a mark; not labelled if all cells are empty."""
        if not any(row[column].strip() for column in self.columns):
            return Target(None)
        return Target(self.task.rules.read_marks(row, self.columns, self.task))

    @property
    def labelled(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class VoteReader(TargetReader):
    """A rule on counts of votes, one column per label.

    Args:
        by: A key of :data:`ercfusion.batch.votes.RULES`.
    """

    by: str

    @property
    def rule(self) -> str:
        """The rule."""
        return self.by

    @property
    def labelled(self) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, row: Row) -> Target:
        """The target by the rule, with the votes."""
        if not self._filled(row):
            return Target(None)
        counts = [_count(row, column) for column in self.columns]
        if not any(counts):
            row.fail(
                self.columns[0],
                f"all {len(counts)} vote counts are 0. Leave the cells empty for turns without votes.",
            )
        labels = self.task.output_names
        votes = dict(zip(labels, counts, strict=True))
        return vote_targets(votes, {self.task.name: self.by}, labels)[self.task.name]


def _count(row: Row, column: str) -> int:
    number = row.number(column)
    if number < 0:
        row.fail(column, f"{number:g} is negative. Give the number of annotators who chose this label.")
    if not number.is_integer():
        row.fail(
            column,
            f"found {number:g}, but a count of votes is a whole number. Correct it, or write 'kind: distribution' "
            f"without 'rule' for shares.",
        )
    return int(number)


@dataclass(frozen=True)
class BallotReader(VoteReader):
    """A rule on the labels in one column per rater; a rater with an empty cell did not answer."""

    @property
    def labelled(self) -> tuple[str, ...]:
        """The raters' columns."""
        return self.columns

    def parts(self, cell: str) -> list[str]:
        """Labels of a rater, who may name several."""
        return [part for part in label_parts(cell, self.known)[1] if part not in ("", NOTHING)]

    def form(self, cell: str) -> str:
        """How a rater separates labels, if there are several."""
        return ""

    def read(self, row: Row) -> Target:
        """The target by the rule, with the votes of the raters who answered."""
        schema = self.task.schema
        assert schema is not None
        answered = [column for column in self.columns if row[column].strip()]
        if not answered:
            return Target(None)
        votes: Counter[str] = Counter()
        for column in answered:
            votes.update({row.label(column, schema, part) for part in self.parts(row[column])})
        counts = {label: votes[label] for label in schema.labels}
        return vote_targets(counts, {self.task.name: self.by}, schema.labels, len(answered))[self.task.name]


@dataclass(frozen=True)
class RatingReader(TargetReader):
    """Numbers of several raters, combined.

    Args:
        values: Combined numbers by line of the table; NaN without a rating.
        weights: See :attr:`notes`.
    """

    values: Mapping[int, tuple[float, ...]]
    weights: tuple[str, ...] = ()

    def read(self, row: Row) -> Target:
        """The combined numbers; not labelled without ratings."""
        numbers = self.values[row.line]
        if all(map(math.isnan, numbers)):
            return Target(None)
        for dimension, number in zip(self.task.dimensions, numbers, strict=True):
            if math.isnan(number):
                row.fail(
                    self.columns[0],
                    f"no rating of {dimension}, but of other dimensions. Add one, or remove the others.",
                )
        return Target(numbers if len(numbers) > 1 else numbers[0])

    @property
    def notes(self) -> tuple[str, ...]:
        """Weights of the raters."""
        return self.weights


def target_readers(settings: Settings, header: Sequence[str], rows: Sequence[Row]) -> list[TargetReader]:
    """Readers of the targets of ``corpus.yaml``, by default of the column ``emotion``."""
    if settings.targets is not None:
        readers = [_reader(settings, name, entries, header, rows) for name, entries in settings.targets.items()]
    elif DEFAULT_TARGET not in header:
        near = likely_columns([DEFAULT_TARGET], header, SYNONYMS)
        hint = f" Is it {near[DEFAULT_TARGET]!r}?" if near else ""
        raise CorpusFormatError(
            f"{rows[0].path}, line 1: no column {DEFAULT_TARGET!r}, and corpus.yaml names no targets. Found: "
            f"{', '.join(map(repr, header))}.{hint} Rename the column, or name it in corpus.yaml below 'targets'."
        )
    else:
        readers = [_reader(settings, DEFAULT_TARGET, {"kind": "single_label"}, header, rows)]
    return readers


def _reader(
    settings: Settings, name: str, entries: Mapping[str, Any], header: Sequence[str], rows: Sequence[Row]
) -> TargetReader:
    table = rows[0].path
    kind, rules = entries["kind"], task_kind(entries["kind"])
    metric = entries.get("metric", "")
    if entries.get("rule") in RULES:
        return _vote_reader(settings, name, entries, header, rows)
    if not rules.has_schema:
        dimensions = tuple(composed(entries.get("dimensions", [name])))
        task = TaskSpec(name, kind, None, dimensions, entries["low"], entries["high"], metric)
        if entries.get("rule") in RATING_RULES:
            return _rating_reader(task, entries, header, rows)
        columns = rules.columns(name, dimensions)
        _require(table, name, columns, header)
        return TargetReader(task, tuple(columns))
    labels = composed(entries["labels"]) if "labels" in entries else None
    marks = rules.mark_columns and name not in header and any(column.startswith(f"{name}.") for column in header)
    if marks or rules.column_per_label:
        labels = _labels_of_columns(table, name, name, labels, header, rules.least_labels)
        columns = [f"{name}.{label}" for label in labels]
    else:
        columns = rules.columns(name, labels or [])
    _require(table, name, columns, header)
    if labels is None:
        # Synonyms are not labels of their own.
        labels = composed(_labels_in(name, columns, rules, rows, entries.get("synonyms", {})))
    schema = _schema(settings, name, entries, labels)
    reader = MarkReader if marks else TargetReader
    scale = {key: entries[key] for key in ("low", "high")} if rules.scaled else {}
    try:
        task = TaskSpec(name, kind, schema, metric=metric, **scale)
    except ValueError as error:
        assert settings.path is not None
        fail(settings.path, f"targets.{name}", f"{error}. Correct low and high")
    return reader(task, tuple(columns))


def _labels_of_columns(
    table: Path, name: str, prefix: str, labels: Sequence[str] | None, header: Sequence[str], least: int
) -> list[str]:
    """Labels with a column ``PREFIX.LABEL``: those of ``corpus.yaml``, or those of the header."""
    named = [column.removeprefix(f"{prefix}.") for column in header if column.startswith(f"{prefix}.")]
    if labels is None:
        if len(named) < least:
            _require(table, name, [f"{prefix}.LABEL"], header)
        return named
    missing = [f"{prefix}.{label}" for label in labels]
    _require(table, name, missing, header)
    for label in named:
        if label not in labels:
            raise CorpusFormatError(
                f"{table}, line 1, column '{prefix}.{label}': {label!r} is not a label of the target {name!r}. "
                f"{did_you_mean(label, labels)}"
            )
    return list(labels)


def _vote_reader(
    settings: Settings, name: str, entries: Mapping[str, Any], header: Sequence[str], rows: Sequence[Row]
) -> TargetReader:
    table, rule = rows[0].path, entries["rule"]
    prefix = entries.get("votes", name)
    # Targets from the same votes have the same labels.
    shared = (settings.targets or {}).get(prefix, {})
    entries = {**{key: shared[key] for key in ("labels", "synonyms", "neutral", "raters") if key in shared}, **entries}
    labels = composed(entries["labels"]) if "labels" in entries else None
    raters = _rater_columns(prefix, entries, header)
    counted = [column for column in header if column.startswith(f"{prefix}.")]
    if raters and counted and "raters" not in entries:
        raise CorpusFormatError(
            f"{table}, line 1: the votes {prefix!r} have columns of labels ({counted[0]!r}) and of raters "
            f"({raters[0]!r}). Remove the columns of one kind, or name the raters' columns in corpus.yaml: "
            f"targets.{name}.raters."
        )
    metric = entries.get("metric", RULES[rule].metric)
    least = task_kind(entries["kind"]).least_labels
    if not raters:
        labels = _labels_of_columns(table, name, prefix, labels, header, least)
        task = TaskSpec(name, entries["kind"], _schema(settings, prefix, entries, labels), metric=metric)
        return VoteReader(task, tuple(f"{prefix}.{label}" for label in labels), rule)
    _require(table, name, raters, header)
    if labels is None:
        synonyms = entries.get("synonyms", {})
        labels = composed(_labels_in(name, raters, task_kind("multi_label"), rows, synonyms, least))
    task = TaskSpec(name, entries["kind"], _schema(settings, prefix, entries, labels), metric=metric)
    return BallotReader(task, tuple(raters), rule)


def _rater_columns(prefix: str, entries: Mapping[str, Any], header: Sequence[str]) -> list[str]:
    if "raters" in entries:
        return composed(entries["raters"])
    return [column for column in header if column.startswith(f"{prefix}{RATER}")]


def _rating_reader(
    task: TaskSpec, entries: Mapping[str, Any], header: Sequence[str], rows: Sequence[Row]
) -> RatingReader:
    table, several = rows[0].path, len(task.dimensions) > 1
    places = [f"{task.name}.{dimension}" for dimension in task.dimensions] if several else [task.name]
    if "raters" in entries and not several:
        raters = composed(entries["raters"])
        columns = [[rater] for rater in raters]
    else:
        named = [column.partition(RATER)[2] for column in header if column.partition(RATER)[0] in places]
        raters = composed(entries.get("raters", [])) or [rater for rater in dict.fromkeys(named) if rater]
        columns = [[f"{place}{RATER}{rater}" for place in places] for rater in raters or ["RATER"]]
    flat = [column for own in columns for column in own]
    _require(table, task.name, flat, header)
    ratings = np.full((len(rows), len(raters), len(places)), np.nan)
    for item, row in enumerate(rows):
        for number, own in enumerate(columns):
            for part, column in enumerate(own):
                if row[column].strip():
                    ratings[item, number, part] = row.number(column)

    def place(item: int, rater: int) -> str:
        outside = (ratings[item, rater] < task.low) | (ratings[item, rater] > task.high)
        return f"{table}, line {rows[item].line}, column {columns[rater][int(outside.argmax())]!r}"

    check_ratings(ratings, task.low, task.high, place)
    rule: Rule = entries["rule"]
    texts = []
    try:
        values = combine(ratings, rule, **({"raters": raters, "dimensions": task.dimensions} if rule == "ewe" else {}))
        if rule == "ewe":
            weights = evaluator_weights(ratings)
            for dimension, column_weights in zip(task.dimensions, weights.T, strict=True):
                pairs = zip(raters, column_weights, strict=True)
                each = ", ".join(f"{rater} {weight:.2f}" for rater, weight in pairs)
                texts.append(f"weights of the raters of {dimension}, from all rows: {each}")
    except CorpusFormatError as error:
        raise CorpusFormatError(f"{table}, target {task.name!r}: {error}") from error
    by_line = {row.line: tuple(map(float, numbers)) for row, numbers in zip(rows, values, strict=True)}
    return RatingReader(task, tuple(flat), by_line, tuple(texts))


def composed(names: Sequence[str]) -> list[str]:
    """Names in composed Unicode (NFC), the form of the names of columns."""
    return [unicodedata.normalize("NFC", name) for name in names]


def check_similar_columns(table: Path, header: Sequence[str], read: Sequence[str]) -> None:
    """Raise :class:`CorpusFormatError` for a column that is read, and another one with almost the same name."""
    for column in read:
        others = [name for name in header if name != column and label_key(name) == label_key(column)]
        if others:
            raise CorpusFormatError(
                f"{table}, line 1: the columns {shown_pair(column, others[0])} differ only in case, blanks or Unicode "
                "form. Rename or remove one."
            )


def _schema(settings: Settings, name: str, entries: Mapping[str, Any], labels: Sequence[str]) -> LabelSchema:
    spelled: Mapping[str, str] = entries.get("synonyms", {})
    synonyms = dict(zip(composed(list(spelled)), composed(list(spelled.values())), strict=True))
    neutral = entries.get("neutral", next((label for label in labels if label.lower() == "neutral"), None))
    neutral = neutral if neutral is None else unicodedata.normalize("NFC", neutral)
    if settings.path is not None:
        where = f"targets.{name}"
        for spelling, label in synonyms.items():
            if label not in labels:
                fail(
                    settings.path,
                    f"{where}.synonyms.{spelling}",
                    f"{label!r} is not a label. {did_you_mean(label, labels)}",
                )
            if spelling in labels:
                fail(settings.path, f"{where}.synonyms.{spelling}", "this is a label already. Remove the synonym")
        if neutral is not None and neutral not in labels:
            fail(settings.path, f"{where}.neutral", f"{neutral!r} is not a label. {did_you_mean(neutral, labels)}")
    return LabelSchema(f"custom/{name}", tuple(labels), synonyms, neutral)


def _require(table: Path, name: str, columns: Sequence[str], header: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise CorpusFormatError(
                f"{table}, line 1: the target {name!r} needs the column {column!r}. Found: "
                f"{', '.join(map(repr, header))}. Add or rename the column, or correct 'targets' in corpus.yaml."
                f"{_hint(name, header)}"
            )


def _hint(name: str, header: Sequence[str]) -> str:
    """What other columns of the target may be."""
    if any(column.startswith(f"{name}{RATER}") for column in header):
        return f" To combine the raters, add 'rule' below targets.{name}: 'rule: majority', for example."
    if any(column.startswith(f"{name}.") for column in header):
        return (
            f" Columns {name}.LABEL need 'kind: multi_label' (marks), 'kind: distribution' (shares) or "
            "'rule: majority' (votes)."
        )
    return ""


def _labels_in(
    name: str,
    columns: Sequence[str],
    rules: TaskKind,
    rows: Sequence[Row],
    synonyms: Mapping[str, str],
    least: int | None = None,
) -> list[str]:
    # Neutral first, the others in alphabetical order.
    spellings: Counter[str] = Counter()
    meant = {label_key(spelling): label for spelling, label in synonyms.items()}
    for row in rows:
        for column in columns:
            for part in rules.parts(row[column]):
                spellings[meant.get(label_key(part), part)] += 1
    # A label with a synonym keeps the spelling given there.
    labels = usual_spellings(spellings)
    labels.update({label_key(label): label for label in meant.values() if label in spellings})
    least = rules.least_labels if least is None else least
    if len(labels) < least:
        raise CorpusFormatError(
            f"{rows[0].path}, column {columns[0]!r}: {len(labels)} labels in {len(rows)} rows, but at least {least} "
            f"are needed. Fill the column, or list all labels in corpus.yaml below targets.{name}.labels."
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
