"""Options of a constructor, read from its signature and docstring, and checks of their values.

Options are keyword-only parameters. The annotation gives type, range (:class:`Range` in ``Annotated``) and choices
(``Literal``); the section ``Args`` of the docstring gives the meaning.
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

# Limit of integers without a range.
_MOST = (1 << 31) - 1
_LARGE = 1e8  # larger limits are not shown
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


@dataclass(frozen=True)
class Range:
    """Limits of a number: ``Annotated[int, Range(1, 8)]``."""

    low: float
    high: float


class IfGiven:
    """Marks an option that a configuration omits unless set: ``Annotated[int | None, IfGiven]``."""


@dataclass(frozen=True)
class Option:
    """One option of a constructor.

    Args:
        name: Parameter name.
        type: bool, int, float, str or list; None for any value.
        default: Default value.
        low, high: Limits of a number, or None.
        choices: Allowed values; empty for any.
        nullable: Whether None is allowed.
        meaning: One line; may be empty.
        if_given: Whether a configuration omits the option at its default.
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
        """The default as in a configuration, with lists instead of tuples."""
        return list(self.default) if isinstance(self.default, tuple) else self.default

    def check(self, value: Any, key: str, owner: str = "") -> None:
        """Raise :class:`ConfigError` unless ``value`` is allowed.

        ``key`` is the setting in messages (``model.hidden``), ``owner`` their end (" (model 'cogmen')").
        """
        if self.type is None or (value is None and self.nullable):
            return
        if self.choices:
            if not any(value == choice and type(value) is type(choice) for choice in self.choices):
                raise ConfigError(
                    f"{key} must be one of {self.values}; found {_shown(value)}{owner}. Choose one of them."
                )
            return
        kinds = (list, tuple) if self.type is list else self.type
        fits = isinstance(value, kinds) and isinstance(value, bool) == (self.type is bool)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            fits = True
        if not fits:
            raise ConfigError(f"{key} takes {_KINDS[self.type]}, found {_shown(value)}{owner}. Correct the value.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        low, high = (-math.inf, math.inf) if self.low is None or self.high is None else (self.low, self.high)
        if not low <= value <= high or math.isinf(value):
            raise ConfigError(f"{key} must be from {low:g} to {high:g}, found {value:g}{owner}. Correct the value.")

    @property
    def values(self) -> str:
        """The allowed values in words: choices, a range or the type."""
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
    """The keyword-only parameters of a class or factory function, in order.

    A constructor with ``**options`` has the options of its parent class first.
    """
    return _read(constructor)


@cache
def _read(constructor: Any) -> tuple[Option, ...]:
    meanings = _meanings(constructor)
    return tuple(
        _option(parameter.name, parameter.annotation, parameter.default, meanings.get(parameter.name, ""))
        for parameter in _parameters(constructor).values()
    )


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(constructor, eval_str=True)
    except NameError:  # a name imported only for type checkers: types come from the defaults
        signature = inspect.signature(constructor)
    parameters = signature.parameters.values()
    own = {one.name: one for one in parameters if one.kind is one.KEYWORD_ONLY}
    if not isinstance(constructor, type) or all(one.kind is not one.VAR_KEYWORD for one in parameters):
        return own
    parts = inspect.getmro(constructor)
    parent = parts[1 + next(number for number, part in enumerate(parts) if "__init__" in vars(part))]
    return {**_parameters(parent), **own}


def defaults_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The options of a constructor with their defaults."""
    return {option.name: option.default for option in options_of(constructor)}


def check_options(owner: str, section: str, options: Sequence[Option], given: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for an unknown option or a value not allowed.

    ``owner`` (``model 'cogmen'``) and ``section`` (``model``) are used in messages.
    """
    known = _known(owner, options, given)
    for name, value in given.items():
        known[name].check(value, f"{section}.{name}", f" ({owner})")


def with_defaults(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options in a configuration, in the constructor's order.

    Raises:
        ConfigError: The constructor lacks an option.
    """
    _known(owner, options, given)
    return {
        option.name: given.get(option.name, option.written)
        for option in options
        if option.name in given or not option.if_given
    }


def _known(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Option]:
    """The options by name, which must include ``given``."""
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known) if known else "It has none: remove it."
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
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, []
    annotation, *notes = typing.get_args(annotation)
    return annotation, notes


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """``X`` of ``X | None``, and whether None was there."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    others = [part for part in typing.get_args(annotation) if part is not type(None)]
    return (others[0] if len(others) == 1 else None), len(others) < len(typing.get_args(annotation))


def _meanings(constructor: Callable[..., Any]) -> dict[str, str]:
    """The entries of ``Args`` by name, with those of base classes."""
    meanings: dict[str, str] = {}
    for part in reversed(inspect.getmro(constructor)) if isinstance(constructor, type) else [constructor]:
        meanings |= _entries(part.__doc__ or "")
        meanings |= _entries(vars(part)["__init__"].__doc__ or "" if "__init__" in vars(part) else "")
    return meanings


@cache
def _entries(docstring: str) -> dict[str, str]:
    if "Args:" not in docstring:
        return {}
    from docstring_parser import ParseError
    from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType

    # The parser appends unknown sections to the previous one.
    parser = GoogleParser([*DEFAULT_SECTIONS, Section("Shapes", "shapes", SectionType.SINGULAR)])
    meanings: dict[str, str] = {}
    try:
        parameters = parser.parse(docstring).params
    except ParseError:  # a docstring in another style
        return {}
    for parameter in parameters:
        text = re.sub(r"\bNone\b", "null", plain(parameter.description or "").removesuffix("."))  # as it is typed
        meanings |= dict.fromkeys(re.split(r",\s*", parameter.arg_name), text)
    return meanings


def plain(text: str) -> str:
    """The text of a docstring in one line, with Markdown code marks."""
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
