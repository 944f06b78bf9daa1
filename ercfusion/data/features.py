"""Feature tables: the vectors of one modality, keyed by (conversation, turn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion.errors import BatchError

Level = Literal["utterance", "sequence"]
Key = tuple[str, str]


@dataclass(frozen=True)
class InputSpec:
    """What a model is fed: the modalities in column order, with widths and levels that come from the data.

    Args:
        widths: Dimensions of each modality's vectors.
        levels: ``utterance`` (one vector a turn, the default) or ``sequence`` (T_i vectors a turn).
        speakers: The largest number of speakers in one training conversation, for models that number speakers.
    """

    widths: Mapping[str, int]
    levels: Mapping[str, Level] = field(default_factory=dict)
    speakers: int = 2

    def __post_init__(self) -> None:
        if not self.widths:
            raise BatchError("a model needs at least one modality")
        object.__setattr__(self, "widths", {name: int(width) for name, width in self.widths.items()})
        object.__setattr__(self, "levels", {name: self.levels.get(name, "utterance") for name in self.widths})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in column order of the availability mask."""
        return tuple(self.widths)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return {"widths": dict(self.widths), "levels": dict(self.levels), "speakers": self.speakers}

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> InputSpec:
        """Inverse of :meth:`to_dict`."""
        return InputSpec(state["widths"], state["levels"], state["speakers"])


class FeatureTable:
    """All vectors of one modality of one corpus.

    Args:
        modality: Free name: ``text``, ``audio``, ``visual``, ``mocap``, ...
        keys: One (conversation id, turn id) a row group; a turn that is absent here has no such modality.
        values: (R, D) numbers; may be memory-mapped. At level ``utterance`` R equals ``len(keys)``.
        offsets: At level ``sequence``, shape (len(keys) + 1): key k owns the rows ``offsets[k]`` to ``offsets[k + 1]``.
        source: Where the values came from, for the run record (a pack's folder and checksum, or a corpus reader).
    """

    def __init__(
        self,
        modality: str,
        keys: Sequence[Key],
        values: NDArray[Any],
        offsets: NDArray[Any] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        if values.ndim != 2:
            raise BatchError(f"features {modality!r}: values must be a matrix, found shape {values.shape}")
        rows = len(keys) if offsets is None else int(offsets[-1])
        if rows != len(values):
            raise BatchError(f"features {modality!r}: {rows} rows are named by the keys, but there are {len(values)}")
        if offsets is not None and (len(offsets) != len(keys) + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any()):
            raise BatchError(f"features {modality!r}: offsets must rise from 0 and be one longer than the keys")
        self.modality = modality
        self.values = values
        self.offsets = offsets
        self.source = dict(source or {})
        self.keys = list(keys)
        self._row = {key: row for row, key in enumerate(self.keys)}
        if len(self._row) != len(self.keys):
            raise BatchError(f"features {modality!r}: a (conversation, turn) key occurs twice")

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    @property
    def width(self) -> int:
        """D, the number of dimensions."""
        return int(self.values.shape[1])

    @property
    def level(self) -> Level:
        """``utterance`` or ``sequence``."""
        return "utterance" if self.offsets is None else "sequence"

    def rows(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """Row group of every key, -1 where the table does not have it."""
        return np.fromiter((self._row.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))
