"""Policies: what a model reads in place of an absent modality."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "zero": "the value 0 before standardisation",
        "mean": "the mean of train: 0 after standardisation",
        "learned": "a trained vector of the features' width, initially the mean",
        "skip": "nothing: it is left out of sums, attention and graphs",
    }
)
"""Meaning of each policy. The first three fill an absent modality and mark it as present."""
