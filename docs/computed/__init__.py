"""Computes parts of the pages: ``python -m docs.computed [PAGE ...]`` writes them.

Each module of this package registers the parts of one subject.
"""

from __future__ import annotations

import importlib
import pkgutil

from docs.computed.registry import COMPUTED, ROOT, Part, register

__all__ = ["COMPUTED", "ROOT", "Part", "register"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")
