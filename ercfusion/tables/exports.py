"""Computed tables as LaTeX and CSV. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ercfusion.metrics.cautions import MARK
from ercfusion.tables.cells import csv_text, latex_table, metric_name, number, plain, spread
from ercfusion.tables.render import EVIDENCE_MARKS, part_title, published_legend
from ercfusion.tables.robust_render import as_latex as robust_latex
from ercfusion.tables.table import Line, Table, caution_note
from ercfusion.tables.tuning import tuning_cells, tuning_note


def as_latex(*tables: Table) -> str:
    """The scores as LaTeX tables (package booktabs)."""
    several = len(tables) > 1
    parts = [_latex(table, part_title(table) if several else "") for table in tables]
    parts += [
        robust_latex(table.robustness, f"{table.preset.name}{f'-{table.task.name}' if several else ''}-missing")
        for table in tables
        if table.robustness is not None
    ]
    return "\n".join(parts)


def _latex(table: Table, part: str) -> str:
    head, *others = table.metrics
    columns = [metric_name(head), "95 % interval", *map(metric_name, others)]
    published = any(line.published for line in table.lines)
    columns += ["published"] * published
    (_, *choice_columns), *chosen = tuning_cells(table)
    rows = [["model", *columns, *choice_columns]]
    for line, (_, *choice) in zip(table.lines, chosen, strict=True):
        score = line.test[head]
        bounds = "" if score.low is None else "none"
        if score.interval is not None:
            bounds = "[{}, {}]".format(*(number(head, end) for end in score.interval))
            bounds += f" {MARK}" if score.cautions else ""
        cells = [spread(head, score), bounds, *(spread(name, line.test[name]) for name in others)]
        if published:
            numbers = (number(head, paper.score) + EVIDENCE_MARKS[paper.evidence] for paper, _ in line.published)
            cells.append("; ".join(numbers))
        rows.append([line.row.name, *cells, *choice])
    record = table.record
    title = f"{table.preset.title}, {part[0].lower()}{part[1:]}" if part else table.preset.title
    caption = (
        f"{title}: test scores, epochs chosen on dev, mean and sample standard deviation over "
        f"{len(table.lines[0].group.seeds)} seeds; intervals resample seeds and conversations"
        f"{' (synthetic corpus)' if record['corpus']['synthetic'] else ''}."
    )
    notes = (caution_note(table), tuning_note(table).replace("`", ""), published_legend(table))
    caption = " ".join(part for part in [caption, *notes] if part)
    label = f"{table.preset.name}{f'-{table.task.name}' if part else ''}"
    return latex_table(rows, caption, label, texts=2)


def as_csv(*tables: Table) -> str:
    """One line per row and score, in the metrics' own unit (shares from 0 to 1), to six decimals.

    With missing modalities a score's name is ``SCORE@LAW``.

    Several tables have a first column ``task``.
    """
    head = [
        "row",
        "model",
        "metric",
        "mean",
        "std",
        "low",
        "high",
        "seeds",
        *_SEED_COLUMNS,
        "caution",
        *_CHOICE_COLUMNS,
    ]
    several = len(tables) > 1
    rows = [["task", *head] if several else head]
    for table in tables:
        rows += [[table.task.name, *cells] if several else cells for cells in _csv_rows(table)]
    return csv_text(rows)


def _csv_rows(table: Table) -> Iterator[list[Any]]:
    robust = {} if table.robustness is None else {line.name: line.scores for line in table.robustness.lines}
    for line, (_, *choice) in zip(table.lines, tuning_cells(table, brief=False)[1:], strict=True):
        for metric, score in line.test.items():
            published = [paper for paper, _ in line.published] if metric == table.metric else []
            yield (
                [
                    line.row.name,
                    line.row.model,
                    metric,
                    *(plain(value) for value in (score.mean, score.std, score.low, score.high)),
                    len(line.group.seeds),
                    plain(line.dev.mean) if metric == table.metric else "",
                    *_costs(line),
                    "; ".join(score.cautions),
                    *choice,
                    "; ".join(plain(paper.score) for paper in published),
                    "; ".join(paper.evidence for paper in published),
                    "; ".join(paper.selection for paper in published),
                ]
            )
        for condition, score in robust.get(line.row.name, {}).items():
            values = (plain(value) for value in (score.mean, score.std, score.low, score.high))
            name = f"{table.metric}@{condition}"
            empty = [""] * (len(_SEED_COLUMNS) + 1 + len(_CHOICE_COLUMNS))
            yield [line.row.name, line.row.model, name, *values, len(line.group.seeds), *empty]


_SEED_COLUMNS = ("dev mean", "parameters", "seconds per epoch", "peak MiB")
_CHOICE_COLUMNS = ("settings", "schedule", "published", "published seen in", "published chosen on")


def _costs(line: Line) -> list[str]:
    return [str(line.parameters), f"{line.seconds_per_epoch:.3f}", f"{line.peak_mib:.1f}"]
