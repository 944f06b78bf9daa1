"""Generated twins: small made-up corpora in the layouts of the official releases.

They let every reader be tested, and every command be run from end to end, where the real corpora are not at hand. All
texts and names are invented here. A word of each sentence depends on the label, and so do the numbers of feature files
and the pitch of recordings, so that a model can learn something. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from ercfusion.testing.twins.text import SIZES, write_emorynlp, write_emotionlines, write_meld, write_mosi

_PLACES: Mapping[str, str] = {
    "meld": "text:write_meld",
    "emorynlp": "text:write_emorynlp",
    "mosi": "text:write_mosi",
    "emotionlines": "text:write_emotionlines",
    "iemocap": "iemocap:write_iemocap",
    "mosei": "sdk:write_mosei",
    "mosi_sdk": "sdk:write_mosi_sdk",
    "m3ed": "m3ed:write_m3ed",
    "dailydialog": "dailydialog:write_dailydialog",
    "emodb": "speech:write_emodb",
    "ravdess": "speech:write_ravdess",
    "custom": "custom:write_custom",
}

__all__ = ["SIZES", "twin_names", "write_emorynlp", "write_emotionlines", "write_meld", "write_mosi", "write_twin"]


def twin_names() -> list[str]:
    """The corpora that have a twin."""
    return list(_PLACES)


def write_twin(name: str, folder: str | Path, seed: int = 0) -> Path:
    """The twin of the corpus called ``name``, written into ``folder`` (made if needed); returns the folder.

    Raises:
        KeyError: there is no twin of that name.
    """
    module, _, function = _PLACES[name].partition(":")
    # Imported when needed: some twins write files of formats that need an extra.
    write: Callable[[str | Path, int], Path] = getattr(import_module(f"{__name__}.{module}"), function)
    write(folder, seed)
    return Path(folder)
