"""Several tables of the same runs (``views`` of a preset), and differences by label."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import TASK, predictions, record

from ercfusion._core.errors import ConfigError
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.comparison import holm, paired_randomization
from ercfusion.metrics.statistics import difference_interval
from ercfusion.plots.page import as_page
from ercfusion.records.record import rounded_scores, split_record
from ercfusion.tables.exports import as_csv, as_latex
from ercfusion.tables.preset import Row, TablePreset, read_preset
from ercfusion.tables.render import as_markdown, label_cells, label_note
from ercfusion.tables.table import Table, compute_table, compute_tables

SETS = TaskSpec("sets", "multi_label", TASK.schema)
NAMES = ("plain", "better", "equal")


def sets_of(part: Predictions) -> Predictions:
    """Every utterance has its label and the following one; a quarter has no target."""
    truth = np.eye(TASK.size)[part.value] + np.roll(np.eye(TASK.size), 1, axis=1)[part.value]
    valid = np.arange(len(part)) % 4 > 0
    return replace(part, task=SETS, value=truth.astype(np.float32), valid=valid, thresholds=np.full(TASK.size, 0.5))


def viewed(seed: int, skill: float, model: str) -> dict[str, Any]:
    made = record(model, seed, skill, conversations=30)
    # The made answers depend on model and seed as in made_records.
    test = sets_of(predictions(skill, 1000 * len(model) + seed, conversations=30))
    dev = sets_of(predictions(skill, 5000 + seed, conversations=5))
    own = {
        "protocol": "demo/balanced-sets",
        "task": SETS.to_dict(),
        "selection": {**made["selection"], "metric": "micro_f1"},
        "metrics": {"dev": rounded_scores(dev), "test": rounded_scores(test)},
        "intervals": made["intervals"],
        "majority": {"dev": {}, "test": {"micro_f1": 0.3}},
        "splits": {"dev": split_record(dev), "test": split_record(test)},
        "source": "emotion",
        "thresholds": [0.5] * TASK.size,
    }
    return {**made, "views": {"sets": own}}


def preset(**changes: Any) -> TablePreset:
    rows = tuple(
        Row(name, model, (), (0, 1, 2)) for name, model in zip(NAMES, ("concat", "cogmen", "concat"), strict=True)
    )
    views = changes.pop("views", {"emotion": None, "sets": "micro_f1"})
    return TablePreset(Path("made.yaml"), "A made table", "demo", (), rows, views=views, **changes)


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict[str, Any]]]:
    made = (("plain", 0.3, "concat"), ("better", 0.9, "cogmen"), ("equal", 0.3, "concat"))
    return {name: [viewed(seed, skill, model) for seed in (0, 1, 2)] for name, skill, model in made}


@pytest.fixture(scope="module")
def tables(records: dict[str, list[dict[str, Any]]]) -> list[Table]:
    planned = (("better", "plain"), ("equal", "plain"))
    return compute_tables(preset(pairs=planned, per_label=True, also=("jaccard", "uar", "macro_f1")), records)


def test_every_view_has_its_own_headline_and_scores(tables: list[Table]) -> None:
    assert [table.task.name for table in tables] == ["emotion", "sets"]
    assert [table.metric for table in tables] == ["weighted_f1", "micro_f1"]
    assert "uar" in tables[0].metrics
    assert "jaccard" not in tables[0].metrics
    assert "jaccard" in tables[1].metrics
    assert "uar" not in tables[1].metrics
    assert [pair.names for table in tables for pair in table.comparisons] == 2 * [
        ("better", "plain"),
        ("equal", "plain"),
    ]
    for table in tables:
        for line in table.lines:
            scores = [one["metrics"]["test"][table.metric] for one in line.group.records]
            assert line.test[table.metric].mean == pytest.approx(np.mean(scores))


def test_one_table_without_views(records: dict[str, list[dict[str, Any]]]) -> None:
    (table,) = compute_tables(preset(views={}), records)
    assert repr(table) == repr(compute_table(preset(views={}), records))
    assert as_markdown(table).count("# A made table") == 1
    assert "Scored as" not in as_page(table)


def test_a_score_that_no_view_has_is_refused(records: dict[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match="'kl' is not a metric"):
        compute_tables(preset(also=("kl",)), records)
    with pytest.raises(ValueError, match=r"no row of made\.yaml has a record"):
        compute_tables(preset(), {})


def test_differences_by_label_are_one_family(tables: list[Table]) -> None:
    for table, key in zip(tables, ("confusion", "counts"), strict=True):
        assert list(table.by_label) == list(TASK.output_names)
        groups = {line.row.name: line.group for line in table.lines}
        adjusted = holm([pair.p for pairs in table.by_label.values() for pair in pairs])
        corrected = [pair.p_holm for pairs in table.by_label.values() for pair in pairs]
        np.testing.assert_allclose(corrected, adjusted)
        for label, pairs in table.by_label.items():
            better = pairs[0]
            means = [
                np.mean([one["splits"]["test"]["per_class"][label]["f1"] for one in groups[name].records])
                for name in better.names
            ]
            assert better.difference == pytest.approx(means[0] - means[1])
            place = TASK.output_names.index(label)

            def f1(sums: np.ndarray, place: int = place, key: str = key) -> np.ndarray:
                if key == "counts":
                    hits, wrong, missed = (sums[..., place, number] for number in range(3))
                else:
                    hits = sums[..., place, place]
                    wrong, missed = sums[..., place].sum(axis=-1) - hits, sums[..., place, :].sum(axis=-1) - hits
                return 2 * hits / np.maximum(2 * hits + wrong + missed, 1)

            first, second = (groups[name].sums(key) for name in better.names)
            assert first is not None
            assert second is not None
            assert better.p == pytest.approx(paired_randomization(first, second, f1, better.exchanges), rel=1e-12)
            interval = difference_interval(first, second, f1, bounds=(0, 1))
            np.testing.assert_allclose((better.low, better.high), interval, atol=0.05)
            equal = pairs[1]
            assert (equal.difference, equal.p, equal.shown) == (0, 1, False)


def test_cells_and_note_by_label(tables: list[Table]) -> None:
    head, better, equal = label_cells(tables[0])
    assert head[0] == "pair"
    assert re.fullmatch(r"neutral \(\d+\)", head[1])
    assert better[0] == "better minus plain"
    shown = [pairs[0].shown and pairs[0].certain for pairs in tables[0].by_label.values()]
    assert any(shown)
    assert [cell.startswith("**+") for cell in better[1:]] == shown
    assert all(re.match(r"\+0\.0[ ,]", cell) and cell.endswith("p 1.000") for cell in equal[1:])
    note = label_note(tables[0])
    assert "over the 12 differences" in note
    certain = sum(pair.shown and pair.certain for pairs in tables[0].by_label.values() for pair in pairs)
    assert note.count("(better minus plain)") == certain
    without = replace(tables[0], by_label={})
    assert label_cells(without) == []
    doubtful = {
        label: tuple(replace(pair, certain=False) for pair in pairs) for label, pairs in tables[0].by_label.items()
    }
    assert "**" not in str(label_cells(replace(tables[0], by_label=doubtful)))
    nothing = {"joy": (tables[0].by_label["joy"][1],)}
    assert label_note(replace(tables[0], by_label=nothing)).endswith("Shown (bold): none.")


def test_formats_have_one_part_per_view(tables: list[Table]) -> None:
    text = as_markdown(*tables)
    assert text.count("## Scored as emotion (single label)\n") == 1
    assert text.count("## Scored as sets (multi label)\n") == 1
    for heading, count in (("### Scores", 2), ("### Differences by label", 2), ("## Cost", 1), ("## Reproduce", 1)):
        assert text.count(f"\n{heading}\n") == count, heading
    assert "scored against the targets `emotion`, `sets`" in text
    assert text.count("Features: text 24-d (E).") == 1
    page = as_page(*tables)
    assert page.count("<svg ") == 2
    assert '<a href="#sets">Scored as sets (multi label)</a>' in page
    assert page.count('id="sets"') == 1
    assert "<h3>Differences by label</h3>" in page
    assert "**" not in page
    latex = as_latex(*tables)
    assert latex.count("\\begin{table}") == latex.count("\\end{table}") == 2
    assert "\\label{tab:made-emotion}" in latex
    assert "scored as sets (multi label): test scores" in latex
    rows = list(csv.DictReader(io.StringIO(as_csv(*tables))))
    assert {row["task"] for row in rows} == {"emotion", "sets"}
    assert len([row for row in rows if row["metric"] == "jaccard"]) == 3
    assert "task" not in as_csv(tables[0]).splitlines()[0]


GOOD = """
title: A table
data: demo
pairs: [[a, b]]
per_label: true
views: {emotion: macro_f1, valence: null}
rows: {a: {model: concat}, b: {model: cogmen}}
"""


def test_keys_of_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(GOOD)
    stored = read_preset(path)
    assert (stored.views, stored.per_label) == ({"emotion": "macro_f1", "valence": None}, True)
    path.write_text(GOOD.replace("{emotion: macro_f1, valence: null}", "[valence, emotion]"))
    assert read_preset(path).views == {"valence": None, "emotion": None}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pairs: [[a, b]]\n", "", "per_label compares named pairs. Add pairs or against"),
        ("data: demo", "data: demo\nmetric: macro_f1", "views exclude task and metric"),
        ("data: demo", "data: demo\ntask: valence", "views exclude task and metric"),
        ("{emotion: macro_f1, valence: null}", "[emotion, emotion]", "views: a name is listed twice"),
        ("{emotion: macro_f1, valence: null}", "{emotion: 3}", "views: found 'emotion': 3. Write TASK: METRIC"),
        ("{emotion: macro_f1, valence: null}", "[3]", "views: found 3: None. Write TASK: METRIC"),
        ("{emotion: macro_f1, valence: null}", "emotion", "views: found 'emotion'. Give a list"),
        ("per_label: true", "per_label: 1", "per_label: found 1. Give true or false"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = tmp_path / "table.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_preset(path)
