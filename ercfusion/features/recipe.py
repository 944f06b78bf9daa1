"""Recipes: which tool makes a feature pack, with which settings. One YAML file each, in ``features/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.files import expanded, shipped_folder
from ercfusion._core.schemas.reading import read_yaml, shown
from ercfusion.features.extractor import EXTRACTORS


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
            tool = EXTRACTORS.load(self.tool)
            if not isinstance(tool, type) or not hasattr(tool, "prepare"):
                raise ConfigError(f"the recipe {self.name!r}: the tool {self.tool!r} is not the class of an extractor")
            return tool(settings)
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
    from ercfusion.features.recipe_schema import RecipeFile

    if name.endswith((".yaml", ".yml")):
        path = expanded(name)
        if not path.is_file():
            raise ConfigError(f"features={name}: there is no such file")
    elif name in (known := recipe_names()):
        path = _folder() / f"{name}.yaml"
    else:
        raise ConfigError(f"no recipe {shown(name)}. {did_you_mean(name, known)}")
    content = read_yaml(path, RecipeFile, error=ConfigError)
    return Recipe(**{"settings": {}, **content})


def _folder() -> Path:
    return shipped_folder("recipes", "features")
