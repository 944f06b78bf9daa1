"""Checks of a foreign pickle's content; errors name the place."""

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
    """A pickle's content does not fit its layout; the message has at most 600 letters."""

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


@dataclass(frozen=True)
class Imported:
    """The content of a foreign pickle in ercfusion's terms.

    Args:
        layout: The layout's name.
        corpus: Empty if several are possible.
        title, licence: For people.
        citation: Paper of the layout's code.
        tasks: Names of the conversations' targets, the main one first.
        splits: Train, dev and test.
        tables: Features by modality.
        positions: Turns have no ids and are named by position.
        notes: Decisions about what the file leaves open.
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
    """A short description of a value."""
    if value is None or isinstance(value, bool | float | np.number) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if isinstance(value, Sequence | Mapping | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def fail(where: str, value: object, expected: str, *, text: str = "") -> NoReturn:
    """Raise :class:`LayoutError` for a value at a place, described by ``text`` if given."""
    raise LayoutError(
        f"{where}: found {text or shown(value)}, but {expected} is expected. Check that layout= is the file's layout."
    )


def text(value: Any, where: str) -> str:
    """Text, bytes (UTF-8, else latin-1) or a whole number, as stripped text."""
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
    # Python 2 could write surrogates: pairs are joined; single ones, which UTF-8 cannot store, are replaced.
    joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", " ").strip()


def identifier(value: Any, where: str) -> str:
    """Like :func:`text`, but not empty."""
    return text(value, where) or fail(where, value, "an id that is not empty")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A dictionary with its keys as text."""
    if not isinstance(value, dict):
        fail(where, value, "a dictionary")
    result = {identifier(key, f"{where}, a key"): item for key, item in dict.items(value)}
    if len(result) < len(value):
        raise LayoutError(f"{where}: two keys are the same text. Remove one.")
    return result


def sequence(value: Any, where: str, length: int | None = None) -> list[Any]:
    """A list, tuple or array as a list, of a length if given."""
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim):
        fail(where, value, "a list" if length is None else f"a list of {length}")
    if length is not None and len(value) != length:
        fail(where, value, f"one item for each of {length} utterances")
    return list(value)


def whole(value: Any, where: str) -> int:
    """A whole number, or a float such as 3.0."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, int) and value.bit_length() > _BITS:
        fail(where, value, "a whole number", text=f"one of {value.bit_length()} bits")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        fail(where, value, "a whole number")
    if not np.isfinite(float(value)) or value != int(value):
        fail(where, value, "a whole number")
    return int(value)


def numbers(value: Any, where: str, ndim: int) -> NDArray[Any]:
    """An array of real numbers with ``ndim`` dimensions, also from lists."""
    if isinstance(value, list | tuple):
        if ndim > 1:
            # Level by level: lists of unequal length, or holding themselves, are reported with their place.
            rows = [numbers(row, f"{where}[{index}]", ndim - 1) for index, row in enumerate(value)]
            if len({row.shape for row in rows}) > 1:
                shapes = sorted({row.shape for row in rows})
                fail(where, value, "rows of one shape", text=f"rows of the shapes {shapes[:3]}")
            return np.stack(rows) if rows else fail(where, value, "at least one row")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int | float | np.integer | np.floating):
                fail(where, number, "a number")
            if isinstance(number, int) and number.bit_length() > _BITS:
                fail(where, number, "a number", text=f"a whole number of {number.bit_length()} bits")
        value = np.asarray(value, dtype=np.float32)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return numbers(list(value), where, ndim)
    if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype.kind not in "fiu":
        what = "a vector of numbers" if ndim == 1 else f"an array of numbers with {ndim} dimensions"
        fail(where, value, what)
    # As the base class, and in the precision that packs store.
    plain = np.asarray(value)
    return plain if plain.dtype in (np.float16, np.float32) else plain.astype(np.float32)


def same_ids(fields: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> None:
    """Check that every field has every conversation of the splits."""
    for name, items in fields.items():
        for conversation in wanted:
            if conversation not in items:
                raise LayoutError(
                    f"field {name!r}: has {len(items)} conversations, but not {conversation!r} of the splits. Check "
                    f"that the file is complete and layout= is its layout."
                )


def disjoint(splits: Mapping[str, Sequence[str]]) -> None:
    """Check that no conversation occurs twice, and train and test are not empty."""
    places: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in places:
                raise LayoutError(
                    f"split {split!r}: the conversation {name!r} is also in {places[name]!r}. Remove it from one of "
                    f"them."
                )
            places[name] = split
    for split in ("train", "test"):
        if not splits.get(split):
            raise LayoutError(f"split {split!r}: no conversations. Check that the file is complete.")


def table(modality: str, rows: Mapping[Key, NDArray[Any]], level: Level = "utterance") -> FeatureTable:
    """The vectors (D) or sequences (T, D) of one modality as a table.

    Raises:
        LayoutError: two widths D, or no rows.
    """
    if not rows:
        raise LayoutError(f"modality {modality!r}: no utterance has features. Check that the file is complete.")
    width, first = None, ""
    for (conversation, turn), row in rows.items():
        place = f"conversation {conversation!r}, turn {turn!r}"
        if width is None:
            width, first = row.shape[-1], place
        elif row.shape[-1] != width:
            raise LayoutError(
                f"modality {modality!r}, {place}: the width is {row.shape[-1]}, but {width} in {first}. Check that "
                f"layout= is the file's layout."
            )
    parts = list(rows.values())
    if level == "utterance":
        return FeatureTable(modality, list(rows), np.stack(parts))
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return FeatureTable(modality, list(rows), np.concatenate(parts), offsets)
