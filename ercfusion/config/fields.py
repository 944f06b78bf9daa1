"""Type, default, range, meaning and effect of a setting.

Sections are frozen dataclasses with fields made by :func:`setting`. Checks, file schemas, search spaces, comparisons
and reference pages are computed from :func:`fields_of`.
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
    """The arguments of :func:`setting`."""

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
    if_given: bool = False
    nested: bool = False


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
    if_given: bool = False,
    nested: bool = False,
) -> Any:
    """A field of a section.

    Args:
        default: Default value; a mapping is copied.
        meaning: One line for ``--help`` and the reference page.
        low, high: Limits of a number, or of the numbers in a list or mapping.
        above, below: Exclusive limits.
        choices: Allowed texts.
        searchable: Whether a sweep may search it.
        decides: ``result``: part of the experiment. ``run``: fixed when a run is resumed. ``nothing``: may change when
            a run is resumed.
        path: ``file`` or ``name`` for values used verbatim; in a file, ``~`` is the home folder.
        pattern: ``module`` for a list of module names.
        share: Whether a float is a share up to 1.0, and an integer a count.
        if_given: Omit it from configurations and records while it has its default.
        nested: Whether the values of a mapping are sections of the configuration.
    """
    options = tuple(choices) if choices else None
    known = Known(
        meaning, low, high, above, below, options, searchable, decides, path, pattern, share, if_given, nested
    )
    if isinstance(default, Mapping):
        values = dict(default)
        return dataclasses.field(default_factory=lambda: dict(values), metadata={_KEY: known})
    return dataclasses.field(default=default, metadata={_KEY: known})


@dataclass(frozen=True)
class Field:
    """A setting of the configuration.

    Args:
        key: Dotted, as typed.
        types: Types of a value other than null.
        element: Type inside a list or mapping; ``object`` for any, None for other types.
        nullable: Whether null is allowed.
        default: Default value, with the section's default choice.
        known: See :func:`setting`.
    """

    key: str
    types: tuple[type, ...]
    element: type | None
    nullable: bool
    default: Any
    known: Known

    @property
    def is_open(self) -> bool:
        """Whether users may add keys below it."""
        return self.types == (dict,)

    def problem(self, value: Any) -> str:
        """The problem of a value of the right type, such as ``must be at least 1, found 0``, or an empty string."""
        if value is None or isinstance(value, bool):
            return ""
        known = self.known
        if known.choices is not None and isinstance(value, str) and value not in known.choices:
            return f"must be one of {', '.join(known.choices)}; found {value!r}"
        entries = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        )
        for element in entries:
            if isinstance(element, int | float) and not isinstance(element, bool) and not self._inside(element):
                return f"must be {self.range}, found {element}"
            if known.pattern == "module" and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", str(element)):
                return f"holds {str(element)[:40]!r}, which is not a module name (such as my_models, without .py)"
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
        """The allowed numbers in words; empty for other settings."""
        known = self.known
        if known.share:
            return "a share above 0.0 and up to 1.0, or a whole number of at least 1"
        if known.low is not None and known.high is not None:
            return f"from {known.low} to {known.high}"
        words = (("at least", known.low), ("above", known.above), ("at most", known.high), ("below", known.below))
        limits = [f"{word} {limit}" for word, limit in words if limit is not None]
        numbers = {int, float} & {*self.types, self.element}
        return " and ".join(limits) if limits else "a finite number" if numbers else ""

    @property
    def values(self) -> str:
        """Type and range, or choices, for the reference page."""
        if self.known.choices is not None:
            return ", ".join(f"`{choice}`" for choice in self.known.choices)
        words = [_WORDS[one] for one in self.types]
        text = " or ".join(words)
        if self.element not in (None, object):
            text += f" of {_PLURALS[self.element]}"
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
    """Types, element type, and whether None is allowed."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds: list[type] = []
    element: type | None = None
    for part in parts:
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if part is types.NoneType:
            continue
        if origin is tuple:
            kinds.append(list)
            element = arguments[0]
        elif origin is not None and issubclass(origin, Mapping):
            kinds.append(dict)
            element = object if arguments[1] is Any else arguments[1]
        else:
            kinds.append(part)
    return tuple(kinds), element, types.NoneType in parts


def fields_of(section: type, name: str = "") -> dict[str, Field]:
    """The settings of a dataclass by name; ``name`` is the section in the dotted keys."""
    return _fields_of(section, name)


@cache
def _fields_of(section: type, name: str) -> dict[str, Field]:
    hints = typing.get_type_hints(section)
    fields = {}
    for field in dataclasses.fields(section):
        known = field.metadata.get(_KEY)
        if known is None:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        types_, element, nullable = _read(hints[field.name])
        key = f"{name}.{field.name}" if name else field.name
        fields[field.name] = Field(key, types_, element, nullable, plain(default), known)
    return fields


def plain(value: Any) -> Any:
    """Lists instead of tuples, and plain mappings, as in files."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def frozen(value: Any) -> Any:
    """Tuples instead of lists, as in sections."""
    return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value


def typed_text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
