"""How a command runs: logging to the terminal, and failing without a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from ercfusion._core.errors import ConfigError, ErcfusionError
from ercfusion._core.files import StrPath
from ercfusion._core.terminal import prepare_logging, prepare_streams
from ercfusion.training.processes import is_first_process


def run_command(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main``: log to the terminal, and turn users' mistakes into a few lines and status 2."""
    prepare_streams()
    prepare_logging()
    try:
        check_current_folder()
        status = main(list(sys.argv[1:] if argv is None else argv))
        with naming_folder("the output"):
            sys.stdout.flush()  # a reader that has gone is noticed here rather than at exit
        return status
    except ErcfusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if argv is None:  # the process ends now: a second Ctrl-C must not disturb its end
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        if is_first_process():  # the other processes of a distributed run say nothing
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, and Python must not try at exit.
        _silence(sys.stdout)
        return 141
    except OSError as error:
        if error.errno is None and error.filename is None:
            raise  # no word of the system's: a defect of ours
        try:
            sys.stdout.flush()
        except OSError:  # it is the output that cannot be written
            error.filename = error.filename or "the output"
        if error.filename == "the output":
            _silence(sys.stdout)
        # A file that cannot be read or written, a full disk: the system's words say it all.
        print(f"error: {system_words(error)}", file=sys.stderr)
        return 2


def system_words(error: OSError) -> str:
    """What the system says of a file or folder, in one line."""
    words = " ".join(str(error.strerror or error).split())
    return words if error.filename is None else f"{os.fsdecode(error.filename)}: {words}"


@contextmanager
def naming_folder(folder: StrPath) -> Iterator[None]:
    """Give an error of the system that names no file the name of the folder that was worked in."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(folder)
        raise


def check_current_folder() -> None:
    """Raise :class:`ConfigError` where the current folder was deleted: no path below it can be found then."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the current folder cannot be used ({error.strerror}): change to another with cd") from error


def _silence(stream: TextIO) -> None:
    """Let what is still to be written go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # not a stream of the system
        return
