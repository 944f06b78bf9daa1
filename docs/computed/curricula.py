"""Parts of the page on curricula, from the records of ``experiments/meld-curriculum``."""

from __future__ import annotations

import textwrap
from typing import Any

from docs.computed.registry import register
from docs.computed.tables import table

PRESET = "meld-curriculum"


def pairs() -> dict[str, tuple[Any, Any, Any]]:
    """Per model the rows without and with a curriculum, and their comparison."""
    rows = {line.row.name: line for line in table(PRESET).lines}
    comparisons = {frozenset(comparison.names): comparison for comparison in table(PRESET).comparisons}
    names = {model: f"{model}, curriculum" for model in rows}
    return {
        model: (rows[model], rows[name], comparisons[frozenset((model, name))])
        for model, name in names.items()
        if name in rows
    }


def gains() -> dict[str, float]:
    """Per model the difference of the means in percent points."""
    metric = table(PRESET).metric
    return {
        model: round(100 * (after.test[metric].mean - before.test[metric].mean), 2)
        for model, (before, after, _) in pairs().items()
    }


def scores() -> list[str]:
    """One row per model: test score without and with the curriculum, difference, p."""
    from ercfusion.tables.cells import markdown_table, spread

    metric, differences = table(PRESET).metric, gains()
    rows = [["model", "without", "with", "difference", "p (Holm)"]]
    for model, (before, after, comparison) in pairs().items():
        means = [spread(metric, line.test[metric]) for line in (before, after)]
        rows.append([model, *means, f"{differences[model]:+.2f}", f"{comparison.p_holm:.2f}"])
    return markdown_table(rows).splitlines()


def effect() -> list[str]:
    """The differences as one sentence."""
    differences, comparisons = gains(), [comparison for _, _, comparison in pairs().values()]
    worst, best = (f(differences, key=differences.__getitem__) for f in (min, max))
    shown = sum(comparison.shown for comparison in comparisons)
    higher, lower = (sum(sign * value > 0 for value in differences.values()) for sign in (1, -1))
    text = (
        f"With the curriculum {higher} of {len(differences)} models score higher and {lower} lower, from "
        f"{differences[best]:+.2f} (`{best}`) to {differences[worst]:+.2f} (`{worst}`) points. "
        + (f"{shown} of these differences are significant." if shown else "None of these differences is significant.")
    )
    return textwrap.wrap(text, 120, break_on_hyphens=False)


register("curriculum scores", "docs/curricula.md", scores, PRESET)
register("curriculum effect", "docs/curricula.md", effect, PRESET)
