"""Feature packs from a trained model's representations of each modality."""

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
"""Folder of the packs in a run folder."""


def check_exportable(recognizer: Recognizer) -> None:
    """Raise :class:`ConfigError` if a model has nothing to export."""
    if not set(recognizer.representation_widths()) & set(recognizer.inputs.modalities):
        raise ConfigError(
            f"task.export=true: {recognizer.config['architecture']} with these options has no representation of a "
            "single modality to write as a feature pack. Use model=utterance_encoder, or set task.export=false."
        )


def export_packs(
    run: StrPath, *, data: Data | None = None, out: StrPath | None = None, overwrite: bool = False
) -> dict[str, Path]:
    """Export a finished run's representations, also of another corpus: float32 vectors of length 1.

    Args:
        data: The section ``data`` of another corpus with features of the same kind; None for the run's own.
        out: Folder for the packs, one subfolder per modality; None for ``RUN/packs``, only without ``data``.
        overwrite: Replace existing packs.

    Returns:
        The pack's folder by modality.

    Raises:
        RunError: not a run, or without a model.
        ConfigError: no representation of a single modality, ``out`` is missing, or modules are not imported.
        BatchError: other feature widths than in training.
        PackError: a pack exists already.
    """
    if data is not None and out is None:
        raise ConfigError("out= is missing. Set out=DIR to the output folder for the packs of another corpus.")
    folder, config = read_config(Path(run))
    require_trusted(config["imports"], f"import {', '.join(config['imports'])} first")
    record = read_record(folder)
    recognizer = Recognizer.from_pretrained(folder / "model")
    check_exportable(recognizer)
    own = section_from("data", config["data"])
    loaded = load_data(own if data is None else data, refuse_changed=data is not None)
    if loaded.protocol.view is not None:
        raise ConfigError(
            f"{loaded.protocol.id} has entities of dialogues, and a feature pack is for utterances. Choose another "
            "protocol (data.protocol=...)."
        )
    corpus = open_corpus(own.name, own.raw, **own.options)
    protocol = corpus.protocol(own.protocol)
    fingerprint = corpus.fingerprint()
    if fingerprint != record["corpus"]["fingerprint"]:
        raise RunError(
            f"{folder}: the run was trained on another version of {corpus.name} ({record['corpus']['fingerprint'][:12]}"
            f", now {fingerprint[:12]}), so its training turns are unknown. Restore those corpus files."
        )
    splits = corpus.conversations(protocol)
    bound = bound_protocol(corpus, protocol, splits)
    learned = trained_on(corpus.name, fingerprint, bound.id, "train", splits["train"])
    target = expanded(out) if out is not None else folder / PACKS
    return write_packs(recognizer, loaded, target, folder, learned, overwrite=overwrite)


def export(recognizer: Recognizer, data: LoadedData, folder: Path) -> dict[str, Any]:
    """Write the packs of a run; returns the record's part about them."""
    corpus, protocol = data.corpus, data.protocol
    learned = trained_on(corpus.name, data.fingerprint, protocol.id, "train", data.splits["train"])
    packs = {}
    for name, pack in write_packs(recognizer, data, folder / PACKS, folder, learned).items():
        manifest = read_manifest(pack)
        packs[name] = {"folder": f"{PACKS}/{name}", "width": manifest["width"], "keys": manifest["keys"]}
        packs[name]["sha256"] = manifest["files"]["values.safetensors"]["sha256"]
    return packs


def write_packs(
    recognizer: Recognizer,
    data: LoadedData,
    target: Path,
    run: Path,
    learned: Mapping[str, Any],
    *,
    overwrite: bool = True,
) -> dict[str, Path]:
    """Write one pack per modality with representations (:func:`export_packs`).

    Args:
        recognizer: In eval mode.
        target: Folder for the packs.
        run: Folder of the run, with ``model`` and ``environment.json``.
        learned: The training data (:func:`ercfusion.data.provenance.trained_on`).
        overwrite: Replace existing packs, as after an interruption.
    """
    keys: dict[str, list[Key]] = {}
    parts: dict[str, list[NDArray[np.float32]]] = {}
    turns: list[Key] = []
    for split in data.splits:
        store = data.store(split)
        turns += [key for conversation in store.conversations for key in conversation.keys()]  # noqa: SIM118
        for name, (split_keys, values) in vectors(recognizer, store).items():
            keys.setdefault(name, []).extend(split_keys)
            parts.setdefault(name, []).append(values)
    revision = read_environment(run).get("revision") or {}
    model = {name: sha256_of(run / "model" / name) for name in ("model.safetensors", "config.json")}
    # Training data of the inputs is training data of these vectors.
    inherited = [item for table in data.tables for item in _of_pack(table)]
    inputs = {
        f"{table.modality} features": str(table.source["sha256"]) for table in data.tables if "sha256" in table.source
    }
    written = {}
    for name, pack_keys in keys.items():
        covered = set(pack_keys)
        written[name] = write_pack(
            target / name,
            FeatureTable(name, pack_keys, np.concatenate(parts[name])),
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
            sources={**model, **inputs},
            torch_used=True,
            missing={key: f"without {name} features" for key in turns if key not in covered},
            trained_on=[learned, *inherited],
            overwrite=overwrite and has_pack(target / name),
        )
        logger.info("vectors of %s: %s (data.packs.%s=%s)", name, f"{len(pack_keys):,}", name, written[name])
    return written


@torch.no_grad()
def vectors(recognizer: Recognizer, store: ConversationStore) -> dict[str, tuple[list[Key], NDArray[np.float32]]]:
    """Keys and unit vectors (n, D) float32 by modality, for turns with the modality."""
    device = next(recognizer.parameters()).device
    order = [key for conversation in store.conversations for key in conversation.keys()]  # noqa: SIM118
    keys: dict[str, list[Key]] = {}
    parts: dict[str, list[NDArray[np.float32]]] = {}
    first = 0
    for batch in store.batches(64):
        encoded = recognizer(batch.to(device)).encoded.modalities
        for name in (name for name in recognizer.inputs.modalities if name in encoded):
            available = batch.present[:, batch.column(name)]
            if name in batch.sequences:
                available = available & (batch.sequences[name].offsets.diff() > 0)
            rows = available.nonzero().flatten().tolist()
            keys.setdefault(name, []).extend(order[first + row] for row in rows)
            unit = F.normalize(encoded[name].float(), dim=1).cpu()
            parts.setdefault(name, []).append(unit[available].numpy())
        first += batch.num_utterances
    return {name: (all_keys, np.concatenate(parts[name])) for name, all_keys in keys.items()}


def _of_pack(table: FeatureTable) -> list[Mapping[str, Any]]:
    folder = table.source.get("pack")
    if folder is None or not has_pack(folder):
        return []
    return list(checked(read_manifest(folder).get("trained_on"), str(folder)))
