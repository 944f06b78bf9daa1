"""Seeded orders which are equal on every machine and with every version of every library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def seeded_permutation(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order depending only on the seed and the names.

    They are sorted by the SHA-256 of seed and name. Random number generators promise less: numpy may change its
    streams, but a split must stay the same.

    Args:
        names: Distinct names, in any order.
        seed: Any whole number.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
