"""``python -m ercfusion.train``: train a model, select the epoch on dev, test once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, ErcfusionError, system_words
from ercfusion._core.pool import Outcome, default_workers
from ercfusion.cli import run_command
from ercfusion.config.missing import described_laws
from ercfusion.config.overrides import expand_protocol
from ercfusion.fitting import begin, continue_command
from ercfusion.grammar import Command, Flag, Key, Typed, columns, settings_lines

logger = logging.getLogger("ercfusion")

_FREQUENT = (
    *("seed", "training.max_epochs", "training.patience", "training.batch_size", "training.threads"),
    *("data.raw", "data.protocol", "data.modalities", "output"),
)

COMMAND = Command(
    "train",
    "Train a model, select the epoch on dev and score it on test",
    (
        ("", "COGMEN on the generated corpus demo, which needs no files"),
        ("model=bclstm data=demo/speaker", "another model, another variant of demo"),
        ("model=cogmen data=meld data.raw=DIR", "MELD; DIR contains the released CSV files"),
        ("data=meld data.protocol=meld/3way", "three sentiments instead of seven emotions"),
        ("data=mosi data.modalities=[text]", "text only"),
        ("optimizer.lr=1e-3 model.dropout=0.5", "change settings"),
        ("missing=rate missing.train=rate:0.3", "hide modalities of utterances at random, at this rate"),
        (
            "task=metric_learning data=emodb data.raw=DIR data.packs.audio=logmel",
            "learn audio vectors and export them as a feature pack",
        ),
        ("-m seed=0,1,2 model=concat,bclstm", "six runs, in parallel on all cores"),
        ("resume=RUN", "resume an interrupted run"),
    ),
    usage=("[model=NAME] [data=NAME] [key=value ...] [flags]",),
    keys=(
        Key(
            "workers",
            "parallel processes of --multirun (default: one per core, or one per GPU)",
            "whole",
        ),
        Key("settings", "read settings from a YAML file, such as best.yaml of a sweep; typed settings win", "file"),
    ),
    flags=(
        Flag("cfg", "print all settings and stop"),
        Flag("multirun", "run every combination of values typed as key=a,b,c", "m"),
    ),
    config="train",
    groups=(
        *("model", "data", "task", "objective", "optimizer", "scheduler", "curriculum", "missing", "recipe"),
        "trainer",
    ),
    bare=True,
    details="""
The files of a corpus are in data.raw=DIR, or in ERCFUSION_DATA/CORPUS (an environment variable).
""",
    tables=lambda composer: [
        ("Frequent settings and defaults (--cfg prints all):", settings_lines(_FREQUENT)),
        ("Laws of missing modalities, for missing.train, missing.dev and missing.eval:", [columns(described_laws())]),
    ],
    notes="""
The last line printed is the run folder, a new one in outputs/train: settings, log, scores per epoch, checkpoints,
model, predictions, pictures and record.json.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    composer, multirun = typed.composer, "multirun" in typed.flags
    workers = typed.keys.get("workers")
    if workers is not None and not multirun:
        raise ConfigError("workers= applies to --multirun only. Remove it, or add -m.")
    # Typed settings come last and win.
    file = composer.settings(typed.keys["settings"]) if "settings" in typed.keys else []
    combinations = [[*file, *each] for each in (composer.expand(typed.settings) if multirun else [typed.settings])]
    jobs = []
    for combination in combinations:
        overrides = [part for argument in combination for part in expand_protocol(argument)]
        jobs.append((combination, composer.compose(overrides)))
    if "cfg" in typed.flags:
        print(_yaml(jobs[0][1]), end="")
        return 0
    if multirun and any(config["resume"] or config["run"] for _, config in jobs):
        raise ConfigError("run= and resume= are one folder and do not go with -m. Use output=DIR.")
    if multirun and any(config["trainer"]["devices"] * config["trainer"]["num_nodes"] != 1 for _, config in jobs):
        raise ConfigError("-m does not go with several devices. Start one distributed run at a time.")
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
    """Run all combinations in this process; returns the records and the number of failures."""
    records, failed = [], 0
    for number, (overrides, config) in enumerate(jobs, start=1):
        logger.info("run %d of %d: %s", number, len(jobs), " ".join(overrides))
        try:
            record, folder = begin(overrides, config)
        except (ErcfusionError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None:
                raise
            # The other combinations run; the exit status reports the failure.
            print(f"error: {system_words(error) if isinstance(error, OSError) else error}", file=sys.stderr)
            failed += 1
            continue
        assert record is not None
        records.append(record)
        _show(record, folder)
    return records, failed


def _side_by_side(jobs: Combinations, workers: int) -> tuple[list[dict[str, Any]], int]:
    """Run all combinations in ``workers`` processes; returns the records and the number of failures."""
    from ercfusion.records.record import RECORD
    from ercfusion.training import run
    from ercfusion.training.folder import with_folder
    from ercfusion.training.many import RunJob, train_many

    shared = set(jobs[0][0]).intersection(*(overrides for overrides, _ in jobs))
    runs: list[RunJob] = []
    for overrides, config in jobs:
        name = ", ".join(text for text in overrides if text not in shared) or " ".join(overrides)
        if config["training"]["threads"] is None:
            # Recorded, so that a resumed run has the same number.
            config["training"]["threads"] = 1
        try:
            runs.append(RunJob(name, config, run.new_run_folder(config, overrides)))
        except ErcfusionError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
    os.environ.pop(run.FOLDER_VARIABLE, None)  # it is one folder, not several
    logger.info("%d runs, %d at a time", len(runs), min(workers, len(runs)))

    def ended(outcome: Outcome[RunJob, Any]) -> None:
        folder = outcome.job.folder
        if outcome.result is not None:
            _show(outcome.result, folder)
            return
        print(f"error: {outcome.job.name}: {with_folder(str(outcome.error), folder)}", file=sys.stderr)
        run.discard_if_empty(folder)

    try:
        outcomes = train_many(runs, workers=workers, on_done=ended)
    except KeyboardInterrupt:
        left = [job.folder for job in runs if job.folder.is_dir() and not (job.folder / RECORD).is_file()]
        print(f"\ninterrupted; {len(left)} of {len(runs)} runs are not complete. Continue with:", file=sys.stderr)
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
