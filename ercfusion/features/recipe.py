"""Recipes: which tool makes a feature pack, with which settings. One YAML file each, in ``features/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ercfusion.errors import ConfigError, did_you_mean
from ercfusion.features.extractor import EXTRACTORS
from ercfusion.files import shipped_folder

_FIELDS = ("name", "about", "tool", "settings", "licence")


@dataclass(frozen=True)
class Recipe:
    """How a pack is made.

    Args:
        name: Identifier; the pack's folder begins with it.
        tool: A name of :data:`~ercfusion.features.extractor.EXTRACTORS`, or ``module:Class`` of an extractor.
        settings: Of the tool.
        about: What comes out, in a line.
        licence: Of weights or rules that the tool's own note does not cover.
    """

    name: str
    tool: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    licence: str = ""

    def with_settings(self, changes: Mapping[str, Any]) -> Recipe:
        """The same with some settings changed; dotted keys reach inside (``detector.version``)."""
        settings: dict[str, Any] = {**self.settings}
        for key, value in changes.items():
            *path, last = key.split(".")
            inner = settings
            for name in path:
                if not isinstance(inner.get(name), dict):
                    raise ConfigError(f"features.{key}: the recipe {self.name!r} has no settings below {name!r}")
                inner[name] = dict(inner[name])
                inner = inner[name]
            inner[last] = value
        return replace(self, settings=settings)

    def extractor(self) -> Any:
        """The tool with the settings, nothing heavy loaded.

        Raises:
            ConfigError: no such tool, or settings that it does not have.
            MissingExtraError: the tool is not installed.
        """
        settings = {"tool": self.tool, **self.settings}
        if ":" in self.tool and self.tool not in EXTRACTORS:
            EXTRACTORS.register(self.tool, self.tool)
        try:
            return EXTRACTORS.load(self.tool)(settings)
        except (ImportError, AttributeError) as error:
            if ":" not in self.tool:
                raise
            raise ConfigError(
                f"the recipe {self.name!r}: the tool {self.tool!r} cannot be imported: {error}"
            ) from error


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a YAML file of one's own.

    Raises:
        ConfigError: no such recipe, or the file does not hold one; the message names file and key.
    """
    import yaml

    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"features={name}: there is no such file")
        where, text = str(path), path.read_text(encoding="utf-8")
    elif name in (known := recipe_names()):
        where, text = f"recipe {name}", (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"no recipe {name!r}. {did_you_mean(name, known)}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: a mapping with the keys {', '.join(_FIELDS)} is expected")
    for key in content:
        if key not in _FIELDS:
            raise ConfigError(f"{where}: unknown key {key!r}. {did_you_mean(str(key), _FIELDS)}")
    for key, kind in (("name", str), ("tool", str), ("settings", dict), ("about", str), ("licence", str)):
        if not isinstance(content.get(key, kind()), kind):
            raise ConfigError(f"{where}: the key {key!r} must be of type {kind.__name__}")
    for key in ("name", "tool"):
        if not content.get(key):
            raise ConfigError(f"{where}: the key {key!r} is missing")
    if "/" in content["name"] or content["name"].startswith("."):
        raise ConfigError(f"{where}: the name {content['name']!r} cannot be the beginning of a folder's name")
    return Recipe(**{"settings": {}, **content})


def _folder() -> Path:
    return shipped_folder("recipes", "features")
