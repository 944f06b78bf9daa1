"""Comparisons with missing modalities: conditions, areas, tests, formats."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from made_records import LAWS, robust_record

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.plots.page import as_page
from ercfusion.records.groups import Group
from ercfusion.tables.exports import as_csv as table_csv
from ercfusion.tables.exports import as_latex as table_latex
from ercfusion.tables.preset import Row, TablePreset
from ercfusion.tables.render import as_markdown
from ercfusion.tables.report import summary
from ercfusion.tables.robust_render import as_csv, as_latex, as_text, parts_of, score_cells
from ercfusion.tables.robustness import MEAN, common_laws, compute_robustness, conditions_of, robustness_line
from ercfusion.tables.table import compute_table


def group(name: str, skill: float, seeds: int = 3, model: str = "concat", **changes) -> Group:
    return Group(name, tuple(robust_record(model, seed, skill, **changes) for seed in range(seeds)))


def backwards(value):
    """The same record with keys in the opposite order; files keep the order of conversations."""
    if isinstance(value, dict):
        return {key: value[key] if key == "splits" else backwards(value[key]) for key in reversed(value)}
    return [backwards(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def table():
    return compute_robustness([group("better", 0.9, model="cogmen"), group("plain", 0.4)])


def test_conditions_are_patterns_their_mean_and_curves_with_areas():
    texts = ["rate:0.5", "pattern:text", "rmm:0.5", "rate:0", "pattern:text+audio", "pattern:audio", "rmfm", "rate:0.1"]
    conditions = {one.name: one for one in conditions_of(texts, ["text", "audio"])}
    assert list(conditions) == [
        *("pattern:text", "pattern:audio", "pattern:text+audio", MEAN, "rmfm", "rate:0", "rate:0.1", "rate:0.5"),
        *("AUILC rate", "rmm:0.5"),
    ]
    assert conditions == {one.name: one for one in conditions_of(texts[::-1], ["text", "audio"])}
    assert conditions[MEAN].laws == ("pattern:text", "pattern:audio")
    area = conditions["AUILC rate"]
    assert area.is_area
    assert area.laws == ("rate:0", "rate:0.1", "rate:0.5")
    np.testing.assert_allclose(area.weights, [0.1, 0.5, 0.4])
    # With a third modality the pattern of two is incomplete too.
    three = {one.name: one for one in conditions_of(texts, ["text", "audio", "visual"])}
    assert three[MEAN].laws == ("pattern:text", "pattern:audio", "pattern:text+audio")


def test_scores_areas_and_means(table):
    records = [robust_record("cogmen", seed, 0.9) for seed in range(3)]
    scores = {law: [record["robustness"]["laws"][law]["metrics"]["weighted_f1"] for record in records] for law in LAWS}
    line = table.lines[0]
    for law, values in scores.items():
        np.testing.assert_allclose(line.single[law], values, atol=1e-6)
    expected = np.trapezoid([np.mean(scores[law]) for law in ("rate:0", "rate:0.4", "rate:0.5")], [0, 0.4, 0.5]) / 0.5
    area = line.scores["AUILC rate"]
    assert area.mean == pytest.approx(expected, abs=1e-6)
    assert area.interval is not None
    assert area.interval[0] < area.mean < area.interval[1]
    incomplete = (np.mean(scores["pattern:text"]) + np.mean(scores["pattern:audio"])) / 2
    assert line.scores[MEAN].mean == pytest.approx(incomplete, abs=1e-6)
    assert table.reachable["AUILC rate"] == pytest.approx(np.trapezoid([0.9, 0.74, 0.7], [0, 0.4, 0.5]) / 0.5)


def test_the_area_is_one_family_of_tests_and_the_laws_another(table):
    (pair,) = table.areas["AUILC rate"]
    assert pair.names == ("better", "plain")
    assert pair.shown
    assert pair.p_holm == pair.p
    # rate:0 is the complete pattern.
    assert set(table.under_laws) == {*LAWS, MEAN} - {"rate:0"}
    smallest = min(pairs[0].p for pairs in table.under_laws.values())
    assert min(pairs[0].p_holm for pairs in table.under_laws.values()) == pytest.approx(len(LAWS) * smallest)


def test_named_laws_and_pairs_are_tested():
    groups = [group("a", 0.9), group("b", 0.5), group("c", 0.4)]
    table = compute_robustness(groups, "accuracy", [("a", "c")], ["rate:0.5"])
    assert list(table.under_laws) == ["rate:0.5"]
    assert [pair.names for pair in table.under_laws["rate:0.5"]] == [("a", "c")]
    assert [pair.names for pair in table.areas["AUILC rate"]] == [("a", "c")]
    with pytest.raises(RunError, match=r"not scored under rmm:0.5. Choose from: pattern:text, "):
        compute_robustness(groups, "accuracy", None, ["rmm:0.5"])
    with pytest.raises(ConfigError, match="'acuracy' is not a metric"):
        compute_robustness(groups, "acuracy")


def test_a_score_without_sums_has_no_interval_and_no_tests():
    table = compute_robustness([group("a", 0.9), group("b", 0.5)], "ece")
    score = table.lines[0].scores["AUILC rate"]
    assert score.mean > 0
    assert score.low is None
    assert not table.areas
    assert not table.under_laws


def test_what_cannot_be_compared():
    first = group("a", 0.9)
    other = robust_record(seed=5)
    del other["robustness"]
    with pytest.raises(RunError, match="seed 5, has no scores with missing modalities"):
        common_laws([first, Group("b", (other,))])
    other = robust_record(seed=5)
    other["robustness"]["seed"] = 1
    with pytest.raises(RunError, match=r"other masks \(seeds 0 and 1\)"):
        common_laws([first, Group("b", (other,))])
    other = robust_record(seed=5)
    other["features"].pop()
    with pytest.raises(RunError, match="seed 5, has text: their masks differ"):
        common_laws([first, Group("b", (other,))])
    other = robust_record(seed=5)
    other["robustness"]["laws"] = {"rmm:0.1": other["robustness"]["laws"]["rate:0"]}
    with pytest.raises(RunError, match="scored under different laws"):
        common_laws([first, Group("b", (other,))])


def test_parts_and_formats(table):
    parts = {heading: (note, cells) for heading, note, cells in parts_of(table)}
    assert list(parts) == [
        *("Missing modalities: patterns", "Missing modalities: rate", "Differences of the AUILC rate"),
        "Differences with missing modalities",
    ]
    note, cells = parts["Missing modalities: rate"]
    assert cells[0] == ["test weighted F1", "rate 0", "rate 0.4", "rate 0.5", "AUILC", "95 % interval"]
    assert cells[-1][0] == "exact posterior"
    assert "divided by the width 0.5" in note
    assert (
        "the model saw no modality in 3 of 60 utterances; its answer there is a prior, which depends on no input."
        in parts["Missing modalities: patterns"][0]
    )
    assert len({len(row) for row in cells}) == 1
    laws = parts["Differences with missing modalities"][1]
    assert laws[0] == ["modalities present, or law", "better minus plain"]
    assert laws[1][0] == "text"
    text = as_text(table)
    assert "**" not in text
    assert "| " in as_text(table, markdown=True)
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == 2 * len(table.conditions)
    area = next(row for row in rows if row["row"] == "better" and row["condition"] == "AUILC rate")
    assert float(area["mean"]) == pytest.approx(table.lines[0].scores["AUILC rate"].mean, abs=1e-6)
    latex = as_latex(table)
    assert latex.count("\\begin{table}") == 2
    assert "`" not in latex


def test_many_pairs_are_rows():
    groups = [group(name, 0.5, seeds=2) for name in "abcd"]
    (part,) = [part for part in parts_of(compute_robustness(groups)) if part[0].endswith("with missing modalities")]
    assert part[2][0][:2] == ["pair", "text"]
    assert len(part[2]) == 7


def test_an_error_is_better_if_lower():
    """The sign of a difference is that of the scores; the arrow marks the direction."""
    table = compute_robustness([group("a", 0.9), group("b", 0.4)], "ece")
    assert score_cells(table, table.patterns)[0][0].endswith("↓")


def test_a_table_of_a_preset_has_all_parts(tmp_path):
    rows = tuple(Row(name, model, (), (0, 1, 2)) for name, model in (("better", "cogmen"), ("plain", "concat")))
    preset = TablePreset(
        tmp_path / "robust.yaml", "Robust", "demo", (), rows, pairs=(("better", "plain"),), robustness=True,
        laws=("rate:0.5",),
    )  # fmt: skip
    records = {
        "better": [robust_record("cogmen", seed, 0.9) for seed in range(3)],
        "plain": [robust_record("concat", seed, 0.4) for seed in range(3)],
    }
    table = compute_table(preset, records)
    assert table.robustness is not None
    assert list(table.robustness.under_laws) == ["rate:0.5"]
    page = as_markdown(table)
    for heading, _, _ in parts_of(table.robustness):
        assert f"## {heading}\n" in page
    rows_of_csv = list(csv.DictReader(io.StringIO(table_csv(table))))
    area = next(row for row in rows_of_csv if row["metric"] == "weighted_f1@AUILC rate" and row["row"] == "plain")
    assert float(area["mean"]) == pytest.approx(table.robustness.lines[1].scores["AUILC rate"].mean, abs=1e-6)
    assert all(None not in row and None not in row.values() for row in rows_of_csv)
    assert table_latex(table).count("\\begin{table}") == 3
    html = as_page(table)
    assert html.count("<svg") == 3
    assert "weighted F1 with missing modalities" in html
    # In files keys are sorted, in memory they are not.
    again = compute_table(preset, {name: [backwards(one) for one in own] for name, own in records.items()})
    assert [render(again) for render in (as_markdown, table_csv, as_page)] == [page, table_csv(table), html]
    # Without the key the records change nothing.
    assert compute_table(replace(preset, robustness=False), records).robustness is None


def test_the_summary_of_a_run_has_its_means_and_areas():
    made = robust_record("cogmen", 0, 0.9)
    line = robustness_line(made)
    scores = {law: part["metrics"]["weighted_f1"] for law, part in made["robustness"]["laws"].items()}
    area = np.trapezoid([scores[law] for law in ("rate:0", "rate:0.4", "rate:0.5")], [0, 0.4, 0.5]) / 0.5
    mean = (scores["pattern:text"] + scores["pattern:audio"]) / 2
    assert line == f"test weighted_f1 with missing modalities: {MEAN} {mean:.4f}, AUILC rate {area:.4f}"
    assert line in summary(made)
    assert robustness_line(
        robust_record() | {"robustness": {"seed": 0, "laws": {"rate:0": made["robustness"]["laws"]["rate:0"]}}}
    ) == ("test weighted_f1 with missing modalities: scored under rate:0")
    del made["robustness"]
    assert robustness_line(made) == ""
