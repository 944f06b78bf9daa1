"""Conversation-level models for emotion recognition in conversation from text, audio and visual features.

:func:`fit` trains a model and returns a :class:`Run`; :func:`load` opens one. Both load on first use: importing this
package or one of its parts loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.version import __version__

__all__ = ["ErcfusionError", "Run", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ercfusion' has no attribute {name!r}")
    value = getattr(importlib.import_module("ercfusion.fitting"), name)
    globals()[name] = value
    return value
