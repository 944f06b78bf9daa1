"""Computed parts of the page about missing modalities, from made records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from made_records import robust_record

from docs.computed import missing
from ercfusion.config.missing_laws import LAWS, syntax
from ercfusion.records.groups import Group
from ercfusion.tables.robustness import RobustTable, compute_robustness

SKILL = {
    "bclstm, plain": 0.3,
    "bclstm, dropout": 0.8,
    "concat, plain": 0.4,
    "concat, dropout": 0.45,
    "mplmm": 0.7,
}
PAIRS = [("bclstm, dropout", "bclstm, plain"), ("concat, dropout", "concat, plain"), ("mplmm", "concat, plain")]


@pytest.fixture(scope="module")
def robust() -> RobustTable:
    groups = [
        Group(name, tuple(robust_record("concat", seed, skill) for seed in range(3))) for name, skill in SKILL.items()
    ]
    return compute_robustness(groups, pairs=PAIRS, at=["rate:0.5"])


@pytest.fixture
def tables(robust: RobustTable, monkeypatch: pytest.MonkeyPatch) -> RobustTable:
    comparisons = robust.under_laws["rate:0.5"]
    made = SimpleNamespace(robustness=robust, metric="weighted_f1", comparisons=comparisons)
    monkeypatch.setattr(missing, "table", lambda preset: made)
    return robust


def test_scores_have_a_row_per_model_and_a_column_per_variant(tables: RobustTable) -> None:
    header, _, first, second, _, *others = missing.robust_scores("x")
    titles = [cell.strip() for cell in header.strip("|").split("|")]
    assert titles[1:] == ["complete, plain", "rate:0.5, plain", "rate:0.5, dropout", "AUILC, plain", "AUILC, dropout"]
    scores = {line.name: line.scores for line in tables.lines}
    for row, model in ((first, "bclstm"), (second, "concat")):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        expected = [scores[f"{model}, plain"]["rate:0"].mean]
        expected += [
            scores[f"{model}, {v}"][name].mean for name in ("rate:0.5", "AUILC rate") for v in ("plain", "dropout")
        ]
        assert cells == [model, *(f"{100 * value:.2f}" for value in expected)]
    own, exact = others
    assert own.startswith(f"- mplmm: complete {100 * scores['mplmm']['rate:0'].mean:.2f}, rate:0.5 ")
    assert (
        exact == f"- exact posterior: complete 90.00, rate:0.5 70.00, AUILC {100 * tables.reachable['AUILC rate']:.2f}."
    )


def test_sentences_name_the_ends_and_what_is_shown(tables: RobustTable) -> None:
    text = " ".join(" ".join(missing.robust_sentences("x")).split())
    first, second, third = (pair.difference for pair in tables.under_laws["rate:0.5"])
    assert tables.under_laws["rate:0.5"][0].shown
    assert second < first
    shown = [f"`{name}`" for name, pair in zip(("bclstm", "concat"), tables.under_laws["rate:0.5"]) if pair.shown]
    assert (
        f"- rate:0.5, dropout minus plain: {100 * second:+.2f} (`concat`) to {100 * first:+.2f} (`bclstm`), "
        f"higher is better; shown for {', '.join(shown)}."
    ) in text
    assert f"- rate:0.5, mplmm minus concat, plain: {100 * third:+.2f}, higher is better; shown." in text
    assert text.count("- AUILC, ") == 2
    guided = " ".join(" ".join(missing.guided_sentences("x")).split())
    assert guided.startswith(f"- Guided minus not guided: {100 * second:+.2f} (`concat, plain`) to ")


def test_a_table_without_such_scores_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "table", lambda preset: SimpleNamespace(robustness=None))
    with pytest.raises(ValueError, match="experiments/x: no record has scores"):
        missing.robust_scores("x")


def test_every_law_has_a_row() -> None:
    rows = [row for row in missing.missing_laws() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [syntax(each) for each in LAWS.values()]
    assert "MPLMM: fixed pattern; CIDer: SMM" in rows[1]
