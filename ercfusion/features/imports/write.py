"""Write a foreign pickle as feature packs."""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, PackError
from ercfusion._core.files import StrPath, atomic_folder, atomic_write, sha256_of
from ercfusion._core.version import __version__
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpus import SPLITS, Corpus, Protocol
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import write_pack
from ercfusion.features.imports._checks import Imported
from ercfusion.features.imports.dialogues import FAMILIES, meld_place, scene_name
from ercfusion.features.imports.layouts import ORIGINS, read_layout
from ercfusion.features.imports.unpickle import safe_load

CUSTOM = "custom"
TABLE, SETTINGS, PACKS = "utterances.csv", "corpus.yaml", "packs"
MOST_DIFFERENT = 0.01
"""Share of labels, or of speakers, that may differ from the release; more means another version or order."""
_TOLERANCE = 0.01

logger = logging.getLogger(__name__)


def import_pickle(
    path: StrPath,
    layout: str | None,
    out: StrPath,
    *,
    corpus: Corpus | None = None,
    protocol: Protocol | str | None = None,
) -> Path:
    """Write the features of a foreign pickle as packs, and return their folder.

    Without ``corpus``, ``out`` becomes a corpus (``data=custom data.raw=OUT``) with the pickle's texts, speakers,
    splits and labels. With it, ``out`` has only packs for the official release, ``OUT/packs/MODALITY``.

    Args:
        path: The pickle; see :func:`~ercfusion.features.imports.unpickle.safe_load`.
        layout: A name of :data:`~ercfusion.features.imports.layouts.LAYOUTS`.
        out: A new or empty folder, which appears complete or not at all.
        corpus: The official release; every utterance must exist there.
        protocol: Its protocol, for comparing labels; by default the first.

    Raises:
        ConfigError: unknown layout, or a layout of another corpus.
        UnpickleError: a refused name, or damage.
        LayoutError: the content does not fit the layout.
        PackError: pickle and release disagree, a value is NaN or infinite, or ``out`` cannot be written.
        CorpusNotFoundError, CorpusFormatError: the release is missing, or not as released.
    """
    path, out = Path(path), Path(out)
    if corpus is None and protocol is not None:
        raise ConfigError("protocol: needs a corpus. Add the corpus, or omit the protocol.")
    imported = read_layout(safe_load(path), layout)
    sources = {path.name: sha256_of(path)}
    try:
        with atomic_folder(out) as building:
            if corpus is None:
                _write_corpus(building, imported)
                own = open_corpus(CUSTOM, building)
                _check_readable(own, imported)
                _write_packs(building, imported, imported.tables, own, sources, {})
            else:
                chosen = protocol if isinstance(protocol, Protocol) else corpus.protocol(protocol)
                keys, report = _match(imported, corpus, chosen)
                tables = {name: _renamed(rows, keys) for name, rows in imported.tables.items()}
                _write_packs(building, imported, tables, corpus, sources, {"protocol": chosen.id, **report})
    except FileExistsError as error:
        raise PackError(f"{out}: exists and is not empty. Choose another folder.") from error
    except OSError as error:
        raise PackError(f"{out}: cannot be written ({error}). Choose another folder, or free space.") from error
    for note in imported.notes:
        logger.info("%s: %s", path.name, note)
    return out


def _write_packs(
    folder: Path,
    imported: Imported,
    tables: Mapping[str, FeatureTable],
    corpus: Corpus,
    sources: Mapping[str, str],
    report: Mapping[str, Any],
) -> None:
    settings = {
        "layout": imported.layout,
        "origin": ORIGINS[imported.layout],
        "citation": imported.citation,
        "notes": list(imported.notes),
        **report,
    }
    fingerprint = corpus.source_fingerprint()
    for modality, table in tables.items():
        write_pack(
            folder / PACKS / modality,
            table,
            tool="import",
            tool_version=__version__,
            settings=settings,
            corpus=corpus.name,
            fingerprint=fingerprint,
            licence=imported.licence,
            sources=sources,
        )


# A corpus of its own


def _write_corpus(folder: Path, imported: Imported) -> None:
    import yaml

    settings = {
        "title": imported.title,
        "licence": imported.licence,
        "citation": imported.citation,
        "targets": {task.name: _target_settings(task) for task in imported.tasks},
    }
    with atomic_write(folder / SETTINGS) as stream:
        yaml.safe_dump(settings, stream, sort_keys=False, allow_unicode=True, width=10_000)
    with atomic_write(folder / TABLE) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        columns = [column for task in imported.tasks for column in task.rules.columns(task.name, task.output_names)]
        writer.writerow(["conversation", "turn", "speaker", "text", "split", *columns])
        for split in SPLITS:
            for conversation in imported.splits[split]:
                for turn in conversation.turns:
                    cells = [cell for task in imported.tasks for cell in _cells(turn.targets.get(task.name), task)]
                    writer.writerow([conversation.id, turn.id, turn.speaker, turn.text or "", split, *cells])


def _target_settings(task: TaskSpec) -> dict[str, Any]:
    settings: dict[str, Any] = {"kind": task.kind, "metric": task.metric}
    if task.schema is None:
        return {**settings, "low": task.low, "high": task.high, "dimensions": list(task.dimensions)}
    settings["labels"] = list(task.schema.labels)
    return settings if task.schema.neutral is None else {**settings, "neutral": task.schema.neutral}


def _cells(target: Target | None, task: TaskSpec) -> list[str]:
    if target is None or target.value is None:
        return [""] * len(task.rules.columns(task.name, task.output_names))
    return task.rules.write(target.value, task)


def _check_readable(corpus: Corpus, imported: Imported) -> None:
    # Read as training will read it: a difference is a defect of this module.
    for task in imported.tasks:
        splits = corpus.conversations(corpus.protocol(task.name))
        for split in SPLITS:
            written = [(turn.speaker, turn.targets.get(task.name)) for turn in _turns(imported.splits[split])]
            read = [(turn.speaker, turn.targets.get(task.name)) for turn in _turns(splits[split])]
            if written != read:
                raise PackError(
                    f"layout {imported.layout!r}: the written corpus reads differently. Report this as a defect."
                )


def _turns(conversations: Sequence[Conversation]) -> list[Turn]:
    return [turn for conversation in conversations for turn in conversation.turns]


# For a release


@dataclass
class _Comparison:
    what: str
    compared: int = 0
    differ: int = 0
    first: str = ""

    def add(self, same: bool, place: str) -> None:
        self.compared += 1
        if not same:
            self.differ += 1
            self.first = self.first or place

    def check(self, corpus: Corpus, protocol: Protocol) -> dict[str, int]:
        if self.differ > MOST_DIFFERENT * self.compared:
            raise PackError(
                f"{self.differ} of {self.compared} {self.what} differ between the pickle and {corpus.card.title} under "
                f"{protocol.id} (first: {self.first}). Choose another protocol ({', '.join(corpus.protocols)}), or "
                f"omit data=."
            )
        return {"compared": self.compared, "differ": self.differ}


def _match(imported: Imported, corpus: Corpus, protocol: Protocol) -> tuple[dict[Key, Key], dict[str, Any]]:
    # The release's key for every key of the pickle, and a report of their agreement.
    if imported.corpus and imported.corpus != corpus.name:
        raise ConfigError(
            f"layout={imported.layout}: of the corpus {imported.corpus}, not {corpus.name}. Use data={imported.corpus}."
        )
    released = {
        conversation.id: (split, conversation)
        for split, conversations in corpus.conversations(protocol).items()
        for conversation in conversations
    }
    keys: dict[Key, Key] = {}
    labels, speakers = _Comparison("labels"), _Comparison("speakers")
    moved = 0
    for split, conversations in imported.splits.items():
        for conversation in conversations:
            name = _released_name(imported, conversation.id, released)
            if name not in released:
                raise PackError(
                    f"conversation {conversation.id!r} of the pickle: no {name!r} in {corpus.card.title} (first there: "
                    f"{next(iter(released), '')!r}). Omit data= to import without a corpus."
                )
            released_split, release = released[name]
            moved += released_split != split
            pairs = _pairs(imported, conversation, release, protocol)
            keys.update({(conversation.id, own.id): (name, other.id) for own, other in pairs})
            _compare(imported, conversation.id, pairs, protocol, labels, speakers)
    if not labels.compared:
        raise PackError(
            f"no label to compare: the pickle has {', '.join(task.name for task in imported.tasks)}, {protocol.id} has "
            f"{protocol.task.name}. Choose another protocol ({', '.join(corpus.protocols)})."
        )
    total = sum(len(conversation.turns) for _, conversation in released.values())
    return keys, {
        "labels": labels.check(corpus, protocol),
        "speakers": speakers.check(corpus, protocol),
        "conversations_in_another_split": moved,
        "utterances_without_features": total - len(keys),
    }


def _released_name(imported: Imported, name: str, released: Collection[str]) -> str:
    if imported.corpus == "emorynlp" and name not in released and (scene := scene_name(name)):
        # The pickle's ids lack the split.
        return next((full for full in released if full.partition("/")[2] == scene), name)
    if imported.layout in FAMILIES and FAMILIES[imported.layout].meld:
        place = meld_place(name)
        return name if place is None else f"{place[0]}/{place[1]}"
    return name


def _pairs(imported: Imported, own: Conversation, other: Conversation, protocol: Protocol) -> list[tuple[Turn, Turn]]:
    if not imported.positions:
        turns = {turn.id: turn for turn in other.turns}
        for turn in own.turns:
            if turn.id not in turns:
                raise PackError(
                    f"conversation {own.id!r}, utterance {turn.id!r} of the pickle: not in {other.id!r} of the release "
                    f"({', '.join(list(turns)[:3])}, ...). Omit data= to import without a corpus."
                )
        return [(turn, turns[turn.id]) for turn in own.turns]
    # Without ids, turns are matched by order. Pickles omit turns without a label of their set, so the labelled turns
    # are tried next.
    task = protocol.task.name
    labelled = [turn for turn in other.turns if task in turn.targets and turn.targets[task].valid]
    for candidates in (list(other.turns), labelled):
        if len(candidates) == len(own.turns):
            return list(zip(own.turns, candidates, strict=True))
    raise PackError(
        f"conversation {own.id!r}: {len(own.turns)} utterances without ids in the pickle, {len(other.turns)} in the "
        f"release, {len(labelled)} of them labelled under {protocol.id}. Choose the file's protocol, or import without "
        f"a corpus."
    )


def _compare(
    imported: Imported,
    conversation: str,
    pairs: Sequence[tuple[Turn, Turn]],
    protocol: Protocol,
    labels: _Comparison,
    speakers: _Comparison,
) -> None:
    own_names = [own.speaker for own, _ in pairs]
    other_names = [other.speaker for _, other in pairs]
    numbered = zip(_numbers(own_names), _numbers(other_names), strict=True)
    for (own, other), (first, second) in zip(pairs, numbered, strict=True):
        place = f"conversation {conversation!r}, utterance {own.id!r}"
        speakers.add(first == second, f"{place}: {own.speaker!r} and {other.speaker!r}")
        name = protocol.task.name
        imported_target, target = own.targets.get(name), other.targets.get(name)
        if imported_target is not None and target is not None and imported_target.valid and target.valid:
            labels.add(
                _same(imported_target.value, target.value),
                f"{place}: {_words(imported_target.value)} and {_words(target.value)}",
            )


def _numbers(names: Sequence[str]) -> list[int]:
    # Names differ between pickle and release; the order of first appearance does not.
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float | int) and isinstance(second, float | int):
        return abs(first - second) <= _TOLERANCE
    return bool(first == second)


def _words(value: Any) -> str:
    return "|".join(sorted(value)) or "-" if isinstance(value, frozenset) else str(value)


def _renamed(table: FeatureTable, keys: Mapping[Key, Key]) -> FeatureTable:
    return FeatureTable(table.modality, [keys[key] for key in table.keys], table.values, table.offsets)
