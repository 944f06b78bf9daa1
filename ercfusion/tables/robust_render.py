"""Comparisons with missing modalities as cells and sentences, and as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from ercfusion.config.missing_laws import LAWS, meaning
from ercfusion.data.corpus import EXACT_LEVEL
from ercfusion.metrics.comparison import Comparison
from ercfusion.tables.cells import (
    Cells,
    csv_text,
    interval,
    latex_table,
    markdown_table,
    metric_name,
    monte_carlo_note,
    number,
    pair_cells,
    plain,
    probability,
    spread,
)
from ercfusion.tables.report import aligned
from ercfusion.tables.robustness import MEAN, Condition, RobustTable
from ercfusion.tables.scores import cautions_text

Part = tuple[str, str, Cells]
"""Heading, note and cells."""
WIDTH = 118
"""Of sentences on a terminal."""
_FEW_PAIRS = 4
_COLUMNS = ("row", "model", "metric", "condition", "mean", "std", "low", "high", "exact posterior", "seeds")


def parts_of(table: RobustTable) -> list[Part]:
    """All parts of a comparison: patterns, curves, and tests."""
    parts: list[Part] = []
    if table.patterns:
        parts.append(("Missing modalities: patterns", _pattern_note(table), score_cells(table, table.patterns)))
    for name in table.curves:
        conditions = [one for one in table.conditions if one.curve == name]
        parts.append((f"Missing modalities: {name}", _curve_note(table, name), score_cells(table, conditions)))
    seeds = {line.name: len(line.seeds) for line in table.lines}
    for name, comparisons in table.areas.items():
        doubtful = {line.name for line in table.lines if line.scores[name].cautions}
        cells = pair_cells(table.metric, comparisons, seeds, doubtful)
        note = f"{_tested(table, 'areas')} {monte_carlo_note(comparisons)}"
        parts.append((f"Differences of the {name}", note, cells))
    if table.under_laws:
        parts.append(("Differences with missing modalities", _laws_note(table), law_cells(table)))
    return [part for part in parts if part[2]]


def score_cells(table: RobustTable, conditions: Sequence[Condition]) -> Cells:
    """A line per group: the mean score under every law; of means and areas the deviation and interval too."""
    head = [f"test {metric_name(table.metric)}"]
    for one in conditions:
        head += [one.short] if len(one.laws) == 1 else [one.short, "95 % interval"]
    rows = [head]
    for line in table.lines:
        row = [line.name]
        for one in conditions:
            score = line.scores[one.name]
            row.append(number(table.metric, score.mean) if len(one.laws) == 1 else spread(table.metric, score))
            if len(one.laws) > 1:
                row.append(interval(table.metric, score.low, score.high, bool(score.cautions)))
        rows.append(row)
    if any(one.name in table.reachable for one in conditions):
        row = [EXACT_LEVEL]
        for one in conditions:
            row.append(number(table.metric, table.reachable.get(one.name)))
            row += [""] * (len(one.laws) > 1)
        rows.append(row)
    return rows


def law_cells(table: RobustTable) -> Cells:
    """Differences under every law, in bold if shown: few pairs are columns, many are rows."""
    shorts = {one.name: one.name if one.curve else one.short for one in table.conditions}
    pairs = [" minus ".join(pair.names) for pair in next(iter(table.under_laws.values()))]
    columns = [[_law_cell(table, pair) for pair in comparisons] for comparisons in table.under_laws.values()]
    if len(pairs) <= _FEW_PAIRS:
        names = [shorts[name] for name in table.under_laws]
        return [["modalities present, or law", *pairs], *([name, *cells] for name, cells in zip(names, columns))]
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    return [["pair", *(shorts[name] for name in table.under_laws)], *([name, *row] for name, row in zip(pairs, rows))]


def _law_cell(table: RobustTable, pair: Comparison) -> str:
    text = number(table.metric, pair.difference, sign=True)
    if not math.isnan(pair.low + pair.high):
        text += f" ({interval(table.metric, pair.low, pair.high)})"
    text += f", p {probability(pair.p_holm)}"
    return f"**{text}**" if pair.shown and pair.certain and not _one_seed(table, pair) else text


def _one_seed(table: RobustTable, pair: Comparison) -> bool:
    return any(len(line.seeds) < 2 for line in table.lines if line.name in pair.names)


# Sentences


def _pattern_note(table: RobustTable) -> str:
    text = f"A column names the modalities present. The masks are the same for all runs (seed {table.seed})."
    if any(one.name == MEAN for one in table.conditions):
        text += f" *{MEAN[0].upper()}{MEAN[1:]}*: of those in which a modality is missing."
    return " ".join([text, *_unseen(table, [law for one in table.patterns for law in one.laws])])


def _curve_note(table: RobustTable, name: str) -> str:
    points = [one.point or 0.0 for one in table.curve(name)]
    low, high = points[0], points[-1]
    return " ".join(
        [
            f"`{name}`: {meaning(LAWS[name])[0].lower()}{meaning(LAWS[name])[1:]} AUILC: area under the curve over the "
            f"rates {low:g} to {high:g} (trapezoid rule), divided by the width {high - low:g}, so it has the score's "
            "scale; CIDer integrates over rates from 0 to 1.",
            *_unseen(table, [law for one in table.curve(name) for law in one.laws]),
        ]
    )


def _unseen(table: RobustTable, laws: Sequence[str]) -> list[str]:
    return [f"`{law}`: {table.unseen[law]}." for law in dict.fromkeys(laws) if law in table.unseen]


def _tested(table: RobustTable, what: str) -> str:
    return (
        "p: paired randomisation test exchanging the two models' results of a conversation under all rates at once. "
        f"*Shown*: p is below 0.05 after Holm's correction over the {what}, and 0 is outside the interval, which "
        "resamples seeds too."
    )


def _laws_note(table: RobustTable) -> str:
    comparisons = [pair for pairs in table.under_laws.values() for pair in pairs]
    shown = [
        f"{name} {number(table.metric, pair.difference, sign=True)} ({' minus '.join(pair.names)})"
        for name, pairs in table.under_laws.items()
        for pair in pairs
        if pair.shown and pair.certain and not _one_seed(table, pair)
    ]
    text = (
        f"Difference, 95 % interval, and p after Holm's correction over the {len(comparisons)} differences of this "
        f"part. Shown (bold): {'; '.join(shown) if shown else 'none'}."
    )
    doubtful = sum(not pair.certain for pair in comparisons)
    return text + (f" {doubtful} verdicts depend on the random draws and are not shown." if doubtful else "")


def caution_note(table: RobustTable) -> str:
    """Cautions for intervals of means and areas: each sentence once, with its rows."""
    names = [one.name for one in table.conditions if len(one.laws) > 1]
    return cautions_text(
        {line.name: [reason for name in names for reason in line.scores[name].cautions] for line in table.lines}
    )


# Formats


def as_text(table: RobustTable, markdown: bool = False) -> str:
    """All parts, for a terminal or as Markdown tables."""
    texts = []
    for heading, note, cells in parts_of(table):
        if markdown:
            texts += [f"## {heading}", markdown_table(cells), note]
        else:
            bare = [[f"{cell.strip('*')} *" if cell.startswith("**") else cell for cell in row] for row in cells]
            plain_note = note.replace("`", "").replace("*", "").replace("(bold)", "(*)")
            texts += [heading, aligned(bare), textwrap.fill(plain_note, WIDTH, break_on_hyphens=False)]
    return "\n\n".join(text for text in [*texts, caution_note(table)] if text)


def csv_rows(table: RobustTable) -> list[list[str]]:
    """A row per group and condition, in the metric's own unit: :data:`_COLUMNS`."""
    return [
        [
            line.name,
            line.model,
            table.metric,
            one.name,
            *(plain(value) for value in (score.mean, score.std, score.low, score.high)),
            plain(table.reachable.get(one.name)),
            str(len(line.seeds)),
        ]
        for line in table.lines
        for one in table.conditions
        for score in [line.scores[one.name]]
    ]


def as_csv(table: RobustTable) -> str:
    """:func:`csv_rows` with their heads."""
    return csv_text([_COLUMNS, *csv_rows(table)])


def as_latex(table: RobustTable, label: str = "robustness") -> str:
    """The scores of every part as LaTeX tables (package booktabs)."""
    chosen = parts_of(table)[: bool(table.patterns) + len(table.curves)]
    return "\n".join(
        latex_table(cells, f"{heading}. {note}".replace("`", "").replace("*", ""), f"{label}-{place}")
        for place, (heading, note, cells) in enumerate(chosen)
    )
