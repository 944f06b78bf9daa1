"""Errors caused by a user's input.

A message contains the place (file, line, key), the problem and what to do. The commands print it without a traceback
and exit with status 2.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

_LONG_WORD = re.compile(r"(\S{60})\S{140,}")


def bounded(message: str) -> str:
    """Shorten a message: words to 200 letters, the whole to 600 characters."""
    message = _LONG_WORD.sub(r"\1...", message)
    return message if len(message) <= 600 else message[:597] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def with_type(error: BaseException) -> str:
    """Type and first line of an exception of other code, whose message may not say what happened (a ``KeyError``)."""
    line, kind = first_line(error), type(error).__name__
    return kind if line == kind else f"{kind}: {line}"


def system_words(error: OSError) -> str:
    """The system's message about a file or folder, in one line; without its name if it is a file descriptor."""
    words = " ".join(str(error.strerror or error).split()) or type(error).__name__
    name = error.filename
    return f"{os.fsdecode(name)}: {words}" if isinstance(name, str | bytes | os.PathLike) else words


class ErcfusionError(Exception):
    """Base class of errors caused by input, configuration or files."""


class ConfigError(ErcfusionError):
    """An unknown setting, a wrong type or a contradiction."""


class CorpusNotFoundError(ErcfusionError):
    """The corpus files are missing."""


class CorpusFormatError(ErcfusionError):
    """A corpus file differs from the official release. The message is shortened by :func:`bounded`."""

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


class PackError(ErcfusionError):
    """A feature pack is damaged, incomplete or of another corpus or recipe."""


class MissingExtraError(ErcfusionError):
    """An optional dependency is not installed."""


class BatchError(ErcfusionError):
    """Conversations, features and model do not fit together."""


class RunError(ErcfusionError):
    """A run folder is missing, incomplete or of the wrong kind."""


class ResumeError(RunError):
    """A checkpoint is incomplete, or settings, data or versions have changed."""


class TrainingError(ErcfusionError):
    """Training failed, for example because the loss is not finite."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` elements of ``choices`` similar to ``word``, the best first.

    Similar: at most a third of the letters differ or are swapped; one is the beginning of the other; the same words in
    another order; or some words of the choice (``epochs`` of ``max_epochs``).
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
        if edits > limit:
            words, parts = re.split(_BETWEEN, one), re.split(_BETWEEN, other)
            if sorted(words) == sorted(parts):
                edits = 1
            elif len(one) > 2 and set(words) < set(parts):
                edits = limit
        if edits <= limit and edits < max(len(one), len(other)):
            swapped = sorted(one) == sorted(other)
            ranked.append((edits, not swapped, -difflib.SequenceMatcher(None, one, other).ratio(), place, choice))
    return [choice for *_, choice in sorted(ranked)[:count]]


_LONGEST = 100  # letters; a longer word is not compared
_BETWEEN = r"[^a-z0-9]+"


def _edits(one: str, other: str, limit: int) -> int:
    """Letters changed, missing, added or swapped; ``limit + 1`` if above ``limit``."""
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        further = [i]
        for j, target in enumerate(other, start=1):
            cost = min(row[j] + 1, further[j - 1] + 1, row[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                cost = min(cost, before[j - 2] + 1)
            further.append(cost)
        before, row = row, further
    return min(row[-1], limit + 1)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence with the nearest choice, or with all choices."""
    known = list(choices)
    close = nearest(word, known, count=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Choose from: " + ", ".join(known) + "."


def require_extra(module: str, extra: str, purpose: str) -> None:
    """Raise :class:`MissingExtraError` unless ``module`` can be imported; ``purpose`` is the subject of the message."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{purpose} needs the package {module!r}, which is not installed. "
            f"Install it with: pip install 'ercfusion[{extra}]'"
        )
