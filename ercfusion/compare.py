"""``python -m ercfusion.compare``: two or more runs side by side, with tests of their differences."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import RunError
from ercfusion.cli import run_command
from ercfusion.grammar import Command, Flag, Key, Positional, Typed
from ercfusion.tables.preset import Row, TablePreset

COMMAND = Command(
    "compare",
    "Compare runs: scores with intervals, paired tests, F1 by class, and the settings in which they differ",
    (
        ("outputs/train/concat-demo/A outputs/train/cogmen-demo/B", "two runs"),
        ("outputs/train/concat-meld outputs/train/cogmen-meld", "all runs below the folders"),
        ("RUN experiments/meld/records/cogmen.json", "a run with recorded ones"),
    ),
    positional=(Positional("RUN", most=None),),
    keys=(
        Key("metric", "compare by this score (default: the one that chose the checkpoints)"),
        Key("task", "of runs with several tasks, the one to compare (default: the one that chose the checkpoints)"),
    ),
    flags=(Flag("markdown", "print Markdown tables"),),
    details="""
A RUN is a run folder, a folder with run folders below it, or an archive of records. Runs that differ in nothing but the
seed are taken together. All must have been tested on the same data.
""",
)


def main(argv: list[str]) -> int:
    """The command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    markdown = "markdown" in typed.flags
    print(comparison_text(typed.positional, typed.keys.get("metric"), typed.keys.get("task"), markdown=markdown))
    return 0


def comparison_text(
    paths: Sequence[str], metric: str | None = None, task: str | None = None, *, markdown: bool = False
) -> str:
    """What the command prints.

    Raises:
        RunError: a path holds no finished run, there is only one run, or the runs cannot be compared.
        ConfigError: the task has no such metric.
    """
    from ercfusion.metrics.registry import check_metric
    from ercfusion.records.groups import Group, check_comparable, group_records, read_records
    from ercfusion.records.record import task_record
    from ercfusion.tables.render import class_cells, comparison_cells, markdown_table, monte_carlo_note, score_cells
    from ercfusion.tables.report import aligned
    from ercfusion.tables.table import caution_note, compute_table
    from ercfusion.tables.tuning import tuning_cells, tuning_note

    records = [task_record(record, task) for record in read_records(paths)]
    groups = group_records(records)
    if len(groups) == 1:  # nothing but seeds: then these are what the user wants to see
        groups = [Group(f"seed {record['seed']}", (record,)) for record in groups[0].records]
    if len(groups) < 2:
        raise RunError("one run cannot be compared: name two or more, or a folder that holds several")
    check_comparable(groups)
    metric = metric or groups[0].metric
    check_metric(groups[0].task, metric)
    rows = tuple(
        Row(group.name, group.records[0]["config"]["preset"]["model"], _typed(group.records[0]), group.seeds)
        for group in groups
    )
    preset = TablePreset(Path("comparison"), "Comparison", groups[0].records[0]["protocol"], (), rows, metric)
    table = compute_table(preset, {group.name: group.records for group in groups})
    show = markdown_table if markdown else aligned
    parts = [
        f"{table.record['protocol']}, {len(groups[0].conversations)} test conversations"
        + (" (synthetic corpus)" if table.record["corpus"]["synthetic"] else ""),
        show(_with_runs(score_cells(table, tuning=False), groups)),
        caution_note(table),
        show(tuning_cells(table)),
        tuning_note(table),
        show(class_cells(table)) if class_cells(table) else "",
        show(comparison_cells(table)) if comparison_cells(table) else "",
        "shown: p (Holm) below 0.05 and an interval, over other seeds and conversations, that leaves out 0",
        monte_carlo_note(table.comparisons) if table.comparisons else "",
        *_what_differs(groups, show),
    ]
    if any(len(group.seeds) == 1 for group in groups):
        parts.append("A model with one run says nothing about other seeds: train more with -m seed=0,1,2,3,4.")
    return "\n\n".join(part for part in parts if part)


def _with_runs(cells: list[list[str]], groups: Sequence[Any]) -> list[list[str]]:
    head, *rows = cells
    counted = [[row[0], str(len(group.seeds)), *row[1:]] for row, group in zip(rows, groups, strict=True)]
    return [[head[0], "runs", *head[1:]], *counted]


def _typed(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What was typed for a run; nothing is known of archived ones."""
    return tuple(record.get("command", {}).get("overrides", ()))


def _what_differs(groups: Sequence[Any], show: Any) -> list[str]:
    from ercfusion.records.groups import data_of, environment_of, settings_of

    parts = []
    for title, of in (
        ("settings", lambda record: settings_of(record["config"])),
        ("data", data_of),
        ("environment", environment_of),
    ):
        entries: list[Mapping[str, Any]] = [of(group.records[0]) for group in groups]
        keys = [
            key
            for key in dict.fromkeys(key for entry in entries for key in entry)
            if any(entry.get(key) != entries[0].get(key) for entry in entries)
        ]
        if keys:
            rows = [[title, *(group.name for group in groups)]]
            rows += [[key, *(_cell(entry, key) for entry in entries)] for key in keys]
            parts.append(show(rows))
    return parts


def _cell(entry: Mapping[str, Any], key: str) -> str:
    return str(entry[key])[:40] if key in entry else "-"


if __name__ == "__main__":
    sys.exit(run_command(main))
