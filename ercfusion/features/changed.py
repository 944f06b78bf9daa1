"""Whether the recordings of a pack were changed since its features were extracted, and what to do then."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion._core.errors import CorpusNotFoundError, PackError
from ercfusion.config.hints import command
from ercfusion.data.corpus import Corpus, Finding
from ercfusion.data.recordings import State, compare_all, memory_of, read_recordings
from ercfusion.features.recipe import recipe_names

logger = logging.getLogger("ercfusion")


def changed_recordings(folder: Path, manifest: Mapping[str, Any], corpus: Corpus, place: str) -> Finding | None:
    """Compare the recordings of a pack, as far as they are on this machine, with those that it was made from.

    Args:
        folder, manifest: The pack.
        corpus: Where its recordings would be.
        place: How the user named the pack, for the message.

    Returns:
        A fault if values were made from other recordings, a note if only recordings that gave none have changed; None
        if all are the same.
    """
    listed = read_recordings(folder, manifest)
    if not listed:
        return None
    try:
        root = corpus.root()
    except CorpusNotFoundError:
        return None
    states = compare_all(((source, root / name) for name, source in listed.items()), memory=memory_of(manifest, root))
    changed = sorted(source for source, (state, _) in states.items() if state is State.CHANGED)
    if not changed:
        return None
    topic, again = f"pack {manifest['modality']}", _again(corpus, place)
    used = [source for source in changed if source.used]
    if not used:
        text = (
            f"{place}: {len(changed)} recordings from which no features could be made are other files now (first: "
            f"{changed[0].name}). To have them, {again}"
        )
        return Finding("note", topic, text)
    text = (
        f"{place}: {len(used)} of {len(listed)} recordings were changed after their features were extracted (first: "
        f"{used[0].name}), so that the pack {folder} holds values of other recordings. Restore them, or {again}"
    )
    return Finding("fault", topic, text)


def check_recordings(folder: Path, manifest: Mapping[str, Any], corpus: Corpus, place: str, *, refuse: bool) -> None:
    """Refuse a pack of other recordings, or warn; see :func:`changed_recordings`.

    Raises:
        PackError: values were made from other recordings, and ``refuse``.
    """
    found = changed_recordings(folder, manifest, corpus, place)
    if found is not None and found.level == "fault" and refuse:
        raise PackError(found.text)
    if found is not None:
        logger.warning("%s", found.text)


def _again(corpus: Corpus, place: str) -> str:
    name = place.partition("=")[2]
    if name not in recipe_names():
        return "give the command that made the pack once more: it extracts them again."
    where = {"data.raw": str(corpus.raw)} if corpus.raw else {}
    words = (f"data={corpus.name}", f"features={name}")
    return f"extract them again: {command('stale pack', 'extract', *words, settings=where)}"
