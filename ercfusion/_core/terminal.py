"""Standard streams and log messages of the commands."""

from __future__ import annotations

import codecs
import logging
import os
import sys
import warnings


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and escape characters unknown to the terminal."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise a file opened later would get this number, and print() would write into it.
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
        if all("\udc80" <= letter <= "\udcff" for letter in letters):  # undecodable bytes of a file name
            return bytes(ord(letter) - 0xDC00 for letter in letters), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(_ESCAPES, _escaped)


def prepare_logging() -> None:
    """Log the library's messages as plain lines on stderr, and hide unimportant warnings."""
    logger = logging.getLogger("ercfusion")
    if not logger.handlers:
        handler: logging.Handler = _ConsoleHandler() if sys.stderr.isatty() else logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    quiet = os.environ.get("ERCFUSION_QUIET", "") not in ("", "0")
    logger.setLevel(logging.INFO)
    for sink in logger.handlers:
        sink.setLevel(
            logging.WARNING if quiet else logging.INFO
        )  # only the console is quiet: a run's log file gets everything
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


class _ConsoleHandler(logging.Handler):
    """Print through the console of the progress bars, so that lines appear above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from ercfusion._core.progress import console

        console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)
