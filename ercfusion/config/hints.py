"""Commands in messages, quoted for a shell and for the parser; the tests run one of every place."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.overrides import literal_text

PLACES: Mapping[str, str] = {
    "interrupted run": "python -m ercfusion.train was interrupted, or failed after an epoch",
    "python entry": "repeats a run of ercfusion.fit",
    "interrupted sweep": "python -m ercfusion.sweep was interrupted",
    "occupied run": "run= is the folder of a run",
    "changed run": "settings or data of a resumed run have changed",
    "modules of a folder": "the settings of a folder import modules",
    "run, not sweep": "sweep resume= is the folder of a run",
    "unfinished run": "a run without a record was given",
    "new pack": "python -m ercfusion.extract wrote a pack",
    "imported corpus": "python -m ercfusion.extract import= wrote a corpus",
    "stale pack": "the recordings of a recipe's pack have changed",
    "recordings without packs": "an own corpus has recordings, but neither texts nor packs",
    "missing pack": "a recipe in data.packs has no pack",
    "other release": "the files of a corpus differ from its release",
    "recipes": "a corpus has no features of its own",
    "no recorded run": "python -m ercfusion.verify has no run to compare with",
    "table not up to date": "python -m ercfusion.reproduce --check fails",
    "copied table": "python -m ercfusion.reproduce copy= wrote a table file",
    "table": "the page of a table tells how it was made",
    "row of a table": "the page of a table tells how to repeat one run",
    "best settings": "best.yaml tells how it is used",
}
"""Places of commands in messages, and their conditions."""


def command(place: str, module: str, *words: str, settings: Mapping[str, object] | None = None) -> str:
    """A command line for a shell.

    Args:
        place: A key of :data:`PLACES`.
        module: Command, such as ``train``.
        words: Paths, flags and settings as typed.
        settings: Settings by key, appended to the words.
    """
    assert place in PLACES, place
    settings = settings or {}
    typed = [*words, *(literal_text(key, value) for key, value in settings.items())]
    return " ".join([f"python -m ercfusion.{module}", *map(shlex.quote, typed)])


def resume_command(place: str, module: str, folder: Path) -> str:
    """The command that resumes the run or sweep in a folder, with the modules in its ``config.json``."""
    try:
        config = read_json(folder / "config.json")
    except ErcfusionError:
        config = None
    names = config.get("imports") if isinstance(config, dict) else None
    return command(place, module, literal_text("resume", str(folder)), *naming(names))


def naming(names: object) -> list[str]:
    """``imports=[a,b.c]`` in a list; empty without modules, or if a name is invalid."""
    if not isinstance(names, list) or not names:
        return []
    known = all(isinstance(name, str) and all(map(str.isidentifier, name.split("."))) for name in names)
    return [f"imports=[{','.join(names)}]"] if known else []
