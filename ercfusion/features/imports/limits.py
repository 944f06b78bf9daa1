"""How much memory and work reading a foreign pickle may take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ercfusion._core.errors import ConfigError
from ercfusion._core.schemas.reading import failure
from ercfusion.features.imports.rebuild import UnpickleError

VARIABLE = "ERCFUSION_PICKLE_LIMITS"
"""Environment variable: a whole number by which all limits except the depth are multiplied."""
MAX_DEPTH = 100
"""Levels of containers and objects inside each other. Published files have 15 at most."""
MEMORY, MEMORY_PER_BYTE = 256 << 20, 16
"""Bytes that reading may take: this much, and this much for each byte of the (unpacked) file."""
INSTRUCTIONS, INSTRUCTIONS_PER_BYTE, MOST_INSTRUCTIONS = 4_000_000, 2, 100_000_000
"""Instructions of a pickle: this many, and this many for each byte of the (compressed) file, but no more than the last.
Each takes about a microsecond. A number in a list is one."""
WORK = 1_000_000_000
"""Steps to compare keys, five seconds: 12,000 keys of one container of neither text nor whole numbers."""
UNPACKED, UNPACKED_PER_BYTE = 64 << 20, 16
"""Bytes that a compressed file may unpack to: this much, and this much for each byte of the file."""


@dataclass
class Limits:
    """What reading a file may still take. Pickles inside of the file share it.

    Args:
        path: The file, for messages.
        memory: Bytes.
        instructions: Of the pickles.
        work: Steps of hashing and comparing keys.
        whole: ``memory`` at the beginning: no object may stand for more.
        allowed: ``instructions`` at the beginning.
    """

    path: Path
    memory: int
    instructions: int
    work: int
    whole: int
    allowed: int

    @classmethod
    def of(cls, path: Path, stored: int, size: int) -> Limits:
        """Those of a file of ``stored`` bytes, which are ``size`` when they are unpacked."""
        memory = factor() * (MEMORY + MEMORY_PER_BYTE * size)
        instructions = factor() * min(INSTRUCTIONS + INSTRUCTIONS_PER_BYTE * stored, MOST_INSTRUCTIONS)
        return cls(path, memory, instructions, factor() * WORK, memory, instructions)

    def take(self, *, memory: int = 0, instructions: int = 0, work: int = 0) -> None:
        """Count what is used.

        Raises:
            UnpickleError: it is more than is left.
        """
        self.memory -= memory
        self.instructions -= instructions
        self.work -= work
        if self.memory < 0:
            self.exceeded(f"more than {self.whole >> 20:,} MiB of memory")
        if self.instructions < 0:
            self.exceeded(f"more than {self.allowed:,} instructions")
        if self.work < 0:
            self.exceeded(f"more than {factor() * WORK:,} steps to compare keys")

    def exceeded(self, what: str) -> NoReturn:
        """Raise the error about a limit."""
        advice = f"If you trust the file, set the environment variable {VARIABLE}=4 (4 times the limit)"
        raise failure(UnpickleError, self.path, f": reading it takes {what}. {advice}")


def factor() -> int:
    """The number in the environment variable :data:`VARIABLE`; 1 without it.

    Raises:
        ConfigError: it is no whole number from 1 to 1000.
    """
    given = os.environ.get(VARIABLE, "").strip() or "1"
    if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= 1000):
        raise ConfigError(f"{VARIABLE}={given[:40]}: a whole number from 1 to 1000 is expected.")
    return int(given)
