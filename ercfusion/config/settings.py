"""All settings by dotted key, their defaults, and the typed configuration of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.config.choices import CHOICES, Curriculum, Optimizer, Scheduler
from ercfusion.config.fields import Decides, Field, Known, fields_of, frozen, plain
from ercfusion.config.sections import SECTIONS, Data, Missing, Objective, Recipe, Root, Sweep, Task, Trainer, Training
from ercfusion.config.terms import TASK_LOSSES, TEACHER_TERMS, TERMS, own_terms


def parts() -> dict[str, type]:
    """The sections of ``objective``: task losses with settings, and loss terms."""
    losses = {name: section for name, section in TASK_LOSSES.items() if section is not None}
    return {**losses, **TERMS, **TEACHER_TERMS}


def choice_of(section: str, name: str) -> type:
    """The class of a choice of ``optimizer``, ``scheduler`` or ``curriculum``.

    Raises:
        ConfigError: Unknown choice.
    """
    known: dict[str, type] = {one.choice: one for one in CHOICES[section]}  # type: ignore[attr-defined]
    if name not in known:
        raise ConfigError(f"{section}.name={name!r} is unknown. {did_you_mean(str(name), known)}")
    return known[name]


def names_of(section: str) -> list[str]:
    """The choices of a section."""
    return [one.choice for one in CHOICES[section]]  # type: ignore[attr-defined]


def fields_in(section: str, name: str | None = None) -> dict[str, Field]:
    """The settings of a section by dotted key; an empty ``section`` is the top level.

    ``name`` is the choice of ``optimizer`` and similar sections; None for the settings of all choices.
    """
    if not section:
        return {field.key: field for field in fields_of(Root).values()}
    if section in CHOICES:
        classes = CHOICES[section] if name is None else (choice_of(section, name),)
        key = f"{section}.name"
        known = Known(f"set by `{section}=NAME`", choices=tuple(names_of(section)), searchable=False)
        fields = {key: Field(key, (str,), None, False, names_of(section)[0], known)}
        for one in classes:
            fields |= {field.key: field for field in fields_of(one, section).values() if field.key not in fields}
        return fields
    fields = {field.key: field for field in fields_of(SECTIONS[section], section).values()}
    if section == "objective":
        for part, one in parts().items():
            fields |= {field.key: field for field in fields_of(one, f"objective.{part}").values()}
    return fields


def field_of(key: str) -> Field | None:
    """The setting with a dotted key, also one added to an open setting; None for model options and unknown keys."""
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
    element = parent.element
    return replace(parent, key=key, types=() if element in (None, object) else (element,), element=None, default=None)


def choices_of(key: str) -> tuple[str, ...]:
    """The choices of a setting; empty for one without choices."""
    field = field_of(key)
    return () if field is None else field.known.choices or ()


def is_added(key: str) -> bool:
    """Whether a user adds this key to an open setting, such as ``data.packs.audio``."""
    return field_of(key) is not None and key not in fields_in(key.partition(".")[0] if "." in key else "")


def decides(key: str) -> Decides:
    """The effect of a setting (see :func:`ercfusion.config.fields.setting`); model options decide the result."""
    field = field_of(key)
    if field is None:
        return "run" if key.partition(".")[0] == "preset" else "result"
    return field.known.decides


def is_path(key: str) -> bool:
    """Whether the value of a setting is used verbatim."""
    field = field_of(key)
    return field is not None and bool(field.known.path) and not field.is_open


def is_name(key: str) -> bool:
    """Whether this value is a name and not a file: ``~`` is not the home folder."""
    field = field_of(key)
    return field is not None and field.known.path == "name"


def defaults_of(section: str, name: str | None = None) -> dict[str, Any]:
    """The defaults of a section; see :func:`fields_in`. ``None`` is the default choice."""
    if section in CHOICES:
        name = names_of(section)[0] if name is None else name
    values: dict[str, Any] = {}
    for field in fields_in(section, name).values():
        node, keys = values, field.key.split(".")[1:] if section else [field.key]
        for part in keys[:-1]:
            node = node.setdefault(part, {})
        node[keys[-1]] = plain(field.default)
    if section in CHOICES:
        values["name"] = name
    if section == "objective":  # also terms without settings
        values |= {part: {} for part in parts() if part not in values}
    return values


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty mapping counts as a value."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            values.update(flat(value, f"{name}."))
        else:
            values[name] = value
    return values


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for unknown settings and values outside the range or choices."""
    for field, value in _values(config):
        if problem := field.problem(value):
            raise ConfigError(f"{field.key} {problem}. Correct the value.")


def _values(config: Mapping[str, Any]) -> Iterator[tuple[Field, Any]]:
    for section in ("", *SECTIONS, *CHOICES):
        content = config if not section else config.get(section)
        if content is None or (not section and "seed" not in config):
            continue
        known = fields_in(section, content.get("name") if section in CHOICES else None)
        if section in CHOICES and (extra := [key for key in content if f"{section}.{key}" not in known]):
            names = [key.partition(".")[2] for key in known]
            advice = did_you_mean(extra[0], names)
            raise ConfigError(f"{section}={content['name']} has no setting {extra[0]!r}. {advice}")
        # The configuration may be older than the registration of a user's term; terms with a teacher are optional.
        may_lack = (*own_terms(), *TEACHER_TERMS) if section == "objective" else ()
        absent = tuple(f"objective.{name}." for name in may_lack if name not in content)
        for key, field in known.items():
            if absent and key.startswith(absent):
                continue
            value: Any = content
            path = key.split(".")[1:] if section else [key]
            if field.known.if_given and path[0] not in content:
                continue
            for part in path:
                value = value[part]
            yield field, value


@dataclass(frozen=True)
class Preset:
    """The choices of the groups ``model`` and ``data``."""

    model: str
    data: str


@dataclass(frozen=True)
class Model:
    """The name and options of an architecture."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """The configuration of a run: one object per section; ``root`` is the top level."""

    preset: Preset
    root: Root
    training: Training
    objective: Objective
    data: Data
    missing: Missing
    optimizer: Optimizer
    scheduler: Scheduler
    curriculum: Curriculum
    trainer: Trainer
    task: Task
    recipe: Recipe
    model: Model

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Config:
        """Create a configuration from plain containers.

        Raises:
            ConfigError: A value is out of range.
        """
        check_settings(content)
        options = {key: value for key, value in content["model"].items() if key != "name"}
        return cls(
            preset=Preset(**content["preset"]),
            root=_made(Root, content),
            model=Model(content["model"]["name"], options),
            **{
                name: section_from(name, {} if is_optional(name) and name not in content else content[name])
                for name in _TYPED
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as in ``config.json``."""
        content: dict[str, Any] = {"preset": {"model": self.preset.model, "data": self.preset.data}}
        content |= {name: plain(getattr(self.root, name)) for name in fields_of(Root)}
        content |= {name: section_to(getattr(self, name)) for name in _TYPED}
        content = {name: value for name, value in content.items() if value or not is_optional(name)}
        return content | {"model": {"name": self.model.name, **plain(self.model.options)}}


_TYPED = (
    "training", "objective", "data", "missing", "optimizer", "scheduler", "curriculum", "trainer", "task", "recipe",
)  # fmt: skip


def _made(section: type, content: Mapping[str, Any]) -> Any:
    fields = fields_of(section).items()
    return section(
        **{name: frozen(content[name]) for name, field in fields if name in content or not field.known.if_given}
    )


def is_optional(section: str) -> bool:
    """Whether a section may be absent from a configuration: all of its settings are left out by default."""
    return section in SECTIONS and all(field.known.if_given for field in fields_of(SECTIONS[section]).values())


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration without the defaults of settings with ``if_given``."""
    kept = dict(config)
    for section in SECTIONS:
        if section in kept:
            fields = fields_of(SECTIONS[section], section)
            kept[section] = {
                key: value for key, value in kept[section].items() if not _left_out(fields.get(key), value)
            }
            if is_optional(section) and not kept[section]:
                del kept[section]
    if "objective" in kept:
        for name, term in TEACHER_TERMS.items():
            if kept["objective"].get(name) == section_to(term()):
                del kept["objective"][name]
    return kept


def _left_out(field: Field | None, value: Any) -> bool:
    return field is not None and field.known.if_given and plain(value) == field.default


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
    """Create a section from checked plain containers."""
    section = choice_of(name, content["name"]) if name in CHOICES else SECTIONS[name]
    made = _made(section, content)
    if isinstance(made, Objective):
        return replace(
            made, parts={part: _made(one, content[part]) if part in content else one() for part, one in parts().items()}
        )
    return made


def section_of(name: str, given: Mapping[str, Any]) -> Any:
    """Create a section from some of its settings and defaults.

    Raises:
        ConfigError: An unknown setting, or a value out of range.
    """
    content = updated(defaults_of(name, given.get("name") if name in CHOICES else None), given, name)
    check_settings({name: content})
    return section_from(name, content)


def updated(defaults: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``defaults`` with other values; ``where`` is the dotted key of both.

    Raises:
        ConfigError: An unknown setting.
    """
    values = dict(defaults)
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"{where} has no setting {key!r}. {did_you_mean(key, defaults)}")
        field = field_of(f"{where}.{key}")
        is_section = isinstance(value, Mapping) and (field is None or field.is_open)
        if field is not None and field.is_open:
            values[key] = {**defaults[key], **value}
        else:
            values[key] = updated(defaults[key], value, f"{where}.{key}") if is_section else value
    return values


def section_to(section: Any) -> dict[str, Any]:
    """The plain containers of a section."""
    content: dict[str, Any] = {"name": section.choice} if hasattr(section, "choice") else {}
    values = {name: plain(getattr(section, name)) for name in fields_of(type(section))}
    content |= {name: value for name, value in values.items() if not _left_out(fields_of(type(section))[name], value)}
    if isinstance(section, Objective):
        content |= {
            part: section_to(one)
            for part, one in section.parts.items()
            if part not in TEACHER_TERMS or one != TEACHER_TERMS[part]()
        }
    return content
