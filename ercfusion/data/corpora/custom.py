"""A user's own corpus: a table of utterances, settings, recordings and feature packs in one folder.

::

    DIR/utterances.csv       one row per utterance
    DIR/corpus.yaml          targets, title, licence (optional)
    DIR/packs/MODALITY/      feature packs (optional)

The page docs/own-corpus.md describes every column and key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, PackError
from ercfusion.config.hints import command
from ercfusion.config.options import Range
from ercfusion.data.check_media import some
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpora._custom import RESERVED, TABLE, Settings, read_settings
from ercfusion.data.corpora._custom_table import (
    RECORDINGS,
    Options,
    Table,
    assign_splits,
    check_table_exists,
    check_times,
    grouped,
    note_recordings,
    note_spellings,
    note_unread,
    other_names,
    read_utterances,
    recording,
    time_of,
)
from ercfusion.data.corpora._custom_targets import TargetReader, check_similar_columns, target_readers
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.tabular import Row
from ercfusion.data.vote_targets import vote_findings

SETTINGS = "corpus.yaml"
PACKS = "packs"
_COLUMNS: Mapping[str, tuple[str, ...]] = {"audio": ("audio", "video"), "visual": ("video",)}
UNKNOWN_SPEAKER = "unknown"
_MODALITY_ORDER = ("text", "audio", "visual")

T = TypeVar("T")


class _OfInstance(Generic[T]):
    # A class attribute with a general value; every instance computes its own from its files.
    def __init__(self, of_class: T, compute: Callable[[CustomCorpus], T]) -> None:
        self._of_class = of_class
        self._compute = compute

    def __get__(self, instance: CustomCorpus | None, owner: type[CustomCorpus]) -> T:
        return self._of_class if instance is None else self._compute(instance)


_CARD = CorpusCard(
    name="custom",
    title="A corpus of your own",
    licence="Yours to state: the key 'licence' of corpus.yaml.",
    obtain="Write utterances.csv with the columns conversation and turn, and further columns for what is known.",
    citation="None: set the key 'citation' of corpus.yaml.",
    layout=(TABLE, f"{SETTINGS} (optional)", f"{PACKS}/MODALITY/ (optional)"),
)


_NO_PROTOCOLS: Mapping[str, Protocol] = {}


class CustomCorpus(Corpus):
    """Reader of ``utterances.csv`` and, if it exists, ``corpus.yaml``.

    ``card`` and ``protocols`` depend on the folder: one protocol ``custom/<target>`` per target; the class has a
    general card and no protocols. The files are read once, packs are searched every time.

    Args:
        raw: The folder.
        split_seed: Seed of drawn splits: without a column ``split`` 80 % train, 10 % dev and 10 % test by conversation
            (at least one each, from three on); dev is a tenth of train if the column names none. None is 0.
        encoding: Encoding of the table, for example ``cp1252``; None is UTF-8.
        missing: Words for a missing value, in addition to ``NA``, ``NaN``, ``NULL`` and the like.
        order: Order of turns: by a column, or of the rows (``file``). None uses the numbers in ``turn``, or ``start``
            if ids are not numbers.

    Raises:
        ConfigError: unknown encoding.
    """

    def __init__(
        self,
        raw: str | os.PathLike[str] | None = None,
        *,
        split_seed: Annotated[int, Range(-(1 << 63), (1 << 63) - 1)] | None = None,
        encoding: str | None = None,
        missing: Sequence[str] = (),
        order: Literal["turn", "start", "file"] | None = None,
    ) -> None:
        super().__init__(raw)
        self._options = Options(split_seed, encoding, tuple(missing), order)
        self._card: CorpusCard | None = None

    def root(self) -> Path:
        """The folder; see :meth:`Corpus.root`."""
        # The folder's own card is not known yet; use the general one.
        own, self._card = self._card, _CARD
        try:
            return super().root()
        finally:
            self._card = own

    def _own_card(self) -> CorpusCard:
        if self._card is None:
            try:
                values = self._settings.values
            except CorpusNotFoundError:
                return _CARD
            self._card = replace(_CARD, **{key: value for key, value in values.items() if key != "recordings"})
        return self._card

    def _own_protocols(self) -> Mapping[str, Protocol]:
        dev = self._parts[1]
        packs = list(self._packs())
        modalities = {"text"} if self._has("text") else set()
        ranks = {name: rank for rank, name in enumerate(_MODALITY_ORDER)}
        order = tuple(sorted(modalities | set(packs), key=lambda name: (ranks.get(name, len(ranks)), name)))
        protocols = {}
        for reader in self._targets:
            task = reader.task
            size = f"{task.size} labels" if task.schema else f"{task.low:g} to {task.high:g}"
            identifier = f"{_CARD.name}/{task.name}"
            description = f"{task.name}: {task.kind.replace('_', ' ')}, {size}, {task.metric}"
            others = tuple(other.task for other in self._targets if other is not reader)
            protocols[identifier] = Protocol(identifier, task, description, dev, order, others)
        return protocols

    card: ClassVar[CorpusCard] = _OfInstance(_CARD, _own_card)  # type: ignore[assignment]
    protocols: ClassVar[Mapping[str, Protocol]] = _OfInstance(_NO_PROTOCOLS, _own_protocols)  # type: ignore[assignment]

    def files(self) -> list[Path]:
        """``utterances.csv`` and, if it exists, ``corpus.yaml``."""
        settings = self.root() / SETTINGS
        return [self._utterances(), *([settings] if settings.is_file() else [])]

    def conversations(self, protocol: Protocol) -> Splits:
        """Conversations in file order within each split; every turn has every target.

        Raises:
            CorpusNotFoundError: the folder or ``utterances.csv`` is missing.
            CorpusFormatError: the files cannot be read, or contradict themselves.
            ConfigError: ``split_seed`` was given but nothing is drawn.
        """
        part = self._parts[0]
        splits: Splits = {split: [] for split in SPLITS}
        for name, rows in self._groups.items():
            turns = tuple(self._turn(row) for row in rows)
            splits[part[name]].append(Conversation(name, turns, synthetic=self.card.synthetic))
        return splits

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """The packs in ``packs/``, by the name of their folder; see :func:`~ercfusion.data.pack.read_pack`."""
        from ercfusion.data.pack import read_pack

        tables = {}
        for modality, folder in self._packs().items():
            table = read_pack(folder, corpus=self.name, fingerprint=self.pack_fingerprints())
            if table.modality != modality:
                raise PackError(f"{folder} holds the modality {table.modality!r}. Rename the folder to it.")
            tables[modality] = table
        return tables

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recording of every turn with one, from column ``video``, or for ``audio`` first from ``audio``.

        A file named by several turns is cut at their ``start`` and ``end``, unless the key ``recordings`` of
        ``corpus.yaml`` says otherwise.

        Raises:
            ConfigError: no turn names such a recording.
            CorpusFormatError: times for cutting are missing, or two turns name a file that belongs to one.
            CorpusNotFoundError: none of the files exists.
        """
        clips = self.named_clips(protocol, kind)
        paths = dict.fromkeys(clip.path for clip in clips.values())
        if not clips:
            wanted = " or ".join(map(repr, _COLUMNS[kind]))
            raise ConfigError(
                f"{self.root() / TABLE} names no {kind} recordings: no row has a path in a column {wanted}. Add paths, "
                f"or choose another modality."
            )
        if not any(path.is_file() for path in paths):
            raise CorpusNotFoundError(
                f"{self.card.title}: none of the {len(paths)} recordings named in {self.root() / TABLE} exists "
                f"(first: {next(iter(paths))}). Correct the paths (relative to the folder of {TABLE}), or copy the "
                f"files."
            )
        return clips

    def named_clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """See :meth:`clips`; files need not exist."""
        named = self._recordings(kind)
        cut = [user for users in named.values() for user in users if self._is_cut(users)]
        spans = [(row.line, time_of(row, "start"), time_of(row, "end")) for _, row, _ in cut]
        if empty := [f"line {line} ({start:g} s)" for line, start, end in spans if start is not None and start == end]:
            raise CorpusFormatError(
                f"{self.root() / TABLE}: {len(empty)} turns end when they start, and their recordings are to be cut "
                f"there: {', '.join(empty)}. Correct start and end, or remove the paths of these recordings."
            )
        clips = {}
        for path, users in named.items():
            for key, row, column in users:
                clips[key] = self._clip(path, row, column, users)
        # In file order, independent of the splits.
        keys = [(name, row.text("turn")) for name, rows in self._groups.items() for row in rows]
        return {key: clips[key] for key in keys if key in clips}

    def _recordings(self, kind: str) -> dict[Path, list[tuple[Key, Row, str]]]:
        # Files, each with the turns naming it.
        named: dict[Path, list[tuple[Key, Row, str]]] = {}
        root = self.root()
        for name, rows in self._groups.items():
            for row in rows:
                column = next((column for column in _COLUMNS[kind] if row.cells.get(column, "").strip()), None)
                if column is not None:
                    path = recording(root, row[column].strip())
                    named.setdefault(path, []).append(((name, row.text("turn")), row, column))
        return named

    def _is_cut(self, users: list[tuple[Key, Row, str]]) -> bool:
        recordings = self._settings.recordings
        return len(users) > 1 if recordings is None else recordings == "conversation"

    def source_fingerprint(self, source: str | None = None) -> str:
        """SHA-256 of ids and texts, or of ids, names of recordings and the times at which these are cut."""
        sources = [source] if source in ("text", *_COLUMNS) else ["text", *_COLUMNS]
        parts: list[list[str]] = []
        for name in sources:
            if name == "text":
                for conversation, rows in self._groups.items():
                    parts += [["text", conversation, row.text("turn"), row.cells.get("text", "")] for row in rows]
                continue
            for users in self._recordings(name).values():
                times = ("start", "end") if self._is_cut(users) else ()
                for key, row, column in users:
                    cells = [row.cells.get(time, "").strip() for time in times]
                    parts.append([name, *key, row[column].strip().replace("\\", "/"), *cells])
        return hashlib.sha256(json.dumps(["custom", sources, sorted(parts)]).encode()).hexdigest()

    def pack_fingerprints(self) -> tuple[str, ...]:
        """See :meth:`Corpus.pack_fingerprints`."""
        return (self.fingerprint(), *(self.source_fingerprint(source) for source in (None, "text", *_COLUMNS)))

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Decisions of the reader: separator, missing values, order, splits, spellings, times, paths and columns."""
        readers, parts = self._targets, self._parts  # computing these may add notes
        assert readers
        assert parts
        return list(self._table.notes)

    def missing_inputs(self, protocol: Protocol) -> Finding | None:
        """A fault without texts and recordings; a note if a pack is to be made from recordings first."""
        if protocol.modalities:
            return None
        packs = self.root() / PACKS
        for kind, columns in _COLUMNS.items():
            if any(map(self._has, columns)):
                settings = {"data.raw": str(self.root()), "features": "RECIPE", "out": str(packs / kind)}
                make = command("recordings without packs", "extract", "data=custom", settings=settings)
                text = f"{TABLE} has recordings, but no text, and {packs} has no feature pack. Make one: {make}"
                return Finding("note", "inputs", text)
        absent = [name for name in ("text", *RECORDINGS) if name not in self._header]
        parts = [f"no column{'s' * (len(absent) > 1)} {', '.join(absent)}"] if absent else []
        parts += [f"nothing in column {name}" for name in ("text", *RECORDINGS) if name not in absent]
        text = f"{TABLE}: {', '.join(parts)}; and no feature pack in {packs}"
        return Finding("fault", "inputs", text)

    def _has(self, column: str) -> bool:
        return any(row.cells.get(column, "").strip() for row in self._rows)

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Utterances labelled by rules of votes, conversations out of order of time, and folders without a pack."""
        rules = {reader.task.name: reader.rule for reader in self._targets if reader.rule}
        findings = []
        for split, conversations in self.conversations(protocol).items() if rules else ():
            findings += vote_findings(split, conversations, rules)
        back = []
        for name, rows in self._groups.items():
            starts = [start for row in rows if (start := time_of(row, "start")) is not None]
            if starts != sorted(starts):
                back.append(name)
        if back:
            text = f"conversations in which start times step back: {len(back)} ({some(back)}). Check column 'start'."
            findings.append(Finding("note", "times", text))
        packs = self.root() / PACKS
        inside = sorted(packs.iterdir()) if packs.is_dir() else []
        for folder in inside:
            if folder.is_dir() and not folder.name.startswith(".") and folder.name not in self._packs():
                text = (
                    f"{PACKS}/{folder.name} has no pack.json: it is not a feature pack. Remove it, or build the pack."
                )
                findings.append(Finding("note", "packs", text))
        return findings

    @cached_property
    def _settings(self) -> Settings:
        path = self.root() / SETTINGS
        return read_settings(path) if path.is_file() else Settings()

    @cached_property
    def _table(self) -> Table:
        table = read_utterances(self._utterances(), self._settings, self._options)
        check_times(table)
        note_recordings(table)
        return table

    def _utterances(self) -> Path:
        check_table_exists(self.root())
        return self.root() / TABLE

    @property
    def _rows(self) -> list[Row]:
        return self._table.rows

    @cached_property
    def _groups(self) -> dict[str, list[Row]]:
        return grouped(self._table, self._options.order)

    @cached_property
    def _targets(self) -> list[TargetReader]:
        readers = target_readers(self._settings, self._header, self._rows)
        note_spellings(self._table, readers)
        columns = {*RESERVED, *(column for reader in readers for column in reader.columns)}
        check_similar_columns(self._table.path, self._header, [name for name in self._header if name in columns])
        note_unread(self._table, [name for name in self._header if name not in columns], other_names(self._settings))
        return readers

    @property
    def _header(self) -> list[str]:
        return self._table.header

    @cached_property
    def _parts(self) -> tuple[dict[str, str], str]:
        # Split by conversation id, and the origin of dev.
        return assign_splits(self._table, self._groups, self._options.split_seed)

    def _packs(self) -> dict[str, Path]:
        # Folders of packs by modality.
        from ercfusion.data.pack import has_pack

        packs = self.root() / PACKS
        if not packs.is_dir():
            return {}
        inside = sorted(folder for folder in packs.iterdir() if not folder.name.startswith("."))
        return {folder.name: folder for folder in inside if has_pack(folder)}

    def _turn(self, row: Row) -> Turn:
        return Turn(
            id=row.text("turn"),
            speaker=row.cells.get("speaker", "").strip() or UNKNOWN_SPEAKER,
            text=row.cells.get("text", "").strip() or None,
            start=time_of(row, "start"),
            end=time_of(row, "end"),
            targets={reader.task.name: reader.read(row) for reader in self._targets},
        )

    def _clip(self, path: Path, row: Row, column: str, users: list[tuple[Key, Row, str]]) -> Clip:
        recordings = self._settings.recordings
        first = users[0][1]
        if recordings == "turn" and len(users) > 1:
            place = f"line {first.line}" if first is not row else "a later line"
            row.fail(
                column,
                f"{path.name} is also that of {place}, but {SETTINGS} says 'recordings: turn', one file per turn. "
                f"Correct the path, or write 'recordings: conversation'.",
            )
        if not self._is_cut(users):
            return Clip(path)
        start, end = time_of(row, "start"), time_of(row, "end")
        if start is None or end is None:
            owner = "of several turns" if recordings is None else f"of a conversation ({SETTINGS})"
            row.fail(
                "start" if start is None else "end",
                f"{path.name} is the recording {owner} and is cut at start and end, but there is no time in seconds "
                f"here. Add the two columns and fill them, or give every turn its own file.",
            )
        return Clip(path, start, end)
