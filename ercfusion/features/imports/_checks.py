"""Looking at what a foreign pickle holds: every helper returns a checked value or says what is wrong and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import PackError, bounded
from ercfusion.batch.inputs import Level
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation
from ercfusion.data.features import FeatureTable, Key

_BITS = 64


class LayoutError(PackError):
    """A pickle does not hold what its layout says; the message names field, id, found and expected.

    Args:
        message: Cut by :func:`~ercfusion._core.errors.bounded`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


@dataclass(frozen=True)
class Imported:
    """What a foreign pickle holds, in ercfusion's terms.

    Args:
        layout: The layout's name.
        corpus: Name of the corpus that it was made from, where that is certain; else empty.
        title: For people.
        licence: What is known of the terms.
        citation: Paper of the code that the layout comes from.
        tasks: What is labelled; the first is the main one. Targets in the conversations have these names.
        splits: Conversations of train, dev and test.
        tables: Features by modality.
        positions: The file has no ids of utterances: turns are called by their position, from 0.
        notes: What was decided where the file leaves something open.
    """

    layout: str
    corpus: str
    title: str
    licence: str
    citation: str
    tasks: tuple[TaskSpec, ...]
    splits: Mapping[str, list[Conversation]]
    tables: Mapping[str, FeatureTable]
    positions: bool
    notes: tuple[str, ...]


def shown(value: object) -> str:
    """A short description of a value for messages; never the whole of it."""
    if value is None or isinstance(value, bool | float | np.number) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if isinstance(value, Sequence | Mapping | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def fail(where: str, found: object, expected: str, *, said: str = "") -> NoReturn:
    """Raise :class:`LayoutError` for a value at a place; ``said`` describes it where the value itself does not."""
    raise LayoutError(f"{where}: found {said or shown(found)}, but {expected} is expected.")


def text(value: Any, where: str) -> str:
    """Text, bytes (UTF-8, else latin-1) or a whole number, as text without white space around it."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            value = value.decode("latin1")
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value).bit_length() <= _BITS:
        value = str(int(value))
    if not isinstance(value, str):
        fail(where, value, "text")
    # Half characters, which Python 2 could write, are joined; what has no other half cannot be stored as UTF-8.
    whole_characters = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole_characters.replace("\0", " ").strip()


def identifier(value: Any, where: str) -> str:
    """Like :func:`text`, and not empty."""
    return text(value, where) or fail(where, value, "an id that is not empty")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A dictionary with its keys as text; bytes and numbers become text."""
    if not isinstance(value, dict):
        fail(where, value, "a dictionary")
    result = {identifier(key, f"{where}, a key"): entry for key, entry in dict.items(value)}
    if len(result) < len(value):
        raise LayoutError(f"{where}: two keys are the same text. Remove one.")
    return result


def sequence(value: Any, where: str, length: int | None = None) -> list[Any]:
    """A list, tuple or array as a list of its entries; ``length`` is checked where it is given."""
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim):
        fail(where, value, "a list" if length is None else f"a list of {length}")
    if length is not None and len(value) != length:
        fail(where, value, f"one entry for each of {length} utterances")
    return list(value)


def whole(value: Any, where: str) -> int:
    """A whole number; floats such as 3.0 are taken."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, int) and value.bit_length() > _BITS:
        fail(where, value, "a whole number", said=f"one of {value.bit_length()} bits")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        fail(where, value, "a whole number")
    if not np.isfinite(float(value)) or value != int(value):
        fail(where, value, "a whole number")
    return int(value)


def numbers(value: Any, where: str, ndim: int) -> NDArray[Any]:
    """An array of real numbers of ``ndim`` dimensions; lists of numbers, and lists of equally long lists, are taken."""
    if isinstance(value, list | tuple):
        if ndim > 1:
            # One level at a time: a list that holds itself, or lists of unequal length, are found where they are.
            rows = [numbers(entry, f"{where}[{index}]", ndim - 1) for index, entry in enumerate(value)]
            if len({row.shape for row in rows}) > 1:
                shapes = sorted({row.shape for row in rows})
                fail(where, value, "rows of one shape", said=f"rows of the shapes {shapes[:3]}")
            return np.stack(rows) if rows else fail(where, value, "at least one row")
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int | float | np.integer | np.floating):
                fail(where, entry, "a number")
            if isinstance(entry, int) and entry.bit_length() > _BITS:
                fail(where, entry, "a number", said=f"a whole number of {entry.bit_length()} bits")
        value = np.asarray(value, dtype=np.float32)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return numbers(list(value), where, ndim)
    if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype.kind not in "fiu":
        what = "a vector of numbers" if ndim == 1 else f"an array of numbers with {ndim} dimensions"
        fail(where, value, what)
    # Only the base class: what was read is a subclass, and double precision would be dropped by the pack anyway.
    plain = np.asarray(value)
    return plain if plain.dtype in (np.float16, np.float32) else plain.astype(np.float32)


def same_ids(fields: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> None:
    """Check that every dictionary has an entry for every conversation that the splits name."""
    for name, entries in fields.items():
        for conversation in wanted:
            if conversation not in entries:
                raise LayoutError(
                    f"field {name!r}: no entry for the conversation {conversation!r}, which the splits name "
                    f"({len(entries)} entries). The fields are not of one release, or in another order than this "
                    f"layout's."
                )


def disjoint(splits: Mapping[str, Sequence[str]]) -> None:
    """Check that no conversation is in two splits, or twice in one, and that train and test are not empty."""
    places: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in places:
                raise LayoutError(
                    f"split {split!r}: the conversation {name!r} is also in {places[name]!r}. A conversation belongs "
                    f"to one split: correct the file."
                )
            places[name] = split
    for split in ("train", "test"):
        if not splits.get(split):
            raise LayoutError(f"split {split!r} has no conversations.")


def table(modality: str, rows: Mapping[Key, NDArray[Any]], level: Level = "utterance") -> FeatureTable:
    """The vectors (D) or sequences (T, D) of one modality as a table; all must have the same width D.

    Raises:
        LayoutError: two widths, or no rows at all; the key is named.
    """
    if not rows:
        raise LayoutError(f"modality {modality!r}: no utterance has features.")
    width, first = None, ""
    for (conversation, turn), row in rows.items():
        place = f"conversation {conversation!r}, turn {turn!r}"
        if width is None:
            width, first = row.shape[-1], place
        elif row.shape[-1] != width:
            raise LayoutError(
                f"modality {modality!r}, {place}: found the width {row.shape[-1]}, but {first} has {width}. All "
                f"vectors of a modality are of one width."
            )
    parts = list(rows.values())
    if level == "utterance":
        return FeatureTable(modality, list(rows), np.stack(parts))
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return FeatureTable(modality, list(rows), np.concatenate(parts), offsets)
