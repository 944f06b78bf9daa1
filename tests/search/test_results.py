"""What a sweep reports of its fresh seeds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from made_records import record

from ercfusion.search.results import _rerun_summary


def test_fresh_seeds_without_test_scores_are_summed_up_on_dev() -> None:
    plan: Any = SimpleNamespace(metric="weighted_f1")
    records = [record(seed=0), record(seed=1)]
    scored = _rerun_summary(plan, records)
    assert scored is not None
    assert set(scored) == {"seeds", "dev", "test"}
    for entry in records:
        entry["metrics"]["test"] = {}
    summary = _rerun_summary(plan, records)
    assert summary is not None
    assert set(summary) == {"seeds", "dev"}
    assert summary["dev"] == scored["dev"]
