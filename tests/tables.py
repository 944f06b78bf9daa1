"""The recorded tables, computed once for all tests that look at them: resampling takes its time."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from ercfusion.tables.preset import read_preset
from ercfusion.tables.table import compute_table
from ercfusion.training.tables import read_table_records, wanted_records

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


SHARED: Path | None = None
"""A folder of this test run: what one of its processes has computed, the others read there."""


@cache
def table(name: str) -> Any:
    """The table of the preset ``experiments/NAME.yaml``, from the records beside it."""
    if SHARED is None:
        return _computed(name)
    kept = SHARED / f"table-{name}.pickle"
    with FileLock(SHARED / f"table-{name}.lock"):
        if not kept.is_file():
            kept.write_bytes(pickle.dumps(_computed(name)))
        return pickle.loads(kept.read_bytes())


def _computed(name: str) -> Any:
    found = read_preset(EXPERIMENTS / f"{name}.yaml")
    return compute_table(found, wanted_records(found, read_table_records(found, [EXPERIMENTS / name])))
