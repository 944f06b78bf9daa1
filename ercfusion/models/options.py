"""Types and ranges of the options of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from ercfusion.config.options import Range

Width = Annotated[int, Range(1, 32_768)]
"""Width of a vector, or a number of units."""

WidthOrNone = Annotated[int, Range(0, 65_536)]
"""As :data:`Width`; 0 for no such part."""

Count = Annotated[int, Range(1, 1_024)]
"""Number of parts, such as layers or heads."""

CountOrNone = Annotated[int, Range(0, 1_024)]
"""As :data:`Count`; 0 for none."""

Window = Annotated[int, Range(1, 100_000)]
"""Number of utterances."""

WindowOrNone = Annotated[int, Range(0, 100_000)]
"""As :data:`Window`; 0 for none."""

WindowOrAll = Annotated[int, Range(-1, 100_000)]
"""Number of utterances; -1 for all."""

Share = Annotated[float, Range(0.0, 1.0)]
"""Share or probability."""

Positive = Annotated[float, Range(1e-9, 1e9)]
"""Number above 0."""

NonNegative = Annotated[float, Range(0.0, 1e9)]
"""Number of at least 0."""

Number = Annotated[float, Range(-1e9, 1e9)]
"""Any finite number."""

Space = Mapping[str, Mapping[str, Any]]
"""Search space: a range or choices by setting, see :mod:`ercfusion.search.space`."""
