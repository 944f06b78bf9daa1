"""A limit on what the construction of an architecture may allocate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ercfusion._core.errors import ConfigError


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made, and stops at a limit.

    Memory of a new tensor is reserved, but not used before something is written into it: the next operation. So this
    stops in time.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not function._schema.is_mutable:
            for entry in tree_iter(result):
                if isinstance(entry, torch.Tensor):
                    self.made += entry.numel() * entry.element_size()
        if self.made > self.most:
            raise _TooLargeError
        return result


class _TooLargeError(Exception):
    """More memory than allowed."""


@contextmanager
def allocation_limit(name: str, most: int | None = None) -> Iterator[None]:
    """Raise :class:`ConfigError` inside the block as soon as the tensors made there are too large.

    Args:
        name: Of the architecture.
        most: Bytes in all; the memory of this machine if None.
    """
    limit = memory_of_machine() if most is None else most
    message = (
        f"model {name!r}: with these options and inputs it needs more than {limit / 2**30:.1f} GiB. "
        "Choose smaller sizes, for example model.hidden or model.layers."
    )
    try:
        with _Allocations(limit):
            yield
    except _TooLargeError:
        raise ConfigError(message) from None
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that the machine refuses.
        words = str(error)
        if isinstance(error, MemoryError) or "allocate" in words or "Storage size calculation overflowed" in words:
            raise ConfigError(message) from error
        raise


def memory_of_machine() -> int:
    """Bytes of main memory; 64 GiB if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30
