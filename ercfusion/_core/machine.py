"""The processor and the instructions used by torch.

The last digits of sums depend on both: features differ by about 1e-7 (relative), and models trained on them differ.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
# Keys of /proc/cpuinfo with the model's name: x86, PowerPC, ARM boards.
_KEYS = ("model name", "cpu", "Hardware", "Model")


def machine(torch_used: bool = True) -> dict[str, Any]:
    """``processor``, and with ``torch_used`` also ``instructions`` (such as ``AVX2``) and ``threads``."""
    result: dict[str, Any] = {"processor": processor()}
    if torch_used:
        import torch

        result["instructions"] = torch.backends.cpu.get_cpu_capability()
        result["threads"] = torch.get_num_threads()
    return result


@cache
def processor() -> str:
    """The processor's model name, or its architecture."""
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
