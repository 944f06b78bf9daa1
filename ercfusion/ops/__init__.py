"""Operations on packed batches: a readable reference first, fast forms beside it. Needs torch only."""

from ercfusion.ops.dag import DagState, dag_recursion, dag_windows
from ercfusion.ops.dag_reference import DagWeights, dag_recursion_reference, dag_windows_reference
from ercfusion.ops.graph import WindowGraph, window_edges, window_edges_reference
from ercfusion.ops.packing import Packing

__all__ = [
    "DagState",
    "DagWeights",
    "Packing",
    "WindowGraph",
    "dag_recursion",
    "dag_recursion_reference",
    "dag_windows",
    "dag_windows_reference",
    "window_edges",
    "window_edges_reference",
]
