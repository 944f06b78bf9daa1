"""A corpus of one's own: a table of utterances, a few settings, recordings and feature packs in one folder.

::

    DIR/utterances.csv       one row an utterance, in order of speech
    DIR/corpus.yaml          what the targets are, title and licence (optional)
    DIR/packs/MODALITY/      feature packs (optional)

The layout is ercfusion's own; the page docs/corpora.md of the repository describes every column and key.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ercfusion.data.check_media import some
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpora._custom import (
    RESERVED,
    TABLE,
    Settings,
    TargetReader,
    number,
    read_settings,
    target_readers,
)
from ercfusion.data.corpus import SPLITS, Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.permute import seeded_permutation
from ercfusion.data.tabular import Row, check_unique, group_rows, read_records, read_table
from ercfusion.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, PackError, did_you_mean

SETTINGS = "corpus.yaml"
PACKS = "packs"
REQUIRED = ("conversation", "turn")
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

    Args:
        raw: The folder.
        split_seed: Where the table has no column ``split``: the seed of the order in which conversations are cut into
            80 % train, 10 % dev and 10 % test (at least one conversation each, from three on). 0 by default.

    Raises:
        ConfigError: an unknown setting, or a seed that is no whole number.
    """

    def __init__(
        self, raw: str | os.PathLike[str] | None = None, *, split_seed: int | None = None, **options: Any
    ) -> None:
        if options:
            option = next(iter(options))
            raise ConfigError(f"corpus 'custom' has no setting {option!r}. {did_you_mean(option, ['split_seed'])}")
        if split_seed is not None and (not isinstance(split_seed, int) or isinstance(split_seed, bool)):
            raise ConfigError(f"data.options.split_seed must be a whole number, found {split_seed!r}")
        super().__init__(raw)
        self._split_seed = split_seed
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
        if self._has_splits:
            dev = f"the column 'split' of {TABLE}"
        else:
            dev = f"{TABLE} has no column 'split': 80/10/10 by conversation, seed {self._split_seed or 0}"
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
            found[identifier] = Protocol(identifier, task, description, dev, order)
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
            CorpusFormatError: a cell or key cannot be read, two rows have the same ids, or a conversation has rows in
                two splits; file, line and column are named.
            ConfigError: ``split_seed`` was given although the table has a column ``split``.
        """
        part = self._parts
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
        from ercfusion.features.pack import read_pack

        tables = {}
        for modality, folder in self._packs().items():
            table = read_pack(folder, corpus=self.name, fingerprint=self.fingerprint())
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
            CorpusFormatError: a file is to be cut and a turn has no times, or a turn's own file has another turn too.
            CorpusNotFoundError: none of the files is there.
        """
        columns = ("audio", "video") if kind == "audio" else ("video",)
        root = self.root()
        named: dict[Path, list[tuple[Key, Row, str]]] = {}
        for name, rows in self._groups.items():
            for row in rows:
                column = next((column for column in columns if row.cells.get(column, "").strip()), None)
                if column is not None:
                    key = (name, row.text("turn"))
                    named.setdefault(root / row[column].strip(), []).append((key, row, column))
        if not named:
            wanted = " or ".join(map(repr, columns))
            raise ConfigError(f"{root / TABLE} names no {kind} recordings: no row has a path in a column {wanted}.")
        if not any(path.is_file() for path in named):
            raise CorpusNotFoundError(
                f"{self.card.title}: none of the {len(named)} recordings that {root / TABLE} names is there (first: "
                f"{next(iter(named))}). Paths are relative to the folder of {TABLE}; correct them, or copy the files."
            )
        clips = {}
        for path, users in named.items():
            for key, row, column in users:
                clips[key] = self._clip(path, row, column, users[0][1], len(users) > 1)
        return {key: clips[key] for key in self._keys() if key in clips}

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Columns that are not read, turns that are not in order of time, and folders that hold no pack."""
        found = []
        known = {*RESERVED, *(column for reader in self._targets for column in reader.columns)}
        if other := [column for column in self._header if column not in known]:
            found.append(Finding("note", "columns", f"{TABLE}: not read: {', '.join(other)}"))
        back = []
        for name, rows in self._groups.items():
            starts = [start for row in rows if (start := self._times(row)[0]) is not None]
            if starts != sorted(starts):
                back.append(name)
        if back:
            text = (
                f"conversations in which start times step back: {len(back)} ({some(back)}); rows are in order of speech"
            )
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
    def _rows(self) -> list[Row]:
        path = self.require([TABLE])[0]
        rows = read_table(path, REQUIRED)
        _, header = next(read_records(path))
        for column, count in Counter(name.strip() for name in header if name.strip()).items():
            if count > 1:
                raise CorpusFormatError(f"{path}, line 1: the column {column!r} occurs {count} times. Keep one.")
        check_unique(rows, lambda row: (row.text("conversation"), row.text("turn")), REQUIRED)
        return rows

    @cached_property
    def _groups(self) -> dict[str, list[Row]]:
        return group_rows(self._rows, lambda row: row.text("conversation"))

    @cached_property
    def _targets(self) -> list[TargetReader]:
        return target_readers(self._settings, self._header, self._rows)

    @property
    def _header(self) -> list[str]:
        return [column for column in self._rows[0].cells if column]

    @property
    def _has_splits(self) -> bool:
        return "split" in self._header

    @cached_property
    def _parts(self) -> dict[str, str]:
        # The split of every conversation.
        if not self._has_splits:
            return _drawn(list(self._groups), self._split_seed or 0)
        if self._split_seed is not None:
            raise ConfigError(
                f"data.options.split_seed={self._split_seed} was given, but {self._rows[0].path} has a column 'split', "
                f"which decides. Leave the setting out, or remove the column."
            )
        parts: dict[str, str] = {}
        for name, rows in self._groups.items():
            for row in rows:
                value = row["split"].strip()
                if value not in SPLITS:
                    row.fail("split", f"found {value!r}. {did_you_mean(value, SPLITS)}")
                if parts.setdefault(name, value) != value:
                    row.fail(
                        "split",
                        f"found {value!r}, but the conversation {name!r} is in {parts[name]!r} on line "
                        f"{rows[0].line}. All rows of a conversation are in one split: correct one of the two.",
                    )
        return parts

    def _packs(self) -> dict[str, Path]:
        # Folders with packs by modality.
        from ercfusion.features.pack import has_pack

        packs = self.root() / PACKS
        if not packs.is_dir():
            return {}
        inside = sorted(folder for folder in packs.iterdir() if not folder.name.startswith("."))
        return {folder.name: folder for folder in inside if has_pack(folder)}

    def _keys(self) -> list[Key]:
        parts = self._parts
        return [
            (name, row.text("turn"))
            for split in SPLITS
            for name, rows in self._groups.items()
            if parts[name] == split
            for row in rows
        ]

    def _turn(self, row: Row) -> Turn:
        start, end = self._times(row)
        return Turn(
            id=row.text("turn"),
            speaker=row.cells.get("speaker", "").strip() or UNKNOWN_SPEAKER,
            text=row.cells.get("text", "").strip() or None,
            start=start,
            end=end,
            targets={reader.task.name: reader.read(row) for reader in self._targets},
        )

    def _times(self, row: Row) -> tuple[float | None, float | None]:
        times: list[float | None] = []
        for column in ("start", "end"):
            value = number(row, column) if row.cells.get(column, "").strip() else None
            if value is not None and value < 0:
                row.fail(column, f"{value:g} is negative, but seconds from the beginning are expected.")
            times.append(value)
        start, end = times
        if start is not None and end is not None and end <= start:
            row.fail("end", f"the turn ends at {end:g} s and starts at {start:g} s. Correct one of the two.")
        return start, end

    def _clip(self, path: Path, row: Row, column: str, first: Row, shared: bool) -> Clip:
        recordings = self._settings.recordings
        if recordings == "turn" and shared:
            other = f"line {first.line}" if first is not row else "a later line"
            row.fail(
                column,
                f"{path.name} is also that of {other}, but {SETTINGS} says 'recordings: turn', one file a turn. "
                f"Correct the path, or write 'recordings: conversation'.",
            )
        if recordings == "turn" or (recordings is None and not shared):
            return Clip(path)
        start, end = self._times(row)
        if start is None or end is None:
            why = "of several turns" if recordings is None else f"of a conversation ({SETTINGS})"
            row.fail(
                "start" if start is None else "end",
                f"{path.name} is the recording {why} and is cut at start and end, but there is no time in seconds "
                f"here. Add the two columns and fill them, or give every turn a file of its own.",
            )
        return Clip(path, start, end)


def _drawn(names: Sequence[str], seed: int) -> dict[str, str]:
    # Split by conversation. From three conversations on, no split is empty.
    order = seeded_permutation(names, seed)
    held = max(1, round(0.1 * len(order))) if len(order) > len(SPLITS) - 1 else 0
    first = len(order) - 2 * held
    return {
        name: "train" if position < first else "dev" if position < first + held else "test"
        for position, name in enumerate(order)
    }
