"""Draws of conversations with replacement, shared by all models and metrics of a table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Floats

_CHUNK = 2**22
_KEPT = 2**23  # numbers: at most 16 MiB, for up to 65,535 conversations


def weights_of_resamples(batch: int, resamples: int, width: int, seed: int) -> Iterator[Floats]:
    """How often each of B conversations is drawn, (part of R, B) at a time.

    In parts, because ``width`` numbers per resample are computed from them at once.
    """
    step = max(1, _CHUNK // width)
    if batch * resamples <= _KEPT:
        drawn = _drawn(batch, resamples, seed)
        for start in range(0, resamples, step):
            yield drawn[start : start + step].astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield rng.multinomial(batch, _share(batch), size=min(step, resamples - start)).astype(np.float64)


@lru_cache(maxsize=2)
def _drawn(batch: int, resamples: int, seed: int) -> NDArray[np.unsignedinteger[Any]]:
    """(R, B) how often each of B conversations is drawn."""
    drawn = np.random.default_rng(seed).multinomial(batch, _share(batch), size=resamples)
    return drawn.astype(np.min_scalar_type(batch))


def _share(batch: int) -> Floats:
    return np.full(batch, 1 / batch)
