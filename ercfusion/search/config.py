"""From what a user typed to the configuration of a sweep.

It is that of a run, with ``sweep`` (how to search), ``space`` (what is searched) and ``typed`` (what was typed: the
part of a run's settings that ``best.yaml`` repeats).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.config.overrides import override_text
from ercfusion.config.sections import Constant
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

# Of one sweep or one place: not repeated in best.yaml.
_PASSING = ("run", "output", "resume", "space")


def compose_sweep(composer: Composer, file_entries: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of a sweep.

    Args:
        composer: Of the root ``sweep``.
        file_entries: From ``settings=``: where the search begins; they are searched all the same.
        arguments: As typed; ordinary values leave the space, Hydra's sweep syntax puts settings into it.

    Raises:
        ConfigError: a mistake in any of them.
    """
    groups = composer.groups()
    plain, ranges = composer.split_ranges(arguments)
    for key, parsed in ranges.items():
        line = f"{str(parsed.input_line)!r}: "
        if key in groups:
            raise ConfigError(f"{line}a sweep searches settings, not {key}: start one sweep for each")
        check_searchable(key, line)
    config = composer.compose([*file_entries, *plain])
    check_settings(config)
    fixed = {entry.partition("=")[0].lstrip("+") for entry in plain} - set(groups)
    space = _own_space(composer, config, groups.get("space", []), bool(ranges))
    for key, parsed in ranges.items():
        try:
            default = setting(config, key)
        except KeyError:
            # Where settings may be added, such as the weight of a term, it is one that was off until now; elsewhere the
            # composer has the words for it, and the nearest right name.
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
    if not config["space"]:
        raise ConfigError("nothing is left to search: every setting of the space was given a value")
    config["typed"] = _typed(composer, [*file_entries, *plain], config)
    return config


def _own_space(composer: Composer, config: Mapping[str, Any], known: Sequence[str], typed: bool) -> Space:
    """The space that was chosen or that goes with the architecture, such that it holds the settings composed."""
    name = config["model"]["name"]
    entries = config.get("space")
    if name == "majority":
        raise ConfigError("model=majority always gives the same answer: there is nothing to search")
    where = "space: "
    if entries is None:
        entries, where = composer.choice("space", name) if name in known else {}, f"space {name}: "
    if not entries:
        if typed:
            return {}
        raise ConfigError(
            f"the architecture {name!r} has no space of its own. Type the settings to search, as in "
            f"'optimizer.lr=interval(1e-4,1e-2)', or put DIR/space/{name}.yaml below config_dir=DIR."
        )
    space: Space = {}
    for key, entry in entries.items():
        dimension = read_dimension(key, entry, where)
        try:
            default = setting(config, key)
        except KeyError:
            logger.info("%s is not searched: there is no such setting here", key)
            continue
        fitting = stretched(dimension, default)
        if fitting is None:
            logger.info("%s is not searched: its range does not go with %s", key, default)
            continue
        space[key] = fitting
    return space


def _restricted(space: Space, only: Sequence[str] | None, fixed: set[str]) -> Space:
    if only is None:
        return space
    for key in only:
        if key not in space:
            reason = "it was given a value" if key in fixed else did_you_mean(key, space)
            raise ConfigError(f"sweep.only names {key!r}, which is not searched: {reason}")
    return {key: dimension for key, dimension in space.items() if key in only}


def _typed(composer: Composer, entries: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    typed: dict[str, Any] = dict(config["preset"])
    for key, value in composer.values(entries).items():
        if key.partition(".")[0] not in (*_PASSING, "sweep"):
            typed[key] = value
    return typed


# Once the data are there


def fitted(config: dict[str, Any], data: LoadedData, inputs: InputSpec) -> dict[str, Any]:
    """The configuration, after a look at what it is about.

    Label smoothing is not searched where it has no effect; the threads of each training are fixed; both ends of every
    range are tried on the model and on the optimiser.

    Raises:
        ConfigError: a value that does not fit; or several devices.
    """
    settings = Config.from_dict(config)
    if settings.trainer.devices * settings.trainer.num_nodes != 1:
        raise ConfigError("a sweep trains every trial on one device: trainer.devices and trainer.num_nodes must be 1")
    space = dict(config["space"])
    if not data.protocol.task.rules.label_smoothing:
        space.pop("objective.label_smoothing", None)
    if not space:
        raise ConfigError(f"nothing is left to search for a {data.protocol.task.kind} task")
    config = {**config, "space": space}
    if settings.training.threads is None:
        # The score must not depend on how many workers, or which machine's cores, a trial happened to have.
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
                raise ConfigError(f"the space reaches {key}={value}, which cannot be used: {error}") from error
    return config


def check_candidate(config: Config, inputs: InputSpec) -> None:
    """Raise :class:`ConfigError` where a model or its optimiser cannot be made with these settings."""
    import torch

    from ercfusion.models import build_architecture
    from ercfusion.tasks.objective import Objective
    from ercfusion.training.module import ConversationModule

    with torch.random.fork_rng(devices=[]):
        model: Any = build_architecture(config.model.name, inputs, config.model.options)
    objective = Objective(config.objective.weights, None)
    ConversationModule(model, objective, config.optimizer, Constant()).configure_optimizers()
