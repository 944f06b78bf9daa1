"""Computes parts of the pages: ``python -m docs.computed [PAGE ...]`` writes them.

Each module of this package registers the parts of one subject.
"""

from __future__ import annotations

import importlib
import pkgutil

from docs.computed.registry import BUILT, COMPUTED, ROOT, Part, register, register_built

__all__ = ["BUILT", "COMPUTED", "ROOT", "Part", "register", "register_built"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")
