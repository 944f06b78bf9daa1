"""Parts of pages about commands and groups of settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from docs.computed.registry import register, register_built


def yaml_of(name: str) -> Any:
    """The file of a configuration."""
    import ercfusion

    return yaml.safe_load((Path(ercfusion.__file__).parent / "conf" / f"{name}.yaml").read_text(encoding="utf-8"))


def about(name: str) -> list[str]:
    """What a command does."""
    from ercfusion.__main__ import declared

    return [f"{declared(name).about}."]


def key_rows(rows: list[tuple[str, str]]) -> list[str]:
    """A table of keys and flags."""
    return ["| key or flag | meaning |", "|---|---|", *(f"| `{sign}` | {about} |" for sign, about in rows)]


def keys_table(name: str) -> list[str]:
    """One row per key and flag of a command, without those of every command."""
    from ercfusion.__main__ import declared

    command = declared(name)
    return key_rows([(each.sign, each.about) for each in (*command.keys, *command.flags)])


def common_table() -> list[str]:
    """One row per key and flag of every command."""
    from ercfusion.grammar import COMMON_FLAGS, COMMON_KEYS

    return key_rows([(each.sign, each.about) for each in (*COMMON_KEYS, *COMMON_FLAGS)])


def groups_table() -> list[str]:
    """One row per group of presets: the default and the choices."""
    from ercfusion.config.compose import Composer

    composer = Composer()
    chosen = {
        name: str(choice)
        for item in yaml_of("train")["defaults"]
        if isinstance(item, dict)
        for name, choice in item.items()
        if not name.startswith("optional ")
    }
    rows = ["| group | default | choices |", "|---|---|---|"]
    for name, choices in composer.groups().items():
        if name in chosen and len(choices) > 1:
            rows.append(f"| `{name}` | `{chosen[name]}` | {', '.join(f'`{choice}`' for choice in choices)} |")
    assert len(rows) > 7
    return rows


register("keys of every command", "docs/commands.md", common_table)
for _command in ("train", "sweep", "evaluate", "compare", "robustness", "verify", "extract", "doctor"):
    register(f"command {_command}", "docs/commands.md", partial(about, _command))
for _command in ("train", "sweep", "evaluate", "compare", "robustness", "verify", "extract"):
    register_built(f"keys of {_command}", "docs/commands.md", partial(keys_table, _command))
register_built("keys of reproduce", "docs/experiments.md", partial(keys_table, "reproduce"))
