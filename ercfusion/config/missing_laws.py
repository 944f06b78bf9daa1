"""Laws of missing modalities: names, arguments, ranges, meanings and papers.

A law is one class with the decorator :func:`law`, here or in a user's module. Its text is ``NAME`` or
``NAME:ARGUMENT``, such as ``rate:0.5``. Holes are drawn in :mod:`ercfusion.batch.missing`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.registry import adding, loaded_function
from ercfusion._core.schemas.reading import shown
from ercfusion.config.fields import Field, fields_of, setting

LARGEST = 12
"""Largest number of modalities of laws that enumerate patterns."""

_ORDER = ("text", "audio", "visual")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_PLACE = "law of missing modalities"


def in_order(modalities: Iterable[str]) -> list[str]:
    """Modalities in a fixed order: text, audio, visual, then all others by name."""
    return sorted(modalities, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


@dataclass(frozen=True)
class Law:
    """Which modalities of which utterances are hidden.

    A subclass has at most one field, its argument; it is optional if it may be None. The first line of its
    docstring is its meaning. A modality absent from the data stays absent.

    - ``function(law, layout, draws)`` returns the holes; a callable or ``"module:function"``; see
      :mod:`ercfusion.batch.missing`.
    - ``keeps_one``: one of the available modalities of every utterance stays.
    - ``steps``: it acts on the steps of sequence features; for modalities with one vector per utterance, the turns of
      the conversation are the steps.
    - ``paper``, ``published``: source, and the name of the law in it; empty for our own.
    """

    name: ClassVar[str] = ""
    function: ClassVar[str | Callable[..., Any]] = ""
    keeps_one: ClassVar[bool] = False
    steps: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    published: ClassVar[str] = ""

    def __str__(self) -> str:
        """The canonical text, as in records."""
        field = argument_of(type(self))
        value = None if field is None else getattr(self, field.key)
        return self.name if value is None else f"{self.name}:{_typed(value)}"

    @property
    def hides_nothing(self) -> bool:
        """Whether all holes have probability 0."""
        field = argument_of(type(self))
        return field is not None and getattr(self, field.key) == 0

    def left(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """Those of the modalities that are present in some utterance; a run needs to load no others."""
        return tuple(modalities)

    def leaves_all(self, modalities: Sequence[str]) -> bool:
        """Whether nothing is hidden in data with these modalities."""
        return self.hides_nothing or (self.keeps_one and len(modalities) == 1)

    def check(self, modalities: Sequence[str], place: str = _PLACE) -> None:
        """Check the law for these modalities.

        Args:
            modalities: Of the model or the data.
            place: Beginning of messages, such as a setting's name.

        Raises:
            ConfigError: The argument is outside its range, names an unknown modality, or nothing is left.
        """
        field = argument_of(type(self))
        if field is None:
            return
        value = getattr(self, field.key)
        problem = f"must be {field.range}, found none" if value is None and not field.nullable else field.problem(value)
        if problem:
            raise ConfigError(f"{place} {shown(str(self))}: {field.key} {problem}. Correct the number.")

    @classmethod
    def load(cls) -> Callable[..., Any]:
        """The function drawing the holes."""
        return loaded_function(cls.function)


T = TypeVar("T", bound=type[Law])

LAWS: dict[str, type[Law]] = {}
"""Laws by name."""


def law(name: str) -> Callable[[T], T]:
    """Register a law.

    Raises:
        ConfigError: The name is not a name, another class has it, or the class has more than one argument.
    """

    def register(section: T) -> T:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ConfigError(f"the law name {name!r} is not a name. Use small letters, digits, - and _.")
        if len(fields_of(section)) > 1:
            raise ConfigError(f"the law {name!r} has {len(fields_of(section))} fields. Give it at most one argument.")
        adding("law", name, LAWS)(section)
        section.name = name
        return section

    return register


def argument_of(section: type[Law]) -> Field | None:
    """The argument of a law, with its range; None without one."""
    return next(iter(fields_of(section).values()), None)


def syntax(section: type[Law]) -> str:
    """How a law is typed, such as ``rate:RATE`` or ``rmfm[:RATE]``."""
    field = argument_of(section)
    if field is None:
        return section.name
    argument = "MODALITY+..." if field.types == (list,) else field.key.upper()
    return f"{section.name}[:{argument}]" if field.nullable else f"{section.name}:{argument}"


def meaning(section: type[Law]) -> str:
    """The first line of a law's docstring."""
    return (section.__doc__ or "").strip().partition("\n")[0]


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value)
    return repr(abs(float(value))).removesuffix(".0")


def parse(text: str, place: str = _PLACE, others: Iterable[str] = ()) -> Law:
    """A law from its text; ``str(law)`` is the canonical form.

    Args:
        text: Such as ``rate:0.5``.
        place: Beginning of messages, such as a setting's name.
        others: What else may be typed in this place; for messages.

    Raises:
        ConfigError: No law has the name, or the argument is missing, invalid or outside its range.
    """
    name, colon, argument = text.strip().partition(":")
    problem_at = f"{place} {shown(text)}"
    if name not in LAWS:
        raise ConfigError(f"{problem_at}: no law has the name {shown(name)}. {did_you_mean(name, [*LAWS, *others])}")
    section = LAWS[name]
    field = argument_of(section)
    if field is None:
        if colon:
            raise ConfigError(f"{problem_at}: {name} takes no argument. Write {name}.")
        return section()
    if not colon:
        if not field.nullable:
            raise ConfigError(
                f"{problem_at}: {name} needs an argument ({field.known.meaning}). Write {syntax(section)}."
            )
        return section()
    if field.types == (list,):
        return section(**{field.key: _names(argument.strip(), problem_at, syntax(section))})
    if not _NUMBER.fullmatch(argument.strip()):
        raise ConfigError(f"{problem_at}: {shown(argument)} is not a number. Write {syntax(section)}, {field.range}.")
    value = float(argument)
    if problem := field.problem(value):
        raise ConfigError(f"{problem_at}: {field.key} {problem}. Correct the number.")
    return section(**{field.key: value})


def _names(argument: str, place: str, example: str) -> tuple[str, ...]:
    names = [name.strip() for name in argument.split("+")]
    if not argument:
        raise ConfigError(f"{place} leaves nothing. Name the modalities to keep: {example}.")
    if not all(names):
        raise ConfigError(f"{place}: a name is empty. Write {example}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{place} names {shown(twice)} twice. Remove one.")
    return tuple(in_order(names))


_MPLMM = "MPLMM (Guo et al., ACL 2024)"
_CIDER = "CIDer (Zhong et al., 2025)"


@law("none")
@dataclass(frozen=True)
class Complete(Law):
    """Nothing is hidden."""

    function = "ercfusion.batch.missing:complete"
    keeps_one = True

    @property
    def hides_nothing(self) -> bool:
        """True."""
        return True


@law("pattern")
@dataclass(frozen=True)
class Pattern(Law):
    """Every utterance keeps the named modalities and no others."""

    function = "ercfusion.batch.missing:pattern"
    paper = f"{_MPLMM}; {_CIDER}"
    published = "fixed pattern; SMM"

    kept: tuple[str, ...] = setting((), "modalities present")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(in_order(self.kept)))

    def left(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The named modalities, in the order of ``modalities``."""
        return tuple(name for name in modalities if name in self.kept)

    def leaves_all(self, modalities: Sequence[str]) -> bool:
        """Whether it is the pattern of all modalities."""
        return set(modalities) <= set(self.kept)

    def check(self, modalities: Sequence[str], place: str = _PLACE) -> None:
        """See :meth:`Law.check`."""
        if not self.kept:
            raise ConfigError(f"{place} {shown(str(self))} leaves nothing. Name at least one modality.")
        for name in self.kept:
            if name not in modalities:
                raise ConfigError(
                    f"{place} {shown(str(self))}: no modality {shown(name)} here, only {', '.join(modalities)}. "
                    + did_you_mean(name, modalities)
                )


@law("patterns")
@dataclass(frozen=True)
class Patterns(Law):
    """With this probability an utterance gets one of the incomplete patterns, each equally likely.

    Only patterns with an available modality of the utterance are drawn. With one modality nothing is hidden.
    """

    function = "ercfusion.batch.missing:patterns"
    keeps_one = True
    paper = _MPLMM
    published = "missing rate η"

    rate: float = setting(None, "probability of an incomplete pattern", low=0, high=1)

    def check(self, modalities: Sequence[str], place: str = _PLACE) -> None:
        """See :meth:`Law.check`."""
        super().check(modalities, place)
        if len(modalities) > LARGEST:
            raise ConfigError(
                f"{place} {shown(str(self))}: at most {LARGEST} modalities, here {len(modalities)}. Use rate instead."
            )


@law("rate")
@dataclass(frozen=True)
class Rate(Law):
    """Each modality of each utterance is hidden with this probability; one available modality stays.

    If all available modalities of an utterance would be hidden, one of them stays, each equally likely. So of M
    available modalities a share of r - r^M / M is hidden.
    """

    function = "ercfusion.batch.missing:rate"
    keeps_one = True
    paper = "GCNet (Lian et al., TPAMI 2023), our reading"
    published = "missing rate"

    rate: float = setting(None, "probability per utterance and modality", low=0, high=1)


@law("rmm")
@dataclass(frozen=True)
class Rmm(Law):
    """Each modality of each utterance is hidden with this probability; all may be hidden."""

    function = "ercfusion.batch.missing:rmm"
    paper = _CIDER
    published = "RMM"

    rate: float = setting(None, "probability per utterance and modality", low=0, high=1)


@law("rmfm")
@dataclass(frozen=True)
class Rmfm(Law):
    """Steps are hidden at random, at a rate per utterance and modality, uniform between 0 and 1.

    With an argument all rates are equal. A modality with one vector per utterance has a rate per conversation, and its
    turns are the steps.
    """

    function = "ercfusion.batch.missing:rmfm"
    steps = True
    paper = _CIDER
    published = "RMFM; with a rate RMFM_same"

    rate: float | None = setting(None, "probability per step", low=0, high=1)


@law("rmfm-released")
@dataclass(frozen=True)
class RmfmReleased(Law):
    """Steps are hidden at random, at an own rate per step, uniform between 0 and 1: half of them on average."""

    function = "ercfusion.batch.missing:rmfm_released"
    steps = True
    paper = _CIDER
    published = "RMFM in training, released code"


@law("tmfm")
@dataclass(frozen=True)
class Tmfm(Law):
    """Steps are hidden at random, the same in all modalities.

    Sequences of different lengths share relative times. Modalities with one vector per utterance share turns.
    """

    function = "ercfusion.batch.missing:tmfm"
    steps = True
    paper = _CIDER
    published = "TMFM"

    rate: float = setting(None, "probability per step", low=0, high=1)


@law("stmfm")
@dataclass(frozen=True)
class Stmfm(Law):
    """One block of consecutive steps is hidden per utterance, the same in all modalities.

    Of n steps round(r n). Sequences of different lengths share relative times. Modalities with one vector per
    utterance share a block of turns per conversation.
    """

    function = "ercfusion.batch.missing:stmfm"
    steps = True
    paper = _CIDER
    published = "STMFM"

    rate: float = setting(None, "share of the steps", low=0, high=1)


@law("block")
@dataclass(frozen=True)
class Block(Law):
    """One block of consecutive turns is hidden per conversation and modality: of n turns round(r n)."""

    function = "ercfusion.batch.missing:block"

    rate: float = setting(None, "share of the turns", low=0, high=1)
