"""Streams and log messages of a process that talks to a terminal."""

from __future__ import annotations

import codecs
import logging
import os
import sys
import warnings


def prepare_streams() -> None:
    """Give closed standard streams a place to go, and let a terminal that does not know our letters escape them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The numbers must not be those of files that are opened later, into which others would print.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors=_ESCAPES)


_ESCAPES = "ercfusion"


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        letters = error.object[error.start : error.end]
        if all("\udc80" <= letter <= "\udcff" for letter in letters):  # bytes of a file name that are no text
            return bytes(ord(letter) - 0xDC00 for letter in letters), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(_ESCAPES, _escaped)


def prepare_logging() -> None:
    """Messages of the library as plain lines on stderr; those of its dependencies only when they matter."""
    logger = logging.getLogger("ercfusion")
    if not logger.handlers:
        handler: logging.Handler = _ConsoleHandler() if sys.stderr.isatty() else logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    quiet = os.environ.get("ERCFUSION_QUIET", "") not in ("", "0")
    logger.setLevel(logging.INFO)
    for sink in logger.handlers:
        sink.setLevel(logging.WARNING if quiet else logging.INFO)  # a run's log file gets everything all the same
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


class _ConsoleHandler(logging.Handler):
    """Lines through the console that progress bars draw on, so that they appear above a bar and not in it."""

    def emit(self, record: logging.LogRecord) -> None:
        from ercfusion._core.progress import console

        console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)
