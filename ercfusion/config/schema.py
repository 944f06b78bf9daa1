"""Schemas of ``config.json`` and of the configuration in a record, computed from the settings."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, create_model
from pydantic import Field as Limits

from ercfusion._core.schemas.common import MOST, Closed, Count, Name, Open, Text, Value
from ercfusion.config.choices import CHOICES
from ercfusion.config.fields import Field, fields_of
from ercfusion.config.sections import SECTIONS
from ercfusion.config.settings import choice_of, fields_in, is_optional, parts
from ercfusion.config.terms import TEACHER_TERMS, TERMS, own_terms


class Preset(Open):
    """The choices of the groups ``model`` and ``data``."""

    model: Name
    data: Name


class Model(BaseModel):
    """The group ``model``; its options are checked by the architecture."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, Value]
    name: Name


class OtherTerm(BaseModel):
    """Settings of a loss term registered in another user's module."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, Value]
    of: Name
    projection: Count


class Parts(BaseModel):
    """The section ``objective``."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, OtherTerm]


class Study(Open):
    """The study of a sweep's folder."""

    metric: Name
    synthetic: bool
    identity: dict[Name, Any]
    data: dict[Name, Text]


def run_config() -> type[BaseModel]:
    """``config.json`` of a run."""
    return _run_config(tuple(TERMS), True)


def record_config() -> type[BaseModel]:
    """The configuration in a record; archives omit paths."""
    return _run_config(tuple(TERMS), False)


def sweep_config() -> type[BaseModel]:
    """``config.json`` of a sweep."""
    return _sweep_config(tuple(TERMS))


@cache
def _run_config(terms: tuple[str, ...], local: bool) -> type[BaseModel]:
    return create_model("RunConfig", __base__=Open, **_parts(local=local))


@cache
def _sweep_config(terms: tuple[str, ...]) -> type[BaseModel]:
    own: dict[str, Any] = {
        "sweep": (_section("sweep"), ...),
        "space": (dict[Name, dict[Name, Value]], ...),
        "typed": (dict[Name, Any], ...),
        "place": (Name, ...),
        "command": (Text, ...),
        "study": (Study, ...),
    }
    return create_model("SweepConfig", __base__=Open, **_parts(), **own)


def _parts(*, local: bool = True) -> dict[str, Any]:
    root = {
        key: (_type(field), ...) if local or field.known.decides != "nothing" else (_type(field) | None, None)
        for key, field in fields_in("").items()
    }
    names = [name for name in SECTIONS if name != "sweep"]
    sections = {name: (_section(name), None if is_optional(name) else ...) for name in names}
    choices = {name: (_choice(name), ...) for name in CHOICES}
    return {"preset": (Preset, ...), **root, **sections, **choices, "model": (Model, ...)}


def _section(name: str) -> type[BaseModel]:
    fields = _fields(SECTIONS[name], name)
    if name == "objective":
        for part, one in parts().items():
            made = _made(part, _fields(one, f"{name}.{part}"))
            # Another process may not have registered a user's term.
            optional = part in own_terms() or part in TEACHER_TERMS
            fields[part] = (made | None, None) if optional else (made, ...)
        return create_model(name, __base__=Parts, **fields)
    return _made(name, fields)


def _made(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    return create_model(name, __base__=Closed, **fields)


def _fields(section: type, name: str) -> dict[str, Any]:
    fields = fields_of(section, name).items()
    return {key: (_type(field), field.default if field.known.if_given else ...) for key, field in fields}


def _choice(section: str) -> Any:
    """A section whose settings depend on its ``name``."""
    names = fields_in(section)
    every: dict[str, Any] = {field.key.partition(".")[2]: (_type(field), None) for field in names.values()}
    every["name"] = (_type(names[f"{section}.name"]), ...)

    def complete(value: BaseModel) -> BaseModel:
        name = value.name  # type: ignore[attr-defined]
        own = {"name", *fields_of(choice_of(section, name))}
        given = value.model_fields_set
        if missing := [key for key in every if key in own and key not in given]:
            raise ValueError(f"{section}={name}: the key {missing[0]!r} is missing")
        if extra := [key for key in given if key not in own]:
            raise ValueError(f"{section}={name} has no setting {extra[0]!r}")
        return value

    return Annotated[_made(section, every), AfterValidator(complete)]


_TYPES: dict[type, Any] = {bool: bool, int: int, float: float, str: Text, object: Value}


def _type(field: Field) -> Any:
    union: Any = None
    for one in field.types:
        kind: Any
        if one is list:
            kind = Annotated[list[_TYPES[field.element or object]], Limits(max_length=1000)]  # type: ignore[misc]
        elif one is dict and field.known.nested:
            kind = dict[Name, Any]
        elif one is dict:
            kind = dict[Name, _TYPES[field.element or object]]  # type: ignore[misc]
        elif one is int and field.known.high is None:
            kind = Annotated[int, Limits(ge=-MOST, le=MOST)]
        else:
            kind = _TYPES[one]
        union = kind if union is None else union | kind

    def check(value: Any) -> Any:
        if problem := field.problem(value):
            raise ValueError(problem)
        return value

    union = Annotated[union, AfterValidator(check)]
    return union | None if field.nullable else union
