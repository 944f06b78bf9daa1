"""Words, numbers and tables of cells for every format. The same records give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ercfusion.metrics.cautions import MARK
from ercfusion.metrics.comparison import Comparison
from ercfusion.metrics.registry import get_metric
from ercfusion.tables.scores import Score

Cells = list[list[str]]


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def metric_name(metric: str) -> str:
    """Title of a metric, with an arrow if lower is better."""
    definition, part = get_metric(metric), metric.partition("/")[2]
    name = definition.title + (f" ({part})" if part else "")
    return name if definition.higher_is_better else f"{name} ↓"


def in_percent(metric: str) -> bool:
    """Whether tables show the metric in percent."""
    return get_metric(metric).unit == "percent"


def number(metric: str, value: float | None, sign: bool = False) -> str:
    """A score in the table's unit."""
    if value is None or math.isnan(value):
        return ""
    text = f"{100 * value:{'+' if sign else ''}.2f}" if in_percent(metric) else f"{value:{'+' if sign else ''}.3f}"
    return "0" + text[2:] if text in ("-0.00", "-0.000") else text


def spread(metric: str, score: Score) -> str:
    """Mean and standard deviation."""
    mean = number(metric, score.mean)
    return mean if math.isnan(score.std) else f"{mean} ± {number(metric, score.std)}"


def interval(metric: str, low: float | None, high: float | None, doubtful: bool = False) -> str:
    """Two bounds, marked if there is a caution; ``none`` if there is no interval."""
    if low is None or high is None:
        return ""
    if math.isnan(low + high):
        return "none"
    return f"{number(metric, low)} to {number(metric, high)}" + (f" {MARK}" if doubtful else "")


def probability(p: float) -> str:
    """A p value to three digits, the precision of a randomisation test."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def estimated_probability(p: float, error: float) -> str:
    """A p value with its Monte Carlo standard error, if any."""
    text = probability(p)
    return text if error == 0 or p < 0.001 else f"{text} ± {max(error, 0.001):.3f}"


def verdict(comparison: Comparison, one_seed: bool) -> str:
    """Whether a difference is shown, and whether this depends on the random draws."""
    if one_seed:
        return "one seed"  # one run does not separate model and seed
    if math.isnan(comparison.low + comparison.high):
        return "no interval"  # its variation is unknown
    return ("yes" if comparison.shown else "no") + ("" if comparison.certain else ", not certain")


def pair_cells(
    metric: str, comparisons: Sequence[Comparison], seeds: Mapping[str, int], doubtful: Collection[str] = ()
) -> Cells:
    """Comparisons by one score; empty without any.

    Args:
        metric: The score.
        comparisons: Of it.
        seeds: Number of runs by row.
        doubtful: Rows with cautions.
    """
    if not comparisons:
        return []
    rows = [["pair", "difference", "95 % interval", "p", "p (Holm)", "shown"]]
    for pair in comparisons:
        first, second = pair.names
        rows.append(
            [
                f"{first} minus {second}",
                number(metric, pair.difference, sign=True),
                interval(metric, pair.low, pair.high, first in doubtful or second in doubtful),
                probability(pair.p),
                estimated_probability(pair.p_holm, pair.p_holm_error),
                verdict(pair, one_seed=min(seeds[first], seeds[second]) < 2),
            ]
        )
    return rows


def monte_carlo_note(comparisons: Sequence[Comparison]) -> str:
    """Precision of the p values of a table, and number of uncertain verdicts."""
    drawn = [pair.exchanges for pair in comparisons if pair.p_error]
    if not drawn:
        return "Every possible exchange was made: p has no Monte Carlo error."
    least, most = min(drawn), max(drawn)
    number = f"{least:,} random exchanges" if least == most else f"{least:,} to {most:,} random exchanges"
    doubtful = sum(not pair.certain for pair in comparisons)
    text = f"Each p is from {number} per pair"
    if any("±" in estimated_probability(pair.p_holm, pair.p_holm_error) for pair in comparisons):
        text += "; the number after ± is the Monte Carlo standard error of p (Holm)"
    text += ". "
    if not doubtful:
        return text + "No verdict depends on the random draws."
    return text + (
        f"*Not certain* ({doubtful} of {len(comparisons)}): p or an end of the interval is within its Monte Carlo "
        "error of the limit."
    )


def markdown_table(cells: Cells) -> str:
    """Cells as a Markdown table with the first row as its head."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines)


def latex_table(cells: Cells, caption: str, label: str, texts: int = 0) -> str:
    """Cells as a LaTeX table (package booktabs), the first row as its head.

    Args:
        cells: The first column has names, the others numbers.
        caption, label: Of the table.
        texts: Number of last columns with text.
    """
    head, *rows = cells
    lines = [
        "% Generated from run records: do not edit. Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "  \\centering",
        "  \\begin{tabular}{l" + "r" * (len(head) - 1 - texts) + "l" * texts + "}",
        "    \\toprule",
        "    " + " & ".join(map(_tex, head)) + " \\\\",
        "    \\midrule",
        *("    " + " & ".join(map(_tex, row)) + " \\\\" for row in rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        f"  \\caption{{{_tex(caption)}}}",
        f"  \\label{{tab:{label}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    special = {"†": "$\\dagger$", "±": "$\\pm$"}
    special |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "↓": "$\\downarrow$"}
    special.update({sign: f"\\{sign}" for sign in "&%$#_{}"})
    return "".join(special.get(sign, sign) for sign in text)


def plain(value: float | None) -> str:
    """A number to six decimals; empty for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.6f}"
