"""Parts of the page on layers."""

from __future__ import annotations

import re
from typing import Any

from docs.computed.registry import register


def about(value: Any) -> str:
    """The first line of a docstring as Markdown."""
    line = (value.__doc__ or "").strip().partition("\n")[0]
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", line.replace("``", "`"))


def layers_table() -> list[str]:
    """One row per layer."""
    import ercfusion.layers as room

    return ["| name | what it is |", "|---|---|"] + [
        f"| `{name}` | {about(getattr(room, name))} |" for name in room.__all__
    ]


def operations() -> list[str]:
    """The names of the operations."""
    import ercfusion.ops as room

    names = [f"`{name}`" for name in room.__all__]
    lines, line = list[str](), ""
    for name in [*(f"{name}," for name in names[:-1]), f"{names[-1]}."]:
        if line and len(line) + len(name) + 1 > 120:
            lines.append(line)
            line = ""
        line = f"{line} {name}".strip()
    return [*lines, line]


register("layers", "docs/layers.md", layers_table)
register("operations", "docs/layers.md", operations)
