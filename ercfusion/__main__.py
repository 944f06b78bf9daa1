"""``ercfusion COMMAND ...`` and ``python -m ercfusion COMMAND ...``: all commands by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.cli import run_command
from ercfusion.config.overrides import shown
from ercfusion.grammar import Command, columns

NAMES = ("train", "evaluate", "sweep", "compare", "reproduce", "verify", "extract", "doctor", "completion")
"""The commands, each the module of its name, with a ``COMMAND`` and a ``main``."""


def declared(name: str) -> Command:
    """What a command declares."""
    found: Command = importlib.import_module(f"ercfusion.{name}").COMMAND
    return found


def overview() -> str:
    """All commands, one line each."""
    table = columns([(name, declared(name).about) for name in NAMES])
    return (
        "Emotion recognition in conversation from text, audio and visual features.\n\n"
        f"usage: ercfusion COMMAND [argument ...] [key=value ...] [--flag ...]\n\ncommands\n{table}\n\n"
        "ercfusion COMMAND --help shows what a command takes.\n"
    )


def main(argv: list[str]) -> int:
    """Run the command that the first argument names; list the commands if there is none."""
    if not argv or argv[0] in ("--help", "-h"):
        print(overview(), end="")
        return 0 if argv else 2
    name, *rest = argv
    if name not in NAMES:
        raise ConfigError(f"no command {shown(name)}. {did_you_mean(name, NAMES)}")
    entry: Callable[[Sequence[str]], int] = importlib.import_module(f"ercfusion.{name}").main
    return entry(rest)


def console() -> int:
    """The console script ``ercfusion``."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())
