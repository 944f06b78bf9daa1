"""``python -m ercfusion.reproduce``: compute a table of models from records, doing the runs that are missing."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, RunError, did_you_mean
from ercfusion._core.files import expanded, one_at_a_time, remove_leftovers
from ercfusion._core.hints import command
from ercfusion._core.overrides import override_text
from ercfusion.cli import listed, run_command, split_flags, split_settings, switch, whole_number

logger = logging.getLogger("ercfusion")

HELP = """\
Compute a table: do the runs that have no record yet, then write it as Markdown, LaTeX, CSV and an HTML page.

usage: python -m ercfusion.reproduce PRESET [setting=value ...] [flags]

examples
  python -m ercfusion.reproduce experiments/demo.yaml                 what is missing is run, several at a time
  python -m ercfusion.reproduce meld data.raw=DIR                     a preset of the library, by its name
  python -m ercfusion.reproduce meld data.raw=DIR fresh=true out=mine all runs anew, beside the recorded ones
  python -m ercfusion.reproduce experiments/meld.yaml --check         do the files still say what the records say?

presets     {presets}

settings
  data.raw=DIR       raw folder of the corpus (or ERCFUSION_DATA=DIR in the environment)
  data.packs.M=DIR   feature pack of the modality M
  out=DIR            records and tables go there (default: a folder of the preset's name beside it)
  runs=DIR           run folders go there (default: outputs/reproduce/NAME)
  rows=A,B           do the runs of these rows only (names with a comma: as their files are called)
  workers=N          processes (default: one a core)
  fresh=false        true: do not count the records that come with the preset
  renew=false        true: run anew where the preset's settings have changed since the record was made

flags
  --tables           do no run: write the files from the records that there are
  --check            do and write nothing; status 1 where a record is missing or stale or a file is not up to date
  --help, -h         this text

Stopped by Ctrl-C or killed, it goes on when the same command is given again. Every number comes from run records, which
are kept in OUT/records, without texts or weights.
"""

FILES = ("README.md", "table.tex", "table.csv", "page.html")
_SETTINGS = ("data.raw", "out", "runs", "rows", "workers", "fresh", "renew")


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h", "--check", "--tables"], ["--config-dir"])
    if "--help" in flags or "-h" in flags or not arguments:
        from ercfusion.tables.preset import known_presets

        print(HELP.format(presets=listed(known_presets(), 12)), end="")
        return 0 if "--help" in flags or "-h" in flags else 2
    names, settings = split_settings(arguments)
    if len(names) != 1:
        raise ConfigError(f"one preset is expected, found {len(names)}: {' '.join(names)}")
    for key in settings:
        if key not in _SETTINGS and not key.startswith("data.packs."):
            known = [*_SETTINGS, "data.packs.<modality>"]
            hint = f"What is run stands in the preset. {did_you_mean(key, known)}"
            raise ConfigError(f"reproduce has no setting {key!r}. {hint}")
    check, tables_only = (flag in flags for flag in ("--check", "--tables"))
    return reproduce(names[0], settings, check=check, tables_only=tables_only, config_dir=flags.get("--config-dir"))


def reproduce(
    name: str,
    settings: dict[str, str],
    *,
    check: bool = False,
    tables_only: bool = False,
    config_dir: str | None = None,
) -> int:
    """Compute the table of a preset; ``settings`` as on the command line. Returns the exit status."""
    from ercfusion.tables.preset import read_preset
    from ercfusion.training.tables import do_runs, make_jobs, missing_runs, read_table_records, stale_records

    preset = read_preset(name, config_dir)
    beside = preset.path.parent / preset.name
    default = Path("outputs", "tables", preset.name) if "site-packages" in preset.path.parts else beside
    out = expanded(settings["out"]) if "out" in settings else default
    fresh, renew = (switch(settings, key) for key in ("fresh", "renew"))
    workers = whole_number("workers", settings["workers"]) if "workers" in settings else None
    if fresh and out.resolve() == beside.resolve():
        raise ConfigError("fresh=true runs everything anew; choose another folder for it with out=DIR")
    records = read_table_records(preset, [out] if fresh else [beside, out])
    stale = stale_records(preset, records)
    if check:
        return _check(preset, records, stale, out, settings)
    if stale and not renew:
        raise RunError(_stale_text(preset, stale))
    for row, seed in stale:
        del records[row][seed]
    failed: list[Any] = []
    if not tables_only:
        missing = missing_runs(preset, records, settings["rows"].split(",") if "rows" in settings else None)
        if missing:
            runs = expanded(settings.get("runs", f"outputs/reproduce/{preset.name}"))
            logger.info("%s: %d of %d runs have no record yet", preset.title, len(missing), _asked(preset))
            with one_at_a_time(runs, "this table"):
                remove_leftovers(runs, deep=True)
                started = time.monotonic()
                extra = [override_text(key, value) for key, value in settings.items() if key.startswith("data.")]
                try:
                    outcomes = do_runs(preset, make_jobs(preset, missing, runs, extra), records, out, workers)
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
    from ercfusion._core.files import atomic_write

    written = []
    for name, text in rendered(preset, records).items():
        with atomic_write(out / name) as stream:
            stream.write(text)
        written.append(out / name)
    return written


def _check(preset: Any, records: Any, stale: Any, out: Path, settings: dict[str, str]) -> int:
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
        words = ["--config-dir", preset.config_dir] if preset.config_dir else []
        again = {**settings, **({"renew": "true"} if stale else {})}
        typed = command("table not up to date", "reproduce", str(preset.path), *words, *map("=".join, again.items()))
        print(f"bring it up to date with: {typed}")
        return 1
    print(f"{preset.title}: {_asked(preset)} records, all files up to date")
    return 0


def _stale_text(preset: Any, stale: Any) -> str:
    (row, seed), changed = next(iter(stale.items()))
    key, (was, now) = next(iter(changed.items()))
    return (
        f"{len(stale)} records of {preset.name} were made with other settings than the preset now asks for; for "
        f"example {row}, seed {seed}: {key} was {was!r} and is {now!r}. Run them anew with renew=true, or put the "
        "setting back."
    )


def _asked(preset: Any) -> int:
    return sum(len(row.seeds) for row in preset.rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
