"""What a run costs: numbers to train and memory."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import torch

logger = logging.getLogger("ercfusion")


def count_parameters(module: torch.nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def reset_peak_memory() -> None:
    """Let :func:`peak_memory_mib` count from now on: a process may train several runs (Linux and GPUs only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("the peak of memory cannot be reset here")


def peak_memory_mib(device: str) -> float:
    """Largest resident size of this process since the reset, or largest allocation on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
