"""States of the recordings that a pack lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ercfusion.data.recordings import Source, State, compare, compare_all, source_of


def test_the_states_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    absent = source_of(path, tmp_path)
    assert absent == Source("a.wav")
    assert compare(absent, path) == (State.SAME, absent)
    path.write_bytes(b"abc")
    there = source_of(path, tmp_path)
    assert compare(absent, path)[0] is State.CHANGED
    assert compare(there, path) == (State.SAME, there)
    os.utime(path, ns=(5, 10**18))
    state, now = compare(there, path)
    assert (state, now.modified, now.sha256) == (State.SAME, 10**18, there.sha256)
    path.write_bytes(b"abd")
    assert compare(there, path)[0] is State.CHANGED
    path.unlink()
    path.mkdir()
    folder = source_of(path, tmp_path)
    assert folder.sha256 == ""
    assert compare(folder, path, doubt=True)[0] is State.SAME
    path.rmdir()
    assert compare(there, path)[0] is State.GONE


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    """A list that somebody else wrote may name them."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert source_of(path, tmp_path).sha256 == ""
        source = Source(path.name, "0" * 64, path.stat().st_size, 5)
        assert [state for state, _ in compare_all([(source, path)]).values()] == [State.CHANGED]
