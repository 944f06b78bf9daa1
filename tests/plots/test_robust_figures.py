"""Figures of scores with missing modalities."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_records import robust_record

from ercfusion.plots.robustness import MOST_LINES, panels_of, plot_robustness, robustness_picture
from ercfusion.records.groups import Group
from ercfusion.tables.robustness import RobustTable, compute_robustness


def compared(names: dict[str, str]) -> RobustTable:
    """Groups by name, each with its model."""
    groups = [
        Group(name, tuple(robust_record(model, seed, 0.3 + 0.1 * place) for seed in range(2)))
        for place, (name, model) in enumerate(names.items())
    ]
    return compute_robustness(groups, pairs=[])


def covers_nothing(legend, axes) -> bool:
    """Whether a legend is below a panel and its labels."""
    return legend.get_window_extent().y1 < axes.xaxis.get_tightbbox().y0


def test_few_groups_share_a_curve_and_the_patterns(tmp_path: Path) -> None:
    table = compared({"a": "concat", "b": "cogmen"})
    curve, patterns = panels_of(table)
    assert curve.axis == "Missing rate (law rate)"
    assert [one.name for one in curve.curves] == ["a", "b"]
    assert curve.curves[0].places == (0.0, 0.4, 0.5)
    assert patterns.labels == ("text", "audio", "text+audio")
    assert len(patterns.best) == 3
    figure = plot_robustness(table, tmp_path / "robustness.png", synthetic=True)
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylabel() == "Test weighted F1"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "exact posterior"]
    assert all(covers_nothing(legend, axes) for axes in figure.axes)


@pytest.mark.slow
def test_many_groups_have_panels_by_model() -> None:
    forms = [f"form {number}" for number in range(4)]
    table = compared({f"{model}, {form}": model for model in ("concat", "cogmen") for form in forms})
    assert len(table.lines) > MOST_LINES
    panels = panels_of(table)
    assert [panel.title for panel in panels] == ["concat", "concat", "cogmen", "cogmen"]
    assert [curve.name for curve in panels[0].curves] == forms
    panes = plot_robustness(table, None).axes
    assert len(panes) == 4
    legends = [(axes.get_legend(), axes) for axes in panes if axes.get_legend() is not None]
    assert len(legends) == 2
    assert all(covers_nothing(legend, axes) for legend, axes in legends)


def test_the_page_has_the_same_panels() -> None:
    table = compared({"a": "concat", "b & c": "cogmen"})
    picture = robustness_picture(table)
    assert picture.count("<svg") == picture.count("</svg>") == 2
    assert "b &amp; c" in picture
    assert not re.search(r"\bnan\b|\binf\b", picture)
