"""Cost of a run: parameters, seconds and peak memory."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

logger = logging.getLogger("ercfusion")


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def reset_peak_memory() -> None:
    """Restart :func:`peak_memory_mib` (Linux and GPUs only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("peak memory cannot be reset on this system")


def peak_memory_mib(device: str) -> float:
    """Peak resident size of this process, or peak allocation on the GPU, since the reset, in MiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class RunClock:
    """Seconds of training, including the epochs before a resume.

    Those epochs count without scoring and saving, as in ``metrics.csv``.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._epochs: set[int] = set()

    def epoch(self, number: int, score: float) -> None:
        """Called after every epoch of this process."""
        self._epochs.add(number)

    def seconds(self, history: Iterable[Mapping[str, float]]) -> float:
        """Total until now.

        Args:
            history: Rows of ``metrics.csv``.
        """
        earlier = sum(row["seconds"] for row in history if row["epoch"] not in self._epochs)
        return earlier + time.perf_counter() - self._started
