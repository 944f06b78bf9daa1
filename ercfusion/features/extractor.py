"""What an extractor is: the tool behind a recipe, as the pipeline calls it."""

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
        values: (T, D) numbers; T = 1 at level ``utterance``.
        note: Something odd that did not prevent them, in words.
        seconds: Duration of what was processed, where that means something.
    """

    values: NDArray[np.floating[Any]]
    note: str = ""
    seconds: float = 0.0


class ClipExtractor(Protocol):
    """An extractor of recordings.

    It is made from the settings of a recipe, in the process that coordinates and in every worker; ``prepare`` loads
    what is heavy. A clip that gives nothing raises :class:`~ercfusion.features.clip_error.ClipError` with the reason.
    An extractor may also have ``remarks(clips) -> dict[Clip, str]``: what is odd about clips among the others.
    """

    kind: Literal["audio", "visual"]
    modality: str
    level: Level
    tool: str
    tool_version: str

    @property
    def licence(self) -> str:
        """What the tool's licence asks for, in a sentence or two; empty where it asks for nothing."""

    @property
    def dimension_names(self) -> list[str] | None:
        """D names, or None where the tool has none."""

    def prepare(self) -> None:
        """Load what is heavy, once a process."""

    def __call__(self, clip: Clip) -> Extracted | NDArray[np.float32]:
        """Features (T, D) of one clip."""


@runtime_checkable
class TextExtractor(Protocol):
    """An extractor of texts, which are given to it in groups of ``batch``."""

    modality: str
    level: Level
    tool: str
    tool_version: str
    batch: int

    @property
    def licence(self) -> str:
        """What the licence of the model asks for."""

    def identity(self, texts: str) -> dict[str, str]:
        """What tells one pack from another, given the digest of all texts and their keys."""

    def prepare(self) -> None:
        """Load the model, once a process."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """Features (T, D) of each text."""

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """More settings that decide about the values, and checksums of the model's files."""


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
    """Make an extractor of your own known as ``tool: name`` of a recipe.

    Args:
        name: New name; a taken one is refused.
        target: ``"module:Class"``; the class has the members of :class:`ClipExtractor` or :class:`TextExtractor`.

    Raises:
        ConfigError: the name belongs to another extractor.
    """
    EXTRACTORS.register(name, target)


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """``defaults`` overlaid with ``settings`` (whose entry ``tool``, which every extractor is given, is left out).

    Raises:
        ConfigError: a setting that the tool does not have; the message names the nearest.
    """
    given = {key: value for key, value in settings.items() if key != "tool"}
    for key in given:
        if key not in defaults:
            raise ConfigError(f"{tool} has no setting {key!r}. {did_you_mean(key, defaults)}")
    return {**defaults, **given}


def package_version(package: str) -> str:
    """The version of an installed package; ``unknown`` where it is not installed as one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
