"""A conflict report for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ercfusion.records.conflicts import FUSED, NONE, subset_name
from ercfusion.tables.report import aligned


def conflict_text(report: Mapping[str, Any]) -> str:
    """The report as tables for a terminal."""
    runs = report["runs"]
    experts = [name for name in runs if name != FUSED]
    subsets = [["accuracy in percent", "utterances", *runs]]
    for one in report["subsets"]:
        by_run = [_percent(one["accuracy"][name]) if one["right"] is None or name == FUSED else "" for name in runs]
        subsets.append([subset_name(one), f"{one['utterances']:,}", *by_run])
    follows = [["the fused run has the label of", "utterances", *experts, "no expert"]]
    disagree = next(one["utterances"] for one in report["subsets"] if one["experts"] == "disagree")
    follows.append(["experts disagree", f"{disagree:,}", *(_percent(report["follows"][name]) for name in experts)])
    follows[-1].append(_percent(report["follows"][NONE]))
    pairs = [["pair that differs", "utterances", "has the first", "the second", "neither"]]
    gaps = [["accuracy of the fused run", "only first right", "only second right", "gap in points"]]
    for one in report["pairs"]:
        name, own = " and ".join(one["experts"]), one["only_right"]
        pairs.append([name, f"{one['utterances']:,}", *map(_percent, one["follows"].values())])
        cells = [f"{_percent(own[each]['accuracy'])} (n = {own[each]['utterances']:,})" for each in one["experts"]]
        gaps.append([name, *cells, _percent(one["gap"], sign=True)])
    tables = [subsets, *([follows] if len(experts) > 2 else []), pairs, gaps]
    holes = [f"{voter['name']}: scored with holes, {voter['law']}" for voter in runs.values() if voter["law"]]
    head = f"{report['protocol']}, {report['split']} split, {report['utterances']:,} labelled utterances of "
    return "\n\n".join(
        [
            head
            + f"{report['conversations']:,} conversations"
            + (" (synthetic corpus)" if report["synthetic"] else ""),
            "\n".join([f"{name}: {voter['name']}, folder {voter['run']}" for name, voter in runs.items()] + holes),
            *map(aligned, tables),
            "[low, high]: 95 % intervals over conversations",
        ]
    )


def _percent(share: Mapping[str, Any], sign: bool = False) -> str:
    if share["value"] is None:
        return "-"
    text = _points(share["value"], sign)
    if share["interval"] is None:
        return text
    return f"{text} [{', '.join(_points(end, sign) for end in share['interval'])}]"


def _points(value: float, sign: bool) -> str:
    return format(round(100 * value, 1) + 0.0, "+.1f" if sign else ".1f")  # + 0.0: no minus before a zero
