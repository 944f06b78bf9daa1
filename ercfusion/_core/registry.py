"""Registries of classes, imported on first use, and the import of users' modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.schemas.reading import shown

T = TypeVar("T")
C = TypeVar("C", bound=type)


def place_of(cls: type) -> str:
    """``"module:Class"``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def loaded_function(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function, or that of ``"module:function"``; the text comes from code, never from a file."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded


def adding(
    kind: str, name: str, classes: dict[str, Any], others: Mapping[str, type] = MappingProxyType({})
) -> Callable[[C], C]:
    """A class decorator adding to ``classes``; a module imported again replaces its own class.

    Args:
        kind: Noun for messages, such as ``"loss term"``.
        name: New name.
        classes: Classes by name.
        others: More names in use.

    Raises:
        ConfigError: Another class has this name.
    """

    def decorate(added: C) -> C:
        _require_free(kind, name, place_of(added), place_of({**others, **classes}.get(name, added)))
        classes[name] = added
        return added

    return decorate


def _require_free(kind: str, name: str, target: str, holder: str) -> None:
    if holder != target:
        raise ConfigError(f"the {kind} name {name!r} belongs to {holder}. Choose another name.")


class Registry(dict[str, str], Generic[T]):
    """A mapping from names to ``"module:Class"``.

    Names may come from untrusted files, so :meth:`load` imports only modules of registered classes;
    :func:`import_modules` imports others.

    Args:
        kind: Noun for messages, such as ``"architecture"``.
        entries: Initial content.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        super().__init__(entries)
        self.kind = kind

    def load(self, named: str | type[T]) -> type[T]:
        """Return a class by name or ``"module:Class"``.

        Raises:
            ConfigError: The name is unknown, its module is not imported, or the module lacks the class.
        """
        if isinstance(named, type):
            return named
        target = self.get(named, named)
        module, _, attribute = target.partition(":")
        if target in self.values():
            importlib.import_module(module)
        elif not attribute:
            raise ConfigError(f"no {self.kind} {named!r}. {did_you_mean(named, self)}")
        elif module not in sys.modules:
            raise ConfigError(
                f"{self.kind} {shown(named)}: its module is not imported. Add imports=[{module}] to the command, or "
                "import it in Python first."
            )
        value: Any = sys.modules[module]
        for part in attribute.split("."):
            value = getattr(value, part, None)
        if not isinstance(value, type):
            raise ConfigError(
                f"{self.kind} {shown(named)}: the module {module} has no class {shown(attribute)}. Correct the name."
            )
        return value

    def name_of(self, named: str | type[T]) -> str:
        """The registered name of a class, else ``"module:Class"``."""
        target = named if isinstance(named, str) else place_of(named)
        return next((name for name, known in self.items() if known == target), target)

    def users_modules(self, name: str) -> list[str]:
        """The module of a user's class, for other processes to import; empty for classes of the library."""
        module, colon, _ = self.get(name, name).partition(":")
        return [module] if colon and module.partition(".")[0] != "ercfusion" else []

    def register(self, name: str, target: str) -> None:
        """Add a class; see :func:`ercfusion.models.register`.

        Raises:
            ConfigError: Another class has this name.
        """
        _require_free(self.kind, name, target, self.get(name, target))
        self[name] = target


def import_modules(names: Iterable[str]) -> None:
    """Import users' modules, which register models, corpora and metrics.

    Raises:
        ConfigError: A module does not exist or cannot be imported.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"imports: {name!r} is not a module name. Write it without .py, for example my_models.")
        if name.endswith(".py"):
            raise ConfigError(f"imports: {name!r} is a file name. Write {name[:-3]!r}, without .py.")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"imports: no module {error.name!r}. Install it, start in its folder, or add that folder to PYTHONPATH."
            ) from error
        except (ImportError, SyntaxError) as error:
            raise ConfigError(
                f"imports: the module {name!r} cannot be imported: {error}. Correct the module."
            ) from error


def import_again(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Import modules typed with ``resume=``; they must be in ``known``, the folder's settings.

    Raises:
        ConfigError: A module is not in ``known``, or cannot be imported.
    """
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"resume= continues with the settings of the {what}, which do not import {shown(unknown[0])}. "
            "Remove it from imports="
        )
    import_modules(names)


def require_trusted(names: Sequence[str], again: str) -> None:
    """Raise :class:`ConfigError` if a run folder names modules that this process has not imported.

    Importing runs code, and the folder may come from a stranger. Imported modules were named by the user's command or
    program. ``again`` is the command to type, or what to do in Python.
    """
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    listed = ", ".join(missing)
    listed = listed if len(listed) <= 80 else f"{listed[:77]}..."
    problem = f"the settings of this folder import {listed}, which runs code"
    long = f"{problem}. If you trust it: {again}"
    raise ConfigError(
        long
        if len(long) <= 300
        else f"{problem}. Add imports=[...] with the names in its config.json, if you trust it."
    )
