"""The band of recorded seeds: covers as it says, and what differs is named."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import record
from scipy import stats

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.records.groups import Group, group_records
from ercfusion.tables.band import judge, nearest_group, prediction_band


def test_against_the_formula():
    values = [0.5, 0.52, 0.49, 0.51, 0.53]
    band = prediction_band(values)
    mean = sum(values) / 5
    std = (sum((value - mean) ** 2 for value in values) / 4) ** 0.5
    reach = stats.t.ppf(0.975, 4) * std * (1 + 1 / 5) ** 0.5
    assert band.low == pytest.approx(mean - reach)
    assert band.high == pytest.approx(mean + reach)
    assert (band.place(mean), band.place(mean - 2 * reach), band.place(mean + 2 * reach)) == (
        "inside",
        "below",
        "above",
    )
    assert prediction_band(values, runs=5).high < band.high


@pytest.mark.parametrize("runs", [1, 4])
def test_it_covers_what_it_says(runs):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        band = prediction_band(rng.normal(size=5), runs)
        hits += band.place(rng.normal(size=runs).mean()) == "inside"
    assert abs(hits / 4000 - 0.95) < 0.015


def test_seeds_that_agree_have_a_band_of_no_width():
    band = prediction_band([0.3, 0.3, 0.3])
    assert band.place(0.300001) == "inside"  # records are rounded to six decimals
    assert band.place(0.3001) == "above"


def test_one_seed_has_no_band():
    with pytest.raises(RunError, match="two or more"):
        prediction_band([0.3])


@pytest.fixture(scope="module")
def groups():
    return group_records(
        [record(model, seed, 0.5, *extra) for model, extra in
         (("concat", ()), ("concat", ("model.dropout=0.1",)), ("cogmen", ())) for seed in (0, 1, 2)]
    )  # fmt: skip


def test_the_row_with_the_fewest_other_settings(groups):
    found = nearest_group(record("concat", 9, 0.5, "model.dropout=0.1", "optimizer.lr=0.1"), groups)
    assert found.name == "concat model.dropout=0.1"
    assert nearest_group(record("cogmen", 9), groups, row="cogmen").name == "cogmen"
    with pytest.raises(ConfigError, match="no row 'cogman'"):
        nearest_group(record("cogmen", 9), groups, row="cogman")
    with pytest.raises(RunError, match=r"has .* Choose another table"):
        nearest_group(record("bclstm", 9), groups)
    with pytest.raises(RunError, match=r"has .* Choose another table"):
        nearest_group(record("concat", 9, protocol="demo/far"), groups)


def test_verdicts(groups):
    group = groups[0]
    assert judge(record("concat", 1), group).identical
    assert judge(record("concat", 1), group).place == "inside"
    good = judge(record("concat", 7, 1.0, "optimizer.lr=0.1"), group)
    assert good.place == "above"
    assert good.same_seed is None
    assert good.settings == {"optimizer.lr": (0.001, 0.1)}
    assert not good.data
    changed = record("concat", 1, 0.9)
    changed["features"][0]["source"]["sha256"] = "b" * 64
    changed["environment"]["versions"]["torch"] = "2.11.0"
    verdict = judge(changed, group)
    assert not verdict.identical
    assert verdict.data == {"features text: sha256": ("a" * 64, "b" * 64)}
    assert verdict.environment == {"torch": ("2.13.0+cpu", "2.11.0")}
    assert isinstance(verdict.group, Group)


def test_a_score_that_the_run_has_not_is_named():
    group = Group("concat", (record("concat", 0), record("concat", 1)))
    with pytest.raises(ConfigError, match=r"'wighted_f1' is not a metric.*weighted_f1"):
        judge(record("concat", 2), group, "wighted_f1")
    run = record("concat", 2)
    del run["metrics"]["test"]["shift_accuracy"]
    with pytest.raises(RunError, match="the run has no test shift_accuracy"):
        judge(run, group, "shift_accuracy")


def test_an_honest_run_of_today_differs_in_no_setting_from_the_recorded_row():
    from docs.computed.tables import EXPERIMENTS
    from ercfusion.tables.preset import read_preset
    from ercfusion.training.tables import read_table_records, wanted_records

    preset = read_preset(EXPERIMENTS / "demo.yaml")
    row = next(row for row in preset.rows if row.name == "concat")
    recorded = Group(
        "concat", tuple(wanted_records(preset, read_table_records(preset, [EXPERIMENTS / "demo"]))["concat"])
    )
    again = {**recorded.records[0], "config": preset.config(row, 0)}
    verdict = judge(again, recorded)
    assert (dict(verdict.settings), verdict.identical, verdict.place) == ({}, True, "inside")
    assert nearest_group(again, [recorded]) is recorded
    assert len(group_records([*recorded.records, {**again, "seed": 9}])) == 1
