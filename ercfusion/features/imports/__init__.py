"""Importers of the field's feature pickles, through a reader that cannot run code from the file."""

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
