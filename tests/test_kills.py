"""Commands that are killed at every event of the file system; see ``kills.py``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from kills import SCENARIOS
from runs import python

# Events that there are at least: fewer would mean that they are not seen any more.
LEAST = {
    "train": 60,
    "multi-label": 60,
    "export": 100,
    "sweep": 120,
    "reproduce": 90,
    "extract": 53,
    "fresh": 63,
    "retry": 53,
}
LEAST |= {name: 53 for name in SCENARIOS if name.endswith("another recording")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, SIGKILL and /proc")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(scenario: str, tmp_path: Path) -> None:
    if scenario == "sweep":
        pytest.importorskip("optuna")
    script = Path(__file__).with_name("kills.py")
    # Processes are forked after a backward pass: with a GPU, autograd would have started threads.
    settings = {"ERCFUSION_QUIET": "1", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = python(str(script), scenario, str(tmp_path), timeout=1800, **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failures"], "\n".join(found["failures"])
    assert found["events"] >= LEAST[scenario]
    assert found["states"] >= LEAST[scenario] // 8
    assert found["kills"] >= 1
    assert os.listdir(tmp_path / "root")
