"""The configurations of a recipe's stages.

A recipe lists trainings before the run's own one, by name. The section ``recipe.stages.NAME`` has the settings that
differ from those of the run; the last stage is the run itself. A weight of ``objective.weights`` set to null is
removed: an unknown term is an error, even with weight 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.schemas.reading import check
from ercfusion.config.architectures import complete_options
from ercfusion.config.choices import CHOICES
from ercfusion.config.missing import canonical_laws
from ercfusion.config.schema import run_config
from ercfusion.config.settings import check_settings, choice_of, defaults_of, updated, without_defaults

CHANGEABLE = ("model", "data", "training", "objective", "optimizer", "scheduler", "curriculum", "missing")
"""Sections that a stage may change."""

_OWN = ("start_from", "load", "freeze", "keep_every_epoch", "teacher")
"""Settings of ``training`` that a stage does not take over from the run."""


def stage_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The resolved configurations of the stages before the run itself, by name; empty without a recipe.

    The first one has the run's ``training.start_from``. The others start from the stage before; their folders are not
    known here. The stage ``training.teacher`` starts from random weights, and no other starts from it.

    Args:
        config: Of the run, as in ``config.json``.

    Raises:
        ConfigError: a stage has an unknown key or a value that does not fit; or several devices are configured.
    """
    stages = config.get("recipe", {}).get("stages", {})
    if stages and config["trainer"]["devices"] * config["trainer"]["num_nodes"] != 1:
        raise ConfigError("a recipe with stages is trained in one process. Set trainer.devices=1 trainer.num_nodes=1.")
    made: dict[str, dict[str, Any]] = {}
    students = [name for name in stages if name != config["training"].get("teacher")]
    for name, changes in stages.items():
        if not isinstance(changes, Mapping):
            raise ConfigError(
                f"recipe.stages.{name}={changes!r} is not a mapping. Give the settings of the stage by section."
            )
        made[str(name)] = _stage(config, str(name), changes, first=name in students[:1])
    return made


def _stage(config: Mapping[str, Any], name: str, changes: Mapping[str, Any], *, first: bool) -> dict[str, Any]:
    where = f"recipe.stages.{name}"
    if not name.replace("-", "_").isidentifier():
        raise ConfigError(f"{where}: the name of a stage has letters, digits, - and _ only. Rename it.")
    stage = copy.deepcopy({key: value for key, value in config.items() if key != "recipe"})
    stage["task"]["export"] = False
    defaults = defaults_of("training")
    stage["training"] |= {key: defaults[key] for key in _OWN if not (first and key == "start_from")}
    for section, given in changes.items():
        if section not in CHANGEABLE:
            raise ConfigError(f"{where} has no section {section!r}. {did_you_mean(str(section), CHANGEABLE)}")
        try:
            stage[section] = _changed(section, stage.get(section, {}), given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    stage = without_defaults(stage)
    check(stage, run_config(), where, error=ConfigError, advice="Correct the stage.")
    try:
        check_settings(stage)
        if "missing" in stage:
            stage["missing"] = canonical_laws(stage["missing"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return stage


def _changed(section: str, before: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """The content of a section after the changes of a stage."""
    if isinstance(given, str) and section in (*CHOICES, "model"):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{section}={given!r} is not a mapping. Give the settings of the section.")
    another = given.get("name", before.get("name")) != before.get("name")
    if section == "model":
        return complete_options(dict(given) if another else {**before, **given})
    if section in CHOICES:
        name = str(given.get("name", before["name"]))
        choice_of(section, name)
        defaults = defaults_of(section, name)
        return updated(defaults if another else {**defaults, **before}, given, section)
    after = updated({**defaults_of(section), **before}, given, section)
    if section == "objective":
        after["weights"] = {term: weight for term, weight in after["weights"].items() if weight is not None}
    return after
