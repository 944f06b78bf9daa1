"""Errors that a user can act on.

Every error raised for a user's mistake derives from :class:`ErcfusionError`. Its text says what was found, where
(file, line, key) and what to do. The commands print that text alone, without a traceback, and exit with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ErcfusionError(Exception):
    """Base of all errors caused by input, configuration or files rather than by a defect of the library."""


class ConfigError(ErcfusionError):
    """A setting that does not exist, has the wrong type, or contradicts another setting."""


class CorpusNotFoundError(ErcfusionError):
    """Raw corpus files are not where they were looked for."""


class CorpusFormatError(ErcfusionError):
    """A corpus file was found but does not hold what its release holds."""


class PackError(ErcfusionError):
    """A feature pack is damaged, incomplete, or belongs to something else."""


class MissingExtraError(ErcfusionError):
    """An optional dependency is needed and not installed."""


class BatchError(ErcfusionError):
    """Conversations, features and a model do not fit together."""


class RunError(ErcfusionError):
    """A run folder is missing, incomplete, or of another kind than asked for."""


class TrainingError(ErcfusionError):
    """Training cannot go on, for example because the loss is not a finite number."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The entries of ``choices`` that look most like ``word``, best first (empty when none is similar)."""
    return difflib.get_close_matches(word, list(choices), n=count, cutoff=0.5)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest right word, or lists the choices when nothing is near."""
    known = list(choices)
    close = nearest(word, known, count=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Choose from: " + ", ".join(known) + "."


def require_extra(module: str, extra: str, purpose: str) -> None:
    """Raise :class:`MissingExtraError` unless ``module`` can be imported.

    Args:
        module: Import name, for example ``"sentence_transformers"``.
        extra: The extra of ercfusion that installs it, for example ``"text"``.
        purpose: What needs it, as the subject of a sentence.
    """
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{purpose} needs the package {module!r}, which is not installed. "
            f"Install it with: pip install 'ercfusion[{extra}]'"
        )
