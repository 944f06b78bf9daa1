"""The architectures, by name. Importing this package loads torch and numpy only; a model's file is loaded on use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ercfusion._core.errors import ConfigError
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.config.options import check_options, defaults_of, options_of
from ercfusion.models.base import Architecture, BatchLoss, Capabilities, Encoded, Limits
from ercfusion.models.limits import allocation_limit


def architecture_class(model: str | type[Architecture]) -> type[Architecture]:
    """The class of an architecture.

    Args:
        model: A registered name, ``"module:Class"`` (the module must be imported), or the class itself.

    Raises:
        ConfigError: unknown name (the message names the nearest), or a class of another kind.
    """
    found = ARCHITECTURES.load(model)
    if not issubclass(found, Architecture):
        raise ConfigError(f"{ARCHITECTURES.name_of(model)} is not a subclass of ercfusion.models.Architecture")
    return found


def register(name: str, target: str) -> None:
    """Make an architecture of your own known by name.

    Args:
        name: New name; a taken one is refused.
        target: ``"module:Class"``; the module is loaded when the architecture is first used.

    Raises:
        ConfigError: the name belongs to another architecture.
    """
    ARCHITECTURES.register(name, target)


def architecture_options(model: str | type[Architecture]) -> dict[str, Any]:
    """The options of an architecture with their defaults."""
    return defaults_of(architecture_class(model))


def architecture_limits(model: str | type[Architecture], options: Mapping[str, Any] | None = None) -> Limits:
    """The limits of an architecture with ``options``, without building it; see :class:`Limits`.

    Raises:
        ConfigError: unknown name; the message names the nearest.
    """
    return architecture_class(model).limits({**architecture_options(model), **(options or {})})


def build_architecture(
    model: str | type[Architecture], inputs: InputSpec, options: Mapping[str, Any] | None = None
) -> Architecture:
    """An architecture for the given inputs.

    Args:
        model: See :func:`architecture_class`.
        inputs: Modalities and widths.
        options: Those that are not at their defaults.

    Raises:
        ConfigError: unknown name or option (the message names the nearest), an option's value that does not fit, or
            sizes that need too much memory.
    """
    found, name = architecture_class(model), ARCHITECTURES.name_of(model)
    options = dict(options or {})
    check_options(f"model {name!r}", "model", options_of(found), options)
    try:
        with allocation_limit(name):
            return found(inputs, **options)
    except ValueError as error:
        raise ConfigError(f"model {name!r}: {error}") from error


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BatchLoss",
    "Capabilities",
    "Encoded",
    "Limits",
    "architecture_class",
    "architecture_limits",
    "architecture_options",
    "build_architecture",
    "register",
]
