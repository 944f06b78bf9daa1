"""Text features: one sentence vector per utterance, in packs built on first use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import BatchError, PackError
from ercfusion._core.files import StrPath, expanded
from ercfusion._core.progress import track
from ercfusion.data.conversation import Conversation
from ercfusion.data.corpus import Corpus, Protocol
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import bound_pack_folder, has_pack, read_pack, tidy_packs, write_pack
from ercfusion.features.encoders import (
    DEFAULT_ENCODER,
    TextEncoder,
    describe_encoder,
    encoder_identity,
    load_encoder,
)
from ercfusion.features.extractor import package_version

BATCH = 64
"""Texts encoded together; affects last digits."""

logger = logging.getLogger("ercfusion")


def build_text_table(
    conversations: Sequence[Conversation],
    encoder: str | TextEncoder = DEFAULT_ENCODER,
    *,
    batch_size: int = BATCH,
    device: str | None = None,
    progress: bool = True,
) -> FeatureTable:
    """Sentence vectors (R, D), float32, of all turns with a text; a blank text lacks the modality.

    Args:
        conversations: Of any number of splits.
        encoder: A name for :func:`load_encoder`, or its result.
        batch_size: Texts at a time; affects last digits.
        device: A torch device; None prefers a GPU.
        progress: Show a progress bar.

    Raises:
        MissingExtraError: a package is not installed.
        ConfigError: the encoder cannot be loaded.
        BatchError: no turn has a text.
    """
    spoken = spoken_texts(conversations)
    if not spoken:
        raise BatchError(
            f"modality 'text': none of the {sum(map(len, conversations))} turns has a text. Add the transcripts, or "
            "train without text: data.modalities=[...]."
        )
    loaded = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    unique = distinct_texts(spoken)
    vectors: list[NDArray[np.float32]] = []
    batch: list[str] = []
    for number, text in enumerate(track(unique, "encoding text") if progress else unique, start=1):
        batch.append(text)
        if len(batch) == batch_size or number == len(unique):
            encoded = loaded.model.encode(batch, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
            vectors.append(np.asarray(encoded, dtype=np.float32))
            batch = []
    row = {text: position for position, text in enumerate(unique)}
    values: NDArray[np.float32] = np.concatenate(vectors)[[row[text] for _, text in spoken]]
    return FeatureTable("text", [key for key, _ in spoken], values, source={"encoder": loaded.name})


def text_pack(
    corpus: Corpus,
    protocol: Protocol,
    *,
    encoder: str = DEFAULT_ENCODER,
    folder: StrPath | None = None,
    progress: bool = True,
    batch_size: int = BATCH,
    device: str | None = None,
    conversations: Mapping[str, Sequence[Conversation]] | None = None,
) -> FeatureTable:
    """The text features of a corpus from their pack, which is built if missing.

    Corpus fingerprint, texts and encoder identify the pack, so protocols with the same texts share it. Other processes
    wait for the one building it.

    Args:
        corpus, protocol: Source of the texts.
        encoder: See :func:`build_text_table`.
        folder: By default below ``$ERCFUSION_PACKS`` or the user's cache.
        progress, batch_size, device: For building.
        conversations: ``corpus.conversations(protocol)``, if known.

    Raises:
        PackError: damaged, made from something else, or not writable.
        MissingExtraError, ConfigError, BatchError: see :func:`build_text_table`.
    """
    splits = corpus.conversations(protocol) if conversations is None else conversations
    everyone = [conversation for split in splits.values() for conversation in split]
    identity = encoder_identity(encoder, texts_digest(spoken_texts(everyone)))
    target = text_pack_folder(corpus, identity) if folder is None else expanded(folder)
    tidy_packs(target.parent)
    if not has_pack(target):
        with _building_lock(target):
            if not has_pack(target):
                loaded = load_encoder(encoder, device)
                logger.info("building text features of %s with %s", corpus.name, loaded.name)
                table = build_text_table(everyone, loaded, batch_size=batch_size, progress=progress)
                _write(target, table, loaded, identity, corpus)
                logger.info("text features of %s: %s", corpus.name, target)
    table = read_pack(target, corpus=corpus.name, fingerprint=corpus.pack_fingerprints())
    origin: Mapping[str, Any] = table.source["settings"]
    for name, wanted in identity.items():
        if origin.get(name) != wanted:
            raise PackError(
                f"{target}: made with {name} {str(origin.get(name))[:40]}, not {wanted[:40]}. Choose another folder, "
                "or delete this one to build it again."
            )
    return table


def text_pack_folder(corpus: Corpus, identity: Mapping[str, str]) -> Path:
    """Default folder of a sentence encoder's pack."""
    encoder = identity["encoder"]
    recipe = "minilm" if encoder == DEFAULT_ENCODER else re.sub(r"[^a-z0-9.]+", "-", encoder.lower())
    return bound_pack_folder(corpus, recipe, identity, "text")


def licence_of_texts(corpus: Corpus) -> str:
    """Terms of vectors of a corpus's texts."""
    return f"Made from the texts of: {corpus.card.title}. {corpus.card.licence}"


def spoken_texts(conversations: Iterable[Conversation]) -> list[tuple[Key, str]]:
    """Keys and texts of turns with a text."""
    return [
        ((conversation.id, turn.id), turn.text)
        for conversation in conversations
        for turn in conversation.turns
        if turn.text is not None and turn.text.strip()
    ]


def distinct_texts(spoken: Sequence[tuple[Key, str]]) -> list[str]:
    """Distinct texts, longest first: little padding, and out-of-memory errors at once."""
    return sorted(dict.fromkeys(text for _, text in spoken), key=len, reverse=True)


def texts_digest(spoken: Sequence[tuple[Key, str]]) -> str:
    """SHA-256 over keys and texts."""
    digest = hashlib.sha256()
    for key, text in spoken:
        digest.update(json.dumps([*key, text]).encode())
    return digest.hexdigest()


def _write(
    target: Path,
    table: FeatureTable,
    loaded: TextEncoder,
    identity: Mapping[str, str],
    corpus: Corpus,
) -> None:
    settings, sources = describe_encoder(loaded)
    try:
        write_pack(
            target,
            table,
            tool="sentence-transformers",
            tool_version=package_version("sentence-transformers"),
            settings={**identity, **settings},
            corpus=corpus.name,
            fingerprint=corpus.source_fingerprint("text"),
            licence=licence_of_texts(corpus),
            sources=sources,
            torch_used=True,
        )
    except PackError:
        # Some network file systems have no locks: another process may have written it.
        if not has_pack(target):
            raise


@contextmanager
def _building_lock(target: Path) -> Iterator[None]:
    # filelock comes with torch. The system frees a killed process's lock.
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            logger.info("another process is building %s: waiting for it", target)
            lock.acquire()
    except OSError as error:
        raise PackError(
            f"{target}: the pack cannot be built there ({error}). Set the environment variable ERCFUSION_PACKS to "
            f"another folder (now: {os.environ.get('ERCFUSION_PACKS', 'not set')})."
        ) from error
    try:
        yield
    finally:
        lock.release()
