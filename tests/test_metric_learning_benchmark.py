"""``python -m benchmarks.metric_learning`` works, and goes on where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

pytest.importorskip("sklearn")

from benchmarks import metric_learning
from ercfusion.data.corpora.emodb import FOLDS
from ercfusion.testing.twins.speech import write_emodb


def test_recall_is_of_the_left_out_speakers(tmp_path: Path) -> None:
    speech = metric_learning.Speech(write_emodb(tmp_path, takes=2))
    one_hot = (speech.labels[:, None] == np.unique(speech.labels)).astype(float)
    noise = np.random.default_rng(0).normal(size=one_hot.shape)
    right, by_speaker = metric_learning.recall(speech, dict.fromkeys(FOLDS, one_hot))
    assert (right, by_speaker) == (1.0, 1.0)
    chance, _ = metric_learning.recall(speech, dict.fromkeys(FOLDS, noise))
    assert chance < 0.35
    # What only one fold's features tell is known in that fold alone.
    first, second, *_ = FOLDS
    half, _ = metric_learning.recall(speech, {first: one_hot, second: np.zeros_like(one_hot)})
    assert half == pytest.approx((1 + 1 / 7) / 2, abs=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
def test_the_command(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--recordings", str(write_emodb(tmp_path / "emodb")), "--out", str(tmp_path / "out")]
    arguments += ["--variants", "adaptive", "cross-entropy", "--folds", *list(FOLDS)[:2]]
    more = ["--", "training.max_epochs=1", "model.channels=2", "model.embedding=16"]
    metric_learning.main([*arguments, *more])
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith("|")]
    assert "4/4" in "".join(printed)
    assert {"log-mel, mean and deviation", "adaptive", "cross-entropy"} <= {row.split(" | ")[0][2:] for row in rows}
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(records) == 4
    metric_learning.main([*arguments, *more])  # nothing is made again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")} == records
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == rows
