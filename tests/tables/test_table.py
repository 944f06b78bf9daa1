"""Tables: every number against NumPy, every format against what it must say."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_records import TASK, record

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.metrics.comparison import Comparison
from ercfusion.metrics.registry import score_source
from ercfusion.metrics.statistics import two_level_bootstrap
from ercfusion.plots.page import as_page
from ercfusion.tables.cells import interval, metric_name, monte_carlo_note, number, probability, spread
from ercfusion.tables.exports import as_csv, as_latex
from ercfusion.tables.preset import Published, Row, TablePreset
from ercfusion.tables.render import as_markdown, comparison_cells, published_text, score_cells
from ercfusion.tables.scores import Score
from ercfusion.tables.table import caution_note, compute_table

PAPER = Published(0.6, "Somebody & others (2020), Table 1", "test", ("features", "selection"), "secondary source")


def preset(**changes) -> TablePreset:
    rows = (
        Row("plain", "concat", (), (0, 1, 2)),
        Row("graph | window", "cogmen", ("model.layers=1",), (0, 1, 2), "words about it", (PAPER,)),
        Row("not yet", "bclstm", (), (0,)),
    )
    return TablePreset(Path("made.yaml"), "A made table", "demo", (), rows, **changes)


@pytest.fixture(scope="module")
def records():
    return {
        "plain": [record("concat", seed, 0.3) for seed in (0, 1, 2)],
        "graph | window": [record("cogmen", seed, 0.9, "model.layers=1") for seed in (0, 1, 2)],
    }


@pytest.fixture(scope="module")
def table(records):
    return compute_table(preset(), records)


def test_numbers_against_numpy(table, records):
    assert table.metrics == ("weighted_f1", "macro_f1", "accuracy", "ece", "shift_accuracy")
    assert [line.row.name for line in table.lines] == ["plain", "graph | window"]
    assert [row.name for row in table.missing] == ["not yet"]
    for line in table.lines:
        own = records[line.row.name]
        for metric, score in line.test.items():
            values = np.array([entry["metrics"]["test"][metric] for entry in own])
            assert score.mean == pytest.approx(values.mean())
            assert score.std == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / 2))
        assert line.dev.mean == pytest.approx(np.mean([entry["metrics"]["dev"]["weighted_f1"] for entry in own]))
        for label in TASK.output_names:
            f1 = [entry["splits"]["test"]["per_class"][label]["f1"] for entry in own]
            assert line.class_f1[label] == pytest.approx(np.mean(f1))
        assert line.peak_mib == 502.0
        assert line.optimism.gap == pytest.approx(0.02)
    assert (table.floor, table.reachable) == (0.1, 0.95)
    published, gap = table.lines[1].published[0]
    assert published is PAPER
    assert gap == pytest.approx(table.lines[1].test["weighted_f1"].mean - 0.6)


def test_intervals_and_tests_are_those_of_the_statistics(table):
    key, statistic = score_source(TASK, "weighted_f1")
    for line in table.lines:
        expected = two_level_bootstrap(line.group.sums(key), statistic, bounds=(0, 1))
        assert (line.test["weighted_f1"].low, line.test["weighted_f1"].high) == expected
        assert line.test["ece"].low is None
    (comparison,) = table.comparisons
    assert comparison.names == ("plain", "graph | window")
    means = [line.test["weighted_f1"].mean for line in table.lines]
    assert comparison.difference == pytest.approx(means[0] - means[1], abs=1e-6)
    assert comparison.shown


@pytest.mark.parametrize(
    ("doubtful", "named"),
    [
        ((), ""),
        (("a, b",), "(!) a, b: few."),
        (("a, b", "a, c"), "(!) a, b; a, c: few."),
        (("a, b", "a, c", "d"), "(!) all rows except e: few."),
        (("a, b", "a, c", "d", "e"), "(!) all rows: few."),
    ],
)
def test_cautions_name_rows_with_commas(table, doubtful: tuple[str, ...], named: str) -> None:
    (first, *_) = table.lines
    lines = [
        replace(
            first,
            row=replace(first.row, name=name),
            test={table.metric: replace(first.test[table.metric], cautions=("few",) if name in doubtful else ())},
        )
        for name in ("a, b", "a, c", "d", "e")
    ]
    assert caution_note(replace(table, lines=tuple(lines))) == named


def test_choices_of_the_preset(records):
    other = compute_table(preset(metric="accuracy", also=("uar",), against="plain"), records)
    assert other.metrics[:2] == ("accuracy", "uar")
    assert [entry.names for entry in other.comparisons] == [("graph | window", "plain")]
    assert other.lines[0].optimism is None  # measured for another score
    with pytest.raises(ConfigError, match="not a metric"):
        compute_table(preset(metric="acuracy"), records)
    with pytest.raises(ValueError, match="no row"):
        compute_table(preset(), {})


def test_planned_comparisons_alone(records):
    runs = {**records, "not yet": [record("bclstm", seed, 0.5) for seed in (0, 1, 2)]}
    assert len(compute_table(preset(), runs).comparisons) == 3
    planned = (("plain", "graph | window"), ("not yet", "plain"))
    assert [entry.names for entry in compute_table(preset(pairs=planned), runs).comparisons] == list(planned)
    # A row without records takes its comparisons with it.
    assert [entry.names for entry in compute_table(preset(pairs=planned), records).comparisons] == [planned[0]]


def test_the_majority_class_is_compared_only_where_there_is_nothing_else(records):
    runs = {**records, "floor": [record("majority", seed, 0.0) for seed in (0, 1)]}
    rows = (*preset().rows[:2], Row("floor", "majority", (), (0, 1)))
    three = TablePreset(Path("made.yaml"), "Made", "demo", (), rows)
    assert [entry.names for entry in compute_table(three, runs).comparisons] == [("plain", "graph | window")]
    two = TablePreset(Path("made.yaml"), "Made", "demo", (), (rows[0], rows[2]))
    assert [entry.names for entry in compute_table(two, runs).comparisons] == [("plain", "floor")]


def test_one_seed_has_a_mean_and_no_spread(records):
    single = compute_table(preset(), {name: runs[:1] for name, runs in records.items()})
    assert "±" not in spread("weighted_f1", single.lines[0].test["weighted_f1"])
    assert "Seed 0 only" in as_markdown(single)
    assert "Incomplete: plain has 1 of 3 seeds." in as_markdown(single)


def test_markdown(table):
    text = as_markdown(table)
    assert text.startswith("# A made table\n")
    assert "**The corpus is synthetic (generated).**" in text
    assert "graph \\| window" in text  # a bar in a name is no cell border
    assert "Not run yet: not yet." in text
    assert "words about it" in text
    assert f"60.00† ({number('weighted_f1', table.lines[1].published[0][1], sign=True)}) [fs]" in text
    for heading in ("Scores", "F1 by class", "Differences", "Optimism", "Published numbers", "Cost", "Reproduce"):
        assert f"\n## {heading}\n" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for block in tables:
        widths = {len(line.replace("\\|", "").split("|")) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert "python -m ercfusion.train model=cogmen data=demo model.layers=1 seed=0 training.threads=1" in text


def test_csv_has_all_digits(table):
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == 2 * 5
    first = rows[0]
    assert float(first["mean"]) == pytest.approx(table.lines[0].test["weighted_f1"].mean, abs=1e-6)
    assert (first["row"], first["metric"], first["seeds"]) == ("plain", "weighted_f1", "3")
    assert float(first["dev mean"]) == pytest.approx(table.lines[0].dev.mean, abs=1e-6)
    assert rows[3]["low"] == ""  # no interval for the calibration error
    assert (first["settings"], first["schedule"]) == (
        "default",
        "30 epochs, patience 10, cosine; ran 3",
    )
    headline, other = rows[5], rows[6]
    assert (headline["published"], headline["published seen in"], headline["published chosen on"]) == (
        "0.600000",
        "secondary source",
        "test",
    )
    assert other["published"] == ""


def test_latex_is_escaped_and_balanced(table):
    text = as_latex(table)
    assert text.count("\\begin{") == text.count("\\end{")
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert "95 \\% interval" in text
    assert "$\\pm$" in text
    assert "±" not in text
    assert "60.00$\\dagger$" in text
    assert "$\\dagger$: quoted in a secondary source" in text
    assert "& default &" in text


class _Checker(HTMLParser):
    VOID = ("meta", "line", "circle", "path", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_keeps_its_columns_on_paper_and_on_small_screens(table):
    """Wide tables scroll in a box of their own with the names in view; on paper, where nothing scrolls, they shrink."""
    page = as_page(table)
    style = page.partition("<style>")[2].partition("</style>")[0]
    screen, _, paper = style.partition("@media print")
    assert "overflow-x: auto" in screen
    assert re.search(r"td:first-child \{ position: sticky; left: 0", screen)
    assert re.search(r"\.wide \{ overflow: visible", paper)
    assert "landscape" in style
    assert page.count('<div class="wide"><table>') == page.count("<table>")


def test_page_is_whole_and_needs_nothing_else(table):
    page = as_page(table)
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert "http" not in page
    assert "src=" not in page
    text = " ".join(checker.text)
    assert "graph | window" in text
    assert "Exact posterior: 95.00" in text
    assert "Somebody & others (2020)" in text
    assert page.count("<svg") == 1


def made(first: str, second: str, **changes) -> Comparison:
    settings = {"difference": 0.02, "low": 0.01, "high": 0.03, "p": 0.002, "p_holm": 0.041, "shown": True,
                "exchanges": 10000, "p_error": 0.0004, "p_holm_error": 0.0021, "certain": True}  # fmt: skip
    return Comparison((first, second), **{**settings, **changes})


def test_the_monte_carlo_error_is_stated(table, records):
    first, second = (line.row.name for line in table.lines)
    cells = comparison_cells(replace(table, comparisons=(made(first, second),)))
    assert cells[1][-2:] == ["0.041 ± 0.002", "yes"]
    unsure = made(first, second, shown=False, certain=False, exchanges=910000)
    assert comparison_cells(replace(table, comparisons=(unsure,)))[1][-1] == "no, not certain"
    single = compute_table(preset(), {name: runs[:1] for name, runs in records.items()})
    assert comparison_cells(single)[1][-1] == "one seed"
    for p_holm, error, text in ((0.02, 0.0001, "0.020 ± 0.001"), (0.0004, 0.0002, "< 0.001"), (1.0, 0.0, "1.000")):
        exact = made(first, second, p_holm=p_holm, p_holm_error=error)
        assert comparison_cells(replace(table, comparisons=(exact,)))[1][-2] == text
    note = monte_carlo_note([made("a", "b"), unsure])
    assert "10,000 to 910,000 random exchanges" in note
    assert "*Not certain* (1 of 2)" in note
    assert "10,000 random exchanges per pair" in monte_carlo_note([made("a", "b")])
    assert "No verdict depends on the random draws" in monte_carlo_note([made("a", "b")])
    assert "the number after ±" in monte_carlo_note([made("a", "b")])
    assert "±" not in monte_carlo_note([made("a", "b", p_holm=0.0004)])
    assert "no Monte Carlo error" in monte_carlo_note([made("a", "b", p_error=0.0)])
    for text in (as_markdown(table), as_page(table)):
        assert monte_carlo_note(table.comparisons).split(";")[0] in text


def test_rows_with_other_features_name_them(records):
    other = [record("bclstm", seed, 0.5) for seed in (0, 1, 2)]
    for entry in other:
        entry["features"][0]["source"]["sha256"] = "b" * 64
        entry["features"].append({"modality": "audio", "width": 7, "level": "utterance", "source": {"tool": "t"}})
    mixed = compute_table(preset(), {**records, "not yet": other})
    head, *rows = score_cells(mixed)
    column = head.index("features")
    same = "text (24-d E aaaaaaaa)"
    assert [row[column] for row in rows] == [same, same, "text (24-d E bbbbbbbb), audio"]
    assert rows[1][head.index("published (our difference)")].startswith("60.00†")
    assert "audio 7-d (t)" in as_markdown(mixed).split("Dev split")[0]
    assert "features" not in score_cells(compute_table(preset(), records))[0]


def test_rows_on_other_data_are_refused(records):
    strange = [record("bclstm", seed, 0.5) for seed in (0, 1, 2)]
    strange[2]["corpus"]["fingerprint"] = "e" * 64  # one seed of one row
    with pytest.raises(RunError, match=r"not yet \(seed 2\)"):
        compute_table(preset(), {**records, "not yet": strange})


def test_the_same_records_give_the_same_bytes(table, records):
    again = compute_table(preset(), records)
    for write in (as_markdown, as_latex, as_csv, as_page):
        assert write(table) == write(again)


def test_how_numbers_are_written():
    assert number("weighted_f1", 0.57191) == "57.19"
    assert number("weighted_f1", -0.00001, sign=True) in ("0.00", "-0.00"[1:])
    assert number("mae", 0.71234) == "0.712"
    assert number("accuracy", None) == ""
    assert number("accuracy", float("nan")) == ""
    assert spread("mae", Score(0.7, 0.01)) == "0.700 ± 0.010"
    assert interval("accuracy", 0.5, 0.6) == "50.00 to 60.00"
    assert (probability(0.0001), probability(0.0414)) == ("< 0.001", "0.041")
    assert metric_name("ece") == "ECE ↓"
    assert metric_name("ccc/valence") == "CCC (valence)"
    assert published_text("mae", Published(0.9, "x"), -0.1) == "0.900? (-0.100)"


def test_a_row_whose_scores_depend_on_the_batch_says_so() -> None:
    from ercfusion.tables.render import batch_note

    assert "because mask_padding=false" in batch_note(record("cogmen_released"))
    assert batch_note(record("cogmen")) == batch_note(record("tfn_released")) == ""
    foreign = record("concat", batch_dependence="it looks around")
    foreign["config"]["model"]["name"] = "somebody_elses"
    assert batch_note(foreign).endswith("because it looks around")
    del foreign["batch_dependence"]
    assert batch_note(foreign) == ""


def test_the_exact_posterior_is_that_of_the_most_modalities() -> None:
    def made(modalities: int, best: float) -> dict:
        one = record("concat", 0, 0.3)
        one["features"] = [{**one["features"][0], "modality": f"m{number}"} for number in range(modalities)]
        one["corpus"]["reachable"] = {"test": {"weighted_f1": best}}
        return one

    rows = {"plain": [made(1, 0.6)], "graph | window": [made(3, 0.9)], "not yet": [made(2, 0.8)]}
    assert compute_table(preset(), rows).reachable == 0.9
