"""``python -m ercfusion.train``: train a model on a corpus, choose it on dev, open test once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, ErcfusionError
from ercfusion._core.pool import Outcome, default_workers
from ercfusion.cli import run_command, system_words
from ercfusion.config.overrides import expand_protocol
from ercfusion.fitting import begin, continue_command
from ercfusion.grammar import Command, Flag, Key, Typed

logger = logging.getLogger("ercfusion")

COMMAND = Command(
    "train",
    "Train a conversation model, choose it on the dev split, open the test split once",
    (
        ("", "COGMEN on the embedded, generated corpus"),
        ("model=bclstm data=demo/speaker", "another model, a variant of the corpus"),
        ("model=cogmen data=meld data.raw=DIR", "MELD's dialogues; DIR holds the released CSV files"),
        ("data=meld data.protocol=meld/3way", "three sentiments instead of seven emotions"),
        ("data=mosi data.modalities=[text]", "one modality of three"),
        ("optimizer.lr=1e-3 model.dropout=0.5", "any setting by its name"),
        (
            "task=metric_learning data=emodb data.raw=DIR data.packs.audio=logmel",
            "train vectors of sound, and export them as a pack",
        ),
        ("-m seed=0,1,2 model=concat,bclstm", "every combination, as many at a time as there are cores"),
        ("resume=RUN", "go on with an interrupted run"),
    ),
    usage=("[model=NAME] [data=NAME] [key=value ...] [flags]",),
    keys=(
        Key(
            "workers",
            "with --multirun: processes, each on one thread (default: one per core, or one per GPU, each with its "
            "own); 1 runs one combination after the other in this process",
            "whole",
        ),
        Key(
            "settings", "settings from a YAML file (the best.yaml of a sweep, for example); what is typed wins", "file"
        ),
    ),
    flags=(
        Flag("cfg", "print the configuration that would be used, and stop"),
        Flag("multirun", "run every combination of the values given as key=a,b,c", "m"),
    ),
    config="train",
    groups=("model", "data", "task", "objective", "optimizer", "scheduler", "curriculum", "trainer"),
    bare=True,
    details="""
The raw folder of a corpus is data.raw=DIR, or the environment variable ERCFUSION_DATA=DIR with DIR/CORPUS below it.
""",
    notes="""
A run writes a folder below outputs/ (output=DIR, or run=DIR for exactly that one): configuration, log, metrics per
epoch, checkpoints, the model, predictions, pictures and record.json. Its path is the last line printed.
""",
)


def main(argv: list[str]) -> int:
    """The command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    composer, multirun = typed.composer, "multirun" in typed.flags
    workers = typed.keys.get("workers")
    if workers is not None and not multirun:
        raise ConfigError("workers= goes with --multirun only: a single run is one process")
    # What is typed comes later, and wins.
    entries = composer.settings(typed.keys["settings"]) if "settings" in typed.keys else []
    combinations = [[*entries, *each] for each in (composer.expand(typed.settings) if multirun else [typed.settings])]
    jobs = []
    for combination in combinations:
        overrides = [part for argument in combination for part in expand_protocol(argument)]
        jobs.append((combination, composer.compose(overrides)))
    if "cfg" in typed.flags:
        print(_yaml(jobs[0][1]), end="")
        return 0
    if multirun and any(config["resume"] or config["run"] for _, config in jobs):
        raise ConfigError("run= and resume= name one folder and do not go with -m; use output=DIR")
    if multirun and any(config["trainer"]["devices"] * config["trainer"]["num_nodes"] != 1 for _, config in jobs):
        raise ConfigError("-m does not go with several devices: start one distributed run at a time")
    if not multirun:
        return _run_one(*jobs[0])
    if workers is None:
        workers = default_workers(len(jobs))
    records, failed = _one_by_one(jobs) if workers == 1 else _side_by_side(jobs, workers)
    if len(records) > 1:
        from ercfusion.tables.report import seeds_summary

        print("\n" + seeds_summary(records))
    return 2 if failed else 0


def _run_one(overrides: Sequence[str], config: dict[str, Any]) -> int:
    record, folder = begin(overrides, config)
    if record is not None:
        _show(record, folder)
    return 0


Combinations = Sequence[tuple[Sequence[str], dict[str, Any]]]


def _one_by_one(jobs: Combinations) -> tuple[list[dict[str, Any]], int]:
    """Run all combinations in this process; returns the records and how many failed."""
    records, failed = [], 0
    for number, (overrides, config) in enumerate(jobs, start=1):
        logger.info("run %d of %d: %s", number, len(jobs), " ".join(overrides))
        try:
            record, folder = begin(overrides, config)
        except (ErcfusionError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None:
                raise
            # The other combinations are still worth running; the status tells that one failed.
            print(f"error: {system_words(error) if isinstance(error, OSError) else error}", file=sys.stderr)
            failed += 1
            continue
        assert record is not None
        records.append(record)
        _show(record, folder)
    return records, failed


def _side_by_side(jobs: Combinations, workers: int) -> tuple[list[dict[str, Any]], int]:
    """Run all combinations, ``workers`` at a time; returns the records and how many failed."""
    from ercfusion.records.record import RECORD
    from ercfusion.training import run
    from ercfusion.training.many import RunJob, train_many

    shared = set(jobs[0][0]).intersection(*(overrides for overrides, _ in jobs))
    runs: list[RunJob] = []
    for overrides, config in jobs:
        name = ", ".join(entry for entry in overrides if entry not in shared) or " ".join(overrides)
        if config["training"]["threads"] is None:
            # Written down, so that the run says on how many threads it was made, and is resumed on as many.
            config["training"]["threads"] = 1
        try:
            runs.append(RunJob(name, config, run.new_run_folder(config, overrides)))
        except ErcfusionError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
    os.environ.pop(run.FOLDER_VARIABLE, None)  # it names one folder
    logger.info("%d runs, %d at a time", len(runs), min(workers, len(runs)))

    def ended(outcome: Outcome[RunJob, Any]) -> None:
        folder = outcome.job.folder
        if outcome.result is not None:
            _show(outcome.result, folder)
            return
        print(f"error: {outcome.job.name}: {outcome.error}", file=sys.stderr)
        if (folder / run.LAST).is_file():
            print(f"The run folder is {folder}", file=sys.stderr)
        else:
            run.discard_if_empty(folder)

    try:
        outcomes = train_many(runs, workers=workers, on_done=ended)
    except KeyboardInterrupt:
        left = [job.folder for job in runs if job.folder.is_dir() and not (job.folder / RECORD).is_file()]
        print(f"\ninterrupted; {len(left)} of {len(runs)} runs are not complete; continue with:", file=sys.stderr)
        for folder in left:
            print(f"  {continue_command(folder)}", file=sys.stderr)
        raise
    records = [outcome.result for outcome in outcomes if outcome.result is not None]
    return records, len(jobs) - len(records)


def _show(record: dict[str, Any], folder: Path) -> None:
    from ercfusion.tables.report import summary

    print(summary(record))
    print(folder, flush=True)


def _yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


if __name__ == "__main__":
    sys.exit(run_command(main))
