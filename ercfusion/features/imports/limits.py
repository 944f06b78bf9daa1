"""Limits of reading a foreign pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ercfusion._core.errors import ConfigError
from ercfusion._core.schemas.reading import failure
from ercfusion.features.imports.rebuild import UnpickleError

VARIABLE = "ERCFUSION_PICKLE_LIMITS"
"""Environment variable: factor for all limits except the depth."""
MAX_DEPTH = 100
"""Depth of nested objects; published files have at most 15."""
MEMORY, MEMORY_PER_BYTE = 256 << 20, 16
"""Bytes of memory: a constant, and per byte of the (unpacked) file."""
INSTRUCTIONS, INSTRUCTIONS_PER_BYTE, MOST_INSTRUCTIONS = 4_000_000, 2, 100_000_000
"""A constant, per byte of the (compressed) file, and an upper limit. An instruction, such as a number in a list, takes
about a microsecond."""
WORK = 1_000_000_000
"""Steps comparing keys (five seconds): 12,000 keys in one container, neither text nor whole numbers."""
UNPACKED, UNPACKED_PER_BYTE = 64 << 20, 16
"""Unpacked bytes: a constant, and per compressed byte."""


@dataclass
class Limits:
    """What reading a file may still take.

    Args:
        path: The file.
        memory: Bytes.
        instructions: Of the pickle.
        work: Steps of hashing and comparing keys.
        total_memory, total_instructions: At the start.
    """

    path: Path
    memory: int
    instructions: int
    work: int
    total_memory: int
    total_instructions: int

    @classmethod
    def of(cls, path: Path, stored: int, size: int) -> Limits:
        """The limits for a file of ``stored`` bytes, ``size`` unpacked."""
        memory = factor() * (MEMORY + MEMORY_PER_BYTE * size)
        instructions = factor() * min(INSTRUCTIONS + INSTRUCTIONS_PER_BYTE * stored, MOST_INSTRUCTIONS)
        return cls(path, memory, instructions, factor() * WORK, memory, instructions)

    def take(self, *, memory: int = 0, instructions: int = 0, work: int = 0) -> None:
        """Subtract; UnpickleError if a limit is exceeded."""
        self.memory -= memory
        self.instructions -= instructions
        self.work -= work
        if self.memory < 0:
            self.exceeded(f"more than {self.total_memory >> 20:,} MiB of memory")
        if self.instructions < 0:
            self.exceeded(f"more than {self.total_instructions:,} instructions")
        if self.work < 0:
            self.exceeded(f"more than {factor() * WORK:,} steps to compare keys")

    def exceeded(self, what: str) -> NoReturn:
        """Raise the error for a limit."""
        advice = f"Set the environment variable {VARIABLE}=4 (4 times the limit) if you trust the file"
        raise failure(UnpickleError, self.path, f": reading it takes {what}. {advice}")


def factor() -> int:
    """The value of :data:`VARIABLE`, by default 1.

    Raises:
        ConfigError: not a whole number from 1 to 1000.
    """
    value = os.environ.get(VARIABLE, "").strip() or "1"
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= 1000):
        raise ConfigError(f"{VARIABLE}={value[:40]}: not a whole number from 1 to 1000. Set it to 4, for example.")
    return int(value)
