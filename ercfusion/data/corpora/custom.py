"""A corpus of one's own: a table of utterances, a few settings, recordings and feature packs in one folder.

::

    DIR/utterances.csv       one row per utterance
    DIR/corpus.yaml          what the targets are, title and licence (optional)
    DIR/packs/MODALITY/      feature packs (optional)

The layout is ercfusion's own; the page docs/corpora.md of the repository describes every column and key.
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
from ercfusion.config.options import Range
from ercfusion.data.check_media import some
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpora._custom import RESERVED, TABLE, Settings, TargetReader, read_settings, target_readers
from ercfusion.data.corpora._custom_table import (
    Options,
    Table,
    assign_splits,
    check_times,
    grouped,
    note_recordings,
    note_spellings,
    read_utterances,
    recording,
    time_of,
)
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.tabular import Row

SETTINGS = "corpus.yaml"
PACKS = "packs"
_COLUMNS: Mapping[str, tuple[str, ...]] = {"audio": ("audio", "video"), "visual": ("video",)}
UNKNOWN_SPEAKER = "unknown"
_MODALITY_ORDER = ("text", "audio", "visual")

T = TypeVar("T")


class _OfInstance(Generic[T]):
    # An attribute that the class has in general, and every instance as its own files say.
    def __init__(self, of_class: T, compute: Callable[[CustomCorpus], T]) -> None:
        self._of_class = of_class
        self._compute = compute

    def __get__(self, instance: CustomCorpus | None, owner: type[CustomCorpus]) -> T:
        return self._of_class if instance is None else self._compute(instance)


_CARD = CorpusCard(
    name="custom",
    title="A corpus of your own",
    licence="Yours to state: the key 'licence' of corpus.yaml.",
    obtain="Write utterances.csv with the columns conversation and turn, and what else is known of every utterance.",
    citation="None: the key 'citation' of corpus.yaml names one.",
    layout=(TABLE, f"{SETTINGS} (optional)", f"{PACKS}/MODALITY/ (optional)"),
)


_NO_PROTOCOLS: Mapping[str, Protocol] = {}


class CustomCorpus(Corpus):
    """Reader of ``utterances.csv`` and, where it exists, ``corpus.yaml``.

    Required columns are ``conversation`` and ``turn`` (ids; a turn's is unique within its conversation). Optional are
    ``speaker``, ``text``, ``split`` (train, dev or test, the same for a whole conversation), ``start`` and ``end``
    (seconds), ``audio`` and ``video`` (paths relative to the folder), and one column a target, or several (see
    ``targets`` in ``corpus.yaml``). An empty cell of a target means: not labelled. Other columns are not read.

    ``card`` and ``protocols`` are those of the folder at hand: there is one protocol a target, ``custom/<target>``, in
    the order of ``corpus.yaml``. The class itself has a general card and no protocols. The files are read once;
    packs are looked for every time, so that one made meanwhile is found.

    A column ``split`` without ``dev`` gives a tenth of the training conversations to dev. What the file leaves open
    (its separator, the order of its turns, words for missing values, spellings of a label) is decided once and said in
    :meth:`notes`.

    Args:
        raw: The folder.
        split_seed: The seed of what is drawn: where the table has no column ``split``, 80 % train, 10 % dev and 10 %
            test by conversation (at least one each, from three on); dev, where the column names none. None is 0.
        encoding: Of the table, for example ``cp1252``; None is UTF-8.
        missing: More words that stand for a missing value, besides ``NA``, ``NaN``, ``NULL`` and the like.
        order: What decides on the order of turns: a column, or the order of the rows (``file``). None takes the numbers
            in ``turn``, or ``start`` where ids are no numbers.

    Raises:
        ConfigError: there is no such encoding.
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
        # The general card names the corpus meanwhile, because the folder's own is read from the folder.
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
        modalities = {"text"} if any(row.cells.get("text", "").strip() for row in self._rows) else set()
        ranks = {name: rank for rank, name in enumerate(_MODALITY_ORDER)}
        order = tuple(sorted(modalities | set(packs), key=lambda name: (ranks.get(name, len(ranks)), name)))
        found = {}
        for reader in self._targets:
            task = reader.task
            what = f"{task.size} labels" if task.schema else f"{task.low:g} to {task.high:g}"
            identifier = f"{_CARD.name}/{task.name}"
            description = f"{task.name}: {task.kind.replace('_', ' ')}, {what}, {task.metric}"
            others = tuple(other.task for other in self._targets if other is not reader)
            found[identifier] = Protocol(identifier, task, description, dev, order, others)
        return found

    card: ClassVar[CorpusCard] = _OfInstance(_CARD, _own_card)  # type: ignore[assignment]
    protocols: ClassVar[Mapping[str, Protocol]] = _OfInstance(_NO_PROTOCOLS, _own_protocols)  # type: ignore[assignment]

    def files(self) -> list[Path]:
        """``utterances.csv`` and, where it exists, ``corpus.yaml``."""
        settings = self.root() / SETTINGS
        return [*self.require([TABLE]), *([settings] if settings.is_file() else [])]

    def conversations(self, protocol: Protocol) -> Splits:
        """The conversations in file order within each split; every target is on every turn.

        Raises:
            CorpusNotFoundError: the folder or ``utterances.csv`` is not there.
            CorpusFormatError: a cell or key cannot be read, two rows have the same ids, a conversation has rows in two
                splits, or two orders of the turns are possible; file, line and column are named.
            ConfigError: ``split_seed`` was given although nothing is drawn.
        """
        part = self._parts[0]
        splits: Splits = {split: [] for split in SPLITS}
        for name, rows in self._groups.items():
            turns = tuple(self._turn(row) for row in rows)
            splits[part[name]].append(Conversation(name, turns, synthetic=self.card.synthetic))
        return splits

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """The packs in ``packs/``, by the name of their folder.

        Raises:
            PackError: a pack is damaged, made from other files, or holds another modality than its folder says.
        """
        from ercfusion.data.pack import read_pack

        tables = {}
        for modality, folder in self._packs().items():
            table = read_pack(folder, corpus=self.name, fingerprint=self.pack_fingerprints())
            if table.modality != modality:
                raise PackError(f"{folder} holds the modality {table.modality!r}. Rename the folder to that.")
            tables[modality] = table
        return tables

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recording of every turn that names one: of column ``video`` for ``visual``; of ``audio``, or of ``video``
        where that is empty, for ``audio``.

        A file that one turn alone names is that turn's own clip and read whole; one that several turns name is cut at
        their ``start`` and ``end``. The key ``recordings`` of ``corpus.yaml`` (``turn`` or ``conversation``) decides
        for all files instead.

        Raises:
            ConfigError: no turn names such a recording.
            CorpusFormatError: a file is to be cut and a turn has no times or no duration, or a turn's own file has
                another turn too.
            CorpusNotFoundError: none of the files is there.
        """
        clips = self.named_clips(protocol, kind)
        paths = dict.fromkeys(clip.path for clip in clips.values())
        if not clips:
            wanted = " or ".join(map(repr, _COLUMNS[kind]))
            raise ConfigError(
                f"{self.root() / TABLE} names no {kind} recordings: no row has a path in a column {wanted}."
            )
        if not any(path.is_file() for path in paths):
            raise CorpusNotFoundError(
                f"{self.card.title}: none of the {len(paths)} recordings that {self.root() / TABLE} names is there "
                f"(first: {next(iter(paths))}). Paths are relative to the folder of {TABLE}; correct them, or copy the "
                f"files."
            )
        return clips

    def named_clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """As :meth:`clips`, whether any of the files is there or not."""
        named = self._recordings(kind)
        cut = [user for users in named.values() for user in users if self._is_cut(users)]
        spans = [(row.line, time_of(row, "start"), time_of(row, "end")) for _, row, _ in cut]
        if empty := [f"line {line} ({start:g} s)" for line, start, end in spans if start is not None and start == end]:
            raise CorpusFormatError(
                f"{self.root() / TABLE}: {len(empty)} turns end when they start, and their recordings are to be cut "
                f"there: {', '.join(empty)}. Correct start and end, or leave the cells of their recordings empty."
            )
        clips = {}
        for path, users in named.items():
            for key, row, column in users:
                clips[key] = self._clip(path, row, column, users)
        # In file order, which the splits do not change.
        keys = [(name, row.text("turn")) for name, rows in self._groups.items() for row in rows]
        return {key: clips[key] for key in keys if key in clips}

    def _recordings(self, kind: str) -> dict[Path, list[tuple[Key, Row, str]]]:
        # Files, each with the turns that name it.
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
        """SHA-256 over what features are made of; see :meth:`Corpus.source_fingerprint`.

        ``text``: ids and texts. ``audio``, ``visual``: ids, names of recordings, and times where these are cut. Nothing
        else of ``utterances.csv`` and ``corpus.yaml`` belongs to it, neither labels nor splits.
        """
        sources = [source] if source in ("text", *_COLUMNS) else ["text", *_COLUMNS]
        entries: list[list[str]] = []
        for name in sources:
            if name == "text":
                for conversation, rows in self._groups.items():
                    entries += [["text", conversation, row.text("turn"), row.cells.get("text", "")] for row in rows]
                continue
            for users in self._recordings(name).values():
                times = ("start", "end") if self._is_cut(users) else ()
                for key, row, column in users:
                    cells = [row.cells.get(time, "").strip() for time in times]
                    entries.append([name, *key, row[column].strip().replace("\\", "/"), *cells])
        return hashlib.sha256(json.dumps(["custom", sources, sorted(entries)]).encode()).hexdigest()

    def pack_fingerprints(self) -> tuple[str, ...]:
        """See :meth:`Corpus.pack_fingerprints`."""
        return (self.fingerprint(), *(self.source_fingerprint(source) for source in (None, "text", *_COLUMNS)))

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Separator, missing values, order, splits, spellings of labels, times and paths, where they were decided."""
        readers, parts = self._targets, self._parts  # these may add notes
        assert readers
        assert parts
        return list(self._table.notes)

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Columns that are not read, turns that are not in order of time, and folders that hold no pack."""
        found = []
        known = {*RESERVED, *(column for reader in self._targets for column in reader.columns)}
        if other := [column for column in self._header if column not in known]:
            found.append(Finding("note", "columns", f"{TABLE}: not read: {', '.join(other)}"))
        back = []
        for name, rows in self._groups.items():
            starts = [start for row in rows if (start := time_of(row, "start")) is not None]
            if starts != sorted(starts):
                back.append(name)
        if back:
            text = f"conversations in which start times step back: {len(back)} ({some(back)})"
            found.append(Finding("note", "times", text))
        packs = self.root() / PACKS
        inside = sorted(packs.iterdir()) if packs.is_dir() else []
        for folder in inside:
            if folder.is_dir() and not folder.name.startswith(".") and folder.name not in self._packs():
                found.append(Finding("note", "packs", f"{PACKS}/{folder.name} has no pack.json: it is no feature pack"))
        return found

    @cached_property
    def _settings(self) -> Settings:
        path = self.root() / SETTINGS
        return read_settings(path) if path.is_file() else Settings()

    @cached_property
    def _table(self) -> Table:
        table = read_utterances(self.require([TABLE])[0], self._settings, self._options)
        check_times(table)
        note_recordings(table)
        return table

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
        return readers

    @property
    def _header(self) -> list[str]:
        return self._table.header

    @cached_property
    def _parts(self) -> tuple[dict[str, str], str]:
        # The split of every conversation, and where dev comes from.
        return assign_splits(self._table, self._groups, self._options.split_seed)

    def _packs(self) -> dict[str, Path]:
        # Folders with packs by modality.
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
            other = f"line {first.line}" if first is not row else "a later line"
            row.fail(
                column,
                f"{path.name} is also that of {other}, but {SETTINGS} says 'recordings: turn', one file a turn. "
                f"Correct the path, or write 'recordings: conversation'.",
            )
        if not self._is_cut(users):
            return Clip(path)
        start, end = time_of(row, "start"), time_of(row, "end")
        if start is None or end is None:
            why = "of several turns" if recordings is None else f"of a conversation ({SETTINGS})"
            row.fail(
                "start" if start is None else "end",
                f"{path.name} is the recording {why} and is cut at start and end, but there is no time in seconds "
                f"here. Add the two columns and fill them, or give every turn a file of its own.",
            )
        return Clip(path, start, end)
