"""A sweep on this machine: its folder, its worker processes, its results.

Content of a sweep's folder::

    config.json      the resolved configuration, with the space    overrides.json, environment.json, sweep.log
    study.db         the trials (SQLite), unless sweep.storage names another storage
    trials/0000/     one folder per trial: config.json, metrics.csv, train.log; the best one has its model
    trials.csv       all trials in a table                         plots/*.png
    best.yaml        the best settings, for settings=              rerun/seed-N/   complete runs of the winner
    summary.json     written last: the sweep is complete
"""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ResumeError, RunError, TrainingError
from ercfusion._core.files import one_at_a_time, remove_leftovers, write_json
from ercfusion._core.pool import default_workers, run_jobs
from ercfusion._core.registry import import_again, import_modules, require_trusted
from ercfusion._core.schemas.reading import failure, shown
from ercfusion.config.hints import resume_command
from ercfusion.config.settings import Config, check_settings, decides, fields_in, section_from, section_to
from ercfusion.data.usable import LABELLED
from ercfusion.metrics.registry import check_metric
from ercfusion.search.config import fitted
from ercfusion.search.results import finish, write_table
from ercfusion.search.space import data_settings
from ercfusion.search.status import SweepProgress
from ercfusion.search.storage import (
    chosen_storage,
    masked,
    named_failures,
    require_optuna,
    resumed_storage,
    without_secrets,
)
from ercfusion.search.study import (
    Plan,
    StudyOrigin,
    Watcher,
    adopt,
    check_failures,
    create_or_join,
    open_study,
    set_up,
    tally,
    unfinished,
)
from ercfusion.search.worker import OWN_KEYS, DevData, WorkerJob, dev_data, tidy, work
from ercfusion.training.checks import before_features
from ercfusion.training.folder import (
    CONFIG,
    check_config,
    describe,
    discard,
    empty_folder,
    log_file,
    read_config,
)
from ercfusion.training.origin import data_changes

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger("ercfusion")

LOG = "sweep.log"
# Seconds of silence before another machine's trial is given up (signals come every 30 s).
SILENCE = 300.0
# Rounds in which all workers die without ending a trial.
_ROUNDS = 3
CHANGEABLE = tuple(key.partition(".")[2] for key in fields_in("sweep") if decides(key) == "nothing")
"""Settings that may change on resume."""


# Beginning


def begin(config: dict[str, Any], overrides: Sequence[str], argv: Sequence[str]) -> Plan:
    """Create the folder of a new sweep, and its study, or join an existing one.

    Args:
        config: From :func:`ercfusion.search.config.compose_sweep`.
        overrides: The settings, of files and as typed.
        argv: The whole command line.

    Raises:
        ErcfusionError: a mistake visible before the first trial; the folder is then removed.
    """
    require_optuna()
    import_modules(config["imports"])
    storage = chosen_storage(config["sweep"]["storage"])
    loaded = _prepared(config)
    config = fitted(config, loaded.data, loaded.train.inputs)
    task = loaded.data.protocol.task
    settings, sweep = Config.from_dict(config), section_from("sweep", config["sweep"])
    metric = sweep.metric or settings.training.metric or task.metric
    check_metric(task, metric)
    folder = empty_folder(settings, "sweep")
    config["place"] = secrets.token_hex(4)
    # Unique: machines join a study only by its name.
    stem = f"{settings.preset.model}-{settings.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    name = f"{stem}-{config['place']}" if sweep.name is None else sweep.name
    shown_storage = masked(storage) if storage is not None else None
    config["sweep"] = section_to(replace(sweep, name=name, storage=shown_storage))
    # Quoting the whole line would change a password with quotes.
    shown = [shlex.quote(masked(without_secrets(argument, storage))) for argument in argv]
    config["command"] = " ".join(["python -m ercfusion.sweep", *shown])
    config["study"] = {
        "metric": metric,
        "synthetic": loaded.data.corpus.card.synthetic,
        "identity": _identity(config, loaded, metric),
        "data": _data(config),
    }
    plan = Plan(folder, config, storage, name, config["place"], metric)
    try:
        typed = [masked(without_secrets(argument, storage)) for argument in overrides]
        describe(folder, config, typed, plan.command)
        with named_failures(storage):
            founder = create_or_join(plan, plan.origin.identity)
    except BaseException:
        discard(folder)  # it holds no trial
        raise
    if not founder:
        logger.info("joining the study %s", plan.name)
    return plan


def _prepared(config: Mapping[str, Any]) -> DevData:
    """Load all data that trials may use, with visible progress; returns those of the first."""
    settings = Config.from_dict(config)
    check = before_features(settings, LABELLED, section_from("sweep", config["sweep"]).metric)
    for data in data_settings(config, config["space"]):
        dev_data(data, check)
    return dev_data(settings.data, check)


def _identity(config: Mapping[str, Any], loaded: DevData, metric: str) -> dict[str, Any]:
    """What must be equal to search together, flat, for messages about the first difference."""
    corpus = loaded.data.corpus
    flat: dict[str, Any] = {"corpus": corpus.name, "protocol": loaded.data.protocol.id}
    flat["the corpus's fingerprint"] = corpus.fingerprint()
    flat |= {f"the width of {name}": width for name, width in loaded.train.inputs.widths.items()}
    for key, dimension in config["space"].items():
        flat[f"space.{key}"] = dimension

    def add(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and value and decides(name) != "nothing":
                add(value, f"{name}.")
            elif decides(name) == "result" or (decides(name) == "run" and not prefix.startswith("sweep.")):
                flat[name] = value

    add({key: value for key, value in config.items() if key not in (*OWN_KEYS, "preset") or key == "sweep"}, "")
    # The number of threads changes the last digits of scores, and so the winner.
    settings = Config.from_dict(config)
    flat["training.threads"] = settings.training.threads
    flat["data.encoder"] = Path(settings.data.encoder).name  # the path may differ between machines
    flat["the metric"] = metric
    return flat


def _data(config: Mapping[str, Any]) -> dict[str, str]:
    """Identities of the data that trials may use."""
    several = list(data_settings(config, config["space"]))
    identity: dict[str, str] = {}
    for number, settings in enumerate(several, start=1):
        prefix = f"data {number}: " if len(several) > 1 else ""
        identity |= {f"{prefix}{key}": value for key, value in dev_data(settings).data.identity.items()}
    return identity


def _check_unchanged(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise :class:`ResumeError` if settings or data have changed since the start."""
    origin, loaded = StudyOrigin.from_dict(config["study"]), _prepared(config)
    was = origin.identity
    now = json.loads(json.dumps(_identity(config, loaded, origin.metric)))
    pairs = [(key, was.get(key), now.get(key)) for key in dict.fromkeys([*was, *now])]
    changes = [f"{key}: {shown(old)} -> {shown(new)}" for key, old, new in pairs if old != new]
    changes += data_changes(origin.data, _data(config), {})
    if changes:
        more = f"; {len(changes) - 1} more" if len(changes) > 1 else ""
        problem = f": changed since the sweep was begun: {changes[0]}{more}"
        raise failure(ResumeError, folder / CONFIG, problem, "Restore that, or begin a new sweep.")


def reopen(folder: str | Path, changes: Mapping[str, Any], imports: Sequence[str] = ()) -> Plan:
    """Open an existing sweep, with new values for some of :data:`CHANGEABLE`.

    Args:
        changes: New values by key.
        imports: The sweep's modules, unless this process has imported them.

    Raises:
        RunError: not a sweep's folder, or its study is gone.
        ResumeError: other settings or data have changed.
        ConfigError: a value out of range.
    """
    path, config = read_config(folder)
    if "sweep" not in config or "study" not in config:
        command = resume_command("run, not sweep", "train", path)
        raise RunError(f"{folder} is the folder of a run, not of a sweep. Resume it with: {command}")
    require_optuna()
    import_again(imports, config["imports"], "sweep")
    require_trusted(config["imports"], resume_command("modules of a folder", "sweep", path))
    check_config(config, path)
    storage = resumed_storage(changes.get("storage"), config["sweep"]["storage"])
    config["sweep"] |= {**changes, "storage": masked(storage) if storage is not None else None}
    check_settings(config)
    _check_unchanged(path, config)
    name, metric = config["sweep"]["name"], config["study"]["metric"]
    plan = Plan(path, config, storage, name, config["place"], metric)
    with named_failures(storage):
        # The log is opened after the setup; without it there may be no study.
        if (storage is None or not (path / LOG).is_file()) and not _has_study(plan):
            create_or_join(plan, plan.origin.identity)
        study = open_study(plan)
        if study.user_attrs.get("founder") in (plan.place, None):
            study.set_user_attr("founder", plan.place)
            study.set_user_attr("format", study.user_attrs.get("format", 1))
            set_up(study, plan, plan.origin.identity)
        if "trials" in changes:
            study.set_user_attr("trials", changes["trials"])
    return plan


def _has_study(plan: Plan) -> bool:
    try:
        open_study(plan)
    except RunError:
        return False
    return True


# Search


def run_sweep(plan: Plan, *, rerun_asked: bool = False) -> dict[str, Any]:
    """Train missing trials, write results, train the winner on fresh seeds; returns the summary.

    Args:
        plan: From :func:`begin` or :func:`reopen`.
        rerun_asked: Train the winner here although another machine founded the study.
    """
    with one_at_a_time(plan.folder, "the sweep"), log_file(plan.folder / LOG), named_failures(plan.storage):
        remove_leftovers(plan.folder, deep=True)
        # For a later resume.
        write_json(plan.folder / "config.json", plan.config)
        _prepared(plan.config)  # fills the cache before the workers start
        study = open_study(plan)
        try:
            run_trials(study, plan)
        finally:
            write_table(study, plan)
        founder = study.user_attrs["founder"] == plan.place
        return finish(study, plan, rerun=founder or rerun_asked)


def run_trials(study: Study, plan: Plan) -> None:
    """Train trials until the study has enough, then wait for other machines."""
    hours, since = plan.sweep.timeout, time.time()
    deadline = since + 3600 * hours if hours is not None else None
    watcher = Watcher(plan, SILENCE)
    fruitless, forgive = 0, True
    founder = study.user_attrs["founder"] == plan.place
    with SweepProgress(study, plan) as progress:

        def tick() -> None:
            if progress.due():
                watched = watcher.check(study) if plan.storage is not None else []
                for number in watched:
                    logger.warning("trial %d is given up: its machine was silent for %.0f s", number, SILENCE)
                progress.tick()

        while True:
            tidy(study, plan)
            counts = tally(study)
            left = len(unfinished(study.get_trials(deepcopy=False), plan.place))
            if plan.storage is None:
                left = counts.running
            late = deadline is not None and time.time() > deadline
            todo = left + (0 if late else counts.missing)
            if not todo:
                elsewhere = counts.running - left
                if not elsewhere or not founder or late:
                    break
                tick()
                time.sleep(1)
                continue
            wanted = plan.sweep.workers
            workers = min(wanted if wanted is not None else default_workers(todo), max(1, todo))
            adopt(study, plan, workers, forgive=forgive)
            forgive = False
            progress.started(workers)
            outcomes = run_jobs(
                [WorkerJob(plan, number, deadline, since) for number in range(workers)],
                work,
                workers=workers,
                on_tick=tick,
            )
            errors = [outcome.error for outcome in outcomes if outcome.error is not None]
            fruitless = fruitless + 1 if errors and tally(study).over == counts.over else 0
            check_failures(study.get_trials(deepcopy=False), plan.place, since)
            _raise_errors([without_secrets(error, plan.storage) for error in errors], fruitless)
        progress.tick()


def _raise_errors(errors: Sequence[str], fruitless: int) -> None:
    """Raise the errors of workers, except replaceable deaths."""
    for error in errors:
        if error.startswith("unexpected error"):
            raise RuntimeError(error)
        if "its process died" not in error:
            raise RunError(error)
    if fruitless >= _ROUNDS:
        raise TrainingError(
            f"the worker processes die without ending a trial: {errors[0].rstrip('.')}. Set sweep.workers=1."
        )
