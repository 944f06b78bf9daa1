"""What a corpus is: a card, named protocols, and a reader of the official release's layout."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion._core.schemas.reading import shown
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.permute import seeded_permutation

SPLITS = ("train", "dev", "test")

EXACT_LEVEL = "exact posterior"
EXACT_NOTE = (
    "the score of the most probable label of every turn under the exact posterior (of a set of labels: of those above "
    "0.5); it is optimal for accuracy and close to optimal, not optimal, for F1"
)
"""What :meth:`Corpus.reachable` is: the one wording for tables, pictures and pages."""
Splits = dict[str, list[Conversation]]


@dataclass(frozen=True)
class Protocol:
    """A named way of using a corpus, so that two numbers with the same protocol id can be compared.

    Args:
        id: ``corpus/name``, for example ``meld/7way``.
        task: What is predicted and on which score a checkpoint is chosen.
        description: One line.
        dev_source: Where the dev split comes from: the release, or which part of the training split by which seed.
        modalities: Those the corpus has under this protocol; the default input of a model.
        others: Further tasks that its turns have targets for; ``data.tasks`` selects among them.
    """

    id: str
    task: TaskSpec
    description: str
    dev_source: str
    modalities: tuple[str, ...]
    others: tuple[TaskSpec, ...] = ()

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks, the one that chooses the checkpoint first."""
        return (self.task, *self.others)


@dataclass(frozen=True)
class CorpusCard:
    """What a user must know before using a corpus.

    Args:
        name: Registry name.
        title: Full name.
        licence: The terms in a sentence.
        obtain: How to get the raw data.
        citation: Paper to cite.
        layout: The files that the reader expects below the raw folder.
        counts: Split to ``{"conversations": .., "utterances": ..}`` of the release, checked by the doctor.
        labels: Protocol id to split to ``{label: utterances}`` of the release, checked by the doctor.
        known_issues: Oddities of the release that the reader reproduces rather than repairs.
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
    synthetic: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of a doctor's report.

    Args:
        level: ``ok`` (as the card says), ``note`` (odd but known or harmless) or ``fault`` (do not train on this).
        topic: What was looked at, in a few words.
        text: What was found.
    """

    level: Literal["ok", "note", "fault"]
    topic: str
    text: str


def drawn_splits(conversations: Sequence[Conversation], seed: int) -> Splits:
    """80 % train, 10 % dev and 10 % test of a release that has no splits, drawn by conversation.

    The order of :func:`~ercfusion.data.permute.seeded_permutation` is cut, so the split depends on the seed and the
    ids alone; within a split the conversations keep their order.
    """
    order = seeded_permutation((conversation.id for conversation in conversations), seed)
    dev, test = round(0.8 * len(order)), round(0.9 * len(order))
    parts = (order[:dev], order[dev:test], order[test:])
    part = {name: split for split, names in zip(SPLITS, parts, strict=True) for name in names}
    return {split: [entry for entry in conversations if part[entry.id] == split] for split in SPLITS}


def check_unique_ids(corpus: str, splits: Splits) -> None:
    """Check that no id is that of two conversations, in two splits or in one.

    Args:
        corpus: Its title, for the message.
        splits: As its reader gives them.

    Raises:
        CorpusFormatError: two conversations have the same id.
    """
    places: dict[str, str] = {}
    twice: dict[str, list[str]] = {}
    for split, conversations in splits.items():
        for conversation in conversations:
            if conversation.id in places:
                twice.setdefault(conversation.id, [places[conversation.id]]).append(split)
            else:
                places[conversation.id] = split
    if twice:
        name, where = next(iter(twice.items()))
        raise CorpusFormatError(
            f"{corpus}: {len(twice)} conversations are there more than once (first: {shown(name)}, in "
            f"{' and in '.join(where[:3])}). A conversation belongs to one split: remove it from the others."
        )


def _with_unique_ids(read: Callable[[Any, Protocol], Splits]) -> Callable[[Any, Protocol], Splits]:
    @wraps(read)
    def conversations(self: Corpus, protocol: Protocol) -> Splits:
        splits = read(self, protocol)
        check_unique_ids(self.card.title, splits)
        return splits

    return conversations


_TABLES = (".xlsx", ".xls", ".ods", ".tsv", ".txt", ".csv", ".parquet", ".json", ".jsonl")


def _similar(root: Path, missing: Sequence[str]) -> str:
    # Files that may be the missing ones in another format or under a name with other capitals or a second ending.
    for name in missing:
        wanted = Path(name)
        folder = root / wanted.parent
        entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        tables = [entry for entry in entries if entry.lower().endswith(_TABLES) and not entry.startswith((".", "~"))]
        stem = wanted.stem.casefold()
        near = [entry for entry in tables if entry.casefold().partition(".")[0] == stem]
        if not near and len(missing) == 1 and wanted.suffix == ".csv":
            # A folder with one table holds the one that is meant.
            near = [entry for entry in tables if entry.lower().endswith(_TABLES[:3])]
        if near:
            if near[0].lower().endswith(_TABLES[:3]):
                kind = wanted.suffix[1:].upper()
                return f" There is {near[0]}: save it as {kind} (UTF-8) under the name {wanted.name}."
            return f" There is {near[0]}: if it is this file, rename it to {wanted.name}."
    return ""


class Corpus(ABC):
    """Base of all corpora.

    Args:
        raw: Folder with the released files. Where it is None, the folder ``$ERCFUSION_DATA/<name>`` is used.

    A reader with options takes them as keyword-only arguments of its constructor, see
    :func:`ercfusion.config.options.options_of`: they are ``data.options.NAME`` of a configuration.
    """

    card: ClassVar[CorpusCard]
    protocols: ClassVar[Mapping[str, Protocol]]

    def __init_subclass__(cls, **options: Any) -> None:
        # Whatever a reader makes of its files, no conversation is trained on and tested.
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
        """Train, dev and test conversations under ``protocol``.

        Raises:
            CorpusNotFoundError: the raw files are not there.
            CorpusFormatError: a file is not as released; the message names file, line and column. Also raised, for
                every subclass, where two conversations have one id.
        """

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """Features that come with the corpus, by modality (none by default: they are extracted into packs)."""
        return {}

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recording of every turn that has one, by (conversation, turn), in the order of the conversations.

        A file that the release should hold is named whether it is there or not; extraction records what is missing.

        Raises:
            ConfigError: the corpus, as this reader knows it, has no such recordings.
            CorpusNotFoundError: none of the recordings is there; the message says where they were looked for and how
                to get them.
        """
        raise ConfigError(f"{self.card.title} has no {kind} recordings that could be read here (corpus {self.name!r}).")

    def named_clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recordings that the corpus's own files name, for a corpus of which none may be there (none by default).

        The doctor asks where :meth:`clips` finds no file: what is named and absent is a fault, and what a release
        offers besides its texts is not.
        """
        return {}

    def notes(self, protocol: Protocol) -> list[Finding]:
        """What the reader decided where the files leave it open; training logs it, and the doctor reports it."""
        return []

    def other_counts(self, protocol: Protocol, splits: Splits) -> list[Finding]:
        """Counts of the release that the card cannot state by split, compared (none by default).

        As with the card's counts, a fault means that the files are not the release's.
        """
        return []

    def findings(self, protocol: Protocol) -> list[Finding]:
        """What the doctor reports beyond the checks that it makes for every corpus."""
        return []

    def reachable(self, protocol: Protocol, split: str) -> dict[str, float]:
        """Scores of :data:`EXACT_LEVEL` on a split, known only for generated corpora."""
        return {}

    def files(self) -> list[Path]:
        """The raw files that the conversations depend on (their content makes the fingerprint)."""
        return []

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of :meth:`files`: tells one version of a corpus from another."""
        digest = hashlib.sha256(self.card.name.encode())
        for path in self.files():
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def source_fingerprint(self, source: str | None = None) -> str:
        """What a feature pack is bound to: the parts of the corpus that features are made of.

        Of a release it is :meth:`fingerprint`, because its files never change. A corpus of one's own leaves out what
        features do not depend on.

        Args:
            source: ``text``, ``audio`` or ``visual``; None for all of them.
        """
        return self.fingerprint()

    def pack_fingerprints(self) -> tuple[str, ...]:
        """The fingerprints that a pack made from this version of the corpus may have."""
        return (self.fingerprint(),)

    def protocol(self, identifier: str | None = None) -> Protocol:
        """The protocol called ``identifier`` (with or without the corpus's name before it); the first one by default.

        Raises:
            ConfigError: no such protocol; the message names the nearest.
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
        """The protocol with the tasks that a run learns.

        Args:
            protocol: Of this corpus.
            names: Tasks of the protocol; the first one chooses the checkpoint. None takes the protocol's own task.

        Returns:
            If the first task is not the protocol's own, the id is that of the protocol whose own task it is.

        Raises:
            ConfigError: no name, an unknown one, or one twice.
        """
        if names is None:
            return replace(protocol, others=()) if protocol.others else protocol
        known = {task.name: task for task in protocol.tasks}
        for name in names:
            if name not in known:
                raise ConfigError(f"data.tasks: {protocol.id} has no task {shown(name)}. {did_you_mean(name, known)}")
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"data.tasks must name each task once: {', '.join(known)}; found {shown(list(names))}")
        first, *others = (known[name] for name in names)
        return replace(protocol, id=self._protocol_of(protocol, first), task=first, others=tuple(others))

    def _protocol_of(self, protocol: Protocol, task: TaskSpec) -> str:
        if task == protocol.task:
            return protocol.id
        same = (other.id for other in self.protocols.values() if other.task == task)
        return next(same, f"{protocol.id}-{task.name}")

    def root(self) -> Path:
        """The raw folder.

        Raises:
            CorpusNotFoundError: neither ``data.raw`` nor ``ERCFUSION_DATA`` leads to an existing folder.
        """
        if self.raw is not None:
            folder = self.raw
            looked = f"data.raw={self.raw}"
        elif "ERCFUSION_DATA" in os.environ:
            folder = expanded(os.environ["ERCFUSION_DATA"]) / self.card.name
            looked = f"{folder} (from the environment variable ERCFUSION_DATA)"
        else:
            raise CorpusNotFoundError(
                f"{self.card.title}: no raw folder was given. Set data.raw=FOLDER, or set the environment variable "
                f"ERCFUSION_DATA to a folder that holds {self.card.name!r}.\n{self._how_to_get()}"
            )
        if not folder.is_dir():
            raise CorpusNotFoundError(f"{self.card.title}: {looked} is not a folder.\n{self._how_to_get()}")
        return folder

    def require(self, names: Sequence[str]) -> list[Path]:
        """Paths of the named files below :meth:`root`.

        Raises:
            CorpusNotFoundError: one is missing; the message says which, where, how to get it and its licence.
        """
        root = self.root()
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise CorpusNotFoundError(
                f"{self.card.title}: {', '.join(missing)} not found in {root}.{_similar(root, missing)}\n"
                f"{self._how_to_get()}"
            )
        return [root / name for name in names]

    def _how_to_get(self) -> str:
        return (
            f"Expected there: {', '.join(self.card.layout)}.\n"
            f"How to get it: {self.card.obtain}\nLicence: {self.card.licence}"
        )
