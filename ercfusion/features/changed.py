"""Detect recordings changed after extraction."""

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
    """Compare the recordings on this machine with those of a pack, named ``place`` in the message.

    Returns:
        A fault if values are outdated, a note if only recordings without features changed, or None.
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
            f"{place}: {len(changed)} recordings without features were replaced since (first: {changed[0].name}). To "
            f"include them, {again}"
        )
        return Finding("note", topic, text)
    text = (
        f"{place}: {len(used)} of {len(listed)} recordings changed after extraction (first: {used[0].name}), so the "
        f"values in {folder} are outdated. Restore the recordings, or {again}"
    )
    return Finding("fault", topic, text)


def check_recordings(folder: Path, manifest: Mapping[str, Any], corpus: Corpus, place: str, *, refuse: bool) -> None:
    """Refuse an outdated pack with :class:`PackError`, or warn."""
    finding = changed_recordings(folder, manifest, corpus, place)
    if finding is not None and finding.level == "fault" and refuse:
        raise PackError(finding.text)
    if finding is not None:
        logger.warning("%s", finding.text)


def _again(corpus: Corpus, place: str) -> str:
    name = place.partition("=")[2]
    if name not in recipe_names():
        return "run the command that made the pack again, which extracts only these."
    where = {"data.raw": str(corpus.raw)} if corpus.raw else {}
    words = (f"data={corpus.name}", f"features={name}")
    return f"extract them again: {command('stale pack', 'extract', *words, settings=where)}"
