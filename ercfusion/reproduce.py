"""``python -m ercfusion.reproduce``: compute a table of models from records, and do the missing runs."""

from __future__ import annotations

import logging
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, RunError
from ercfusion._core.files import atomic_write, one_at_a_time, remove_leftovers
from ercfusion.cli import run_command
from ercfusion.config.compose import Composer
from ercfusion.config.hints import command, naming
from ercfusion.config.overrides import override_text
from ercfusion.grammar import Command, Flag, Key, Positional, Typed
from ercfusion.tables.preset import known_presets, read_preset

logger = logging.getLogger("ercfusion")


def _presets(composer: Composer) -> list[tuple[str, list[str]]]:
    names = textwrap.wrap(", ".join(known_presets()), 110, break_on_hyphens=False)
    return [("Recorded tables, by name:", [f"  {line}" for line in names])]


COMMAND = Command(
    "reproduce",
    "Compute a table of models: do the missing runs, write Markdown, LaTeX, CSV and HTML",
    (
        ("demo", "a recorded table, by name"),
        ("demo copy=mine", "write mine.yaml, to add rows"),
        ("mine.yaml", "a table by its table file"),
        ("meld data.raw=DIR --fresh out=repeated", "repeat all runs, in another folder"),
        ("mine.yaml --check", "check that all files match the records"),
    ),
    positional=(Positional("TABLE"),),
    keys=(
        Key("data.raw", "folder of the corpus files (or the environment variable ERCFUSION_DATA)", "path"),
        Key("data.packs.MODALITY", "feature pack of a modality", "path"),
        Key("copy", "only copy the table file and its records, to NAME.yaml and NAME/records", "path", value="NAME"),
        Key("out", "folder of the table and of new records", "path"),
        Key("runs", "folder of the run folders (default: outputs/reproduce/NAME)", "path"),
        Key("rows", "only the runs of these rows (for a name with a comma: its file name)", "names"),
        Key("workers", "parallel processes (default: one per core)", "whole"),
    ),
    flags=(
        Flag("fresh", "ignore the recorded runs of the table"),
        Flag("renew", "repeat recorded runs whose settings differ from the table file"),
        Flag("tables", "write the files from existing records, without runs"),
        Flag("check", "write nothing; exit status 1 if a record or file is missing or out of date"),
    ),
    tables=_presets,
    advice="Edit the table file to change the runs.",
    notes="""
TABLE is the name of a recorded table or a table file (YAML). Default of out=: for NAME.yaml the folder NAME next to
it; for a name, outputs/tables/NAME (in a clone of the repository: experiments/NAME).

Every number comes from run records: the recorded ones of the table, and those of your runs in OUT/records. Records
contain no texts and no weights. After an interruption, repeat the command: finished runs are kept.
""",
)

FILES = ("README.md", "table.tex", "table.csv", "page.html")


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, reproduce)


def reproduce(typed: Typed) -> int:
    """Compute or copy a table; returns the exit status."""
    from ercfusion.training.tables import do_runs, make_jobs, missing_runs, read_table_records, stale_records

    keys, flags = typed.keys, typed.flags
    preset = read_preset(typed.positional[0], typed.composer.config_dir)
    if "copy" in keys:
        return _copy(preset, typed)
    shipped = preset.path.parent / preset.name
    default = Path("outputs", "tables", preset.name) if preset.installed else shipped
    out = Path(keys["out"]) if "out" in keys else default
    fresh = "fresh" in flags
    if fresh and out.resolve() == shipped.resolve():
        raise ConfigError(
            "--fresh repeats all runs and must not overwrite the recorded ones. Give a folder with out=DIR."
        )
    records = read_table_records(preset, [out] if fresh else [shipped, out])
    stale = stale_records(preset, records)
    if "check" in flags:
        return _check(preset, records, stale, out, typed)
    if stale and "renew" not in flags:
        raise RunError(_stale_text(preset, stale))
    for row, seed in stale:
        del records[row][seed]
    failed: list[Any] = []
    if "tables" not in flags:
        missing = missing_runs(preset, records, keys.get("rows"))
        if missing:
            runs = Path(keys.get("runs", f"outputs/reproduce/{preset.name}"))
            logger.info("%s: %d of %d runs have no record yet", preset.title, len(missing), _asked(preset))
            with one_at_a_time(runs, "this table"):
                remove_leftovers(runs, deep=True)
                started = time.monotonic()
                extra = [override_text(key, value) for key, value in keys.items() if key.startswith("data.")]
                extra += naming(keys.get("imports"))  # for the training processes
                try:
                    outcomes = do_runs(
                        preset, make_jobs(preset, missing, runs, extra), records, out, keys.get("workers")
                    )
                except KeyboardInterrupt:
                    print("\nfinished runs are kept. Repeat the command to continue.", file=sys.stderr)
                    raise
                failed = [outcome for outcome in outcomes if outcome.error is not None]
                minutes = (time.monotonic() - started) / 60
            logger.info("%d runs in %.1f minutes", len(outcomes) - len(failed), minutes)
    if not any(records.values()):
        if failed:
            raise RunError(f"all runs failed. Correct the first error: {failed[0].job.name}: {failed[0].error}")
        raise RunError(f"{preset.typed}: no row has a record. Remove --tables to do the runs.")
    for path in _write(preset, records, out):
        print(path)
    for outcome in failed:
        print(f"error: {outcome.job.name}: {outcome.error}", file=sys.stderr)
    return 2 if failed else 0


def _copy(preset: Any, typed: Typed) -> int:
    """Copy the table for the user to edit; returns the exit status."""
    from ercfusion.training.tables import copy_table

    others = [f"{key}=" for key in typed.keys if key not in ("copy", "imports", "config_dir")]
    others += [f"--{flag}" for flag in sorted(typed.flags)]
    if others:
        raise ConfigError(f"copy= only copies the table. Omit {', '.join(others)}.")
    file, records = copy_table(preset, typed.keys["copy"])
    print(file)
    print(records)
    again = command("copied table", "reproduce", str(file), *typed.common())
    print(f"Add rows to {file}, then train them and compute the table with: {again}")
    return 0


def rendered(preset: Any, records: Any) -> dict[str, str]:
    """The files of a table by name."""
    from ercfusion.plots.page import as_page
    from ercfusion.tables.exports import as_csv, as_latex
    from ercfusion.tables.render import as_markdown
    from ercfusion.tables.table import compute_tables
    from ercfusion.training.tables import wanted_records

    logger.info("%s: computing intervals and tests from the records", preset.title)
    tables = compute_tables(preset, wanted_records(preset, records))
    return dict(zip(FILES, (write(*tables) for write in (as_markdown, as_latex, as_csv, as_page)), strict=True))


def _write(preset: Any, records: Any, out: Path) -> list[Path]:
    written = []
    for name, text in rendered(preset, records).items():
        with atomic_write(out / name) as stream:
            stream.write(text)
        written.append(out / name)
    return written


def _check(preset: Any, records: Any, stale: Any, out: Path, typed: Typed) -> int:
    """Print all faults; returns the exit status."""
    faults = []
    for row in preset.rows:
        missing = [str(seed) for seed in row.seeds if seed not in records[row.name]]
        if missing:
            faults.append(f"{row.name}: no record for seed {', '.join(missing)}")
    if stale:
        faults.append(_stale_text(preset, stale))
    if any(records.values()):
        for name, text in rendered(preset, records).items():
            path = out / name
            if not path.is_file():
                faults.append(f"{path} is missing")
            elif path.read_text(encoding="utf-8", errors="replace") != text:
                faults.append(f"{path} does not match the records")
    for fault in faults:
        print(fault)
    if faults:
        words = [word for word in typed.words if word not in ("--check", typed.positional[0])]
        words += ["--renew"] if stale else []
        again = command("table not up to date", "reproduce", typed.positional[0], *words)
        print(f"update with: {again}")
        return 1
    print(f"{preset.title}: {_asked(preset)} records, all files up to date")
    return 0


def _stale_text(preset: Any, stale: Any) -> str:
    (row, seed), changed = next(iter(stale.items()))
    key, (was, now) = next(iter(changed.items()))
    return (
        f"the settings of {len(stale)} records of {preset.name} differ from the table file, for example {row}, seed "
        f"{seed}: {key} was {was!r} and is {now!r}. Repeat them with --renew, or restore the setting."
    )


def _asked(preset: Any) -> int:
    return sum(len(row.seeds) for row in preset.rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
