"""Find, train and archive the runs of a table."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, RunError, did_you_mean
from ercfusion._core.files import atomic_folder, atomic_write, expanded
from ercfusion._core.pool import Outcome
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.overrides import literal_text
from ercfusion.config.settings import section_from
from ercfusion.data.corpora import open_corpus
from ercfusion.data.usable import check_splits
from ercfusion.features.loading import load_data
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.groups import changed_settings, differences, settings_of
from ercfusion.records.optimism import EPOCHS, OPTIMISM, measure_optimism
from ercfusion.records.run_schema import OptimismFile
from ercfusion.tables.preset import Row, TablePreset
from ercfusion.training.folder import is_described, is_unused
from ercfusion.training.many import RunJob, train_many, train_run
from ercfusion.training.run import import_modules, new_run_folder, open_run_folder

logger = logging.getLogger("ercfusion")

RECORDS = "records"
Records = dict[str, dict[int, dict[str, Any]]]
"""Records by row name and seed."""


# Records


def archive_path(folder: Path, row: Row) -> Path:
    """The archive of a row's records."""
    return folder / RECORDS / f"{row.slug}.json"


def read_table_records(preset: TablePreset, folders: Sequence[Path]) -> Records:
    """The archived records; later folders win.

    Raises:
        RunError: an archive is damaged.
    """
    records: Records = {row.name: {} for row in preset.rows}
    for folder in folders:
        for row in preset.rows:
            if archive_path(folder, row).is_file():
                records[row.name].update({record["seed"]: record for record in read_archive(archive_path(folder, row))})
    return records


def copy_table(preset: TablePreset, name: str) -> tuple[Path, Path]:
    """Copy the file of a table and its recorded archives; returns ``NAME.yaml`` and ``NAME/records``.

    Raises:
        ConfigError: one of them exists.
    """
    folder = expanded(name.removesuffix(".yaml"))
    file = folder.with_name(f"{folder.name}.yaml")
    for path in (file, folder):
        if os.path.lexists(path):
            raise ConfigError(f"{path} exists. Choose another name for the copy.")
    recorded = preset.path.with_suffix("")
    with atomic_folder(folder) as copy:
        (copy / RECORDS).mkdir()
        for row in preset.rows:
            if archive_path(recorded, row).is_file():
                shutil.copyfile(archive_path(recorded, row), archive_path(copy, row))
    # After the records: a table file without them would train all runs again.
    try:
        with atomic_write(file) as stream:
            stream.write(preset.path.read_text(encoding="utf-8"))
    except OSError:
        shutil.rmtree(folder)
        raise
    return file, folder / RECORDS


def stale_records(preset: TablePreset, records: Records) -> dict[tuple[str, int], dict[str, tuple[Any, Any]]]:
    """Records of other settings than the preset's, as {(row, seed): {setting: (was, is)}}."""
    stale = {}
    for row in preset.rows:
        wanted = settings_of(preset.config(row, row.seeds[0]))
        for seed, record in records[row.name].items():
            was = settings_of(record["config"])
            changed = differences(was, wanted)
            if record["config"]["preset"]["model"] != row.model:
                changed["model"] = (record["config"]["preset"]["model"], row.model)
            if changed:
                stale[row.name, seed] = changed
    return stale


def wanted_records(preset: TablePreset, records: Records) -> dict[str, list[dict[str, Any]]]:
    """Per row, the records of its seeds, in their order."""
    return {
        row.name: [records[row.name][seed] for seed in row.seeds if seed in records[row.name]] for row in preset.rows
    }


# Runs


@dataclass(frozen=True)
class TableJob(RunJob):
    """One run of a table.

    Args:
        row: Name of its row.
        metric: For the optimism diagnostic; None for the protocol's own.
        views: The same by task, for several tables of the same runs.
    """

    row: str = ""
    metric: str | None = None
    views: Mapping[str, str | None] = field(default_factory=dict)


def table_run(job: TableJob) -> dict[str, Any]:
    """Train one run, measure its optimism and remove its epochs' models; returns the record."""
    check_testable(job.config)
    record = train_run(job)
    path = job.folder / OPTIMISM
    if not path.is_file():
        data = load_data(section_from("data", job.config["data"]), refuse_changed=False)
        # The table's score, not the one that chose the epochs.
        own = data.protocol.task
        measure_optimism(job.folder, record, data, job.metric or job.views.get(own.name) or own.metric)
    report = read_json(path, OptimismFile, advice="Delete the file: it is measured again.")
    for folder in job.folder.glob(EPOCHS):
        shutil.rmtree(folder)
    names = ("metric", "dev_selected", "last_epoch", "test_selected", "test_selected_epoch")
    return {**record, "optimism": {name: report[name] for name in names}}


def check_testable(config: Mapping[str, Any]) -> None:
    """Raise :class:`RunError` if the test split has no labels."""
    import_modules(config["imports"])
    data = section_from("data", config["data"])
    corpus = open_corpus(data.name, data.raw, **data.options)
    protocol = corpus.with_tasks(corpus.protocol(data.protocol), data.tasks)
    if check_splits(protocol, protocol.viewed(corpus.conversations(protocol))):
        raise RunError(
            f"{protocol.id}: the test split has no labels, so a table has no scores to show. Choose another protocol."
        )


def missing_runs(preset: TablePreset, records: Records, only: Sequence[str] | None = None) -> list[tuple[Row, int]]:
    """Rows and seeds without a record.

    Args:
        only: Names of rows, or of their files (without commas); None for all.

    Raises:
        ConfigError: no such row.
    """
    slugs = {name: row.slug for row in preset.rows for name in (row.slug, row.name)}
    for name in only or ():
        if name not in slugs:
            raise ConfigError(f"{preset.typed}: no row {name!r}. {did_you_mean(name, slugs)}")
    wanted = slugs.values() if only is None else [slugs[name] for name in only]
    return [
        (row, seed) for row in preset.rows for seed in row.seeds if row.slug in wanted and seed not in records[row.name]
    ]


def make_jobs(
    preset: TablePreset, missing: Sequence[tuple[Row, int]], runs: Path, extra: Sequence[str]
) -> list[TableJob]:
    """The jobs for missing records, in new run folders or those of an earlier call.

    Args:
        runs: Parent of the folders ``ROW/seed-N``.
        extra: Arguments without influence on results, such as ``data.raw=DIR``.

    Raises:
        ConfigError: a wrong argument.
    """
    jobs = []
    arguments = (*extra, "training.keep_every_epoch=true", "training.pictures=false")
    for row, seed in missing:
        folder = (runs / row.slug / f"seed-{seed}").absolute()
        config = preset.config(row, seed, (*arguments, literal_text("run", str(folder))))
        _prepare_folder(folder, config, [*preset.arguments(row, seed), *arguments])
        metric = preset.metric if preset.task is None else None  # optimism is about the task that chose the epoch
        jobs.append(TableJob(f"{row.name}, seed {seed}", config, folder, row.name, metric, preset.views))
    return jobs


def _prepare_folder(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    if is_described(folder):
        _, earlier = open_run_folder(folder)
        if not changed_settings(earlier, config):
            return
    if folder.is_dir() and not is_unused(folder):
        backup = folder.with_name(f"{folder.name}-until-{datetime.now():%Y%m%d-%H%M%S}")
        folder.rename(backup)
        logger.info("%s was started with other settings; kept as %s", folder, backup.name)
    new_run_folder(config, overrides)


def do_runs(
    preset: TablePreset,
    jobs: Sequence[TableJob],
    records: Records,
    out: Path,
    workers: int | None,
    on_done: Callable[[Outcome[RunJob, Any]], None] | None = None,
) -> list[Outcome[RunJob, Any]]:
    """Train the runs, and archive each record below ``out`` at once."""
    rows = {row.name: row for row in preset.rows}

    def keep(outcome: Outcome[RunJob, Any]) -> None:
        job = outcome.job
        if outcome.result is not None and isinstance(job, TableJob):
            records[job.row][outcome.result["seed"]] = outcome.result
            write_archive(archive_path(out, rows[job.row]), list(records[job.row].values()))
        if on_done is not None:
            on_done(outcome)

    return train_many(jobs, workers=workers, work=table_run, on_done=keep, description=preset.name)  # type: ignore[arg-type]
