"""Scores under laws of missing modalities: texts of sums, grids of laws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_records import TASK, predictions, robust_record

from ercfusion._core.errors import RunError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.metrics.registry import score_source
from ercfusion.metrics.sums import SUMS
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.record import checked_record
from ercfusion.records.robustness import (
    headline_scores,
    read_sums,
    robust_keys,
    robust_sums,
    write_sums,
)


@pytest.mark.parametrize("shape", [(2, 2), (7, 7), (4, 3), (8, 8)])
def test_counts_as_text(shape):
    rng = np.random.default_rng(0)
    complete, sums = rng.poisson(0.8, size=(2, 30, *shape))
    text = write_sums(sums, complete)
    assert isinstance(text, str)
    np.testing.assert_array_equal(read_sums(text, complete), sums)
    assert write_sums(complete, complete) == ""
    np.testing.assert_array_equal(read_sums("", complete), complete)


def test_numbers_as_columns_without_those_of_the_truth():
    rng = np.random.default_rng(0)
    complete, sums = rng.normal(size=(2, 30, 2, 5))
    sums[:, :, [0, 3]] = complete[:, :, [0, 3]]
    columns = write_sums(sums, complete)
    assert isinstance(columns, dict)
    assert sorted(columns) == ["0.1", "0.2", "0.4", "1.1", "1.2", "1.4"]
    np.testing.assert_allclose(read_sums(columns, complete), sums, rtol=1e-8)
    assert write_sums(complete, complete) == {}


def test_text_of_other_conversations_is_refused():
    sums = np.ones((3, 2, 2), dtype=np.int64)
    assert read_sums("ad|b2c13|", sums).tolist() == [[[1, 0], [0, 1]], [[0, 2], [13, 0]], [[0, 0], [0, 0]]]
    with pytest.raises(ValueError, match="2 conversations instead of 3"):
        read_sums("ad|abcd", sums)
    with pytest.raises(ValueError, match="'1a' has no places of 1 letters"):
        read_sums("ad|1a|abcd", sums)
    with pytest.raises(IndexError):
        read_sums("ad|ae|abcd", sums)


def test_a_record_keeps_scores_and_sums(tmp_path):
    made = checked_record(json.loads(json.dumps(robust_record())), tmp_path / "record.json")
    expected = conversation_sums(predictions(0.25, 6050))["confusion"]
    sums = robust_sums(made, "rate:0.5", "confusion")
    np.testing.assert_array_equal(sums, expected)
    source = score_source(TASK, "weighted_f1")
    assert source is not None
    score = made["robustness"]["laws"]["rate:0.5"]["metrics"]["weighted_f1"]
    assert source[1](sums.sum(axis=0)) == pytest.approx(score, abs=1e-6)
    (archived,) = read_archive(write_archive(tmp_path / "a.json", [made]))
    assert archived["robustness"] == made["robustness"]
    np.testing.assert_array_equal(robust_sums(archived, "rate:0.5", "confusion"), expected)


def test_what_a_record_does_not_have():
    made = robust_record()
    with pytest.raises(RunError, match=r"no scores under the law rmm:0.5. Choose from: pattern:text, .*, rate:0.5"):
        robust_sums(made, "rmm:0.5", "confusion")
    with pytest.raises(RunError, match="no sums 'counts'"):
        robust_sums(made, "rate:0.5", "counts")
    made["robustness"]["laws"]["rate:0.5"]["sums"]["confusion"] = "a|b"
    with pytest.raises(RunError, match=r"rate:0.5.sums.confusion is damaged: 2 conversations instead of 12"):
        robust_sums(made, "rate:0.5", "confusion")


def test_scores_and_sums_of_every_kind():
    schema = get_schema("demo6")
    keys = [
        (TASK, ("confusion",)),
        (TaskSpec("d", "distribution", schema), ("divergence", "confusion")),
        (TaskSpec("m", "multi_label", schema), ("counts",)),
        (TaskSpec("r", "regression", None, dimensions=("valence",), low=-1, high=1), ("moments",)),
    ]
    for task, expected in keys:
        assert robust_keys(task, task.metric) == expected
        assert set(expected) <= set(SUMS)
        assert headline_scores(task, task.metric)[0] == task.metric


def test_fifteen_laws_of_thirty_conversations_need_little_room(tmp_path):
    """The archive of CMU-MOSI's size: 31 conversations, two classes."""
    rng = np.random.default_rng(0)
    complete = rng.poisson(6, size=(31, 2, 2))
    texts = [write_sums(rng.poisson(6, size=(31, 2, 2)), complete) for _ in range(15)]
    assert sum(map(len, texts)) < 6_000
