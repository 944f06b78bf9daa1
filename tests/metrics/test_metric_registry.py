from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import DISTRIBUTION, EMOTION, INTENSITY, LABELS, SENTIMENT, SIMS, VAD, make, random_predictions

from ercfusion._core.errors import ConfigError
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.classification import confusion_matrix
from ercfusion.metrics.labels import best_thresholds
from ercfusion.metrics.registry import (
    REGISTERED,
    check_metric,
    get_metric,
    metric_names,
    scores,
)


def test_rows_that_are_not_valid_do_not_matter() -> None:
    for task in (EMOTION, DISTRIBUTION, LABELS, VAD, SENTIMENT):
        predictions = random_predictions(task, 5)
        expected = scores(predictions)
        predictions.value[~predictions.valid] = 99
        predictions.output[~predictions.valid] = np.nan
        assert scores(predictions) == expected


@pytest.mark.parametrize("task", [EMOTION, DISTRIBUTION, LABELS, INTENSITY, VAD, SENTIMENT])
def test_names_agree_with_scores(task: TaskSpec) -> None:
    found = scores(random_predictions(task, 1))
    assert set(found) == set(metric_names(task))
    for name, number in found.items():
        assert type(number) is float
        check_metric(task, name)
        assert get_metric(name).name == name.partition("/")[0]
    check_metric(task, task.metric)


def test_unknown_metrics_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'weighted_f1'"):
        check_metric(EMOTION, "weigthed_f1")
    with pytest.raises(ConfigError, match="regression task 'vad'"):
        check_metric(VAD, "weighted_f1")
    with pytest.raises(ConfigError, match="ccc/valence"):
        check_metric(VAD, "ccc/valance")
    with pytest.raises(ConfigError, match="'mae'"):
        get_metric("maee")
    with pytest.raises(
        ConfigError, match=r"Choose from: .*, same_accuracy\. Use imports=MODULE for a metric of your own"
    ):
        check_metric(EMOTION, "kappa")
    assert get_metric("ccc/valence").higher_is_better
    assert not get_metric("rmse/valence").higher_is_better


def test_every_metric_is_one_of_a_kind() -> None:
    tasks = (EMOTION, DISTRIBUTION, LABELS, INTENSITY, VAD, SENTIMENT, SIMS)
    assert {task.kind for task in tasks} == set(KINDS)
    assert {name.partition("/")[0] for task in tasks for name in metric_names(task)} == set(REGISTERED)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 utterances"):
        scores(make(EMOTION, np.eye(7)[:2], [0, 1], [False, False]))
    with pytest.raises(ValueError, match="not finite"):
        scores(make(EMOTION, np.full((1, 7), np.nan), [0]))
    with pytest.raises(ValueError, match="value has shape"):
        make(VAD, np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="no decisions"):
        random_predictions(VAD, 0).decisions()
    with pytest.raises(ValueError, match="no label sets"):
        best_thresholds(random_predictions(EMOTION, 0))
    with pytest.raises(ValueError, match="no single right label"):
        confusion_matrix(random_predictions(LABELS, 0))


def test_bounds_and_units() -> None:
    without_end = {name for name, metric in REGISTERED.items() if metric.bounds[1] == np.inf}
    assert without_end == {"nll", "kl", "mae", "rmse", "gaussian_nll", "mean_spread", "active_mae"}
    assert {name for name, metric in REGISTERED.items() if metric.bounds[0] == -1} == {
        "pearson",
        "ccc",
        "intensity_pearson",
        "active_pearson",
    }
    for metric in REGISTERED.values():
        assert (metric.bounds == (0, 1)) == (metric.unit == "percent"), metric.name
        assert not metric.loss or not metric.higher_is_better
    lower = {name for name, metric in REGISTERED.items() if not metric.higher_is_better}
    calibration = {"nll", "ece", "ece_classwise", "ece_adaptive", "label_ece", "gaussian_nll", "mean_spread"}
    assert lower == {*calibration, "kl", "hamming", "mae", "rmse", "active_mae"}


@pytest.mark.parametrize("task", [EMOTION, DISTRIBUTION, LABELS, VAD, SENTIMENT, SIMS], ids=range(6))
def test_right_predictions_are_better_in_the_direction_of_every_metric(task: TaskSpec) -> None:
    some = random_predictions(task, 2)
    right = np.eye(task.size)[some.value] if task.rules.index_targets else some.value.astype(float)
    narrow = None if some.spread is None else np.full_like(some.spread, 0.1)
    found, best = scores(some), scores(replace(some, output=right, spread=narrow))
    without_target = ("jaccard_zero", "binarised_macro_f1", "ece", "ece_adaptive", "ece_classwise", "nll")
    for name, value in found.items():
        metric = get_metric(name)
        low, high = metric.bounds
        assert low <= value <= high
        assert best[name] > value if metric.higher_is_better else best[name] < value, name
        if metric.name not in (*without_target, "gaussian_nll", "mean_spread"):
            assert best[name] == pytest.approx(high if metric.higher_is_better else low)
