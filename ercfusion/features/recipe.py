"""Recipes: the tool of a feature pack and its settings, one YAML file each in ``features/``."""

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
        name: Start of the pack's folder name.
        tool: A name of :data:`~ercfusion.features.extractor.EXTRACTORS`, or ``module:Class``.
        settings: Settings of the tool.
        about: The result in one line.
        licence: Terms not covered by the tool's own.
    """

    name: str
    tool: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    licence: str = ""

    def with_settings(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with changed settings; dotted keys are nested (``detector.version``)."""
        settings: dict[str, Any] = {**self.settings}
        for key, value in changes.items():
            *path, last = key.split(".")
            inner = settings
            for name in path:
                if not isinstance(inner.get(name), dict):
                    raise ConfigError(
                        f"features.{key}: {name!r} is not a group of settings in the recipe {self.name!r}. Remove the "
                        "part after the dot."
                    )
                inner[name] = dict(inner[name])
                inner = inner[name]
            inner[last] = value
        return replace(self, settings=settings)

    def extractor(self) -> Any:
        """The tool with these settings, nothing heavy loaded.

        Raises:
            ConfigError: unknown tool or setting.
            MissingExtraError: the tool is not installed.
        """
        settings = {"tool": self.tool, **self.settings}
        if ":" in self.tool and self.tool not in EXTRACTORS:
            EXTRACTORS.register(self.tool, self.tool)
        try:
            tool = EXTRACTORS.load(self.tool)
            if not isinstance(tool, type) or not hasattr(tool, "prepare"):
                raise ConfigError(
                    f"recipe {self.name!r}: the tool {self.tool!r} is not an extractor class. Name a class with the "
                    "members of ercfusion.features.extractor.ClipExtractor."
                )
            return tool(settings)
        except (ImportError, AttributeError) as error:
            if ":" not in self.tool:
                raise
            raise ConfigError(
                f"recipe {self.name!r}: the tool {self.tool!r} cannot be imported ({error}). Check the module's name, "
                "and that Python finds it."
            ) from error


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by name or path.

    Raises:
        ConfigError: no such recipe, or an invalid file.
    """
    from ercfusion.features.recipe_schema import RecipeFile

    if name.endswith((".yaml", ".yml")):
        path = expanded(name)
        if not path.is_file():
            raise ConfigError(f"features={name}: no such file. Correct the path.")
    elif name in (known := recipe_names()):
        path = _folder() / f"{name}.yaml"
    else:
        raise ConfigError(f"features={shown(name)}: unknown recipe. {did_you_mean(name, known)}")
    content = read_yaml(path, RecipeFile, error=ConfigError, advice="Correct the recipe: docs/add-a-recipe.md")
    return Recipe(**{"settings": {}, **content})


def _folder() -> Path:
    return shipped_folder("recipes", "features")
