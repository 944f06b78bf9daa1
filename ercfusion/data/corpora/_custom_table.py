"""Reading ``utterances.csv``; decisions become notes, logged by training and reported by ``doctor``."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion.data.check_media import some
from ercfusion.data.corpora._custom import (
    DEFAULT_TARGET,
    SYNONYMS,
    TABLE,
    Settings,
)
from ercfusion.data.corpora._custom_targets import RATER, TargetReader
from ercfusion.data.corpus import SPLITS, Finding, similar_table
from ercfusion.data.permute import seeded_permutation
from ercfusion.data.tabular import SEPARATORS, Row, check_unique, group_rows, known_columns, read_own_table

REQUIRED = ("conversation", "turn")
MISSING: frozenset[str] = frozenset({"NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "NULL", "null"})
"""Words written into empty cells by other programs."""
RECORDINGS = ("audio", "video")
_READ = ("start", "end", *RECORDINGS)
_SPLIT_NAMES: Mapping[str, str] = {
    **{split: split for split in SPLITS},
    **{"training": "train", "val": "dev", "valid": "dev", "validation": "dev", "development": "dev", "testing": "test"},
}
_DEV_SHARE = 0.1
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".parquet", ".jsonl")
_REMEDY = "Read it with data.options.encoding={encoding}, or save it as UTF-8."


@dataclass(frozen=True)
class Options:
    """Settings of :class:`~ercfusion.data.corpora.custom.CustomCorpus`."""

    split_seed: int | None = None
    encoding: str | None = None
    missing: tuple[str, ...] = ()
    order: str | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                b"ab".decode(self.encoding)  # decoding nothing would not look up the codec
            except UnicodeDecodeError:
                pass  # an encoding in which these two bytes are not text
            except (LookupError, UnicodeError):  # UnicodeError: a codec which is not a text encoding
                common = ["utf-8", "cp1252", "utf-16", "gb18030", "shift_jis", "cp949", "cp1251"]
                raise ConfigError(
                    f"data.options.encoding={self.encoding}: there is no such encoding. "
                    f"{did_you_mean(self.encoding, common)}"
                ) from None
        object.__setattr__(self, "missing", tuple(str(word).strip() for word in self.missing))


@dataclass
class Table:
    """Content of ``utterances.csv``, with the decisions of the reader."""

    path: Path
    header: list[str]
    rows: list[Row]
    notes: list[Finding] = field(default_factory=list)


def read_utterances(path: Path, settings: Settings, options: Options) -> Table:
    """Rows of ``utterances.csv``; missing values become empty cells, ids and speakers are in composed Unicode."""
    rows, separator = read_own_table(
        path, REQUIRED, encoding=options.encoding, remedy=_REMEDY, synonyms=other_names(settings)
    )
    header = [column for column in rows[0].cells if column]
    table = Table(path, header, rows)
    if separator != ",":
        table.notes.append(_note("reading", f"cells are separated by {SEPARATORS[separator]}"))
    targets = settings.targets or {DEFAULT_TARGET: {}}
    # A word listed as a label is a label, not a missing value.
    labels = {
        name: {spelling for key in ("labels", "synonyms") for spelling in entries.get(key, ())}
        for name, entries in targets.items()
    }
    owners = {name: name for name in targets}
    for name, entries in targets.items():
        owners.setdefault(entries.get("votes", name), name)
        owners |= {unicodedata.normalize("NFC", str(column)): name for column in entries.get("raters", ())}
    owner = {name: owners.get(name) or owners.get(re.split(f"[.{RATER}]", name)[0]) for name in header}
    read = [name for name in header if name in _READ or owner[name]]
    words = MISSING | set(options.missing)
    blanked: dict[str, Counter[str]] = {}
    composed: Counter[str] = Counter()
    commas = 0
    for position, row in enumerate(rows):
        changed = {}
        for column in (*REQUIRED, "speaker"):
            if column in row.cells and (cell := unicodedata.normalize("NFC", row[column])) != row[column]:
                changed[column] = cell
                composed[column] += 1
        for column in read:
            cell = row[column].strip()
            if cell in words and cell not in labels.get(owner[column] or "", ()):
                changed[column] = ""
                blanked.setdefault(column, Counter())[cell] += 1
            elif row.decimal == "," and re.fullmatch(r"[+-]?\d+,\d+", cell):
                commas += 1
        if changed:
            rows[position] = replace(row, cells={**row.cells, **changed})
    for column, replaced in blanked.items():
        shown = ", ".join(f"{word!r} ({count})" for word, count in sorted(replaced.items()))
        table.notes.append(_note("missing values", f"column {column!r}: read as missing: {shown}"))
    for column, count in composed.items():
        text = f"column {column!r}: {count} cells are in decomposed Unicode (NFD) and are read in composed form (NFC)"
        table.notes.append(_note("reading", text))
    if commas:
        table.notes.append(_note("reading", f"{commas} numbers have a decimal comma"))
    check_unique(rows, lambda row: (row.text("conversation"), row.text("turn")), REQUIRED)
    return table


def other_names(settings: Settings) -> dict[str, list[str]]:
    """:data:`SYNONYMS` without the names of the corpus's own targets."""
    targets = settings.targets or {}
    return {
        column: [name for name in names if name not in targets]
        for column, names in SYNONYMS.items()
        if column != DEFAULT_TARGET or settings.targets is None
    }


def note_unread(table: Table, unread: Sequence[str], names: Mapping[str, Sequence[str]]) -> None:
    """Note columns not read; training warns of those which are another name of an absent column."""
    if not unread:
        return
    near = {name: column for name, column in known_columns(unread, names).items() if column not in table.header}
    text = f"columns not read: {', '.join(unread)}"
    if near:
        renamed = ", ".join(f"{name} to {column}" for name, column in near.items())
        holding = f"it holds the {next(iter(near.values()))}" if len(near) == 1 else "they hold what these names say"
        text += f". Rename {renamed} if {holding}"
    table.notes.append(replace(_note("columns", text), warning=bool(near)))


def check_table_exists(folder: Path) -> None:
    """Raise :class:`CorpusNotFoundError` for a folder without ``utterances.csv``, naming the tables there."""
    if (folder / TABLE).is_file():
        return
    if advice := similar_table(folder, [TABLE]):
        raise CorpusNotFoundError(f"{TABLE} not found in {folder}.{advice} Rename or convert the file.")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _TABLES and path.is_file())
    tables = [name for name in names if not name.startswith((".", "~"))]
    if not tables:
        raise CorpusNotFoundError(
            f"{TABLE} not found in {folder}, nor another table. Add it with one row per utterance and the columns "
            f"{' and '.join(REQUIRED)}, or correct data.raw."
        )
    choice = "it" if len(tables) == 1 else "the one with a row per utterance"
    if all(Path(name).suffix.lower() == ".csv" for name in tables):
        raise CorpusNotFoundError(
            f"{TABLE} not found in {folder}: found {', '.join(tables)}. Rename {choice} to {TABLE}."
        )
    raise CorpusNotFoundError(
        f"{TABLE} not found in {folder}: found {', '.join(tables)}. Convert {choice} to CSV (UTF-8), named {TABLE}."
    )


def _note(topic: str, text: str) -> Finding:
    return Finding("note", topic, f"{TABLE}: {text}")


# Times


def time_of(row: Row, column: str) -> float | None:
    """``start`` or ``end`` of a row in seconds; None for an empty cell."""
    value = row.number(column) if row.cells.get(column, "").strip() else None
    if value is not None and value < 0:
        row.fail(column, f"{value:g} is negative. Give seconds from the beginning of the recording.")
    return value


def check_times(table: Table) -> None:
    """Note turns without duration, and refuse turns ending before they start."""
    wrong, equal = [], []
    for row in table.rows:
        start, end = time_of(row, "start"), time_of(row, "end")
        if start is not None and end is not None and end <= start:
            if end < start:
                wrong.append(f"line {row.line}, column 'end': the turn ends at {end:g} s and starts at {start:g} s")
            else:
                equal.append(f"line {row.line} ({start:g} s)")
    if wrong:
        raise CorpusFormatError(f"{table.path}, {'; '.join(wrong)}. Correct one of the two.")
    if equal:
        text = f"{len(equal)} turns end when they start: {', '.join(equal)}; a recording could not be cut there"
        table.notes.append(_note("times", text))


# Order


def order_turns(table: Table, groups: Mapping[str, list[Row]], order: str | None) -> dict[str, list[Row]]:
    """Rows of every conversation in order of the numbers in ``turn``, or of ``start`` if ids are not numbers.

    Raises:
        CorpusFormatError: two contradicting orders.
        ConfigError: ``order`` names a column without an order.
    """
    if order == "file":
        return dict(groups)
    numbered = _sorted_by(groups, _number)
    last = numbered or _sorted_by(groups, _last_number)
    timed = all(time_of(row, "start") is not None for rows in groups.values() if len(rows) > 1 for row in rows)
    by_start = {
        name: sorted(rows, key=lambda row: time_of(row, "start") or 0.0) for name, rows in groups.items()
    } if timed else None  # fmt: skip
    chosen: Mapping[str, list[Row]] | None
    if order is not None:
        chosen = last if order == "turn" else by_start
        if chosen is None:
            reason = "its ids do not have different numbers" if order == "turn" else "some of its cells are empty"
            raise ConfigError(
                f"data.options.order={order}: that column of {table.path} gives no order: {reason}. Choose another "
                f"order, or correct the column."
            )
        return dict(chosen)
    if numbered is not None:
        if by_start is not None:
            several = [name for name, rows in groups.items() if len(rows) > 1]
            against = [name for name in several if not _rises(numbered[name])]
            if 2 * len(against) > len(several):
                _two_orders(table, "the columns 'turn' and 'start'", ("turn", "start"), against, len(groups))
        chosen, column = numbered, "turn"
    elif by_start is not None:
        chosen, column = by_start, "start"
    elif last is not None:
        against = [name for name, rows in groups.items() if rows != last[name]]
        if against:
            _two_orders(table, "the numbers in column 'turn' and the rows", ("turn", "file"), against, len(groups))
        return dict(groups)
    else:
        if any(len(rows) > 1 for rows in groups.values()):
            text = "neither 'turn' (no numbers) nor 'start' gives an order of the turns; the order of the rows is used"
            table.notes.append(_note("order", text))
        return dict(groups)
    moved = [name for name, rows in groups.items() if rows != chosen[name]]
    if moved:
        text = (
            f"the rows of {len(moved)} of {len(groups)} conversations are not in order of {column!r} ({some(moved)}); "
            f"turns are read in that order (data.options.order=file keeps the order of the rows)"
        )
        table.notes.append(_note("order", text))
    return dict(chosen)


def _two_orders(table: Table, columns: str, orders: tuple[str, str], against: Sequence[str], total: int) -> None:
    raise CorpusFormatError(
        f"{table.path}: {columns} say different orders in {len(against)} of {total} conversations (first: "
        f"{against[0]!r}). Choose the order of speech: data.options.order={orders[0]} or "
        f"data.options.order={orders[1]}."
    )


def _rises(rows: Sequence[Row]) -> bool:
    starts = [time_of(row, "start") or 0.0 for row in rows]
    return starts == sorted(starts)


def _number(row: Row) -> float | None:
    cell = row.text("turn")
    return float(cell) if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,9})?", cell) else None


def _last_number(row: Row) -> float | None:
    numbers = re.findall(r"[0-9]+", row.text("turn"))
    return float(numbers[-1]) if numbers and len(numbers[-1]) <= 15 else None


def _sorted_by(groups: Mapping[str, list[Row]], key: object) -> dict[str, list[Row]] | None:
    # None unless all turns of a conversation have different numbers.
    result = {}
    for name, rows in groups.items():
        numbers = [key(row) for row in rows]  # type: ignore[operator]
        if None in numbers or len(set(numbers)) < len(numbers):
            return None
        result[name] = [row for _, row in sorted(zip(numbers, rows, strict=True), key=lambda pair: pair[0])]
    return result


def grouped(table: Table, order: str | None) -> dict[str, list[Row]]:
    """Conversations in order of their first rows; see :func:`order_turns`."""
    return order_turns(table, group_rows(table.rows, lambda row: row.text("conversation")), order)


# Splits


def drawn(names: Sequence[str], seed: int) -> dict[str, str]:
    """Split of every conversation, drawn 80/10/10; from three conversations on, no split is empty."""
    order = seeded_permutation(names, seed)
    size = max(1, round(_DEV_SHARE * len(order))) if len(order) > len(SPLITS) - 1 else 0
    first = len(order) - 2 * size
    return {
        name: "train" if position < first else "dev" if position < first + size else "test"
        for position, name in enumerate(order)
    }


def assign_splits(table: Table, groups: Mapping[str, list[Row]], seed: int | None) -> tuple[dict[str, str], str]:
    """Split of every conversation, and the origin of dev in words.

    Raises:
        CorpusFormatError: a value is not a split, a conversation is in two, or dev cannot be drawn.
        ConfigError: a seed was given but nothing is drawn.
    """
    if "split" not in table.header:
        dev = f"{TABLE} has no column 'split': 80/10/10 by conversation, seed {seed or 0}"
        table.notes.append(_note("splits", f"no column split: drew 80/10/10 by conversation, seed {seed or 0}"))
        return drawn(list(groups), seed or 0), dev
    parts: dict[str, str] = {}
    spelled: Counter[tuple[str, str]] = Counter()
    for name, rows in groups.items():
        for row in rows:
            cell = row["split"].strip()
            value = _SPLIT_NAMES.get(cell.casefold(), "")
            if not value:
                row.fail("split", f"found {cell!r}. {did_you_mean(cell, SPLITS)}")
            if cell != value:
                spelled[cell, value] += 1
            if parts.setdefault(name, value) != value:
                row.fail(
                    "split",
                    f"found {cell!r}, but the conversation {name!r} is in {parts[name]!r} on line "
                    f"{rows[0].line}. Put all rows of a conversation into one split: correct one of the two.",
                )
    if spelled:
        shown = ", ".join(f"{cell!r} ({count}) as {value}" for (cell, value), count in spelled.items())
        table.notes.append(_note("splits", f"column 'split': read: {shown}"))
    if "dev" in parts.values():
        if seed is not None:
            raise ConfigError(
                f"data.options.split_seed={seed} was given, but {table.path} has a column 'split', which decides. "
                f"Remove the setting, or the column."
            )
        return parts, f"the column 'split' of {TABLE}"
    order = seeded_permutation([name for name, part in parts.items() if part == "train"], seed or 0)
    if len(order) < 2:
        raise CorpusFormatError(
            f"{table.path}, column 'split': no conversation is in dev, and train has {len(order)}, but at least 2 "
            f"are needed to draw dev. Put conversations into train and dev."
        )
    drawn_dev = order[-max(1, round(_DEV_SHARE * len(order))) :]
    parts.update(dict.fromkeys(drawn_dev, "dev"))
    text = (
        f"column 'split' names no dev: {len(drawn_dev)} of the {len(order)} training conversations are dev, drawn by "
        f"conversation with the seed {seed or 0} ({some(sorted(drawn_dev))})"
    )
    table.notes.append(_note("splits", text))
    return parts, f"the column 'split' of {TABLE} names no dev: 10 % of train by conversation, seed {seed or 0}"


# Labels


def note_spellings(table: Table, readers: Sequence[TargetReader]) -> None:
    """Note labels in another spelling than their name (case, blanks, Unicode form), and how sets are written."""
    for reader in readers:
        table.notes.extend(_note("raters", text) for text in reader.notes)
        schema = reader.task.schema
        if schema is None:
            continue
        for column in reader.labelled:
            spellings: Counter[tuple[str, str]] = Counter()
            forms: Counter[str] = Counter()
            blanks = 0
            for row in table.rows:
                cell = row[column]
                blanks += bool(cell.strip()) and cell != cell.strip()
                forms[reader.form(cell)] += 1
                for part in reader.parts(cell):
                    label = schema.find(part)
                    if label is not None and part != label and part not in schema.synonyms:
                        spellings[part, label] += 1
            if spellings:
                shown = ", ".join(
                    f"{part!r}{_form(part, label)} ({count}) as {label!r}"
                    for (part, label), count in sorted(spellings.items())
                )
                table.notes.append(_note("labels", f"column {column!r}: spellings of one label: read {shown}"))
            if blanks:
                table.notes.append(_note("labels", f"column {column!r}: {blanks} cells have blanks around the label"))
            if others := {form: count for form, count in forms.items() if form}:
                shown = ", ".join(f"{form} ({count})" for form, count in sorted(others.items()))
                table.notes.append(_note("labels", f"column {column!r}: read as sets of labels: cells with {shown}"))


def _form(part: str, label: str) -> str:
    # Two Unicode forms of one word are displayed alike.
    if unicodedata.normalize("NFC", part) != unicodedata.normalize("NFC", label):
        return ""
    return " in decomposed Unicode" if unicodedata.normalize("NFC", part) != part else " in composed Unicode"


# Recordings


def recording(root: Path, cell: str) -> Path:
    """The file named in a cell; backslashes separate folders, and the name's Unicode form does not matter."""
    path = root / cell
    if path.exists():
        return path
    plain = root / cell.replace("\\", "/")
    for form in ("NFC", "NFD"):
        candidate = root / unicodedata.normalize(form, cell.replace("\\", "/"))
        if candidate.exists():
            return candidate
    return plain


def note_recordings(table: Table) -> None:
    """Note paths with backslashes or with a Windows drive."""
    for column in RECORDINGS:
        if column not in table.header:
            continue
        cells = [row[column].strip() for row in table.rows]
        if back := sum("\\" in cell for cell in cells):
            text = f"column {column!r}: backslashes separate folders in {back} paths"
            table.notes.append(_note("recordings", text))
        if drives := [cell for cell in cells if re.match(r"[A-Za-z]:[\\/]", cell)]:
            text = f"column {column!r}: {len(drives)} paths begin with a Windows drive (first: {drives[0]})"
            table.notes.append(_note("recordings", f"{text}; use paths relative to the folder of {TABLE}"))
