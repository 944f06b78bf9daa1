"""What the commands share: composing a configuration, naming mistakes, and failing without a traceback."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ercfusion.errors import ConfigError, ErcfusionError, did_you_mean

CONFIG_MODULE = "ercfusion.conf"

# Keys below which a user may add entries of their own, with an example of a value (None: any).
OPEN_SECTIONS: dict[str, Any] = {"data.packs": "", "data.options": None, "objective.weights": 1.0}

# Settings that take a name, or values by name.
TEXT_OR_SECTION = ("objective.class_weights",)

# Settings that may be null, with an example of another value: where null is the default it cannot tell the type.
NULLABLE: dict[str, Any] = {
    "run": "",
    "resume": "",
    "data.raw": "",
    "data.protocol": "",
    "data.modalities": [],
    "training.metric": "",
    "training.threads": 1,
    "sweep.workers": 1,
    "sweep.metric": "",
    "sweep.only": [],
    "sweep.warmup": 1,
    "sweep.storage": "",
    "sweep.name": "",
    "sweep.timeout": 1.0,
}


def run_command(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main``: log to the terminal, and turn users' mistakes into a few lines and status 2."""
    prepare_logging()
    try:
        status = main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a reader that has gone is noticed here rather than at exit
        return status
    except ErcfusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes of a distributed run say nothing
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        # A file that cannot be read or written, a full disk: the system's words say it all.
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


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


_BASES: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
"""What :meth:`Composer._base` found before."""


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
        loader = self._loader()
        names = [name for name in loader.list_groups("") if name != "hydra"]
        return {name: sorted(loader.get_group_options(name)) for name in names}

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration as plain containers; ``preset`` holds the choices of ``model`` and ``data``.

        Raises:
            ConfigError: an argument that is not ``key=value``, an unknown key or choice (the nearest right one is
                named), or a value of the wrong type.
        """
        from hydra.errors import HydraException
        from omegaconf import OmegaConf, open_dict
        from omegaconf.errors import OmegaConfBaseException

        try:
            checked = self._check(overrides)
            with self._initialized() as compose:
                composed = compose(self.root, checked, return_hydra_config=True)
            choices = composed.hydra.runtime.choices
            preset = {name: choices[name] for name in ("model", "data")}
            with open_dict(composed):
                del composed["hydra"]
            config = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).splitlines()[0]) from error
        assert isinstance(config, dict)
        return {"preset": preset, **{str(key): value for key, value in config.items()}}

    def choice(self, group: str, name: str) -> dict[str, Any]:
        """The content of one choice of a group, as it stands in its file."""
        from omegaconf import OmegaConf

        with self._initialized() as compose:
            content = OmegaConf.to_container(compose(f"{group}/{name}", []), resolve=True)
        assert isinstance(content, dict)
        found: dict[str, Any] = content[group]
        return found

    def settings(self, path: str) -> list[str]:
        """The entries of a file of settings (``--settings``) as arguments, which remember where they come from.

        Raises:
            ConfigError: the file cannot be read or is no mapping, or an entry is no text where a group wants one.
        """
        from omegaconf import OmegaConf

        groups = self.groups()
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(path))
        except OSError as error:
            raise ConfigError(f"--settings {path} cannot be read: {error.strerror}") from error
        except Exception as error:
            # The YAML reader and OmegaConf raise various types; the place of the mistake is in their words.
            raise ConfigError(f"--settings {path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"--settings {path} must hold settings by name, as in `model: cogmen`")
        origin, entries = f"{path}: ", []
        for key, value in ((str(name), value) for name, value in loaded.items()):
            if key in groups and isinstance(value, str):
                entries.append(_from_file(f"{key}={value}", origin))
                continue
            leaves = _leaves(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
            entries += [_from_file(override_text(name, leaf), origin) for name, leaf in leaves]
        # Groups first, as they are typed: what follows changes single settings of them.
        return sorted(entries, key=lambda entry: entry.partition("=")[0] not in groups)

    def split_ranges(self, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Ordinary arguments, and by key those in Hydra's sweep syntax (``a=1,2``, ``a=interval(1,2)``), parsed."""
        plain: list[str] = []
        ranges: dict[str, Any] = {}
        for argument, parsed in zip(overrides, _parse(overrides), strict=True):
            ranges.pop(str(parsed.key_or_group), None)  # the last of several counts
            if parsed.is_sweep_override():
                plain = [entry for entry in plain if entry.partition("=")[0].lstrip("+") != parsed.key_or_group]
                ranges[str(parsed.key_or_group)] = parsed
            else:
                plain.append(argument)
        return plain, ranges

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The values of ordinary arguments by key, as plain containers; the last of several counts."""
        return {str(parsed.key_or_group): parsed.value() for parsed in _parse(overrides)}

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """All combinations of a multirun: ``seed=0,1 model=concat,cogmen`` makes four lists."""
        choices = []
        for parsed in _parse(overrides):
            if parsed.is_sweep_override():
                key = parsed.get_key_element()
                choices.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
            else:
                choices.append([str(parsed.input_line)])
        return [list(combination) for combination in itertools.product(*choices)]

    def _check(self, overrides: Sequence[str]) -> list[str]:
        groups = self.groups()
        parsed = [(entry, str(entry.input_line), _origin(text)) for text, entry in zip(overrides, _parse(overrides))]
        chosen: list[str] = []
        values: list[tuple[Any, str, str]] = []
        for entry, line, origin in parsed:
            key = entry.key_or_group
            if entry.is_delete() or entry.is_sweep_override():
                reason = "deletes a setting" if entry.is_delete() else "names several values: add -m to run them all"
                raise ConfigError(f"{origin}{line!r} {reason}")
            if key not in groups:
                values.append((entry, line, origin))
            elif entry.value() not in groups[key]:
                raise ConfigError(f"{origin}{line!r}: no such {key}. {did_you_mean(str(entry.value()), groups[key])}")
            else:
                chosen = [other for other in chosen if other.partition("=")[0] != key] + [line]  # the last one counts
        base = self._base(tuple(chosen))
        with self._initialized() as compose:
            # What is typed wins: a group that was named keeps its own values, whatever a preset wants of the default.
            for line in list(chosen):
                group, _, choice = line.partition("=")
                if group in ("optimizer", "scheduler", "curriculum"):
                    own = _flatten(compose(f"{group}/{choice}", []))
                    chosen += [f"{key}={value}" for key, value in own.items() if not hasattr(value, "keys")]
        for entry, line, origin in values:
            with _naming(origin):
                chosen.append(_checked_value(entry, line, base, groups))
        return chosen

    def _base(self, chosen: tuple[str, ...]) -> dict[str, Any]:
        """The settings by dotted key that a choice of groups brings, before any of them is changed."""
        # The package's own files stay as they are; those of a user may be edited between two calls.
        if self.config_dir is None and (self.root, chosen) in _BASES:
            return _BASES[self.root, chosen]
        with self._initialized() as compose:
            found = _flatten(compose(self.root, list(chosen)))
        if self.config_dir is None:
            _BASES[self.root, chosen] = found
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


class FileEntry(str):
    """An argument that comes from a file: ``origin`` goes before what is said about it."""

    origin = ""


def _from_file(text: str, origin: str) -> FileEntry:
    entry = FileEntry(text)
    entry.origin = origin
    return entry


def _origin(argument: str) -> str:
    return argument.origin if isinstance(argument, FileEntry) else ""


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{origin}{error}") from error


def override_text(key: str, value: Any) -> str:
    """``key=value`` as Hydra reads it back."""
    return f"{key}={_value_text(value)}"


def _value_text(value: Any) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_value_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value_text(inner)}" for key, inner in value.items()) + "}"
    return QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else repr(value)


def _leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in TEXT_OR_SECTION:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def expand_protocol(argument: str) -> list[str]:
    """``data=demo/far`` is short for ``data=demo data.protocol=demo/far``."""
    key, _, value = argument.partition("=")
    if key == "data" and "/" in value:
        return [f"data={value.partition('/')[0]}", f"data.protocol={value}"]
    return [argument]


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(f"{argument!r} is not of the form key=value (see --help)")
        origin = _origin(argument)
        key, _, value = argument.partition("=")
        if "=" in value and not any(sign in value for sign in "'\"[]{}(),"):
            argument = f"{key}='{value}'"  # a path such as runs/seed=0, which Hydra wants quoted
        try:
            parsed.append(parser.parse_override(argument))
        except HydraException as error:
            raise ConfigError(
                f"{origin}{argument!r} cannot be read: {str(error).splitlines()[0]}. "
                "Quote values with spaces or special characters: key='\"value\"'"
            ) from error
    return parsed


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves (and the dictionaries on the way) of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key in node:
        name = f"{prefix}{key}"
        value = node[key]
        flat[name] = value
        if hasattr(value, "keys"):
            flat.update(_flatten(value, f"{name}."))
    return flat


def _checked_value(entry: Any, line: str, base: dict[str, Any], groups: dict[str, list[str]]) -> str:
    """The argument as the composer shall get it.

    Raises:
        ConfigError: no such setting, or a value of the wrong type.
    """
    from omegaconf import ListConfig

    key = entry.key_or_group
    section = key.rpartition(".")[0]
    line, value = line.lstrip("+"), entry.value()
    plus = ""
    if key in base:
        default = base[key]
    elif section in OPEN_SECTIONS:
        # Two plus signs: add it, or replace what an earlier argument added.
        default, plus = None, "++"
    else:
        known = [*(name for name in base if name not in groups), *groups]
        raise ConfigError(f"there is no setting {key!r}. {_suggestion(key, known, base)}")
    if value is None and (default is None or key in NULLABLE):
        return plus + line
    example = default if default is not None else NULLABLE.get(key, OPEN_SECTIONS.get(section))
    text = line.partition("=")[2]
    if isinstance(example, list | ListConfig) and (isinstance(value, str) or hasattr(value, "text")):
        return f"{key}=[{text}]"  # one entry
    if not _same_kind(example, value) and not (key in TEXT_OR_SECTION and isinstance(value, str | dict)):
        shown = f" (default: {default})" if default is not None else ""
        wanted = _kind("" if isinstance(example, str) else example)
        raise ConfigError(f"{line!r}: {key} takes {wanted}{shown}, not {_kind(value)}")
    if isinstance(example, str) and isinstance(value, int | float):
        text = f"'{text}'"  # a folder may be called 2024
    return f"{plus}{key}={text}"


def _suggestion(key: str, known: list[str], base: dict[str, Any]) -> str:
    from ercfusion.errors import nearest

    section, _, last = key.rpartition(".")
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    if inside:
        close = [f"{section}.{name}" for name in nearest(last, [name[len(section) + 1 :] for name in inside], 1)]
    else:
        close = nearest(key, known, 1)
    close = close or [name for name in known if name.rpartition(".")[2] == last][:1]
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Settings there: " + ", ".join(inside or [name for name in base if "." not in name]) + "."


def _same_kind(default: Any, value: Any) -> bool:
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, str):
        return isinstance(value, str | int | float) or hasattr(value, "text")
    return isinstance(value, dict if hasattr(default, "keys") else list)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str) or hasattr(value, "text"):
        return f"the text {str(getattr(value, 'text', value))!r}" if value else "a text"
    return "a section" if hasattr(value, "keys") else "a list"


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
        else:
            raise ConfigError(f"unknown flag {argument!r}. {did_you_mean(name, [*flags, *valued])}")
    return found, rest


def listed(names: Iterable[str], indent: int) -> str:
    """Names for a help text, wrapped below each other from the column ``indent`` on."""
    return textwrap.fill(", ".join(names), 118 - indent).replace("\n", "\n" + " " * indent)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate paths and names from ``key=value``; a folder's name may hold a "=", so what exists is a path."""
    paths = [argument for argument in arguments if "=" not in argument or os.path.exists(os.path.expanduser(argument))]
    return paths, dict(argument.split("=", 1) for argument in arguments if argument not in paths)


def switch(settings: Mapping[str, str], key: str) -> bool:
    """A setting that is true or false, and false where it is not given.

    Raises:
        ConfigError: another value.
    """
    value = settings.get(key, "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{key}={settings[key]}: true or false is expected")
    return value == "true"
