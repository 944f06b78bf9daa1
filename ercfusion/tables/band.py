"""Compare a run with the recorded runs of its row: is its score in the expected range, and what differs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ercfusion._core.errors import ConfigError, RunError, did_you_mean
from ercfusion.metrics.registry import check_metric
from ercfusion.records.groups import PROCESSOR, Group, data_of, differences, environment_of, other_packs, settings_of

# Scores are recorded to six decimals: smaller differences are none.
_EQUAL = 2e-6


@dataclass(frozen=True)
class Band:
    """Expected range of one more run, or of the mean of several.

    Args:
        mean, std: Of the recorded seeds.
        low, high: Student-t prediction interval.
        seeds: Number of recorded runs.
    """

    mean: float
    std: float
    low: float
    high: float
    seeds: int

    def place(self, value: float) -> str:
        """``inside``, ``below`` or ``above``."""
        return "below" if value < self.low - _EQUAL else "above" if value > self.high + _EQUAL else "inside"


def prediction_band(values: Sequence[float], runs: int = 1, level: float = 0.95) -> Band:
    """Prediction interval of the mean of ``runs`` further scores with coverage ``level``, for normal scores.

    mean +- t(S - 1) s sqrt(1 / S + 1 / runs) with S recorded scores (Hahn and Meeker, Statistical Intervals, 1991,
    section 4.7).

    Raises:
        RunError: fewer than two recorded scores.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise RunError("one recorded seed gives no range. Record two or more seeds.")
    mean, std = float(array.mean()), float(array.std(ddof=1))
    reach = float(stats.t.ppf((1 + level) / 2, len(array) - 1)) * std * np.sqrt(1 / len(array) + 1 / runs)
    return Band(mean, std, mean - float(reach), mean + float(reach), len(array))


def nearest_group(record: Mapping[str, Any], groups: Sequence[Group], row: str | None = None) -> Group:
    """The recorded row of a run: ``row``, or the one with the fewest different settings.

    Raises:
        ConfigError: no such row.
        RunError: no row with the run's model and protocol.
    """
    if row is not None:
        for group in groups:
            if group.name == row:
                return group
        raise ConfigError(f"the table has no row {row!r}. {did_you_mean(row, [group.name for group in groups])}")
    model, protocol = record["config"]["model"]["name"], record["protocol"]
    candidates = [
        group
        for group in groups
        if group.records[0]["config"]["model"]["name"] == model and group.records[0]["protocol"] == protocol
    ]
    if not candidates:
        names = ", ".join(group.name for group in groups)
        raise RunError(
            f"the run is of {model} on {protocol}; the table has {names} on {groups[0].records[0]['protocol']}. Choose "
            "another table."
        )
    return min(candidates, key=lambda group: len(_settings_differences(group, record)))


def _settings_differences(group: Group, record: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return differences(settings_of(group.records[0]["config"]), settings_of(record["config"]))


@dataclass(frozen=True)
class Verdict:
    """A run compared with its recorded row.

    Args:
        group: The row.
        metric, value: The run's score.
        band: Expected range.
        place: ``inside``, ``below`` or ``above``.
        same_seed: The recorded score of the same seed, or None.
        settings, data, environment: Differences, as (recorded, the run's). A missing processor is not a difference.
        packs: Packs with other values, see :func:`ercfusion.records.groups.other_packs`.
    """

    group: Group
    metric: str
    value: float
    band: Band
    place: str
    same_seed: float | None
    settings: Mapping[str, tuple[Any, Any]]
    data: Mapping[str, tuple[Any, Any]]
    environment: Mapping[str, tuple[Any, Any]]
    packs: Mapping[str, tuple[str, str]]

    @property
    def identical(self) -> bool:
        """Whether the run repeats the recorded one of its seed to the last recorded digit."""
        return self.same_seed is not None and abs(self.value - self.same_seed) <= _EQUAL


def judge(record: Mapping[str, Any], group: Group, metric: str | None = None) -> Verdict:
    """Compare a run with the records of its row by ``metric``; None for the score selecting the row's checkpoints.

    Raises:
        ConfigError: the task has no such metric.
        RunError: the run has no such test score.
    """
    metric = metric or group.metric
    if metric not in record["metrics"]["test"]:
        check_metric(group.task, metric)
        raise RunError(
            f"the run has no test {metric}: it is not defined on its test split, or older than the metric. Choose "
            "another metric."
        )
    value = float(record["metrics"]["test"][metric])
    band = prediction_band(group.values(metric).tolist())
    recorded = {seed: float(score) for seed, score in zip(group.seeds, group.values(metric), strict=True)}
    example = next((member for member in group.records if member["seed"] == record["seed"]), group.records[0])
    return Verdict(
        group=group,
        metric=metric,
        value=value,
        band=band,
        place=band.place(value),
        same_seed=recorded.get(record["seed"]),
        settings=_settings_differences(group, record),
        data=differences(data_of(example), data_of(record)),
        environment={
            key: pair
            for key, pair in differences(environment_of(example), environment_of(record)).items()
            if key not in PROCESSOR or None not in pair
        },
        packs=other_packs(example, record),
    )
