"""What is known of a setting: its type, default and range, its meaning, and what depends on it.

A section of the configuration is a frozen dataclass whose fields are made by :func:`setting`. Everything else that is
said about settings (checks of the command line, schemas of files, spaces of sweeps, comparison of runs, the reference
page) is computed from :func:`fields_of`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Decides = Literal["result", "run", "nothing"]

_KEY = "setting"


@dataclass(frozen=True)
class Known:
    """What :func:`setting` was told, in its words."""

    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    searchable: bool = True
    decides: Decides = "result"
    path: Literal["", "file", "name"] = ""
    pattern: str = ""
    share: bool = False


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    searchable: bool = True,
    decides: Decides = "result",
    path: Literal["", "file", "name"] = "",
    pattern: str = "",
    share: bool = False,
) -> Any:
    """A field of a section.

    Args:
        default: Its value if nothing else is said; a mapping is copied.
        meaning: One line, as the reference page shows it.
        low, high: The least and the largest number. Of a list: of its entries; of a mapping: of its values.
        above, below: As ``low`` and ``high``, but not reached.
        choices: The texts that are allowed.
        searchable: Whether a sweep may search it.
        decides: ``result``: it is part of what makes an experiment. ``run``: it tells one run from another of the same
            experiment; a run cannot be resumed with another value. ``nothing``: where things are, how much is shown, or
            which machine computes; a run may be resumed with another value.
        path: ``file`` or ``name`` if the value, or every value of a mapping, is taken letter by letter; ``~`` is the
            home folder in a file, but not in a name.
        pattern: ``module`` if every entry of the list is the name of a module.
        share: Whether a number with a decimal point is a share, up to 1.0, and a whole number a count.
    """
    options = tuple(choices) if choices else None
    known = Known(meaning, low, high, above, below, options, searchable, decides, path, pattern, share)
    if isinstance(default, Mapping):
        values = dict(default)
        return dataclasses.field(default_factory=lambda: dict(values), metadata={_KEY: known})
    return dataclasses.field(default=default, metadata={_KEY: known})


@dataclass(frozen=True)
class Field:
    """A setting of the configuration.

    Args:
        key: Dotted, as it is typed.
        types: The types of a value that is not null.
        entry: Type of the entries of a list or of the values of a mapping; ``object`` for any. None for neither.
        nullable: Whether null is a value.
        default: Of the section as it is if nothing is chosen.
        known: See :func:`setting`.
    """

    key: str
    types: tuple[type, ...]
    entry: type | None
    nullable: bool
    default: Any
    known: Known

    @property
    def is_open(self) -> bool:
        """Whether a user may add entries of their own below it."""
        return self.types == (dict,)

    def problem(self, value: Any) -> str:
        """What is wrong with a value of the right type, ``must be at least 1, found 0``; empty if nothing is."""
        if value is None or isinstance(value, bool):
            return ""
        known = self.known
        if known.choices is not None and isinstance(value, str) and value not in known.choices:
            return f"must be one of {', '.join(known.choices)}; found {value!r}"
        entries = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        )
        for entry in entries:
            if isinstance(entry, int | float) and not isinstance(entry, bool) and not self._inside(entry):
                return f"must be {self.range}, found {entry}"
            if known.pattern == "module" and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", str(entry)):
                return f"holds {str(entry)[:40]!r}, which is no name of a module, as in my_models (without .py)"
        return ""

    def _inside(self, value: float) -> bool:
        known = self.known
        return (
            math.isfinite(value)
            and not (known.low is not None and value < known.low)
            and not (known.high is not None and value > known.high)
            and not (known.above is not None and value <= known.above)
            and not (known.below is not None and value >= known.below)
            and not (known.share and isinstance(value, float) and value > 1)
        )

    @property
    def range(self) -> str:
        """The numbers that are allowed, in words; empty for other settings."""
        known = self.known
        if known.share:
            return "a share above 0.0 and up to 1.0, or a whole number of at least 1"
        if known.low is not None and known.high is not None:
            return f"from {known.low} to {known.high}"
        words = (("at least", known.low), ("above", known.above), ("at most", known.high), ("below", known.below))
        said = [f"{word} {limit}" for word, limit in words if limit is not None]
        numbers = {int, float} & {*self.types, self.entry}
        return " and ".join(said) if said else "a finite number" if numbers else ""

    @property
    def values(self) -> str:
        """Type and range, or choices, for the reference page."""
        if self.known.choices is not None:
            return ", ".join(f"`{choice}`" for choice in self.known.choices)
        words = [_WORDS[one] for one in self.types]
        text = " or ".join(words)
        if self.entry not in (None, object):
            text += f" of {_PLURALS[self.entry]}"
        limits = "" if self.range == "a finite number" else self.range
        return ", ".join([part for part in (text, limits) if part] + (["or null"] if self.nullable else []))


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "mapping",
}
_PLURALS: dict[type, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def _read(annotation: Any) -> tuple[tuple[type, ...], type | None, bool]:
    """Types, type of entries, and whether None is among them."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    found: list[type] = []
    entry: type | None = None
    for part in parts:
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if part is types.NoneType:
            continue
        if origin is tuple:
            found.append(list)
            entry = arguments[0]
        elif origin is not None and issubclass(origin, Mapping):
            found.append(dict)
            entry = object if arguments[1] is Any else arguments[1]
        else:
            found.append(part)
    return tuple(found), entry, types.NoneType in parts


def fields_of(section: type, name: str = "") -> dict[str, Field]:
    """The settings of a section by their names in it, in order.

    Args:
        section: A dataclass.
        name: Of the section, for the dotted keys; empty for the top level.
    """
    return _fields_of(section, name)


@cache
def _fields_of(section: type, name: str) -> dict[str, Field]:
    hints = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        known = field.metadata.get(_KEY)
        if known is None:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        types_, entry, nullable = _read(hints[field.name])
        key = f"{name}.{field.name}" if name else field.name
        found[field.name] = Field(key, types_, entry, nullable, plain(default), known)
    return found


def plain(value: Any) -> Any:
    """A value as files hold it: lists for tuples, and plain mappings."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def frozen(value: Any) -> Any:
    """A value as sections hold it: tuples for lists."""
    return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value


def typed_text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
