"""What an extraction takes over: from a pack that exists, and from its own journal after it was stopped.

Values are taken over only while their recording is the one that they were made from, and only from the same version of
the tool.
"""

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

# Changed recordings named in a message.
_NAMED = 3


@dataclass
class ExistingPack:
    """A pack of the same corpus, tool and settings as are asked for.

    Args:
        folder, manifest: The pack.
        states: For each item that is a recording: how it is to the one that the pack was made from, and its record.
            An item without an entry is not known to the pack.
    """

    folder: Path
    manifest: Mapping[str, Any]
    states: dict[int, tuple[State, Source]]

    def changed(self, work: WorkList) -> list[int]:
        """The items whose recordings are other files than those that the pack was made from."""
        unknown = State.CHANGED, None
        return [
            number
            for number, item in enumerate(work.items)
            if not isinstance(item, str) and self.states.get(number, unknown)[0] is State.CHANGED
        ]

    def remarks(self, name: str) -> dict[Key, str]:
        """The remarks ``missing`` or ``notes`` by turn."""
        return {(entry["conversation"], entry["turn"]): entry["reason"] for entry in self.manifest.get(name, [])}


def existing_pack(
    target: Path, corpus: Corpus, identity: Mapping[str, Any], work: WorkList, extractor: Any, *, doubt: bool
) -> ExistingPack:
    """The pack in a folder, with its recordings compared.

    Args:
        target: Its folder.
        corpus, identity: What it must have been made from.
        work, extractor: The recordings of now.
        doubt: Compare the content of all recordings.

    Raises:
        PackError: it was made from something else, or with other settings.
    """
    manifest = read_manifest(target)
    if manifest["corpus"] != corpus.name or manifest["corpus_fingerprint"] not in corpus.pack_fingerprints():
        raise PackError(
            f"{target} holds a pack of {manifest['corpus']!r} in another version. Choose another folder with out=, or "
            "replace it with --fresh."
        )
    made = {"tool": manifest["tool"], **manifest["settings"]}
    for name, value in identity.items():
        if made.get(name) != value:
            raise PackError(
                f"{target} holds a pack with other {name}: {str(made.get(name))[:60]}, asked for is {str(value)[:60]}. "
                "Choose another folder with out=, or replace it with --fresh."
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
    """Log what a user should know of a pack that is left as it is."""
    version = pack.manifest["tool_version"]
    if version != extractor.tool_version:
        logger.info(
            "%s was made with %s %s; %s is installed here: --fresh makes the pack again",
            pack.folder,
            extractor.tool,
            version,
            extractor.tool_version,
        )
    gone = [source.name for state, source in pack.states.values() if state is State.GONE]
    if gone:
        logger.warning(
            "%d of %d recordings are not there any more (first: %s); the pack keeps their features. --fresh makes "
            "it without them",
            len(set(gone)),
            len({source.name for _, source in pack.states.values()}),
            gone[0],
        )


def announce_changed(pack: ExistingPack, changed: Sequence[int], work: WorkList, extractor: Any) -> None:
    """Log which recordings have changed, and that they are extracted again."""
    if not changed:
        return
    paths = source_paths(work, extractor)
    names = list(dict.fromkeys(recorded_name(paths[number], work.root) for number in changed))
    logger.warning(
        "%s: %d recordings have changed since the pack was made: %s. They are extracted again; the pack stays as it is "
        "until all are done",
        pack.folder,
        len(names),
        ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else ""),
    )


def take_over(pack: ExistingPack, journal: Journal, work: WorkList, extractor: Any, *, retry: bool) -> None:
    """Write the results of a pack into a journal, but for those of other recordings.

    Args:
        pack: At hand.
        journal: Its own results come first.
        work, extractor: Of the extraction.
        retry: Leave out what is missing in the pack, too.

    Raises:
        PackError: the pack was made by another version of the tool, or was replaced after it was looked at.
    """
    version = pack.manifest["tool_version"]
    if version != extractor.tool_version:
        raise PackError(
            f"{pack.folder} was made with {extractor.tool} {version}, and {extractor.tool_version} is installed here: "
            "values of both are not mixed in one pack. Install that version, or make the whole pack again with "
            "--fresh."
        )
    if read_manifest(pack.folder)["files"] != pack.manifest["files"]:
        raise PackError(f"{pack.folder} was replaced by another process meanwhile. Give the command again.")
    table = read_pack(pack.folder)
    notes, missing = _own_notes(pack.manifest), pack.remarks("missing")
    for key, owner, row in zip(work.keys, work.owners, table.rows(work.keys), strict=True):
        if owner in journal.entries:
            # An extraction that was stopped may have taken it over.
            if retry and journal.entries[owner].position < 0 and journal.entries[owner].reason == missing.get(key):
                del journal.entries[owner]
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
    """Drop the results in a journal whose recording is not the one that they were made from.

    Args:
        journal: Its other entries get the times of now.
        work, extractor: Of the extraction.
        finished: All is extracted: a recording that was removed since then keeps its features.

    Returns:
        How many were dropped.
    """
    paths = source_paths(work, extractor)
    pairs = {number: (entry.source, paths[number]) for number, entry in journal.entries.items() if number in paths}
    states = compare_all((source, path) for source, path in pairs.values() if source is not None)
    dropped = []
    for number, (before, _) in pairs.items():
        state, source = (State.CHANGED, None) if before is None else states[before]
        if state is State.SAME or (finished and state is State.GONE):
            journal.entries[number] = replace(journal.entries[number], source=source)
        else:
            dropped.append(number)
            del journal.entries[number]
    if dropped:
        logger.warning(
            "%d recordings have changed while they were extracted (first: %s): they are extracted again",
            len(dropped),
            recorded_name(paths[dropped[0]], work.root),
        )
    return len(dropped)


def source_paths(work: WorkList, extractor: Any) -> dict[int, Path]:
    """The file that each item is read from: the recording, or what another tool wrote of it; texts have none."""
    items = {number: item for number, item in enumerate(work.items) if not isinstance(item, str)}
    if hasattr(extractor, "source"):
        return {number: extractor.source(item) for number, item in items.items()}
    return {number: item.path for number, item in items.items()}


def _own_notes(manifest: Mapping[str, Any]) -> dict[Key, str]:
    # Without the part that compares a recording with the others of the pack: that is found out again.
    found = {}
    for entry in manifest.get("notes", []):
        remark = entry.get("remark", "")
        own = entry["reason"].removesuffix(remark).removesuffix("; ") if remark else entry["reason"]
        found[entry["conversation"], entry["turn"]] = own
    return found
