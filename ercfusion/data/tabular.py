"""Reading released CSV and JSON files strictly, with errors that name file, line, column and remedy.

Every reader goes through this module, so that a damaged or re-saved file is reported in the same way whichever corpus
it belongs to. Nothing is repaired silently: a byte order mark and Windows line ends are the only differences from the
release that are accepted without a word.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ercfusion.data.schema import LabelSchema
from ercfusion.errors import CorpusFormatError, did_you_mean, nearest

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_TIME = re.compile(r"(\d{1,2}):([0-5]?\d):([0-5]?\d)(?:[.,](\d{1,6}))?")
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_AGAIN = "Get the file again from the release, or save it as UTF-8."


@dataclass(frozen=True)
class Row:
    """One record of a CSV file, which remembers where it stands.

    Args:
        path: The file.
        line: Line on which the record starts, counted from 1 (a quoted cell may run over several lines).
        cells: Text by column name, as stored.
    """

    path: Path
    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def fail(self, column: str, problem: str) -> NoReturn:
        """Raise :class:`CorpusFormatError` for a cell of this record."""
        raise CorpusFormatError(f"{self.path}, line {self.line}, column {column!r}: {problem}")

    def text(self, column: str) -> str:
        """The cell without white space around it; an empty cell is an error."""
        value = self.cells[column].strip()
        if not value:
            self.fail(column, "the cell is empty. Get the file again from the release.")
        return value

    def integer(self, column: str) -> int:
        """The cell as a whole number that is not negative."""
        value = self.cells[column].strip()
        # int() would also take "1_000", "+3" and digits of other scripts, none of which a release holds.
        if not (value.isascii() and value.isdigit()):
            self.fail(
                column,
                f"found {value!r}, but a whole number (0, 1, 2, ...) is expected. Correct the cell, or get the file "
                f"again from the release (spreadsheet programs rewrite numbers).",
            )
        return int(value)

    def seconds(self, column: str) -> float:
        """The cell, a time such as ``00:20:57,256``, in seconds."""
        value = self.cells[column].strip()
        match = _TIME.fullmatch(value)
        if match is None:
            self.fail(
                column,
                f"found {value!r}, but a time HH:MM:SS,mmm (for example 00:20:57,256) is expected. Correct the cell, "
                f"or get the file again from the release (spreadsheet programs rewrite times).",
            )
        hours, minutes, seconds, fraction = match.groups()
        # Whole milliseconds first: every time is then the float nearest to its decimal value.
        micro = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 10**6 + int((fraction or "0").ljust(6, "0"))
        return micro / 10**6

    def label(self, column: str, schema: LabelSchema) -> str:
        """The cell as the schema's own spelling of a label; capital letters do not matter."""
        value = self.cells[column].strip()
        try:
            return schema.canonical(value if value in schema else value.lower())
        except CorpusFormatError:
            self.fail(column, f"{value!r} is no label of {schema.name}. {did_you_mean(value.lower(), schema.labels)}")


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark, line ends as stored.

    Raises:
        CorpusFormatError: the file is empty or not UTF-8; the message names the line and the byte.
    """
    data = path.read_bytes()
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise CorpusFormatError(
            f"{path} is empty ({len(data)} bytes). The download or copy was cut off: get the file again."
        )
    for mark, encoding in _WIDE:
        if data.startswith(mark):
            raise CorpusFormatError(f"{path}, line 1: the file is {encoding}, but UTF-8 is expected. {_AGAIN}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # For a file that begins with a mark, the error counts from behind it.
        position = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        line = data.count(b"\n", 0, position) + 1
        column = position - (data.rfind(b"\n", 0, position) + 1) + 1
        raise CorpusFormatError(
            f"{path}, line {line}, byte {column}: the byte 0x{data[position]:02x} is not UTF-8 ({error.reason}). "
            f"The file was probably saved as Latin-1 or Windows-1252. {_AGAIN}"
        ) from error
    zero = text.find("\0")
    if zero >= 0:
        line = text.count("\n", 0, zero) + 1
        raise CorpusFormatError(
            f"{path}, line {line}: there is a zero byte. The file is damaged, or UTF-16 without a mark. {_AGAIN}"
        )
    return text


def read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, each with the line on which it starts; blank lines are passed over.

    Raises:
        CorpusFormatError: as in :func:`read_text`, or the quotation marks do not close.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CorpusFormatError(
                f"{path}, line {start}: the record that starts there is no CSV ({error}). A quotation mark is probably "
                f"missing, or stands alone where two are needed."
            ) from error
        if any(cell.strip() for cell in cells):
            yield start, cells
        start = reader.line_num + 1


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """The records of a CSV file with a header line.

    Args:
        path: The file.
        columns: Names that the header must have; others are kept too, and their order is free.

    Raises:
        CorpusFormatError: as in :func:`read_records`, or a column is missing, a name occurs twice, a record has more or
            fewer cells than the header, or there are no records.
    """
    records = read_records(path)
    header_line, names = next(records, (1, []))
    header = [name.strip() for name in names]
    for column in columns:
        if column not in header:
            raise CorpusFormatError(
                f"{path}, line {header_line}: no column {column!r}. {_found_columns(column, header)}\n"
                f"The release has the columns {', '.join(columns)}; restore the header line."
            )
        if header.count(column) > 1:
            raise CorpusFormatError(
                f"{path}, line {header_line}: the column {column!r} occurs {header.count(column)} times. Keep one."
            )
    rows = []
    for line, cells in records:
        if len(cells) != len(header):
            raise CorpusFormatError(
                f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}. A comma or a quotation "
                f"mark is missing or too many; cells with commas must be quoted."
            )
        rows.append(Row(path, line, dict(zip(header, cells, strict=True))))
    if not rows:
        raise CorpusFormatError(
            f"{path} holds a header line and no records. The download or copy was cut off: get the file again."
        )
    return rows


def _found_columns(column: str, header: Sequence[str]) -> str:
    # The nearest of the *found* names: it is that one which has to be renamed.
    near = nearest(column, header, count=1)
    hint = f" Is it the one called {near[0]!r} there?" if near else ""
    return f"Found: {', '.join(map(repr, header)) or 'nothing but commas'}.{hint}"


def group_rows(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Rows by key; keys in order of first appearance, rows in file order."""
    groups: dict[K, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def check_unique(rows: Iterable[Row], key: Callable[[Row], Hashable], columns: Sequence[str]) -> None:
    """Raise :class:`CorpusFormatError`, naming both lines, where two rows have the same key.

    Args:
        rows: Rows of one file.
        key: What must differ from row to row.
        columns: The columns that ``key`` reads, for the message.
    """
    seen: dict[Hashable, Row] = {}
    for row in rows:
        first = seen.setdefault(key(row), row)
        if first is not row:
            named = ", ".join(f"{column} {row[column].strip()}" for column in columns)
            raise CorpusFormatError(
                f"{row.path}, line {row.line}: {named} stands already on line {first.line}. Each utterance has its own "
                f"number: remove one of the lines, or correct its numbers."
            )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CorpusFormatError: as in :func:`read_text`, or the text is no JSON; the message names line and column.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise CorpusFormatError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). The file was edited or "
            f"cut off: correct it there, or get it again from the release."
        ) from error


def pick(entry: Any, key: str, kind: type[T], path: Path, where: str) -> T:
    """``entry[key]`` of a JSON object, checked.

    Args:
        entry: What should be an object.
        key: The key that it should have.
        kind: The type that the value should have (``float`` also takes whole numbers).
        path: The file, for the message.
        where: Where in the file the entry stands, for the message.

    Raises:
        CorpusFormatError: no object, no such key, or a value of another type.
    """
    if not isinstance(entry, dict):
        raise CorpusFormatError(
            f"{path}, {where}: found {_shown(entry)}, but an object with the key {key!r} is expected."
        )
    if key not in entry:
        raise CorpusFormatError(
            f"{path}, {where}: no key {key!r}. Found: {', '.join(map(repr, entry)) or 'nothing'}. "
            f"Get the file again from the release, or rename the key."
        )
    value = entry[key]
    # A JSON true is an int to Python, and a score of 2 is an int although it is meant as 2.0.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CorpusFormatError(
            f"{path}, {where}, key {key!r}: found {_shown(value)}, but a value of type {kind.__name__} is expected."
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
