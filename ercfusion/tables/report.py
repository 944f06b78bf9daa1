"""Output after a run: a table of scores, a summary, a model card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ercfusion.batch.kinds import task_kind
from ercfusion.data.corpus import EXACT_LEVEL, CorpusCard
from ercfusion.metrics.cautions import MARK
from ercfusion.metrics.registry import get_metric
from ercfusion.metrics.statistics import seed_summary
from ercfusion.models.base import BATCH_NOTE
from ercfusion.records.intervals import known_interval, record_cautions
from ercfusion.records.missing import missing_lines, scored_holes
from ercfusion.records.record import task_record, tasks_of
from ercfusion.tables.robustness import robustness_line


def score_table(record: Mapping[str, Any]) -> str:
    """Dev and test scores; for test the interval and the scores of ``majority`` and, if known, the exact posterior.

    ↓ after a name: lower is better.
    """
    metrics = record["metrics"]
    floor, best = record["majority"]["test"], record["corpus"].get("reachable", {}).get("test", {})
    shown = metrics["test"] or metrics["dev"]  # a test split without labels has no scores
    names = [name for name in task_kind(record["task"]["kind"]).headline if name in shown]
    chosen = record["selection"]["metric"]
    if chosen not in names and chosen in shown:
        names.insert(0, chosen)
    head = ["", "dev", "test", "95 % interval", "majority (test)"] + ([f"{EXACT_LEVEL} (test)"] if best else [])
    rows = [head]
    for name in names:
        title = name if get_metric(name).higher_is_better else f"{name} ↓"
        row = [title, *(_score(metrics[split].get(name)) for split in ("dev", "test")), _interval(record, name)]
        row.append(f"{floor[name]:.4f}" if name in floor else "")
        if best:
            row.append(f"{best[name]:.4f}" if name in best else "")
        rows.append(row)
    return aligned(rows)


def label_table(record: Mapping[str, Any]) -> str:
    """Test scores of every label of a multi-label task, with its decision threshold; empty for other tasks.

    AP: average precision; ``-`` for a label that no utterance has.
    """
    rows = record["splits"]["test"].get("per_class", {})
    if not task_kind(record["task"]["kind"]).thresholds or not rows:
        return ""
    table = [["label (test)", "precision", "recall", "F1", "AP", "threshold", "support"]]
    for label, row in rows.items():
        cells = [_score(row.get(name)) for name in ("precision", "recall", "f1", "average_precision", "threshold")]
        table.append([label, *cells, f"{row['support']:g}"])
    # A view keeps 0.5 if dev has no labels for it.
    kept = "source" in record and "thresholds" not in record
    return aligned(table) + ("\nthresholds: 0.5, dev has no labels" if kept else "\nthresholds: chosen on dev")


def _interval(record: Mapping[str, Any], name: str) -> str:
    """A recorded interval, marked if there is a caution; ``none`` for a headline score without one."""
    ends = known_interval(record, name)
    if ends is None:
        return "none" if name in record["majority"]["test"] else ""
    return f"{ends[0]:.4f} to {ends[1]:.4f}" + (f" {MARK}" if record_cautions(record, name) else "")


def caution_lines(record: Mapping[str, Any]) -> list[str]:
    """Cautions for the intervals of :func:`score_table`: each sentence once, with its scores."""
    scores: dict[str, list[str]] = {}
    for name in record["majority"]["test"]:
        reasons = record_cautions(record, name)
        if not reasons and name in record["intervals"].get("none", {}):
            reasons = (record["intervals"]["none"][name],)
        for reason in reasons:
            scores.setdefault(reason, []).append(name)
    return [f"{MARK} {', '.join(names)}: {reason}" for reason, names in scores.items()]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def summary(record: Mapping[str, Any]) -> str:
    """The last lines printed by ``train``, without the folder."""
    selection, cost = record["selection"], record["cost"]
    synthetic = " (synthetic corpus)" if record["corpus"]["synthetic"] else ""
    lines = [
        "",
        f"{record['config']['preset']['model']} on {record['protocol']}{synthetic}, seed {record['seed']}: epoch "
        f"{selection['epoch']} of {selection['epochs']}, chosen on dev {selection['metric']}",
        score_table(record),
        *caution_lines(record),
        *filter(None, [label_table(record)]),
    ]
    lines += [f"{words}: {counted}" for words, counted in record.get("conventions", {}).items()]
    if "test" in record.get("unlabelled", ()):
        lines.append("the test split has no labels: its predictions are in predictions.parquet, it has no scores")
    lines += [*stage_lines(record), *missing_lines(record), *filter(None, [robustness_line(record)])]
    if record.get("batch_dependence"):
        lines.append(BATCH_NOTE.format(record["batch_dependence"]))
    for name in tasks_of(record)[1:]:
        other = task_record(record, name)
        learned = f", outputs for {other['source']}" if "source" in other else ""
        lines += [f"{name} ({other['protocol']}{learned}):", score_table(other), *caution_lines(other)]
        lines += filter(None, [label_table(other)])
        if missing := other.get("unlabelled"):
            lines.append(f"without labels for {name}, so without these scores: {', '.join(missing)}")
        lines += [f"{words}: {counted}" for words, counted in other.get("conventions", {}).items()]
    best = record["corpus"].get("reachable", {}).get("test", {})
    name = selection["metric"]
    if name in best and name in record["majority"]["test"] and name in record["metrics"]["test"]:
        floor, top, reached = record["majority"]["test"][name], best[name], record["metrics"]["test"][name]
        if top > floor:
            share = (reached - floor) / (top - floor)
            lines.append(f"{share:.1%} between majority (0 %) and {EXACT_LEVEL} (100 %), test {name}")
    if below := majority_note(record):
        lines.append(below)
    lines.append(
        f"{cost['parameters']:,} parameters, {cost['seconds_per_epoch']:.2f} s per epoch, {cost['seconds']:.0f} s in "
        "total"
    )
    return "\n".join(lines)


def stage_lines(record: Mapping[str, Any]) -> list[str]:
    """The stages before the run itself, its teacher, and the frozen parts; empty if there are none."""
    lines = []
    for stage in record.get("recipe", {}).get("stages", []):
        chosen = stage["selection"]
        lines.append(
            f"stage {stage['name']} ({stage['protocol']}): epoch {chosen['epoch']} of {chosen['epochs']}, dev "
            f"{chosen['metric']} {stage['score']:.4f}"
        )
    if "teacher" in record:
        teacher = record["teacher"]
        lines.append(f"taught by {teacher['model']} on {', '.join(teacher['modalities'])} ({teacher['source']})")
    start = record.get("start", {})
    if start.get("source") and not lines:
        lines.append(f"initial weights from {start['source']}" + (f" ({start['model']})" if start["model"] else ""))
    if start.get("frozen"):
        lines.append(
            f"frozen: {', '.join(start['frozen'])}; {start['trainable']:,} of {start['parameters']:,} parameters are "
            "trained"
        )
    return lines


def majority_note(record: Mapping[str, Any]) -> str:
    """Advice if the chosen epoch is not better than ``majority`` on dev; empty for the model ``majority`` itself."""
    name = record["selection"]["metric"]
    score, floor = (record[key].get("dev", {}).get(name) for key in ("metrics", "majority"))
    if score is None or floor is None or record["config"]["model"]["name"] == "majority":
        return ""
    if score > floor if get_metric(name).higher_is_better else score < floor:
        return ""
    return (
        f"{name} {score:.4f} is not better than majority on dev ({floor:.4f}): train longer, or check features and "
        "labels"
    )


def seeds_summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Mean and sample standard deviation over runs of a multirun that differ only in their seed.

    A row is named by the settings its runs do not share with all others. A note says if they were scored under
    different laws of missing modalities.
    """
    typed = [record["command"]["overrides"] for record in records]
    shared = set(typed[0]).intersection(*typed[1:])
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record, overrides in zip(records, typed, strict=True):
        own = [typed for typed in overrides if typed not in shared and not typed.startswith("seed=")]
        groups.setdefault(" ".join(own) or record["config"]["preset"]["model"], []).append(record)
    rows = [["", "runs", "metric", "dev", "test"]]
    for name, members in groups.items():
        metric = members[0]["selection"]["metric"]
        cells = []
        for split in ("dev", "test"):
            values = [member["metrics"][split][metric] for member in members if metric in member["metrics"][split]]
            if len(values) < len(members):  # unlabelled, or the score is not defined
                cells.append("-")
                continue
            moments = seed_summary(values)
            spread = f" +- {moments['std']:.4f}" if len(members) > 1 else ""
            cells.append(f"{moments['mean']:.4f}{spread}")
        rows.append([name, str(len(members)), metric, *cells])
    others = len({scored_holes(record) for record in records}) > 1
    note = f"\n{MARK} these runs were scored under different laws of missing modalities: compare them with robustness"
    return aligned(rows) + note * others


def aligned(rows: list[list[str]]) -> str:
    """Cells in columns: the first left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _other_tables(record: Mapping[str, Any]) -> str:
    parts = []
    for name in tasks_of(record)[1:]:
        other = task_record(record, name)
        outputs = (other["task"]["schema"] or {}).get("labels") or other["task"]["dimensions"]
        table = "\n".join([score_table(other), *caution_lines(other), *filter(None, [label_table(other)])])
        learned = f", outputs for {other['source']}" if "source" in other else ""
        parts.append(f"\nThe same model for {name} ({', '.join(outputs)}{learned}):\n\n```\n{table}\n```\n")
    return "".join(parts)


def _missing_items(record: Mapping[str, Any]) -> str:
    """The lines about missing modalities as items of a Markdown list."""
    parts = (line.partition(": ") for line in missing_lines(record))
    return "".join(f"- **{title.capitalize()}**: {text}\n" for title, _, text in parts)


def model_card(record: Mapping[str, Any], corpus: CorpusCard) -> str:
    """The README of a saved model."""
    config, selection = record["config"], record["selection"]
    model, synthetic = config["preset"]["model"], " The corpus is synthetic." if corpus.synthetic else ""
    better = "higher" if get_metric(selection["metric"]).higher_is_better else "lower"
    features = ", ".join(f"{pack['modality']} ({pack['width']})" for pack in record["features"])
    places = ("data.raw=", "data.packs.", "output=", "run=")  # paths of this machine: not for a shared card
    typed = [text for text in record["command"]["overrides"] if not text.startswith((*places, "seed="))]
    settings = shlex.join(typed) or "(defaults)"
    return f"""---
library_name: ercfusion
license: other
tags: [emotion-recognition-in-conversation]
---

# {model} on {record["protocol"]}

An utterance-level recognizer for {record["task"]["name"]} ({
        ", ".join(record["task"]["schema"]["labels"])
        if record["task"]["schema"]
        else ", ".join(record["task"]["dimensions"])
    }), trained with ercfusion
{record["environment"]["ercfusion"]} on {corpus.title}.{synthetic}

- **Inputs**: {features}
- **Settings**: `{settings}`, seed {record["seed"]}
- **Selection**: epoch {selection["epoch"]} of {selection["epochs"]}, on the dev split's {selection["metric"]}
  ({better} is better); dev split: {record["corpus"]["dev_source"]}. The test split was read once, after that.
{_missing_items(record)}- **Corpus licence**: {corpus.licence}

```
{chr(10).join([score_table(record), *caution_lines(record), *filter(None, [label_table(record)])])}
```
{_other_tables(record)}
Load it with `ercfusion.tasks.recognizer.Recognizer.from_pretrained(FOLDER)`.

**Use with care.** The labels are annotators' impressions of utterances in one kind of recording, not what a person
feels. Do not use this model to judge, rank or monitor people.


Please cite: {corpus.citation}
"""
