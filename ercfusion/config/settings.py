"""Every setting by its dotted key, the defaults of every section, and the typed configuration of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.config.fields import Decides, Field, Known, fields_of, frozen, plain
from ercfusion.config.sections import (
    CHOICES,
    SECTIONS,
    Curriculum,
    Data,
    Objective,
    Optimizer,
    Root,
    Scheduler,
    Sweep,
    Task,
    Trainer,
    Training,
)
from ercfusion.config.terms import TASK_LOSSES, TERMS, own_terms


def parts() -> dict[str, type]:
    """The sections below ``objective``: of the task's losses that have settings, and of the loss terms."""
    return {**{name: section for name, section in TASK_LOSSES.items() if section is not None}, **TERMS}


def choice_of(section: str, name: str) -> type:
    """The class of a choice of ``optimizer``, ``scheduler`` or ``curriculum``.

    Raises:
        ConfigError: no such choice; the message names the nearest.
    """
    known: dict[str, type] = {one.choice: one for one in CHOICES[section]}  # type: ignore[attr-defined]
    if name not in known:
        raise ConfigError(f"{section}.name={name!r} is unknown. {did_you_mean(str(name), known)}")
    return known[name]


def names_of(section: str) -> list[str]:
    """The choices of a section."""
    return [one.choice for one in CHOICES[section]]  # type: ignore[attr-defined]


def fields_in(section: str, name: str | None = None) -> dict[str, Field]:
    """The settings of a section by dotted key, in order; of ``optimizer`` and the like those of the choice ``name``.

    Args:
        section: Empty for the top level.
        name: None for the settings of all choices.
    """
    if not section:
        return {field.key: field for field in fields_of(Root).values()}
    if section in CHOICES:
        classes = CHOICES[section] if name is None else (choice_of(section, name),)
        key = f"{section}.name"
        known = Known(f"set by `{section}=NAME`", choices=tuple(names_of(section)), searchable=False)
        found = {key: Field(key, (str,), None, False, names_of(section)[0], known)}
        for one in classes:
            found |= {field.key: field for field in fields_of(one, section).values() if field.key not in found}
        return found
    found = {field.key: field for field in fields_of(SECTIONS[section], section).values()}
    if section == "objective":
        for part, one in parts().items():
            found |= {field.key: field for field in fields_of(one, f"objective.{part}").values()}
    return found


def field_of(key: str) -> Field | None:
    """The setting of a dotted key, also of an entry that a user adds to an open one; None if there is none.

    Options of architectures are not among them.
    """
    section, dot, rest = key.partition(".")
    if not dot:
        return fields_in("").get(key)
    if section not in SECTIONS and section not in CHOICES:
        return None
    known = fields_in(section)
    if key in known:
        return known[key]
    name, _, last = rest.partition(".")
    parent = known.get(f"{section}.{name}")
    if parent is None or not parent.is_open or not last:
        return None
    entry = parent.entry
    return replace(parent, key=key, types=() if entry in (None, object) else (entry,), entry=None, default=None)


def is_added(key: str) -> bool:
    """Whether a setting is an entry that a user may add to an open one, such as ``data.packs.audio``."""
    return field_of(key) is not None and key not in fields_in(key.partition(".")[0] if "." in key else "")


def decides(key: str) -> Decides:
    """What a setting decides (see :func:`ercfusion.config.fields.setting`); options of a model decide the result."""
    field = field_of(key)
    if field is None:
        return "run" if key.partition(".")[0] == "preset" else "result"
    return field.known.decides


def is_path(key: str) -> bool:
    """Whether the value of a setting is taken letter by letter."""
    field = field_of(key)
    return field is not None and bool(field.known.path) and not field.is_open


def is_name(key: str) -> bool:
    """Whether that value is not the name of a file: ``~`` is no home folder in it."""
    field = field_of(key)
    return field is not None and field.known.path == "name"


def defaults_of(section: str, name: str | None = None) -> dict[str, Any]:
    """The default settings of a section, as a configuration holds it.

    Args:
        section: Empty for the top level.
        name: The choice of ``optimizer`` and the like; None for the default one.
    """
    if section in CHOICES:
        name = names_of(section)[0] if name is None else name
    found: dict[str, Any] = {}
    for field in fields_in(section, name).values():
        node, keys = found, field.key.split(".")[1:] if section else [field.key]
        for part in keys[:-1]:
            node = node.setdefault(part, {})
        node[keys[-1]] = plain(field.default)
    if section in CHOICES:
        found["name"] = name
    if section == "objective":  # terms without settings have none of their own to list
        found |= {part: {} for part in parts() if part not in found}
    return found


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries by dotted key; an empty mapping counts as an entry."""
    entries: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            entries.update(flat(value, f"{name}."))
        else:
            entries[name] = value
    return entries


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` where a setting is out of its range, none of its choices, or not one of its section.

    Args:
        config: A configuration whose values have the right types.
    """
    for field, value in _values(config):
        if problem := field.problem(value):
            raise ConfigError(f"{field.key} {problem}")


def _values(config: Mapping[str, Any]) -> Iterator[tuple[Field, Any]]:
    for section in ("", *SECTIONS, *CHOICES):
        content = config if not section else config.get(section)
        if content is None or (not section and "seed" not in config):
            continue
        known = fields_in(section, content.get("name") if section in CHOICES else None)
        if section in CHOICES and (extra := [key for key in content if f"{section}.{key}" not in known]):
            names = [key.partition(".")[2] for key in known]
            hint = did_you_mean(extra[0], names)
            raise ConfigError(f"{section}={content['name']} has no setting {extra[0]!r}. {hint}")
        # A configuration of before a user's own term was registered does not have it.
        absent = tuple(f"objective.{name}." for name in own_terms() if section == "objective" and name not in content)
        for key, field in known.items():
            if absent and key.startswith(absent):
                continue
            value: Any = content
            for part in key.split(".")[1:] if section else [key]:
                value = value[part]
            yield field, value


# The typed configuration


@dataclass(frozen=True)
class Preset:
    """The choices of the groups ``model`` and ``data``."""

    model: str
    data: str


@dataclass(frozen=True)
class Model:
    """An architecture by its name, and its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """The configuration of a run: one object per section.

    Args:
        root: The settings of the top level.
    """

    preset: Preset
    root: Root
    training: Training
    objective: Objective
    data: Data
    optimizer: Optimizer
    scheduler: Scheduler
    curriculum: Curriculum
    trainer: Trainer
    task: Task
    model: Model

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Config:
        """The configuration that :meth:`to_dict` wrote, or that was composed.

        Raises:
            ConfigError: a value is out of its range.
        """
        check_settings(content)
        options = {key: value for key, value in content["model"].items() if key != "name"}
        return cls(
            preset=Preset(**content["preset"]),
            root=_made(Root, content),
            model=Model(content["model"]["name"], options),
            **{name: section_from(name, content[name]) for name in _TYPED},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as ``config.json`` holds them."""
        found: dict[str, Any] = {"preset": {"model": self.preset.model, "data": self.preset.data}}
        found |= {name: plain(getattr(self.root, name)) for name in fields_of(Root)}
        found |= {name: section_to(getattr(self, name)) for name in _TYPED}
        return found | {"model": {"name": self.model.name, **plain(self.model.options)}}


_TYPED = ("training", "objective", "data", "optimizer", "scheduler", "curriculum", "trainer", "task")


def _made(section: type, content: Mapping[str, Any]) -> Any:
    return section(**{name: frozen(content[name]) for name in fields_of(section)})


@overload
def section_from(name: Literal["data"], content: Mapping[str, Any]) -> Data: ...
@overload
def section_from(name: Literal["training"], content: Mapping[str, Any]) -> Training: ...
@overload
def section_from(name: Literal["trainer"], content: Mapping[str, Any]) -> Trainer: ...
@overload
def section_from(name: Literal["sweep"], content: Mapping[str, Any]) -> Sweep: ...
@overload
def section_from(name: Literal["optimizer"], content: Mapping[str, Any]) -> Optimizer: ...
@overload
def section_from(name: str, content: Mapping[str, Any]) -> Any: ...
def section_from(name: str, content: Mapping[str, Any]) -> Any:
    """A section's object from its plain form, whose types and ranges were checked."""
    section = choice_of(name, content["name"]) if name in CHOICES else SECTIONS[name]
    made = _made(section, content)
    if isinstance(made, Objective):
        return replace(
            made, parts={part: _made(one, content[part]) if part in content else one() for part, one in parts().items()}
        )
    return made


def section_of(name: str, given: Mapping[str, Any]) -> Any:
    """A section's object from some of its settings, by their names in it; the others have their defaults.

    Raises:
        ConfigError: a setting that does not exist, or a value out of its range.
    """
    content = _updated(defaults_of(name, given.get("name") if name in CHOICES else None), given, name)
    check_settings({name: content})
    return section_from(name, content)


def _updated(defaults: dict[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = dict(defaults)
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"{where} has no setting {key!r}. {did_you_mean(key, defaults)}")
        field = field_of(f"{where}.{key}")
        is_section = isinstance(value, Mapping) and (field is None or field.is_open)
        if field is not None and field.is_open:
            found[key] = {**defaults[key], **value}
        else:
            found[key] = _updated(defaults[key], value, f"{where}.{key}") if is_section else value
    return found


def section_to(section: Any) -> dict[str, Any]:
    """The plain form of a section's object."""
    found: dict[str, Any] = {"name": section.choice} if hasattr(section, "choice") else {}
    found |= {name: plain(getattr(section, name)) for name in fields_of(type(section))}
    if isinstance(section, Objective):
        found |= {part: section_to(one) for part, one in section.parts.items()}
    return found
