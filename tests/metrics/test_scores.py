from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from torchmetrics import functional as torch_oracle

from ercfusion._core.errors import ConfigError
from ercfusion.batch.kinds import KINDS
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn, count_label_shifts
from ercfusion.metrics import scores as metrics
from ercfusion.metrics.scores import Predictions, scores

EMOTION = TaskSpec("emotion", "single_label", get_schema("meld7"))
DISTRIBUTION = TaskSpec("emotion", "distribution", get_schema("meld7"))
LABELS = TaskSpec("emotions", "multi_label", LabelSchema("six", tuple("abcdef")))
LABEL_A = TaskSpec("x", "multi_label", LabelSchema("one", ("a",)))
VAD = TaskSpec("vad", "regression", dimensions=("valence", "arousal", "dominance"), low=1, high=5)
SENTIMENT = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3)


def make(
    task: TaskSpec, output: Any, value: Any, valid: Any = None, lengths: Any = None, speaker: Any = None
) -> Predictions:
    output = np.asarray(output, dtype=np.float64)
    count = len(output)
    lengths = tuple(lengths or (count,))
    return Predictions(
        task=task,
        output=output,
        value=np.asarray(value),
        valid=np.ones(count, dtype=bool) if valid is None else np.asarray(valid),
        lengths=lengths,
        speaker=np.zeros(count, dtype=np.int64) if speaker is None else np.asarray(speaker),
        conversation_ids=tuple(f"c{number}" for number in range(len(lengths))),
        turn_ids=tuple(f"t{number}" for number in range(count)),
    )


def random_predictions(task: TaskSpec, seed: int, lengths: tuple[int, ...] = (7, 1, 30, 12), **kwargs: Any) -> Any:
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    shape = (count, task.size)
    valid = rng.random(count) < 0.8
    valid[0] = True
    value: Any
    if task.kind == "single_label":
        output = rng.dirichlet(np.full(task.size, 0.3), size=count)
        value = rng.choice(task.size, size=count, p=rng.dirichlet(np.ones(task.size)))
    elif task.kind == "distribution":
        output = rng.dirichlet(np.full(task.size, 0.3), size=count)
        value = (rng.multinomial(3, np.full(task.size, 1 / task.size), size=count) / 3).astype(np.float32)
    elif task.kind == "multi_label":
        output, value = rng.random(shape), (rng.random(shape) < 0.3).astype(np.float32)
    else:
        value = rng.uniform(task.low, task.high, shape).astype(np.float32)
        output = value + rng.normal(size=shape)
    return make(task, output, value, valid, lengths, speaker=rng.integers(0, 3, count), **kwargs)


# Single label


@pytest.mark.parametrize("seed", range(6))
def test_single_label_against_sklearn(seed: int) -> None:
    # Seeds 4 and 5 are tiny: classes absent from truth, prediction or both.
    predictions = random_predictions(EMOTION, seed, (7, 1, 30, 12) if seed < 4 else (2, 1))
    valid = predictions.valid
    truth, said = predictions.value[valid], predictions.output.argmax(1)[valid]
    found = scores(predictions)
    assert found["weighted_f1"] == pytest.approx(oracle.f1_score(truth, said, average="weighted", zero_division=0))
    # Without labels= sklearn averages over the labels of truth and prediction together: our rule.
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, said, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["uar"] == pytest.approx(oracle.balanced_accuracy_score(truth, said))
    without = oracle.f1_score(truth, said, labels=range(1, 7), average="micro", zero_division=0)
    assert found["micro_f1_without_neutral"] == pytest.approx(without)
    probability = np.maximum(predictions.output[valid], 1e-12)
    assert found["nll"] == pytest.approx(-np.log(probability[np.arange(len(truth)), truth]).mean())
    assert np.array_equal(
        metrics.confusion_matrix(predictions), oracle.confusion_matrix(truth, said, labels=np.arange(7))
    )
    assert np.array_equal(
        metrics.conversation_confusions(predictions).sum(axis=0), metrics.confusion_matrix(predictions)
    )


@pytest.mark.parametrize("seed", range(4))
def test_single_label_against_torchmetrics(seed: int) -> None:
    predictions = random_predictions(EMOTION, seed)
    output = torch.from_numpy(predictions.output[predictions.valid])
    value = torch.from_numpy(predictions.value[predictions.valid])
    found = scores(predictions)
    average: Any
    for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted"), ("accuracy", "micro")):
        expected = torch_oracle.classification.multiclass_f1_score(output, value, num_classes=7, average=average)
        assert found[name] == pytest.approx(float(expected), abs=1e-6)
    expected = torch_oracle.classification.multiclass_calibration_error(output, value, num_classes=7, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_per_class_against_sklearn() -> None:
    predictions = random_predictions(EMOTION, 3)
    valid = predictions.valid
    expected = oracle.precision_recall_fscore_support(
        predictions.value[valid], predictions.output.argmax(1)[valid], labels=np.arange(7), zero_division=0
    )
    table = metrics.per_class(predictions)
    assert tuple(table) == EMOTION.output_names
    for column, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in table.values()] == pytest.approx(list(expected[column]))


def test_one_row_and_constant_prediction() -> None:
    found = scores(make(EMOTION, np.eye(7)[[3]], [3]))
    assert found["weighted_f1"] == found["macro_f1"] == found["uar"] == found["accuracy"] == 1
    assert found["nll"] == found["ece"] == 0
    assert "shift_accuracy" not in found
    assert "same_accuracy" not in found
    constant = scores(make(EMOTION, np.eye(7)[[0] * 4], [0, 0, 1, 2]))
    assert constant["macro_f1"] == pytest.approx(2 / 3 / 3)
    assert constant["uar"] == pytest.approx(1 / 3)
    assert constant["micro_f1_without_neutral"] == 0
    assert constant["ece"] == pytest.approx(0.5)
    assert constant["nll"] == pytest.approx(-np.log(1e-12) / 2)


def test_confusion_scores_are_vectorised() -> None:
    matrices = np.random.default_rng(0).integers(0, 9, (3, 4, 7, 7))
    found = metrics.scores_from_confusion(matrices, neutral=2)
    alone = metrics.scores_from_confusion(matrices[1, 2], neutral=2)
    assert set(alone) == set(metrics.CONFUSION_METRICS)
    for name, value in found.items():
        assert value.shape == (3, 4)
        assert value[1, 2] == alone[name]
    assert set(metrics.scores_from_confusion(np.zeros((7, 7), dtype=int)).values()) == {0.0}


def test_neutral_is_found_by_name() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(1, 9, (7, 7))
    order = [3, 1, 2, 0, 4, 5, 6]
    first = metrics.scores_from_confusion(matrix, 0)["micro_f1_without_neutral"]
    assert metrics.scores_from_confusion(matrix[order][:, order], 3)["micro_f1_without_neutral"] == first


@pytest.mark.parametrize("seed", range(4))
def test_shift_slices_follow_the_corpus_count(seed: int) -> None:
    predictions = random_predictions(EMOTION, seed)
    shift, same = metrics.shift_slices(predictions)
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


def test_calibration_edges() -> None:
    schema = LabelSchema("two", ("a", "b"))
    task = TaskSpec("x", "single_label", schema)
    predictions = make(task, [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], [0, 1, 1])
    count, accuracy, confidence = metrics.calibration_bins(predictions, 4)
    assert count.tolist() == [0, 0, 1, 2]
    assert accuracy.tolist() == [0, 0, 0, 1]
    assert confidence.tolist() == [0, 0, 0.5, 0.875]
    assert metrics.expected_calibration_error(predictions, 4) == pytest.approx((0.5 + 2 * 0.125) / 3)
    assert "micro_f1_without_neutral" not in scores(predictions)


def calibration_by_loops(predictions: Predictions, bins: int) -> tuple[float, float]:
    """Class-wise and adaptive calibration error, one utterance after the other; no two of equal confidence."""
    truth, labelled = predictions.labels()
    rows = [row for row in range(len(truth)) if labelled[row]]
    classwise = 0.0
    for label in range(predictions.task.size):
        for part in range(bins):
            inside = [row for row in rows if min(int(predictions.output[row, label] * bins), bins - 1) == part]
            if inside:
                gap = sum(predictions.output[row, label] - (truth[row] == label) for row in inside)
                classwise += abs(gap) / len(rows) / predictions.task.size
    adaptive, rest = 0.0, sorted(rows, key=lambda row: predictions.output[row].max())
    for part in range(bins):
        size = len(rows) // bins + (part < len(rows) % bins)
        inside, rest = rest[:size], rest[size:]
        gap = sum(predictions.output[row].max() - (predictions.output[row].argmax() == truth[row]) for row in inside)
        adaptive += abs(gap) / len(rows)
    assert not rest
    return classwise, adaptive


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", [EMOTION, DISTRIBUTION], ids=["single_label", "distribution"])
def test_calibration_against_loops(task: TaskSpec, seed: int) -> None:
    predictions = random_predictions(task, seed, ((7, 1, 30, 12), (60, 81), (15,), (4, 3))[seed])
    classwise, adaptive = calibration_by_loops(predictions, 15)
    found = scores(predictions)
    assert found["ece_classwise"] == pytest.approx(classwise)
    assert found["ece_adaptive"] == pytest.approx(adaptive)


def test_equal_confidences_share_their_hits() -> None:
    # Two bins of 5 and 4: the cut goes through the seven utterances of confidence 0.75, four of which are right.
    task = TaskSpec("x", "single_label", LabelSchema("two", ("a", "b")))
    output = np.array([[0.75, 0.25]] * 7 + [[0.5, 0.5], [1.0, 0.0]])
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0])
    # |4 * 4/7 + 1 - (4 * 0.75 + 0.5)| + |3 * 4/7 + 1 - (3 * 0.75 + 1)|
    expected = (abs(16 / 7 + 1 - 3.5) + abs(12 / 7 + 1 - 3.25)) / 9
    rng = np.random.default_rng(0)
    for order in (np.arange(9), rng.permutation(9), rng.permutation(9)):
        found = metrics.adaptive_calibration_error(make(task, output[order], truth[order]), 2)
        assert found == pytest.approx(expected)


def test_perfect_calibration_of_all_labels() -> None:
    # Three of four are what is said with 0.75; and the class-wise error sees what the largest probability hides.
    task = TaskSpec("x", "single_label", LabelSchema("three", ("a", "b", "c")))
    output = np.array([[0.75, 0.25, 0.0]] * 4)
    calibrated = scores(make(task, output, [0, 0, 0, 1]))
    assert calibrated["ece"] == calibrated["ece_adaptive"] == calibrated["ece_classwise"] == 0
    blind = scores(make(task, output, [0, 0, 0, 2]))
    assert blind["ece"] == 0
    assert blind["ece_adaptive"] == 0
    assert blind["ece_classwise"] == pytest.approx(0.5 / 3)


def test_rows_that_are_not_valid_do_not_matter() -> None:
    for task in (EMOTION, DISTRIBUTION, LABELS, VAD, SENTIMENT):
        predictions = random_predictions(task, 5)
        expected = scores(predictions)
        predictions.value[~predictions.valid] = 99
        predictions.output[~predictions.valid] = np.nan
        assert scores(predictions) == expected


# Distribution


def test_distribution_scores() -> None:
    predictions = random_predictions(DISTRIBUTION, 0)
    truth, labelled = predictions.labels()
    ties = predictions.valid & ~labelled
    assert ties.any(), "three votes tie often"
    found = scores(predictions)
    as_single = make(
        EMOTION, predictions.output, truth, labelled, lengths=predictions.lengths, speaker=predictions.speaker
    )
    for name, value in scores(as_single).items():
        assert found[name] == pytest.approx(value)
    valid = predictions.valid
    value, output = predictions.value[valid].astype(np.float64), predictions.output[valid]
    expected = torch_oracle.kl_divergence(torch.from_numpy(value), torch.from_numpy(np.maximum(output, 1e-12)))
    assert found["kl"] == pytest.approx(float(expected), rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle.f1_score(value > 1 / 7 + 1e-6, output > 1 / 7, average="macro", zero_division=0)
    assert found["binarised_macro_f1"] == pytest.approx(expected)


def test_uniform_distribution_is_the_empty_set_in_single_precision() -> None:
    # float32(1/6) is greater than 1/6: without a tolerance the uniform row would be the full set.
    task = TaskSpec("emotion", "distribution", get_schema("iemocap6"))
    uniform = np.full((1, 6), 1 / 6, dtype=np.float32)
    assert float(uniform[0, 0]) > 1 / 6
    found = scores(make(task, np.eye(6)[[1]], uniform))
    assert set(found) == {"kl", "binarised_macro_f1"}
    assert found["binarised_macro_f1"] == 0
    assert scores(make(task, uniform, uniform))["kl"] == pytest.approx(0)


# Multi-label


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(5))
def test_multi_label_against_sklearn(seed: int) -> None:
    predictions = random_predictions(LABELS, seed, (7, 1, 30, 12) if seed < 4 else (1,))
    valid = predictions.valid
    truth, said = predictions.value[valid].astype(int), (predictions.output[valid] >= 0.5).astype(int)
    found = scores(predictions)
    for name, empty in (("weighted", 0), ("micro", 0), ("samples", 1)):
        assert found[f"{name}_f1"] == pytest.approx(oracle.f1_score(truth, said, average=name, zero_division=empty))
    occurs = np.flatnonzero((truth | said).any(axis=0))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, said, labels=occurs, average="macro"))
    expected = torch_oracle.classification.multilabel_f1_score(
        torch.from_numpy(predictions.output[valid]), torch.from_numpy(truth), num_labels=6, average="macro"
    )
    # torchmetrics counts a label that occurs nowhere as 0 here (but leaves a class out in the multi-class case).
    assert found["macro_f1"] * len(occurs) / 6 == pytest.approx(float(expected), abs=1e-6)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["hamming"] == pytest.approx(oracle.hamming_loss(truth, said))
    for name, empty in (("jaccard", 1), ("jaccard_zero", 0)):
        assert found[name] == pytest.approx(oracle.jaccard_score(truth, said, average="samples", zero_division=empty))
    assert found["accuracy"] <= found["jaccard"] <= found["samples_f1"]
    for column, label in enumerate(LABELS.output_names):
        if 0 < truth[:, column].sum() < len(truth):
            balanced = oracle.balanced_accuracy_score(truth[:, column], said[:, column])
            assert found[f"weighted_accuracy/{label}"] == pytest.approx(balanced)
    counts = metrics.conversation_counts(predictions)
    assert counts.shape == (len(predictions.lengths), 6, 3)
    expected_counts = oracle.multilabel_confusion_matrix(truth, said)
    assert np.array_equal(counts.sum(0), expected_counts[:, [1, 0, 1], [1, 1, 0]])
    table = metrics.per_class(predictions)
    expected_table = oracle.precision_recall_fscore_support(truth, said, zero_division=0)
    assert [row["precision"] for row in table.values()] == pytest.approx(list(expected_table[0]))
    assert [row["support"] for row in table.values()] == pytest.approx(list(expected_table[3]))


def test_two_empty_sets_of_labels_are_equal() -> None:
    """One rule: every score of sets counts the second utterance, rightly without any label, as right."""
    value = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=float)
    said = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]], dtype=float)
    found = scores(make(LABELS, said, value))
    assert {found[name] for name in metrics.EMPTY_SETS} == {0.5}
    assert found["jaccard_zero"] == 0.25
    perfect = scores(make(LABELS, value, value))
    assert {perfect[name] for name in metrics.EMPTY_SETS} == {1.0}
    assert perfect["jaccard_zero"] == 0.5
    assert all("empt" in metrics.METRICS[name] for name in (*metrics.EMPTY_SETS, "jaccard_zero"))


def test_weighted_accuracy_is_that_of_mosei() -> None:
    value = np.array([[1, 1, 0, 1, 0, 1]] * 2 + [[0, 1, 0, 0, 0, 1]] * 6, dtype=float)
    said = value.copy()
    said[:3, 0] = [0, 1, 1]  # one of two found, one false alarm among six
    said[:, 3] = 0
    found = scores(make(LABELS, said, value))
    labels = LABELS.output_names
    tp, tn, p, n = 1, 5, 2, 6
    assert found[f"weighted_accuracy/{labels[0]}"] == pytest.approx((tp * n / p + tn) / (2 * n))
    assert found[f"weighted_accuracy/{labels[3]}"] == 0.5
    # Labels that all or no utterances have say nothing.
    assert [name for name in found if "/" in name] == [f"weighted_accuracy/{labels[place]}" for place in (0, 3)]
    assert found["weighted_accuracy"] == pytest.approx((2 / 3 + 0.5) / 2)
    nobody = scores(make(LABELS, said, np.zeros_like(value)))
    assert not [name for name in nobody if name.startswith("weighted_accuracy")]
    metrics.check_metric(LABELS, f"weighted_accuracy/{labels[1]}")
    assert metrics.higher_is_better(f"weighted_accuracy/{labels[1]}")


SIMS = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-1, high=1)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_ch_sims(seed: int) -> None:
    """Against its definition by intervals that are open below and closed above, also at the edges themselves."""
    rng = np.random.default_rng(seed)
    edges = np.array([-1, -0.7, -0.1, 0, 0.1, 0.7, 1], dtype=np.float32)
    value = np.concatenate([edges, rng.choice(edges, 60), rng.uniform(-1, 1, 60).astype(np.float32)])[:, None]
    output = np.concatenate([rng.permutation(value[:67]), rng.uniform(-1.2, 1.2, (60, 1)).astype(np.float32)])
    found = scores(make(SIMS, output.astype(float), value))
    bounds = {
        2: [(-9, 0), (0, 9)],
        3: [(-9, -0.1), (-0.1, 0.1), (0.1, 9)],
        5: [(-9, -0.7), (-0.7, -0.1), (-0.1, 0.1), (0.1, 0.7), (0.7, 9)],
    }

    def classes(numbers: np.ndarray, parts: list[tuple[float, float]]) -> list[int]:
        single = [(np.float32(low), np.float32(high)) for low, high in parts]
        return [next(k for k, (low, high) in enumerate(single) if low < np.float32(x) <= high) for x in numbers[:, 0]]

    for number, parts in bounds.items():
        said, true = classes(output, parts), classes(value, parts)
        assert found[f"sims_acc{number}"] == pytest.approx(oracle.accuracy_score(true, said))
    said, true = classes(output, bounds[2]), classes(value, bounds[2])
    assert found["sims_f1"] == pytest.approx(oracle.f1_score(true, said, average="weighted"))
    assert not {"acc7", "acc5", "acc2_non0"} & set(found)
    assert not [name for name in metrics.metric_names(replace(SIMS, low=-3, high=3)) if name.startswith("sims")]
    assert not [name for name in metrics.metric_names(replace(SIMS, low=0)) if name.startswith(("sims", "acc"))]


@pytest.mark.parametrize("seed", range(4))
def test_best_thresholds_are_the_best(seed: int) -> None:
    predictions = random_predictions(LABELS, seed)
    predictions.output[:] = predictions.output.round(1)  # ties between scores
    predictions.value[:, 5] = 0
    thresholds = metrics.best_thresholds(predictions)
    assert thresholds[5] == 0.5
    valid = predictions.valid
    truth = predictions.value[valid].astype(int)
    for column in range(5):
        values = [
            oracle.f1_score(truth[:, column], predictions.output[valid, column] >= cut, zero_division=0)
            for cut in np.linspace(0, 1.05, 22)  # half the distance between two scores
        ]
        found = oracle.f1_score(truth[:, column], predictions.output[valid, column] >= thresholds[column])
        assert found == pytest.approx(max(values))


def test_a_number_at_the_threshold_is_positive() -> None:
    """Decisions, counts and the choice of thresholds agree: a probability equal to the threshold says yes."""
    task = TaskSpec("x", "multi_label", LabelSchema("two", ("a", "b")))
    output, value = [[0.5, 0.5], [0.4, 0.7], [0.6, 0.3]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    predictions = make(task, output, value)
    assert predictions.decisions().tolist() == [[True, True], [False, True], [True, False]]
    chosen = replace(predictions, thresholds=np.array([0.6, 0.7]))
    assert chosen.decisions().tolist() == [[False, False], [False, True], [True, False]]
    assert metrics.conversation_counts(chosen).sum(axis=0).tolist() == [[1, 0, 1], [1, 0, 0]]
    # Neighbouring numbers have no middle: the upper one is the threshold, and must count as positive.
    low = float(np.nextafter(np.float32(0.7), np.float32(0)))
    close = make(LABEL_A, [[np.float32(0.7)], [low]], [[1.0], [0.0]])
    close = replace(close, thresholds=metrics.best_thresholds(close))
    assert scores(close)["micro_f1"] == 1


def test_a_target_at_one_half_is_no_label() -> None:
    """In counts, in scores of sets and in the choice of thresholds alike: half a vote is no majority."""
    task = TaskSpec("x", "multi_label", LabelSchema("two", ("a", "b")))
    half = make(task, [[0.9, 0.9], [0.9, 0.1]], [[0.5, 1.0], [1.0, 0.0]])
    none = replace(half, value=np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert metrics.conversation_counts(half).tolist() == metrics.conversation_counts(none).tolist()
    assert scores(half) == scores(none)
    output, value = [[0.2], [0.9]], [[0.5], [1.0]]
    assert metrics.best_thresholds(make(LABEL_A, output, value)) == metrics.best_thresholds(
        make(LABEL_A, output, [[0.0], [1.0]])
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threshold_between_neighbouring_numbers(kind: Any) -> None:
    task = TaskSpec("x", "multi_label", LabelSchema("one", ("a",)))
    high = kind(0.7)
    low = np.nextafter(high, kind(0))
    predictions = make(task, [[high], [low]], [[1.0], [0.0]])
    threshold = metrics.best_thresholds(predictions)
    assert low < threshold[0] <= high
    assert kind is np.float64 or low < np.float32(threshold[0]) <= high


# Regression


@pytest.mark.parametrize("seed", range(3))
def test_regression_against_torchmetrics(seed: int) -> None:
    predictions = random_predictions(VAD, seed)
    valid = predictions.valid
    output, value = torch.from_numpy(predictions.output[valid]), torch.from_numpy(predictions.value[valid]).double()
    found = scores(predictions)
    pearson = torch_oracle.pearson_corrcoef(output, value)
    assert [found[f"pearson/{name}"] for name in VAD.dimensions] == pytest.approx(pearson.tolist())
    assert found["pearson"] == pytest.approx(float(pearson.mean()))
    error = (output - value).numpy()
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["rmse/arousal"] == pytest.approx(np.sqrt((error[:, 1] ** 2).mean()))
    # torchmetrics takes unbiased variances; the definition with biased ones, spelled out:
    x, y = predictions.output[valid, 0], predictions.value[valid, 0].astype(np.float64)
    expected = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert found["ccc/valence"] == pytest.approx(expected)
    many = torch_oracle.concordance_corrcoef(output.repeat(200, 1), value.repeat(200, 1))
    assert [found[f"ccc/{name}"] for name in VAD.dimensions] == pytest.approx(many.tolist(), abs=1e-3)
    assert "acc7" not in found
    assert set(found) == set(metrics.metric_names(VAD))


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3])
def test_constant_regression_is_finite(constant: float) -> None:
    value = np.random.default_rng(0).uniform(1, 5, (9, 3))
    found = scores(make(VAD, np.full((9, 3), constant), value))
    assert found["pearson"] == 0
    assert found["ccc"] == pytest.approx(0, abs=1e-12)
    assert all(np.isfinite(number) for number in found.values())
    assert scores(make(VAD, value[:1], value[:1]))["ccc"] == 0


def test_sentiment_scores() -> None:
    value = np.array([[-3.0], [-0.4], [0.0], [0.6], [2.5], [3.0]])
    output = np.array([[-3.6], [0.2], [-0.1], [0.5], [1.5], [2.2]])
    found = scores(make(SENTIMENT, output, value))
    # Half to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
    assert found["acc7"] == pytest.approx(4 / 6)  # -3=-3, 0=0, 0=0, 1/0, 2=2, 3/2
    assert found["acc5"] == pytest.approx(5 / 6)  # both of the last pair are 2
    assert found["acc2_non0"] == pytest.approx(4 / 5)
    assert found["acc2_has0"] == pytest.approx(4 / 6)
    keep = value[:, 0] != 0
    expected = oracle.f1_score(value[keep] > 0, output[keep] > 0, average="weighted")
    assert found["f1_non0"] == pytest.approx(expected)
    assert found["f1_has0"] == pytest.approx(oracle.f1_score(value >= 0, output >= 0, average="weighted"))
    assert set(found) == set(metrics.metric_names(SENTIMENT))
    assert "acc2_non0" not in scores(make(SENTIMENT, [[1.0]], [[0.0]]))


# Names and errors


@pytest.mark.parametrize("task", [EMOTION, DISTRIBUTION, LABELS, VAD, SENTIMENT])
def test_names_agree_with_scores(task: TaskSpec) -> None:
    found = scores(random_predictions(task, 1))
    assert set(found) == set(metrics.metric_names(task))
    for name, number in found.items():
        assert type(number) is float
        metrics.check_metric(task, name)
        metrics.higher_is_better(name)
    metrics.check_metric(task, task.metric)


def test_unknown_metrics_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'weighted_f1'"):
        metrics.check_metric(EMOTION, "weigthed_f1")
    with pytest.raises(ConfigError, match="regression task 'vad'"):
        metrics.check_metric(VAD, "weighted_f1")
    with pytest.raises(ConfigError, match="ccc/valence"):
        metrics.check_metric(VAD, "ccc/valance")
    with pytest.raises(ConfigError, match="'mae'"):
        metrics.higher_is_better("maee")
    assert metrics.higher_is_better("ccc/valence")
    assert not metrics.higher_is_better("rmse/valence")
    tasks = (EMOTION, DISTRIBUTION, LABELS, VAD, SENTIMENT, SIMS)
    assert {task.kind for task in tasks} == set(KINDS)
    named = {name.partition("/")[0] for task in tasks for name in metrics.metric_names(task)}
    assert set(metrics.METRICS) == named
    assert set(metrics.METRICS) >= metrics.LOWER_IS_BETTER


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 utterances"):
        scores(make(EMOTION, np.eye(7)[:2], [0, 1], [False, False]))
    with pytest.raises(ValueError, match="not finite"):
        scores(make(EMOTION, np.full((1, 7), np.nan), [0]))
    with pytest.raises(ValueError, match="value has shape"):
        make(VAD, np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="no decisions"):
        random_predictions(VAD, 0).decisions()
    for function in (metrics.conversation_counts, metrics.best_thresholds):
        with pytest.raises(ValueError, match="not multi_label"):
            function(random_predictions(EMOTION, 0))
    with pytest.raises(ValueError, match="no single right label"):
        metrics.confusion_matrix(random_predictions(LABELS, 0))


def test_take_repeats_conversations() -> None:
    predictions = random_predictions(EMOTION, 2)
    matrices = metrics.conversation_confusions(predictions)
    chosen = predictions.take([2, 0, 2])
    assert chosen.lengths == (30, 7, 30)
    assert np.array_equal(metrics.conversation_confusions(chosen), matrices[[2, 0, 2]])
    shift, _ = metrics.shift_slices(chosen)
    original, _ = metrics.shift_slices(predictions)
    assert shift.sum() == 2 * original[8:38].sum() + original[:7].sum()


def test_score_bounds() -> None:
    from ercfusion.metrics.scores import METRICS, score_bounds

    without_end = {name for name in METRICS if score_bounds(name)[1] == np.inf}
    assert without_end == {"nll", "kl", "mae", "rmse"}
    assert {name for name in METRICS if score_bounds(name)[0] == -1} == {"pearson", "ccc"}
    assert {score_bounds(name) for name in METRICS} == {(0.0, 1.0), (0.0, np.inf), (-1.0, 1.0)}
    assert score_bounds("ccc/valence") == (-1.0, 1.0)
