"""Registry of architectures; a model's file is loaded on first use."""

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
    """Class of an architecture.

    Args:
        model: Registered name, ``"module:Class"`` of an imported module, or the class.

    Raises:
        ConfigError: unknown name (with the nearest name), or not an :class:`Architecture`.
    """
    architecture = ARCHITECTURES.load(model)
    if not issubclass(architecture, Architecture):
        raise ConfigError(
            f"{ARCHITECTURES.name_of(model)} is not a subclass of ercfusion.models.Architecture. Use it as base class."
        )
    return architecture


def register(name: str, target: str) -> None:
    """Register an architecture under a name.

    Args:
        name: New name.
        target: ``"module:Class"``, loaded on first use.

    Raises:
        ConfigError: the name is taken.
    """
    ARCHITECTURES.register(name, target)


def architecture_options(model: str | type[Architecture]) -> dict[str, Any]:
    """Options of an architecture with their defaults."""
    return defaults_of(architecture_class(model))


def architecture_limits(model: str | type[Architecture], options: Mapping[str, Any] | None = None) -> Limits:
    """:class:`Limits` of an architecture with ``options``, without building it.

    Raises:
        ConfigError: unknown name, with the nearest name.
    """
    return architecture_class(model).limits({**architecture_options(model), **(options or {})})


def build_architecture(
    model: str | type[Architecture], inputs: InputSpec, options: Mapping[str, Any] | None = None
) -> Architecture:
    """Build an architecture.

    Args:
        model: As for :func:`architecture_class`.
        inputs: Modalities and widths.
        options: Options that differ from their defaults.

    Raises:
        ConfigError: unknown name or option (with the nearest name), invalid value, or sizes exceeding the memory.
    """
    architecture, name = architecture_class(model), ARCHITECTURES.name_of(model)
    options = dict(options or {})
    check_options(f"model {name!r}", "model", options_of(architecture), options)
    try:
        with allocation_limit(name):
            return architecture(inputs, **options)
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
