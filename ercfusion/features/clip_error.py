"""The error of a single recording."""

from __future__ import annotations

from ercfusion._core.errors import ErcfusionError


class ClipError(ErcfusionError):
    """A clip has no features; the message gives the reason, and the turn is recorded as lacking the modality."""
