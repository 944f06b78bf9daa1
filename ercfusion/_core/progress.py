"""Progress of long loops: a bar on a terminal, a few lines in a log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

logger = logging.getLogger("ercfusion")

# Plain mode: seconds before the first line, and between lines.
_SILENT = 2.0
_INTERVAL = 10.0

# Held while a bar is drawn: two bars would overwrite each other.
_bar_shown = threading.Lock()


@lru_cache(maxsize=1)
def console() -> Console:
    """The shared console. It writes to stderr: stdout is for results."""
    return Console(stderr=True)


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{rate(speed)}/s", style="progress.data.speed")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of ``iterable`` and show the progress.

    On a terminal: a bar with count, rate and estimated time left; nested loops are silent. Otherwise: log lines (logger
    ``ercfusion``, level INFO) after 2 s, then every 10 s, and at the end. ``ERCFUSION_QUIET=1`` silences both.

    Args:
        iterable: Consumed lazily.
        description: Such as "encoding text".
        total: Number of items; default ``len(iterable)`` if it has a length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if quiet():
        yield from iterable
    elif not on_terminal():
        yield from _with_lines(iterable, description, total)
    elif not _bar_shown.acquire(blocking=False):
        yield from iterable
    else:
        try:
            yield from _with_bar(iterable, description, total)
        finally:
            _bar_shown.release()


class LiveView:
    """A display of ``picture()``, a rich renderable, below the log lines on a terminal.

    Nothing is drawn while another bar is shown.
    """

    def __init__(self, picture: Callable[[], Any]) -> None:
        self._picture = picture
        self._live: Live | None = None

    @property
    def shown(self) -> bool:
        """Whether the display is visible."""
        return self._live is not None

    def start(self) -> None:
        """Begin to draw, if possible."""
        if quiet() or not on_terminal() or not _bar_shown.acquire(blocking=False):
            return
        # stdout is for results and may be a file.
        self._live = Live(
            console=console(),
            get_renderable=self._picture,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)

    def refresh(self) -> None:
        """Redraw."""
        if self._live is not None:
            self._live.refresh()

    def stop(self) -> None:
        """Stop and clear the display."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            _bar_shown.release()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the display during the block, for printing."""
        if self._live is None:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._live.start(refresh=True)


def quiet() -> bool:
    """Whether ``ERCFUSION_QUIET`` turns progress off."""
    return os.environ.get("ERCFUSION_QUIET", "") not in ("", "0")


def duration(seconds: float) -> str:
    """``50 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    # Not console().is_terminal, which FORCE_COLOR (set on many build machines) makes true.
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

    # A timer, because the first item may take minutes.
    timer = threading.Timer(_SILENT, announce)
    timer.daemon = True
    timer.start()
    last = start + _SILENT
    try:
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - last >= _INTERVAL:
                last = now
                speed = done / (now - start)
                left = "" if total is None else f", about {max(total - done, 0) / speed:.0f} s left"
                logger.info("%s: %d%s, %s/s%s", description, done, amount, rate(speed), left)
    finally:
        timer.cancel()
    seconds = time.monotonic() - start
    if seconds >= _SILENT:
        logger.info("%s: %d done in %.0f s (%s/s)", description, done, seconds, rate(done / seconds))


def rate(speed: float) -> str:
    """A speed with few digits."""
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
