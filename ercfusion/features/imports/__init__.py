"""Importers of the feature pickles that circulate in the field.

:func:`import_pickle` turns one into feature packs. Reading goes through :func:`safe_load`, which builds numbers, text,
containers and arrays and refuses everything else, so that a file from a stranger can do no harm.
"""

from ercfusion.features.imports._checks import Imported, LayoutError
from ercfusion.features.imports.layouts import LAYOUTS, ORIGINS, detect_layout, read_layout
from ercfusion.features.imports.rebuild import Record, UnpickleError
from ercfusion.features.imports.unpickle import safe_load
from ercfusion.features.imports.write import import_pickle

__all__ = [
    "LAYOUTS",
    "ORIGINS",
    "Imported",
    "LayoutError",
    "Record",
    "UnpickleError",
    "detect_layout",
    "import_pickle",
    "read_layout",
    "safe_load",
]
