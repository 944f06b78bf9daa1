"""``python -m ercfusion.reproduce``: compute a table of models from records, doing the runs that are missing."""

from __future__ import annotations

import logging
import sys
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
    return [("presets", [f"  {', '.join(known_presets())}"])]


COMMAND = Command(
    "reproduce",
    "Compute a table: do the runs that have no record yet, then write it as Markdown, LaTeX, CSV and an HTML page",
    (
        ("experiments/demo.yaml", "what is missing is run, several at a time"),
        ("meld data.raw=DIR", "a preset of the library, by its name"),
        ("meld data.raw=DIR --fresh out=mine", "all runs again, in a folder next to the recorded ones"),
        ("experiments/meld.yaml --check", "do the files still say what the records say?"),
    ),
    positional=(Positional("PRESET"),),
    keys=(
        Key("data.raw", "raw folder of the corpus (or ERCFUSION_DATA=DIR in the environment)", "path"),
        Key("data.packs.MODALITY", "feature pack of a modality", "path"),
        Key("out", "folder for records and tables (default: one with the preset's name, next to it)", "path"),
        Key("runs", "folder for the run folders (default: outputs/reproduce/NAME)", "path"),
        Key("rows", "do the runs of these rows only (names with a comma: as their files are called)", "names"),
        Key("workers", "processes (default: one per core)", "whole"),
    ),
    flags=(
        Flag("fresh", "do not count the records that come with the preset"),
        Flag("renew", "run again what was made with other settings than the preset now has"),
        Flag("tables", "do no run: write the files from the existing records"),
        Flag("check", "do and write nothing; status 1 if a record is missing or stale or a file is not up to date"),
    ),
    tables=_presets,
    advice="What is run is written in the preset.",
    notes="""
Stopped by Ctrl-C or killed, it goes on when the same command is given again. Every number comes from run records, which
are kept in OUT/records, without texts or weights.
""",
)

FILES = ("README.md", "table.tex", "table.csv", "page.html")


def main(argv: list[str]) -> int:
    """The command; see :data:`COMMAND`."""
    return COMMAND.main(argv, reproduce)


def reproduce(typed: Typed) -> int:
    """Compute the table of a preset as the command line says; returns the exit status."""
    from ercfusion.training.tables import do_runs, make_jobs, missing_runs, read_table_records, stale_records

    keys, flags = typed.keys, typed.flags
    preset = read_preset(typed.positional[0], typed.composer.config_dir)
    beside = preset.path.parent / preset.name
    default = Path("outputs", "tables", preset.name) if "site-packages" in preset.path.parts else beside
    out = Path(keys["out"]) if "out" in keys else default
    fresh = "fresh" in flags
    if fresh and out.resolve() == beside.resolve():
        raise ConfigError("--fresh does all runs again; choose another folder for them with out=DIR")
    records = read_table_records(preset, [out] if fresh else [beside, out])
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
                extra += naming(keys.get("imports"))  # the processes that train need them too
                try:
                    outcomes = do_runs(
                        preset, make_jobs(preset, missing, runs, extra), records, out, keys.get("workers")
                    )
                except KeyboardInterrupt:
                    print("\nwhat is done is kept: give the same command again to go on", file=sys.stderr)
                    raise
                failed = [outcome for outcome in outcomes if outcome.error is not None]
                minutes = (time.monotonic() - started) / 60
            logger.info("%d runs in %.1f minutes", len(outcomes) - len(failed), minutes)
    if not any(records.values()):
        if failed:
            raise RunError(f"all runs failed. {failed[0].job.name}: {failed[0].error}")
        raise RunError(f"no row of {preset.path} has a record yet: leave out --tables to do the runs")
    for path in _write(preset, records, out):
        print(path)
    for outcome in failed:
        print(f"error: {outcome.job.name}: {outcome.error}", file=sys.stderr)
    return 2 if failed else 0


def rendered(preset: Any, records: Any) -> dict[str, str]:
    """The files of a table by their names."""
    from ercfusion.plots.page import as_page
    from ercfusion.tables.exports import as_csv, as_latex
    from ercfusion.tables.render import as_markdown
    from ercfusion.tables.table import compute_table
    from ercfusion.training.tables import wanted_records

    table = compute_table(preset, wanted_records(preset, records))
    return dict(zip(FILES, (as_markdown(table), as_latex(table), as_csv(table), as_page(table)), strict=True))


def _write(preset: Any, records: Any, out: Path) -> list[Path]:
    written = []
    for name, text in rendered(preset, records).items():
        with atomic_write(out / name) as stream:
            stream.write(text)
        written.append(out / name)
    return written


def _check(preset: Any, records: Any, stale: Any, out: Path, typed: Typed) -> int:
    """Say what is not as it should be; 0 where nothing is."""
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
                faults.append(f"{path} does not say what the records say")
    for fault in faults:
        print(fault)
    if faults:
        words = [word for word in typed.words if word not in ("--check", typed.positional[0])]
        again = command("table not up to date", "reproduce", str(preset.path), *words, *(["--renew"] if stale else []))
        print(f"bring it up to date with: {again}")
        return 1
    print(f"{preset.title}: {_asked(preset)} records, all files up to date")
    return 0


def _stale_text(preset: Any, stale: Any) -> str:
    (row, seed), changed = next(iter(stale.items()))
    key, (was, now) = next(iter(changed.items()))
    return (
        f"{len(stale)} records of {preset.name} were made with other settings than the preset now asks for; for "
        f"example {row}, seed {seed}: {key} was {was!r} and is {now!r}. Run them again with --renew, or put the "
        "setting back."
    )


def _asked(preset: Any) -> int:
    return sum(len(row.seeds) for row in preset.rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
