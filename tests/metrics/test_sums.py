from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_predictions import EMOTION, random_predictions
from scipy import stats

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn, count_label_shifts
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.metrics.moments import moments_of
from ercfusion.metrics.registry import metric_names, score_source, scores
from ercfusion.metrics.statistics import interval_for
from ercfusion.metrics.sums import SUMS, shift_slices

TASKS = {
    "single": TaskSpec("emotion", "single_label", get_schema("meld7")),
    "without neutral": TaskSpec("emotion", "single_label", LabelSchema("three", ("a", "b", "c"))),
    "distribution": TaskSpec("emotion", "distribution", get_schema("meld7")),
    "labels": TaskSpec("emotions", "multi_label", LabelSchema("six", tuple("abcdef"))),
    "sentiment": TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3),
    "two sentiments": TaskSpec("sentiment", "regression", dimensions=("own", "other"), low=-3, high=3),
    "sims": TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-1, high=1),
    "two sims": TaskSpec("sentiment", "regression", dimensions=("own", "other"), low=-1, high=1),
    "vad": TaskSpec("vad", "regression", dimensions=("valence", "arousal", "dominance"), low=1, high=5),
    "far from 0": TaskSpec("level", "regression", dimensions=("level",), low=1000, high=1010),
}
CALIBRATION = {"nll", "ece", "ece_classwise", "ece_adaptive"}
SPREADS = {"gaussian_nll", "coverage90", "mean_spread"}
WITHOUT_SUMS = {
    "single_label": CALIBRATION,
    "distribution": {
        *(*CALIBRATION, "binarised_jaccard"),
        *(f"binarised_{average}_f1" for average in ("macro", "micro", "weighted")),
    },
    "multi_label": {
        *("samples_f1", "accuracy", "jaccard", "jaccard_zero", "hamming"),
        *(
            f"{name}{part}"
            for name in ("weighted_accuracy", "map", "label_ece")
            for part in ("", *(f"/{label}" for label in "abcdef"))
        ),
    },
    "regression": SPREADS,
}


def make(task: TaskSpec, seed: int = 0, lengths: tuple[int, ...] = (7, 1, 30, 12, 4)) -> Predictions:
    rng = np.random.default_rng(seed)
    count, size = sum(lengths), task.size
    output: Any = rng.dirichlet(np.full(size, 0.3), size=count)
    value: Any = output.argmax(axis=1)
    wrong = rng.random(count) < 0.5
    value[wrong] = rng.integers(0, size, wrong.sum())
    if task.kind == "distribution":
        value = (rng.multinomial(3, np.full(size, 1 / size), size=count) / 3).astype(np.float32)
    elif task.kind == "multi_label":
        output, value = rng.random((count, size)), (rng.random((count, size)) < 0.3).astype(np.float32)
    elif task.kind == "regression":
        # Whole numbers among the targets: the middle of the scale, and halves of outputs that are rounded to even.
        value = rng.uniform(task.low, task.high, (count, size)).astype(np.float32)
        value[::3] = value[::3].round()
        output = value + rng.normal(size=value.shape)
        output[::4] = (2 * output[::4]).round() / 2
    valid = rng.random(count) < 0.8
    valid[-lengths[-1] :] = False  # a conversation without labels
    return Predictions(
        task=task,
        output=output,
        value=value,
        valid=valid,
        lengths=lengths,
        speaker=rng.integers(0, 3, count),
        conversation_ids=tuple(f"c{number}" for number in range(len(lengths))),
        turn_ids=tuple(f"t{number}" for number in range(count)),
    )


@pytest.mark.parametrize("name", TASKS)
def test_scores_follow_from_sums(name: str) -> None:
    task = TASKS[name]
    for seed in range(5):
        predictions = make(task, seed)
        expected, sums = scores(predictions), conversation_sums(predictions)
        without = WITHOUT_SUMS[task.kind]
        for metric in metric_names(task):
            source = score_source(task, metric)
            assert (source is None) == (not {metric, metric.partition("/")[0]}.isdisjoint(without)), metric
            if source is None:
                continue
            found = source[1](sums[source[0]].sum(axis=0)[None])
            assert found.shape == (1,)
            # Of votes by three, few utterances have one right label: a slice may be empty.
            assert found[0] == pytest.approx(expected.get(metric, np.nan), abs=1e-12, nan_ok=True), metric
            assert metric in expected or task.kind == "distribution"


@pytest.mark.parametrize("name", TASKS)
def test_sums_of_a_selection_score_the_selection(name: str) -> None:
    task, chosen = TASKS[name], [2, 0, 2, 3]
    predictions = make(task, 1)
    for key, sums in conversation_sums(predictions).items():
        assert sums.shape[0] == len(predictions.lengths)
        assert not sums[-1].any(), "the last conversation has no label"
        expected = conversation_sums(predictions.take(chosen))[key]
        assert np.array_equal(sums[chosen], expected)
        assert sums.dtype == (np.float64 if key in ("divergence", "moments") else np.int64)
    metric = next(name for name in metric_names(task) if score_source(task, name) is not None)
    source = score_source(task, metric)
    assert source is not None
    key, statistic = source
    many = np.stack([conversation_sums(predictions)[key][rows].sum(axis=0) for rows in (chosen, [0], [0, 1, 2, 3])])
    assert statistic(many) == pytest.approx(
        [scores(predictions.take(rows))[metric] for rows in (chosen, [0], [0, 1, 2, 3])]
    )


@pytest.mark.parametrize("name", TASKS)
def test_formulas_of_sums_take_any_leading_axes(name: str) -> None:
    task = TASKS[name]
    sums = conversation_sums(make(task, 2, lengths=(7, 9, 30, 12, 4)))
    for metric in metric_names(task):
        source = score_source(task, metric)
        if source is None:
            continue
        key, statistic = source
        many = sums[key][:4].reshape(2, 2, *sums[key].shape[1:])
        found = statistic(many)
        assert found.shape == (2, 2), metric
        for place in np.ndindex(2, 2):
            assert np.array_equal(found[place], statistic(many[place]), equal_nan=True), metric


def test_shift_counts_by_loops() -> None:
    predictions = make(TASKS["single"], 3)
    shift, same = shift_slices(predictions)
    expected = np.zeros((len(predictions.lengths), 2, 2), dtype=int)
    for row, conversation in enumerate(predictions.conversation):
        for place, chosen in enumerate((shift, same)):
            if chosen[row]:
                expected[conversation, place, 1] += 1
                expected[conversation, place, 0] += predictions.output[row].argmax() == predictions.value[row]
    found = conversation_sums(predictions)["shift"]
    assert np.array_equal(found, expected)
    assert found[:, :, 1].sum() > found[:, :, 0].sum() > 0


def test_divergence_is_the_mean_of_the_divergences_of_the_utterances() -> None:
    task = TASKS["distribution"]
    predictions = make(task, 3)
    sums = conversation_sums(predictions)["divergence"]
    each = stats.entropy(predictions.value, predictions.output, axis=1)
    entropy = stats.entropy(predictions.value, axis=1)
    for place in range(len(predictions.lengths)):
        rows = predictions.valid & (predictions.conversation == place)
        expected = [rows.sum(), -entropy[rows].sum(), each[rows].sum()]
        np.testing.assert_allclose(sums[place], expected, rtol=1e-6, atol=1e-12)
    other = replace(predictions, output=np.roll(predictions.output, 1, axis=1))
    np.testing.assert_array_equal(
        SUMS["divergence"].truth(sums), SUMS["divergence"].truth(conversation_sums(other)["divergence"])
    )
    low, high = interval_for(predictions, "kl", 200)
    assert low < scores(predictions)["kl"] < high


def test_moments_by_name() -> None:
    task = TASKS["sentiment"]
    predictions = replace(
        make(task, lengths=(3, 2)),
        output=np.array([[1.0], [-0.5], [9.0], [0.5], [0.0]]),
        value=np.array([[2.0], [0.0], [9.0], [-1.0], [0.4]]),
        valid=np.array([True, True, False, True, True]),
    )
    sums = conversation_sums(predictions)["moments"]
    names = tuple(moments_of(task))
    assert sums.shape == (2, 1, len(names))
    first, second = (dict(zip(names, row[0].tolist(), strict=True)) for row in sums)
    assert {name: number for name, number in first.items() if number} == {
        "utterances": 2, "output": 0.5, "target": 2, "output_squared": 1.25, "target_squared": 4, "product": 2,
        "absolute_error": 1.5, "squared_error": 1.25, "right7": 1, "right5": 1, "non0_11": 1, "has0_11": 1,
        "has0_10": 1,
    }  # fmt: skip
    assert (second["right7"], second["non0_01"], second["non0_10"], second["has0_01"], second["has0_11"]) == (
        1,
        1,
        1,
        1,
        1,
    )
    assert tuple(moments_of(TASKS["vad"])) == names[:8]


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3])
def test_constant_regression(constant: float) -> None:
    predictions = make(TASKS["vad"], 2)
    for side in ("output", "value"):
        flat = replace(predictions, **{side: np.full(predictions.output.shape, constant)})
        sums, expected = conversation_sums(flat)["moments"], scores(flat)
        # The record keeps nine digits; what is left of a variance of 0 must not be taken for one.
        rounded = np.vectorize(lambda number: float(f"{number:.9g}"))(sums)
        for metric in ("pearson", "ccc", "mae", "pearson/arousal"):
            source = score_source(flat.task, metric)
            assert source is not None
            assert source[1](sums.sum(axis=0)[None])[0] == pytest.approx(expected[metric], abs=1e-12)
            assert source[1](rounded.sum(axis=0)[None])[0] == pytest.approx(expected[metric], abs=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, 3.3])
@pytest.mark.parametrize("other", [0.0, 0.1, 3.0])
def test_both_sides_constant(constant: float, other: float) -> None:
    """What rounding leaves of two variances of 0, above or below it, is no spread: the agreement is 0, neither NaN nor
    the quotient of two rounding errors.
    """
    predictions = make(TASKS["vad"], 2)
    shape = predictions.output.shape
    flat = replace(predictions, output=np.full(shape, constant), value=np.full(shape, constant + other))
    sums = conversation_sums(flat)["moments"].sum(axis=0)[None]
    for metric in ("pearson", "ccc"):
        source = score_source(flat.task, metric)
        assert source is not None
        (found,) = source[1](sums)
        assert found == 0
        assert not np.signbit(found)


def test_perfect_and_single_utterances() -> None:
    predictions = make(TASKS["vad"], 2)
    everything = np.ones(len(predictions), dtype=bool)
    perfect = replace(predictions, output=predictions.value.astype(np.float64), valid=everything)
    alone = perfect.take([1])
    for part, expected in ((perfect, 1.0), (alone, 0.0)):
        for metric in ("pearson", "ccc"):
            source = score_source(part.task, metric)
            assert source is not None
            assert source[1](conversation_sums(part)["moments"].sum(axis=0)) == pytest.approx(expected, abs=1e-12)
            assert scores(part)[metric] == pytest.approx(expected, abs=1e-12)


def test_what_is_not_defined_is_nan() -> None:
    for name, task in TASKS.items():
        sums = conversation_sums(make(task))
        for metric in metric_names(task):
            source = score_source(task, metric)
            if source is not None and task.kind != "multi_label":
                assert np.isnan(source[1](np.zeros_like(sums[source[0]][:2]))).all(), (name, metric)
    # Multi-label scores have no true negatives: nothing true and nothing said looks like nothing labelled.
    source = score_source(TASKS["labels"], "macro_f1")
    assert source is not None
    assert source[1](np.zeros((1, 6, 3))).tolist() == [0]
    neutral_only = replace(make(TASKS["sentiment"], lengths=(2,)), value=np.zeros((2, 1)), valid=np.ones(2, dtype=bool))
    moments = conversation_sums(neutral_only)["moments"]
    for metric, defined in (("acc2_non0", False), ("f1_non0", False), ("acc2_has0", True)):
        source = score_source(TASKS["sentiment"], metric)
        assert source is not None
        assert np.isnan(source[1](moments)[0]) != defined
        assert (metric in scores(neutral_only)) == defined


def test_unknown_metrics() -> None:
    with pytest.raises(ConfigError, match="weighted_f1"):
        score_source(TASKS["single"], "weightedf1")


@pytest.mark.parametrize("seed", range(4))
def test_shift_slices_follow_the_corpus_count(seed: int) -> None:
    predictions = random_predictions(EMOTION, seed)
    shift, same = shift_slices(predictions)
    conversations, row = [], 0
    expected_same = 0
    for number, length in enumerate(predictions.lengths):
        turns: list[Turn] = []
        last: dict[str, str] = {}
        for _ in range(length):
            label = EMOTION.output_names[predictions.value[row]] if predictions.valid[row] else None
            who = str(predictions.speaker[row])
            turns.append(Turn(f"t{row}", who, targets={"emotion": Target(label)}))
            if label is not None:
                assert shift[row] == (who in last and last[who] != label)
                expected_same += last.get(who) == label
                last[who] = label
            row += 1
        conversations.append(Conversation(f"c{number}", tuple(turns)))
    assert shift.sum() == count_label_shifts(conversations, "emotion", same_speaker=True)
    assert same.sum() == expected_same
    right = predictions.decisions() == predictions.value
    assert scores(predictions)["shift_accuracy"] == pytest.approx(right[shift].mean())
    assert scores(predictions)["same_accuracy"] == pytest.approx(right[same].mean())


def test_take_repeats_conversations() -> None:
    predictions = random_predictions(EMOTION, 2)
    matrices = SUMS["confusion"].of(predictions)
    chosen = predictions.take([2, 0, 2])
    assert chosen.lengths == (30, 7, 30)
    assert np.array_equal(SUMS["confusion"].of(chosen), matrices[[2, 0, 2]])
    shift, _ = shift_slices(chosen)
    original, _ = shift_slices(predictions)
    assert shift.sum() == 2 * original[8:38].sum() + original[:7].sum()
