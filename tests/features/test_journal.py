"""The journal: what was appended is there again, and a torn end is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ercfusion._core.errors import PackError
from ercfusion.data.recordings import Source
from ercfusion.features.journal import Journal, Result


def results() -> dict[int, Result]:
    chance = np.random.default_rng(0)
    return {
        7: Result(chance.standard_normal((1, 4)).astype(np.float32), "", 1.5, Source("a.wav", "0" * 64, 12, 1 << 60)),
        2: Result(None, "the file is empty (0 bytes)"),
        3: Result(chance.standard_normal((5, 4)).astype(np.float32), "silent"),
        0: Result(np.empty((0, 4), np.float32)),
    }


def filled(path: Path) -> Path:
    with Journal(path) as journal:
        for item, result in results().items():
            journal.append(item, result)
    return path


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    with Journal(filled(tmp_path / "journal")) as journal:
        assert list(journal.records) == [7, 2, 3, 0]
        for item, result in results().items():
            record = journal.records[item]
            assert (record.reason, record.seconds, record.source) == (result.reason, result.seconds, result.source)
            if result.values is None:
                assert record.position < 0
            else:
                np.testing.assert_array_equal(journal.values(item), result.values)
        journal.append(9, Result(np.ones((1, 4), np.float16)))
        np.testing.assert_array_equal(journal.values(3), results()[3].values)
    with Journal(tmp_path / "journal") as journal:
        assert journal.values(9).dtype == np.float16


def test_values_can_be_read_between_appends(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        for item in range(20):
            journal.append(item, Result(np.full((2, 3), item, np.float32)))
            np.testing.assert_array_equal(journal.values(item // 2), np.full((2, 3), item // 2))


def test_torn_at_any_byte(tmp_path: Path) -> None:
    """Whatever part of the file is there: all whole records are found, and appending goes on behind them."""
    data = filled(tmp_path / "whole").read_bytes()
    counts = set()
    for length in range(len(data)):
        path = tmp_path / "torn"
        path.write_bytes(data[:length])
        with Journal(path) as journal:
            items = list(journal.records)
            assert items == [7, 2, 3, 0][: len(items)]
            counts.add(len(items))
            journal.append(5, Result(np.zeros((1, 4), np.float32)))
        with Journal(path) as journal:
            assert list(journal.records) == [*items, 5]
    assert counts == {0, 1, 2, 3}


def test_a_block_that_never_reached_the_disk(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal")
    data = bytearray(path.read_bytes())
    data[-40:] = bytes(40)
    path.write_bytes(data)
    with Journal(path) as journal:
        assert list(journal.records)[:2] == [7, 2]
        assert len(journal.records) < 4


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"something else entirely, and long enough")
    with pytest.raises(PackError, match="not a journal of an extraction"):
        Journal(path)
    assert path.read_bytes().startswith(b"something else")


def test_the_checksum_covers_the_head_too(tmp_path):
    path = tmp_path / "journal.bin"
    with Journal(path) as journal:
        journal.append(1, Result(np.ones((1, 2), np.float32)))
        journal.append(2, Result(np.zeros((1, 2), np.float32)))
    data = bytearray(path.read_bytes())
    data[4] = 3  # the first record's item: values of 1 would become those of 3
    path.write_bytes(data)
    with Journal(path) as journal:
        assert not journal.records  # it and what follows are done again
