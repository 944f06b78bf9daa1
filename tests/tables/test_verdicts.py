"""Verdicts in words."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from made_records import record

from ercfusion.metrics.comparison import Comparison
from ercfusion.tables.cells import verdict
from ercfusion.tables.preset import Row, TablePreset
from ercfusion.tables.table import compute_table
from ercfusion.tables.verdicts import verdict_lines


def made(first: str, second: str, **changes) -> Comparison:
    settings = {"difference": 0.02, "low": 0.01, "high": 0.03, "p": 0.002, "p_holm": 0.041, "shown": True,
                "exchanges": 10000, "p_error": 0.0004, "p_holm_error": 0.0021, "certain": True}  # fmt: skip
    return Comparison((first, second), **{**settings, **changes})


def test_verdicts_in_words():
    rows = (Row("a", "concat", (), (0,)), Row("b", "cogmen", (), (0,)))
    found_records = {"a": [record("concat", 0)], "b": [record("cogmen", 0)]}
    table = compute_table(TablePreset(Path("made.yaml"), "Made", "demo", (), rows), found_records)
    names = ("plain", "graph | window", "x", "y")
    lines = tuple(replace(table.lines[0], row=replace(table.lines[0].row, name=name)) for name in names)
    pairs = [("plain", "x", -0.03), ("plain", "y", -0.04), ("graph | window", "plain", 0.02), ("y", "x", 0.05)]
    shown = [made(one, other, difference=value) for one, other, value in pairs]
    hidden = made("graph | window", "x", shown=False, certain=False, low=-0.2, high=0.9)
    unsure = made("graph | window", "y", difference=-0.01, certain=False)
    found = verdict_lines(replace(table, lines=lines, comparisons=(*shown, hidden, unsure)))
    assert found == [
        "Of 6 differences 5 are shown; the median width of an interval is 2.00:",
        "",
        "- `plain` is below `graph | window` (2.00), `x` (3.00), `y` (4.00).",
        "- `y` is above `graph | window` (1.00, not certain), `x` (5.00).",
        "",
        "Not shown, but not certain: `graph | window` and `x`.",
    ]


def test_a_row_below_all_others_needs_no_list():
    rows = (Row("a", "concat", (), (0,)),)
    table = compute_table(TablePreset(Path("made.yaml"), "Made", "demo", (), rows), {"a": [record("concat", 0)]})
    names = ("a", "b", "c", "d", "e")
    lines = tuple(replace(table.lines[0], row=replace(table.lines[0].row, name=name)) for name in names)
    pairs = [made("a", name, difference=-0.01 * number) for number, name in enumerate(names[1:], start=1)]
    text = verdict_lines(replace(table, lines=lines, comparisons=tuple(pairs)))
    assert text[-1] == "- `a` is below all other compared rows, by 1.00 to 4.00."
    unsure = replace(pairs[0], certain=False)
    text = verdict_lines(replace(table, lines=lines, comparisons=(unsure, *pairs[1:])))
    assert text[-1] == "- `a` is below `b` (1.00, not certain), `c` (2.00), `d` (3.00), `e` (4.00)."


def test_a_pair_without_an_interval_says_so():
    assert verdict(made("a", "b"), one_seed=False) == "yes"
    assert verdict(made("a", "b", low=math.nan, high=math.nan, shown=False), one_seed=False) == "no interval"
    assert verdict(made("a", "b"), one_seed=True) == "one seed"
