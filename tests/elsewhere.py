"""A pytest plugin: another time, machine and order of folders, for test_collection.py to collect the tests there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any


def _shifted(clock: Callable[[], Any], seconds: int) -> Callable[[], Any]:
    return lambda: clock() + seconds


def _reversed(listing: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda *arguments, **options: sorted(listing(*arguments, **options), reverse=True)


class _Entries:
    """What ``os.scandir`` gives, in the other order."""

    def __init__(self, *arguments: Any) -> None:
        with _scandir(*arguments) as entries:
            self._left = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> Any:
        return next(self._left)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open any more."""


_scandir = os.scandir
time.time = _shifted(time.time, 987_654)
time.time_ns = _shifted(time.time_ns, 987_654_000_000_000)
os.cpu_count = lambda: 3
if hasattr(os, "sched_getaffinity"):
    os.sched_getaffinity = lambda process: {0, 1, 2}
os.listdir = _reversed(os.listdir)
os.scandir = _Entries
