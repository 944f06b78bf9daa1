"""Cost of a run: parameters and peak memory."""

from __future__ import annotations

import logging
import resource
import sys
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
