"""A table of models, computed from run records only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import label_f1
from ercfusion.metrics.comparison import Comparison, compare_all, compare_family
from ercfusion.metrics.registry import check_metric, get_metric, metric_names, metrics_of, score_source
from ercfusion.records.groups import Group, check_comparable
from ercfusion.records.record import require_test_scores, task_record
from ercfusion.tables.preset import Published, Row, TablePreset
from ercfusion.tables.robustness import RobustTable, compute_robustness
from ercfusion.tables.scores import Score, cautions_text, deviation, score_of


@dataclass(frozen=True)
class Optimism:
    """Means over the seeds for three choices of the epoch; a diagnostic.

    Args:
        dev_selected: Best on dev: the result.
        last_epoch: The last.
        test_selected: Best on test: not to be reported.
    """

    dev_selected: float
    last_epoch: float
    test_selected: float

    @property
    def gap(self) -> float:
        """Gain from choosing on test."""
        return self.test_selected - self.dev_selected


@dataclass(frozen=True)
class Line:
    """A row of the table with its scores and costs.

    Args:
        test: Score by metric.
        dev: Of the headline metric.
        class_f1: Mean F1 in percent by class; empty for regression.
        support: True test utterances by class.
        optimism: None if a run kept no epochs.
        parameters: Number of trainable parameters.
        seconds_per_epoch, seconds, peak_mib: Means over the runs; the largest memory.
        published: Each with our mean minus the published score.
    """

    row: Row
    group: Group
    test: Mapping[str, Score]
    dev: Score
    class_f1: Mapping[str, float]
    support: Mapping[str, int]
    optimism: Optimism | None
    parameters: int
    seconds_per_epoch: float
    seconds: float
    peak_mib: float
    published: tuple[tuple[Published, float], ...]


@dataclass(frozen=True)
class Table:
    """A computed table.

    Args:
        metrics: All scores shown, the headline ``metric`` first.
        lines, missing: The rows with and without records.
        comparisons: Between pairs of rows (except the majority class), by the headline.
        by_label: The same pairs by the F1 of each label, if the preset asks for it.
        reachable: Headline score of the exact posterior (:data:`~ercfusion.data.corpus.EXACT_NOTE`), if known.
        floor: Headline score of the majority class.
        robustness: The same rows and pairs with missing modalities, if the preset asks for it.
    """

    preset: TablePreset
    task: TaskSpec
    metric: str
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    missing: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    reachable: float | None
    floor: float | None
    by_label: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)
    robustness: RobustTable | None = None

    def __repr__(self) -> str:
        runs = sum(len(line.group.records) for line in self.lines)
        rows = f"{len(self.lines)} rows with {runs} runs" + (f", {len(self.missing)} without" if self.missing else "")
        return f"Table({self.preset.name}: {rows}, {len(self.comparisons)} comparisons, by {self.metric})"

    @property
    def record(self) -> Mapping[str, Any]:
        """The first record, for facts shared by all."""
        return self.lines[0].group.records[0]

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """All records."""
        return [record for line in self.lines for record in line.group.records]


def compute_tables(preset: TablePreset, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """The table of a preset, or those of its ``views``; arguments and errors as :func:`compute_table`.

    A further score (``also``) is in the tables of the tasks that have it.
    """
    if not preset.views:
        return [compute_table(preset, records)]
    first = next((record for runs in records.values() for record in runs), None)
    if first is None:
        raise ValueError(f"no row of {preset.path} has a record yet. Train at least one.")
    tasks = {name: TaskSpec.from_dict(dict(task_record(first, name)["task"])) for name in preset.views}
    known = {name: set(metric_names(task)) for name, task in tasks.items()}
    for name in preset.also:
        if not any(name in names for names in known.values()):
            check_metric(next(iter(tasks.values())), name)
    return [
        compute_table(
            replace(
                preset, task=name, metric=metric, views={}, also=tuple(one for one in preset.also if one in known[name])
            ),
            records,
        )
        for name, metric in preset.views.items()
    ]


def compute_table(preset: TablePreset, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """The table of a preset, from records by name of row; rows without records are listed as missing.

    Raises:
        ConfigError: the task has no such metric.
        RunError: rows were tested on different or unlabelled conversations.
        ValueError: no row has a record.
    """
    shown_task = {name: tuple(task_record(record, preset.task) for record in runs) for name, runs in records.items()}
    groups = {row.name: Group(row.name, shown_task[row.name]) for row in preset.rows if shown_task.get(row.name)}
    if not groups:
        raise ValueError(f"no row of {preset.path} has a record yet. Train at least one.")
    require_test_scores(record for group in groups.values() for record in group.records)
    check_comparable(list(groups.values()), test_scores=True)
    first = next(iter(groups.values()))
    task = first.task
    metric = preset.metric or task.metric
    shown = [metric, *(preset.also or task.rules.table_scores)]
    for name in shown:
        check_metric(task, name)
    known = first.records[0]["metrics"]["test"]
    metrics = tuple(
        dict.fromkeys([*shown, *(metric.name for metric in metrics_of(task) if metric.always and metric.name in known)])
    )
    record = first.records[0]
    # The exact posterior sees the modalities of a run: the best score of the table is that of most modalities.
    widest = max((group.records[0] for group in groups.values()), key=lambda one: len(one["features"]))
    return Table(
        preset=preset,
        task=task,
        metric=metric,
        metrics=metrics,
        lines=tuple(_line(row, groups[row.name], metrics) for row in preset.rows if row.name in groups),
        missing=tuple(row for row in preset.rows if row.name not in groups),
        comparisons=tuple(_comparisons(preset, groups, task, metric)),
        reachable=widest["corpus"].get("reachable", {}).get("test", {}).get(metric),
        floor=record["majority"]["test"].get(metric),
        by_label=_by_label(preset, groups, task) if preset.per_label else {},
        robustness=_robustness(preset, groups, task, metric),
    )


def _line(row: Row, group: Group, metrics: Sequence[str]) -> Line:
    scores = {metric: _score(group, metric) for metric in metrics}
    dev = group.values(metrics[0], "dev")
    tables = [record["splits"]["test"].get("per_class", {}) for record in group.records]
    labels = group.task.output_names if tables[0] else ()
    costs = [record["cost"] for record in group.records]
    return Line(
        row=row,
        group=group,
        test=scores,
        dev=Score(float(dev.mean()), deviation(dev)),
        class_f1={label: float(np.mean([table[label]["f1"] for table in tables])) for label in labels},
        support={label: int(tables[0][label]["support"]) for label in labels},
        optimism=_optimism(group, metrics[0]),
        parameters=int(costs[0]["parameters"]),
        seconds_per_epoch=float(np.mean([cost["seconds_per_epoch"] for cost in costs])),
        seconds=float(np.mean([cost["seconds"] for cost in costs])),
        peak_mib=max(float(cost["peak_memory_mib"]) for cost in costs),
        published=tuple((paper, scores[metrics[0]].mean - paper.score) for paper in row.published),
    )


def _score(group: Group, metric: str) -> Score:
    values = group.values(metric)
    source = score_source(group.task, metric)
    if source is None or (sums := group.sums(source[0])) is None:
        return score_of(values, group.task, metric)
    return score_of(values, group.task, metric, (sums, source[1]))


def _optimism(group: Group, metric: str) -> Optimism | None:
    choices = [record["optimism"] for record in group.records if record.get("optimism", {}).get("metric") == metric]
    if len(choices) < len(group.records):
        return None
    names = ("dev_selected", "last_epoch", "test_selected")
    return Optimism(*(float(np.mean([choice[name] for choice in choices])) for name in names))


def _comparisons(preset: TablePreset, groups: Mapping[str, Group], task: TaskSpec, metric: str) -> list[Comparison]:
    source = score_source(task, metric)
    if source is None:
        return []
    usable, pairs = _pairs(preset, groups, source[0])
    return compare_all(usable, source[1], pairs, bounds=get_metric(metric).bounds)


def _robustness(preset: TablePreset, groups: Mapping[str, Group], task: TaskSpec, metric: str) -> RobustTable | None:
    """The comparison with missing modalities; None for a preset without it, or for a view."""
    records = [record for group in groups.values() for record in group.records]
    if not preset.robustness or not any("robustness" in record for record in records):
        return None
    source = score_source(task, metric)
    pairs = _pairs(preset, groups, source[0])[1] if source else []
    return compute_robustness(list(groups.values()), metric, pairs, preset.laws or None)


def _by_label(preset: TablePreset, groups: Mapping[str, Group], task: TaskSpec) -> dict[str, tuple[Comparison, ...]]:
    """Comparisons by the F1 of each label, empty for a task without labels."""
    key = next((key for key in ("confusion", "counts") if key in task.rules.inputs), None)
    if key is None:
        return {}
    usable, pairs = _pairs(preset, groups, key)
    scored = {label: (usable, label_f1(place, key)) for place, label in enumerate(task.output_names)}
    compared = compare_family(scored, pairs, bounds=get_metric("macro_f1").bounds)
    return {label: tuple(comparisons) for label, comparisons in compared.items()}


def _pairs(
    preset: TablePreset, groups: Mapping[str, Group], key: str
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Sums of the rows with such sums, and the pairs of rows to compare."""
    sums = {name: group.sums(key) for name, group in groups.items()}
    usable = {name: array for name, array in sums.items() if array is not None}
    # Comparing with the majority class would only reduce the power of the other comparisons.
    floors = {row.name for row in preset.rows if row.model == "majority"}
    rivals = [name for name in usable if name not in floors]
    pairs = list(itertools.combinations(rivals if len(rivals) > 1 else usable, 2))
    if preset.against is not None:
        pairs = [(name, preset.against) for name in usable if name != preset.against and preset.against in usable]
    if preset.pairs:
        pairs = [pair for pair in preset.pairs if usable.keys() >= set(pair)]
    return usable, pairs


def caution_note(table: Table) -> str:
    """Cautions for the intervals and tests of the headline score: each sentence once, with its rows."""
    return cautions_text({line.row.name: line.test[table.metric].cautions for line in table.lines})
