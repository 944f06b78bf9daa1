"""Packed batches, model inputs, tasks, labels and predictions.

Importing this package does not load torch; the names that need it load it on first use.
"""

from typing import TYPE_CHECKING, Any

from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.maps import LabelMap, map_between, register_map
from ercfusion.batch.task import TaskSpec

if TYPE_CHECKING:
    from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
    from ercfusion.batch.packing import Packing

_WITH_TORCH = {"ConversationBatch": "batch", "SequenceValues": "batch", "TaskTargets": "batch", "Packing": "packing"}

__all__ = [
    "ConversationBatch",
    "InputSpec",
    "LabelMap",
    "LabelSchema",
    "Packing",
    "SequenceValues",
    "TaskSpec",
    "TaskTargets",
    "get_schema",
    "map_between",
    "register_map",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
