"""The effect of a setting that a record lacks: one rule for records of older versions.

A version that adds an option or a setting gives it the default that leaves everything as it was. A record that lacks it
was therefore made with that default: of the constructor for an option of an architecture, of the configuration files
for everything else. A record that has the setting is taken at its word.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ercfusion.config.compose import Composer

# Groups of settings by the choice that holds the defaults of all their choices.
_ONE_FORM = {"training": "default", "objective": "default", "trainer": "auto"}
# Groups whose choices have settings of their own.
_OWN_FORMS = ("optimizer", "scheduler", "curriculum")


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


def with_defaults(config: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, completed by those that a configuration lacks.

    Args:
        config: The configuration of a record; a choice or an architecture that the package does not know adds nothing.
        entries: Its settings by dotted key.
    """
    choices = {**_ONE_FORM, "curriculum": "none", "data": str(config.get("preset", {}).get("data"))}
    for section in (*_OWN_FORMS, "model"):
        if name := config.get(section, {}).get("name"):
            choices[section] = str(name)
    found = dict(entries)
    for section, choice in choices.items():
        for key, value in (_options(choice) if section == "model" else _choice(section, choice)).items():
            name = f"{section}.{key}"
            # An empty mapping is the default of a section with open entries: any entry below it replaces it.
            if name not in found and not any(known.startswith(f"{name}.") for known in found):
                found[name] = value
    return found


@cache
def _choice(group: str, name: str) -> dict[str, Any]:
    return flat(Composer().choice(group, name)) if name in _groups().get(group, []) else {}


@cache
def _groups() -> dict[str, list[str]]:
    return Composer().groups()


@cache
def _options(name: str) -> dict[str, Any]:
    """Nothing for an architecture that is not registered: no module is imported because a record names it."""
    from ercfusion.models import ARCHITECTURES, architecture_options

    if name not in ARCHITECTURES:
        return {}
    options = architecture_options(name)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
