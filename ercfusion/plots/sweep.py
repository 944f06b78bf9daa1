"""Plots of a sweep, drawn as those of :mod:`ercfusion.plots.figures`.

A *point* is one trial: ``trial`` (its number), ``state`` (``complete``, ``pruned`` or ``fail``), ``score`` (or None)
and its settings by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ercfusion.plots.canvas import BLUE, GREY, SKY, VERMILION, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = Mapping[str, Any]

# The axis ends this many interquartile ranges below the median, so that a diverged trial does not compress the others.
_REACH = 3.0


def plot_search(
    points: Sequence[Point],
    path: str | Path,
    label: str,
    *,
    maximize: bool = True,
    title: str = "Sweep",
    synthetic: bool = False,
) -> Path:
    """Score of every trial by its number, and the best so far.

    Args:
        points: At least one of them complete.
        path: File to write.
        label: Of the scores.
        maximize: Whether a higher score is better.
        title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.

    Raises:
        ValueError: no trial is complete.
    """
    from matplotlib.ticker import MaxNLocator

    complete = _of(points, "complete")
    if not complete:
        raise ValueError("no trial is complete: nothing to draw. Run more trials.")
    low, high, outside = _limits(points, maximize)
    with canvas(path, (9.0, 5.0), title, synthetic) as figure:
        axes = figure.add_subplot()
        best = (np.maximum if maximize else np.minimum).accumulate([point["score"] for point in complete])
        numbers = [point["trial"] for point in complete]
        last = max(point["trial"] for point in points)
        line = axes.step(
            [*numbers, last], [*best, best[-1]], where="post", color=BLUE, linewidth=1.5, label="best so far"
        )
        handles = [*line, *_marks(axes, points, "trial")]
        first = complete[0] if complete[0]["trial"] == 0 else None
        if first is not None:
            handles.append(
                axes.axhline(first["score"], color="black", linewidth=1, linestyle="--", label="first settings")
            )
        failed = _of(points, "fail", scored=False)
        edge = low if maximize else high
        if failed:
            (mark,) = axes.plot(
                [point["trial"] for point in failed],
                [edge] * len(failed),
                linestyle="none",
                marker="X",
                markersize=7,
                color=VERMILION,
                clip_on=False,
                label="failed (no score shown)",
            )
            handles.append(mark)
        axes.set(xlabel="Trial", ylabel=label, ylim=(low, high))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if outside:
            worse = "below" if maximize else "above"
            axes.set_xlabel(f"Trial ({outside} {worse} the shown range)")
        axes.grid(alpha=0.25)
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=9)
    return Path(path)


def plot_settings(
    points: Sequence[Point],
    defaults: Mapping[str, Any],
    path: str | Path,
    label: str,
    best: int,
    *,
    log: Collection[str] = (),
    title: str = "Sweep",
    synthetic: bool = False,
) -> Path:
    """One panel per setting: score of every trial against the setting's value.

    Args:
        points: Trials.
        defaults: The settings to draw, each with its value outside the sweep (a dashed line).
        path, label, title, synthetic: As for :func:`plot_search`.
        best: Number of the best trial, marked with a star.
        log: Settings on a logarithmic axis.
    """
    names = list(defaults)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    scored = [point for point in points if point["score"] is not None]
    low, high, _ = _limits(points, _maximized(points, best))
    with canvas(path, (max(6.5, 3.1 * columns), 2.7 * rows + 0.9), title, synthetic) as figure:
        handles: list[Any] = []
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            texts = _categories(name, scored, defaults[name])
            # Only categories are jittered: a number next to its tick would be read as another number.
            jittered = texts is not None and not _numbers([defaults[name], *(point[name] for point in scored)])
            for point in scored:
                at = texts.index(_text(point[name])) if texts is not None else point[name]
                pruned = point["state"] != "complete"
                axes.plot(
                    at + (_jitter(point["trial"]) if jittered else 0.0),
                    np.clip(point["score"], low, high),
                    marker="o",
                    markersize=4.5 if pruned else 5.5,
                    fillstyle="none" if pruned else "full",
                    color=GREY if pruned else SKY,
                    linestyle="none",
                    zorder=2 if pruned else 3,
                )
            chosen = next(point for point in points if point["trial"] == best)
            at = texts.index(_text(chosen[name])) if texts is not None else chosen[name]
            at += _jitter(best) if jittered else 0.0
            (star,) = axes.plot(at, chosen["score"], marker="*", markersize=14, color=VERMILION, zorder=5, ls="none")
            start = texts.index(_text(defaults[name])) if texts is not None else defaults[name]
            line = axes.axvline(start, color="black", linewidth=1, linestyle="--", zorder=1)
            if texts is not None:
                axes.set_xticks(range(len(texts)), texts)
                axes.set_xlim(-0.5, len(texts) - 0.5)
            elif name in log and len({point[name] for point in scored}) > 1:
                _logarithmic(axes)
            axes.set(xlabel=name, ylim=(low, high), ylabel=label if place % columns == 0 else "")
            if place % columns:
                axes.tick_params(labelleft=False)
            axes.grid(alpha=0.25)
            handles = [star, line]
        figure.legend(
            handles=[*handles, *_legend_marks()],
            labels=["best", "first settings", "complete", "pruned"],
            loc="outside lower center",
            ncols=4,
            fontsize=9,
        )
    return Path(path)


def plot_importance(
    importance: Mapping[str, float], path: str | Path, *, complete: int, title: str = "Sweep", synthetic: bool = False
) -> Path:
    """Influence of each setting on being among the best trials, as bars.

    Args:
        importance: Shares by setting.
        path, title, synthetic: As for :func:`plot_search`.
        complete: Number of complete trials behind them.

    Raises:
        ValueError: there are none.
    """
    if not importance:
        raise ValueError("there are no importances to draw. Run more trials.")
    ranked = sorted(importance.items(), key=lambda item: -item[1])
    note = f"importance for being among the best, from {complete} complete trials: a rough estimate"
    with canvas(path, (8.0, 1.9 + 0.36 * len(ranked)), title, synthetic, note) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(ranked))
        axes.barh(places, [100 * share for _, share in ranked], height=0.62, color=SKY)
        for place, (_, share) in enumerate(ranked):
            axes.annotate(f"{100 * share:.0f}", (100 * share, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, [name for name, _ in ranked])
        axes.set(ylim=(len(ranked) - 0.5, -0.5), xlabel="Percent", xlim=(0, 108 * ranked[0][1] or 1))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25)
    return Path(path)


def _of(points: Sequence[Point], state: str, *, scored: bool = True) -> list[Point]:
    return [point for point in points if point["state"] == state and (point["score"] is not None or not scored)]


def _maximized(points: Sequence[Point], best: int) -> bool:
    """Whether higher is better, judged from the best trial."""
    complete = [point["score"] for point in _of(points, "complete")]
    score = next(point["score"] for point in points if point["trial"] == best)
    return bool(2 * score >= max(complete) + min(complete))


def _limits(points: Sequence[Point], maximize: bool) -> tuple[float, float, int]:
    """Ends of the score axis, and number of trials beyond."""
    scores = np.array([point["score"] for point in points if point["score"] is not None])
    first, middle, third = np.percentile(scores, [25, 50, 75])
    reach = _REACH * max(third - first, 1e-4)
    low, high = float(scores.min()), float(scores.max())
    if maximize:
        low = max(low, float(middle - reach))
    else:
        high = min(high, float(middle + reach))
    outside = int(((scores < low) | (scores > high)).sum())
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin, outside


def _marks(axes: Axes, points: Sequence[Point], key: str) -> list[Any]:
    handles = []
    for state, colour, fill, label in (("complete", SKY, "full", "complete"), ("pruned", GREY, "none", "pruned")):
        some = _of(points, state)
        if some:
            handles += axes.plot(
                [point[key] for point in some],
                [point["score"] for point in some],
                linestyle="none",
                marker="o",
                markersize=5,
                fillstyle=fill,  # type: ignore[arg-type]
                color=colour,
                label=label,
            )
    return handles


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with few, plain ticks for narrow panels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 3.0) if high > 20 * low else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend_marks() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="none", marker="o", color=SKY),
        Line2D([], [], linestyle="none", marker="o", color=GREY, fillstyle="none"),
    ]


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _categories(name: str, points: Sequence[Point], default: Any) -> list[str] | None:
    """Categories of the axis; None for an axis of numbers. Few different whole numbers are categories too."""
    values = [default, *(point[name] for point in points)]
    if _numbers(values):
        distinct = sorted(set(values))
        if len(distinct) > 4 or any(isinstance(value, float) for value in distinct):
            return None
        return [_text(value) for value in distinct]
    return list(dict.fromkeys(sorted(map(_text, values))))


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _jitter(trial: int) -> float:
    """Horizontal offset of a trial, so that equal values do not hide each other."""
    return 0.5 * ((trial * 0.6180339887) % 1.0) - 0.25
