"""Feature tables: the vectors of one modality, keyed by (conversation, turn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import BatchError
from ercfusion.batch.inputs import Level

Key = tuple[str, str]


class FeatureTable:
    """All vectors of one modality of one corpus.

    Args:
        modality: Any name: ``text``, ``audio``, ``visual``, ...
        keys: (conversation id, turn id) per group of rows; absent turns lack the modality.
        values: (R, D) numbers; may be memory-mapped. At level ``utterance`` R equals ``len(keys)``.
        offsets: At level ``sequence``, shape (len(keys) + 1): key k owns the rows ``offsets[k]`` to ``offsets[k + 1]``.
        source: Origin of the values, for the run record.
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
            raise BatchError(
                f"features {modality!r}: values must be a matrix, found shape {values.shape}. Give one row per key."
            )
        rows = len(keys) if offsets is None else int(offsets[-1])
        if rows != len(values):
            raise BatchError(
                f"features {modality!r}: {rows} rows are named by the keys, but there are {len(values)}. Give one row "
                "per key, or correct the offsets."
            )
        if offsets is not None and (len(offsets) != len(keys) + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any()):
            raise BatchError(
                f"features {modality!r}: offsets must rise from 0 and be one longer than the keys. Correct them."
            )
        self.modality = modality
        self.values = values
        self.offsets = offsets
        self.source = dict(source or {})
        self.keys = list(keys)
        self._row = {key: row for row, key in enumerate(self.keys)}
        if len(self._row) != len(self.keys):
            raise BatchError(f"features {modality!r}: a (conversation, turn) key occurs twice. Remove one.")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        steps = f", {len(self.values):,} time steps" if self.offsets is not None else ""
        size = f"{len(self):,} utterances{steps}, {self.width:,} dimensions"
        return f"FeatureTable({self.modality}: {size}, {self.values.dtype})"

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
        """Row group of every key, -1 for absent keys."""
        return np.fromiter((self._row.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))
