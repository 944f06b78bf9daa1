"""Archives say what the records say, in little room, and nothing about where they were made."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_records import record

from ercfusion._core.errors import RunError
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.record import record_sums


@pytest.fixture(scope="module")
def records():
    return [record(seed=seed) for seed in (2, 0, 1)]


def test_what_is_written_is_read(tmp_path, records):
    path = write_archive(tmp_path / "a" / "concat.json", records)
    found = read_archive(path)
    assert [entry["seed"] for entry in found] == [0, 1, 2]
    for entry in found:
        original = next(other for other in records if other["seed"] == entry["seed"])
        for key in (
            "metrics",
            "selection",
            "cost",
            "task",
            "environment",
            "optimism",
            "majority",
            "corpus",
            "protocol",
        ):
            assert entry[key] == original[key], key
        assert entry["splits"]["test"] == original["splits"]["test"]
        assert entry["config"]["model"] == original["config"]["model"]
        for split in ("test",):
            ids, sums = record_sums(entry, split)
            expected_ids, expected = record_sums(original, split)
            assert ids == expected_ids
            for key, array in expected.items():
                np.testing.assert_array_equal(sums[key], array)


def test_writing_what_was_read_changes_nothing(tmp_path, records):
    once = write_archive(tmp_path / "once.json", records)
    again = write_archive(tmp_path / "again.json", read_archive(once))
    assert once.read_bytes() == again.read_bytes()


def test_no_place_of_a_machine_and_no_dev_counts(tmp_path, records):
    text = write_archive(tmp_path / "concat.json", records).read_text()
    assert "someone" not in text
    assert "demo-text" in text  # the pack's name says something, its folder does not
    assert "dev" not in read_archive(tmp_path / "concat.json")[0]["splits"]


def test_shared_entries_stand_once(tmp_path, records):
    text = write_archive(tmp_path / "concat.json", records).read_text()
    assert text.count("f" * 64) == 1
    assert text.count("test/11") == 1
    assert len(text.splitlines()) == 2 + len(records)


def test_seeds_alone_differ_or_everything_does(tmp_path):
    mixed = [record("concat", 0), record("cogmen", 1, 0.8)]
    found = read_archive(write_archive(tmp_path / "mixed.json", mixed))
    assert [entry["config"]["preset"]["model"] for entry in found] == ["concat", "cogmen"]
    assert "lags" not in found[0]["config"]["model"]
    assert found[1]["splits"]["test"]["confusion"] == mixed[1]["splits"]["test"]["confusion"]


def test_mistakes(tmp_path, records):
    with pytest.raises(ValueError, match="at least one record"):
        write_archive(tmp_path / "none.json", [])
    with pytest.raises(RunError, match="is missing"):
        read_archive(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("not JSON")
    with pytest.raises(RunError, match="line 1: not valid JSON"):
        read_archive(tmp_path / "text.json")
    (tmp_path / "other.json").write_text('{"archive": 99}')
    with pytest.raises(RunError, match="format 99"):
        read_archive(tmp_path / "other.json")
    content = json.loads(write_archive(tmp_path / "good.json", records).read_text())
    content["shared"]["splits"]["test"]["ids"].pop()
    (tmp_path / "short.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged"):
        read_archive(tmp_path / "short.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(RunError, match="format None"):
        read_archive(tmp_path / "list.json")


def test_scores_by_class_follow_from_the_confusion(tmp_path, records):
    path = write_archive(tmp_path / "concat.json", records)
    assert "per_class" not in path.read_text()
    originals = {entry["seed"]: entry for entry in records}
    for entry in read_archive(path):
        expected = originals[entry["seed"]]["splits"]["test"]["per_class"]
        assert expected
        assert entry["splits"]["test"]["per_class"] == expected


def test_scores_by_class_that_were_written_are_read(tmp_path, records):
    path = write_archive(tmp_path / "concat.json", records)
    content = json.loads(path.read_text())
    for entry in content["runs"]:
        entry["splits"]["test"]["per_class"] = {"joy": {"f1": 0.25}}
    path.write_text(json.dumps(content))
    assert read_archive(path)[0]["splits"]["test"]["per_class"] == {"joy": {"f1": 0.25}}


def of_regression(seed: int) -> dict:
    """A record whose test split has moments of two dimensions; in each the first and third sum are of the truth."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    split = record(seed=seed)["splits"]["test"]
    ids = list(split["confusion"])
    table = rng.standard_normal((len(ids), 2, 4)) * 1e3
    table[:, :, ::2] = truth.integers(0, 20, (len(ids), 2, 2))
    moments = {name: [[float(f"{x:.9g}") for x in row] for row in rows] for name, rows in zip(ids, table, strict=True)}
    kept = {key: value for key, value in split.items() if key not in ("confusion", "shift", "per_class")}
    made = record(seed=seed)
    task = {"name": "va", "kind": "regression", "schema": None, "dimensions": ["v", "a"]}
    made["task"] = {**task, "low": 0.0, "high": 9.0, "metric": "mae"}
    return {**made, "splits": {**made["splits"], "test": {**kept, "moments": moments}}}


def test_moments_are_kept_to_the_last_digit_and_those_of_the_truth_once(tmp_path):
    records = [of_regression(seed) for seed in (0, 1, 2)]
    path = write_archive(tmp_path / "mae.json", records)
    for found, original in zip(read_archive(path), records, strict=True):
        assert found["splits"]["test"]["moments"] == original["splits"]["test"]["moments"]
    content = json.loads(path.read_text())
    assert set(content["shared"]["splits"]["test"]["moments"]) == {"0.0", "0.2", "1.0", "1.2"}
    assert all(set(run["splits"]["test"]["moments"]) == {"0.1", "0.3", "1.1", "1.3"} for run in content["runs"])
    del content["shared"]["splits"]["test"]["moments"]
    # A column that is missing is damage.
    content["runs"][0]["splits"]["test"]["moments"] = {"0.0": "1 2", "1.1": "1 2"}
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged"):
        read_archive(path)
