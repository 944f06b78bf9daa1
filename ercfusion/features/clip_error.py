"""The error of a single recording."""

from __future__ import annotations

from ercfusion._core.errors import ErcfusionError


class ClipError(ErcfusionError):
    """One clip gives no features; the text says why, and the turn is recorded as lacking the modality."""
