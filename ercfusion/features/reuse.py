"""Reuse of results from an existing pack or a journal, if recording and tool version are the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ercfusion._core.errors import PackError
from ercfusion.data.corpus import Corpus
from ercfusion.data.features import Key
from ercfusion.data.pack import read_manifest, read_pack
from ercfusion.data.recordings import (
    Source,
    State,
    compare_all,
    memory_of,
    read_recordings,
    recorded_name,
)
from ercfusion.features.journal import Journal, Result
from ercfusion.features.work import WorkList

logger = logging.getLogger("ercfusion")

# Number of changed recordings that a message names.
_NAMED = 3


@dataclass
class ExistingPack:
    """A pack of the requested corpus, tool and settings.

    Args:
        folder, manifest: The pack.
        states: State and record of each recording known to the pack, by item.
    """

    folder: Path
    manifest: Mapping[str, Any]
    states: dict[int, tuple[State, Source]]

    def changed(self, work: WorkList) -> list[int]:
        """Items whose recordings differ from the pack's."""
        unknown = State.CHANGED, None
        return [
            number
            for number, item in enumerate(work.items)
            if not isinstance(item, str) and self.states.get(number, unknown)[0] is State.CHANGED
        ]

    def remarks(self, name: str) -> dict[Key, str]:
        """The pack's ``missing`` or ``notes``, by turn."""
        return {(note["conversation"], note["turn"]): note["reason"] for note in self.manifest.get(name, [])}


def existing_pack(
    target: Path, corpus: Corpus, identity: Mapping[str, Any], work: WorkList, extractor: Any, *, doubt: bool
) -> ExistingPack:
    """The pack in a folder, with its recordings compared (by content if ``doubt``).

    Raises:
        PackError: another corpus, tool or settings.
    """
    manifest = read_manifest(target)
    if manifest["corpus"] != corpus.name or manifest["corpus_fingerprint"] not in corpus.pack_fingerprints():
        raise PackError(
            f"{target}: holds a pack of another version of {manifest['corpus']!r}. Choose another folder with out=, or "
            "replace it with --fresh."
        )
    origin = {"tool": manifest["tool"], **manifest["settings"]}
    for name, value in identity.items():
        if origin.get(name) != value:
            raise PackError(
                f"{target}: holds a pack with {name} {str(origin.get(name))[:60]}, not {str(value)[:60]}. Choose "
                "another folder with out=, or replace it with --fresh."
            )
    listed = read_recordings(target, manifest)
    pack = ExistingPack(target, manifest, {})
    paths = source_paths(work, extractor)
    if listed is not None:
        known = {number: listed.get(recorded_name(path, work.root)) for number, path in paths.items()}
        pairs = {number: source for number, source in known.items() if source is not None}
        memory = memory_of(manifest, work.root) if work.root is not None else None
        states = compare_all(((source, paths[number]) for number, source in pairs.items()), memory=memory, doubt=doubt)
        pack.states = {number: states[source] for number, source in pairs.items()}
    return pack


def announce(pack: ExistingPack, work: WorkList, extractor: Any) -> None:
    """Log another tool version and recordings removed since."""
    version = pack.manifest["tool_version"]
    if version != extractor.tool_version:
        logger.info(
            "%s was made with %s %s; %s is installed. Use --fresh to make it again",
            pack.folder,
            extractor.tool,
            version,
            extractor.tool_version,
        )
    gone = [source.name for state, source in pack.states.values() if state is State.GONE]
    if gone:
        logger.warning(
            "%d of %d recordings no longer exist (first: %s); the pack keeps their features. Use --fresh to make it "
            "without them",
            len(set(gone)),
            len({source.name for _, source in pack.states.values()}),
            gone[0],
        )


def announce_changed(pack: ExistingPack, changed: Sequence[int], work: WorkList, extractor: Any) -> None:
    """Log the recordings extracted again."""
    if not changed:
        return
    paths = source_paths(work, extractor)
    names = list(dict.fromkeys(recorded_name(paths[number], work.root) for number in changed))
    logger.warning(
        "%s: %d recordings have changed since: %s. They are extracted again; the pack stays until all are done",
        pack.folder,
        len(names),
        ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else ""),
    )


def take_over(pack: ExistingPack, journal: Journal, work: WorkList, extractor: Any, *, retry: bool) -> None:
    """Copy the results of unchanged recordings from a pack into a journal; with ``retry``, only those with values.

    Raises:
        PackError: made by another version of the tool, or replaced in the meantime.
    """
    version = pack.manifest["tool_version"]
    if version != extractor.tool_version:
        raise PackError(
            f"{pack.folder}: made with {extractor.tool} {version}, but {extractor.tool_version} is installed, and one "
            "pack cannot mix them. Install that version, or make the whole pack again with --fresh."
        )
    if read_manifest(pack.folder)["files"] != pack.manifest["files"]:
        raise PackError(f"{pack.folder}: another process replaced the pack meanwhile. Run the same command again.")
    table = read_pack(pack.folder)
    notes, missing = _own_notes(pack.manifest), pack.remarks("missing")
    for key, owner, row in zip(work.keys, work.owners, table.rows(work.keys), strict=True):
        if owner in journal.records:
            # Copied by an extraction that was stopped.
            if retry and journal.records[owner].position < 0 and journal.records[owner].reason == missing.get(key):
                del journal.records[owner]
            continue
        source = None
        if not isinstance(work.items[owner], str):
            state, source = pack.states.get(owner, (State.CHANGED, None))
            if state is State.CHANGED:
                continue
        if row >= 0:
            first, last = (row, row + 1) if table.offsets is None else table.offsets[row : row + 2]
            journal.append(owner, Result(np.asarray(table.values[first:last]), notes.get(key, ""), source=source))
        elif not retry and key in missing:
            journal.append(owner, Result(None, missing[key], source=source))


def forget_changed(journal: Journal, work: WorkList, extractor: Any, *, finished: bool) -> int:
    """Drop results of changed recordings, and return their number.

    With ``finished``, a recording removed since keeps its features. Remaining records get the present times.
    """
    paths = source_paths(work, extractor)
    pairs = {number: (record.source, paths[number]) for number, record in journal.records.items() if number in paths}
    states = compare_all((source, path) for source, path in pairs.values() if source is not None)
    dropped = []
    for number, (before, _) in pairs.items():
        state, source = (State.CHANGED, None) if before is None else states[before]
        if state is State.SAME or (finished and state is State.GONE):
            journal.records[number] = replace(journal.records[number], source=source)
        else:
            dropped.append(number)
            del journal.records[number]
    if dropped:
        logger.warning(
            "%d recordings changed during extraction (first: %s) and are extracted again",
            len(dropped),
            recorded_name(paths[dropped[0]], work.root),
        )
    return len(dropped)


def source_paths(work: WorkList, extractor: Any) -> dict[int, Path]:
    """The file read for each item that is not a text: the recording, or another tool's table."""
    items = {number: item for number, item in enumerate(work.items) if not isinstance(item, str)}
    if hasattr(extractor, "source"):
        return {number: extractor.source(item) for number, item in items.items()}
    return {number: item.path for number, item in items.items()}


def _own_notes(manifest: Mapping[str, Any]) -> dict[Key, str]:
    # Without the remark comparing a recording with the others: it is computed again.
    reasons = {}
    for note in manifest.get("notes", []):
        remark = note.get("remark", "")
        own = note["reason"].removesuffix(remark).removesuffix("; ") if remark else note["reason"]
        reasons[note["conversation"], note["turn"]] = own
    return reasons
