"""Parts of pages about metrics."""

from __future__ import annotations

from docs.computed.registry import register


def metrics_table() -> list[str]:
    """All metrics: which tasks have them, direction, unit, whether sums give intervals, and meaning."""
    from ercfusion.batch.labels import get_schema
    from ercfusion.batch.task import TaskSpec
    from ercfusion.metrics.registry import REGISTERED, metric_names, score_source
    from ercfusion.tables.render import markdown_table

    schema = get_schema("demo6")
    kinds = {
        "single label": TaskSpec("t", "single_label", schema),
        "distribution": TaskSpec("t", "distribution", schema),
        "multi-label": TaskSpec("t", "multi_label", schema),
        "regression": TaskSpec("t", "regression", dimensions=("d",), low=0, high=9),
        "regression on [-3, 3]": TaskSpec("t", "regression", dimensions=("d",), low=-3, high=3),
        "regression on [-1, 1]": TaskSpec("t", "regression", dimensions=("d",), low=-1, high=1),
    }
    rows = [["metric", "tasks", "better", "unit", "intervals", "meaning"]]
    for name, metric in REGISTERED.items():
        tasks = {words: task for words, task in kinds.items() if name in metric_names(task)}
        sourced = [words for words, task in tasks.items() if score_source(task, name) is not None]
        words = [each for each in tasks if "regression" not in tasks or not each.startswith("regression on")]
        intervals = "yes" if len(sourced) == len(tasks) else ", ".join(sourced) or "no"
        unit = {"percent": "share", "task": "that of the target", "none": "-1 to 1"}.get(metric.unit, metric.unit)
        better = "higher" if metric.higher_is_better else "lower"
        rows.append([f"`{name}`", ", ".join(words), better, unit, intervals, metric.meaning])
    return markdown_table(rows).replace("---:|", "---|").splitlines()


register("metrics", "docs/runs.md", metrics_table)
