"""Types of the options of architectures, with the ranges that their values have.

A size of 0, below 0 or far too large is a mistake, or comes from a file that somebody changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from ercfusion.config.options import Range

Width = Annotated[int, Range(1, 32_768)]
"""Width of a vector, or a number of units."""

WidthOrNone = Annotated[int, Range(0, 65_536)]
"""As :data:`Width`; 0 leaves the part out."""

Count = Annotated[int, Range(1, 1_024)]
"""Number of parts, such as layers or heads."""

CountOrNone = Annotated[int, Range(0, 1_024)]
"""As :data:`Count`; 0 leaves the parts out."""

Window = Annotated[int, Range(1, 100_000)]
"""Number of utterances."""

WindowOrAll = Annotated[int, Range(-1, 100_000)]
"""Number of utterances; -1 for all."""

Share = Annotated[float, Range(0.0, 1.0)]
"""A share or a probability."""

Positive = Annotated[float, Range(1e-9, 1e9)]
"""A number above 0."""

NonNegative = Annotated[float, Range(0.0, 1e9)]
"""0 or a number above 0."""

Number = Annotated[float, Range(-1e9, 1e9)]
"""Any finite number."""

Space = Mapping[str, Mapping[str, Any]]
"""What a sweep searches: by setting a range or choices, see :mod:`ercfusion.search.space`."""
