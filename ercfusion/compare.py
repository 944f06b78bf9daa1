"""``python -m ercfusion.compare``: compare two or more runs, with tests of their differences."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError
from ercfusion.cli import run_command
from ercfusion.grammar import Command, Flag, Key, Positional, Typed
from ercfusion.tables.preset import Row, TablePreset

if TYPE_CHECKING:
    from ercfusion.tables.table import Table

COMMAND = Command(
    "compare",
    "Compare runs: scores with intervals, paired tests, F1 by class, different settings",
    (
        ("outputs/train/concat-demo/A outputs/train/cogmen-demo/B", "two runs"),
        ("outputs/train/concat-meld outputs/train/cogmen-meld", "all runs in two folders"),
        ("RUN experiments/meld/records/cogmen.json", "a run with recorded runs"),
    ),
    positional=(Positional("RUN", most=None),),
    keys=(
        Key("metric", "score to compare (default: the one that selected the checkpoints)"),
        Key("task", "task or view to compare, for runs with several (default: the first)"),
    ),
    flags=(Flag("markdown", "print Markdown tables"),),
    details="""
A RUN is a run folder, a folder with run folders, or an archive of records. Runs that differ only in the seed are one
group. All runs must have the same test data.
""",
)


_ONE_SEED = "one seed: a single run says nothing about other seeds. Train more with -m seed=0,1,2,3,4."
_SHOWN = "shown: p (Holm) below 0.05 and an interval (over seeds and conversations) without 0"


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    markdown = "markdown" in typed.flags
    print(comparison_text(typed.positional, typed.keys.get("metric"), typed.keys.get("task"), markdown=markdown))
    return 0


def comparison_text(
    paths: Sequence[str], metric: str | None = None, task: str | None = None, *, markdown: bool = False
) -> str:
    """The output of the command.

    Raises:
        RunError: A path without a finished run, fewer than two runs, or runs on different data.
        ConfigError: The task has no such metric.
    """
    from ercfusion.metrics.registry import check_metric
    from ercfusion.records.groups import Group, check_comparable, group_records, read_records
    from ercfusion.records.record import task_record
    from ercfusion.tables.cells import markdown_table
    from ercfusion.tables.render import REACHED_NOTE, class_cells, score_cells
    from ercfusion.tables.report import aligned
    from ercfusion.tables.table import caution_note, compute_table
    from ercfusion.tables.tuning import tuning_cells, tuning_note

    records = [task_record(record, task) for record in read_records(paths)]
    groups = group_records(records)
    if len(groups) == 1:  # only seeds differ: compare the seeds
        groups = [Group(f"seed {record['seed']}", (record,)) for record in groups[0].records]
    if len(groups) < 2:
        raise RunError("one run cannot be compared. Give two or more, or a folder with several.")
    check_comparable(groups, test_scores=True)
    metric = metric or groups[0].metric
    check_metric(groups[0].task, metric)
    rows = tuple(
        Row(group.name, group.records[0]["config"]["preset"]["model"], _typed(group.records[0]), group.seeds)
        for group in groups
    )
    preset = TablePreset(Path("comparison"), "Comparison", groups[0].records[0]["protocol"], (), rows, metric)
    table = compute_table(preset, {group.name: group.records for group in groups})
    show = markdown_table if markdown else aligned
    scores = score_cells(table, tuning=False)
    parts = [
        f"{table.record['protocol']}, {len(groups[0].conversations)} test conversations"
        + (" (synthetic corpus)" if table.record["corpus"]["synthetic"] else ""),
        show(_with_runs(scores, groups)),
        REACHED_NOTE if "reached" in scores[0] else "",
        caution_note(table),
        show(tuning_cells(table)),
        tuning_note(table),
        show(class_cells(table)) if class_cells(table) else "",
        *_differences(table, groups, show),
        *_what_differs(groups, show),
    ]
    return "\n\n".join(part for part in parts if part)


def _differences(table: Table, groups: Sequence[Any], show: Any) -> list[str]:
    """The paired tests, and below them the meaning of their columns."""
    from ercfusion.tables.cells import monte_carlo_note
    from ercfusion.tables.render import comparison_cells

    note = _ONE_SEED if any(len(group.seeds) == 1 for group in groups) else ""
    cells = comparison_cells(table)
    return [show(cells), note, _SHOWN, monte_carlo_note(table.comparisons)] if cells else [note]


def _with_runs(cells: list[list[str]], groups: Sequence[Any]) -> list[list[str]]:
    head, *rows = cells
    counted = [[row[0], str(len(group.seeds)), *row[1:]] for row, group in zip(rows, groups, strict=True)]
    return [[head[0], "runs", *head[1:]], *counted]


def _typed(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of a run; archives do not contain them."""
    return tuple(record.get("command", {}).get("overrides", ()))


def _what_differs(groups: Sequence[Any], show: Any) -> list[str]:
    from ercfusion.records.groups import data_of, environment_of, settings_of

    parts = []
    for title, of in (
        ("settings", lambda record: settings_of(record["config"])),
        ("data", data_of),
        ("environment", environment_of),
    ):
        values: list[Mapping[str, Any]] = [of(group.records[0]) for group in groups]
        keys = [
            key
            for key in dict.fromkeys(key for one in values for key in one)
            if any(one.get(key) != values[0].get(key) for one in values)
        ]
        if keys:
            rows = [[title, *(group.name for group in groups)]]
            rows += [[key, *(_cell(one, key) for one in values)] for key in keys]
            parts.append(show(rows))
    return parts


def _cell(values: Mapping[str, Any], key: str) -> str:
    return str(values[key])[:40] if key in values else "-"


if __name__ == "__main__":
    sys.exit(run_command(main))
