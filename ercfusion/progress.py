"""How far a long loop has come: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from functools import lru_cache
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

logger = logging.getLogger("ercfusion")

# Seconds before the first line of the plain mode (short loops say nothing), and between two lines.
_SILENT = 2.0
_INTERVAL = 10.0

# Held while a bar is drawn: two bars, or a bar and plain lines, would overwrite each other.
_bar_shown = threading.Lock()


@lru_cache(maxsize=1)
def console() -> Console:
    """The console that everything shares; it writes to stderr, so that stdout stays free for results."""
    return Console(stderr=True)


class _RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_rate(speed)}/s", style="progress.data.speed")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items of ``iterable``, while showing how many are done.

    With a terminal on stderr: a bar with count, rate and remaining time. Otherwise: lines through the logger
    ``ercfusion`` (level INFO) after 2 s, then at most every 10 s, and at the end; nothing at all when the loop is done
    within 2 s. ``ERCFUSION_QUIET=1`` silences both, and a loop inside a tracked loop is silent on a terminal.

    Args:
        iterable: Anything; consumed lazily.
        description: What is being done, as in "encoding text".
        total: Number of items; taken from ``len(iterable)`` where that exists.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if os.environ.get("ERCFUSION_QUIET", "") not in ("", "0"):
        yield from iterable
    elif not _on_terminal():
        yield from _with_lines(iterable, description, total)
    elif not _bar_shown.acquire(blocking=False):
        yield from iterable
    else:
        try:
            yield from _with_bar(iterable, description, total)
        finally:
            _bar_shown.release()


def _on_terminal() -> bool:
    # Not console().is_terminal: FORCE_COLOR, which many build machines set, turns that on where nobody watches.
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _with_bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        yield from bar.track(iterable, total=total, description=description)


def _with_lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    amount = "" if total is None else f" of {total}"
    start = time.monotonic()
    done = 0

    def announce() -> None:
        logger.info("%s: %d%s", description, done, amount)

    # A timer, because the first item alone may take minutes.
    timer = threading.Timer(_SILENT, announce)
    timer.daemon = True
    timer.start()
    said = start + _SILENT
    try:
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - said >= _INTERVAL:
                said = now
                rate = done / (now - start)
                left = "" if total is None else f", about {max(total - done, 0) / rate:.0f} s left"
                logger.info("%s: %d%s, %s/s%s", description, done, amount, _rate(rate), left)
    finally:
        timer.cancel()
    seconds = time.monotonic() - start
    if seconds >= _SILENT:
        logger.info("%s: %d done in %.0f s (%s/s)", description, done, seconds, _rate(done / seconds))


def _rate(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
