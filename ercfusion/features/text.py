"""Text features: one sentence vector an utterance, and packs of them that are built when first needed."""

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
"""Texts encoded together, which decides about the last digits of the vectors."""

logger = logging.getLogger("ercfusion")


def build_text_table(
    conversations: Sequence[Conversation],
    encoder: str | TextEncoder = DEFAULT_ENCODER,
    *,
    batch_size: int = BATCH,
    device: str | None = None,
    progress: bool = True,
) -> FeatureTable:
    """Sentence vectors (R, D), float32, of all turns that have a text.

    A turn whose text is None or blank gets no key: it lacks the modality. A text that occurs several times is encoded
    once, and texts are encoded in order of length, so that little is padded.

    Args:
        conversations: Of any number of splits.
        encoder: ``all-MiniLM-L6-v2``, a model folder, a name on the hub, or an encoder from :func:`load_encoder`.
        batch_size: Texts at a time; changes speed and memory, and values by no more than rounding.
        device: As torch names it; None takes a GPU where there is one.
        progress: Show how far it is.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the default encoder, is not installed.
        ConfigError: the encoder cannot be loaded.
        BatchError: no turn has a text.
    """
    spoken = spoken_texts(conversations)
    if not spoken:
        raise BatchError(
            f"none of the {sum(map(len, conversations))} turns has a text, so text features cannot be made. "
            "Train without the modality 'text', or give the corpus's transcripts."
        )
    loaded = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    unique = distinct_texts(spoken)
    vectors: list[NDArray[np.float32]] = []
    batch: list[str] = []
    # Counted in texts rather than batches, so that the rate shown means something.
    for number, text in enumerate(track(unique, "encoding text") if progress else unique, start=1):
        batch.append(text)
        if len(batch) == batch_size or number == len(unique):
            found = loaded.model.encode(batch, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
            vectors.append(np.asarray(found, dtype=np.float32))
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
    """The text features of all splits of a corpus, from the pack made for it, which is built if it does not exist.

    The pack is found by the corpus's fingerprint, its texts and the encoder, so protocols that differ only in their
    labels share one. Processes that want the same pack at the same time wait for the first to build it.

    Args:
        corpus, protocol: What to take the texts from.
        encoder: See :func:`build_text_table`.
        folder: The pack's folder; by default below ``$ERCFUSION_PACKS`` or the user's cache.
        progress, batch_size, device: For building.
        conversations: ``corpus.conversations(protocol)``, where the caller has them already.

    Raises:
        PackError: the pack is damaged, was made from something else, or cannot be written.
        MissingExtraError, ConfigError, BatchError: see :func:`build_text_table`; only when building.
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
                logger.info("text features of %s lie in %s", corpus.name, target)
    table = read_pack(target, corpus=corpus.name, fingerprint=corpus.pack_fingerprints())
    made: Mapping[str, Any] = table.source["settings"]
    for name, wanted in identity.items():
        if made.get(name) != wanted:
            raise PackError(
                f"{target} was made with other {name}: the pack says {str(made.get(name))[:40]}, asked for is "
                f"{wanted[:40]}. Give another folder, or remove this one to build it again."
            )
    return table


def text_pack_folder(corpus: Corpus, identity: Mapping[str, str]) -> Path:
    """Where the text pack of a sentence encoder lies by default."""
    encoder = identity["encoder"]
    recipe = "minilm" if encoder == DEFAULT_ENCODER else re.sub(r"[^a-z0-9.]+", "-", encoder.lower())
    return bound_pack_folder(corpus, recipe, identity, "text")


def licence_of_texts(corpus: Corpus) -> str:
    """The note on what may be done with vectors of a corpus's texts."""
    return f"Made from the texts of: {corpus.card.title}. {corpus.card.licence}"


def spoken_texts(conversations: Iterable[Conversation]) -> list[tuple[Key, str]]:
    """Key and text of every turn that has one."""
    return [
        ((conversation.id, turn.id), turn.text)
        for conversation in conversations
        for turn in conversation.turns
        if turn.text is not None and turn.text.strip()
    ]


def distinct_texts(spoken: Sequence[tuple[Key, str]]) -> list[str]:
    """Every text once, the longest first: too little memory is noticed at once, and texts of a batch are alike."""
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
        # Where locks do not work (some network file systems) another process may have been faster: its pack will do.
        if not has_pack(target):
            raise


@contextmanager
def _building_lock(target: Path) -> Iterator[None]:
    # filelock comes with torch. The operating system frees the lock of a killed process, so none is ever stale.
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
            f"{target}: the pack cannot be built there: {error}. Choose another place with the environment variable "
            f"ERCFUSION_PACKS (now: {os.environ.get('ERCFUSION_PACKS', 'not set')})."
        ) from error
    try:
        yield
    finally:
        lock.release()
