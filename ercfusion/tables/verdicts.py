"""The verdicts of a table in words, for pages that would otherwise repeat them by hand."""

from __future__ import annotations

import numpy as np

from ercfusion.tables.render import number
from ercfusion.tables.table import Table


def verdict_lines(table: Table) -> list[str]:
    """The differences that a table shows, as sentences: how many, and a Markdown list by the rows they have in common.

    The row with the most differences in one direction comes first; each difference is in one line only.
    """
    left = [
        entry.names if entry.difference < 0 else entry.names[::-1] for entry in table.comparisons if entry.shown
    ]  # (the lower one, the higher one)
    size = {frozenset(entry.names): abs(entry.difference) for entry in table.comparisons}
    unsure = {frozenset(entry.names) for entry in table.comparisons if entry.shown and not entry.certain}
    widths = [entry.high - entry.low for entry in table.comparisons]
    known = [width for width in widths if not np.isnan(width)]
    typical = (
        f"half of the intervals of a difference are narrower than {number(table.metric, float(np.median(known)))}"
        if known
        else "no difference has an interval"
    )
    lines = [f"Of {len(widths)} comparisons {len(left)} are shown; {typical}{':' if left else '.'}", ""]
    names = [line.row.name for line in table.lines]
    while left:
        name, side = max(
            ((name, side) for name in names for side in (0, 1)),
            key=lambda entry: sum(pair[entry[1]] == entry[0] for pair in left),
        )
        others = sorted((pair[1 - side] for pair in left if pair[side] == name), key=names.index)
        left = [pair for pair in left if pair[side] != name]
        parts = [
            f"`{other}` ({number(table.metric, size[frozenset((name, other))])}"
            + (", not certain)" if frozenset((name, other)) in unsure else ")")
            for other in others
        ]
        lines.append(f"- `{name}` is {('below', 'above')[side]} {', '.join(parts)}.")
    doubtful = [entry for entry in table.comparisons if not entry.certain and not entry.shown]
    if doubtful:
        pairs = ", ".join("`{}` and `{}`".format(*entry.names) for entry in doubtful)
        lines += ["", f"Not shown, which is not certain: {pairs}."]
    return lines
