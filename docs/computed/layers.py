"""Parts of the page on layers."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from docs.computed.registry import register


def about(value: Any) -> str:
    """The first line of a docstring as Markdown."""
    line = (value.__doc__ or "").strip().partition("\n")[0]
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", line.replace("``", "`"))


INPUTS = {"batch": "batch", "packing": "packed", "graph": "packed", "lengths": "padded", "mask": "padded"}
"""Kinds of input by arguments of ``forward``."""


def inputs(layer: Any) -> str:
    """The kinds of input of a layer."""
    names = inspect.signature(layer.forward).parameters
    return ", ".join(dict.fromkeys(kind for name, kind in INPUTS.items() if name in names)) or "vectors"


def layers_table() -> list[str]:
    """One row per layer, then the names of the functions and states."""
    import ercfusion.layers as room

    values = {name: getattr(room, name) for name in room.__all__}
    layers = {name: value for name, value in values.items() if hasattr(value, "forward")}
    rows = [f"| `{name}` | {inputs(layer)} | {about(layer)} |" for name, layer in layers.items()]
    more = ", ".join(f"`{name}`" for name in values if name not in layers)
    lines = textwrap.wrap(f"Functions and states: {more}.", 120)
    return ["| name | input | what it is |", "|---|---|---|", *rows, "", *lines]


def operations() -> list[str]:
    """The names of the operations."""
    import ercfusion.ops as room

    names = [f"`{name}`" for name in room.__all__ if getattr(room, name).__module__.startswith(room.__name__)]
    lines, line = list[str](), ""
    for name in [*(f"{name}," for name in names[:-1]), f"{names[-1]}."]:
        if line and len(line) + len(name) + 1 > 120:
            lines.append(line)
            line = ""
        line = f"{line} {name}".strip()
    return [*lines, line]


register("layers", "docs/layers.md", layers_table)
register("operations", "docs/layers.md", operations)
