from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from ercfusion.data.schema import LabelSchema, get_schema
from ercfusion.data.task import TaskSpec
from ercfusion.errors import ConfigError
from ercfusion.evaluation.statistics import conversation_bootstrap, interval_for, seed_summary
from ercfusion.tasks.metrics import conversation_confusions, metric_names, scores, scores_from_confusion
from ercfusion.tasks.outputs import Predictions

EMOTION = TaskSpec("emotion", "single_label", get_schema("iemocap6"))


def make(task: TaskSpec, conversations: int = 20, seed: int = 0, length: int = 10) -> Predictions:
    rng = np.random.default_rng(seed)
    count, size = conversations * length, task.size
    output = rng.dirichlet(np.ones(size), count)
    value: Any = (rng.random((count, size)) < 0.4).astype(np.float32)
    if task.kind == "single_label":
        value = np.where(rng.random(count) < 0.5, output.argmax(1), rng.integers(0, size, count))
    elif task.kind == "distribution":
        value = rng.dirichlet(np.ones(size), count).astype(np.float32)
    elif task.kind == "regression":
        value, output = output, output + rng.normal(size=output.shape)
    return Predictions(
        task=task,
        output=output,
        value=value,
        valid=rng.random(count) < 0.9,
        lengths=(length,) * conversations,
        speaker=rng.integers(0, 2, count),
        conversation_ids=tuple(map(str, range(conversations))),
        turn_ids=tuple(map(str, range(count))),
    )


def macro(matrices: np.ndarray) -> Any:
    return scores_from_confusion(matrices)["macro_f1"]


def test_bootstrap_agrees_with_resampled_indices() -> None:
    matrices = conversation_confusions(make(EMOTION))
    low, high = conversation_bootstrap(matrices, macro, seed=1)
    rng = np.random.default_rng(5)
    drawn = [macro(matrices[rng.integers(0, 20, 20)].sum(axis=0)) for _ in range(2000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.01)
    assert low < macro(matrices.sum(axis=0)) < high


def test_bootstrap_agrees_with_scipy_for_a_mean() -> None:
    right = np.random.default_rng(0).integers(0, 10, 40)
    counts = np.stack([right, np.full(40, 10)], axis=1)
    found = conversation_bootstrap(counts, lambda total: total[:, 0] / total[:, 1], resamples=5000)
    expected = stats.bootstrap((right / 10,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


def test_dependence_within_conversations_widens_the_interval() -> None:
    # Ten equal utterances a conversation are worth one: utterances as units would give an interval sqrt(10) narrower.
    right = np.random.default_rng(0).random(50) < 0.5
    whole = np.stack([10 * right, 10 * ~right], axis=1)
    single = np.repeat(whole / 10, 10, axis=0)

    def share(total: np.ndarray) -> Any:
        return total[:, 0] / total.sum(axis=1)

    wide = np.diff(conversation_bootstrap(whole, share))[0]
    narrow = np.diff(conversation_bootstrap(single, share))[0]
    assert wide / narrow == pytest.approx(np.sqrt(10), rel=0.15)


def test_bootstrap_edges() -> None:
    matrices = conversation_confusions(make(EMOTION))
    assert conversation_bootstrap(matrices, macro, seed=3) == conversation_bootstrap(matrices, macro, seed=3)
    assert conversation_bootstrap(matrices, macro, seed=3) != conversation_bootstrap(matrices, macro, seed=4)
    empty = np.zeros_like(matrices)
    assert conversation_bootstrap(np.concatenate([empty, matrices]), macro) == conversation_bootstrap(matrices, macro)
    alone = macro(matrices[0])
    assert conversation_bootstrap(matrices[:1], macro) == pytest.approx((alone, alone))
    low, high = conversation_bootstrap(matrices, macro)
    inner = conversation_bootstrap(matrices, macro, level=0.5)
    assert low < inner[0] < inner[1] < high
    with pytest.raises(ValueError, match="nothing to resample"):
        conversation_bootstrap(empty, macro)
    with pytest.raises(ValueError, match="level"):
        conversation_bootstrap(matrices, macro, level=95)
    with pytest.raises(ValueError, match="none of the resamples"):
        conversation_bootstrap(matrices, lambda sums: np.full(len(sums), np.nan))


def test_parts_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = conversation_confusions(make(EMOTION))
    whole = conversation_bootstrap(matrices, macro, resamples=100)
    monkeypatch.setattr("ercfusion.evaluation.statistics._CHUNK", 300)
    assert conversation_bootstrap(matrices, macro, resamples=100) == whole


@pytest.mark.parametrize(
    "task",
    [
        EMOTION,
        TaskSpec("emotion", "distribution", get_schema("iemocap6")),
        TaskSpec("emotions", "multi_label", LabelSchema("three", ("a", "b", "c"))),
        TaskSpec("vad", "regression", dimensions=("valence", "arousal"), low=-3, high=3),
    ],
    ids=lambda task: task.kind,
)
def test_every_metric_has_an_interval(task: TaskSpec) -> None:
    predictions = make(task, conversations=12)
    point = scores(predictions)
    for metric in metric_names(task):
        low, high = interval_for(predictions, metric, resamples=40)
        assert low <= high
        if metric != "ece":  # biased upwards in small samples, and more so in resamples
            assert low - 0.05 <= point[metric] <= high + 0.05


def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = make(EMOTION, conversations=30)
    fast = interval_for(predictions, "weighted_f1")
    monkeypatch.setattr("ercfusion.evaluation.statistics.CONFUSION_METRICS", ())
    slow = interval_for(predictions, "weighted_f1", resamples=600)
    assert fast == pytest.approx(slow, abs=0.015)


def test_interval_errors() -> None:
    with pytest.raises(ConfigError, match="macro_f1"):
        interval_for(make(EMOTION), "macrof1")
    alone = make(EMOTION, conversations=3, length=1, seed=2)
    with pytest.raises(ValueError, match="empty"):
        interval_for(alone, "shift_accuracy")


def test_seed_summary() -> None:
    values = [0.61, 0.64, 0.6, 0.66, 0.63]
    found = seed_summary(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert (found["min"], found["max"], found["n"]) == (0.6, 0.66, 5)
    # The oracle by hand: the 97.5 % point of Student's t with 4 degrees of freedom is 2.7764.
    half = 2.7764451 * found["std"] / np.sqrt(5)
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half))
    one = seed_summary([0.5])
    assert one["mean"] == one["min"] == one["max"] == 0.5
    assert np.isnan([one["std"], one["low"], one["high"]]).all()
    equal = seed_summary([0.5, 0.5])
    assert (equal["std"], equal["low"], equal["high"]) == (0, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        seed_summary([])
