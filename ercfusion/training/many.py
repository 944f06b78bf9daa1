"""Many runs on one machine, each in its own process on one thread.

Measurements: ``benchmarks/README.md``, "Many runs on one machine".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError
from ercfusion._core.pool import Outcome, default_workers, run_jobs
from ercfusion._core.registry import import_modules
from ercfusion._core.terminal import prepare_logging
from ercfusion.config.settings import Config, section_from
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpus import Corpus
from ercfusion.features.loading import wanted_modalities
from ercfusion.features.text import text_pack
from ercfusion.records.record import RECORD
from ercfusion.training import run
from ercfusion.training.checks import before_features
from ercfusion.training.watch import RunsProgress, WatchedRun

logger = logging.getLogger("ercfusion")


@dataclass(frozen=True)
class RunJob:
    """A run to train.

    Args:
        name: ``cogmen, seed 3``; names differing only in the seed share one estimate of time.
        config: Resolved, as in ``config.json``.
        folder: From :func:`ercfusion.training.run.new_run_folder`; new, interrupted or complete.
    """

    name: str
    config: dict[str, Any]
    folder: Path


def train_run(job: RunJob) -> dict[str, Any]:
    """Train or resume one run in a worker process; returns the record.

    Without ``training.threads`` it uses one thread, so the number of workers changes no result.
    """
    import torch

    prepare_logging()
    torch.set_num_threads(1)
    # Only the parent writes to the terminal.
    with (job.folder / "train.log").open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        record = run.train(job.config, job.folder)
    assert record is not None  # None only in the additional processes of distributed training
    return record


def train_many(
    jobs: Sequence[RunJob],
    *,
    workers: int | None = None,
    work: Callable[[RunJob], Any] = train_run,
    on_done: Callable[[Outcome[RunJob, Any]], None] | None = None,
    description: str = "runs",
) -> list[Outcome[RunJob, Any]]:
    """Train several runs at a time, with progress.

    A failed run does not stop the others. Ctrl-C stops all and raises KeyboardInterrupt; every folder can be resumed.

    Args:
        workers: Processes; None for :func:`ercfusion._core.pool.default_workers`.
        work: Function of a module called for each job; it must train in the job's folder.
        on_done: Called in this process after each run.
        description: Name of the runs in progress lines.

    Returns:
        One outcome per run, in the order of ``jobs``.
    """
    jobs = list(jobs)
    workers = default_workers(len(jobs)) if workers is None else workers
    prepare_packs([job.config for job in jobs if not (job.folder / RECORD).is_file()])
    numbers = {id(job): number for number, job in enumerate(jobs)}
    shown = RunsProgress([_watched(job) for job in jobs], workers, description)

    def ended(outcome: Outcome[RunJob, Any]) -> None:
        shown.ended(numbers[id(outcome.job)], outcome.error)
        if on_done is not None:
            with shown.hidden():
                on_done(outcome)

    with shown:
        return run_jobs(jobs, work, workers=workers, on_done=ended, on_tick=shown.tick)


def _watched(job: RunJob) -> WatchedRun:
    training = section_from("training", job.config["training"])
    return WatchedRun(job.name, training, job.config["preset"]["model"], job.folder)


def prepare_packs(configs: Sequence[Mapping[str, Any]]) -> None:
    """Build the text features needed by several runs once, with visible progress.

    Errors are ignored: the run itself reports them.
    """
    for config in {json.dumps([config["imports"], config["data"]]): config for config in configs}.values():
        try:
            import_modules(config["imports"])
            _prepare(Config.from_dict(config))
        except ErcfusionError as error:
            logger.debug("features are not prepared: %s", error)


def _prepare(config: Config) -> None:
    settings = config.data
    corpus = open_corpus(settings.name, settings.raw, **settings.options)
    protocol = corpus.protocol(settings.protocol)
    offered = list(dict.fromkeys([*protocol.modalities, *settings.packs]))
    wanted = wanted_modalities(settings.modalities, offered, protocol)
    if type(corpus).features is Corpus.features and not set(wanted) <= set(settings.packs):
        splits = corpus.conversations(protocol)
        before_features(config)(protocol, protocol.viewed(splits))
        text_pack(corpus, protocol, encoder=settings.encoder, conversations=splits)
