"""Parts of pages about metrics."""

from __future__ import annotations

from docs.computed.registry import register


def metrics_table() -> list[str]:
    """All metrics: tasks, direction, whether tables have intervals, meaning."""
    from ercfusion.batch.labels import get_schema
    from ercfusion.batch.task import TaskSpec
    from ercfusion.metrics.registry import REGISTERED, metric_names, score_source
    from ercfusion.tables.cells import markdown_table

    schema = get_schema("demo6")
    kinds = {
        "S": TaskSpec("t", "single_label", schema),
        "D": TaskSpec("t", "distribution", schema),
        "M": TaskSpec("t", "multi_label", schema),
        "I": TaskSpec("t", "intensity", schema, low=1, high=3),
        "R": TaskSpec("t", "regression", dimensions=("d",), low=0, high=9),
        "R3": TaskSpec("t", "regression", dimensions=("d",), low=-3, high=3),
        "R1": TaskSpec("t", "regression", dimensions=("d",), low=-1, high=1),
    }
    rows = [["metric", "tasks", "meaning"]]
    for name, metric in REGISTERED.items():
        tasks = {letters: task for letters, task in kinds.items() if name in metric_names(task)}
        sourced = {letters for letters, task in tasks.items() if score_source(task, name) is not None}
        shown = [letters for letters in tasks if "R" not in tasks or letters not in ("R3", "R1")]
        cell = "/".join(letters + "†" * (letters in sourced) for letters in shown)
        rows.append([f"`{name}`" + " ↓" * (not metric.higher_is_better), cell, metric.meaning])
    return markdown_table(rows).replace("---:|", "---|").splitlines()


register("metrics", "docs/runs.md", metrics_table)
