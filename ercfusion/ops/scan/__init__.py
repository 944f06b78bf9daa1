"""The selective scan of Mamba for conversations: one operator with several backends.

Importing it needs no compiler, Triton or GPU; see :func:`selective_scan`.
"""

from ercfusion.ops.scan.backends import backends, register_backend
from ercfusion.ops.scan.contract import ScanBackend, ScanGradients, ScanInputs
from ercfusion.ops.scan.interface import selective_scan
from ercfusion.ops.scan.reference import scan_reference

__all__ = [
    "ScanBackend",
    "ScanGradients",
    "ScanInputs",
    "backends",
    "register_backend",
    "scan_reference",
    "selective_scan",
]
