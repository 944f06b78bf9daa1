"""The tests that pytest collects are the same in every process: their names depend on nothing but the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONGEST, pytest_make_parametrize_id
from runs import environment

ROOT = Path(__file__).resolve().parents[1]


def names(config: pytest.Config, values: list[object]) -> list[str | None]:
    return [pytest_make_parametrize_id(config, value, "data") for value in values]


def test_content_does_not_become_a_name(request: pytest.FixtureRequest) -> None:
    assert names(request.config, [b"\x00", bytearray(b"a"), "x" * (LONGEST + 1), 10**400]) == ["data"] * 4
    # pytest's own names are good for the others.
    assert names(request.config, ["x" * LONGEST, "", 3, -3.5, True, None]) == [None] * 6


def collect(folder: Path, seed: str, *options: str) -> subprocess.Popen[str]:
    folder.mkdir()
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-n", "0", "--collect-only", *options]
    places = {"TMPDIR": str(folder), "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    surroundings = environment(PYTHONHASHSEED=seed, PYTHONPATH=str(ROOT / "tests"), **places)
    return subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "tests"], cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_the_same_tests_are_collected_at_another_time_and_place(tmp_path: Path) -> None:
    """Another second, hash seed, number of cores, home folder, and order in which folders list their files."""
    collectors = [collect(tmp_path / "here", "1"), collect(tmp_path / "there", "2", "-p", "elsewhere")]
    found = []
    for collector in collectors:
        out, _ = collector.communicate(timeout=300)
        assert collector.returncode == 0, out[-2000:]
        found.append([line for line in out.splitlines() if "::" in line])
    assert len(found[0]) > 1000
    differing = [pair for pair in zip(*found, strict=False) if pair[0] != pair[1]]
    assert not differing[:3]
    assert len(found[0]) == len(found[1])
