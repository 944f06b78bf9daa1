"""The recorded tables, computed once for all tests that look at them: resampling takes its time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ercfusion.evaluation.preset import read_preset
from ercfusion.evaluation.table import compute_table
from ercfusion.training.tables import read_table_records, wanted_records

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@cache
def table(name: str) -> Any:
    """The table of the preset ``experiments/NAME.yaml``, from the records beside it."""
    found = read_preset(EXPERIMENTS / f"{name}.yaml")
    return compute_table(found, wanted_records(found, read_table_records(found, [EXPERIMENTS / name])))
