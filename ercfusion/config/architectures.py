"""Architectures as choices of the configuration: names, option defaults and search spaces.

A module is imported when a configuration chooses its architecture.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.registry import Registry, import_modules
from ercfusion.config.options import check_options, options_of, with_defaults


def architectures_in(folder: Path) -> dict[str, str]:
    """The architectures in a folder: ``broad_mamba.py`` with the class ``BroadMamba``."""
    targets = {}
    for path in sorted(folder.glob("*.py")):
        for name in re.findall(r"(?m)^class (\w+)\(", path.read_text(encoding="utf-8")):
            if name.lower() == path.stem.replace("_", ""):
                targets[path.stem] = f"ercfusion.models.{path.stem}:{name}"
    return targets


ARCHITECTURES: Registry[object] = Registry("architecture", architectures_in(Path(__file__).parents[1] / "models"))
"""The architectures by name."""


def store_architectures(config_dir: str | None) -> None:
    """Add every architecture without a file to the groups ``model`` and ``space``."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    folders = [Path(__file__).parents[1] / "conf", *([Path(config_dir)] if config_dir else [])]
    for group, key in (("model", "name"), ("space", "architecture")):
        store.repo.pop(group, None)  # choices of an earlier folder
        for name in ARCHITECTURES:
            if not any((folder / group / f"{name}.yaml").is_file() for folder in folders):
                store.store(group=group, name=name, node={key: name})


def add_class(target: str) -> str:
    """The name of ``"module:Class"`` in the group ``model``: the text itself, if the class is not registered.

    Imports the module: pass only names from the user's own command or program.
    """
    import_modules([target.partition(":")[0]])
    ARCHITECTURES.load(target)
    name = ARCHITECTURES.name_of(target)
    ARCHITECTURES.register(name, target)
    return name


def complete_model(composed: Any, weighted: Collection[str] = ()) -> None:
    """Add the defaults of all model options, and the search space, to a composed configuration.

    Also the architecture's weights of losses except those ``weighted`` by a file.
    """
    from omegaconf import OmegaConf, open_dict

    given = OmegaConf.to_container(composed["model"]) if composed.get("model") else {}
    assert isinstance(given, dict)
    space = composed.get("space")
    with open_dict(composed):
        if given.get("name") in ARCHITECTURES:
            composed["model"] = _complete(given)
            if (composed.get("objective") or {}).get("weights") is not None:
                own: Mapping[str, float] = getattr(ARCHITECTURES.load(given["name"]), "loss_weights", {})
                composed["objective"]["weights"].update({name: own[name] for name in own if name not in weighted})
        if space is not None and set(space) == {"architecture"}:
            composed["space"] = space_of(space["architecture"])


def _complete(model: Mapping[Any, Any]) -> dict[str, Any]:
    name, given = _parts(model)
    return {"name": name, **with_defaults(f"model {name!r}", options_of(ARCHITECTURES.load(name)), given)}


def complete_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``model`` with the defaults of all options, checked.

    Raises:
        ConfigError: An unknown architecture or option, or a value not allowed.
    """
    if model["name"] not in ARCHITECTURES:
        raise ConfigError(f"model={model['name']} is unknown. {did_you_mean(str(model['name']), ARCHITECTURES)}")
    completed = _complete(model)
    check_model(completed)
    return completed


def _parts(model: Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    return model["name"], {name: value for name, value in model.items() if name != "name"}


def check_model(model: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the options in the section ``model`` are allowed."""
    if model["name"] in ARCHITECTURES:
        name, given = _parts(model)
        check_options(f"model {name!r}", "model", options_of(ARCHITECTURES.load(name)), given)


def space_of(name: str) -> dict[str, Any]:
    """The search space of an architecture by setting; may be empty."""
    space: Mapping[str, Any] = getattr(ARCHITECTURES.load(name), "search_space", {})
    return {key: dict(dimension) for key, dimension in space.items()}
