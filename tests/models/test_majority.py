from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_store


def predict(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What the model answers on other data, one row, and the labelled training targets."""
    torch.manual_seed(0)
    task = make_task(kind)
    train = random_store((9, 30, 21), tasks=[task], labelled=0.7, seed=3)
    other = random_store((3, 6), tasks=[task], seed=4)
    recognizer = Recognizer("majority", train.inputs, task)
    recognizer.prepare(train)
    output = recognizer.predict(other).output
    assert (output == output[0]).all()
    targets = train.targets[task.name]
    return output[0], targets.value[targets.valid].numpy()


def test_single_label() -> None:
    output, value = predict("single_label")
    share = np.bincount(value, minlength=4) / len(value)
    np.testing.assert_allclose(output, share, atol=1e-6)
    oracle = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(value), 1)), value)
    assert output.argmax() == oracle.predict(np.zeros((1, 1)))[0]


@pytest.mark.parametrize("kind", ["multi_label", "distribution", "regression"])
def test_mean(kind: str) -> None:
    output, value = predict(kind)
    assert len(value) < 60
    np.testing.assert_allclose(output, value.mean(0), atol=1e-5)


def test_it_has_no_parameters() -> None:
    task = make_task()
    recognizer = Recognizer("majority", random_store(tasks=[task]).inputs, task)
    assert not list(recognizer.architecture.parameters())
