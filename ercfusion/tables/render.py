"""Parts of a computed table as cells and sentences, and as Markdown. The same records give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ercfusion._core.errors import ConfigError
from ercfusion.config.hints import command
from ercfusion.data.corpus import EXACT_LEVEL, EXACT_NOTE, EXACT_NUMBERS_NOTE
from ercfusion.metrics.comparison import Comparison
from ercfusion.models import architecture_limits
from ercfusion.models.base import BATCH_NOTE
from ercfusion.records.groups import features_of_groups
from ercfusion.tables.cells import (
    Cells,
    in_percent,
    interval,
    markdown_table,
    metric_name,
    monte_carlo_note,
    number,
    pair_cells,
    probability,
    spread,
)
from ercfusion.tables.preset import Published
from ercfusion.tables.robust_render import parts_of
from ercfusion.tables.table import Table, caution_note
from ercfusion.tables.tuning import tuning_cells, tuning_note

# Why a published number is not comparable, as marks in the tables.
MARKS = {"features": "f", "split": "p", "selection": "s", "metric": "m", "model": "a"}
MARK_WORDS = {
    "features": "other input features",
    "split": "another split or protocol",
    "selection": "checkpoint chosen on another split (test, or unknown)",
    "metric": "another definition of the score",
    "model": "another variant of the model",
}
# How a published number was verified, as marks after it.
EVIDENCE_MARKS = {"paper read": "", "secondary source": "†", "not found": "?"}
EVIDENCE_WORDS = {
    "secondary source": "quoted in a secondary source; the paper was not read",
    "not found": "not found in any available source",
}


def published_text(metric: str, published: Published, difference: float) -> str:
    """A published score, our difference from it, and the marks of what is not comparable."""
    marks = "".join(MARKS[name] for name in published.differs)
    score = number(metric, published.score) + EVIDENCE_MARKS[published.evidence]
    text = f"{score} ({number(metric, difference, sign=True)})"
    return f"{text} [{marks}]" if marks else text


# Parts of a table as cells, for every format


def score_cells(table: Table, tuning: bool = True) -> Cells:
    """One line per row: the headline with its interval, further scores, published scores, tuning."""
    head, *others = table.metrics
    rows = [
        ["model", f"test {metric_name(head)}", "95 % interval", "dev", *map(metric_name, others)],
    ]
    with_share = table.reachable is not None and table.floor is not None
    if with_share:
        rows[0].insert(3, "reached")
    features = features_of_groups([line.group for line in table.lines])
    if features is not None:
        rows[0].append("features")
    if any(line.published for line in table.lines):
        rows[0].append("published (our difference)")
    for place, line in enumerate(table.lines):
        score = line.test[head]
        row = [line.row.name, spread(head, score), interval(head, score.low, score.high, bool(score.cautions))]
        if table.reachable is not None and table.floor is not None:
            share = 100 * (score.mean - table.floor) / (table.reachable - table.floor)
            row.append(f"{round(share, 1) + 0.0:.1f} %")  # + 0.0: no minus before a zero
        row += [number(head, line.dev.mean), *(spread(name, line.test[name]) for name in others)]
        if features is not None:
            row.append(features[place])
        if len(rows[0]) > len(row):
            row.append("; ".join(published_text(head, paper, gap) for paper, gap in line.published))
        rows.append(row)
    if not tuning:
        return rows
    return [[*row, *choice] for row, (_, *choice) in zip(rows, tuning_cells(table), strict=True)]


def class_cells(table: Table) -> Cells:
    """Mean F1 of every class."""
    first = table.lines[0]
    if not first.class_f1:
        return []
    rows = [["model", *(f"{label} ({first.support[label]})" for label in first.class_f1)]]
    rows += [[line.row.name, *(f"{100 * f1:.1f}" for f1 in line.class_f1.values())] for line in table.lines]
    return rows


def comparison_cells(table: Table) -> Cells:
    """Differences between pairs of rows."""
    seeds = {line.row.name: len(line.group.seeds) for line in table.lines}
    doubtful = {line.row.name for line in table.lines if line.test[table.metric].cautions}
    return pair_cells(table.metric, table.comparisons, seeds, doubtful)


def label_cells(table: Table) -> Cells:
    """Differences of the F1 of every label (in percent) between pairs of rows; bold if shown."""
    if not any(table.by_label.values()):
        return []
    rows = [["pair", *(f"{label} ({table.lines[0].support[label]})" for label in table.by_label)]]
    for place, pair in enumerate(table.comparisons or next(iter(table.by_label.values()))):
        cells = [comparisons[place] for comparisons in table.by_label.values()]
        rows.append([" minus ".join(pair.names), *map(_label_cell, cells)])
    return rows


def _label_cell(pair: Comparison) -> str:
    text = _points(pair.difference)
    if not math.isnan(pair.low + pair.high):
        text += f" ({100 * pair.low:.1f} to {100 * pair.high:.1f})"
    text += f", p {probability(pair.p_holm)}"
    return f"**{text}**" if pair.shown and pair.certain else text


def _points(difference: float) -> str:
    """A difference in percent with one decimal, as the F1 by class."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero


def label_note(table: Table) -> str:
    """Meaning of the cells of :func:`label_cells`, and the differences shown."""
    shown = [
        f"{label} {_points(pair.difference)} ({' minus '.join(pair.names)})"
        for label, comparisons in table.by_label.items()
        for pair in comparisons
        if pair.shown and pair.certain
    ]
    count = sum(map(len, table.by_label.values()))
    return (
        "Difference of the F1 in percent, 95 % interval, and p after Holm's correction over the "
        f"{count} differences of this part. Shown (bold): {'; '.join(shown) if shown else 'none'}."
    )


def optimism_cells(table: Table) -> Cells:
    """Scores with the epoch chosen on dev, on test, and not at all."""
    if not any(line.optimism for line in table.lines):
        return []
    rows = [["model", "dev-selected (the result)", "last epoch", "test-selected (diagnostic)", "optimism"]]
    for line in table.lines:
        choice = line.optimism
        if choice is None:
            continue
        means = (choice.dev_selected, choice.last_epoch, choice.test_selected)
        shown = [number(table.metric, value) for value in means]
        rows.append([line.row.name, *shown, number(table.metric, choice.gap, sign=True)])
    return rows


def cost_cells(table: Table) -> Cells:
    """Parameters, time and memory."""
    rows = [["model", "parameters", "seconds per epoch", "seconds per run", "peak memory (MiB)", "device", "threads"]]
    for line in table.lines:
        threads = {record["cost"].get("threads", "") for record in line.group.records}
        rows.append(
            [
                line.row.name,
                f"{line.parameters:,}",
                f"{line.seconds_per_epoch:.2f}",
                f"{line.seconds:.0f}",
                f"{line.peak_mib:.0f}",
                _listed(record["device"] for record in line.group.records),
                _listed(str(count) for count in threads),
            ]
        )
    return rows


def published_cells(table: Table) -> Cells:
    """How the published numbers were verified, and why they are not comparable."""
    rows = [["model", metric_name(table.metric), "seen in", "chosen on", "differs in", "source"]]
    for line in table.lines:
        for paper, _ in line.published:
            source = f"{paper.source}. {paper.note}" if paper.note else paper.source
            differs = ", ".join(f"{name} [{MARKS[name]}]" for name in paper.differs) or "nothing known"
            score = number(table.metric, paper.score) + EVIDENCE_MARKS[paper.evidence]
            rows.append([line.row.name, score, paper.evidence, paper.selection, differs, source])
    return rows if len(rows) > 1 else []


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted({value for value in values if value}))


# Sentences of every format


def facts(table: Table) -> list[str]:
    """Protocol, features, seeds, reference scores and notes."""
    about, *scores = own_facts(table)
    features, *runs = _run_facts([table])
    return [f"{about} {features}", runs[0], *scores, *runs[1:]]


def shared_facts(tables: Sequence[Table]) -> list[str]:
    """Facts about several tables of the same runs."""
    names = ", ".join(f"`{table.task.name}`" for table in tables)
    return [
        f"The same runs are scored against the targets {names}, one part each. A run that learned another target is "
        "scored by its probabilities, with thresholds chosen on dev.",
        *_run_facts(tables),
    ]


def own_facts(table: Table) -> list[str]:
    """Protocol, reference scores and conventions."""
    record, split = table.record, table.record["splits"]["test"]
    synthetic = " **The corpus is synthetic (generated).**" if record["corpus"]["synthetic"] else ""
    sentences = [
        f"Protocol `{record['protocol']}`; {split['conversations']:,} test conversations with {split['utterances']:,} "
        f"labelled utterances.{synthetic}"
    ]
    if table.floor is not None:
        sentences.append(f"Majority class: {number(table.metric, table.floor)} {metric_name(table.metric)}.")
    if table.reachable is not None:
        score = f"{number(table.metric, table.reachable)} {metric_name(table.metric)}"
        note = EXACT_NUMBERS_NOTE if table.task.schema is None else EXACT_NOTE
        sentences.append(
            f"{EXACT_LEVEL.capitalize()}: {score}. This is {note}. *Reached* is a model's position between the "
            "majority class (0 %) and this score (100 %)."
        )
    sentences += [
        f"{words[0].upper()}{words[1:]}: {counted}." for words, counted in record.get("conventions", {}).items()
    ]
    return sentences


def _run_facts(tables: Sequence[Table]) -> list[str]:
    """Features, choice of the epoch, seeds, missing runs and notes."""
    table = tables[0]
    seeds = table.lines[0].group.seeds
    used = {pack["modality"]: pack for line in table.lines for pack in line.group.records[0]["features"]}
    percent = {in_percent(one.metric) for one in tables}
    units = {
        (True,): "Scores are in percent.",
        (False,): "Errors and correlations are in their own units.",
        (False, True): "Scores are in percent, errors and divergences in their own units.",
    }
    sentences = [
        f"Features: {', '.join(map(_feature, used.values()))}. Dev split: {table.record['corpus']['dev_source']}.",
        "Every run chooses its epoch on dev and reads test once. "
        + (
            f"Mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}; intervals resample seeds "
            "and whole conversations. "
            if len(seeds) > 1
            else f"Seed {seeds[0]} only; intervals resample whole conversations. "
        )
        + units[tuple(sorted(percent))],
    ]
    for line in table.lines:
        if len(line.group.seeds) < len(line.row.seeds):
            sentences.append(f"Incomplete: {line.row.name} has {len(line.group.seeds)} of {len(line.row.seeds)} seeds.")
    if table.missing:
        sentences.append("Not run yet: " + ", ".join(row.name for row in table.missing) + ".")
    notes = [f"{line.row.name}: {line.row.note}" for line in table.lines if line.row.note]
    notes += [f"{line.row.name}: {note}." for line in table.lines if (note := batch_note(line.group.records[0]))]
    return [*sentences, *([table.preset.notes] if table.preset.notes else []), *notes]


def batch_note(record: Mapping[str, Any]) -> str:
    """Why the scores of a run depend on the composition of batches; empty if they do not."""
    options = {key: value for key, value in record["config"]["model"].items() if key != "name"}
    try:
        why = architecture_limits(record["config"]["model"]["name"], options).batch_dependence
    except ConfigError:  # an architecture from outside the library: its run has recorded it
        why = record.get("batch_dependence", "")
    return BATCH_NOTE.format(why) if why else ""


def _feature(pack: Mapping[str, Any]) -> str:
    source = pack["source"]
    tool = source.get("settings", {}).get("encoder") or source.get("tool") or ""
    return f"{pack['modality']} {pack['width']}-d" + (f" ({tool})" if tool else "")


REACHED_NOTE = f"reached: position of the test score between majority (0 %) and the {EXACT_LEVEL} (100 %)"
COMPARISON_NOTE = (
    "p: paired randomisation test exchanging the two models' confusion matrices of conversations at random. It applies "
    "to these trained models on other conversations; the interval resamples seeds too. *Shown*: p is below 0.05 after "
    "Holm's correction over this table, and 0 is outside the interval."
)


OPTIMISM_NOTE = (
    "A diagnostic, not a result: means of the same runs at their last epoch and at the epoch best on test. The last "
    "column is the gain from choosing on test."
)
COST_NOTE = (
    "Means over the runs (memory: the largest). Several runs shared a machine, so only large differences mean anything."
)


def provenance(table: Table) -> list[str]:
    """Number of runs, versions, machines, revisions, and the commands to repeat them."""
    records = table.records
    commits = _listed((record["environment"].get("revision") or {}).get("commit", "")[:12] for record in records)
    versions = _listed(f"torch {record['environment']['versions']['torch']}" for record in records)
    machines = _listed(
        f"{record['environment']['cpus']} cores, {record['environment']['system']}, {record['device']}"
        for record in records
    )
    total = sum(float(record["cost"]["seconds"]) for record in records)
    lines = [
        f"{len(records)} runs, {total / 60:.0f} minutes of training in all; {versions}; {machines}; ercfusion at "
        f"{commits or 'an unknown revision'}; finished {_dates(records)}.",
        f"Computed by `{command('table', 'reproduce', table.preset.typed)}` from run records. One run of each row:",
    ]
    for line in table.lines:
        record = line.group.records[0]
        typed = table.preset.arguments(line.row, record["seed"])
        # Results depend on the number of threads, because it changes the order of additions.
        typed.append(f"training.threads={record['cost'].get('threads', 1)}")
        lines.append(f"- {line.row.name}: `{command('row of a table', 'train', *typed)}`")
    return lines


def _dates(records: Sequence[Mapping[str, Any]]) -> str:
    days = sorted({record["finished"][:10] for record in records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


# Formats


def sections(table: Table) -> list[tuple[str, str, Cells]]:
    """Heading, note and cells of every part of the table about scores."""
    notes = (caution_note(table), tuning_note(table), published_legend(table))
    parts = [
        ("Scores", " ".join(note for note in notes if note), score_cells(table)),
        ("F1 by class", "In percent, mean over the seeds; true test utterances in parentheses.", class_cells(table)),
        ("Differences", f"{COMPARISON_NOTE} {monte_carlo_note(table.comparisons)}", comparison_cells(table)),
        ("Differences by label", label_note(table), label_cells(table)),
        *(parts_of(table.robustness) if table.robustness else ()),
        ("Optimism", OPTIMISM_NOTE, optimism_cells(table)),
        ("Published numbers", "", published_cells(table)),
    ]
    return [part for part in parts if part[2]]


def part_title(table: Table) -> str:
    """Heading of one of several tables of the same runs."""
    return f"Scored as {table.task.name} ({table.task.kind.replace('_', ' ')})"


def published_legend(table: Table) -> str:
    """Legend of the marks of published numbers; empty if there are none."""
    published = [paper for line in table.lines for paper, _ in line.published]
    states = {paper.evidence for paper in published}
    marks = [f"{EVIDENCE_MARKS[state]}: {words}" for state, words in EVIDENCE_WORDS.items() if state in states]
    marks += [
        f"[{MARKS[name]}]: {MARK_WORDS[name]}" for name in MARKS if any(name in paper.differs for paper in published)
    ]
    return f"Marks of published numbers: {'; '.join(marks)}." if marks else ""


def as_markdown(*tables: Table) -> str:
    """The table, or the tables of the same runs, as a Markdown page."""
    table, several = tables[0], len(tables) > 1
    lines = [f"# {table.preset.title}", "", "<!-- Generated from run records: do not edit. -->", ""]
    for sentence in shared_facts(tables) if several else facts(table):
        lines += [sentence, ""]
    for one in tables:
        if several:
            lines += [f"## {part_title(one)}", ""]
            for sentence in own_facts(one):
                lines += [sentence, ""]
        for part in sections(one):
            lines += _section(*part, level=2 + several)
    lines += _section("Cost", COST_NOTE, cost_cells(table))
    lines += ["## Reproduce", ""]
    first, *rest = provenance(table)
    return "\n".join([*lines, first, "", rest[0], "", *rest[1:]]) + "\n"


def _section(heading: str, note: str, cells: Cells, level: int = 2) -> list[str]:
    return [f"{'#' * level} {heading}", "", markdown_table(cells), "", *([note, ""] if note else [])]
