"""Load conversations and features by the configuration group ``data``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ercfusion._core.errors import ConfigError, PackError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion.batch.task import TaskSpec
from ercfusion.config.hints import command
from ercfusion.config.sections import Data
from ercfusion.data.bound import OTHER, bound_protocol
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpus import Corpus, Protocol, Splits
from ercfusion.data.features import FeatureTable
from ercfusion.data.identity import data_identity
from ercfusion.data.provenance import leak_text, leaks
from ercfusion.data.store import ConversationStore
from ercfusion.data.usable import check_presence
from ercfusion.features.recipe import read_recipe, recipe_names

logger = logging.getLogger("ercfusion")

USUAL = ("text", "audio", "visual")
"""Modalities whose packs keep their name. Under another name a pack is a further one, such as a second of audio."""


@dataclass
class LoadedData:
    """A corpus under a protocol, with features.

    Args:
        corpus: The reader.
        protocol: Its id ends in ``-other`` if the files differ from the release.
        splits: Train, dev and test.
        tables: One per modality, in the models' order.
        dialogues: The conversations of utterances, if the protocol has a view; None: ``splits``.
        views: Further tasks against which the outputs are scored.
    """

    corpus: Corpus
    protocol: Protocol
    splits: Splits
    tables: list[FeatureTable]
    dialogues: Splits | None = None
    views: tuple[TaskSpec, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """See :meth:`ercfusion.data.corpus.Corpus.fingerprint`; cached."""
        return self.corpus.fingerprint()

    @cached_property
    def identity(self) -> dict[str, str]:
        """See :func:`ercfusion.data.identity.data_identity`; cached."""
        return data_identity(self.corpus, self.protocol, self.splits, self.tables, self.fingerprint)

    def protocol_of(self, task: str) -> str:
        """Id of the protocol for comparing one task's scores."""
        others = (*self.protocol.others, *self.views)
        own = replace(self.protocol, id=self.protocol.id.removesuffix(OTHER), others=others)
        return bound_protocol(self.corpus, self.corpus.with_tasks(own, [task]), self.dialogues or self.splits).id

    def store(self, split: str) -> ConversationStore:
        """A split as tensors; ConfigError if there is none."""
        if split not in self.splits:
            raise ConfigError(f"split {split!r}: unknown. {did_you_mean(split, self.splits)}")
        return ConversationStore(self.splits[split], self.tables, self.protocol.tasks, self.views)


def load_data(
    settings: Data,
    check: Callable[[Protocol, Splits], object] | None = None,
    *,
    refuse_changed: bool = True,
) -> LoadedData:
    """Open a corpus and its features; missing text features are extracted once and kept as a pack.

    Args:
        settings: The section ``data``.
        check: Called before features are read; its errors end the call.
        refuse_changed: Refuse packs with changed recordings; False warns, for runs trained with them.

    Raises:
        ConfigError: a modality that neither the corpus nor a pack offers, or no modality at all.
        BatchError: features without any turn of the corpus, or a split without any features.
        CorpusNotFoundError, CorpusFormatError, PackError: see there.
    """
    corpus = open_corpus(settings.name, settings.raw, **settings.options)
    own = corpus.protocol(settings.protocol)
    protocol = corpus.with_tasks(own, settings.tasks)
    views = corpus.views(own, settings.views, protocol.tasks)
    splits = corpus.conversations(own)
    for note in corpus.notes(own):
        logger.log(logging.WARNING if note.warning else logging.INFO, "%s: %s", corpus.name, note.text)
    viewed = protocol.viewed(splits)
    if check is not None:
        check(protocol, viewed)
    tables = load_tables(corpus, own, splits, settings)
    check_packs(corpus, tables, settings.packs, refuse_changed=refuse_changed)
    check_presence(tables, splits, settings.packs)
    bound = bound_protocol(corpus, protocol, splits)
    if bound is not protocol:
        logger.warning(
            "%s: the files differ from the release, so the protocol is recorded as %s and not compared with %s. For "
            "the differences, run: %s",
            corpus.name,
            bound.id,
            protocol.id,
            command(
                "other release", "doctor", f"data={corpus.name}", settings={"data.raw": str(corpus.root().absolute())}
            ),
        )
    if bound.view is None:
        return LoadedData(corpus, bound, splits, tables, views=views)
    return LoadedData(corpus, bound, viewed, bound.view.tables(splits, tables), splits, views)


def load_tables(corpus: Corpus, protocol: Protocol, splits: Splits, settings: Data) -> list[FeatureTable]:
    """The feature tables of ``settings``; see :func:`load_data`."""
    packs = settings.packs
    offered = list(dict.fromkeys([*protocol.modalities, *packs]))
    if not offered and (lack := corpus.missing_inputs(protocol)) is not None:
        raise ConfigError(f"{lack.text}: a model has no input. Add texts, recordings or a feature pack.")
    wanted = wanted_modalities(settings.modalities, offered, protocol)
    own: dict[str, FeatureTable] = {}
    if any(name not in packs for name in wanted):
        own = corpus.features(protocol)
    tables = []
    for name in wanted:
        if name in packs:
            from ercfusion.data.pack import read_pack

            folder = pack_folder(corpus, splits, name, packs[name])
            table = read_pack(folder, corpus=corpus.name, fingerprint=corpus.pack_fingerprints())
            if table.modality != name and name in USUAL:
                raise ConfigError(
                    f"data.packs.{name}={packs[name]}: a pack of the modality {table.modality!r}. Give it as "
                    f"data.packs.{table.modality}, or under a name of your own."
                )
            table.modality = name
            leaked, text = known_labels(table, corpus, protocol, splits)
            if leaked:
                table.source["leak"] = leaked  # for the run's record
                logger.warning("data.packs.%s=%s: %s", name, packs[name], text)
        elif name in own:
            table = own[name]
        elif name != "text":
            raise PackError(
                f"{corpus.card.title}: has no {name} features. Make them with one of the recipes that "
                f"{command('recipes', 'extract', '--list')} prints and add data.packs.{name}=RECIPE, or choose other "
                "modalities with data.modalities=[...]."
            )
        else:
            from ercfusion.features.text import text_pack

            table = text_pack(corpus, protocol, encoder=settings.encoder, conversations=splits)
        tables.append(table)
    return tables


def check_packs(
    corpus: Corpus, tables: Sequence[FeatureTable], packs: Mapping[str, str], *, refuse_changed: bool
) -> None:
    """Compare the packs' recordings with those used."""
    from ercfusion.data.pack import read_manifest
    from ercfusion.features.changed import check_recordings

    for table in tables:
        if "pack" in table.source:
            folder = Path(table.source["pack"])
            check_recordings(folder, read_manifest(folder), corpus, pack_place(table, packs), refuse=refuse_changed)


def pack_place(table: FeatureTable, packs: Mapping[str, str]) -> str:
    """A table's pack as typed, or its folder."""
    place = packs.get(table.modality)
    return str(table.source["pack"]) if place is None else f"data.packs.{table.modality}={place}"


def known_labels(table: FeatureTable, corpus: Corpus, protocol: Protocol, splits: Splits) -> tuple[dict[str, int], str]:
    """Dev and test turns, by split, whose labels trained a pack's values, and a sentence about it."""
    from ercfusion.data.pack import read_manifest

    if "trained_on" not in table.source:
        return {}, ""
    trained_on = read_manifest(table.source["pack"])["trained_on"]
    leaked = leaks(trained_on, corpus.name, splits)
    return leaked, leak_text(trained_on, leaked, protocol.id) if leaked else ""


def pack_folder(corpus: Corpus, splits: Splits, modality: str, place: str) -> str:
    """The folder of ``data.packs``: a folder, or a recipe's default folder.

    Raises:
        PackError: the recipe's pack does not exist.
    """
    from ercfusion.features.extraction import find_pack

    if expanded(place).exists() or place not in recipe_names():
        return place
    return str(find_pack(corpus, read_recipe(place), modality, splits))


def wanted_modalities(asked: Sequence[str] | None, offered: Sequence[str], protocol: Protocol) -> list[str]:
    """The modalities requested, or all."""
    if asked is None:
        return list(offered)
    if not asked:
        raise ConfigError(f"data.modalities: empty list. Choose from: {', '.join(offered)}.")
    for name in asked:
        if name not in offered:
            raise ConfigError(
                f"data.modalities: {protocol.id} has no {name!r}, only {', '.join(offered)}. Add its feature pack with "
                f"data.packs.{name}=FOLDER, or remove it."
            )
    if len(set(asked)) < len(asked):
        raise ConfigError(f"data.modalities: a modality is listed twice: {', '.join(asked)}. Remove the second.")
    return list(asked)
