"""Figures of label sets and of distributions: thresholds, co-occurrence, reliability per label, and vote entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.predictions import Predictions
from ercfusion.batch.votes import vote_entropy
from ercfusion.metrics.calibration import ECE_BINS, bin_error, label_bins
from ercfusion.metrics.distribution import divergences
from ercfusion.metrics.inputs import ROWS, Pairs
from ercfusion.metrics.labels import cuts
from ercfusion.plots.canvas import BLUE, GREEN, GREY, SKY, VERMILION, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENTROPY_BINS = 8


def plot_thresholds(
    predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """Precision, recall and F1 of every label over the threshold, with the threshold in use.

    Args:
        predictions: Of a multi-label task.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.

    Raises:
        ValueError: not a multi-label task, or no utterance is labelled.
    """
    rows = _probabilities(predictions)
    names, own = predictions.task.output_names, predictions.thresholds
    chosen = np.full(len(names), 0.5) if own is None else own
    note = "dashed line: 0.5, no threshold was chosen" if own is None else "dashed line: the threshold chosen on dev"
    with canvas(path, _size(len(names)), title, synthetic, note) as figure:
        for place, axes in _panels(figure, len(names)):
            curve = cuts(rows.output[:, place], rows.target[:, place])
            # The values of a cut hold from the next lower probability, exclusive, to its own.
            x = np.concatenate([[0.0], curve.lowest[::-1], [1.0]])
            lines = (("precision", curve.precision, VERMILION, "--"), ("recall", curve.recall, BLUE, ":"))
            for name, values, colour, style in (*lines, ("F1", curve.f1, GREEN, "-")):
                above_all = np.nan if name == "precision" else 0.0  # nothing is predicted
                y = 100 * np.concatenate([values[-1:], values[::-1], [above_all]])
                axes.step(x, y, where="pre", label=name, color=colour, linestyle=style)
            axes.axvline(chosen[place], color="black", linewidth=1, linestyle="--", zorder=1)
            number = int((curve.lowest >= chosen[place]).sum())
            f1 = 100 * curve.f1[number - 1] if number else 0.0
            result = f"n = {curve.positives}, F1 {f1:.1f} at {chosen[place]:.2f}"
            axes.set(xlim=(0, 1), ylim=(0, 102), title=f"{names[place]}\n{result}")
            _label_edges(axes, place, len(names), "Threshold", "Percent")
        _legend(figure)
    return figure


def plot_label_reliability(
    predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """Share of utterances with a label against the label's mean probability, in bins, one panel per label.

    The area of a mark grows with the number of utterances in its bin.

    Args:
        predictions: Of a multi-label task.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.

    Raises:
        ValueError: not a multi-label task, or no utterance is labelled.
    """
    rows, names = _probabilities(predictions), predictions.task.output_names
    bins = [label_bins(rows.output[:, place], rows.target[:, place]) for place in range(len(names))]
    errors = [100 * bin_error(*each) for each in bins]
    note = f"calibration error per label: {np.mean(errors):.1f} % on average ({ECE_BINS} bins)"
    with canvas(path, _size(len(names)), title, synthetic, note) as figure:
        for place, axes in _panels(figure, len(names)):
            count, share, probability = bins[place]
            filled = count > 0
            axes.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="perfect calibration")
            axes.plot(100 * probability[filled], 100 * share[filled], color=SKY, linewidth=1, zorder=2)
            axes.scatter(
                100 * probability[filled],
                100 * share[filled],
                s=12 + 150 * count[filled] / count.max(),
                color=BLUE,
                alpha=0.8,
                linewidths=0,
                zorder=3,
                clip_on=False,
                label="bin of probabilities (area: utterances)",
            )
            positives = int(rows.target[:, place].sum())
            result = f"n = {positives}, error {errors[place]:.1f} %"
            axes.set(xlim=(0, 100), ylim=(0, 100), title=f"{names[place]}\n{result}")
            _label_edges(axes, place, len(names), "Mean probability, percent", "With the label, percent")
        _legend(figure)
    return figure


def plot_cooccurrence(
    predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """Labels that occur together, in the targets and in the predictions, side by side.

    A cell has the share of the utterances with the row's label which also have the column's; the diagonal has the
    number of utterances with the label.

    Args:
        predictions: Of a multi-label task.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.

    Raises:
        ValueError: not a multi-label task, or no utterance is labelled.
    """
    rows, names = _probabilities(predictions), predictions.task.output_names
    decided = predictions.decisions()[np.asarray(predictions.valid, dtype=bool)]
    note = "percent of the utterances with the row's label that also have the column's; diagonal: number of utterances"
    wide = max(13.0, 1.4 * len(names))
    with canvas(path, (wide, 0.5 * wide), title, synthetic, note) as figure:
        for place, (name, sets) in enumerate((("Labelled", rows.target), ("Predicted", decided))):
            axes = figure.add_subplot(1, 2, place + 1)
            _draw_pairs(axes, sets, names)
            axes.set(title=f"{name}: {sets.sum(axis=1).mean():.2f} labels per utterance", xlabel="... also have")
            if not place:
                axes.set(ylabel="Of the utterances with ...")
    return figure


def plot_vote_entropy(
    predictions: Predictions, path: str | Path | None, title: str, *, synthetic: bool = False
) -> Figure:
    """Errors by disagreement: accuracy and Kullback-Leibler divergence over the entropy of the votes.

    Without votes (predictions read from a file) it is the entropy of the target distribution. Bins have equal widths.
    Accuracy is that of the utterances with one most probable label.

    Args:
        predictions: Of a distribution task.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.

    Raises:
        ValueError: not a distribution task, or no utterance is labelled.
    """
    if "distributions" not in predictions.task.rules.inputs or not predictions.valid.any():
        raise ValueError(
            f"task {predictions.task.name!r} ({predictions.task.kind}) has no labelled distributions to draw. Choose a "
            "labelled split of a distribution task."
        )
    rows: Pairs = ROWS["distributions"](predictions)
    valid = np.asarray(predictions.valid, dtype=bool)
    truth, single = (each[valid] for each in predictions.labels())
    right = predictions.decisions()[valid] == truth
    entropy, divergence = vote_entropy(_votes(predictions, rows.target)), divergences(rows)
    largest = math.log(predictions.task.size)
    bins = np.clip((entropy / largest * ENTROPY_BINS).astype(int), 0, ENTROPY_BINS - 1)
    count, decided = (np.bincount(bins[chosen], minlength=ENTROPY_BINS) for chosen in (valid[valid], single))
    at = _mean(bins, entropy, count)
    panels: tuple[tuple[str, NDArray[Any], NDArray[Any], str, str], ...] = (
        ("Accuracy, percent", 100 * _mean(bins[single], right[single], decided), decided, BLUE, "o"),
        ("KL divergence, nats", _mean(bins, divergence, count), count, VERMILION, "D"),
    )
    note = f"entropy: 0 if all votes agree, {largest:.2f} nats if all {predictions.task.size} labels have equal shares"
    with canvas(path, (7.5, 7.5), title, synthetic, note) as figure:
        grid = figure.add_gridspec(3, 1, height_ratios=(2, 2, 1))
        first: Axes | None = None
        for place, (name, values, number, colour, marker) in enumerate(panels):
            axes = figure.add_subplot(grid[place], sharex=first)
            first = first or axes
            drawn = number > 0
            axes.plot(at[drawn], values[drawn], color=colour, marker=marker, clip_on=False)
            axes.set(ylabel=name, ylim=(0, 102) if not place else (0, None))
            axes.tick_params(labelbottom=False)
            axes.grid(alpha=0.25)
        lower = figure.add_subplot(grid[2], sharex=first)
        edges = np.linspace(0, largest, ENTROPY_BINS + 1)
        width = largest / ENTROPY_BINS
        lower.bar(edges[:-1], count, width, align="edge", color=GREY, edgecolor="white", label="all")
        lower.bar(
            edges[:-1], decided, width, align="edge", color=SKY, edgecolor="white", label="with one most probable label"
        )
        lower.set(xlabel="Entropy of the votes, nats (mean of the bin)", ylabel="Utterances", xlim=(0, largest))
        lower.grid(alpha=0.25)
        # Below the axes: inside, it would cover a bar.
        lower.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5), ncols=2)
    return figure


def _votes(predictions: Predictions, target: NDArray[Any]) -> NDArray[Any]:
    """(n, C) votes of the labelled utterances, or their targets unless all have votes."""
    if predictions.votes is None:
        return target
    votes = predictions.votes[np.asarray(predictions.valid, dtype=bool)]
    return votes if (votes.sum(axis=1) > 0).all() else target


def _probabilities(predictions: Predictions) -> Pairs:
    """Probabilities and labels of the labelled utterances.

    Raises:
        ValueError: see the figures.
    """
    if "label_probabilities" not in predictions.task.rules.inputs or not predictions.valid.any():
        raise ValueError(
            f"task {predictions.task.name!r} ({predictions.task.kind}) has no labelled sets to draw. Choose a labelled "
            "split of a multi-label task."
        )
    rows: Pairs = ROWS["label_probabilities"](predictions)
    return rows


def _mean(bins: NDArray[Any], values: NDArray[Any], count: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of ``values`` per bin; NaN for an empty one."""
    total = np.bincount(bins, weights=values, minlength=ENTROPY_BINS)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _draw_pairs(axes: Axes, sets: NDArray[Any], names: Sequence[str]) -> None:
    together = sets.T.astype(np.int64) @ sets
    own = np.diag(together)
    share = together / np.maximum(own, 1)[:, None]
    np.fill_diagonal(share, np.nan)
    axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    for edge in np.arange(0.5, len(names) - 1):
        axes.axhline(edge, color="white", linewidth=1)
        axes.axvline(edge, color="white", linewidth=1)
    if max(map(len, names)) * len(names) > 30:
        axes.tick_params(axis="x", rotation=40)
        for tick in axes.get_xticklabels():
            tick.set(horizontalalignment="right", rotation_mode="anchor")
    for row, column in np.ndindex(together.shape):
        diagonal = row == column
        percent = f"{100 * share[row, column]:.0f}" if own[row] else "–"
        axes.text(
            column,
            row,
            f"{own[row]}" if diagonal else percent,
            ha="center",
            va="center",
            fontsize=10 if len(names) <= 8 else 8,
            color="white" if not diagonal and share[row, column] > 0.55 else "black",
            fontweight="bold" if diagonal else "normal",
        )


def _columns(number: int) -> int:
    """Panels in a row: at most four, in rows of nearly equal length."""
    return math.ceil(number / math.ceil(number / 4))


def _size(number: int) -> tuple[float, float]:
    columns = _columns(number)
    return max(3.3 * columns, 6.0), 1.3 + 3.0 * math.ceil(number / columns)


def _panels(figure: Figure, number: int) -> Iterator[tuple[int, Axes]]:
    """One axes per label, up to four in a row."""
    columns = _columns(number)
    for place in range(number):
        axes = figure.add_subplot(math.ceil(number / columns), columns, place + 1)
        axes.grid(alpha=0.25)
        yield place, axes


def _label_edges(axes: Axes, place: int, number: int, x: str, y: str) -> None:
    """Axis labels of the first column and of the lowest panel of each column."""
    columns = _columns(number)
    axes.set(ylabel=y if place % columns == 0 else "", xlabel=x if place + columns >= number else "")


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
