"""The grammar of the commands, declared once per command.

A command line has three kinds of words: *positional* arguments (``RUN``), *keys* with a value (``name=value``) and
*flags* (``--name``). Parsing, messages, help, shell completion and the pages' tables are computed from the declaration.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean, nearest
from ercfusion._core.registry import import_modules
from ercfusion.config.architectures import ARCHITECTURES, add_class
from ercfusion.config.compose import Composer
from ercfusion.config.fields import typed_text
from ercfusion.config.overrides import LONGEST, shown, typed_path
from ercfusion.config.reference import corpus_help, model_help
from ercfusion.config.settings import field_of, fields_in

WIDTH = 118
Choices = Sequence[str] | Callable[[], Iterable[str]]


def _path(key: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{key} needs a value. Write {key}=VALUE.")
    return typed_path(text)


def _whole(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise ConfigError(f"{key} takes a whole number of at least 1, not {shown(text)}. Correct the value.")
    return int(text)


def _count(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ConfigError(f"{key} takes a whole number of at least 0, not {shown(text)}. Correct the value.")
    return int(text)


def _names(key: str, text: str) -> list[str]:
    inside = text.strip().removeprefix("[").removesuffix("]")
    return [name.strip() for name in inside.split(",") if name.strip()]


KINDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "text": ("NAME", lambda key, text: text),
    "path": ("DIR", _path),
    "file": ("FILE", _path),
    "whole": ("N", _whole),
    "count": ("N", _count),
    "names": ("A,B", _names),
}
"""Kind of a key: the placeholder of its value in the help, and its parser."""


@dataclass(frozen=True)
class Key:
    """``name=value``.

    Args:
        name: As typed; a last part in capitals is a placeholder: ``data.packs.MODALITY``.
        about: One line for the help.
        kind: A key of :data:`KINDS`.
        default: Default value; ``None`` if ``about`` describes it.
        choices: Existing values, or a function that lists them.
        free: Whether other values are allowed.
        value: Placeholder in the help; default that of the kind.
    """

    name: str
    about: str
    kind: str = "text"
    default: str | None = None
    choices: Choices = ()
    free: bool = False
    value: str = ""

    @property
    def stem(self) -> str:
        """The name without the placeholder: ``data.packs.`` of ``data.packs.MODALITY``."""
        head, dot, last = self.name.rpartition(".")
        return head + dot if last.isupper() else self.name

    def names(self, typed: str) -> bool:
        """Whether ``typed`` is this key."""
        if self.stem == self.name:
            return typed == self.name
        return typed.startswith(self.stem) and len(typed) > len(self.stem)

    def known(self) -> list[str]:
        """The existing values."""
        return list(self.choices() if callable(self.choices) else self.choices)

    def read(self, typed: str, text: str) -> Any:
        """Parse a value.

        Raises:
            ConfigError: The value has the wrong kind or is not a choice.
        """
        if self.choices and not self.free and text not in self.known():
            raise ConfigError(f"{shown(f'{typed}={text}')}: no such value. {did_you_mean(text, self.known())}")
        return KINDS[self.kind][1](typed, text)

    @property
    def sign(self) -> str:
        """``name=value`` for the help."""
        return f"{self.name}={self.default or self.value or KINDS[self.kind][0]}"


@dataclass(frozen=True)
class Flag:
    """``--name``, optionally with a one-letter form such as ``-m``."""

    name: str
    about: str
    short: str = ""

    @property
    def sign(self) -> str:
        """``--name, -n`` for the help."""
        return f"--{self.name}" + (f", -{self.short}" if self.short else "")


COMMON_KEYS = (
    Key("imports", "import your modules, which register models, corpora or metrics", "names", value="MODULE"),
    Key("config_dir", "folder of your presets: DIR/model/mine.yaml is model=mine", "path"),
)
COMMON_FLAGS = (Flag("help", "print this text", "h"),)


@dataclass(frozen=True)
class Positional:
    """An argument without a name, with its minimum and maximum number (``None``: unlimited) and choices (empty for a
    path).
    """

    name: str
    least: int = 1
    most: int | None = 1
    choices: tuple[str, ...] = ()

    @property
    def sign(self) -> str:
        """``RUN [RUN ...]`` for the help."""
        return " ".join([self.name] * self.least + ([f"[{self.name} ...]"] if self.most is None else []))


@dataclass(frozen=True)
class Typed:
    """A parsed command line.

    Args:
        words: All words.
        positional: Positional arguments.
        flags: Flags, without dashes.
        keys: Values of the command's own keys.
        settings: ``key=value`` of the configuration, as typed.
        composer: With the user's presets.
    """

    words: tuple[str, ...]
    positional: tuple[str, ...]
    flags: frozenset[str]
    keys: Mapping[str, Any]
    settings: tuple[str, ...]
    composer: Composer

    def below(self, stem: str) -> dict[str, Any]:
        """Values of keys that begin with ``stem``, by the rest of the name."""
        return {key.removeprefix(stem): value for key, value in self.keys.items() if key.startswith(stem)}

    def common(self) -> list[str]:
        """The typed keys common to all commands, for commands in messages."""
        stems = tuple(f"{key.name}=" for key in COMMON_KEYS)
        return [word for word in self.words if word.startswith(stems)]


@dataclass(frozen=True)
class Command:
    """A command: its name, grammar and help.

    Args:
        name: As in ``ercfusion NAME``.
        about: One sentence without its full stop.
        examples: Arguments and what they do.
        usage: Forms of the arguments; computed if empty.
        positional: Positional arguments, in order.
        keys, flags: Of this command only.
        config: Root of the configuration whose settings may be typed, or None.
        sections: Sections of these settings; empty for all.
        groups: Groups whose choices the help lists.
        bare: Whether the command runs without arguments; otherwise it prints its help.
        details: Text after the examples.
        tables: Function returning further tables of the help (title and lines).
        notes: Text at the end.
        advice: End of the message about an unknown key.
    """

    name: str
    about: str
    examples: tuple[tuple[str, str], ...]
    usage: tuple[str, ...] = ()
    positional: tuple[Positional, ...] = ()
    keys: tuple[Key, ...] = ()
    flags: tuple[Flag, ...] = ()
    config: str | None = None
    sections: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    bare: bool = False
    details: str = ""
    tables: Callable[[Composer], Iterable[tuple[str, Sequence[str]]]] | None = None
    notes: str = ""
    advice: str = ""

    @property
    def all_keys(self) -> tuple[Key, ...]:
        """The keys, including those of every command."""
        return (*self.keys, *COMMON_KEYS)

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        """The flags, including those of every command."""
        return (*self.flags, *COMMON_FLAGS)

    def takes(self, name: str) -> bool:
        """Whether ``name`` is a setting read by this command."""
        if self.config is None:
            return False
        own = any(key.names(name) for key in self.all_keys)
        section = name.lstrip("+~").partition(".")[0]
        return section in self.sections if self.sections else not own or name == "imports"

    def main(self, argv: Sequence[str], act: Callable[[Typed], int]) -> int:
        """Print the help if requested, else call ``act``; returns the exit status."""
        if asked := {"--help", "-h"}.intersection(argv) or not (argv or self.bare):
            values = {name: text for name, _, text in (word.partition("=") for word in argv)}
            common = {key.name: key.read(key.name, values[key.name]) for key in COMMON_KEYS if key.name in values}
            import_modules(common.get("imports", ()))
            composer = self._composer(common)
            if "model" in values and "model" in self.groups:
                print(model_help(composer, argv), end="")
            elif "data" in values and "data" in self.groups:
                print(corpus_help(composer, argv), end="")
            else:
                print(self.help(composer), end="")
            return 0 if argv and asked else 2
        return act(self.parse(argv))

    def parse(self, argv: Sequence[str]) -> Typed:
        """Parse a command line and import its modules.

        With ``resume=`` the command imports them itself, after comparing them with the folder's.

        Raises:
            ConfigError: An unknown word, a wrong value or a failed import.
        """
        flags, positional, keys, settings = set(), [], dict[str, Any](), []
        for place, word in enumerate(argv):
            name, equals, text = word.partition("=")
            if word.startswith("-"):
                flags.add(self._flag(word, *argv[place + 1 : place + 2]))
            # A folder name may contain "=", so an existing path is positional.
            elif self.positional and (not equals or os.path.exists(os.path.expanduser(word))):
                positional.append(word)
            elif not equals and not word.startswith("~"):
                raise ConfigError(f"{shown(word)} is not of the form key=value. {self._key_advice(argv)}")
            else:
                own = next((key for key in self.all_keys if key.names(name)), None)
                if own is not None:
                    keys[name] = own.read(name, text)
                if self.takes(name):
                    settings.append(word)
                if own is None:
                    self._check(name)
        composer = self._composer(keys)
        least = sum(argument.least for argument in self.positional)
        endless = any(argument.most is None for argument in self.positional)
        if len(positional) < least or (len(positional) > least and not endless):
            wanted = " ".join(argument.sign for argument in self.positional)
            typed = shown(" ".join(positional))
            raise ConfigError(f"{self.name} takes {wanted}, found {len(positional)}: {typed}. Use --help for examples.")
        for argument, word in zip(self.positional, positional, strict=False):
            if argument.choices and word not in argument.choices:
                raise ConfigError(f"no {argument.name} {shown(word)}. {did_you_mean(word, argument.choices)}")
        if not any(word.startswith("resume=") for word in settings):
            import_modules(keys.get("imports", ()))
            if names := {target: add_class(target) for target in _classes(settings)}:
                settings = [_named(word, names) for word in settings]
                # A resumed run needs these modules too.
                modules = [module for name in names.values() for module in ARCHITECTURES.users_modules(name)]
                keys["imports"] = list(dict.fromkeys([*keys.get("imports", ()), *modules]))
                settings = [word for word in settings if not word.startswith("imports=")]
                settings.append(f"imports=[{','.join(keys['imports'])}]")
        return Typed(tuple(argv), tuple(positional), frozenset(flags), keys, tuple(settings), composer)

    def _composer(self, keys: Mapping[str, Any]) -> Composer:
        return Composer(self.config or "train", keys.get("config_dir"))

    def _flag(self, word: str, following: str = "") -> str:
        """The name of a typed flag."""
        for flag in self.all_flags:
            if word in (f"--{flag.name}", f"-{flag.short}"):
                return flag.name
        name, equals, text = word.partition("=")
        known = [f"--{flag.name}" for flag in self.all_flags]
        problem = f"unknown flag {shown(name)}. "
        key = name.lstrip("-").replace("-", "_") if name.startswith("--") else ""
        own = any(each.names(key) for each in self.all_keys)
        if equals and name in known:
            raise ConfigError(f"{shown(word)}: a flag has no value. Write {name}, or omit it.")
        if not own and nearest(name, known, 1):
            raise ConfigError(problem + did_you_mean(name, known))
        value = text if equals else "VALUE" if following.startswith("-") or "=" in following else following
        if key and (own or value not in ("", "VALUE")) and len(word) < LONGEST:
            instead = shlex.quote(f"{key}={value or 'VALUE'}")
            raise ConfigError(f"{problem}A key with a value has no dashes. Write {instead}")
        raise ConfigError(problem + did_you_mean(name, known))

    def _key_advice(self, argv: Sequence[str]) -> str:
        """What to write instead of names of models and corpora without a key."""
        groups = self._composer({}).groups()
        named = [
            f"{group}={word}"
            for word in argv
            for group in ("model", "data")
            if self.takes(group) and word.partition("/")[0] in groups[group]
        ]
        return f"Write {' '.join(named)}." if named else "Use --help for the keys."

    def _check(self, name: str) -> None:
        """Raise :class:`ConfigError` unless the command has this key or setting."""
        if name.replace("_", "-") in [flag.name for flag in self.all_flags]:
            raise ConfigError(f"{name} is a flag without a value. Write --{name}, or omit it.")
        own = [key.name for key in self.all_keys]
        if not self.takes(name):
            known = [*own, *self.sections, *(key for section in self.sections for key in fields_in(section))]
            path = " and there is no such path" if self.positional else ""
            problem = f"{self.name} has no setting {shown(name)}{path}. {did_you_mean(name, known)}"
            raise ConfigError(f"{problem} {self.advice}".rstrip())
        if not self.sections and "." not in name and nearest(name, own, 1):
            groups = self._composer({}).groups()
            if name not in groups and name not in self._composer({}).compose([], options=False):
                raise ConfigError(f"{self.name} has no setting {shown(name)}. {did_you_mean(name, [*own, *groups])}")

    def help(self, composer: Composer) -> str:
        """The text of ``--help``."""
        program = program_name(self.name)
        usage = self.usage or (" ".join([*(each.sign for each in self.positional), "[key=value ...] [flags]"]),)
        parts = [f"{self.about}."]
        parts.append("\n".join(f"{'usage: ' if not i else ' ' * 7}{program} {form}" for i, form in enumerate(usage)))
        examples = [(f"{program} {typed}".rstrip(), about) for typed, about in self.examples]
        parts += ["Examples:\n" + columns(examples), self.details.strip("\n")]
        if self.groups:
            groups = composer.groups()
            described = " or ".join(f"{name}=NAME" for name in self.groups if name in ("model", "data"))
            title = f"Presets (add --help to {described} for its description and options):\n"
            parts.append(title + columns([(f"{name}=", ", ".join(groups[name])) for name in self.groups]))
        for title, lines in self.tables(composer) if self.tables else ():
            parts.append("\n".join([title, *lines]))
        parts.append("Keys (typed as name=value):\n" + columns([(key.sign, key.about) for key in self.all_keys]))
        parts.append("Flags:\n" + columns([(flag.sign, flag.about) for flag in self.all_flags]))
        parts.append(self.notes.strip("\n"))
        return "\n\n".join(part for part in parts if part) + "\n"


def _classes(settings: Sequence[str]) -> list[str]:
    """Models given as ``"module:Class"``."""
    values = [value for name, _, value in (word.partition("=") for word in settings) if name == "model"]
    return [one for value in values for one in value.split(",") if ":" in one]


def _named(word: str, names: Mapping[str, str]) -> str:
    """A setting with model classes replaced by their registered names."""
    key, _, value = word.partition("=")
    return f"model={','.join(names.get(one, one) for one in value.split(','))}" if key == "model" else word


def program_name(command: str) -> str:
    """The command as it was started: ``ercfusion train`` or ``python -m ercfusion.train``."""
    started = Path(sys.argv[0])
    short = started.stem == "ercfusion" or (started.name, started.parent.name) == ("__main__.py", "ercfusion")
    return f"ercfusion {command}" if short else f"python -m ercfusion.{command}"


def settings_lines(keys: Iterable[str]) -> list[str]:
    """Settings of the configuration with defaults and meanings, in columns."""
    fields = [field for key in keys if (field := field_of(key)) is not None]
    rows = [(f"{one.key}={typed_text(one.default)}", one.known.meaning.replace("`", "")) for one in fields]
    return [columns(rows)]


def columns(rows: Iterable[tuple[str, str]], indent: int = 2) -> str:
    """Two columns, the second wrapped; after a long first cell it starts on a new line."""
    rows = list(rows)
    fitting = [len(left) for left, _ in rows if len(left) <= 64]
    start = max(fitting, default=0) + indent + 2
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, WIDTH - start) or [""]
        head = f"{' ' * indent}{left}"
        if len(head) > start - 2 and right:
            lines.append(head)
            head = ""
        lines += [f"{head:<{start}}{wrapped[0]}".rstrip(), *(" " * start + line for line in wrapped[1:])]
    return "\n".join(lines)
