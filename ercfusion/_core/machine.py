"""The processor that computes: its model, and the instructions that torch uses on it.

The last digits of sums depend on both. Features that an encoder computes on another processor differ by about 1e-7 of
their size, and a model that is trained on them takes other decisions.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
# Keys of /proc/cpuinfo that name the model: on x86, on PowerPC, on ARM boards.
_KEYS = ("model name", "cpu", "Hardware", "Model")


def machine(torch_used: bool = True) -> dict[str, Any]:
    """``processor``, and if torch is used ``instructions`` (such as ``AVX2``) and ``threads``.

    Args:
        torch_used: Whether torch computed in this process. Otherwise it is not asked, whether it is imported or not.
    """
    found: dict[str, Any] = {"processor": processor()}
    if torch_used:
        import torch

        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
    return found


@cache
def processor() -> str:
    """The model of the processor in words; the architecture where the system does not tell more."""
    return _from_cpuinfo() or _from_sysctl() or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    entries = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    for wanted in _KEYS:
        for key, value in entries:
            if key == wanted and value:
                return " ".join(value.split())[:200]
    return ""


def _from_sysctl() -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
