"""Errors that a user can act on.

Every error raised for a user's mistake derives from :class:`ErcfusionError`. Its text says what was found, where
(file, line, key) and what to do. The commands print that text alone, without a traceback, and exit with status 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONG_WORD = re.compile(r"(\S{60})\S{140,}")


def bounded(message: str) -> str:
    """A message about a file's content with words of at most 200 letters, and of at most 600 characters."""
    message = _LONG_WORD.sub(r"\1...", message)
    return message if len(message) <= 600 else message[:597] + "..."


class ErcfusionError(Exception):
    """Base of all errors caused by input, configuration or files rather than by a defect of the library."""


class ConfigError(ErcfusionError):
    """A setting that does not exist, has the wrong type, or contradicts another setting."""


class CorpusNotFoundError(ErcfusionError):
    """Raw corpus files are not where they were looked for."""


class CorpusFormatError(ErcfusionError):
    """A corpus file was found but does not hold what its release holds.

    Args:
        message: Words of more than 200 letters, and what is beyond 600 characters, are cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


class PackError(ErcfusionError):
    """A feature pack is damaged, incomplete, or belongs to something else."""


class MissingExtraError(ErcfusionError):
    """An optional dependency is needed and not installed."""


class BatchError(ErcfusionError):
    """Conversations, features and a model do not fit together."""


class RunError(ErcfusionError):
    """A run folder is missing, incomplete, or of another kind than asked for."""


class ResumeError(RunError):
    """What a checkpoint was made with has changed, or a part of the checkpoint is missing: going on would be wrong."""


class TrainingError(ErcfusionError):
    """Training cannot go on, for example because the loss is not a finite number."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The entries of ``choices`` that ``word`` may be a slip of, best first (empty when none is near).

    Near are: a third of the letters at most changed, missing, added or swapped with the next; the beginning of a word;
    and the same words in another order.
    """
    if len(word) > _LONGEST:
        return []
    ranked = []
    for place, choice in enumerate(choices):
        one, other = word.casefold(), choice.casefold()
        limit = max(1, len(one) // 3)
        edits = 0 if one == other else _edits(one, other, limit)
        if edits > limit and min(len(one), len(other)) > 2 and (one.startswith(other) or other.startswith(one)):
            edits = limit
        if edits > limit and sorted(re.split(_BETWEEN, one)) == sorted(re.split(_BETWEEN, other)):
            edits = 1
        if edits <= limit and edits < max(len(one), len(other)):
            swapped = sorted(one) == sorted(other)
            ranked.append((edits, not swapped, -difflib.SequenceMatcher(None, one, other).ratio(), place, choice))
    return [choice for *_, choice in sorted(ranked)[:count]]


_LONGEST = 100  # letters of a word that may be a slip
_BETWEEN = r"[^a-z0-9]+"


def _edits(one: str, other: str, limit: int) -> int:
    """How many letters are changed, missing, added, or swapped with the next; ``limit + 1`` for more than ``limit``."""
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        further = [i]
        for j, found in enumerate(other, start=1):
            cost = min(row[j] + 1, further[j - 1] + 1, row[j - 1] + (letter != found))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == found:
                cost = min(cost, before[j - 2] + 1)
            further.append(cost)
        before, row = row, further
    return min(row[-1], limit + 1)


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
