"""The verdicts of a table as sentences."""

from __future__ import annotations

import numpy as np

from ercfusion.tables.cells import number
from ercfusion.tables.table import Table


def verdict_lines(table: Table) -> list[str]:
    """The differences shown by a table: their number, and a Markdown list grouped by common rows.

    The row with the most differences in one direction comes first; each difference is in one line only.
    """
    left = [
        pair.names if pair.difference < 0 else pair.names[::-1] for pair in table.comparisons if pair.shown
    ]  # (the lower one, the higher one)
    size = {frozenset(pair.names): abs(pair.difference) for pair in table.comparisons}
    unsure = {frozenset(pair.names) for pair in table.comparisons if pair.shown and not pair.certain}
    widths = [pair.high - pair.low for pair in table.comparisons]
    defined = [width for width in widths if not np.isnan(width)]
    typical = (
        f"the median width of an interval is {number(table.metric, float(np.median(defined)))}"
        if defined
        else "no difference has an interval"
    )
    lines = [f"Of {len(widths)} differences {len(left)} are shown; {typical}{':' if left else '.'}", ""]
    names = [line.row.name for line in table.lines]
    compared = {name for pair in table.comparisons for name in pair.names}
    while left:
        name, side = max(
            ((name, side) for name in names for side in (0, 1)),
            key=lambda choice: sum(pair[choice[1]] == choice[0] for pair in left),
        )
        others = sorted((pair[1 - side] for pair in left if pair[side] == name), key=names.index)
        left = [pair for pair in left if pair[side] != name]
        own = [frozenset((name, other)) for other in others]
        if len(others) > 3 and {*others, name} == compared and unsure.isdisjoint(own):
            ends = sorted(size[pair] for pair in own)
            low, high = (number(table.metric, end) for end in (ends[0], ends[-1]))
            lines.append(f"- `{name}` is {('below', 'above')[side]} all other compared rows, by {low} to {high}.")
            continue
        parts = [
            f"`{other}` ({number(table.metric, size[frozenset((name, other))])}"
            + (", not certain)" if frozenset((name, other)) in unsure else ")")
            for other in others
        ]
        lines.append(f"- `{name}` is {('below', 'above')[side]} {', '.join(parts)}.")
    doubtful = [pair for pair in table.comparisons if not pair.certain and not pair.shown]
    if doubtful:
        pairs = ", ".join("`{}` and `{}`".format(*pair.names) for pair in doubtful)
        lines += ["", f"Not shown, but not certain: {pairs}."]

    return lines
