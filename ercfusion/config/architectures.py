"""Architectures as choices of the configuration: their names, the defaults of their options, and their search spaces.

Only names are known at first; the module of an architecture is imported when a configuration chooses it. This module
knows architectures by name, and imports none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion._core.registry import Registry, import_modules
from ercfusion.config.options import check_options, options_of, with_defaults


def architectures_in(folder: Path) -> dict[str, str]:
    """The architectures in files of ``ercfusion.models``: ``broad_mamba.py`` with the class ``BroadMamba`` is one."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        for name in re.findall(r"(?m)^class (\w+)\(", path.read_text(encoding="utf-8")):
            if name.lower() == path.stem.replace("_", ""):
                found[path.stem] = f"ercfusion.models.{path.stem}:{name}"
    return found


ARCHITECTURES: Registry[object] = Registry("architecture", architectures_in(Path(__file__).parents[1] / "models"))
"""The architectures by name."""


def store_architectures(config_dir: str | None) -> None:
    """Make every architecture a choice of the groups ``model`` and ``space`` that has no file of its name there.

    Args:
        config_dir: A user's own folder of groups.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    folders = [Path(__file__).parents[1] / "conf", *([Path(config_dir)] if config_dir else [])]
    for group, key in (("model", "name"), ("space", "architecture")):
        store.repo.pop(group, None)  # what another folder left to be stored
        for name in ARCHITECTURES:
            if not any((folder / group / f"{name}.yaml").is_file() for folder in folders):
                store.store(group=group, name=name, node={key: name})


def add_class(target: str) -> str:
    """The name of the class ``"module:Class"`` in the group ``model``: this text, if it was not registered.

    The module is imported, so only what the user's own command or program names is given here.

    Raises:
        ConfigError: the module cannot be imported, or has no such class.
    """
    import_modules([target.partition(":")[0]])
    ARCHITECTURES.load(target)
    name = ARCHITECTURES.name_of(target)
    ARCHITECTURES.register(name, target)
    return name


def complete_model(composed: Any) -> None:
    """Give a composed configuration the defaults of all options of its model, and the search space that it names.

    Args:
        composed: Of omegaconf; changed in place.

    Raises:
        ConfigError: a preset names an option that its architecture does not have.
    """
    from omegaconf import OmegaConf, open_dict

    given = OmegaConf.to_container(composed["model"]) if composed.get("model") else {}
    assert isinstance(given, dict)
    space = composed.get("space")
    with open_dict(composed):
        if given.get("name") in ARCHITECTURES:
            composed["model"] = _complete(given)
        if space is not None and set(space) == {"architecture"}:
            composed["space"] = space_of(space["architecture"])


def _complete(model: Mapping[Any, Any]) -> dict[str, Any]:
    name, given = _parts(model)
    return {"name": name, **with_defaults(f"model {name!r}", options_of(ARCHITECTURES.load(name)), given)}


def _parts(model: Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of a section ``model``."""
    return model["name"], {name: value for name, value in model.items() if name != "name"}


def check_model(model: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the options of the section ``model`` can have their values."""
    if model["name"] in ARCHITECTURES:
        name, given = _parts(model)
        check_options(f"model {name!r}", "model", options_of(ARCHITECTURES.load(name)), given)


def space_of(name: str) -> dict[str, Any]:
    """What a sweep of an architecture searches, by setting; empty if its class says nothing."""
    found: Mapping[str, Any] = getattr(ARCHITECTURES.load(name), "search_space", {})
    return {key: dict(dimension) for key, dimension in found.items()}
