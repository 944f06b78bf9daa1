"""Seeded orders that are the same on every machine and under every version of every library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def seeded_permutation(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the seed and on the names alone.

    They are sorted by the SHA-256 of seed and name. A random number generator would promise less: numpy reserves the
    right to change its streams, and a split drawn today must be the same in ten years.

    Args:
        names: Different from each other; their given order does not matter.
        seed: Any whole number.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
