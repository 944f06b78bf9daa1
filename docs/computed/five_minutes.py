"""The outputs and pictures of the page "five-minutes": its commands are run, two at a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from docs.computed.registry import ROOT, register

PAGE = "docs/five-minutes.md"
PICTURES = {"training.png": "training.png", "confusion.png": "test-confusion.png"}
"""File in ``docs/pictures`` to file in the run's folder ``plots``."""


def commands() -> list[str]:
    """The commands of the page that train or compare."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    return re.findall(r"(?m)^python -m ercfusion\.(?:train|compare) .*$", text)


@cache
def outputs() -> dict[str, str]:
    """What each of :func:`commands` prints; also copies the pictures of the first run."""
    with workplace() as folder:
        with ThreadPoolExecutor(2) as pool:
            *runs, comparison = commands()
            printed = dict(zip(runs, pool.map(lambda command: printed_by(command, folder), runs)))
        printed[comparison] = printed_by(comparison, folder)
        pictures = ROOT / "docs" / "pictures"
        pictures.mkdir(exist_ok=True)
        for name, source in PICTURES.items():
            shutil.copyfile(folder / "first" / "plots" / source, pictures / name)
    return printed


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def printed_by(command: str, folder: Path) -> str:
    """What a command prints."""
    words = [sys.executable, *command.split()[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout.replace(f"{folder}{os.sep}", "")


def fenced(lines: list[str]) -> list[str]:
    """Lines in a code block, without spaces at their ends."""
    return ["```", *(line.rstrip() for line in lines), "```"]


def training() -> list[str]:
    """The first epochs, and the summary."""
    lines = outputs()[commands()[0]].splitlines()
    summary = next(number for number, line in enumerate(lines) if "chosen on dev" in line)
    epochs = [line for line in lines if line.startswith("epoch ")]
    return fenced([*epochs[:3], "...", *epochs[-1:], "", *lines[summary:]])


def comparison() -> list[str]:
    """The table of scores and the test between the two runs."""
    parts = outputs()[commands()[-1]].split("\n\n")
    return fenced("\n\n".join(part for part in parts if part.startswith(("model   runs", "pair "))).splitlines())


register("five minutes: train", PAGE, training, measured=True)
register("five minutes: compare", PAGE, comparison, measured=True)
