"""Figure of a conflict report, drawn as those of :mod:`ercfusion.plots.figures`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion.plots.canvas import COLOURS, GREY, MARKERS, SKY, canvas
from ercfusion.records.conflicts import FUSED, NONE, subset_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_conflicts(report: Mapping[str, Any], path: str | Path | None, title: str) -> Figure:
    """Accuracy by agreement of the experts (left), and which of two experts the fused run follows (right).

    Args:
        report: From :func:`ercfusion.records.conflicts.conflict_report`.
        path: File to write; None writes none.
        title: Title of the figure.
    """
    subsets = [one for one in report["subsets"] if one["utterances"]]
    pairs = [one for one in report["pairs"] if one["utterances"]]
    experts = [name for name in report["runs"] if name != FUSED]
    colours = {name: COLOURS[(number + 1) % len(COLOURS)] for number, name in enumerate(experts)} | {NONE: GREY}
    height = 0.45 * max(len(subsets), 5) + 2.2
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.7 / height), "ncols": 4, "fontsize": 9}
    with canvas(path, (12.5, height), title, report["synthetic"]) as figure:
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        for place, one in enumerate(subsets):
            share = one["accuracy"][FUSED]
            value = 100 * share["value"]
            low, high = (100 * end for end in share["interval"] or (share["value"], share["value"]))
            left.barh(place, value, height=0.62, color=SKY, label=FUSED if not place else "_")
            left.plot([low, high], [place, place], color="black", linewidth=1)
            if one["right"] is not None:
                continue  # the experts are all right or all wrong
            for number, name in enumerate(experts):
                left.plot(
                    100 * one["accuracy"][name]["value"],
                    place + 0.2 * (number - (len(experts) - 1) / 2),  # equal values next to each other
                    marker=MARKERS[number % len(MARKERS)],
                    color=colours[name],
                    linestyle="none",
                    clip_on=False,
                    label=name if not place else "_",
                )
        names = [f"{subset_name(one)}  (n = {one['utterances']:,})" for one in subsets]
        left.set_yticks(range(len(subsets)), names)
        left.set(xlim=(0, 100), ylim=(len(subsets) - 0.5, -0.5), xlabel="Accuracy, percent (line: 95 % interval)")
        left.legend(**below)
        neither = any(one["follows"][NONE]["value"] for one in pairs)
        for name, colour in colours.items():
            if name == NONE and not neither:
                continue  # with two classes, one of two experts that differ has the label
            right.barh(0, 0, color=colour, label="neither" if name == NONE else name)
        for place, one in enumerate(pairs):
            start = 0.0
            for name in (*one["experts"], NONE):
                value = 100 * one["follows"][name]["value"]
                right.barh(place, value, left=start, height=0.62, color=colours[name])
                if value >= 8:
                    right.text(start + value / 2, place, f"{value:.0f}", ha="center", va="center", color="white")
                start += value
        names = [f"{' or '.join(one['experts'])}  (n = {one['utterances']:,})" for one in pairs]
        right.set_yticks(range(len(pairs)), names)
        right.set(xlim=(0, 100), xlabel="Label of the fused run if two experts differ, percent")
        right.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
        right.legend(**below)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
    return figure
