"""The grammar of the commands: what may be typed, declared once per command.

A command line has three kinds of words, the same in every command:

- a *positional* argument names a place or a preset (``RUN``);
- a *key* gives a value: ``name=value``, without dashes;
- a *flag* switches something on: ``--name``, without a value.

Every command also takes the keys ``imports=`` and ``config_dir=`` and the flag ``--help``. Parsing, messages with
suggestions, help, shell completion and the tables of the documentation are computed from the declaration.
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
from ercfusion.config.overrides import LONGEST, shown, typed_path
from ercfusion.config.reference import corpus_help, model_help

WIDTH = 118
Choices = Sequence[str] | Callable[[], Iterable[str]]


def _path(key: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{key} needs a value")
    return typed_path(text)


def _whole(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise ConfigError(f"{key} takes a whole number of at least 1, not {shown(text)}")
    return int(text)


def _names(key: str, text: str) -> list[str]:
    inside = text.strip().removeprefix("[").removesuffix("]")
    return [name.strip() for name in inside.split(",") if name.strip()]


KINDS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "text": ("NAME", lambda key, text: text),
    "path": ("DIR", _path),
    "file": ("FILE", _path),
    "whole": ("N", _whole),
    "names": ("A,B", _names),
}
"""Kind of a key: what stands for its value in the help, and how the typed text is read."""


@dataclass(frozen=True)
class Key:
    """``name=value``.

    Args:
        name: What is typed. A last part in capitals stands for any name: ``data.packs.MODALITY``.
        about: What it means, in a line.
        kind: An entry of :data:`KINDS`.
        default: The value without it; ``None``: ``about`` says what happens then.
        choices: The values that exist, or a function that lists them.
        free: Whether other values than ``choices`` are taken, too.
        value: What stands for the value in the help; that of the kind if empty.
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
        """The part of the name that is typed as it is: ``data.packs.`` of ``data.packs.MODALITY``."""
        head, dot, last = self.name.rpartition(".")
        return head + dot if last.isupper() else self.name

    def names(self, typed: str) -> bool:
        """Whether ``typed`` is this key."""
        if self.stem == self.name:
            return typed == self.name
        return typed.startswith(self.stem) and len(typed) > len(self.stem)

    def known(self) -> list[str]:
        """The values that exist."""
        return list(self.choices() if callable(self.choices) else self.choices)

    def read(self, typed: str, text: str) -> Any:
        """The value.

        Raises:
            ConfigError: it is of another kind, or none of the choices.
        """
        if self.choices and not self.free and text not in self.known():
            raise ConfigError(f"{shown(f'{typed}={text}')}: no such value. {did_you_mean(text, self.known())}")
        return KINDS[self.kind][1](typed, text)

    @property
    def sign(self) -> str:
        """``name=value`` as the help shows it."""
        return f"{self.name}={self.default or self.value or KINDS[self.kind][0]}"


@dataclass(frozen=True)
class Flag:
    """``--name``; ``short`` is another, of one letter: ``-m``."""

    name: str
    about: str
    short: str = ""

    @property
    def sign(self) -> str:
        """``--name, -n`` as the help shows it."""
        return f"--{self.name}" + (f", -{self.short}" if self.short else "")


COMMON_KEYS = (
    Key("imports", "modules to import first: they register corpora and models of your own", "names", value="MODULE"),
    Key("config_dir", "configuration groups of your own: DIR/model/mine.yaml makes model=mine", "path"),
)
COMMON_FLAGS = (Flag("help", "this text", "h"),)


@dataclass(frozen=True)
class Positional:
    """An argument without a name: what the help calls it, and the fewest and most of them (``None``: any number).

    ``choices``: The words that it can be; empty for a place.
    """

    name: str
    least: int = 1
    most: int | None = 1
    choices: tuple[str, ...] = ()

    @property
    def sign(self) -> str:
        """``RUN [RUN ...]`` as the help shows it."""
        return " ".join([self.name] * self.least + ([f"[{self.name} ...]"] if self.most is None else []))


@dataclass(frozen=True)
class Typed:
    """A command line that was understood.

    Args:
        words: All of it.
        positional: The positional arguments.
        flags: Names of the flags, without dashes.
        keys: Values of the command's own keys that were typed.
        settings: ``key=value`` of the configuration, as typed.
        composer: Composes configurations of the command's root, with the user's own groups.
    """

    words: tuple[str, ...]
    positional: tuple[str, ...]
    flags: frozenset[str]
    keys: Mapping[str, Any]
    settings: tuple[str, ...]
    composer: Composer

    def below(self, stem: str) -> dict[str, Any]:
        """The values of keys that begin with ``stem``, by the rest of their names."""
        return {key.removeprefix(stem): value for key, value in self.keys.items() if key.startswith(stem)}

    def common(self) -> list[str]:
        """The keys that every command takes, as they were typed: for commands that messages print."""
        stems = tuple(f"{key.name}=" for key in COMMON_KEYS)
        return [word for word in self.words if word.startswith(stems)]


@dataclass(frozen=True)
class Command:
    """What a command is called, what may be typed, and what its help says.

    Args:
        name: As in ``ercfusion NAME``.
        about: What it does: one sentence, without its full stop.
        examples: What may follow the name, as in a shell, and what it does.
        usage: What may follow the name, one form per entry; computed if empty.
        positional: Positional arguments, in order.
        keys, flags: Those of this command only.
        config: The root of the configuration whose settings may be typed.
        sections: Settings of these sections only (``data``); of all, if it is empty and there is a ``config``.
        groups: Groups of the configuration whose choices the help lists.
        bare: Whether it does something if nothing is typed. Otherwise it shows its help.
        details: Text after the examples.
        tables: Further tables of the help: titles and lines. A function, because they take time.
        notes: Text at the end.
        advice: What the message about an unknown key adds.
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
        """The keys, with those of every command."""
        return (*self.keys, *COMMON_KEYS)

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        """The flags, with those of every command."""
        return (*self.flags, *COMMON_FLAGS)

    def takes(self, name: str) -> bool:
        """Whether ``name`` is a setting of the configuration that this command reads."""
        if self.config is None:
            return False
        own = any(key.names(name) for key in self.all_keys)
        section = name.lstrip("+~").partition(".")[0]
        return section in self.sections if self.sections else not own or name == "imports"

    def main(self, argv: Sequence[str], act: Callable[[Typed], int]) -> int:
        """Show the help (with ``model=NAME`` or ``data=NAME`` that of it) if it is asked for, else ``act``.

        Returns:
            The status.
        """
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
        """Understand a command line, and import the modules that it names.

        With ``resume=`` the command itself imports them, after it has compared them with those of the folder.

        Raises:
            ConfigError: a word that the command does not have (the nearest is named), a wrong value, a module that
                cannot be imported.
        """
        flags, positional, keys, settings = set(), [], dict[str, Any](), []
        for place, word in enumerate(argv):
            name, equals, text = word.partition("=")
            if word.startswith("-"):
                flags.add(self._flag(word, *argv[place + 1 : place + 2]))
            # The name of a folder may hold a "=": what exists is a path.
            elif self.positional and (not equals or os.path.exists(os.path.expanduser(word))):
                positional.append(word)
            elif not equals and not word.startswith("~"):
                raise ConfigError(f"{shown(word)} is not of the form key=value (see --help)")
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
            raise ConfigError(f"{self.name} takes {wanted}, found {len(positional)}: {shown(' '.join(positional))}")
        for argument, word in zip(self.positional, positional, strict=False):
            if argument.choices and word not in argument.choices:
                raise ConfigError(f"no {argument.name} {shown(word)}. {did_you_mean(word, argument.choices)}")
        if not any(word.startswith("resume=") for word in settings):
            import_modules(keys.get("imports", ()))
            if names := {target: add_class(target) for target in _classes(settings)}:
                settings = [_named(word, names) for word in settings]
                # As if their modules had been named: the run needs them again.
                modules = [module for name in names.values() for module in ARCHITECTURES.users_modules(name)]
                keys["imports"] = list(dict.fromkeys([*keys.get("imports", ()), *modules]))
                settings = [word for word in settings if not word.startswith("imports=")]
                settings.append(f"imports=[{','.join(keys['imports'])}]")
        return Typed(tuple(argv), tuple(positional), frozenset(flags), keys, tuple(settings), composer)

    def _composer(self, keys: Mapping[str, Any]) -> Composer:
        return Composer(self.config or "train", keys.get("config_dir"))

    def _flag(self, word: str, following: str = "") -> str:
        """The name of the flag that was typed."""
        for flag in self.all_flags:
            if word in (f"--{flag.name}", f"-{flag.short}"):
                return flag.name
        name, equals, text = word.partition("=")
        known = [f"--{flag.name}" for flag in self.all_flags]
        problem = f"unknown flag {shown(name)}. "
        key = name.lstrip("-").replace("-", "_") if name.startswith("--") else ""
        own = any(each.names(key) for each in self.all_keys)
        if equals and name in known:
            raise ConfigError(f"{shown(word)}: a flag has no value. Write {name}, or leave it out")
        if not own and nearest(name, known, 1):
            raise ConfigError(problem + did_you_mean(name, known))
        value = text if equals else "VALUE" if following.startswith("-") or "=" in following else following
        if key and (own or value not in ("", "VALUE")) and len(word) < LONGEST:
            instead = shlex.quote(f"{key}={value or 'VALUE'}")
            raise ConfigError(f"{problem}What has a value has no dashes: write {instead}")
        raise ConfigError(problem + did_you_mean(name, known))

    def _check(self, name: str) -> None:
        """Raise :class:`ConfigError` if a key is none of this command's, nor a setting that it reads."""
        if name.replace("_", "-") in [flag.name for flag in self.all_flags]:
            raise ConfigError(f"{name} is a flag, without a value: write --{name}, or leave it out")
        own = [key.name for key in self.all_keys]
        if not self.takes(name):
            known = [*own, *self.sections, *(f"{section}.raw" for section in self.sections)]
            path = " and there is no such path" if self.positional else ""
            problem = f"{self.name} has no setting {shown(name)}{path}. {did_you_mean(name, known)}"
            raise ConfigError(f"{problem} {self.advice}".rstrip())
        if not self.sections and "." not in name and nearest(name, own, 1):
            groups = self._composer({}).groups()
            if name not in groups and name not in self._composer({}).compose([], options=False):
                raise ConfigError(f"{self.name} has no setting {shown(name)}. {did_you_mean(name, [*own, *groups])}")

    # Help

    def help(self, composer: Composer) -> str:
        """The text of ``--help``."""
        program = program_name(self.name)
        usage = self.usage or (" ".join([*(each.sign for each in self.positional), "[key=value ...] [flags]"]),)
        parts = [f"{self.about}."]
        parts.append("\n".join(f"{'usage: ' if not i else ' ' * 7}{program} {form}" for i, form in enumerate(usage)))
        examples = [(f"{program} {typed}".rstrip(), about) for typed, about in self.examples]
        parts += ["examples\n" + columns(examples), self.details.strip("\n")]
        if self.groups:
            groups = composer.groups()
            parts.append("groups\n" + columns([(f"{name}=", ", ".join(groups[name])) for name in self.groups]))
        for title, lines in self.tables(composer) if self.tables else ():
            parts.append("\n".join([title, *lines]))
        parts.append("keys\n" + columns([(key.sign, key.about) for key in self.all_keys]))
        parts.append("flags\n" + columns([(flag.sign, flag.about) for flag in self.all_flags]))
        parts.append(self.notes.strip("\n"))
        return "\n\n".join(part for part in parts if part) + "\n"


def _classes(settings: Sequence[str]) -> list[str]:
    """The models that are given as ``"module:Class"``."""
    values = [value for name, _, value in (word.partition("=") for word in settings) if name == "model"]
    return [one for value in values for one in value.split(",") if ":" in one]


def _named(word: str, names: Mapping[str, str]) -> str:
    """A setting with the names of its models for their classes."""
    key, _, value = word.partition("=")
    return f"model={','.join(names.get(one, one) for one in value.split(','))}" if key == "model" else word


def program_name(command: str) -> str:
    """How the running program was asked for a command: ``ercfusion train`` or ``python -m ercfusion.train``."""
    started = Path(sys.argv[0])
    short = started.stem == "ercfusion" or (started.name, started.parent.name) == ("__main__.py", "ercfusion")
    return f"ercfusion {command}" if short else f"python -m ercfusion.{command}"


def columns(rows: Iterable[tuple[str, str]], indent: int = 2) -> str:
    """Two columns, the second one wrapped; next to a long first cell it starts on a line of its own."""
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
