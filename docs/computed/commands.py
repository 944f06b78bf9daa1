"""Parts of pages about commands and groups of settings."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from docs.computed.registry import register


def text_of(name: str) -> str:
    """The file of a configuration."""
    import ercfusion

    return (Path(ercfusion.__file__).parent / "conf" / f"{name}.yaml").read_text(encoding="utf-8")


def yaml_of(name: str) -> Any:

    return yaml.safe_load(text_of(name))


def commands_table() -> list[str]:
    """One row per command, with what it declares to do."""
    from ercfusion.__main__ import NAMES, declared

    rows = ["| command | what it does |", "|---|---|"]
    return rows + [f"| `ercfusion {name}` | {declared(name).about} |" for name in NAMES]


def grammar_tables(name: str) -> list[str]:
    """One row per key and flag of a command, without those that every command takes."""
    from ercfusion.__main__ import declared

    command = declared(name)
    rows = [(key.sign, key.about) for key in command.keys] + [(flag.sign, flag.about) for flag in command.flags]
    return ["| key or flag | meaning |", "|---|---|"] + [f"| `{sign}` | {about} |" for sign, about in rows]


def groups_table() -> list[str]:
    """One row a group of presets: which is the default, and which there are."""
    from ercfusion.config.compose import Composer

    composer = Composer()
    chosen = {
        name: str(choice)
        for entry in yaml_of("train")["defaults"]
        if isinstance(entry, dict)
        for name, choice in entry.items()
        if not name.startswith("optional ")
    }
    rows = ["| group | default | choices |", "|---|---|---|"]
    for name, choices in composer.groups().items():
        if name in chosen and len(choices) > 1:
            rows.append(f"| `{name}` | `{chosen[name]}` | {', '.join(f'`{choice}`' for choice in choices)} |")
    assert len(rows) > 7
    return rows


def training_presets() -> list[str]:
    """One row a model's preset that chooses its own optimiser or schedule."""
    import ercfusion

    rows = ["| preset | `optimizer` | `scheduler` |", "|---|---|---|"]
    usual = {name: next(iter(re.findall(rf"- {name}: (\w+)", text_of("train")))) for name in ("optimizer", "scheduler")}
    for path in sorted((Path(ercfusion.__file__).parent / "conf" / "model").glob("*.yaml")):
        own = dict(re.findall(r"override /(\w+): (\w+)", path.read_text(encoding="utf-8")))
        if own:
            rows.append(f"| `{path.stem}` | {' | '.join(f'`{own.get(name, usual[name])}`' for name in usual)} |")
    return rows


register("commands", "docs/commands.md", commands_table)
register("groups", "docs/commands.md", groups_table)
register("presets with their own training", "docs/commands.md", training_presets)
for _command in ("train", "sweep", "evaluate", "extract"):
    register(f"keys of {_command}", "docs/commands.md", partial(grammar_tables, _command))
register("keys of reproduce", "docs/experiments.md", partial(grammar_tables, "reproduce"))
