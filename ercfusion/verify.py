"""``python -m ercfusion.verify``: compare a repeated run with the spread of recorded seeds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import expanded
from ercfusion.cli import run_command
from ercfusion.config.hints import command
from ercfusion.grammar import Command, Key, Positional, Typed
from ercfusion.tables.preset import find_preset, known_presets, read_preset

if TYPE_CHECKING:
    from ercfusion.records.groups import Group
    from ercfusion.tables.band import Verdict

COMMAND = Command(
    "verify",
    "Check that a run agrees with the recorded seeds; else list different settings, features and versions",
    (
        ("outputs/train/cogmen-meld/A meld", "one run with a recorded table"),
        ("outputs/train/cogmen-meld mine.yaml", "all runs in a folder, with a table file"),
        ("RUN other/records/cogmen.json", "your own records"),
    ),
    positional=(Positional("RUN", most=None), Positional("TABLE")),
    keys=(
        Key("row", "row of the table (default: the same model with the fewest different settings)"),
        Key("metric", "score to check (default: the one that selected the checkpoints)"),
    ),
    details="""
The band is the 95 % prediction interval of one more run, from the spread of the recorded seeds on the same test split.
One run in twenty is outside by chance; for several runs, their mean is checked too. TABLE is the name of a recorded
table, a table file, an archive of records, or a folder of runs (./demo for a folder with the name of a table).
""",
    notes="""
Exit status: 0 if all runs and their mean are inside, else 1; 2 after an error.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, verify)


def verify(typed: Typed) -> int:
    """Compare runs with recorded ones; returns the exit status."""
    from ercfusion.records.groups import read_records
    from ercfusion.tables.band import judge, nearest_group, prediction_band
    from ercfusion.tables.cells import number

    *runs, recorded = typed.positional
    groups = recorded_groups(recorded, typed.composer.config_dir)
    verdicts: dict[str, list[Verdict]] = {}
    worst = 0
    for record in read_records(runs):
        group = nearest_group(record, groups, typed.keys.get("row"))
        verdict = judge(record, group, typed.keys.get("metric"))
        verdicts.setdefault(_label(record, group), []).append(verdict)
        print(verdict_text(record, verdict))
        worst = max(worst, int(verdict.place != "inside"))
    for name, group_verdicts in verdicts.items():
        if len(group_verdicts) > 1:
            metric, values = group_verdicts[0].metric, [verdict.value for verdict in group_verdicts]
            band = prediction_band(group_verdicts[0].group.values(metric).tolist(), len(values))
            mean = sum(values) / len(values)
            place = band.place(mean)
            print(
                f"mean of {len(values)} runs of {name}: {number(metric, mean)}, {place} the band of such means "
                f"({number(metric, band.low)} to {number(metric, band.high)})"
            )
            worst = max(worst, int(place != "inside"))
    return worst


def recorded_groups(name: str, config_dir: str | None = None) -> list[Group]:
    """The recorded rows of a table, or the groups in an archive or a folder. The name of a table has precedence.

    Raises:
        RunError: There is no record.
    """
    from ercfusion.records.groups import Group, group_records, read_records
    from ercfusion.training.tables import read_table_records, wanted_records

    path = expanded(name)
    if name not in known_presets() and (path.is_dir() or path.suffix == ".json"):
        return group_records(read_records([path]))
    preset = read_preset(find_preset(name), config_dir)
    records = wanted_records(preset, read_table_records(preset, [preset.path.parent / preset.name]))
    groups = [Group(row, tuple(row_records)) for row, row_records in records.items() if row_records]
    if not groups:
        raise RunError(
            f"{preset.typed} has no recorded run. Create them with: {command('no recorded run', 'reproduce', name)}"
        )
    return groups


def _label(record: Mapping[str, Any], group: Group) -> str:
    """The row of a run; a run of another model is named by its own."""
    names = [run["config"]["model"]["name"] for run in (record, group.records[0])]
    return group.name if names[0] == names[1] else f"{names[0]} (compared with row {group.name})"


def verdict_text(record: Mapping[str, Any], verdict: Verdict) -> str:
    """The result for one run."""
    from ercfusion.records.groups import PROCESSOR
    from ercfusion.tables.cells import metric_name, number

    metric, band = verdict.metric, verdict.band
    words = {"inside": "inside", "below": "BELOW", "above": "ABOVE"}[verdict.place]
    lines = [
        f"{_label(record, verdict.group)}, seed {record['seed']}: test {metric_name(metric)} "
        f"{number(metric, verdict.value)}, {words} the band of {band.seeds} recorded seeds "
        f"({number(metric, band.low)} to {number(metric, band.high)}; mean {number(metric, band.mean)})"
    ]
    if verdict.identical:
        lines.append("  equal to the recorded run of this seed")
    elif verdict.same_seed is not None:
        gap = number(metric, verdict.value - verdict.same_seed, sign=True)
        lines.append(f"  the recorded run of this seed has {number(metric, verdict.same_seed)} (difference {gap})")
    if verdict.packs:
        lines.append("  the features differ (recorded -> this run), which alters scores:")
        lines += [f"    {modality}: {was} -> {now}" for modality, (was, now) in verdict.packs.items()]
    # With other features the effect of processor and versions is unknown.
    environment = {} if verdict.packs else verdict.environment
    features = {f"features {modality}: sha256" for modality in verdict.packs}
    parts = (
        ("other settings: this is not the recorded experiment", verdict.settings),
        ("other data or features", {key: pair for key, pair in verdict.data.items() if key not in features}),
        ("another processor", {key: environment[key] for key in PROCESSOR if key in environment}),
        ("another environment", {key: pair for key, pair in environment.items() if key not in PROCESSOR}),
    )
    for title, differences in parts:
        # With equal scores, processor and versions need no explanation.
        if differences and not (verdict.identical and title in ("another processor", "another environment")):
            lines.append(f"  {title} (recorded -> this run):")
            lines += [f"    {key}: {was} -> {now}" for key, (was, now) in differences.items()]
    if verdict.packs and verdict.environment and not verdict.identical:
        lines.append("  processor and versions are not compared: train on the recorded packs to see their effect")
    if not verdict.identical and not verdict.packs and not any(differences for _, differences in parts):
        lines.append("  no setting, feature or version differs")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
