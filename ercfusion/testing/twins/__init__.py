"""Twins: small generated corpora in the layouts of the official releases, for tests without the real corpora.

All texts and names are invented. Sentences, numbers of feature files and the pitch of recordings depend on the label,
so that a model can learn. The same seed gives the same bytes.
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
    "semeval2025": "semeval2025:write_semeval2025",
    "custom": "custom:write_custom",
}

__all__ = ["SIZES", "twin_names", "write_emorynlp", "write_emotionlines", "write_meld", "write_mosi", "write_twin"]


def twin_names() -> list[str]:
    """Corpora with a twin."""
    return list(_PLACES)


def write_twin(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the twin of the corpus ``name`` into ``folder`` (created if needed), and return the folder.

    Raises:
        KeyError: no twin of this name.
    """
    module, _, function = _PLACES[name].partition(":")
    # Imported here because some twins write formats of an extra.
    write: Callable[[str | Path, int], Path] = getattr(import_module(f"{__name__}.{module}"), function)
    write(folder, seed)
    return Path(folder)
