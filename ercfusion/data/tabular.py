"""Strict reading of released CSV and JSON files; errors name file, line, column and remedy.

A byte order mark and Windows line ends are accepted; a user's own table may have another separator and encoding.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ercfusion._core.errors import CorpusFormatError, did_you_mean, nearest
from ercfusion._core.schemas.reading import check_plain, load_json, shown
from ercfusion.batch.labels import LabelSchema

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_DIGITS = 9
"""Maximum digits of a whole number."""
_TIME = re.compile(r"(\d{1,2}):([0-5]?\d):([0-5]?\d)(?:[.,](\d{1,6}))?")
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
RELEASED = "Get the file again from the release, or save it as UTF-8."
"""Advice for a file which is not UTF-8."""
SEPARATORS: Mapping[str, str] = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Separators of a user's own table; releases use the first."""
_BINARY = (
    (b"PK\x03\x04", "an Excel workbook (.xlsx) or another zip file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
)


@dataclass(frozen=True)
class Row:
    """One record of a CSV file with its position.

    Args:
        path: The file.
        line: First line of the record, from 1.
        cells: Text by column name, as stored.
        decimal: Decimal separator.
        own: A user's own table, not part of a release.
    """

    path: Path
    line: int
    cells: Mapping[str, str]
    decimal: str = "."
    own: bool = False

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def fail(self, column: str, problem: str) -> NoReturn:
        """Raise :class:`CorpusFormatError` for a cell of this record."""
        raise CorpusFormatError(f"{self.path}, line {self.line}, column {column!r}: {problem}")

    def text(self, column: str) -> str:
        """The cell, stripped; an empty cell is an error."""
        value = self.cells[column].strip()
        if not value:
            advice = "Fill it." if self.own else "Get the file again from the release."
            self.fail(column, f"the cell is empty. {advice}")
        return value

    def integer(self, column: str) -> int:
        """The cell as a whole number from 0."""
        value = self.cells[column].strip()
        # int() would also take "1_000", "+3" and digits of other scripts.
        if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS):
            self.fail(
                column,
                f"found {value!r}, but a whole number (0, 1, 2, ...) is expected. Correct the cell, or get the file "
                f"again (spreadsheet programs rewrite numbers).",
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
                f"or get the file again (spreadsheet programs rewrite times).",
            )
        hours, minutes, seconds, fraction = match.groups()
        # Via whole microseconds: the nearest float to the decimal value.
        micro = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 10**6 + int((fraction or "0").ljust(6, "0"))
        return micro / 10**6

    def number(self, column: str) -> float:
        """The cell as a finite number."""
        cell = self.cells[column].strip()
        plain = cell.replace(",", ".") if self.decimal == "," and re.fullmatch(r"[+-]?\d+,\d+", cell) else cell
        try:
            value = float(plain)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(column, f"found {cell!r}, but a number is expected. Write it like 0.25.")
        return value

    def label(self, column: str, schema: LabelSchema, text: str | None = None) -> str:
        """The cell, or its part ``text``, in the schema's spelling; case and Unicode form are ignored."""
        value = self.cells[column].strip() if text is None else text
        label = schema.find(value)
        if label is None:
            self.fail(
                column, f"{value!r} is not a label of {schema.name}. {did_you_mean(value.lower(), schema.labels)}"
            )
        return label


def read_text(path: Path, encoding: str | None = None, *, remedy: str = RELEASED) -> str:
    """Content of a text file without its byte order mark.

    Args:
        path: The file.
        encoding: None for UTF-8.
        remedy: Advice for another encoding; ``{encoding}`` becomes the probable one.

    Raises:
        CorpusFormatError: the file is empty or has another encoding.
    """
    data = path.read_bytes()
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise CorpusFormatError(f"{path} is empty ({len(data)} bytes): it was cut off. Get the file again.")
    for mark, format_name in _BINARY:
        if data.startswith(mark):
            raise CorpusFormatError(
                f"{path} is {format_name}, in spite of its name. Open it in its program and save it as CSV (UTF-8)."
            )
    if encoding is None:
        for mark, name in _WIDE:
            if data.startswith(mark):
                advice = remedy.format(encoding=name.lower())
                raise CorpusFormatError(f"{path}, line 1: the file is {name}, but UTF-8 is expected. {advice}")
    try:
        text = data.decode(encoding or "utf-8-sig").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        # The error's position does not count the byte order mark.
        skipped = len(codecs.BOM_UTF8) if encoding is None and data.startswith(codecs.BOM_UTF8) else 0
        position = error.start + skipped
        line = data.count(b"\n", 0, position) + 1
        column = position - (data.rfind(b"\n", 0, position) + 1) + 1
        place = f"{path}, line {line}, byte {column}: the byte 0x{data[position]:02x} is not"
        if encoding is not None:
            raise CorpusFormatError(f"{place} {encoding} ({error.reason}). Name another encoding.") from error
        guess, others = _probable_encoding(data)
        raise CorpusFormatError(
            f"{place} UTF-8 ({error.reason}). The file is probably {others}. {remedy.format(encoding=guess)}"
        ) from error
    except UnicodeError as error:
        raise CorpusFormatError(f"{path} cannot be read as {encoding}: {error}. Name another encoding.") from error
    zero = text.find("\0")
    if zero >= 0:
        line = text.count("\n", 0, zero) + 1
        advice = remedy.format(encoding="utf-16-le")
        raise CorpusFormatError(
            f"{path}, line {line}: there is a zero byte. The file is damaged, or UTF-16 without a mark. {advice}"
        )
    return text


def _probable_encoding(data: bytes) -> tuple[str, str]:
    # A name for Python, and a description. Western text has few bytes beyond ASCII.
    beyond = sum(byte >= 0x80 for byte in data)
    try:
        data.decode("cp1252")
        western = 5 * beyond < len(data)
    except UnicodeDecodeError:
        western = False
    if western:
        return "cp1252", "Windows-1252 (cp1252)"
    return "gb18030", "in gb18030 (Chinese), shift_jis (Japanese), cp949 (Korean) or cp1251 (Cyrillic)"


def read_records(
    path: Path, *, encoding: str | None = None, separator: str = ",", remedy: str = RELEASED
) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV file with their first line numbers, without blank lines; see :func:`read_text`."""
    return _records(path, read_text(path, encoding, remedy=remedy), separator)


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CorpusFormatError(
                f"{path}, line {start}: the record from there on is not CSV ({error}). Add the missing quotation mark, "
                f"or double a single one inside a cell."
            ) from error
        # Excel's first line "sep=;" is not a record.
        if any(cell.strip() for cell in cells) and not (start == 1 and _names_separator(cells)):
            yield start, cells
        start = reader.line_num + 1


def _names_separator(cells: Sequence[str]) -> bool:
    return cells[0].lower() in {"sep=", *(f"sep={mark}" for mark in SEPARATORS)} and not any(map(str.strip, cells[1:]))


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Records of a released CSV file with a header line.

    Args:
        path: The file.
        columns: Required columns, in any order.

    Raises:
        CorpusFormatError: the file cannot be read, a column is missing or repeated, a record has another number of
            cells than the header, or there are no records.
    """
    text = read_text(path)
    advice = f"The release has the columns {', '.join(columns)}. Restore the header line."
    separator = _separator(path, text, columns)
    if separator != ",":
        advice = (
            f"The cells are separated by {SEPARATORS[separator]}. Get the file again from the release, or save it with "
            f"commas."
        )
    return _rows(path, text, columns, ",", advice)


def read_own_table(
    path: Path,
    columns: Sequence[str],
    *,
    encoding: str | None = None,
    remedy: str = RELEASED,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Row], str]:
    """Records of a user's own table, and its separator, one of :data:`SEPARATORS`.

    The separator is the one yielding the required columns; without commas, numbers may have a decimal comma.
    ``synonyms`` are other names of columns, for suggestions. See :func:`read_text` and :func:`read_table`.
    """
    text = read_text(path, encoding, remedy=remedy)
    separator = _separator(path, text, columns)
    advice = "Rename or add:"
    return _rows(path, text, columns, separator, advice, synonyms=synonyms or {}, own=True), separator


def _separator(path: Path, text: str, columns: Sequence[str]) -> str:
    # The first one giving all columns, or else most columns.
    headers = {}
    for separator in SEPARATORS:
        try:
            names = next(_records(path, text, separator), (1, []))[1]
        except CorpusFormatError:
            continue
        headers[separator] = [unicodedata.normalize("NFC", name.strip()) for name in names]
    for separator, header in headers.items():
        if all(column in header for column in columns):
            return separator
    return max(headers, key=lambda separator: len(headers[separator]), default=",")


def _rows(
    path: Path,
    text: str,
    columns: Sequence[str],
    separator: str,
    advice: str,
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    own: bool = False,
) -> list[Row]:
    records = _records(path, text, separator)
    header_line, names = next(records, (1, []))
    header = [unicodedata.normalize("NFC", name.strip()) if own else name.strip() for name in names]
    missing = [column for column in columns if column not in header]
    if missing and own:
        raise CorpusFormatError(
            f"{path}, line {header_line}: {lacking(missing)}. Found: {_listed(header)}.\n"
            f"{advice} {to_rename(missing, header, synonyms or {})}."
        )
    if missing:
        raise CorpusFormatError(
            f"{path}, line {header_line}: no column {missing[0]!r}. {_found_columns(missing[0], header)}\n{advice}"
        )
    for column in filter(None, header if own else columns):
        if header.count(column) > 1:
            raise CorpusFormatError(
                f"{path}, line {header_line}: the column {column!r} occurs {header.count(column)} times. Keep one."
            )
    decimal = "." if separator == "," else ","
    rows = []
    for line, cells in records:
        if len(cells) != len(header):
            mark = SEPARATORS[separator].removesuffix("s")
            raise CorpusFormatError(
                f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}. Check it for a {mark} "
                f"or quotation mark too many or too few; quote cells with {SEPARATORS[separator]}."
            )
        rows.append(Row(path, line, dict(zip(header, cells, strict=True)), decimal, own))
    if not rows:
        raise CorpusFormatError(
            f"{path} has a header line and no records. "
            f"{'Add a row per utterance.' if own else 'It was cut off. Get the file again.'}"
        )
    return rows


def _found_columns(column: str, header: Sequence[str]) -> str:
    # The nearest name in the header has to be renamed.
    near = nearest(column, header, count=1)
    hint = f" Is it {near[0]!r}?" if near else ""
    return f"Found: {_listed(header)}.{hint}"


def _listed(header: Sequence[str]) -> str:
    return ", ".join(map(repr, header)) or "nothing but commas"


def lacking(missing: Sequence[str]) -> str:
    """All missing columns in words."""
    return f"no column{'s' * (len(missing) > 1)} {' and '.join(map(repr, missing))}"


def to_rename(missing: Sequence[str], header: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> str:
    """What to rename to, or add as, the missing columns; then other columns which probably need another name."""
    near = likely_columns(missing, header, synonyms)
    parts = [f"{near[column]!r} to {column!r}" if column in near else f"a column {column!r}" for column in missing]
    rest = [name for name in header if name not in near.values()]
    others = [
        f"{name!r} to {column!r}"
        for name, column in known_columns(rest, synonyms).items()
        if column not in (*missing, *header)
    ]
    return ", ".join(parts) + (f"; probably also {', '.join(others)}" if others else "")


def likely_columns(
    missing: Sequence[str], header: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """A synonym in the header, or else a similar name, for each missing column with one."""
    likely: dict[str, str] = {}
    for name, column in known_columns(header, synonyms).items():
        if column in missing:
            likely.setdefault(column, name)
    for column in missing:
        if column not in likely and (near := nearest(column, [name for name in header if name], count=1)):
            likely[column] = near[0]
    return likely


def known_columns(header: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Columns with a usual other name, and the name read; case, blanks and hyphens do not matter."""
    meant = {name: column for column, names in synonyms.items() for name in (column, *names)}
    forms = {name: re.sub(r"[\s-]+", "_", name.strip()).casefold() for name in header}
    return {name: meant[form] for name, form in forms.items() if form in meant and name != meant[form]}


def group_rows(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Rows by key, in order of first appearance."""
    groups: dict[K, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def check_unique(rows: Iterable[Row], key: Callable[[Row], Hashable], columns: Sequence[str]) -> None:
    """Raise :class:`CorpusFormatError` if two rows have the same key; ``columns`` are those of the key."""
    seen: dict[Hashable, Row] = {}
    for row in rows:
        first = seen.setdefault(key(row), row)
        if first is not row:
            named = ", ".join(f"{column} {row[column].strip()}" for column in columns)
            raise CorpusFormatError(
                f"{row.path}, line {row.line}: {named} is also on line {first.line}; an utterance has its own number. "
                f"Remove one of the lines, or correct its numbers."
            )


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        CorpusFormatError: the file cannot be read, or is not JSON.
    """
    text = read_text(path)
    try:
        content = load_json(text)
    except json.JSONDecodeError as error:
        raise CorpusFormatError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Correct it, or get the "
            f"file again from the release."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise CorpusFormatError(f"{path}: not valid JSON ({reason}). Get the file again from the release.") from error
    check_plain(content, path, error=CorpusFormatError, advice="Get the file again from the release.")
    return content


def pick(value: Any, key: str, kind: type[T], path: Path, where: str) -> T:
    """``value[key]`` of a JSON object, checked to be of type ``kind`` (``float`` accepts whole numbers).

    ``path`` and ``where`` are for the message.

    Raises:
        CorpusFormatError: not an object, no such key, or another type.
    """
    if not isinstance(value, dict):
        raise CorpusFormatError(
            f"{path}, {where}: found {shown(value)}, but an object with the key {key!r} is expected. Get it again."
        )
    if key not in value:
        raise CorpusFormatError(
            f"{path}, {where}: no key {key!r}. Found: {', '.join(map(repr, value)) or 'nothing'}. "
            f"Get the file again, or rename the key."
        )
    item = value[key]
    # In Python, JSON's true is an int, and 2 is an int although 2.0 is meant.
    if kind is float and isinstance(item, int) and not isinstance(item, bool):
        item = float(item)
    if not isinstance(item, kind) or isinstance(item, bool):
        raise CorpusFormatError(
            f"{path}, {where}, key {key!r}: found {shown(item)}, but a value of type {kind.__name__} is expected. "
            f"Get the file again."
        )
    return item
