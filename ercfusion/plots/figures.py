"""Figures with the same bytes for the same numbers, legible to colour-blind readers.

They use matplotlib's object-oriented interface, without window system, global state or user settings. The ending of
``path`` chooses the format (``.png``, ``.svg`` or ``.pdf``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Predictions
from ercfusion.metrics.calibration import ECE_BINS, calibration_bins, expected_calibration_error
from ercfusion.metrics.classification import confusion_matrix, per_class
from ercfusion.metrics.inputs import labelled
from ercfusion.metrics.registry import scores
from ercfusion.plots.canvas import BLUE, COLOURS, GREY, MARKERS, SKY, VERMILION, canvas
from ercfusion.plots.label_figures import plot_cooccurrence, plot_label_reliability, plot_thresholds, plot_vote_entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_title(corpus: str, model: str, split: str) -> str:
    """Title with model, corpus (or protocol) and split."""
    return f"{model} on {corpus}, {split} split"


def plot_training_curves(
    history: Mapping[str, Sequence[float | None]] | Sequence[Mapping[str, Any]],
    path: str | Path | None,
    best_epoch: int | None = None,
    *,
    title: str = "Training",
    synthetic: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Losses (left) and scores (right) by epoch, with a line at the chosen epoch.

    Args:
        history: Values by name (``{"train/loss": [..], "dev/weighted_f1": [..]}``), or one mapping per epoch. ``epoch``
            holds the epochs' numbers, by default from 0. A name with ``loss`` in its last part is a loss. A missing,
            ``None`` or infinite value gives a gap.
        path: File to write; None writes none.
        best_epoch: Number of the chosen epoch.
        title: See :func:`plot_title`.
        synthetic: Whether the corpus is generated; the title says so.
        levels: Reference scores by name, each a horizontal line.

    Raises:
        ValueError: the history is empty.
    """
    from matplotlib.ticker import MaxNLocator

    epochs, series = _series(history)
    losses = {name: values for name, values in series.items() if "loss" in name.rpartition("/")[2]}
    groups = [("Loss", losses), ("Score", {name: values for name, values in series.items() if name not in losses})]
    groups = [(label, group) for label, group in groups if group]
    if not groups or not len(epochs):
        raise ValueError("the training history is empty: nothing to draw. Train at least one epoch.")
    with canvas(path, (11.0, 4.5), title, synthetic) as figure:
        for place, (label, group) in enumerate(groups):
            axes = figure.add_subplot(1, len(groups), place + 1)
            for number, (name, values) in enumerate(group.items()):
                axes.plot(
                    epochs,
                    values,
                    label=name,
                    color=COLOURS[number % len(COLOURS)],
                    linestyle=("-", "--", ":")[number // len(COLOURS) % 3],
                    marker=MARKERS[number % len(MARKERS)] if len(epochs) <= 30 else None,
                    markersize=4,
                )
            for number, (name, value) in enumerate((levels or {}).items() if label == "Score" else ()):
                axes.axhline(value, color=GREY, linewidth=1, linestyle=(":", "-.")[number % 2], zorder=1, label=name)
            if best_epoch is not None:
                chosen = f"chosen: epoch {best_epoch}"
                axes.axvline(best_epoch, color="black", linewidth=1, linestyle="--", zorder=1, label=chosen)
            axes.set(xlabel="Epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(epochs) == 1:  # else the axis has fractions of epochs
                axes.set_xticks(epochs)
            axes.grid(alpha=0.25)
            # Below the axes: inside, it would cover a curve.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
    return figure


def plot_confusion(
    matrix: NDArray[Any], labels: Sequence[str], path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """The confusion matrix as counts, and as percentages of each row for the rare classes.

    Args:
        matrix: (C, C) counts, rows the truth, columns the prediction.
        labels: C names in the matrix's order.
        path, title, synthetic: As for :func:`plot_training_curves`.

    Raises:
        ValueError: another number of labels.
    """
    from matplotlib.colors import PowerNorm

    matrix = np.asarray(matrix)
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(f"the confusion matrix is {matrix.shape}, with {len(labels)} labels. Give a label per row.")
    totals = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.where(totals == 0, 1, totals)
    percent = [[f"{100 * number:.0f}" if total else "–" for number in row] for row, total in zip(share, totals[:, 0])]
    # A square-root scale separates rare classes next to a large one; the cells have the counts.
    panels = (
        (
            "Utterances",
            matrix,
            [[f"{number:g}" for number in row] for row in matrix],
            PowerNorm(0.5, 0, matrix.max() or 1),
        ),
        ("Percent of the true label", share, percent, PowerNorm(1, 0, 1)),
    )
    size = 11 if len(labels) <= 5 else 9.5 if len(labels) <= 7 else 8
    long = max(len(label) for label in labels) * len(labels) > 30
    with canvas(path, (12.5, 6.0), title, synthetic) as figure:
        for place, (name, values, texts, norm) in enumerate(panels):
            axes = figure.add_subplot(1, 2, place + 1)
            axes.imshow(values, cmap="Blues", norm=norm)
            axes.spines[:].set_visible(False)
            axes.set_xticks(range(len(labels)), labels)
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(length=0)
            for edge in np.arange(0.5, len(labels) - 1):  # lines between the cells
                axes.axhline(edge, color="white", linewidth=1)
                axes.axvline(edge, color="white", linewidth=1)
            if long:
                axes.tick_params(axis="x", rotation=40)
                for tick in axes.get_xticklabels():
                    tick.set(horizontalalignment="right", rotation_mode="anchor")
            axes.set(xlabel="Predicted", ylabel="True", title=name)
            for row, column in np.ndindex(matrix.shape):
                dark = norm(values[row, column]) > 0.55
                axes.text(
                    column,
                    row,
                    texts[row][column],
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if dark else "black",
                    fontweight="bold" if row == column else "normal",
                )
    return figure


def plot_class_f1(
    per_class: Mapping[str, Mapping[str, float]], path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """F1 of every label as a bar, with marks for precision and recall and the support next to the name.

    Args:
        per_class: Result of :func:`ercfusion.metrics.classification.per_class`; its order is used.
        path, title, synthetic: As for :func:`plot_training_curves`.
    """
    names = list(per_class)
    place = np.arange(len(names))
    f1, precision, recall = ([100 * per_class[name][key] for name in names] for key in ("f1", "precision", "recall"))
    marks: dict[str, Any] = {"linestyle": "none", "clip_on": False, "zorder": 3}
    with canvas(path, (8.0, 5.0), title, synthetic) as figure:
        axes = figure.add_subplot()
        bars = axes.barh(place, f1, height=0.62, color=SKY, label="F1")
        diamonds = axes.plot(precision, place, marker="D", markersize=5, color=VERMILION, label="precision", **marks)
        rings = axes.plot(
            recall, place, marker="o", markersize=7, fillstyle="none", color=BLUE, label="recall", **marks
        )
        # In their own column: at the ends of the bars they would cover the marks.
        for position, number in enumerate(f1):
            axes.text(103, position, f"{number:.1f}", va="center", ha="left")
        axes.text(1.03, 1.01, "F1", va="bottom", ha="left", color=GREY, transform=axes.transAxes)
        axes.set_yticks(place, [f"{name}  (n = {per_class[name]['support']:g})" for name in names])
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="Percent (n: true utterances)")
        axes.tick_params(axis="y", length=0, pad=8)
        axes.grid(axis="x", alpha=0.25)
        axes.legend(handles=[bars, *diamonds, *rings], loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    return figure


def plot_reliability(
    predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """Accuracy against confidence in bins, number of utterances per bin, and calibration error.

    Args:
        predictions: Of a single-label or distribution task.
        path, title, synthetic: As for :func:`plot_training_curves`.

    Raises:
        ValueError: no utterance has a single right label.
    """
    rows = labelled(predictions)
    if rows is None:
        raise ValueError("no utterance has a single right label: nothing to draw. Choose a labelled split.")
    count, accuracy, confidence = calibration_bins(rows)
    filled = count > 0
    edges = np.linspace(0, 1, ECE_BINS + 1)
    error = f"expected calibration error {100 * expected_calibration_error(rows):.1f} % ({ECE_BINS} bins)"
    with canvas(path, (6.5, 6.5), title, synthetic, error) as figure:
        grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
        upper = figure.add_subplot(grid[0])
        lower = figure.add_subplot(grid[1], sharex=upper)
        width = 1 / ECE_BINS
        upper.bar(
            edges[:-1][filled], accuracy[filled], width, align="edge", color=SKY, edgecolor="white", label="accuracy"
        )
        upper.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfect calibration")
        upper.plot(
            confidence[filled],
            accuracy[filled],
            linestyle="none",
            marker="o",
            color=BLUE,
            label="at the mean confidence",
        )
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="Accuracy")
        upper.tick_params(labelbottom=False)
        upper.legend(loc="upper left")
        lower.bar(edges[:-1], count, width, align="edge", color=GREY, edgecolor="white")
        lower.set(xlabel="Confidence (largest probability)", ylabel="Utterances")
        for axes in (upper, lower):
            axes.grid(alpha=0.25)
    return figure


def plot_scatter(predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False) -> Figure:
    """Predicted against true numbers of a regression task, one panel per dimension, with CCC and mean absolute error,
    and the coverage of 90 % intervals if the head predicts standard deviations.

    Args:
        predictions: Of a regression task.
        path, title, synthetic: As for :func:`plot_training_curves`.

    Raises:
        ValueError: not a regression task.
    """
    from matplotlib.ticker import MaxNLocator

    task, valid = predictions.task, np.asarray(predictions.valid, dtype=bool)
    if task.schema is not None:
        raise ValueError(f"task {task.name!r} is {task.kind}: no numbers to draw. Choose a regression task.")
    result = scores(predictions)
    low, high = task.low, task.high
    margin = 0.04 * (high - low)
    columns = min(task.size, 3)
    rows = math.ceil(task.size / columns)
    # Without room for a second line of titles, the lower edge would be cut.
    height = 4.6 if predictions.spread is None else 5.0
    with canvas(path, (4.0 * columns, height * rows) if columns > 1 else (6.0, 5.8), title, synthetic) as figure:
        for place, name in enumerate(task.dimensions):
            axes: Axes = figure.add_subplot(rows, columns, place + 1)
            suffix = "" if task.size == 1 else f"/{name}"
            truth, output = predictions.value[valid, place], predictions.output[valid, place]
            coverage = result.get(f"coverage90{suffix}")
            covered = "" if coverage is None else f"\n90 % intervals cover {coverage:.1%}"
            # Fainter with their number, to show density. Numbers outside the range are drawn on the frame.
            alpha = float(np.clip(10 / np.sqrt(len(truth)), 0.12, 0.9))
            shown = np.clip(output, low - margin, high + margin)
            axes.scatter(truth, shown, s=14, color=BLUE, alpha=alpha, linewidths=0, clip_on=False)
            axes.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--")
            axes.set(
                xlim=(low - margin, high + margin),
                ylim=(low - margin, high + margin),
                xlabel="True",
                ylabel="Predicted" if place % columns == 0 else "",
                title=f"{name}: CCC {result[f'ccc{suffix}']:.3f}, MAE {result[f'mae{suffix}']:.3f}{covered}",
                aspect="equal",
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            axes.grid(alpha=0.25)
    return figure


def _class_f1(part: Predictions, path: Path | None, title: str, synthetic: bool) -> Figure:
    return plot_class_f1(per_class(part), path, title, synthetic=synthetic)


def _confusion(part: Predictions, path: Path | None, title: str, synthetic: bool) -> Figure:
    return plot_confusion(confusion_matrix(part), part.task.output_names, path, title, synthetic=synthetic)


def _of_predictions(plot: Callable[..., Figure]) -> Callable[[Predictions, Path | None, str, bool], Figure]:
    return lambda part, path, title, synthetic: plot(part, path, title, synthetic=synthetic)


PICTURES: Mapping[str, Callable[[Predictions, Path | None, str, bool], Figure]] = {
    "class-f1": _class_f1,
    "confusion": _confusion,
    "cooccurrence": _of_predictions(plot_cooccurrence),
    "label-reliability": _of_predictions(plot_label_reliability),
    "reliability": _of_predictions(plot_reliability),
    "scatter": _of_predictions(plot_scatter),
    "thresholds": _of_predictions(plot_thresholds),
    "vote-entropy": _of_predictions(plot_vote_entropy),
}
"""Plots of the predictions of one split, by the last part of the file's name; a task kind lists its own."""


def _series(
    history: Mapping[str, Sequence[float | None]] | Sequence[Mapping[str, Any]],
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Epochs, and one array per name with NaN for missing values; without names that have no number."""
    if isinstance(history, Mapping):
        columns = {name: list(values) for name, values in history.items()}
    else:
        names = dict.fromkeys(name for row in history for name in row)
        columns = {name: [row.get(name) for row in history] for name in names}
    length = max((len(values) for values in columns.values()), default=0)
    arrays = {}
    for name, values in columns.items():
        numbers = [math.nan if value is None else float(value) for value in values]
        array = np.array(numbers + [math.nan] * (length - len(numbers)), dtype=np.float64)
        arrays[name] = np.where(np.isfinite(array), array, np.nan)
    epochs = arrays.pop("epoch", np.arange(length, dtype=np.float64))
    return epochs, {name: array for name, array in arrays.items() if not np.isnan(array).all()}
