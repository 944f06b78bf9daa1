"""Commands that messages tell a user to type, written so that a shell and our parser read them as they are meant.

Every message with a command gets it here, from a named place: the tests run the command of each.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ercfusion.overrides import literal_text

PLACES: Mapping[str, str] = {
    "interrupted run": "python -m ercfusion.train was interrupted, or stopped by a failure after an epoch",
    "interrupted sweep": "python -m ercfusion.sweep was interrupted",
    "occupied run": "run= names the folder of a run",
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
