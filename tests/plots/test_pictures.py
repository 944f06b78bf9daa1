"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_records import record as made_record

from ercfusion.plots import pictures


def test_training_curves_have_the_dev_loss_and_what_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}

    def plot(history, path, best_epoch, *, levels, **more):
        drawn.update(history=history, levels=levels)

    monkeypatch.setattr(pictures, "plot_training_curves", plot)
    record = made_record()
    metric = record["selection"]["metric"]
    record["majority"] = {"dev": {metric: 0.1}}
    record["corpus"]["reachable"] = {"dev": {metric: 0.9}}
    row = {"epoch": 1.0, "train/loss": 1.5, "dev/nll": 1.25, f"dev/{metric}": 0.5}
    pictures.draw_pictures(tmp_path / "plots", [row], {}, record)
    (shown,) = drawn["history"]
    assert shown["train/loss"] == 1.5
    assert shown["dev/loss (negative log-likelihood)"] == 1.25
    assert shown["dev/loss (root mean squared error)"] is None  # of another kind of task: no curve
    assert drawn["levels"] == {f"majority ({metric})": 0.1, f"exact posterior ({metric})": 0.9}
