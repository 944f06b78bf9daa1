"""The evidence of `demo/product` lies in a product of two modalities: who can use it."""

from __future__ import annotations

import pytest
from runs import read

from ercfusion.train import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "low", "high"),
    [
        (["model=concat", "model.activation=none"], -0.1, 0.1),  # sums of what either modality says
        (["model=lmf"], 0.7, 1.0),
        (["model=tfn"], 0.7, 1.0),
    ],
    ids=["one linear layer", "lmf", "tfn"],
)
def test_share_of_the_way_to_the_exact_posterior(tmp_path, arguments, low, high):
    fixed = ["data=demo/product", "training.max_epochs=12", "training.threads=1", "training.pictures=false"]
    assert main([*arguments, *fixed, "trainer=cpu", f"run={tmp_path / 'run'}"]) == 0
    record = read(tmp_path / "run" / "record.json")
    floor = record["majority"]["test"]["weighted_f1"]
    share = (record["metrics"]["test"]["weighted_f1"] - floor) / (record["corpus"]["reachable_weighted_f1"] - floor)
    assert low <= share <= high
