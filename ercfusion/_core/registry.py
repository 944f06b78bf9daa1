"""Names for classes that are loaded when they are first used, and the import of a user's modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.schemas.reading import shown

T = TypeVar("T")


class Registry(dict[str, str], Generic[T]):
    """Name to ``"module:Class"``.

    A class that has no name can be given itself, or as ``"module:Class"`` once its module is imported. Texts come from
    files too, so this never imports a module that only such a text names: see :func:`import_modules`.

    Args:
        kind: What the names name, as in "no architecture 'x'".
        entries: What is known from the start.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        super().__init__(entries)
        self.kind = kind

    def load(self, named: str | type[T]) -> type[T]:
        """The class that ``named`` is, or is the name of.

        Raises:
            ConfigError: unknown name (the message names the nearest), a module that is not imported, or one without
                this class.
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
            raise ConfigError(f"{self.kind} {shown(named)}: import the module first (in a command: imports=[{module}])")
        found: Any = sys.modules[module]
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise ConfigError(f"{self.kind} {shown(named)}: the module {module} has no class {shown(attribute)}")
        return found

    def name_of(self, named: str | type[T]) -> str:
        """The name under which a class is known here, else ``"module:Class"``: what is saved and shown."""
        target = named if isinstance(named, str) else f"{named.__module__}:{named.__qualname__}"
        return next((name for name, known in self.items() if known == target), target)

    def users_modules(self, name: str) -> list[str]:
        """The module of the class of a name, if it is a user's: a process has to import it to know the name."""
        module, colon, _ = self.get(name, name).partition(":")
        return [module] if colon and module.partition(".")[0] != "ercfusion" else []

    def register(self, name: str, target: str) -> None:
        """Make a class of your own known by name; see :func:`ercfusion.models.register`.

        Raises:
            ConfigError: the name belongs to another class.
        """
        if self.get(name, target) != target:
            raise ConfigError(f"the {self.kind} name {name!r} is taken by {self[name]}")
        self[name] = target


def import_modules(names: Iterable[str]) -> None:
    """Import a user's modules, which register models and corpora.

    Raises:
        ConfigError: one cannot be found or imported, or its name is none.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"imports: {name!r} is no name of a module, as in my_models (without .py)")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"imports: no module {error.name!r}. It must be installed, or lie in the folder you start from or on "
                "PYTHONPATH."
            ) from error
        except (ImportError, SyntaxError) as error:
            raise ConfigError(f"imports: the module {name!r} cannot be imported: {error}") from error


def import_again(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Import the modules that a command names again to go on with a folder whose settings import ``known``.

    Raises:
        ConfigError: a module is not among them, or cannot be imported.
    """
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"resume= goes on with the settings of the {what}, which do not import {shown(unknown[0])}")
    import_modules(names)


def require_trusted(names: Sequence[str], again: str) -> None:
    """Raise :class:`ConfigError` if modules that a folder names would run code that this process has not run.

    A run folder may be a stranger's, and may be next to a stranger's file. A module counts as trusted once it is
    imported: because the user's own command or program named it.

    Args:
        names: Modules that the configuration of the folder names.
        again: The command that names them, or what to do in Python.
    """
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    listed = ", ".join(missing)
    listed = listed if len(listed) <= 80 else f"{listed[:77]}..."
    problem = f"the settings of this folder import {listed}: that runs code, so a command must name it. If you trust it"
    long = f"{problem}: {again}"
    raise ConfigError(long if len(long) <= 300 else f"{problem}, add imports=[...] with the names in its config.json")
