"""Outputs of one kind of task as outputs of another one with the same labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import TaskTargets
from ercfusion.batch.kinds import task_kind
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.views import source_of, view_predictions, with_thresholds
from ercfusion.batch.votes import sets_above_uniform
from ercfusion.metrics.registry import scores

SCHEMA = LabelSchema("three", ("a", "b", "c"))
EMOTION = TaskSpec("emotion", "single_label", SCHEMA)
SHARES = TaskSpec("shares", "distribution", SCHEMA)
SETS = TaskSpec("sets", "multi_label", SCHEMA)
OTHER = TaskSpec("mood", "single_label", LabelSchema("two", ("good", "bad")))
FORCE = TaskSpec("force", "regression", dimensions=("force",))


def softmax(seed: int = 0, rows: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([1.0, 1.0, 1.0], size=rows)


def predictions(task: TaskSpec, output: np.ndarray, value: Any) -> Predictions:
    count = len(output)
    return Predictions(
        task, output, np.asarray(value), np.ones(count, dtype=bool), (count,), np.zeros(count, dtype=int), ("c",),
        tuple(map(str, range(count))),
    )  # fmt: skip


@pytest.mark.parametrize("source", ["single_label", "distribution"])
@pytest.mark.parametrize("kind", ["single_label", "distribution", "multi_label"])
def test_exclusive_probabilities_are_used_unchanged(source: str, kind: str) -> None:
    output = softmax()
    assert task_kind(kind).view(output, task_kind(source)) is output


@pytest.mark.parametrize("kind", ["single_label", "distribution"])
def test_independent_probabilities_are_divided_by_their_sum(kind: str) -> None:
    output = np.array([[0.9, 0.6, 0.5], [0.0, 0.0, 0.0], [0.0, 0.2, 0.0]])
    view = task_kind(kind).view(output, task_kind("multi_label"))
    np.testing.assert_allclose(view, [[0.45, 0.3, 0.25], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]], rtol=1e-15)
    assert task_kind("multi_label").view(output, task_kind("multi_label")) is output
    assert output[1].tolist() == [0, 0, 0]  # the input is not changed


@pytest.mark.parametrize(("kind", "source"), [("regression", "single_label"), ("multi_label", "regression")])
def test_numbers_are_neither_source_nor_view(kind: str, source: str) -> None:
    with pytest.raises(ValueError, match="only probabilities of labels"):
        task_kind(kind).view(softmax(), task_kind(source))


def test_a_view_has_the_scores_of_a_task_with_these_outputs() -> None:
    output, truth = softmax(), np.random.default_rng(1).integers(3, size=40)
    own = predictions(EMOTION, output, truth)
    target = torch.from_numpy(softmax(2)).float()
    targets = TaskTargets(target, torch.arange(40) % 4 > 0)
    view = view_predictions(own, SHARES, targets)
    expected = replace(predictions(SHARES, output, target.numpy()), valid=targets.valid.numpy())
    assert scores(view) == scores(expected)
    logarithm = np.log(target.double().numpy().clip(1e-12) / output)
    kl = (target.double().numpy() * logarithm).sum(axis=1)[targets.valid.numpy()].mean()
    assert scores(view)["kl"] == pytest.approx(kl)


def test_thresholds_are_those_with_the_best_f1_on_dev() -> None:
    output = softmax()
    dev = predictions(SETS, output, (output > np.array([0.2, 0.5, 0.7])).astype(np.float32))
    test = predictions(SETS, softmax(3), np.zeros((40, 3), dtype=np.float32))
    chosen = with_thresholds(dev, [dev, test])
    assert all(part.thresholds is not None for part in chosen)
    np.testing.assert_array_equal(chosen[0].thresholds, chosen[1].thresholds)
    assert scores(chosen[0])["macro_f1"] == 1
    assert with_thresholds(replace(dev, valid=np.zeros(40, dtype=bool)), [test]) == [test]
    own = predictions(EMOTION, output, output.argmax(axis=1))
    assert with_thresholds(own, [own]) == [own]


def test_thresholds_by_name_need_no_labels() -> None:
    output = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    dev = replace(predictions(SETS, output, np.zeros((3, 3), dtype=np.float32)), valid=np.zeros(3, dtype=bool))
    (uniform,) = with_thresholds(dev, [dev], "uniform")
    assert np.array_equal(uniform.decisions(), sets_above_uniform(output))
    assert uniform.decisions().tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    (half,) = with_thresholds(dev, [dev], "half")
    assert half.decisions().sum() == 1
    own = predictions(EMOTION, output, output.argmax(axis=1))
    assert with_thresholds(own, [own], "uniform") == [own]


def test_the_source_is_the_first_learned_task_with_the_labels() -> None:
    assert source_of(SETS, [FORCE, OTHER, EMOTION, SHARES]) == EMOTION
    assert source_of(OTHER, [EMOTION, replace(OTHER, name="temper")]).name == "temper"
    # The schema's name may differ, its labels and their order may not.
    renamed = replace(EMOTION, schema=LabelSchema("renamed", SCHEMA.labels))
    assert source_of(SHARES, [renamed]) == renamed


@pytest.mark.parametrize(
    ("view", "tasks", "words"),
    [
        (OTHER, [EMOTION, FORCE], "'mood' has the labels good, bad, and no learned task has the same"),
        (replace(SETS, schema=LabelSchema("three", ("b", "a", "c"))), [EMOTION], "has the labels b, a, c"),
        (FORCE, [EMOTION], "'force' is a regression task: only tasks whose outputs are probabilities of labels"),
        (SHARES, [FORCE], r"needs probabilities of labels, but the run learns force \(regression\)"),
    ],
)
def test_impossible_views_are_refused(view: TaskSpec, tasks: list[TaskSpec], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        source_of(view, tasks)


def test_votes_are_those_of_the_view() -> None:
    part = predictions(EMOTION, softmax(rows=4), [0, 1, 2, 0])
    votes = torch.tensor([[3.0, 2, 0], [0, 5, 0], [1, 1, 3], [2, 0, 0]])
    targets = TaskTargets(torch.zeros(4, 3), torch.ones(4, dtype=torch.bool), votes)
    view = view_predictions(part, SHARES, targets)
    assert np.array_equal(view.votes, votes.numpy())
    assert view_predictions(view, EMOTION, TaskTargets(torch.zeros(4), torch.ones(4, dtype=torch.bool))).votes is None
    several = replace(view, lengths=(1, 3), conversation_ids=("c", "d"))
    assert np.array_equal(several.take([1, 0]).votes, votes.numpy()[[1, 2, 3, 0]])
    with pytest.raises(ValueError, match="votes has shape"):
        replace(view, votes=votes.numpy()[:, :2])
