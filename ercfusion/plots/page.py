"""A computed table as one self-contained HTML file: no network, script library or fonts."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from ercfusion.data.corpus import EXACT_LEVEL
from ercfusion.plots.robustness import robustness_picture
from ercfusion.plots.scales import ticks
from ercfusion.tables.cells import Cells, metric_name, number
from ercfusion.tables.render import (
    COST_NOTE,
    cost_cells,
    facts,
    own_facts,
    part_title,
    provenance,
    sections,
    shared_facts,
)
from ercfusion.tables.table import Table

_STYLE = """
:root { --ink: #1b1b1b; --soft: #5a5a5a; --line: #d9d9d9; --blue: #0072b2; --grey: #999;
        --back: #fff; --stripe: #f6f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #aaa; --line: #444; --blue: #56b4e9; --grey: #888;
          --back: #16181c; --stripe: #1e2127 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 100rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
p, li { max-width: 60rem } .note { color: var(--soft); font-size: .92em }
.wide { overflow-x: auto; width: fit-content; max-width: 100%; border-right: 1px solid var(--line) }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .93em }
th, td { padding: .3rem .6rem; text-align: right; background: var(--back); border-bottom: 1px solid var(--line);
         white-space: nowrap }
th:first-child, td:first-child, td.text, th.text { text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; border-right: 1px solid var(--line) }
thead th { white-space: normal; vertical-align: bottom }
td.text { white-space: normal; min-width: 12rem }
thead th { border-bottom: 2px solid var(--ink); cursor: pointer }
tbody tr:nth-child(even) td { background: var(--stripe) }
thead th::after { content: " \\2195"; color: var(--grey); font-size: .8em }
code { background: var(--stripe); padding: .1em .3em; border-radius: 3px }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .soft { fill: var(--soft) }
@media (max-width: 40rem) {
  body { padding: 0 .5rem } th, td { padding: .25rem .4rem }
  th:first-child, td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; max-width: 7rem }
}
@page { size: A4 landscape; margin: 8mm }
@media print {
  :root { --ink: #000; --soft: #444; --back: #fff; --stripe: #f3f3f3 }
  body { max-width: none; margin: 0; padding: 0; font-size: 9pt }
  .wide { overflow: visible; width: auto; border-right: 0 }
  table { font-size: 6.5pt; max-width: 100% } tr { break-inside: avoid }
  th, td { padding: 1.5pt 2.5pt; white-space: normal } thead th::after { content: "" }
  th:first-child, td:first-child { position: static }
}
"""

# Of a page with several tables.
_PARTS = "h2 { font-size: 1.35rem; border-top: 1px solid var(--line); padding-top: 1rem } h3 { font-size: 1.1rem }\n"

# A click on a head sorts by its column, numbers as numbers.
_SCRIPT = """
for (const head of document.querySelectorAll('thead th')) head.onclick = () => {
  const table = head.closest('table'), body = table.tBodies[0], column = head.cellIndex;
  const down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
  const value = row => { const text = row.cells[column].textContent.replace(/[,+%<]/g, '').trim();
    const number = parseFloat(text); return isNaN(number) ? text : number; };
  const rows = [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    return (typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y))); });
  if (down === '1') rows.reverse();
  body.append(...rows);
};
"""


def as_page(*tables: Table) -> str:
    """The table, or the tables of the same runs, as an HTML page.

    Each has a figure of the intervals, then parts that are sorted by a click on a head.
    """
    table, several = tables[0], len(tables) > 1
    level = 2 + several
    body = [f"<h1>{html.escape(table.preset.title)}</h1>"]
    body += [f"<p>{_inline(sentence)}</p>" for sentence in (shared_facts(tables) if several else facts(table))]
    if several:
        links = (f'<a href="#{one.task.name}">{html.escape(part_title(one))}</a>' for one in tables)
        body.append(f"<p>{' · '.join(links)}</p>")
    for one in tables:
        if several:
            body.append(f'<h2 id="{html.escape(one.task.name)}">{html.escape(part_title(one))}</h2>')
            body += [f"<p>{_inline(sentence)}</p>" for sentence in own_facts(one)]
        body += [_heading(f"{metric_name(one.metric)}, 95 % intervals", level), interval_picture(one)]
        if one.robustness is not None:
            body += [_heading(f"{metric_name(one.metric)} with missing modalities", level)]
            body += [robustness_picture(one.robustness)]
        for part in sections(one):
            body += _section(*part, level=level)
    body += _section("Cost", COST_NOTE, cost_cells(table))
    first, second, *commands = provenance(table)
    body += ["<h2>Reproduce</h2>", f"<p>{_inline(first)}</p>", f"<p>{_inline(second)}</p>", "<ul>"]
    body += [f"<li>{_inline(command.removeprefix('- '))}</li>" for command in commands]
    body.append("</ul>")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(table.preset.title)}</title>",
            f"<style>{_STYLE}{_PARTS if several else ''}</style></head><body>",
            *body,
            f"<script>{_SCRIPT}</script>",
            "</body></html>",
            "",
        ]
    )


def _heading(text: str, level: int) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def _section(heading: str, note: str, cells: Cells, level: int = 2) -> list[str]:
    return [_heading(heading, level), _table(cells), *([f'<p class="note">{_inline(note)}</p>'] if note else [])]


def interval_picture(table: Table) -> str:
    """An SVG with a line per row (except the majority class): mean, interval, single seeds, published numbers."""
    rows = []
    # The majority class is a vertical mark: as a row it would compress the scale of all others.
    above = [line for line in table.lines if line.row.model != "majority"]
    for line in above or table.lines:
        score = line.test[table.metric]
        seeds = [float(value) for value in line.group.values(table.metric)]
        rows.append((line.row.name, score, seeds, [paper.score for paper, _ in line.published]))
    known = [value for _, score, seeds, others in rows for value in (*(score.interval or ()), *seeds, *others)]
    numbers = [value for value in [*known, table.reachable] if value is not None]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or 0.01
    low, high = low - margin, high + margin
    label = 12 + 7.5 * max(len(name) for name, *_ in rows)
    width, plot, top, step = label + 640, 560.0, 14.0, 30.0
    bottom = top + step * len(rows)

    def at(value: float) -> str:
        return f"{label + plot * (value - low) / (high - low):.1f}"

    parts = [
        f'<svg role="img" viewBox="0 0 {width:.0f} {bottom + 44:.0f}" width="{width:.0f}" '
        f'style="max-width:100%"><title>{html.escape(metric_name(table.metric))} with intervals</title>'
    ]
    for tick in ticks(low, high):
        parts.append(
            f'<line x1="{at(tick)}" x2="{at(tick)}" y1="{top}" y2="{bottom}" stroke="var(--line)"/>'
            f'<text class="soft" x="{at(tick)}" y="{bottom + 18}" text-anchor="middle">'
            f"{number(table.metric, tick)}</text>"
        )
    for value, name in ((table.floor, "majority"), (table.reachable, EXACT_LEVEL)):
        if value is not None and low <= value <= high:
            parts.append(
                f'<line x1="{at(value)}" x2="{at(value)}" y1="{top}" y2="{bottom}" stroke="var(--ink)" '
                f'stroke-dasharray="4 3"/><text class="soft" x="{at(value)}" y="{bottom + 36}" text-anchor="middle">'
                f"{name}</text>"
            )
    for place, (name, score, seeds, others) in enumerate(rows):
        y = top + step * (place + 0.5)
        parts.append(f'<text x="0" y="{y + 4}">{html.escape(name)}</text>')
        if score.interval is not None:
            parts.append(
                f'<line x1="{at(score.interval[0])}" x2="{at(score.interval[1])}" y1="{y}" y2="{y}" '
                'stroke="var(--blue)" stroke-width="3" stroke-linecap="round"/>'
            )
        parts += [f'<circle cx="{at(value)}" cy="{y + 8}" r="2.5" fill="var(--grey)"/>' for value in seeds]
        parts.append(f'<circle cx="{at(score.mean)}" cy="{y}" r="5.5" fill="var(--blue)"/>')
        parts += [
            f'<path d="M {at(value)} {y} m -5 -5 l 10 10 m 0 -10 l -10 10" stroke="var(--ink)" stroke-width="2"/>'
            for value in others
        ]
    parts.append("</svg>")
    legend = "Dot: mean over the seeds; line: interval; small dots: single seeds"
    legend += "; cross: published." if any(others for *_, others in rows) else "."
    return "\n".join(parts) + f'\n<p class="note">{legend}</p>'


def _table(cells: Cells) -> str:
    head, *rows = cells
    texts = [_is_text([row[column] for row in rows]) for column in range(len(head))]

    def line(row: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if text else "" for text in texts]
        return "<tr>" + "".join(f"<{tag}{kind}>{_inline(cell)}</{tag}>" for cell, kind in zip(row, kinds)) + "</tr>"

    return "\n".join(
        ['<div class="wide"><table><thead>', line(head, "th"), "</thead><tbody>"]
        + [line(row, "td") for row in rows]
        + ["</tbody></table></div>"]
    )


def _is_text(column: Sequence[str]) -> bool:
    return max((len(cell) for cell in column), default=0) > 24


def _inline(text: str) -> str:
    """Escaped text, with code, bold and emphasis of Markdown."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"(?<!\w)\*([^*]+)\*(?!\w)", r"<em>\1</em>", escaped)
