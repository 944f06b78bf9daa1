"""A corpus: its card, its named protocols, and a reader of the files of its official release."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion._core.schemas.reading import shown
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.views import source_of
from ercfusion.data.conversation import Conversation
from ercfusion.data.dialogue_sets import DialogueSets
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.permute import seeded_permutation

SPLITS = ("train", "dev", "test")

EXACT_LEVEL = "exact posterior"
EXACT_NOTE = (
    "the score of the most probable label of every turn under the exact posterior (of a set of labels: of those above "
    "0.5). It is optimal for accuracy and close to optimal for F1"
)
EXACT_NUMBERS_NOTE = (
    "the score of the expectation of the target under the exact posterior, optimal for RMSE and correlation"
)
"""Describe :meth:`Corpus.reachable` in tables, pictures and pages: with labels, and of a regression."""
Splits = dict[str, list[Conversation]]
Available = Mapping[str, np.ndarray]
"""By modality, (N) truth values: visible at the utterance."""


@dataclass(frozen=True)
class Protocol:
    """A named use of a corpus; two scores can be compared if their protocol ids are equal.

    Args:
        id: ``corpus/name``, for example ``meld/7way``.
        task: Its metric chooses the checkpoint.
        description: One line.
        dev_source: Origin of the dev split.
        modalities: The default inputs of a model.
        others: Further tasks; ``data.tasks`` selects among them.
        view: The units of prediction, if they are not the utterances.
    """

    id: str
    task: TaskSpec
    description: str
    dev_source: str
    modalities: tuple[str, ...]
    others: tuple[TaskSpec, ...] = ()
    view: DialogueSets | None = None

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks; the first one chooses the checkpoint."""
        return (self.task, *self.others)

    def viewed(self, splits: Splits) -> Splits:
        """The conversations to learn and to score, from those of :meth:`Corpus.conversations`."""
        return splits if self.view is None else self.view.conversations(splits)


@dataclass(frozen=True)
class CorpusCard:
    """Facts to know before using a corpus.

    Args:
        name: Registry name.
        title: Full name.
        licence: The terms in one sentence.
        obtain: How to get the raw data.
        citation: Paper to cite.
        layout: Files in the raw folder.
        counts: Split to ``{"conversations": .., "utterances": ..}`` of the release.
        labels: Protocol id to split to ``{label: utterances}`` of the release.
        known_issues: Oddities of the release.
        related: What another corpus has in common with it, by name, as a sentence without its full stop.
        synthetic: Generated, not recorded.
    """

    name: str
    title: str
    licence: str
    obtain: str
    citation: str
    layout: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    known_issues: tuple[str, ...] = ()
    related: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of the report of ``doctor``.

    Args:
        level: ``ok`` (as on the card), ``note`` (odd but harmless) or ``fault`` (do not train on this).
        topic: Subject of the check.
        text: The result.
        warning: Training logs it as a warning, not as information.
    """

    level: Literal["ok", "note", "fault"]
    topic: str
    text: str
    warning: bool = False


def drawn_splits(conversations: Sequence[Conversation], seed: int) -> Splits:
    """80 % train, 10 % dev, 10 % test by conversation, depending only on seed and ids; order is kept within a split."""
    order = seeded_permutation((conversation.id for conversation in conversations), seed)
    dev, test = round(0.8 * len(order)), round(0.9 * len(order))
    parts = (order[:dev], order[dev:test], order[test:])
    part = {name: split for split, names in zip(SPLITS, parts, strict=True) for name in names}
    return {split: [one for one in conversations if part[one.id] == split] for split in SPLITS}


def check_unique_ids(corpus: str, splits: Splits) -> None:
    """Raise :class:`CorpusFormatError` for two conversations with the same id; ``corpus`` is for the message."""
    places: dict[str, str] = {}
    twice: dict[str, list[str]] = {}
    for split, conversations in splits.items():
        for conversation in conversations:
            if conversation.id in places:
                twice.setdefault(conversation.id, [places[conversation.id]]).append(split)
            else:
                places[conversation.id] = split
    if twice:
        name, parts = next(iter(twice.items()))
        raise CorpusFormatError(
            f"{corpus}: {len(twice)} conversations are there more than once (first: {shown(name)}, in "
            f"{' and in '.join(parts[:3])}). A conversation belongs to one split: remove it from the others."
        )


def _with_unique_ids(read: Callable[[Any, Protocol], Splits]) -> Callable[[Any, Protocol], Splits]:
    @wraps(read)
    def conversations(self: Corpus, protocol: Protocol) -> Splits:
        splits = read(self, protocol)
        check_unique_ids(self.card.title, splits)
        return splits

    return conversations


_TABLES = (".xlsx", ".xls", ".ods", ".tsv", ".txt", ".csv", ".parquet", ".json", ".jsonl")


def similar_table(root: Path, missing: Sequence[str]) -> str:
    """Advice if a missing file exists in another format or under a similar name, else nothing."""
    for name in missing:
        wanted = Path(name)
        folder = root / wanted.parent
        names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        tables = [file for file in names if file.lower().endswith(_TABLES) and not file.startswith((".", "~"))]
        stem = wanted.stem.casefold()
        near = [file for file in tables if file.casefold().partition(".")[0] == stem]
        if not near and len(missing) == 1 and wanted.suffix == ".csv":
            # The only table of a folder is probably the missing one.
            near = [file for file in tables if file.lower().endswith(_TABLES[:3])]
        if near:
            if near[0].lower().endswith(_TABLES[:3]):
                kind = wanted.suffix[1:].upper()
                return f" There is {near[0]}: save it as {kind} (UTF-8) under the name {wanted.name}."
            return f" There is {near[0]}: if it is this file, rename it to {wanted.name}."
    return ""


class Corpus(ABC):
    """Base of all corpora.

    Args:
        raw: Folder with the released files; None uses ``$ERCFUSION_DATA/<name>``.

    Options of a reader are keyword-only arguments of its constructor (:func:`ercfusion.config.options.options_of`);
    in a configuration they are ``data.options.NAME``.
    """

    card: ClassVar[CorpusCard]
    protocols: ClassVar[Mapping[str, Protocol]]

    def __init_subclass__(cls, **options: Any) -> None:
        # Every reader is checked: a conversation in two splits would be trained on and tested.
        super().__init_subclass__(**options)
        if "conversations" in vars(cls):
            cls.conversations = _with_unique_ids(cls.conversations)  # type: ignore[assignment, method-assign]

    def __init__(self, raw: str | os.PathLike[str] | None = None) -> None:
        self.raw: Path | None = None if raw is None else expanded(raw)

    @property
    def name(self) -> str:
        """Registry name."""
        return self.card.name

    @abstractmethod
    def conversations(self, protocol: Protocol) -> Splits:
        """Conversations of train, dev and test.

        Raises:
            CorpusNotFoundError: raw files are missing.
            CorpusFormatError: a file differs from the release, or two conversations have the same id.
        """

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """Features shipped with the corpus, by modality; none by default."""
        return {}

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """Recordings by (conversation, turn), in the order of the conversations, also of absent files.

        Raises:
            ConfigError: the corpus has no such recordings.
            CorpusNotFoundError: none of the recordings exists.
        """
        raise ConfigError(
            f"corpus {self.name!r}: {self.card.title} has no {kind} recordings. Choose another modality or corpus."
        )

    def named_clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """Recordings named by the corpus's own files, whose absence is a fault for ``doctor``; none by default."""
        return {}

    def notes(self, protocol: Protocol) -> list[Finding]:
        """Decisions of the reader, logged by training and reported by ``doctor``."""
        return []

    def missing_inputs(self, protocol: Protocol) -> Finding | None:
        """What is missing if a model has no input without further packs; None if it has one."""
        if protocol.modalities:
            return None
        return Finding("fault", "inputs", f"{protocol.id}: no modality")

    def other_counts(self, protocol: Protocol, splits: Splits) -> list[Finding]:
        """Comparisons with counts of the release which are not per split; a fault means different files."""
        return []

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Further checks of this corpus for ``doctor``."""
        return []

    def reachable(self, protocol: Protocol, split: str, available: Available | None = None) -> dict[str, float]:
        """Scores of :data:`EXACT_LEVEL` on a split; empty for recorded corpora.

        Args:
            protocol: Protocol.
            split: Split of N utterances.
            available: By modality, (N) truth values: visible at the utterance, in the order of the split. Modalities
                without a key are hidden. None: all that the corpus has.
        """
        return {}

    def files(self) -> list[Path]:
        """Raw files behind the conversations and the fingerprint."""
        return []

    def fingerprint(self) -> str:
        """SHA-256 of names and contents of :meth:`files`."""
        digest = hashlib.sha256(self.card.name.encode())
        for path in self.files():
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def source_fingerprint(self, source: str | None = None) -> str:
        """Fingerprint of the sources of features; feature packs are bound to it. By default :meth:`fingerprint`.

        Args:
            source: ``text``, ``audio`` or ``visual``; None for all of them.
        """
        return self.fingerprint()

    def pack_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints accepted in packs."""
        return (self.fingerprint(),)

    def protocol(self, identifier: str | None = None) -> Protocol:
        """A protocol by its id, with or without the corpus's name; None returns the first one.

        Raises:
            ConfigError: unknown protocol.
        """
        if identifier is None:
            return next(iter(self.protocols.values()))
        full = identifier if "/" in identifier else f"{self.card.name}/{identifier}"
        if full not in self.protocols:
            raise ConfigError(
                f"corpus {self.card.name!r} has no protocol {identifier!r}. {did_you_mean(full, self.protocols)}"
            )
        return self.protocols[full]

    def with_tasks(self, protocol: Protocol, names: Sequence[str] | None) -> Protocol:
        """The protocol restricted to some of its tasks; None selects its own task.

        The first task chooses the checkpoint; if it is another protocol's own task, the result has that protocol's id.

        Raises:
            ConfigError: ``names`` is empty, or a name is unknown or repeated.
        """
        if names is None:
            return replace(protocol, others=()) if protocol.others else protocol
        tasks = {task.name: task for task in protocol.tasks}
        for name in names:
            if name not in tasks:
                raise ConfigError(f"data.tasks: {protocol.id} has no task {shown(name)}. {did_you_mean(name, tasks)}")
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"data.tasks: found {shown(list(names))}. Name each task once, out of {', '.join(tasks)}."
            )
        first, *others = (tasks[name] for name in names)
        return replace(protocol, id=self._protocol_of(protocol, first), task=first, others=tuple(others))

    def views(
        self, protocol: Protocol, names: Sequence[str] | None, learned: Sequence[TaskSpec]
    ) -> tuple[TaskSpec, ...]:
        """Tasks of the protocol against which the outputs for ``learned`` are scored; None: none.

        Raises:
            ConfigError: a name is unknown, repeated or learned, or a task has other labels or outputs than every
                learned one.
        """
        tasks = {task.name: task for task in protocol.tasks}
        views = []
        for name in names or ():
            if name not in tasks:
                raise ConfigError(f"data.views: {protocol.id} has no task {shown(name)}. {did_you_mean(name, tasks)}")
            if any(name == task.name for task in learned):
                raise ConfigError(f"data.views: {name!r} is learned, so it is scored already. Remove it from the list.")
            if tasks[name] in views:
                raise ConfigError(f"data.views: {name!r} is listed twice. Remove the second.")
            source_of(tasks[name], learned)
            views.append(tasks[name])
        return tuple(views)

    def _protocol_of(self, protocol: Protocol, task: TaskSpec) -> str:
        if task == protocol.task:
            return protocol.id
        same = (other.id for other in self.protocols.values() if other.task == task)
        return next(same, f"{protocol.id}-{task.name}")

    def root(self) -> Path:
        """The raw folder.

        Raises:
            CorpusNotFoundError: neither ``data.raw`` nor ``ERCFUSION_DATA`` names an existing folder.
        """
        if self.raw is not None:
            folder = self.raw
            place = f"data.raw={self.raw}"
        elif "ERCFUSION_DATA" in os.environ:
            folder = expanded(os.environ["ERCFUSION_DATA"]) / self.card.name
            place = f"{folder} (from the environment variable ERCFUSION_DATA)"
        else:
            raise CorpusNotFoundError(
                f"{self.card.title}: no raw folder was given. Set data.raw=FOLDER, or the environment variable "
                f"ERCFUSION_DATA to a folder with a subfolder {self.card.name!r}.\n{self._how_to_get()}"
            )
        if not folder.is_dir():
            raise CorpusNotFoundError(
                f"{self.card.title}: {place} is not a folder. Correct the path, or get the files.\n{self._how_to_get()}"
            )
        return folder

    def require(self, names: Sequence[str]) -> list[Path]:
        """Paths of the named files below :meth:`root`.

        Raises:
            CorpusNotFoundError: a file is missing.
        """
        root = self.root()
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise CorpusNotFoundError(
                f"{self.card.title}: {', '.join(missing)} not found in {root}.{similar_table(root, missing)}\nAdd the "
                f"files, or correct the path. {self._how_to_get()}"
            )
        return [root / name for name in names]

    def _how_to_get(self) -> str:
        return (
            f"Expected files: {', '.join(self.card.layout)}.\n"
            f"How to get them: {self.card.obtain}\nLicence: {self.card.licence}"
        )
