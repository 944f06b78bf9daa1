"""The vectors that a trained model makes of every modality, as feature packs for other models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ercfusion._core.errors import ConfigError, RunError
from ercfusion._core.files import StrPath, expanded, sha256_of
from ercfusion._core.registry import require_trusted
from ercfusion._core.version import __version__
from ercfusion.config.sections import Data
from ercfusion.config.settings import section_from
from ercfusion.data.bound import bound_protocol
from ercfusion.data.corpora import open_corpus
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import has_pack, read_manifest, write_pack
from ercfusion.data.provenance import checked, trained_on
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData, load_data
from ercfusion.records.record import read_record
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.folder import read_config, read_environment

logger = logging.getLogger("ercfusion")

TOOL = "ercfusion-run"
PACKS = "packs"
"""Folder of a run's packs, below that of the run."""


def check_exportable(recognizer: Recognizer) -> None:
    """Raise :class:`ConfigError` where a model has nothing to export."""
    if not set(recognizer.representation_widths()) & set(recognizer.inputs.modalities):
        raise ConfigError(
            f"task.export=true: {recognizer.config['architecture']} with these options has no representation of a "
            "single modality that could become a feature pack. Take model=utterance_encoder, or set task.export=false."
        )


def export_packs(
    run: StrPath, *, data: Data | None = None, out: StrPath | None = None, overwrite: bool = False
) -> dict[str, Path]:
    """Export the vectors that the chosen model of a finished run makes, also for another corpus.

    The vectors have length 1 and are float32. Of every split of the protocol each turn that has the modality gets one.

    Args:
        run: Its folder.
        data: The section ``data`` of another corpus, whose features must be of the kind that the run was
            trained on; None for the run's own.
        out: Below which a folder a modality is made; ``RUN/packs`` where None and ``data`` is None.
        overwrite: Replace packs that are there.

    Returns:
        The pack's folder by modality.

    Raises:
        RunError: no run, or it has no model.
        ConfigError: the model has no representation of a single modality, ``out`` is missing, or the run's settings
            name modules that have not been imported.
        BatchError: the features have other widths than the model was trained on.
        PackError: a pack is in the way.
    """
    if data is not None and out is None:
        raise ConfigError("out= is missing: where the packs of another corpus shall lie")
    folder, config = read_config(Path(run))
    require_trusted(config["imports"], f"import {', '.join(config['imports'])} first")
    record = read_record(folder)
    recognizer = Recognizer.from_pretrained(folder / "model")
    check_exportable(recognizer)
    own = section_from("data", config["data"])
    loaded = load_data(own if data is None else data, refuse_changed=data is not None)
    corpus = open_corpus(own.name, own.raw, **own.options)
    protocol = corpus.protocol(own.protocol)
    found = corpus.fingerprint()
    if found != record["corpus"]["fingerprint"]:
        raise RunError(
            f"{folder}: the run was trained on another version of {corpus.name} ({record['corpus']['fingerprint'][:12]}"
            f", here is {found[:12]}): which turns it was trained on cannot be told. Restore those corpus files."
        )
    splits = corpus.conversations(protocol)
    bound = bound_protocol(corpus, protocol, splits)
    learned = trained_on(corpus.name, found, bound.id, "train", splits["train"])
    target = expanded(out) if out is not None else folder / PACKS
    return write_packs(recognizer, loaded, target, folder, learned, overwrite=overwrite)


def write_packs(
    recognizer: Recognizer,
    data: LoadedData,
    target: Path,
    run: Path,
    learned: Mapping[str, Any],
    *,
    overwrite: bool = True,
) -> dict[str, Path]:
    """Write a pack for every modality that ``recognizer`` has vectors of; see :func:`export_packs`.

    Args:
        recognizer: In eval mode.
        data: What it is applied to.
        target: A folder a modality is made below it.
        run: Folder of the run, with ``model`` and ``environment.json``.
        learned: What it was trained on (:func:`ercfusion.data.provenance.trained_on`).
        overwrite: Replace packs that are there: a run that was stopped here writes all of them again.
    """
    keys: dict[str, list[Key]] = {}
    parts: dict[str, list[NDArray[np.float32]]] = {}
    turns: list[Key] = []
    for split in data.splits:
        store = data.store(split)
        turns += [key for conversation in store.conversations for key in conversation.keys()]  # noqa: SIM118
        for name, (held, values) in vectors(recognizer, store).items():
            keys.setdefault(name, []).extend(held)
            parts.setdefault(name, []).append(values)
    revision = read_environment(run).get("revision") or {}
    model = {name: sha256_of(run / "model" / name) for name in ("model.safetensors", "config.json")}
    # What trained the vectors that were fed in has trained these, too.
    inherited = [entry for table in data.tables for entry in _of_pack(table)]
    fed = {
        f"{table.modality} features": str(table.source["sha256"]) for table in data.tables if "sha256" in table.source
    }
    written = {}
    for name, held in keys.items():
        there = set(held)
        written[name] = write_pack(
            target / name,
            FeatureTable(name, held, np.concatenate(parts[name])),
            tool=TOOL,
            tool_version=__version__,
            settings={
                "run": run.name,
                "revision": revision.get("commit") or "unknown",
                "sources_changed": revision.get("dirty", True),
                "architecture": recognizer.config["architecture"],
                "options": recognizer.config["options"],
                "length": 1.0,
            },
            corpus=data.corpus.name,
            fingerprint=data.corpus.source_fingerprint(),
            licence=f"Made from features of: {data.corpus.card.title}. {data.corpus.card.licence}",
            sources={**model, **fed},
            torch_used=True,
            missing={key: f"without {name} features" for key in turns if key not in there},
            trained_on=[learned, *inherited],
            overwrite=overwrite and has_pack(target / name),
        )
        logger.info("vectors of %s: %s (data.packs.%s=%s)", name, f"{len(held):,}", name, written[name])
    return written


@torch.no_grad()
def vectors(recognizer: Recognizer, store: ConversationStore) -> dict[str, tuple[list[Key], NDArray[np.float32]]]:
    """Keys and unit vectors (n, D) float32 of every modality, for the turns of a split that have it."""
    device = next(recognizer.parameters()).device
    order = [key for conversation in store.conversations for key in conversation.keys()]  # noqa: SIM118
    keys: dict[str, list[Key]] = {}
    parts: dict[str, list[NDArray[np.float32]]] = {}
    first = 0
    for batch in store.batches(64):
        encoded = recognizer(batch.to(device)).encoded.modalities
        for name in (name for name in recognizer.inputs.modalities if name in encoded):
            here = batch.present[:, batch.column(name)]
            if name in batch.sequences:
                here = here & (batch.sequences[name].offsets.diff() > 0)
            rows = here.nonzero().flatten().tolist()
            keys.setdefault(name, []).extend(order[first + row] for row in rows)
            unit = F.normalize(encoded[name].float(), dim=1).cpu()
            parts.setdefault(name, []).append(unit[here].numpy())
        first += batch.num_utterances
    return {name: (held, np.concatenate(parts[name])) for name, held in keys.items()}


def _of_pack(table: FeatureTable) -> list[Mapping[str, Any]]:
    folder = table.source.get("pack")
    if folder is None or not has_pack(folder):
        return []
    return list(checked(read_manifest(folder).get("trained_on"), str(folder)))
