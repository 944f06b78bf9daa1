"""Figures of scores with missing modalities: over the rates, and by pattern, with bands of the intervals.

Up to six groups of runs share their panels. More are drawn one model per pair of panels, so that the forms of a model
(its variants) can be compared. All panels have the same scale of the score.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ercfusion.data.corpus import EXACT_LEVEL
from ercfusion.plots.canvas import COLOURS, GREY, MARKERS, canvas
from ercfusion.plots.scales import ticks
from ercfusion.tables.cells import in_percent, metric_name
from ercfusion.tables.robustness import Condition, RobustLine, RobustTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 6
"""More groups get a pair of panels per model."""
_MARGIN = 0.05


@dataclass(frozen=True)
class Curve:
    """One group of runs in a panel: name, and per point place, mean and ends of the interval (None without one)."""

    name: str
    places: tuple[float, ...]
    means: tuple[float, ...]
    bands: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Panel:
    """Axes of the figure.

    Args:
        title: Above it.
        axis: Name of the horizontal axis.
        labels: Names of the places 0, 1, ... (patterns); empty for numbers (rates).
        curves: To draw.
        best: Scores of the exact posterior by place.
    """

    title: str
    axis: str
    labels: tuple[str, ...]
    curves: tuple[Curve, ...]
    best: tuple[tuple[float, float], ...]


def panels_of(table: RobustTable) -> list[Panel]:
    """The panels, in rows: every curve, then the patterns, for all groups or for each model."""
    scale = 100 if in_percent(table.metric) else 1
    parts: list[tuple[str, list[Condition]]] = [(name, table.curve(name)) for name in table.curves]
    if patterns := [one for one in table.patterns if len(one.laws) == 1]:
        parts.append(("", patterns))
    panels = []
    for title, lines in _groups(table):
        for curve, conditions in parts:
            places = [one.point if curve and one.point is not None else place for place, one in enumerate(conditions)]
            curves = [_curve(line, title, conditions, places, scale) for line in lines]
            best = [
                (place, scale * table.reachable[one.name])
                for place, one in zip(places, conditions, strict=True)
                if one.name in table.reachable
            ]
            labels = () if curve else tuple(one.short for one in conditions)
            axis = f"Missing rate (law {curve})" if curve else "Modalities present"
            panels.append(Panel(title, axis, labels, tuple(curves), tuple(best)))
    return panels


def _groups(table: RobustTable) -> list[tuple[str, list[RobustLine]]]:
    if len(table.lines) <= MOST_LINES:
        return [("", list(table.lines))]
    models: dict[str, list[RobustLine]] = {}
    for line in table.lines:
        models.setdefault(line.model, []).append(line)
    return list(models.items())


def _curve(line: RobustLine, title: str, conditions: list[Condition], places: list[float], scale: float) -> Curve:
    scores = [line.scores[one.name] for one in conditions]
    bands = [None if score.interval is None else tuple(scale * end for end in score.interval) for score in scores]
    name = line.name.removeprefix(f"{title}, ") if title else line.name
    return Curve(name, tuple(places), tuple(scale * score.mean for score in scores), tuple(bands))  # type: ignore[arg-type]


def _range(panels: list[Panel]) -> tuple[float, float]:
    """Ends of the axis of all panels."""
    values = [value for panel in panels for curve in panel.curves for value in curve.means if value == value]
    values += [end for panel in panels for curve in panel.curves for band in curve.bands for end in band or ()]
    values += [value for panel in panels for _, value in panel.best]
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low) or 0.01
    return low - margin, high + margin


def plot_robustness(
    table: RobustTable, path: str | Path | None, title: str = "Missing modalities", *, synthetic: bool = False
) -> Figure:
    """Mean scores over the rates and by pattern, bands of the 95 % intervals, and the exact posterior if it is known.

    Args:
        table: From :func:`ercfusion.tables.robustness.compute_robustness`.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.
    """
    panels = panels_of(table)
    several = len(table.lines) > MOST_LINES
    per_group = len(panels) // len(_groups(table))
    columns = 2 * per_group if several and per_group < 3 else per_group
    rows = -(-len(panels) // columns)
    low, high = _range(panels)
    width, height = (3.6, 3.1) if several else (6.2, 4.8)
    with canvas(path, (width * columns, height * rows + 0.6), title, synthetic) as figure:
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            _draw(axes, panel, small=several)
            axes.set(ylim=(low, high), xlabel=panel.axis, title=panel.title)
            if place % columns == 0:
                axes.set_ylabel(f"Test {metric_name(table.metric)}")
            if several and (not panel.labels or not table.curves):
                # Below the panel, so that it covers no curve.
                lines = max((label.count("+") + 1 for label in panel.labels), default=1)
                below = -(0.5 + 0.14 * lines) / height
                axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, below), ncols=2)
        if not several:
            handles, names = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, names, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _draw(axes: Axes, panel: Panel, small: bool) -> None:
    count = len(panel.curves)
    for number, curve in enumerate(panel.curves):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        if panel.labels:  # groups next to each other, so that no interval covers another
            places = [place + 0.6 * ((number + 0.5) / count - 0.5) for place in curve.places]
            for place, band in zip(places, curve.bands, strict=True):
                if band is not None:
                    axes.plot([place, place], band, color=colour, linewidth=1.6, alpha=0.6)
            axes.plot(
                places, curve.means, linestyle="none", marker=marker, color=colour, markersize=5, label=curve.name
            )
            continue
        axes.plot(curve.places, curve.means, marker=marker, color=colour, markersize=4, label=curve.name)
        known = [(place, *band) for place, band in zip(curve.places, curve.bands, strict=True) if band is not None]
        if known:
            at, lows, highs = zip(*known, strict=True)
            axes.fill_between(at, lows, highs, color=colour, alpha=0.15, linewidth=0)
    if panel.labels:
        for place, value in panel.best:
            label = EXACT_LEVEL if place == panel.best[0][0] else "_"
            axes.plot(
                [place - 0.4, place + 0.4], [value, value], color="black", linestyle="--", linewidth=1.2, label=label
            )
        axes.set_xticks(
            range(len(panel.labels)),
            [label.replace("+", "\n+ ") for label in panel.labels],
            fontsize=6.5 if small else 8,
        )
        axes.grid(axis="y", alpha=0.25)
        for edge in range(len(panel.labels) - 1):
            axes.axvline(edge + 0.5, color=GREY, linewidth=0.4, alpha=0.5)
        return
    if panel.best:
        at, values = zip(*panel.best, strict=True)
        axes.plot(at, values, color="black", linestyle="--", linewidth=1.2, label=EXACT_LEVEL)
    axes.grid(alpha=0.25)


# The page


_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 420.0, 250.0, 46.0, 26.0, 62.0


def robustness_picture(table: RobustTable) -> str:
    """The panels of :func:`plot_robustness` as SVG pictures, with a legend each."""
    panels = panels_of(table)
    span = _range(panels)
    pictures = [_picture(panel, span, f"test {metric_name(table.metric)}") for panel in panels]
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:.5rem">\n' + "\n".join(pictures) + "\n</div>\n"
        '<p class="note">Lines and dots: means over the seeds; bands and vertical lines: 95 % intervals.</p>'
    )


def _picture(panel: Panel, span: tuple[float, float], score: str) -> str:
    low, high = span
    bottom = _TOP + _HIGH
    first, last = _ends(panel)
    names = [curve.name for curve in panel.curves] + [EXACT_LEVEL] * bool(panel.best)

    def x(place: float) -> str:
        return f"{_LEFT + _WIDE * (place - first) / (last - first):.0f}"

    def y(value: float) -> str:
        return f"{_TOP + _HIGH * (high - value) / (high - low):.0f}"

    marks = ticks(low, high)
    total = bottom + _BOTTOM + 18 * len(names)
    parts = [
        f'<svg role="img" viewBox="0 0 {_LEFT + _WIDE + 14:.0f} {total:.0f}" width="{_LEFT + _WIDE + 14:.0f}" '
        f'style="max-width:100%"><title>{html.escape(f"{panel.title} {panel.axis}: {score}".strip())}</title>',
        f'<text x="{_LEFT:.0f}" y="14">{html.escape(panel.title or score)}</text>',
        f'<path d="{"".join(f"M{_LEFT:.0f} {y(mark)}h{_WIDE:.0f}" for mark in marks)}" stroke="var(--line)"/>',
        '<g class="soft" text-anchor="end">',
        *(_text(_LEFT - 6, float(y(mark)) + 4, f"{mark:g}") for mark in marks),
        "</g>",
        '<g class="soft" text-anchor="middle">',
    ]
    if panel.labels:
        for column, label in enumerate(panel.labels):
            words = label.split("+")
            parts += [_text(float(x(column)), bottom + 15 + 14 * number, word) for number, word in enumerate(words)]
    else:
        parts += [_text(float(x(place)), bottom + 18, f"{place:g}") for place in panel.curves[0].places]
        parts.append(_text(_LEFT + _WIDE / 2, bottom + 38, panel.axis))
    parts.append("</g>")
    for number, curve in enumerate(panel.curves):
        parts += _svg_curve(panel, curve, number, x, y)
    if panel.best:
        steps = [f"M{x(place - 0.4)} {y(value)}H{x(place + 0.4)}" for place, value in panel.best]
        if not panel.labels:
            steps = ["M" + "L".join(f"{x(place)} {y(value)}" for place, value in panel.best)]
        parts.append(f'<path d="{"".join(steps)}" fill="none" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)] if number < len(panel.curves) else "var(--ink)"
        dash = "" if number < len(panel.curves) else ' stroke-dasharray="4 3"'
        level = bottom + _BOTTOM + 18 * number
        parts.append(f'<path d="M{_LEFT:.0f} {level - 4:.0f}h22" stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(_text(_LEFT + 28, level, name))
    return "\n".join([*parts, "</svg>"])


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{html.escape(words)}</text>'


def _ends(panel: Panel) -> tuple[float, float]:
    """Ends of the horizontal axis."""
    places = panel.curves[0].places
    return (-0.5, len(panel.labels) - 0.5) if panel.labels else (places[0], max(places[-1], places[0] + 1e-9))


def _svg_curve(
    panel: Panel, curve: Curve, number: int, x: Callable[[float], str], y: Callable[[float], str]
) -> list[str]:
    """The shapes of one group: a line with a band, or dots with intervals; round ends of no length are dots."""
    colour = COLOURS[number % len(COLOURS)]
    shift = 0.6 * ((number + 0.5) / len(panel.curves) - 0.5) if panel.labels else 0.0
    known = [
        (x(place + shift), band) for place, band in zip(curve.places, curve.bands, strict=True) if band is not None
    ]
    means = [
        f"{x(place + shift)} {y(mean)}" for place, mean in zip(curve.places, curve.means, strict=True) if mean == mean
    ]
    if panel.labels:
        lines = "".join(f"M{at} {y(high)}V{y(low)}" for at, (low, high) in known)
        dots = "".join(f"M{mean}h0" for mean in means)
        return [
            f'<path d="{lines}" stroke="{colour}" stroke-width="2" stroke-opacity=".6"/>',
            f'<path d="{dots}" stroke="{colour}" stroke-width="8" stroke-linecap="round"/>',
        ]
    outline = [f"{at} {y(high)}" for at, (_, high) in known] + [f"{at} {y(low)}" for at, (low, _) in reversed(known)]
    return [
        f'<path d="M{"L".join(outline)}Z" fill="{colour}" fill-opacity=".13"/>' if outline else "",
        f'<path d="M{"L".join(means)}" fill="none" stroke="{colour}" stroke-width="2"/>' if means else "",
    ]
