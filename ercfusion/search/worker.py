"""A worker process of a sweep: it trains trials and reports to the study.

A trial is trained like a run, on the same seed, but scored on dev only; the test split is not loaded.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ErcfusionError, ResumeError, RunError, first_line, with_type
from ercfusion._core.registry import import_modules
from ercfusion._core.terminal import prepare_logging
from ercfusion.config.overrides import override_text
from ercfusion.config.sections import Data
from ercfusion.config.settings import Config, section_to
from ercfusion.data.corpus import Protocol, Splits
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import load_data
from ercfusion.metrics.registry import get_metric
from ercfusion.search.space import setting, trial_settings, with_settings
from ercfusion.search.storage import is_storage_failure, named_failures, require_optuna
from ercfusion.search.study import STARTS, Plan, best_trial, end, next_trial, open_study
from ercfusion.training.callbacks import HISTORY, LAST, MODEL, best_row, read_history
from ercfusion.training.folder import describe, is_described, log_file
from ercfusion.training.origin import make_origin
from ercfusion.training.run import fit

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from ercfusion.features.loading import LoadedData

logger = logging.getLogger("ercfusion")

# Seconds between two signals for other machines.
BEAT = 30.0
CHECKPOINTS = "checkpoints"
# Keys of a sweep that runs do not have.
OWN_KEYS = ("sweep", "space", "typed", "command", "place", "study")


@dataclass(frozen=True)
class WorkerJob:
    """The task of a worker process.

    Args:
        number: From 0.
        deadline: Unix time after which no trial starts; None for none.
        since: Unix time of the sweep's start or resumption.
    """

    plan: Plan
    number: int
    deadline: float | None
    since: float


def work(job: WorkerJob) -> int:
    """Train trials until none is left; returns their number.

    Raises:
        TrainingError: consecutive trials fail.
        RunError: the storage or the disk failed.
    """
    prepare_logging()
    require_optuna()
    import_modules(job.plan.config["imports"])
    done = 0
    with named_failures(job.plan.storage):
        study = open_study(job.plan)
        try:
            while (trial := next_trial(study, job.plan, job.number, job.deadline, job.since)) is not None:
                run_trial(study, trial, job.plan)
                done += 1
        except OSError as error:
            if error.filename is None:
                raise
            raise RunError(f"{error.filename}: {error.strerror}. Check the disk, then resume the sweep.") from error
    return done


def trial_config(plan: Plan, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a trial as that of a run."""
    config = with_settings(plan.config, {**settings, "run": str(folder), "training.metric": plan.metric})
    for key in OWN_KEYS:
        config.pop(key, None)
    return config


def run_trial(study: Study, trial: Trial, plan: Plan) -> None:
    """Train or resume one trial and report its end."""
    from optuna import TrialPruned

    folder = plan.trial_folder(trial.number)
    frozen = _frozen(study, trial.number)
    _take_over(frozen, plan, folder)
    settings = trial_settings(plan.space, trial.params, plan.config)
    epochs = len(frozen.intermediate_values)
    starts = [*trial.user_attrs.get("starts", []), epochs]
    state, reason = "COMPLETE", ""
    if starts.count(epochs) > STARTS:
        state, reason = "FAIL", f"its process died {STARTS} times (killed, perhaps for memory)"
    else:
        trial.set_user_attr("starts", starts)
        with _alive(trial, plan):
            try:
                train_trial(trial_config(plan, settings, folder), folder, plan, _reporter(trial, frozen, plan, folder))
            except TrialPruned:
                state = "PRUNED"
            except Exception as error:
                if is_storage_failure(error) or isinstance(error, OSError | ResumeError):
                    # No fault of the trial's settings.
                    raise
                # Divergence, contradicting settings, lack of memory: others may work.
                state, reason = "FAIL", first_line(error) if isinstance(error, ErcfusionError) else with_type(error)
    result = _result(folder, plan.metric, reason)
    if state == "COMPLETE" and "value" not in result:
        state, result["reason"] = "FAIL", "it has no score"
    trial.set_user_attr("result", {**result, "settings": settings})
    end(study, trial.number, state, result["value"] if state == "COMPLETE" else None)
    tidy(study, plan)


def _frozen(study: Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _take_over(frozen: FrozenTrial, plan: Plan, folder: Path) -> None:
    """Continue in the folder of the lost trial with these settings, if it is here."""
    place, number = frozen.user_attrs.get("continues") or (None, 0)
    earlier = plan.trial_folder(number)
    if place == plan.place and earlier.is_dir() and not folder.exists():
        earlier.rename(folder)


def _result(folder: Path, metric: str, reason: str) -> dict[str, Any]:
    result: dict[str, Any] = {"reason": reason} if reason else {}
    if (folder / HISTORY).is_file():
        history = read_history(folder / HISTORY, metric)
        best = best_row(history, metric)
        result |= {"value": best[f"dev/{metric}"], "epoch": int(best["epoch"]), "epochs": len(history)}
        result["seconds"] = round(sum(row["seconds"] for row in history), 3)
    return result


def _reporter(trial: Trial, frozen: FrozenTrial, plan: Plan, folder: Path) -> Callable[[int, float], None]:
    """The callback after every epoch: it reports the best score so far."""
    from optuna import TrialPruned

    reported = set(frozen.intermediate_values)
    better = max if get_metric(plan.metric).higher_is_better else min
    scores: list[float] = []

    def report(epoch: int, score: float) -> None:
        scores.append(score)
        if epoch not in reported:
            reported.add(epoch)
            trial.report(better(scores), epoch)

    def on_epoch(epoch: int, score: float) -> None:
        report(epoch, score)
        # The first trial is the baseline: never pruned.
        if trial.number > 0 and trial.should_prune():
            raise TrialPruned

    if (folder / HISTORY).is_file():
        # An epoch without a checkpoint is trained again.
        rows = read_history(folder / HISTORY, plan.metric) if (folder / LAST).is_file() else []
        for row in rows:
            report(int(row["epoch"]), row[f"dev/{plan.metric}"])
    return on_epoch


@dataclass(frozen=True)
class DevData:
    """A corpus without its test split."""

    data: LoadedData
    train: ConversationStore
    dev: ConversationStore


# By settings, shared by the trials of one process.
_loaded: dict[str, DevData] = {}


def dev_data(settings: Data, check: Callable[[Protocol, Splits], object] | None = None) -> DevData:
    """The train and dev splits, cached; ``check`` as for ``load_data``."""
    key = json.dumps(section_to(settings), sort_keys=True)
    if key not in _loaded:
        data = load_data(settings, check)
        _loaded[key] = DevData(data, data.store("train"), data.store("dev"))
    return _loaded[key]


def train_trial(
    config: Mapping[str, Any], folder: Path, plan: Plan, on_epoch: Callable[[int, float], None] | None = None
) -> None:
    """Train in ``folder``, from its checkpoint if it has one."""
    import torch

    if not is_described(folder):
        folder.mkdir(parents=True, exist_ok=True)
        describe(folder, config, typed_arguments(plan, config), plan.command)
    settings = Config.from_dict(config)
    assert settings.training.threads is not None  # set by ``fitted``
    torch.set_num_threads(settings.training.threads)
    log = folder / "train.log"
    # Only the parent writes to the terminal.
    with log_file(log), log.open("a", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        data = dev_data(settings.data)
        fit(settings, folder, data.train, data.dev, plan.metric, make_origin(config, folder, data.data), on_epoch)


def typed_arguments(plan: Plan, config: Mapping[str, Any]) -> list[str]:
    """The arguments of ``train`` for the run of one trial."""
    values = {**plan.typed, **{key: setting(config, key) for key in plan.space}}
    return [
        f"{key}={value}" if "." not in key and isinstance(value, str) else override_text(key, value)
        for key, value in values.items()
    ]


@contextmanager
def _alive(trial: Trial, plan: Plan) -> Iterator[None]:
    """Send signals for other machines meanwhile."""
    if plan.storage is None:
        yield
        return
    finished = threading.Event()

    def beat() -> None:
        count = int(trial.user_attrs.get("beat", 0))
        while not finished.wait(BEAT):
            count += 1
            try:
                trial.set_user_attr("beat", count)
            except Exception as error:
                # It may be away for a moment; else training fails.
                logger.debug("no signal sent: %s", error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def tidy(study: Study, plan: Plan) -> None:
    """Remove the weights of finished trials, except the best model."""
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, plan.metric)
    for folder in (plan.folder / "trials").glob("[0-9]*"):
        number = int(folder.name)
        if number < len(trials) and trials[number].state.is_finished() and not _continued(trials, plan, number):
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            if best is None or number != best.number:
                shutil.rmtree(folder / MODEL, ignore_errors=True)


def _continued(trials: list[FrozenTrial], plan: Plan, number: int) -> bool:
    """Whether another trial is to continue from this one's checkpoint."""
    return any(
        trial.user_attrs.get("continues") == [plan.place, number] and not trial.state.is_finished() for trial in trials
    )
