"""Labels as Gaussians: distributions of numbers, expectations, and estimation from data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ercfusion._core.errors import CorpusFormatError
from ercfusion.data.corpora._demo_vad import CENTRES, VAD
from ercfusion.data.corpora.demo import DemoCorpus
from ercfusion.data.label_mixture import LabelMixture, mixture_of

LABELS = ("calm", "joy", "anger")
DIMENSIONS = ("valence", "arousal")
MEAN = np.array([[3.0, 1.5], [4.5, 4.0], [1.5, 4.2]])
COVARIANCE = np.array([[[0.5, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]])
MIXTURE = LabelMixture(LABELS, DIMENSIONS, MEAN, COVARIANCE)


def test_a_distribution_is_the_share_of_the_densities() -> None:
    values = np.random.default_rng(0).uniform(1, 5, (50, 2))
    density = np.stack([stats.multivariate_normal(m, s).pdf(values) for m, s in zip(MEAN, COVARIANCE, strict=True)], 1)
    found = MIXTURE.distribution(values)
    np.testing.assert_allclose(found, density / density.sum(axis=1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_a_centre_prefers_its_label_and_far_points_are_finite() -> None:
    assert MIXTURE.distribution(MEAN).argmax(axis=1).tolist() == [0, 1, 2]
    far = MIXTURE.distribution([[1e4, -1e4]])
    assert np.isfinite(far).all()
    assert far.sum() == pytest.approx(1)


def test_the_expectation_of_a_distribution() -> None:
    np.testing.assert_allclose(MIXTURE.expected(np.eye(3)), MEAN)
    np.testing.assert_allclose(MIXTURE.expected([[0.5, 0.5, 0.0]]), [[3.75, 2.75]])


def test_estimation_finds_the_gaussians() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.multivariate_normal(m, s, 20_000) for m, s in zip(MEAN, COVARIANCE, strict=True)]
    found = LabelMixture.estimated(np.concatenate(parts), np.repeat(np.eye(3), 20_000, axis=0), LABELS, DIMENSIONS, 0.0)
    np.testing.assert_allclose(found.mean, MEAN, atol=0.03)
    np.testing.assert_allclose(found.covariance, COVARIANCE, atol=0.03)


def test_shares_weigh_samples() -> None:
    values = [[1.0, 1.0], [3.0, 5.0]]
    shares = [[0.75, 0.25], [0.25, 0.75]]
    found = LabelMixture.estimated(values, shares, ("a", "b"), DIMENSIONS, floor=0.5)
    np.testing.assert_allclose(found.mean, [[1.5, 2.0], [2.5, 4.0]])
    # By hand: 0.75 * 0.5 ** 2 + 0.25 * 1.5 ** 2, and the square of the floor.
    assert found.covariance[0, 0, 0] == pytest.approx(0.75 + 0.25)
    assert found.covariance[0, 0, 1] == pytest.approx(0.75 * 0.5 * 1 + 0.25 * 1.5 * 3)


def test_a_corpus_with_both_targets() -> None:
    demo = DemoCorpus()
    protocol = demo.protocol()
    mixture = mixture_of(demo.conversations(protocol)["train"], protocol.task, VAD)
    assert mixture.labels == protocol.task.output_names
    np.testing.assert_allclose(mixture.mean, [CENTRES[label] for label in mixture.labels], atol=0.5)
    test = [turn for part in demo.conversations(protocol)["test"] for turn in part.turns]
    found = mixture.distribution([turn.targets["vad"].value for turn in test])
    right = [mixture.labels[c] == turn.targets["emotion"].value for c, turn in zip(found.argmax(1), test, strict=True)]
    assert np.mean(right) > 0.7  # the most frequent label has 0.3
    error = np.abs(mixture.expected(found) - [turn.targets["vad"].value for turn in test]).mean()
    assert error < 0.5


def test_labels_without_samples_and_wrong_gaussians_are_refused() -> None:
    with pytest.raises(CorpusFormatError, match="no sample with numbers has the labels joy, anger"):
        LabelMixture.estimated([[1.0, 2.0]], [[1.0, 0.0, 0.0]], LABELS, DIMENSIONS)
    with pytest.raises(CorpusFormatError, match="no sample with numbers"):
        mixture_of([], DemoCorpus().protocol().task, VAD)
    for mean, covariance, message in (
        (MEAN[:2], COVARIANCE, "expected means"),
        (MEAN, COVARIANCE * np.nan, "must be finite"),
        (MEAN, COVARIANCE * 0, "the covariance of 'calm' is not symmetric and positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelMixture(LABELS, DIMENSIONS, mean, covariance)
