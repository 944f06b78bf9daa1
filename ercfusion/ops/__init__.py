"""Operations on packed batches: a readable reference first, fast forms beside it. Needs torch only."""

from ercfusion.ops.graph import WindowGraph, window_edges, window_edges_reference
from ercfusion.ops.packing import Packing

__all__ = ["Packing", "WindowGraph", "window_edges", "window_edges_reference"]
