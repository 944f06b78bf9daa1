"""Figure of a curriculum, drawn as those of :mod:`ercfusion.plots.figures`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ercfusion.data.curriculum import Curriculum
from ercfusion.plots.canvas import BLUE, GREY, canvas

# Bins of the histogram: enough for its shape with the 1,000 conversations of a large corpus.
_BINS = 24
# More names do not fit below the axes.
_NAMED = 6


def plot_curriculum(
    curriculum: Curriculum,
    path: str | Path,
    epochs: int,
    *,
    title: str = "Curriculum",
    synthetic: bool = False,
) -> Path:
    """Difficulty of the conversations, coloured by bucket, and number of conversations used per epoch.

    Args:
        curriculum: The curriculum.
        path, title, synthetic: As for :func:`ercfusion.plots.figures.plot_training_curves`.
        epochs: Number of trained epochs, at least 1.

    Raises:
        ValueError: no epoch.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    if epochs < 1:
        raise ValueError("no epoch was trained: nothing to draw. Give at least one.")
    difficulty, bucket = np.array(curriculum.difficulty), np.array(curriculum.bucket_of)
    last = curriculum.buckets
    parts = [difficulty[bucket == number] for number in range(1, last + 1)]
    # From light to dark in the order of use; the lightness is enough to tell them apart.
    shades = [colormaps["Blues"](shade) for shade in np.linspace(0.25, 1.0, last)]
    names = [f"bucket {number}" if last <= _NAMED or number in (1, last) else "_" for number in range(1, last + 1)]
    low, high = float(difficulty.min()), float(difficulty.max())
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.05, low + 0.05])
    numbers = np.arange(1, epochs + 1)
    counts = [curriculum.count(epoch) for epoch in range(epochs)]
    with canvas(path, (11.0, 4.5), title, synthetic) as figure:
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        left.hist(parts, bins=edges.tolist(), stacked=True, color=shades, label=names, edgecolor=GREY, linewidth=0.4)
        left.set(xlabel="Difficulty", ylabel="Conversations")
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=9)
        right.bar(numbers, counts, width=0.8, color=BLUE, label="in use")
        right.axhline(len(curriculum), color="black", linewidth=1, linestyle="--", label=f"all {len(curriculum):,}")
        right.set(xlabel="Epoch", ylabel="Conversations", xlim=(0.4, epochs + 0.6), ylim=(0, 1.08 * len(curriculum)))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
        for axes in (left, right):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y", alpha=0.25)
    return Path(path)
