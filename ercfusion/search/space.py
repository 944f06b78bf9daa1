"""Search spaces: settings by dotted key, each with a range or a list of choices.

A dimension is a plain mapping, in an architecture's ``search_space`` and in ``config.json``::

    optimizer.lr: {low: 1e-4, high: 1e-2, log: true}     numbers, uniform in the logarithm
    model.dropout: {low: 0.1, high: 0.6, step: 0.05}     low, low + step, ...
    model.layers: {low: 1, high: 3}                      whole numbers, if both ends are
    model.hidden: {choices: [32, 64, 128]}               any values
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.config.choices import CHOICES
from ercfusion.config.sections import SECTIONS, Data
from ercfusion.config.settings import field_of, fields_in, section_from

if TYPE_CHECKING:
    from optuna import Trial

Dimension = dict[str, Any]
Space = dict[str, Dimension]

_KEYS = ("low", "high", "log", "step", "choices")


def check_searchable(key: str, where: str = "") -> None:
    """Raise :class:`ConfigError` if a setting cannot be searched."""
    if key == "seed":
        raise ConfigError(f"{where}seed is not searched. Set sweep.rerun=N to train the winner on N fresh seeds.")
    whole, single = _searchable()
    section, field = key.partition(".")[0], field_of(key)
    searchable = field.known.searchable if field is not None else section in whole
    if not searchable or key == "model.name" or "." not in key:
        raise ConfigError(
            f"{where}{key} cannot be searched: a sweep searches single settings of {', '.join(whole)}, "
            f"and {' and '.join(single)}. Give it one value, and start one sweep for each."
        )


def _searchable() -> tuple[list[str], list[str]]:
    """Searchable sections, and single settings of other sections."""
    whole, single = ["model"], []
    for section in (*CHOICES, *SECTIONS):
        keys = [key for key, field in fields_in(section).items() if field.known.searchable]
        if len(keys) > 2 or section in CHOICES:
            whole.append(section)
        else:
            single += keys
    return whole, single


def read_dimension(key: str, definition: Any, where: str) -> Dimension:
    """A dimension from a file, checked and normalised.

    Args:
        definition: ``{low, high, log, step}`` or ``{choices}``.
        where: Prefix of messages.

    Raises:
        ConfigError: another form, or an invalid range.
    """
    check_searchable(key, where)
    if not isinstance(definition, Mapping):
        raise ConfigError(f"{where}{key}: found {definition!r}. Write {{low: .., high: ..}} or {{choices: [..]}}.")
    for name in definition:
        if name not in _KEYS:
            raise ConfigError(f"{where}{key}: unknown key {name!r}. {did_you_mean(str(name), _KEYS)}")
    if "choices" in definition:
        if len(definition) > 1 or not isinstance(definition["choices"], list) or not definition["choices"]:
            raise ConfigError(f"{where}{key}: found {dict(definition)}. Write {{choices: [..]}}, with one or more.")
        choices = definition["choices"]
        return {"choices": [value for place, value in enumerate(choices) if not _in(value, definition, place)]}
    low, high, step = definition.get("low"), definition.get("high"), definition.get("step")
    log = definition.get("log", False)
    if not _number(low) or not _number(high) or not (step is None or _number(step)) or not isinstance(log, bool):
        raise ConfigError(f"{where}{key}: found {dict(definition)}. Write {{low: NUMBER, high: NUMBER, log: true}}.")
    assert low is not None  # follows from _number; for the type checker
    assert high is not None
    if not low <= high:
        raise ConfigError(f"{where}{key}: low ({low}) is above high ({high}). Correct the range.")
    if log and low <= 0:
        raise ConfigError(f"{where}{key}: a logarithmic range cannot start at {low}. Set low above 0.")
    if log and step is not None:
        raise ConfigError(f"{where}{key}: a range has log or step, not both. Remove one of them.")
    if step is not None and step <= 0:
        raise ConfigError(f"{where}{key}: step is {step}. Set it above 0.")
    integral = all(isinstance(value, int) for value in (low, high, step if step is not None else 1))
    if not integral:
        low, high, step = float(low), float(high), None if step is None else float(step)
    if step is not None:
        high = low + math.floor((high - low) / step + 1e-9) * step
        high = high if integral else float(f"{high:.12g}")
    return {"low": low, "high": high, **({"log": True} if log else {}), **({} if step is None else {"step": step})}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in(value: Any, definition: Mapping[str, Any], place: int) -> bool:
    return any(_same(value, other) for other in definition["choices"][:place])


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def typed_dimension(key: str, parsed: Any, default: Any) -> Dimension:
    """A dimension typed in Hydra's sweep syntax.

    Args:
        parsed: Hydra's override.
        default: If it is a whole number, so are the values of an ``interval``.

    Raises:
        ConfigError: see :func:`read_dimension`; ``glob`` and unknown tags.
    """
    line, sweep = str(parsed.input_line), parsed.value()
    where = f"{line!r}: "
    tags = sorted(getattr(sweep, "tags", ()))
    if tags not in ([], ["log"]):
        raise ConfigError(f"{where}unknown tag {', '.join(tags)}. Use the only tag, log.")
    kind = type(sweep).__name__
    if kind == "ChoiceSweep":
        if tags:
            raise ConfigError(f"{where}log is for ranges of numbers, not for choices. Remove the tag.")
        values = [getattr(value, "text", value) for value in sweep.list]
        return read_dimension(key, {"choices": values}, where)
    if kind == "IntervalSweep":
        low, high = sweep.start, sweep.end
        if isinstance(default, int) and not isinstance(default, bool):
            if low != int(low) or high != int(high):
                raise ConfigError(f"{where}{key} takes whole numbers (default: {default}). Give whole numbers as ends.")
            low, high = int(low), int(high)
        return read_dimension(key, {"low": low, "high": high, "log": bool(tags)}, where)
    if kind == "RangeSweep":
        values = list(sweep.range())
        if not values:
            raise ConfigError(f"{where}the range is empty. Give range(LOW,HIGH) with LOW below HIGH.")
        if tags:
            raise ConfigError(f"{where}range() cannot be logarithmic. Use tag(log,interval(LOW,HIGH)).")
        low, high = min(values), max(values)
        return read_dimension(key, {"low": low, "high": high, "step": abs(sweep.step)}, where)
    raise ConfigError(f"{where}unknown form. Use a,b,c or choice(..), range(..), interval(..), tag(log,interval(..)).")


# Values of a dimension


def holds(dimension: Dimension, value: Any) -> bool:
    """Whether a dimension holds a value."""
    if "choices" in dimension:
        return any(_same(value, choice) for choice in dimension["choices"])
    if not _number(value) or not dimension["low"] <= value <= dimension["high"]:
        return False
    if isinstance(dimension["low"], int):
        return value == int(value) and (int(value) - dimension["low"]) % dimension.get("step", 1) == 0
    if "step" not in dimension:
        return True
    steps = (value - dimension["low"]) / dimension["step"]
    return abs(steps - round(steps)) < 1e-6


def stretched(dimension: Dimension, value: Any) -> Dimension | None:
    """The dimension, changed to hold ``value``; None if impossible.

    Choices get one more. A range is widened, without steps if they miss the value. A logarithmic range is centred on
    the value with the same ratio: another optimiser has rates of another magnitude.
    """
    if holds(dimension, value):
        return dimension
    if "choices" in dimension:
        choices = [*dimension["choices"], value]
        return {"choices": sorted(choices) if all(map(_number, choices)) else choices}
    if not _number(value):
        return None
    if dimension.get("log"):
        if value <= 0:
            return None
        factor = math.sqrt(dimension["high"] / dimension["low"])
        low, high = (float(f"{end:.3g}") for end in (value / factor, value * factor))
        if isinstance(dimension["low"], int):
            low, high = max(1, int(low)), max(int(high), int(value))
        return {"low": low, "high": high, "log": True}
    if isinstance(dimension["low"], int) and value != int(value):
        return None
    wider = {**dimension, "low": min(dimension["low"], value), "high": max(dimension["high"], value)}
    if not (holds(wider, dimension["low"]) and holds(wider, dimension["high"]) and holds(wider, value)):
        wider.pop("step", None)
    return wider


def clipped(dimension: Dimension, value: Any) -> Any:
    """The nearest value of a dimension; the first choice without an order."""
    if holds(dimension, value):
        return value
    if "choices" in dimension:
        numbers = [choice for choice in dimension["choices"] if _number(choice)]
        if _number(value) and numbers:
            return min(numbers, key=lambda choice: abs(choice - value))
        return dimension["choices"][0]
    if not _number(value):
        return dimension["low"]
    step = dimension.get("step", 1 if isinstance(dimension["low"], int) else None)
    value = min(max(value, dimension["low"]), dimension["high"])
    if step is None:
        return value
    value = dimension["low"] + round((value - dimension["low"]) / step) * step
    return value if isinstance(value, int) else float(f"{value:.12g}")


def ends(dimension: Dimension) -> list[Any]:
    """Values to check a dimension with: both ends, or every choice."""
    return list(dimension["choices"]) if "choices" in dimension else [dimension["low"], dimension["high"]]


# Spaces and configurations


def setting(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key.

    Raises:
        KeyError: no such setting.
    """
    field = field_of(key)
    value: Any = config
    for part in key.split("."):
        if part not in value and field is not None and field.known.if_given:
            return field.default
        value = value[part]
    return value


def with_settings(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with other values."""
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        node = changed
        field = field_of(key)
        for part in path:
            # A section may be left out while all of its settings have their defaults.
            node = node.setdefault(part, {}) if field is not None and field.known.if_given else node[part]
        node[last] = copy.deepcopy(value)
    return changed


def data_settings(config: Mapping[str, Any], space: Space) -> Iterator[Data]:
    """The sections ``data`` used by trials."""
    keys = [key for key in space if key.startswith("data.")]
    for values in itertools.product(*(ends(space[key]) for key in keys)):
        yield section_from("data", with_settings(config, dict(zip(keys, values, strict=True)))["data"])


# Spaces and Optuna's trials


def suggest(trial: Trial, key: str, dimension: Dimension) -> None:
    """Let a trial choose its value; an existing value stays."""
    if "choices" in dimension:
        trial.suggest_categorical(key, [encoded(choice) for choice in dimension["choices"]])
        return
    low, high, log, step = dimension["low"], dimension["high"], dimension.get("log", False), dimension.get("step")
    if isinstance(low, int):
        trial.suggest_int(key, low, high, step=step or 1, log=log)
    else:
        trial.suggest_float(key, low, high, step=step, log=log)


def encoded(value: Any) -> Any:
    """A value for Optuna, whose choices cannot be lists: JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def trial_settings(space: Space, params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from Optuna's parameters, rounded to six digits unless equal to ``config``."""
    values = {}
    for key, dimension in space.items():
        value, default = params[key], setting(config, key)
        if "choices" in dimension:
            value = next(choice for choice in dimension["choices"] if _same(encoded(choice), value))
        elif isinstance(value, float) and value != default:
            value = float(f"{value:.6g}")
        values[key] = value
    return values
