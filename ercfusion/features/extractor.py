"""The interface of extractors, the tools behind recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.registry import Registry
from ercfusion.batch.inputs import Level
from ercfusion.data.media import Clip

ItemKind = Literal["text", "audio", "visual"]


@dataclass(frozen=True)
class Extracted:
    """The features of one item.

    Args:
        values: (T, D); T = 1 at level ``utterance``.
        note: An oddity.
        seconds: Duration of the recording.
    """

    values: NDArray[np.floating[Any]]
    note: str = ""
    seconds: float = 0.0


class ClipExtractor(Protocol):
    """An extractor of recordings, created from a recipe's settings in every process.

    A clip without features raises :class:`~ercfusion.features.clip_error.ClipError`. Optional members:
    ``remarks(clips) -> dict[Clip, str]`` (clips unlike the others), ``source(clip) -> Path`` (the file read),
    ``settings`` (with defaults).
    """

    kind: Literal["audio", "visual"]
    modality: str
    level: Level
    tool: str
    tool_version: str

    @property
    def licence(self) -> str:
        """The tool's terms in one or two sentences, or empty."""

    @property
    def dimension_names(self) -> list[str] | None:
        """D names, or None."""

    def prepare(self) -> None:
        """Load what is heavy, once per process."""

    def __call__(self, clip: Clip) -> Extracted | NDArray[np.float32]:
        """Features (T, D) of one clip."""


@runtime_checkable
class TextExtractor(Protocol):
    """An extractor of texts, ``batch`` at a time."""

    modality: str
    level: Level
    tool: str
    tool_version: str
    batch: int

    @property
    def licence(self) -> str:
        """Licence terms of the model."""

    def identity(self, texts: str) -> dict[str, str]:
        """What identifies a pack, from the digest of texts and keys."""

    def prepare(self) -> None:
        """Load the model, once per process."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """Features (T, D) of each text."""

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Further settings affecting the values, and checksums of the model's files."""


EXTRACTORS: Registry[Any] = Registry(
    "extraction tool",
    {
        "opensmile": "ercfusion.features.audio:OpenSmileExtractor",
        "logmel": "ercfusion.features.logmel:LogMelExtractor",
        "sentence-transformers": "ercfusion.features.encode:SentenceExtractor",
        "transformers": "ercfusion.features.encode:TransformerExtractor",
        "py-feat": "ercfusion.features.visual:VisualExtractor",
        "fex": "ercfusion.features.visual:VisualExtractor",
        "openface": "ercfusion.features.visual:VisualExtractor",
    },
)


def register_extractor(name: str, target: str) -> None:
    """Register ``"module:Class"`` for ``tool: NAME`` in recipes.

    Raises:
        ConfigError: the name is taken.
    """
    EXTRACTORS.register(name, target)


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """``defaults`` updated with ``settings``, without the key ``tool``.

    Raises:
        ConfigError: unknown setting.
    """
    chosen = {key: value for key, value in settings.items() if key != "tool"}
    for key in chosen:
        if key not in defaults:
            raise ConfigError(f"{tool}: unknown setting {key!r}. {did_you_mean(key, defaults)}")
    return {**defaults, **chosen}


def package_version(package: str) -> str:
    """Version of an installed package, or ``unknown``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
