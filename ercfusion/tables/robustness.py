"""Compare runs with missing modalities: scores under every law, areas under curves over rates, and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import RunError
from ercfusion.batch.predictions import Floats
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing_laws import Law, Pattern, argument_of, parse
from ercfusion.metrics.areas import area_weights, combined
from ercfusion.metrics.comparison import Comparison, compare_family
from ercfusion.metrics.metric import Statistic
from ercfusion.metrics.registry import check_metric, get_metric, score_source
from ercfusion.records.groups import Group
from ercfusion.records.missing import check_same_holes, modalities_of, unseen_text
from ercfusion.records.robustness import robust_sums
from ercfusion.records.words import named_run
from ercfusion.tables.scores import Score, score_of

MEAN = "mean of incomplete patterns"
_MOST_EXCHANGES = 200_000
"""Per pair and law. Tests of laws are many, and a verdict that depends on the draws is marked as such."""


@dataclass(frozen=True)
class Condition:
    """What a score is computed under: a law, or a weighted sum over several.

    Args:
        name: Such as ``rate:0.5``, ``AUILC rate`` or :data:`MEAN`.
        short: Head of its column.
        laws: Canonical texts.
        weights: Of the laws; they sum to 1.
        curve: Name of the law whose rates it belongs to; empty for patterns and other laws.
        point: Its rate on the curve; None for an area.
    """

    name: str
    short: str
    laws: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    curve: str = ""
    point: float | None = None

    @property
    def is_area(self) -> bool:
        """Whether it is an area under a curve."""
        return bool(self.curve) and self.point is None


@dataclass(frozen=True)
class RobustLine:
    """Scores of one group of runs by the name of the condition."""

    name: str
    model: str
    seeds: tuple[int, ...]
    scores: Mapping[str, Score]
    single: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class RobustTable:
    """Runs compared under the laws that all have.

    Args:
        task, metric: What is scored.
        conditions: Patterns, their mean, other laws, rates and areas.
        lines: One per group.
        areas: Comparisons by the areas; p is adjusted over these.
        under_laws: Comparisons by law or mean; p is adjusted over all of these.
        reachable: Score of the exact posterior by condition, if known.
        seed: Of the masks.
        unseen: By law, a sentence about utterances without any modality.
    """

    task: TaskSpec
    metric: str
    conditions: tuple[Condition, ...]
    lines: tuple[RobustLine, ...]
    areas: Mapping[str, tuple[Comparison, ...]]
    under_laws: Mapping[str, tuple[Comparison, ...]]
    reachable: Mapping[str, float]
    seed: int
    unseen: Mapping[str, str]

    def curve(self, name: str) -> list[Condition]:
        """Points of a curve by rate."""
        points = [one for one in self.conditions if one.curve == name and one.point is not None]
        return sorted(points, key=lambda one: one.point or 0.0)

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of the laws with an area."""
        return tuple(one.curve for one in self.conditions if one.is_area)

    @property
    def patterns(self) -> list[Condition]:
        """Conditions outside the curves with an area."""
        return [one for one in self.conditions if one.curve not in self.curves]


def conditions_of(texts: Sequence[str], modalities: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of some laws: patterns, their mean, other laws, then each curve with its area.

    A curve is a law with at least two rates. The mean is over the patterns in which a modality is missing.

    Args:
        texts: Canonical texts of laws, in any order.
        modalities: Of the runs.
    """
    laws = {text: parse(text) for text in sorted(texts)}
    by_text = [(text, law) for text, law in laws.items() if isinstance(law, Pattern)]
    places = {name: place for place, name in enumerate(modalities)}
    by_text.sort(key=lambda item: (len(item[1].kept), [places[name] for name in item[1].left(modalities)]))
    patterns = dict(by_text)
    result = [Condition(text, "+".join(law.kept), (text,)) for text, law in patterns.items()]
    incomplete = [text for text, law in patterns.items() if len(law.left(modalities)) < len(modalities)]
    if len(incomplete) > 1:
        share = 1 / len(incomplete)
        result.append(Condition(MEAN, "mean, incomplete", tuple(incomplete), (share,) * len(incomplete)))
    by_law: dict[str, list[tuple[float, str]]] = {}
    for text, law in laws.items():
        rate = None if text in patterns else _rate(law)
        if rate is not None:
            by_law.setdefault(law.name, []).append((rate, text))
        elif text not in patterns:
            result.append(Condition(text, text, (text,)))
    for name, points in by_law.items():
        points.sort()
        result += [Condition(text, f"{name} {rate:g}", (text,), curve=name, point=rate) for rate, text in points]
        if len(points) > 1:
            weights = tuple(area_weights([rate for rate, _ in points]).tolist())
            result.append(Condition(f"AUILC {name}", "AUILC", tuple(text for _, text in points), weights, name))
    return tuple(result)


def _rate(law: Law) -> float | None:
    field = argument_of(type(law))
    value = None if field is None else getattr(law, field.key)
    return float(value) if isinstance(value, int | float) else None


# Common laws


def common_laws(groups: Sequence[Group]) -> tuple[list[str], int]:
    """Laws under which all runs were scored, and the seed of their masks.

    Raises:
        RunError: a run without such scores, other masks or modalities, or no common law.
    """
    records = [record for group in groups for record in group.records]
    first = records[0]
    for record in records:
        if "robustness" not in record:
            raise RunError(
                f"{named_run(record)} has no scores with missing modalities. Give its folder, or repeat the run."
            )
    check_same_holes(records)
    shared = set(first["robustness"]["laws"]).intersection(*(one["robustness"]["laws"] for one in records))
    common = sorted(shared)  # files sort their keys, records in memory do not
    if not common:
        raise RunError("the runs were scored under different laws. Score them under the same: laws=standard")
    return common, int(first["robustness"]["seed"])


# Computing


def compute_robustness(
    groups: Sequence[Group],
    metric: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    at: Sequence[str] | None = None,
) -> RobustTable:
    """Scores and tests of groups of runs on the same test conversations.

    Args:
        groups: Comparable (:func:`ercfusion.records.groups.check_comparable`).
        metric: None for the score that chose the first group's checkpoints.
        pairs: Names of groups to compare; None for all pairs.
        at: Laws at which they are compared; None for all, and :data:`MEAN`.

    Raises:
        ConfigError: the task has no such metric.
        RunError: runs without such scores, or with other masks; an unknown law in ``at``.
    """
    laws, seed = common_laws(groups)
    first = groups[0]
    metric = metric or first.metric
    check_metric(first.task, metric)
    conditions = conditions_of(laws, modalities_of(first.records[0]))
    names = [one.name for one in conditions]
    if unknown := [name for name in at or () if name not in names]:
        raise RunError(f"the runs were not scored under {unknown[0]}. Choose from: {', '.join(names)}.")
    source = score_source(first.task, metric)
    record = first.records[0]
    sums = {group.name: _sums(group, laws, source[0]) if source else {} for group in groups}
    lines = tuple(_line(group, conditions, metric, source, sums[group.name]) for group in groups)
    areas: dict[str, tuple[Comparison, ...]] = {}
    under: dict[str, tuple[Comparison, ...]] = {}
    if source is not None and len(groups) > 1 and pairs != []:
        bounds = get_metric(metric).bounds
        scored = {one.name: _scored(one, sums, source[1]) for one in conditions}
        chosen = [one.name for one in conditions if one.is_area]
        areas = _compared({name: scored[name] for name in chosen}, pairs, bounds)
        tested = _tested(conditions, modalities_of(first.records[0])) if at is None else list(at)
        under = _compared({name: scored[name] for name in tested}, pairs, bounds, _MOST_EXCHANGES)
    best = record["robustness"]["laws"]
    return RobustTable(
        task=first.task,
        metric=metric,
        conditions=conditions,
        lines=lines,
        areas=areas,
        under_laws=under,
        reachable=_reachable(conditions, {law: best[law].get("reachable", {}).get(metric) for law in laws}),
        seed=seed,
        unseen={law: unseen_text(best[law]["unseen"]) for law in laws if "unseen" in best[law]},
    )


def _tested(conditions: Sequence[Condition], modalities: Sequence[str]) -> list[str]:
    """Laws and means, once for several laws under which nothing is hidden: their results are equal."""
    names, complete = [], False
    for one in conditions:
        whole = all(parse(text).leaves_all(modalities) for text in one.laws)
        if not one.is_area and not (whole and complete):
            names.append(one.name)
        complete |= whole
    return names


def robustness_line(record: Mapping[str, Any]) -> str:
    """One line about a run's scores under ``missing.grid``, for its summary; empty without any."""
    if "robustness" not in record:
        return ""
    metric, laws = record["selection"]["metric"], record["robustness"]["laws"]
    parts = []
    for one in conditions_of(list(laws), modalities_of(record)):
        values = [laws[law]["metrics"].get(metric) for law in one.laws]
        if len(values) > 1 and None not in values:
            parts.append(f"{one.name} {np.dot(values, one.weights):.4f}")
    named = ", ".join(parts) or f"scored under {', '.join(laws)}"
    return f"test {metric} with missing modalities: {named}"


def _sums(group: Group, laws: Sequence[str], key: str) -> dict[str, NDArray[Any]]:
    """(S, B, ...) sums by law."""
    return {law: np.stack([robust_sums(record, law, key) for record in group.records]) for law in laws}


def _stacked(condition: Condition, sums: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """(S, B, ...) sums of one law, or (S, B, L, ...) of several."""
    parts = [sums[law] for law in condition.laws]
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=2)


def _statistic(condition: Condition, statistic: Statistic) -> Statistic:
    return statistic if len(condition.laws) == 1 else combined(statistic, condition.weights)


def _scored(
    condition: Condition, sums: Mapping[str, Mapping[str, NDArray[Any]]], statistic: Statistic
) -> tuple[dict[str, NDArray[Any]], Statistic]:
    return {name: _stacked(condition, own) for name, own in sums.items()}, _statistic(condition, statistic)


def _compared(
    scored: Mapping[str, tuple[Mapping[str, NDArray[Any]], Statistic]],
    pairs: Sequence[tuple[str, str]] | None,
    bounds: tuple[float, float],
    most: int | None = None,
) -> dict[str, tuple[Comparison, ...]]:
    compared = compare_family(scored, pairs, most_permutations=most, bounds=bounds)
    return {name: tuple(comparisons) for name, comparisons in compared.items()}


def _line(
    group: Group,
    conditions: Sequence[Condition],
    metric: str,
    source: tuple[str, Statistic] | None,
    sums: Mapping[str, NDArray[Any]],
) -> RobustLine:
    scores, single = {}, {}
    for condition in conditions:
        if source is None:
            values = _recorded(group, condition, metric)
            scores[condition.name] = score_of(values, group.task, metric)
        else:
            own, statistic = _stacked(condition, sums), _statistic(condition, source[1])
            values = np.asarray(statistic(own.sum(axis=1)), dtype=np.float64)
            known = None if np.isnan(values).any() else (own, statistic)
            scores[condition.name] = score_of(values, group.task, metric, known, sums[condition.laws[0]])
        single[condition.name] = tuple(values.tolist())
    return RobustLine(group.name, group.records[0]["config"]["preset"]["model"], group.seeds, scores, single)


def _recorded(group: Group, condition: Condition, metric: str) -> Floats:
    """(S) values of a score without sums; NaN where it was not recorded."""
    table = [
        [record["robustness"]["laws"][law]["metrics"].get(metric, np.nan) for law in condition.laws]
        for record in group.records
    ]
    return np.asarray(np.array(table, dtype=np.float64) @ np.array(condition.weights))


def _reachable(conditions: Sequence[Condition], known: Mapping[str, float | None]) -> dict[str, float]:
    result = {}
    for condition in conditions:
        values = [known[law] for law in condition.laws]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            result[condition.name] = float(np.dot(numbers, condition.weights))
    return result
