"""Orders that depend on the seed and on the names only."""

from __future__ import annotations

import hashlib

from ercfusion.data.permute import seeded_permutation

NAMES = [f"video-{number}" for number in range(50)]


def test_the_order_depends_on_the_seed_and_on_the_names() -> None:
    orders = [seeded_permutation(NAMES, seed) for seed in range(20)]
    assert all(sorted(order) == sorted(NAMES) for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    # Whichever name comes first: each about as often as every other.
    assert len({order[0] for order in orders}) > 10
    for order, seed in zip(orders, range(20), strict=True):
        assert seeded_permutation(reversed(NAMES), seed) == order


def test_an_order_stays_for_ever() -> None:
    """Splits of published results were drawn with it."""
    for seed in (0, 1, -3):
        digests = {hashlib.sha256(f"{seed}:{name}".encode()).hexdigest(): name for name in NAMES}
        assert seeded_permutation(NAMES, seed) == [digests[digest] for digest in sorted(digests)]
    assert seeded_permutation("abcdef", 0) == list("fdacbe")
    assert seeded_permutation("abcdef", 1) == list("dafebc")
