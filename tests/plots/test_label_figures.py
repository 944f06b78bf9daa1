"""Figures of label sets and of distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import DISTRIBUTION, EMOTION, LABELS, make, random_predictions
from matplotlib.figure import Figure

from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import vote_entropy, vote_shares
from ercfusion.metrics.labels import best_thresholds
from ercfusion.metrics.registry import scores
from ercfusion.plots.figures import PICTURES
from ercfusion.plots.label_figures import (
    ENTROPY_BINS,
    plot_cooccurrence,
    plot_label_reliability,
    plot_thresholds,
    plot_vote_entropy,
)

TITLE = "concat on demo/multilabel, dev split"
SETS = random_predictions(LABELS, 0)
SHARES = random_predictions(DISTRIBUTION, 0)
PLOTS: dict[Callable[..., Figure], Predictions] = {
    plot_thresholds: replace(SETS, thresholds=best_thresholds(SETS)),
    plot_cooccurrence: SETS,
    plot_label_reliability: SETS,
    plot_vote_entropy: SHARES,
}


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def heading(figure: Figure) -> str:
    return str(figure._suptitle.get_text())  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_same_numbers_same_bytes(plot: Callable[..., Figure], tmp_path: Path) -> None:
    for place in "ab":
        figure = plot(PLOTS[plot], tmp_path / f"{place}.png", TITLE, synthetic=True)
        assert heading(figure).startswith(f"{TITLE} (synthetic corpus)\n")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_kinds_declare_them() -> None:
    assert {"thresholds", "cooccurrence", "label-reliability"} <= set(LABELS.rules.pictures) <= set(PICTURES)
    assert set(DISTRIBUTION.rules.pictures) == {*EMOTION.rules.pictures, "vote-entropy"}
    for task, predictions in ((LABELS, SETS), (DISTRIBUTION, SHARES)):
        for name in task.rules.pictures:
            assert isinstance(PICTURES[name](predictions, None, TITLE, False), Figure)


def test_threshold_curves_have_the_values_at_every_threshold() -> None:
    predictions = replace(SETS, thresholds=np.linspace(0.2, 0.7, 6))
    figure = plot_thresholds(predictions, None, TITLE)
    assert "the threshold chosen on dev" in heading(figure)
    valid = predictions.valid
    for column, axes in enumerate(figure.axes):
        true = predictions.value[valid, column] > 0.5
        curves = {line.get_label(): line for line in axes.get_lines()}
        for threshold in (0.0, 0.13, 0.5, 0.77, float(predictions.output[valid, column].max())):
            decided = predictions.output[valid, column] >= threshold
            hits = (decided & true).sum()
            expected = {"precision": hits / max(decided.sum(), 1), "recall": hits / true.sum()}
            expected["F1"] = 2 * hits / (decided.sum() + true.sum())
            for name, value in expected.items():
                x, y = (np.asarray(values) for values in curves[name].get_data())
                # The step before x[k] has the value y[k].
                drawn = y[np.searchsorted(x, threshold)] if threshold else y[0]
                assert drawn == pytest.approx(100 * value), (name, threshold)
        f1 = scores(
            make(
                TaskSpec("x", "multi_label", LabelSchema("x", ("a",))),
                predictions.output[valid][:, [column]] >= predictions.thresholds[column],
                true[:, None].astype(float),
            )
        )["macro_f1"]
        assert (
            titles(figure)[column]
            == f"{'abcdef'[column]}\nn = {true.sum()}, F1 {100 * f1:.1f} at {predictions.thresholds[column]:.2f}"
        )
    assert "no threshold was chosen" in heading(plot_thresholds(SETS, None, TITLE))


def test_no_prediction_above_a_threshold_of_one() -> None:
    task = TaskSpec("x", "multi_label", LabelSchema("one", ("a",)))
    predictions = make(task, [[0.2], [0.4]], [[1.0], [0.0]])
    figure = plot_thresholds(replace(predictions, thresholds=np.array([0.9])), None, TITLE)
    assert titles(figure) == ["a\nn = 1, F1 0.0 at 0.90"]


def test_cooccurrence_counts_labels_and_predictions() -> None:
    task = TaskSpec("x", "multi_label", LabelSchema("three", ("a", "b", "c")))
    value = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    output = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.9, 0.9, 0.0]]
    valid = [True, True, True, True]
    figure = plot_cooccurrence(make(task, output, value, valid), None, TITLE)
    cells = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert cells[0] == ["3", "67", "0", "100", "2", "0", "–", "–", "0"]
    assert cells[1] == ["3", "33", "0", "50", "2", "0", "–", "–", "0"]
    assert titles(figure) == ["Labelled: 1.25 labels per utterance", "Predicted: 1.25 labels per utterance"]


def test_reliability_of_each_label_has_its_calibration_error() -> None:
    result = scores(SETS)
    figure = plot_label_reliability(SETS, None, TITLE)
    for label, title in zip(LABELS.output_names, titles(figure), strict=True):
        assert f"error {100 * result[f'label_ece/{label}']:.1f} %" in title
    assert f"{100 * result['label_ece']:.1f} % on average" in heading(figure)


def test_vote_entropy_bins_hold_all_utterances() -> None:
    figure = plot_vote_entropy(SHARES, None, TITLE)
    accuracy, divergence, counts = figure.axes
    valid, value = SHARES.valid, SHARES.value[SHARES.valid].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(value > 0, value * np.log(value), 0), axis=1)
    bins = np.clip((entropy / np.log(7) * ENTROPY_BINS).astype(int), 0, ENTROPY_BINS - 1)
    heights = [patch.get_height() for patch in counts.patches]
    assert heights[:ENTROPY_BINS] == np.bincount(bins, minlength=ENTROPY_BINS).tolist()
    truth, single = (each[valid] for each in SHARES.labels())
    right = SHARES.decisions()[valid] == truth
    expected = [100 * right[single & (bins == place)].mean() for place in sorted(set(bins[single]))]
    assert np.asarray(accuracy.get_lines()[0].get_data()[1]).tolist() == pytest.approx(expected)
    at, values = divergence.get_lines()[0].get_data()
    weights = np.bincount(bins, minlength=ENTROPY_BINS)[sorted(set(bins))]
    assert np.average(np.asarray(values), weights=weights) == pytest.approx(scores(SHARES)["kl"])
    assert np.average(np.asarray(at), weights=weights) == pytest.approx(entropy.mean())


def test_vote_entropy_is_that_of_the_votes_not_of_smoothed_targets() -> None:
    votes = np.random.default_rng(0).multinomial(5, [1 / 7] * 7, size=len(SHARES))
    smoothed = replace(SHARES, value=vote_shares(votes, 0.3).astype(np.float32))

    def utterances(predictions: Predictions) -> list[float]:
        return [patch.get_height() for patch in plot_vote_entropy(predictions, None, TITLE).axes[2].patches]

    bins = (vote_entropy(votes[SHARES.valid]) / np.log(7) * ENTROPY_BINS).astype(int).clip(0, ENTROPY_BINS - 1)
    expected = np.bincount(bins, minlength=ENTROPY_BINS).tolist()
    assert utterances(replace(smoothed, votes=votes))[:ENTROPY_BINS] == expected
    assert utterances(smoothed)[:ENTROPY_BINS] != expected
    # Votes of some utterances only are not mixed with targets of others.
    some = votes * (np.arange(len(votes)) % 2)[:, None]
    assert utterances(replace(smoothed, votes=some)) == utterances(smoothed)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_other_tasks_are_refused(plot: Callable[..., Figure]) -> None:
    other: Any = random_predictions(EMOTION, 0)
    with pytest.raises(ValueError, match=r"'emotion' \(single_label\) has no labelled (sets|distributions) to draw"):
        plot(other, None, TITLE)
    nobody = replace(PLOTS[plot], valid=np.zeros(len(PLOTS[plot]), dtype=bool))
    with pytest.raises(ValueError, match="Choose a labelled split"):
        plot(nobody, None, TITLE)
