"""What the commands share: composing a configuration, naming mistakes, and failing without a traceback."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ercfusion._core.errors import ConfigError, ErcfusionError, did_you_mean, nearest
from ercfusion._core.files import StrPath
from ercfusion._core.overrides import (
    LONGEST,
    is_path,
    parse,
    shown,
    typed_path,
)
from ercfusion._core.overrides import expand_protocol as expand_protocol  # what users of this module also need
from ercfusion._core.overrides import override_text as override_text
from ercfusion._core.registry import import_modules
from ercfusion._core.terminal import prepare_logging, prepare_streams

CONFIG_MODULE = "ercfusion.conf"


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
        from ercfusion.training.processes import is_first_process

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


def split_flags(
    argv: Sequence[str], flags: Sequence[str], valued: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Separate ``--flags`` from ``key=value`` arguments.

    Args:
        argv: The arguments.
        flags: Flags without a value; ``-x`` short forms are given as separate entries.
        valued: Flags that take the next argument (or ``--flag=value``).

    Raises:
        ConfigError: an unknown flag.
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    waiting = iter(argv)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            rest.append(argument)
        elif argument in flags:
            found[argument] = True
        elif name in valued:
            found[name] = value if equals else next(waiting, None)
            if not found[name]:
                raise ConfigError(f"{name} needs a value")
            found[name] = os.path.expanduser(found[name])
        else:
            raise ConfigError(f"unknown flag {shown(name)}. {_instead(argument, next(waiting, ''), [*flags, *valued])}")
    return found, rest


def _instead(flag: str, following: str, known: Sequence[str]) -> str:
    """What to write in place of a flag that does not exist."""
    name, equals, value = flag.partition("=")
    if nearest(name, known, 1):
        return did_you_mean(name, known)
    value = value if equals else following
    if name.startswith("--") and value and not value.startswith("-") and "=" not in value and len(flag) < LONGEST:
        return f"Settings have no dashes: write {shlex.quote(f'{name[2:]}={value}')}"
    return did_you_mean(name, known)


def listed(names: Iterable[str], indent: int) -> str:
    """Names for a help text, wrapped below each other from the column ``indent`` on."""
    return textwrap.fill(", ".join(names), 118 - indent).replace("\n", "\n" + " " * indent)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate paths and names from ``key=value``; a folder's name may hold a "=", so what exists is a path.

    The modules of ``imports=`` are imported, and left out of the settings.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    paths = [argument for argument in arguments if "=" not in argument or os.path.exists(os.path.expanduser(argument))]
    settings = dict(argument.split("=", 1) for argument in arguments if argument not in paths)
    if "imports" in settings:
        value = parse([f"imports={settings.pop('imports')}"])[0].value()
        import_modules(value if isinstance(value, list) else [value])
    return paths, {key: typed_path(value) if is_path(key) else value for key, value in settings.items()}


def whole_number(key: str, text: str, least: int = 1) -> int:
    """A number of processes and the like, as typed.

    Raises:
        ConfigError: no whole number, or too small or large a one.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise ConfigError(f"{key} takes a whole number of at least {least}, not {shown(text)}")
    return int(text)


def switch(settings: Mapping[str, str], key: str) -> bool:
    """A setting that is true or false, and false where it is not given.

    Raises:
        ConfigError: another value.
    """
    value = settings.get(key, "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{shown(f'{key}={settings[key]}')}: true or false is expected")
    return value == "true"
