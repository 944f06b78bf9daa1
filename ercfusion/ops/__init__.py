"""Operations on packed batches: a readable reference and a fast form of each. Needs torch only."""

from ercfusion.batch.packing import Packing
from ercfusion.ops.attention import attend, attend_reference
from ercfusion.ops.conv import causal_conv, causal_conv_reference
from ercfusion.ops.dag import DagState, dag_recursion, dag_windows
from ercfusion.ops.dag_reference import DagWeights, dag_recursion_reference, dag_windows_reference
from ercfusion.ops.graph import WindowGraph, window_edges, window_edges_reference
from ercfusion.ops.scan import scan_reference, selective_scan

__all__ = [
    "DagState",
    "DagWeights",
    "Packing",
    "WindowGraph",
    "attend",
    "attend_reference",
    "causal_conv",
    "causal_conv_reference",
    "dag_recursion",
    "dag_recursion_reference",
    "dag_windows",
    "dag_windows_reference",
    "scan_reference",
    "selective_scan",
    "window_edges",
    "window_edges_reference",
]
