"""Read JSON, YAML and CSV files that may be damaged or hostile.

Every failure is one error of at most 3 lines and 300 characters: file, line or key, problem, advice. Results are plain
containers of bounded size and depth, without NaN, infinity or integers of more than 64 bits.

The readers share these arguments: ``schema`` is checked (None: only the format), ``error`` is the class of errors,
``advice`` says what to do about a damaged file, and ``most`` is the maximum size in bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import reprlib
import stat
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, did_you_mean, nearest
from ercfusion._core.schemas.yaml_loader import MAX_BYTES, parse_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

MIB = 1 << 20
# Nesting of lists and mappings. The deepest file of the library has 8 levels.
MAX_DEPTH = 40
# Limits of a message and of the path in it.
MAX_CHARACTERS, _MAX_PATH = 300, 120

_shorten = reprlib.Repr()  # in Python 3.11 without arguments
_shorten.maxstring = _shorten.maxother = 48
_shorten.maxlist = _shorten.maxtuple = 3
_shorten.maxdict = _shorten.maxlevel = 2
_shorten.maxlong = 24


def shown(value: Any) -> str:
    """A value for a message, shortened to about 60 characters."""
    text = _shorten.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def failure(error: type[ErcfusionError], path: str | Path, problem: str, advice: str = "") -> ErcfusionError:
    """The error about a file, shortened. ``problem`` begins with the place: ``", line 3: ..."`` or ``": ..."``."""
    where = str(path)
    if len(where) > _MAX_PATH:
        where = "..." + where[3 - _MAX_PATH :]
    problem = (" " if problem.startswith(" ") else "") + " ".join(problem.split())
    room = MAX_CHARACTERS - len(where)
    if len(problem) > room:
        problem = problem[: room - 3] + "..."
    if advice and len(problem) + len(advice) + 2 <= room:
        problem = f"{problem.rstrip('.')}. {advice}"
    return error(f"{where}{problem}")


def setting_error(origin: str, message: str) -> ErcfusionError:
    """The error about a setting; ``origin`` is the file followed by ``": "``, or empty for a typed setting."""
    return failure(ConfigError, origin.removesuffix(": "), f": {message}") if origin else ConfigError(message)


# Bytes and text


def read_bytes(
    path: str | Path, *, error: type[ErcfusionError] = RunError, advice: str = "", most: int = 64 * MIB
) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise failure(error, path, ": this is not a file", advice)
        if status.st_size > most:
            raise failure(error, path, f": {status.st_size:,} bytes; at most {most:,} are read", advice)
        return path.read_bytes()
    except FileNotFoundError:
        raise failure(error, path, " is missing", advice) from None
    except OSError as problem:
        raise failure(error, path, f" cannot be read: {problem.strerror}", advice) from problem


def read_text(
    path: str | Path, *, error: type[ErcfusionError] = RunError, advice: str = "", most: int = 64 * MIB
) -> str:
    """The content of a UTF-8 file; see :func:`read_bytes`."""
    content = read_bytes(path, error=error, advice=advice, most=most)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = content.count(b"\n", 0, bad.start) + 1
        problem = f", line {line}: not UTF-8 (byte 0x{content[bad.start]:02x})"
        raise failure(error, path, problem, advice) from None


# JSON


def read_json(
    path: str | Path,
    schema: type[BaseModel] | None = None,
    *,
    error: type[ErcfusionError] = RunError,
    advice: str = "",
    most: int = 64 * MIB,
) -> Any:
    """The content of a JSON file as plain containers, checked against ``schema``."""
    text = read_text(path, error=error, advice=advice, most=most)
    return parse_json(text, path, schema, error=error, advice=advice)


def parse_json(
    text: str | bytes,
    path: str | Path,
    schema: type[BaseModel] | None = None,
    *,
    error: type[ErcfusionError] = RunError,
    advice: str = "",
) -> Any:
    """Parse JSON text that is part of the file ``path``; see :func:`read_json`."""
    try:
        value = load_json(text)
    except json.JSONDecodeError as problem:
        raise failure(error, path, f", line {problem.lineno}: not valid JSON ({problem.msg})", advice) from None
    except (ValueError, RecursionError) as problem:
        reason = "too many levels" if isinstance(problem, RecursionError) else str(problem)
        raise failure(error, path, f": not valid JSON ({reason})", advice) from None
    check_plain(value, path, error=error, advice=advice)
    if schema is not None:
        check(value, schema, path, error=error, advice=advice)
    return value


def load_json(text: str | bytes) -> Any:
    """Parse JSON with finite numbers of at most 64 bits and without duplicate keys.

    Raises:
        ValueError, RecursionError: The text is not such JSON.
    """
    return json.loads(text, parse_constant=_no_constant, parse_int=_int, parse_float=_float, object_pairs_hook=_unique)


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"the number {text[:12]}... has {len(text)} characters")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in mapping if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return mapping


def check_plain(
    value: Any, path: str | Path, *, error: type[ErcfusionError] = RunError, advice: str = "", most: int = 20_000_000
) -> None:
    """Raise ``error`` if containers are nested too deeply or hold more than ``most`` values.

    Shared containers (YAML aliases) are counted once per use.
    """
    count, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
            if len(below) + count > most:
                raise failure(error, path, f": it holds more than {most:,} values", advice)
        count += len(below)
        level = below
        if not level:
            return
    raise failure(error, path, f": lists and mappings are nested in more than {MAX_DEPTH} levels", advice)


# YAML


def read_yaml(
    path: str | Path,
    schema: type[BaseModel] | None = None,
    *,
    error: type[ErcfusionError] = RunError,
    advice: str = "",
    text: str | None = None,
    floats: bool = False,
) -> Any:
    """The content of a YAML file as plain containers, checked against ``schema``; dates stay text.

    Args:
        text: Content of the file if it was read already.
        floats: Read ``1e-3`` as a number, like YAML 1.2 and OmegaConf.
    """
    if text is None:
        text = read_text(path, error=error, advice=advice, most=MAX_BYTES)
    elif len(text) > MAX_BYTES:
        raise failure(error, path, f": {len(text):,} characters; at most {MAX_BYTES:,} are read", advice)
    value, problem = parse_yaml(text, floats=floats)
    if problem:
        raise failure(error, path, problem, advice)
    check_plain(value, path, error=error, advice=advice, most=200_000)
    if schema is not None:
        check(value, schema, path, error=error, advice=advice)
    return value


# CSV


def read_rows(path: str | Path, *, error: type[ErcfusionError] = RunError, advice: str = "") -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as mappings from column to cell."""
    text = read_text(path, error=error, advice=advice)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows = []
    try:
        for row in reader:
            if not header:
                header = row
                twice = next((name for name in header if header.count(name) > 1), None) if len(row) < 1000 else "..."
                if twice is not None:
                    raise failure(error, path, f", line 1: the column {shown(twice)} is there twice", advice)
            elif len(row) != len(header):
                problem = f", line {reader.line_num}: {len(row)} cells for {len(header)} columns"
                raise failure(error, path, problem, advice)
            else:
                rows.append(dict(zip(header, row, strict=True)))
    except csv.Error as bad:
        raise failure(error, path, f", line {reader.line_num}: not valid CSV ({bad})", advice) from None
    if not header:
        raise failure(error, path, " is empty", advice)
    return rows


# Schemas


def check(
    value: Any,
    schema: type[BaseModel],
    path: str | Path,
    *,
    error: type[ErcfusionError] = RunError,
    advice: str = "",
    prefix: str = "",
) -> None:
    """Raise ``error`` with file and key unless ``value`` fits ``schema``; ``prefix`` is the key of ``value`` with a
    dot.
    """
    from pydantic import ValidationError

    try:
        schema.model_validate(value, strict=True)
    except ValidationError as problem:
        raise failure(error, path, described_problem(problem, schema, prefix), advice) from None


def described_problem(problem: ValidationError, schema: type[BaseModel], prefix: str = "") -> str:
    """The most informative problem of a validation, beginning with the key."""
    # An unknown key is often the missing one, misspelt, and more informative.
    details = problem.errors(include_url=False)
    order = {"extra_forbidden": 0, "missing": 2}
    first = min(details, key=lambda one: order.get(one["type"], 1))
    return _problem(first, schema, prefix)


def _problem(detail: ErrorDetails, schema: type[BaseModel], prefix: str) -> str:
    kind = detail["type"]
    places = [part for part in detail["loc"] if part != "[key]"]
    names = [shown(part)[1:-1] if isinstance(part, str) else f"[{part}]" for part in places]
    key = prefix + ".".join(names).replace(".[", "[")
    if kind == "missing":
        return f": the key '{key}' is missing"
    if kind == "extra_forbidden":
        known = _names_at(schema, places[:-1])
        last = str(places[-1])
        hint = did_you_mean(last, known) if nearest(last[:80], known) or len(known) < 8 else ""
        return f": there is no key '{key}'. {hint}"
    where = f", key '{key}'" if key else ""
    if kind in ("value_error", "assertion_error"):
        return f"{where}: {detail.get('ctx', {}).get('error', detail['msg'])!s}"
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return f"{where}: {shown(detail['input'])} is not an expected name"
    return f"{where}: found {shown(detail['input'])}, but {_expected(kind, detail)} is expected"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_pattern_mismatch": "another form of text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "none_required": "nothing (null)",
}


def _expected(kind: str, detail: ErrorDetails) -> str:
    limits = detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "literal_error":
        return f"one of {str(limits.get('expected', ''))[:120]}"
    for name, words in (("ge", "at least"), ("le", "at most"), ("gt", "more than"), ("lt", "less than")):
        if name in limits:
            return f"a number of {words} {limits[name]}"
    for name, words in (("min_length", "at least"), ("max_length", "at most")):
        if name in limits:
            return f"{words} {limits[name]} {'characters' if 'string' in kind else 'entries'}"
    return detail["msg"].removeprefix("Input should be ")


def _names_at(schema: Any, places: Sequence[Any]) -> list[str]:
    """Names of the fields in a schema at ``places``; may be empty."""
    current: Any = _model_in(schema)
    for place in places:
        if current is None:
            return []
        if isinstance(current, type):
            fields = {field.alias or name: field for name, field in current.model_fields.items()}  # type: ignore[attr-defined]
            current = _model_in(fields[place].annotation) if place in fields else None
        else:
            current = _model_in(typing.get_args(current)[-1])  # of a list or a mapping
    if not isinstance(current, type):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]  # type: ignore[attr-defined]


def _model_in(annotation: Any) -> Any:
    """The model, list or mapping in an annotation, or None."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, dict):
        return annotation
    inner = (_model_in(part) for part in typing.get_args(annotation))
    return next((part for part in inner if part is not None), None)
