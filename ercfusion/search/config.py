"""The configuration of a sweep: a run's, plus ``sweep``, ``space`` and ``typed`` (for ``best.yaml``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.choices import Constant
from ercfusion.config.compose import Composer
from ercfusion.config.missing import check_laws
from ercfusion.config.overrides import override_text
from ercfusion.config.settings import Config, check_settings, section_from
from ercfusion.search.space import (
    Space,
    check_searchable,
    ends,
    read_dimension,
    setting,
    stretched,
    typed_dimension,
    with_settings,
)

if TYPE_CHECKING:
    from ercfusion.features.loading import LoadedData

logger = logging.getLogger("ercfusion")

# Keys of one sweep or machine: not repeated in best.yaml.
_PASSING = ("run", "output", "resume", "space")


def compose_sweep(composer: Composer, file_entries: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration of a sweep.

    Args:
        composer: Of the root ``sweep``.
        file_entries: From ``settings=``: start values.
        arguments: As typed: a plain value fixes a setting, Hydra's sweep syntax adds one to the space.

    Raises:
        ConfigError: a mistake in any of them.
    """
    groups = composer.groups()
    plain, ranges = composer.split_ranges(arguments)
    for key, parsed in ranges.items():
        line = f"{str(parsed.input_line)!r}: "
        if key in groups:
            raise ConfigError(f"{line}a sweep searches settings, not {key}. Start one sweep for each.")
        check_searchable(key, line)
    config = composer.compose([*file_entries, *plain])
    check_settings(config)
    if "stages" in config.get("recipe", {}):
        raise ConfigError("recipe: a trial of a sweep is one training. Start one sweep for each stage.")
    fixed = {argument.partition("=")[0].lstrip("+") for argument in plain} - set(groups)
    space = _own_space(composer, config, groups.get("space", []), bool(ranges))
    for key, parsed in ranges.items():
        try:
            default = setting(config, key)
        except KeyError:
            # A setting that may be added, such as the weight of a term, is off by default. The composer refuses other
            # unknown keys with the nearest right name.
            plain.append(f"{key}=0.0")
            config = composer.compose([*file_entries, *plain])
            default = setting(config, key)
        dimension = typed_dimension(key, parsed, default)
        for value in ends(dimension):
            composer.compose([*file_entries, *plain, override_text(key, value)])
        space[key] = dimension
    for key in fixed:
        space.pop(key, None)
    config["space"] = _restricted(space, section_from("sweep", config["sweep"]).only, fixed)
    if "missing.train" in config["space"] and config.get("missing", {}).get("dev") is None:
        raise ConfigError(
            "missing.train is searched, and dev has the same law by default: trials would not be comparable. Set "
            "missing.dev, such as missing.dev=rate:0.5."
        )
    if not config["space"]:
        raise ConfigError("nothing is left to search: every setting of the space has a fixed value. Omit one of them.")
    config["typed"] = _typed(composer, [*file_entries, *plain], config)
    return config


def _own_space(composer: Composer, config: Mapping[str, Any], known: Sequence[str], typed: bool) -> Space:
    """The chosen space or the architecture's, widened to hold the composed settings."""
    name = config["model"]["name"]
    entries = config.get("space")
    if name == "majority":
        raise ConfigError("model=majority: there is nothing to search, it has no settings. Choose another model.")
    where = "space: "
    if entries is None:
        entries, where = composer.choice("space", name) if name in known else {}, f"space {name}: "
    if not entries:
        if typed:
            return {}
        raise ConfigError(
            f"model={name}: the architecture has no search space. Name the settings to search, as in "
            f"'optimizer.lr=interval(1e-4,1e-2)', or add DIR/space/{name}.yaml and config_dir=DIR."
        )
    space: Space = {}
    for key, item in entries.items():
        dimension = read_dimension(key, item, where)
        try:
            default = setting(config, key)
        except KeyError:
            logger.info("%s is not searched: these presets have no such setting", key)
            continue
        fitting = stretched(dimension, default)
        if fitting is None:
            logger.info("%s is not searched: its range does not fit the value %s", key, default)
            continue
        space[key] = fitting
    return space


def _restricted(space: Space, only: Sequence[str] | None, fixed: set[str]) -> Space:
    if only is None:
        return space
    for key in only:
        if key not in space:
            if key in fixed:
                raise ConfigError(f"sweep.only names {key!r}, which has a fixed value. Remove one of the two.")
            raise ConfigError(f"sweep.only names {key!r}, which is not searched. {did_you_mean(key, space)}")
    return {key: dimension for key, dimension in space.items() if key in only}


def _typed(composer: Composer, entries: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    typed: dict[str, Any] = dict(config["preset"])
    for key, value in composer.values(entries).items():
        if key.partition(".")[0] not in (*_PASSING, "sweep"):
            typed[key] = value
    return typed


# With the data at hand


def fitted(config: dict[str, Any], data: LoadedData, inputs: InputSpec) -> dict[str, Any]:
    """Adapt the configuration to the data, and try both ends of every range on model and optimiser.

    Raises:
        ConfigError: a value does not fit, or several devices.
    """
    settings = Config.from_dict(config)
    if settings.trainer.devices * settings.trainer.num_nodes != 1:
        raise ConfigError("a sweep trains every trial on one device. Set trainer.devices=1 and trainer.num_nodes=1.")
    space = dict(config["space"])
    if not data.protocol.task.rules.label_smoothing:
        space.pop("objective.label_smoothing", None)
    if not space:
        raise ConfigError(f"nothing is left to search for a {data.protocol.task.kind} task. Add settings to the space.")
    config = {**config, "space": space}
    if settings.training.threads is None:
        # Scores must not depend on workers or cores.
        config = with_settings(config, {"training.threads": 1})
        config["typed"]["training.threads"] = 1
    check_candidate(settings, inputs)
    for key, dimension in space.items():
        for value in ends(dimension):
            if key.startswith("data."):
                continue
            try:
                check_candidate(Config.from_dict(with_settings(config, {key: value})), inputs)
            except ConfigError as error:
                reason = str(error).rstrip(".")
                raise ConfigError(
                    f"the space reaches {key}={value}, which cannot be used: {reason}. Give {key} another range."
                ) from error
    return config


def check_candidate(config: Config, inputs: InputSpec) -> None:
    """Raise :class:`ConfigError` if these settings make no model or optimiser."""
    import torch

    from ercfusion.models import build_architecture
    from ercfusion.tasks.objective import Objective
    from ercfusion.training.module import ConversationModule

    check_laws(config.missing, tuple(inputs.widths))
    with torch.random.fork_rng(devices=[]):
        model: Any = build_architecture(config.model.name, inputs, config.model.options)
    objective = Objective(config.objective.weights, None)
    ConversationModule(model, objective, config.optimizer, Constant()).configure_optimizers()
