"""Compiles C sources on first use, once per machine and user, without headers of Python or torch.

Libraries are in a cache folder of the user, under a hash of the source, the compiler's version, the flags and the
processor. They are written under a temporary name and renamed, so processes can build at the same time.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from ercfusion._core.files import scratch_folder

log = logging.getLogger("ercfusion")

FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w")
"""The parts of -ffast-math that preserve infinities, NaN, signs of zero and the order of sums.

Products may be fused with sums. No sum needs reordering, because vector elements are independent.
"""

TUNING = (("-march=native",), ("-mcpu=native",), ())
"""Alternatives in order of preference: instructions of this processor if the compiler supports that."""


def cache_folder() -> Path:
    """Folder of compiled libraries: ``ERCFUSION_CACHE``, else ``ercfusion`` in the user's cache folder."""
    if chosen := os.environ.get("ERCFUSION_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ercfusion"


def find_compiler() -> list[str] | None:
    """The command of a C compiler, or None.

    ``CC`` if it is set, else the compiler of this Python, cc, gcc or clang.
    """
    if chosen := os.environ.get("CC"):
        candidates = [chosen]
    else:
        candidates = [sysconfig.get_config_var("CC") or "cc", "cc", "gcc", "clang"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    return None


def build(source: Path) -> ctypes.CDLL:
    """The library of one C file, from the cache or newly built.

    Raises:
        OSError: no compiler, a failed build, or a library that cannot be stored or loaded.
    """
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CC")
        raise OSError(f"no C compiler ({named!r}, named by CC, not found)" if named else "no C compiler found")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    # Sources are short: a few milliseconds per process.
    parts = [source.read_text(), shlex.join(compiler), version, " ".join(FLAGS), repr(TUNING), _processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    path = cache_folder() / f"{source.stem}-{key}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink(missing_ok=True)  # damaged: build it again
    message = ""
    # In a folder of its own, which the next process removes if this one is killed.
    with scratch_folder(path) as scratch:
        temporary = scratch / path.name
        for tuning in TUNING:
            command = [*compiler, *FLAGS, *tuning, str(source), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # Load before the rename: a library that does not load is never installed.
                library = ctypes.CDLL(str(temporary))
                os.replace(temporary, path)
                return library
            message = message or (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    raise OSError(f"{shlex.join(compiler)} failed: {message}")


@cache
def load(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """:func:`build` once per process: the library and an empty text, or None and the reason, which is logged once."""
    try:
        return build(source), ""
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())
        log.info("%s is not compiled (%s); torch replaces it, more slowly", source.name, reason)
        return None, reason


def _processor() -> str:
    """The inputs of -march=native: architecture, model and instruction sets."""
    lines = [platform.system(), platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        prefixes = ("model name", "flags", "Features", "CPU part")
        seen = {line for line in cpuinfo.read_text().splitlines() if line.startswith(prefixes)}
        lines += sorted(seen)
    return "\n".join(lines)
