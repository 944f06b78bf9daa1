"""A stand-in for Py-Feat 2.1.5 in tests: the same interface, without its weights.

Signatures, model names, the order and names of the columns, and the row of NaN for a picture without a face are those
of the sources of that version. Where the real detect() swallows unknown arguments, this one refuses them. A face is a
white or grey square: its brightness is the score, its place decides about the values.
"""

import os

if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from .detector import Detectorv1, Detectorv2

__version__ = "2.1.5"
__all__ = ["Detectorv1", "Detectorv2"]
