"""Run a command: log to the terminal, and fail without a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from ercfusion._core.errors import ConfigError, ErcfusionError, system_words
from ercfusion._core.files import StrPath
from ercfusion._core.terminal import prepare_logging, prepare_streams
from ercfusion.training.processes import is_first_process


def run_command(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run ``main`` of a command; users' errors become a short message and exit status 2."""
    prepare_streams()
    prepare_logging()
    try:
        check_current_folder()
        status = main(list(sys.argv[1:] if argv is None else argv))
        with naming_folder("the output"):
            sys.stdout.flush()  # detects a closed pipe here, not at exit
        return status
    except ErcfusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if argv is None:  # a second Ctrl-C must not disturb the end of the process
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        if is_first_process():  # once per distributed run
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has ended (`| head`): Python must not write at exit.
        _silence(sys.stdout)
        return 141
    except OSError as error:
        if error.errno is None and error.filename is None:
            raise  # not from the system: a defect of the library
        try:
            sys.stdout.flush()
        except OSError:  # the output cannot be written
            error.filename = error.filename or "the output"
        if error.filename == "the output":
            _silence(sys.stdout)
        # For example an unreadable file or a full disk.
        print(f"error: {system_words(error)}", file=sys.stderr)
        return 2


@contextmanager
def naming_folder(folder: StrPath) -> Iterator[None]:
    """Add the folder to a system error without a file name."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(folder)
        raise


def check_current_folder() -> None:
    """Raise :class:`ConfigError` if the current folder was deleted, because relative paths fail then."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used ({error.strerror}). Use cd to change to another."
        ) from error


def _silence(stream: TextIO) -> None:
    """Discard further output."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # not a system stream
        return
