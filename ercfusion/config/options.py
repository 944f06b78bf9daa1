"""Options of a constructor: read from its signature and docstring, and the check of their values.

A constructor is the one source of its options. Keyword-only parameters are options. The annotation gives type, range
(:class:`Range` in ``Annotated``) and choices (``Literal``); the entry in the section ``Args`` of the class's docstring
gives the meaning.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ercfusion._core.errors import ConfigError, did_you_mean

# A whole number without a range of its own is not larger than this: no size is.
_MOST = (1 << 31) - 1
_LARGE = 1e8  # ends of ranges beyond it are no news
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


@dataclass(frozen=True)
class Range:
    """Lowest and highest value of a number, as in ``Annotated[int, Range(1, 8)]``."""

    low: float
    high: float


class IfGiven:
    """In ``Annotated``, as in ``Annotated[int | None, IfGiven]``: a configuration has the option only if it is set."""


@dataclass(frozen=True)
class Option:
    """One option of a constructor.

    Args:
        name: Of the parameter.
        type: bool, int, float, str or list; None if any value is allowed.
        default: Value if nothing else is chosen.
        low: Lowest value of a number; None for other types and if there is no limit.
        high: Highest value.
        choices: The allowed values; empty if there is no list of them.
        nullable: Whether None is allowed.
        meaning: One line, from the docstring; empty if it has no entry.
        if_given: Whether a configuration leaves the option out while it has its default.
    """

    name: str
    type: type | None
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    nullable: bool = False
    meaning: str = ""
    if_given: bool = False

    @property
    def written(self) -> Any:
        """The default as a configuration has it: tuples are lists there."""
        return list(self.default) if isinstance(self.default, tuple) else self.default

    def check(self, value: Any, key: str, owner: str = "") -> None:
        """Raise :class:`ConfigError` unless the option can have ``value``.

        Args:
            value: To be checked.
            key: Name of the setting in messages, ``model.hidden``.
            owner: End of messages, as in " (model 'cogmen')".
        """
        if self.type is None or (value is None and self.nullable):
            return
        if self.choices:
            if not any(value == choice and type(value) is type(choice) for choice in self.choices):
                raise ConfigError(f"{key} must be one of {self.values}; found {_shown(value)}{owner}")
            return
        kinds = (list, tuple) if self.type is list else self.type
        fits = isinstance(value, kinds) and isinstance(value, bool) == (self.type is bool)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            fits = True
        if not fits:
            raise ConfigError(f"{key} takes {_KINDS[self.type]}, found {_shown(value)}{owner}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        low, high = (-math.inf, math.inf) if self.low is None or self.high is None else (self.low, self.high)
        if not low <= value <= high or math.isinf(value):
            raise ConfigError(f"{key} must be from {low:g} to {high:g}, found {value:g}{owner}")

    @property
    def values(self) -> str:
        """The allowed values in words: choices, a range, or the type."""
        return self._values + (", or null" if self.nullable and self.type is not None else "")

    @property
    def _values(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.type is None:
            return "any"
        if self.type not in (int, float) or self.low is None or self.high is None or self.low <= -_LARGE:
            return _KINDS[self.type]
        if self.high < _LARGE:
            return f"{self.low:,g} to {self.high:,g}"
        return "above 0" if 0 < self.low < 1e-6 else f"{self.low:,g} or more"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def options_of(constructor: Callable[..., Any]) -> tuple[Option, ...]:
    """The options of a class or of a function that makes an object: its keyword-only parameters, in order.

    A constructor that takes further keywords (``**options``) passes them to that of its parent, whose options then come
    first.
    """
    return _read(constructor)


@cache
def _read(constructor: Any) -> tuple[Option, ...]:
    meanings = _meanings(constructor)
    return tuple(
        _option(entry.name, entry.annotation, entry.default, meanings.get(entry.name, ""))
        for entry in _parameters(constructor).values()
    )


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(constructor, eval_str=True)
    except NameError:  # a name that only a type checker sees: types come from the defaults then
        signature = inspect.signature(constructor)
    entries = signature.parameters.values()
    own = {entry.name: entry for entry in entries if entry.kind is entry.KEYWORD_ONLY}
    if not isinstance(constructor, type) or all(entry.kind is not entry.VAR_KEYWORD for entry in entries):
        return own
    parts = inspect.getmro(constructor)
    parent = parts[1 + next(number for number, part in enumerate(parts) if "__init__" in vars(part))]
    return {**_parameters(parent), **own}


def defaults_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The options of a constructor with their defaults."""
    return {option.name: option.default for option in options_of(constructor)}


def check_options(owner: str, section: str, options: Sequence[Option], given: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError`, naming the option, if an option is unknown or cannot have its value.

    Args:
        owner: Whose constructor it is, in messages: ``model 'cogmen'``.
        section: Of the settings: ``model``.
        options: All options of the constructor.
        given: Values by name.
    """
    known = _known(owner, options, given)
    for name, value in given.items():
        known[name].check(value, f"{section}.{name}", f" ({owner})")


def with_defaults(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options that a configuration has, in the constructor's order.

    Args:
        owner: In messages: ``model 'cogmen'``.
        options: All options of the constructor.
        given: Values by name.

    Raises:
        ConfigError: an option that the constructor does not have.
    """
    _known(owner, options, given)
    return {
        option.name: given.get(option.name, option.written)
        for option in options
        if option.name in given or not option.if_given
    }


def _known(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Option]:
    """The options by name, among which all of ``given`` must be."""
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known) if known else "It has none."
            raise ConfigError(f"{owner} has no setting {name!r}. {hint}")
    return known


def _option(name: str, annotation: Any, default: Any, meaning: str) -> Option:
    annotation, outer = _without_notes(annotation)
    annotation, nullable = _without_none(annotation)
    annotation, inner = _without_notes(annotation)
    limits = next((note for note in (*outer, *inner) if isinstance(note, Range)), None)
    if_given = IfGiven in outer
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return Option(name, type(choices[0]), default, None, None, choices, nullable, meaning, if_given)
    kind = typing.get_origin(annotation) or annotation
    if kind in (tuple, Sequence):
        kind = list
    if kind not in _KINDS:
        kind = next((kind for kind in _KINDS if isinstance(default, kind)), None)
    if kind is int and limits is None:
        limits = Range(-_MOST, _MOST)
    low, high = (None, None) if limits is None else (limits.low, limits.high)
    return Option(name, kind, default, low, high, (), nullable, meaning, if_given)


def _without_notes(annotation: Any) -> tuple[Any, list[Any]]:
    """The type in ``Annotated``, and the notes on it."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, []
    annotation, *notes = typing.get_args(annotation)
    return annotation, notes


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation ``X`` of ``X | None``, and whether there was a None."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    others = [part for part in typing.get_args(annotation) if part is not type(None)]
    return (others[0] if len(others) == 1 else None), len(others) < len(typing.get_args(annotation))


def _meanings(constructor: Callable[..., Any]) -> dict[str, str]:
    """The entries of ``Args`` by name; a class has those of its bases, too."""
    found: dict[str, str] = {}
    for part in reversed(inspect.getmro(constructor)) if isinstance(constructor, type) else [constructor]:
        found |= _entries(part.__doc__ or "")
        found |= _entries(vars(part)["__init__"].__doc__ or "" if "__init__" in vars(part) else "")
    return found


@cache
def _entries(docstring: str) -> dict[str, str]:
    if "Args:" not in docstring:
        return {}
    from docstring_parser import ParseError
    from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType

    # A section that the parser does not know would become part of the one before it.
    parser = GoogleParser([*DEFAULT_SECTIONS, Section("Shapes", "shapes", SectionType.SINGULAR)])
    found: dict[str, str] = {}
    try:
        entries = parser.parse(docstring).params
    except ParseError:  # a docstring in another style has no meanings
        return {}
    for entry in entries:
        text = re.sub(r"\bNone\b", "null", plain(entry.description or "").removesuffix("."))  # as it is typed
        found |= dict.fromkeys(re.split(r",\s*", entry.arg_name), text)
    return found


def plain(text: str) -> str:
    """A text of a docstring in one line, with Markdown's marks of code."""
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
