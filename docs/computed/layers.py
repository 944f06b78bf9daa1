"""Parts of the page on layers."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from docs.computed.registry import register

INPUTS = {
    **{"batch": "batch", "packing": "packed", "graph": "packed"},
    **dict.fromkeys(("lengths", "mask", "query_mask"), "padded"),
}
"""Kinds of input by arguments of ``forward``."""


def inputs(layer: Any) -> str:
    """The kinds of input of a layer."""
    names = inspect.signature(layer.forward).parameters
    return ", ".join(dict.fromkeys(kind for name, kind in INPUTS.items() if name in names)) or "vectors"


def layers_list() -> list[str]:
    """The names of the layers by kind of input, then those of the functions and states."""
    import ercfusion.layers as room

    values = {name: getattr(room, name) for name in room.__all__}
    kinds: dict[str, list[str]] = {}
    for name, value in values.items():
        kinds.setdefault(inputs(value) if hasattr(value, "forward") else "functions and states", []).append(name)
    lines: list[str] = []
    for kind in sorted(kinds, key=lambda kind: (kind == "functions and states", kind)):
        names = ", ".join(f"`{name}`" for name in kinds[kind])
        lines += textwrap.wrap(f"- {kind}: {names}.", 120, subsequent_indent="  ")
    return lines


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


register("layers", "docs/layers.md", layers_list)
register("operations", "docs/layers.md", operations)
