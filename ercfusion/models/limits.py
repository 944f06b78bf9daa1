"""Limit on the memory allocated while an architecture is built."""

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
    """Adds up the bytes of new tensors and stops at a limit.

    A new tensor only reserves memory until the next operation writes into it, so this is in time.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.allocated = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not function._schema.is_mutable:
            for value in tree_iter(result):
                if isinstance(value, torch.Tensor):
                    self.allocated += value.numel() * value.element_size()
        if self.allocated > self.limit:
            raise _TooLargeError
        return result


class _TooLargeError(Exception):
    """More memory than allowed."""


@contextmanager
def allocation_limit(name: str, limit: int | None = None) -> Iterator[None]:
    """Raise :class:`ConfigError` as soon as the tensors created in the block exceed a limit.

    Args:
        name: Name of the architecture.
        limit: Limit in bytes; the memory of this machine if None.
    """
    limit = memory_of_machine() if limit is None else limit
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
        # torch raises RuntimeError if an allocation fails.
        words = str(error)
        if isinstance(error, MemoryError) or "allocate" in words or "Storage size calculation overflowed" in words:
            raise ConfigError(message) from error
        raise


def memory_of_machine() -> int:
    """Main memory in bytes; 64 GiB if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30
