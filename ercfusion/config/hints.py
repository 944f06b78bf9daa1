"""Commands that messages tell a user to type, written so that a shell and our parser read them as they are meant.

Every message with a command gets it here, from a named place: the tests run the command of each.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.overrides import literal_text

PLACES: Mapping[str, str] = {
    "interrupted run": "python -m ercfusion.train was interrupted, or stopped by a failure after an epoch",
    "python entry": "a run was made by ercfusion.fit: what would make it again",
    "interrupted sweep": "python -m ercfusion.sweep was interrupted",
    "occupied run": "run= names the folder of a run",
    "changed run": "a run is resumed, and its settings or its data have changed",
    "modules of a folder": "a command opens a folder whose settings name modules to import",
    "run, not sweep": "python -m ercfusion.sweep resume= names the folder of a run",
    "unfinished run": "a finished run is needed and the folder has no record",
    "new pack": "python -m ercfusion.extract made a pack",
    "imported corpus": "python -m ercfusion.extract import= made a corpus",
    "stale pack": "data.packs names a recipe whose pack was made from other recordings",
    "missing pack": "data.packs names a recipe whose pack has not been made",
    "other release": "the files of a corpus are not those of its release",
    "recipes": "a corpus comes without the features that are asked for",
    "no recorded run": "python -m ercfusion.verify finds nothing to compare with",
    "table not up to date": "python -m ercfusion.reproduce --check finds a fault",
    "table": "the page of a table says how it was made",
    "row of a table": "the page of a table says how to do one run of it",
    "best settings": "best.yaml says how it is used",
}
"""Where a command is printed, and when."""


def command(place: str, module: str, *words: str, settings: Mapping[str, object] | None = None) -> str:
    """A command line that can be pasted into a shell.

    Args:
        place: A key of :data:`PLACES`.
        module: The command's name, ``train``.
        words: Paths, flags, and settings as they were typed.
        settings: Settings by key, which follow the words.
    """
    assert place in PLACES, place
    settings = settings or {}
    typed = [*words, *(literal_text(key, value) for key, value in settings.items())]
    return " ".join([f"python -m ercfusion.{module}", *map(shlex.quote, typed)])


def resume_command(place: str, module: str, folder: Path) -> str:
    """The command that goes on with the run or sweep in a folder; it names the modules that the folder's settings name.

    Args:
        place, module: See :func:`command`.
        folder: With a ``config.json``; one that cannot be read names no modules.
    """
    try:
        found = read_json(folder / "config.json")
    except ErcfusionError:
        found = None
    names = found.get("imports") if isinstance(found, dict) else None
    return command(place, module, literal_text("resume", str(folder)), *naming(names))


def naming(names: object) -> list[str]:
    """The argument that names modules, as ``imports=[a,b.c]``; none if there are none, or if one is no such name."""
    if not isinstance(names, list) or not names:
        return []
    known = all(isinstance(name, str) and all(map(str.isidentifier, name.split("."))) for name in names)
    return [f"imports=[{','.join(names)}]"] if known else []
