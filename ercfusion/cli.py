"""What the commands share: composing a configuration, naming mistakes, and failing without a traceback."""

from __future__ import annotations

import codecs
import copy
import itertools
import logging
import os
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from ercfusion.errors import ConfigError, ErcfusionError, did_you_mean, nearest
from ercfusion.files import StrPath
from ercfusion.overrides import (
    LONGEST,
    checked_value,
    flatten,
    from_file,
    is_path,
    leaves,
    naming,
    origin_of,
    parse,
    shown,
    typed_path,
)
from ercfusion.overrides import expand_protocol as expand_protocol  # what users of this module also need
from ercfusion.overrides import override_text as override_text
from ercfusion.registry import import_modules
from ercfusion.schemas.reading import read_yaml, setting_error

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


def _silence(stream: TextIO) -> None:
    """Let what is still to be written go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # not a stream of the system
        return


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
        from ercfusion.progress import console

        console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


# Composing

MOST_RUNS = 10_000  # combinations of a multirun
_RANGE = "is a range: python -m ercfusion.sweep searches ranges; here, write the value or, with -m, key=a,b,c"

_BASES: dict[tuple[str, tuple[str, ...]], _Base] = {}
"""What :meth:`Composer._base` found before. Composing takes a tenth of a second."""

_GROUPS: dict[str, list[str]] = {}
"""The choices of the package's own groups, once they were listed."""


class _Base(NamedTuple):
    """A choice of groups: the configuration, to be read only; its settings by dotted key; the model and the corpus."""

    composed: Any
    flat: dict[str, Any]
    preset: dict[str, Any]


class Composer:
    """Composes configurations from the package's groups and a user's ``key=value`` arguments.

    Args:
        root: Name of the root configuration, ``train``.
        config_dir: A user's own folder of configuration groups, searched beside the package's.
    """

    def __init__(self, root: str = "train", config_dir: str | None = None) -> None:
        self.root = root
        self.config_dir = config_dir
        if config_dir is not None and not os.path.isdir(config_dir):
            raise ConfigError(f"--config-dir {config_dir} is not a folder")

    def groups(self) -> dict[str, list[str]]:
        """The choices of every configuration group."""
        # The package's own files stay as they are; those of a user may be edited between two calls.
        if self.config_dir is None and _GROUPS:
            return {name: list(choices) for name, choices in _GROUPS.items()}
        loader = self._loader()
        names = [name for name in loader.list_groups("") if name != "hydra"]
        found = {name: sorted(loader.get_group_options(name)) for name in names}
        if self.config_dir is None:
            _GROUPS.update({name: list(choices) for name, choices in found.items()})
        return found

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration as plain containers; ``preset`` holds the choices of ``model`` and ``data``.

        Raises:
            ConfigError: an argument that is not ``key=value``, an unknown key or choice (the nearest right one is
                named), or a value of the wrong type.
        """
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            base, values = self._check(overrides)
            composed = copy.deepcopy(base.composed)
            # As Hydra would, but without reading all files again.
            ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), composed)
            config = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).splitlines()[0]) from error
        assert isinstance(config, dict)
        return {"preset": dict(base.preset), **{str(key): value for key, value in config.items()}}

    def choice(self, group: str, name: str) -> dict[str, Any]:
        """The content of one choice of a group, as it stands in its file."""
        from omegaconf import OmegaConf

        content = OmegaConf.to_container(self._base(f"{group}/{name}", ()).composed, resolve=True)
        assert isinstance(content, dict)
        found: dict[str, Any] = content[group]
        return found

    def settings(self, path: str) -> list[str]:
        """The entries of a file of settings (``--settings``) as arguments, which remember where they come from.

        Raises:
            ConfigError: the file cannot be read or is no mapping, or an entry is no text where a group wants one.
        """
        groups = self.groups()
        loaded = read_yaml(path, error=ConfigError, floats=True)
        if not isinstance(loaded, dict):
            raise ConfigError(f"--settings {path} must hold settings by name, as in `model: cogmen`")
        origin, entries = f"{path}: ", []
        for key, value in ((str(name), value) for name, value in loaded.items()):
            if key in groups and isinstance(value, str):
                entries.append(from_file(f"{key}={value}", origin))
                continue
            found = leaves(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
            entries += [from_file(override_text(name, leaf), origin) for name, leaf in found]
        # Groups first, as they are typed: what follows changes single settings of them.
        return sorted(entries, key=lambda entry: entry.partition("=")[0] not in groups)

    def split_ranges(self, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Ordinary arguments, and by key those in Hydra's sweep syntax (``a=1,2``, ``a=interval(1,2)``), parsed."""
        plain: list[str] = []
        ranges: dict[str, Any] = {}
        for argument, parsed in zip(overrides, parse(overrides), strict=True):
            ranges.pop(str(parsed.key_or_group), None)  # the last of several counts
            if parsed.is_sweep_override():
                plain = [entry for entry in plain if entry.partition("=")[0].lstrip("+") != parsed.key_or_group]
                ranges[str(parsed.key_or_group)] = parsed
            else:
                plain.append(argument)
        return plain, ranges

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The values of ordinary arguments by key, as plain containers; the last of several counts."""
        return {str(parsed.key_or_group): parsed.value() for parsed in parse(overrides)}

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """All combinations of a multirun: ``seed=0,1 model=concat,cogmen`` makes four lists."""
        from hydra.errors import HydraException

        choices, count = [], 1
        for argument, parsed in zip(overrides, parse(overrides, several=True), strict=True):
            if not parsed.is_sweep_override():
                choices.append([argument])
                continue
            if parsed.is_interval_sweep():
                raise ConfigError(f"{shown(argument)} {_RANGE}")
            key = parsed.get_key_element()
            try:
                values = [str(value) for value in itertools.islice(parsed.sweep_string_iterator(), MOST_RUNS + 1)]
            except (HydraException, MemoryError) as error:
                raise ConfigError(f"{shown(argument)} does not list values: write key=a,b,c") from error
            count *= len(values)
            if count > MOST_RUNS:
                raise ConfigError(f"{shown(argument)}: these are more than {MOST_RUNS:,} combinations")
            choices.append([f"{key}={value}" for value in values])
        return [list(combination) for combination in itertools.product(*choices)]

    def _check(self, overrides: Sequence[str]) -> tuple[_Base, list[str]]:
        """What the chosen groups bring, and the settings that change it."""
        groups = self.groups()
        parsed = [(entry, str(entry.input_line), origin_of(text)) for text, entry in zip(overrides, parse(overrides))]
        chosen: list[str] = []
        values: list[tuple[Any, str, str]] = []
        for entry, line, origin in parsed:
            key = entry.key_or_group
            if entry.is_delete() or entry.is_sweep_override():
                reason = "names several values: add -m to run them all"
                if entry.is_delete():
                    reason = "deletes a setting"
                elif entry.is_interval_sweep():
                    reason = _RANGE
                raise setting_error(origin, f"{shown(line)} {reason}")
            if key not in groups:
                values.append((entry, line, origin))
            elif entry.value() not in groups[key]:
                text = str(entry.value())
                raise setting_error(origin, f"{shown(line)}: no such {key}. {did_you_mean(text, groups[key])}")
            else:
                chosen = [other for other in chosen if other.partition("=")[0] != key] + [line]  # the last one counts
        base = self._base(self.root, tuple(chosen))
        changes: list[str] = []
        # What is typed wins: a group that was named keeps its own values, whatever a preset wants of the default.
        for line in chosen:
            group, _, choice = line.partition("=")
            if group in ("optimizer", "scheduler", "curriculum"):
                own = self._base(f"{group}/{choice}", ()).flat
                changes += [f"{key}={value}" for key, value in own.items() if not hasattr(value, "keys")]
        for entry, line, origin in values:
            with naming(origin):
                changes.append(checked_value(entry, line, base.flat, groups))
        return base, changes

    def _base(self, root: str, chosen: tuple[str, ...]) -> _Base:
        """What a choice of groups brings, before any setting of it is changed."""
        if self.config_dir is None and (root, chosen) in _BASES:
            return _BASES[root, chosen]
        from omegaconf import open_dict

        with self._initialized() as compose:
            composed = compose(root, list(chosen), return_hydra_config=True)
        choices = composed.hydra.runtime.choices
        preset = {name: choices[name] for name in ("model", "data") if name in choices}
        with open_dict(composed):
            del composed["hydra"]
        found = _Base(composed, flatten(composed), preset)
        if self.config_dir is None:
            _BASES[root, chosen] = found
        return found

    def _initialized(self) -> Any:
        from hydra import compose, initialize_config_module
        from hydra.core.global_hydra import GlobalHydra

        @contextmanager
        def session() -> Iterator[Callable[..., Any]]:
            GlobalHydra.instance().clear()
            extra = [f"hydra.searchpath=[file://{os.path.abspath(self.config_dir)}]"] if self.config_dir else []
            with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
                yield lambda root, overrides, **options: compose(root, [*overrides, *extra], **options)

        return session()

    def _loader(self) -> Any:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.utils import create_config_search_path

        path = create_config_search_path(f"pkg://{CONFIG_MODULE}")
        if self.config_dir:
            path.append("user", f"file://{os.path.abspath(self.config_dir)}")
        return ConfigLoaderImpl(path)


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
