"""Predictions in the labels that two schemas share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.shared import UNMAPPED, shared_labels
from ercfusion.batch.task import TaskSpec

MELD, EMORY, IEMOCAP = get_schema("meld7"), get_schema("emorynlp7"), get_schema("iemocap6")


def made(task: TaskSpec, output: Any, value: Any, valid: Any = None, thresholds: Any = None) -> Predictions:
    count = len(output)
    return Predictions(
        task=task,
        output=np.asarray(output, dtype=float),
        value=np.asarray(value),
        valid=np.ones(count, dtype=bool) if valid is None else np.asarray(valid),
        lengths=(count,),
        speaker=np.zeros(count, dtype=int),
        conversation_ids=("c",),
        turn_ids=tuple(map(str, range(count))),
        thresholds=thresholds,
    )


def row(schema: LabelSchema, **numbers: float) -> list[float]:
    return [numbers.get(label, 0.0) for label in schema.labels]


def test_single_labels_by_sums_of_probabilities() -> None:
    """Happy and excited together beat angry; frustrated has no counterpart."""
    shared = shared_labels(IEMOCAP, MELD)
    assert shared.schema.labels == ("neutral", "sadness", "joy", "anger")
    output = [row(IEMOCAP, happy=0.25, excited=0.25, angry=0.3, frustrated=0.2), row(IEMOCAP, frustrated=1)]
    part = made(TaskSpec("emotion", "single_label", IEMOCAP), output, [0, 5])
    truth = np.array([MELD.index("joy"), MELD.index("surprise")])
    mapped = shared.of(part, (truth, np.array([True, True])))
    np.testing.assert_allclose(mapped.output[0], [0, 0, 0.5 / 0.8, 0.3 / 0.8])
    np.testing.assert_allclose(mapped.output[1], [0.25] * 4)  # no evidence for any shared label
    assert mapped.task.output_names[mapped.decisions()[0]] == "joy"
    assert mapped.valid.tolist() == [True, False]  # surprise: no label of IEMOCAP
    own = shared.of(part)
    assert own.valid.tolist() == [True, False]  # frustrated: no label of MELD
    assert own.value[0] == 2


def test_probability_of_labels_without_counterpart_as_wrong() -> None:
    shared = shared_labels(IEMOCAP, MELD, "wrong")
    assert shared.schema.labels == ("neutral", "sadness", "joy", "anger", UNMAPPED)
    output = [row(IEMOCAP, happy=0.2, excited=0.1, frustrated=0.7)]
    part = made(TaskSpec("emotion", "single_label", IEMOCAP), output, [5])
    mapped = shared.of(part, (np.array([MELD.index("joy")]), np.array([True])))
    np.testing.assert_allclose(mapped.output, [[0, 0, 0.3, 0, 0.7]])
    assert mapped.decisions().tolist() == [4]
    assert mapped.value.tolist() == [2]
    assert not shared.of(part).valid.any()  # the run's own "frustrated" is dropped, as in the other corpus


def test_without_a_map_of_outputs_the_targets_are_mapped() -> None:
    three = get_schema("meld3")
    shared = shared_labels(three, EMORY)
    assert (shared.label_map.source, shared.label_map.target) == ("emorynlp7", "meld3")
    assert shared.schema is three
    part = made(TaskSpec("sentiment", "single_label", three), np.eye(3), [0, 1, 2])
    truth = np.array([EMORY.index(label) for label in ("peaceful", "mad", "neutral")])
    mapped = shared.of(part, (truth, np.ones(3, dtype=bool)))
    assert [three.labels[index] for index in mapped.value] == ["positive", "negative", "neutral"]
    np.testing.assert_array_equal(mapped.output, np.eye(3))


def test_equal_labels_change_nothing_but_the_order() -> None:
    lines = get_schema("emotionlines7")
    share = np.random.default_rng(0).dirichlet(np.ones(7), 4)
    part = made(TaskSpec("emotion", "single_label", MELD), share, [0, 1, 2, 6])
    mapped = shared_labels(MELD, lines).of(part)
    assert mapped.task.schema is lines
    np.testing.assert_array_equal(mapped.output, share[:, [MELD.index(label) for label in lines.labels]])
    assert [lines.labels[index] for index in mapped.value] == [MELD.labels[index] for index in (0, 1, 2, 6)]


def test_distributions() -> None:
    task = TaskSpec("votes", "distribution", MELD)
    value = np.array([row(MELD, joy=0.4, surprise=0.6), row(MELD, disgust=1)], dtype=np.float32)
    mapped = shared_labels(MELD, EMORY).of(made(task, value, value))
    assert mapped.valid.tolist() == [True, False]
    voted = replace(made(task, value, value), votes=5 * value)
    np.testing.assert_allclose(shared_labels(MELD, EMORY).of(voted).votes, [[2, 0, 0, 0, 0], [0] * 5])
    assert mapped.task.output_names == ("joyful", "mad", "neutral", "sad", "scared")
    np.testing.assert_allclose(mapped.value[0], [1, 0, 0, 0, 0])
    assert mapped.value.dtype == np.float32
    wrong = shared_labels(MELD, EMORY, "wrong").of(made(task, value, value))
    np.testing.assert_allclose(wrong.output[0], [0.4, 0, 0, 0, 0, 0.6], atol=1e-6)


def test_label_sets() -> None:
    task = TaskSpec("emotions", "multi_label", IEMOCAP)
    value = np.array([row(IEMOCAP, happy=1, excited=1, frustrated=1), row(IEMOCAP, frustrated=1)], dtype=np.float32)
    output = np.array([row(IEMOCAP, happy=0.2, excited=0.6, angry=0.35), row(IEMOCAP, sad=0.4)])
    part = made(task, output, value, thresholds=np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    mapped = shared_labels(IEMOCAP, MELD).of(part)
    assert mapped.task.output_names == ("neutral", "sadness", "joy", "anger")
    np.testing.assert_array_equal(mapped.value, [[0, 0, 1, 0], [0, 0, 0, 0]])
    assert mapped.valid.all()  # label by label: an empty set is a target
    np.testing.assert_allclose(mapped.output, [[0, 0, 0.6, 0.35], [0, 0.4, 0, 0]])
    np.testing.assert_allclose(mapped.thresholds, [0.3, 0.2, 0.5, 0.4])
    np.testing.assert_array_equal(mapped.decisions(), [[0, 0, 1, 0], [0, 1, 0, 0]])


def test_what_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match="no label map from meld3 to demo6"):
        shared_labels(get_schema("meld3"), get_schema("demo6"))
    task = TaskSpec("score", "regression", dimensions=("sentiment",), low=-3, high=3)
    numbers = np.zeros((2, 1))
    with pytest.raises(ConfigError, match="a task of numbers has no labels"):
        task.rules.merge_outputs(numbers, np.eye(1))
    with pytest.raises(ConfigError, match="a task of numbers has no labels"):
        task.rules.merge_targets(numbers, np.ones(2, dtype=bool), np.eye(1))
