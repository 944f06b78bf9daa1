"""``python -m ercfusion.conflicts``: agreement of single-modality runs, and which of them a fused run follows."""

from __future__ import annotations

import sys

from ercfusion._core.files import write_json
from ercfusion.cli import run_command
from ercfusion.grammar import Command, Flag, Key, Positional, Typed

COMMAND = Command(
    "conflicts",
    "Divide a split by the agreement of single-modality runs, and show which of them a fused run follows",
    (
        ("FUSED TEXT AUDIO", "a run with several modalities, and a run with each of them"),
        ("FUSED TEXT AUDIO VISUAL split=dev", "three modalities, on dev"),
    ),
    positional=(Positional("RUN", most=None),),
    keys=(
        Key("split", "split to divide: dev or test", default="test", choices=("dev", "test")),
        Key("task", "task or view, for runs with several (default: the first)"),
    ),
    flags=(Flag("no-picture", "write no picture"),),
    details="""
RUNs are run folders in any order: one with several modalities (the fused run), two or more with one (the experts), on
the same data. Nothing is computed but their recorded predictions.
""",
    notes="""
Writes SPLIT-conflicts.json and SPLIT-conflicts.png into the folder evaluation of the fused run. Accuracy counts equal
labels, of label sets equal sets. The gap: accuracy if only the first expert is right, minus if only the second is.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    from ercfusion.plots.conflicts import plot_conflicts
    from ercfusion.plots.figures import plot_title
    from ercfusion.records.conflicts import conflict_report, read_voters
    from ercfusion.tables.conflicts import conflict_text

    split, task = typed.keys.get("split", "test"), typed.keys.get("task")
    voters = read_voters(typed.positional, split, task)
    report = conflict_report(voters, split)
    print(conflict_text(report))
    folder = voters[0].folder / "evaluation"
    folder.mkdir(exist_ok=True)
    name = "-".join([split, "conflicts", *([task] if task else [])])
    write_json(folder / f"{name}.json", report, indent=1)
    print(folder / f"{name}.json")
    if "no-picture" not in typed.flags:
        title = plot_title(report["protocol"], voters[0].record["config"]["preset"]["model"], split)
        plot_conflicts(report, folder / f"{name}.png", title)
        print(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
