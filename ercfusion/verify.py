"""``python -m ercfusion.verify``: is a re-run inside the recorded band of seeds? If not, what may explain it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import expanded
from ercfusion.cli import run_command
from ercfusion.config.hints import command
from ercfusion.grammar import Command, Key, Positional, Typed
from ercfusion.tables.preset import find_preset, read_preset

if TYPE_CHECKING:
    from ercfusion.records.groups import Group
    from ercfusion.tables.band import Verdict

COMMAND = Command(
    "verify",
    "Is a run inside the band of the recorded seeds? If not: which settings, features and versions differ",
    (
        ("outputs/train/cogmen-meld/A experiments/meld.yaml", "one run, by a preset"),
        ("outputs/train/cogmen-meld meld", "all runs below the folder, a preset by its name"),
        ("RUN other/records/cogmen.json", "records of your own"),
    ),
    positional=(Positional("RUN", most=None), Positional("PRESET")),
    keys=(
        Key("row", "the row of the table (default: the one with the same model and the fewest other settings)"),
        Key("metric", "the score (default: the one that chose the checkpoints)"),
    ),
    details="""
The band is the 95 % prediction interval of one more run, from the spread of the recorded seeds. It describes seeds on
the recorded test split, so it is narrower than an interval over conversations. One run of twenty falls outside by
chance; for several runs their mean is judged too.
""",
    notes="""
Exit status: 0 when all runs (and their mean) are inside, 1 when not, 2 for a mistake.
""",
)


def main(argv: list[str]) -> int:
    """The command; see :data:`COMMAND`."""
    return COMMAND.main(argv, verify)


def verify(typed: Typed) -> int:
    """Judge runs by recorded ones as the command line says; returns the exit status."""
    from ercfusion.records.groups import read_records
    from ercfusion.tables.band import judge, nearest_group, prediction_band
    from ercfusion.tables.render import number

    *runs, recorded = typed.positional
    groups = recorded_groups(recorded, typed.composer.config_dir)
    verdicts: dict[str, list[Verdict]] = {}
    worst = 0
    for record in read_records(runs):
        group = nearest_group(record, groups, typed.keys.get("row"))
        verdict = judge(record, group, typed.keys.get("metric"))
        verdicts.setdefault(group.name, []).append(verdict)
        print(verdict_text(record, verdict))
        worst = max(worst, int(verdict.place != "inside"))
    for name, found in verdicts.items():
        if len(found) > 1:
            metric, values = found[0].metric, [verdict.value for verdict in found]
            band = prediction_band(found[0].group.values(metric).tolist(), len(values))
            mean = sum(values) / len(values)
            place = band.place(mean)
            print(
                f"mean of {len(values)} runs of {name}: {number(metric, mean)}, {place} the band of such means "
                f"({number(metric, band.low)} to {number(metric, band.high)})"
            )
            worst = max(worst, int(place != "inside"))
    return worst


def recorded_groups(name: str, config_dir: str | None = None) -> list[Group]:
    """The recorded rows of a preset, or the groups in an archive.

    Raises:
        RunError: nothing is recorded.
    """
    from ercfusion.records.groups import Group, group_records, read_records
    from ercfusion.training.tables import read_table_records, wanted_records

    path = expanded(name)
    if path.is_dir() or path.suffix == ".json":
        return group_records(read_records([path]))
    preset = read_preset(find_preset(name), config_dir)
    records = wanted_records(preset, read_table_records(preset, [preset.path.parent / preset.name]))
    groups = [Group(row, tuple(found)) for row, found in records.items() if found]
    if not groups:
        raise RunError(
            f"{preset.path} has no recorded run yet. Make them: {command('no recorded run', 'reproduce', name)}"
        )
    return groups


def verdict_text(record: Mapping[str, Any], verdict: Verdict) -> str:
    """What is said of one run."""
    from ercfusion.records.groups import PROCESSOR
    from ercfusion.tables.render import metric_name, number

    metric, band = verdict.metric, verdict.band
    words = {"inside": "inside", "below": "BELOW", "above": "ABOVE"}[verdict.place]
    lines = [
        f"{verdict.group.name}, seed {record['seed']}: test {metric_name(metric)} {number(metric, verdict.value)}, "
        f"{words} the band of {band.seeds} recorded seeds ({number(metric, band.low)} to {number(metric, band.high)}; "
        f"mean {number(metric, band.mean)})"
    ]
    if verdict.identical:
        lines.append("  equal to the recorded run of this seed")
    elif verdict.same_seed is not None:
        gap = number(metric, verdict.value - verdict.same_seed, sign=True)
        lines.append(f"  the recorded run of this seed has {number(metric, verdict.same_seed)} (difference {gap})")
    if verdict.packs:
        lines.append("  the features differ (recorded -> this run): scores can differ for this reason alone")
        lines += [f"    {modality}: {was} -> {now}" for modality, (was, now) in verdict.packs.items()]
    # With other features nobody can tell what a processor or a version changes.
    environment = {} if verdict.packs else verdict.environment
    told = {f"features {modality}: sha256" for modality in verdict.packs}
    parts = (
        ("other settings: this is not the recorded experiment", verdict.settings),
        ("other data or features", {key: pair for key, pair in verdict.data.items() if key not in told}),
        ("another processor", {key: environment[key] for key in PROCESSOR if key in environment}),
        ("another environment", {key: pair for key, pair in environment.items() if key not in PROCESSOR}),
    )
    for title, found in parts:
        # Of equal numbers only what makes them numbers of something else is worth a word.
        if found and not (verdict.identical and title in ("another processor", "another environment")):
            lines.append(f"  {title} (recorded -> this run):")
            lines += [f"    {key}: {was} -> {now}" for key, (was, now) in found.items()]
    if verdict.packs and verdict.environment and not verdict.identical:
        lines.append("  processor and versions are not compared: train on the recorded packs to see what they change")
    if not verdict.identical and not verdict.packs and not any(found for _, found in parts):
        lines.append("  no setting, feature or version differs")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
