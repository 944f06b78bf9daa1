"""``ercfusion COMMAND ...`` and ``python -m ercfusion COMMAND ...``: all commands by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.cli import run_command
from ercfusion.config.overrides import shown
from ercfusion.grammar import Command, columns

NAMES = (
    *("train", "evaluate", "sweep", "compare", "robustness", "conflicts", "reproduce", "verify", "extract", "doctor"),
    "completion",
)
"""The commands; each is a module with a ``COMMAND`` and a ``main``."""


def declared(name: str) -> Command:
    """The declaration of a command."""
    command: Command = importlib.import_module(f"ercfusion.{name}").COMMAND
    return command


def overview() -> str:
    """All commands, one line each."""
    table = columns([(name, declared(name).about) for name in NAMES])
    return (
        "Emotion recognition in conversation from text, audio and visual features.\n\n"
        f"usage: ercfusion COMMAND [argument ...] [key=value ...] [--flag ...]\n\nCommands:\n{table}\n\n"
        "Start with: ercfusion train\n"
        "ercfusion COMMAND --help lists examples, keys and flags of a command.\n"
    )


def main(argv: list[str]) -> int:
    """Run the command in the first argument, or list the commands."""
    if not argv or argv[0] in ("--help", "-h"):
        print(overview(), end="")
        return 0 if argv else 2
    name, *rest = argv
    if name not in NAMES:
        raise ConfigError(f"no command {shown(name)}. {did_you_mean(name, NAMES)}")
    run: Callable[[Sequence[str]], int] = importlib.import_module(f"ercfusion.{name}").main
    return run(rest)


def console() -> int:
    """The console script ``ercfusion``."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(console())
