"""Metrics as objects, the sums they are computed from, and statistics over conversations and seeds."""

from ercfusion.metrics.metric import Metric
from ercfusion.metrics.registry import register

__all__ = ["Metric", "register"]
