"""Round numbers for the axes of hand-written pictures."""

from __future__ import annotations

import math


def ticks(low: float, high: float) -> list[float]:
    """About six round numbers between the ends."""
    raw = (high - low) / 6
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]
