"""The study: what all processes of a sweep, on one machine or several, know of each other.

Trials in the storage carry these attributes: ``owner`` (the folder's id and the worker's number), ``starts`` (epochs
done at each start), ``beat`` (rises while somebody works on it), ``result`` (see :mod:`ercfusion.search.worker`),
``lost`` (it does not count: nobody finishes it) and ``continues`` (folder's id and number of the lost trial whose
settings it has).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError, TrainingError
from ercfusion._core.schemas.reading import shown
from ercfusion.config.sections import Sweep
from ercfusion.config.settings import Config, section_from
from ercfusion.data.sampler import mix_seed
from ercfusion.metrics.registry import get_metric
from ercfusion.search.space import Space, clipped, encoded, setting, suggest
from ercfusion.search.storage import damaged, open_storage
from ercfusion.search.study_schema import study_problem

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

FORMAT = 1
# Failures in a row before the sweep gives up: where no trial has ever succeeded, and where one has.
HOPELESS = 3
BROKEN = 10
# Times that a trial is begun at one epoch before it counts as what kills its process.
STARTS = 3
# Seconds that a machine waits for another one that makes the study.
_WAIT = 60


@dataclass(frozen=True)
class Begun:
    """What a search is about, as found when it was begun.

    Args:
        metric: The dev score that is searched for.
        synthetic: Whether the corpus is.
        identity: What must be equal for machines to search together.
        data: What identifies the data that trials may use.
    """

    metric: str
    synthetic: bool
    identity: dict[str, Any]
    data: dict[str, str]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Begun:
        """From ``config.json``, which may say more."""
        return cls(content["metric"], content["synthetic"], content["identity"], content["data"])


@dataclass(frozen=True)
class Plan:
    """What every process of a sweep needs to know.

    Args:
        folder: Of the sweep on this machine.
        config: Resolved, as ``config.json`` holds it: settings that are searched are taken from it by dotted key.
        storage: Address with password; None for SQLite in the folder.
        name: Of the study.
        place: Names the folder among those that work on one study.
        metric: The dev score that is searched for.
    """

    folder: Path
    config: dict[str, Any]
    storage: str | None
    name: str
    place: str
    metric: str

    @property
    def space(self) -> Space:
        """The dimensions."""
        found: Space = self.config["space"]
        return found

    @property
    def sweep(self) -> Sweep:
        """The settings of the search."""
        return section_from("sweep", self.config["sweep"])

    @property
    def run(self) -> Config:
        """The settings that trials begin with; the modules that they name have been imported."""
        return Config.from_dict(self.config)

    @property
    def begun(self) -> Begun:
        """What the search was begun with."""
        return Begun.from_dict(self.config["study"])

    @property
    def typed(self) -> dict[str, Any]:
        """What was typed, by dotted key."""
        found: dict[str, Any] = self.config["typed"]
        return found

    @property
    def command(self) -> str:
        """The command line that began the search."""
        return str(self.config["command"])

    def trial_folder(self, number: int) -> Path:
        """Where the trial is trained."""
        return self.folder / "trials" / f"{number:04d}"


# The study as a whole


def make_pruner(plan: Plan) -> BasePruner:
    """What stops trials early."""
    from optuna import pruners

    epochs, settings = plan.run.training.max_epochs, plan.sweep
    warmup = settings.warmup if settings.warmup is not None else max(1, epochs // 4)
    if settings.pruner == "none":
        return pruners.NopPruner()
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, min(warmup, epochs)), max_resource=epochs)
    # Epochs count from 1, and the pruner's warm-up is the first step that it looks at.
    return pruners.MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=warmup + 1, n_min_trials=2)


def make_sampler(plan: Plan, *numbers: int) -> BaseSampler:
    """What chooses the next settings; ``numbers`` make its seed, so that no two processes try the same."""
    from optuna import samplers

    seed = mix_seed(plan.sweep.seed, *numbers) % 2**32
    if plan.sweep.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    # Other workers' unfinished trials count as bad ones, so that the next is not tried right beside them.
    return samplers.TPESampler(seed=seed, constant_liar=True)


def open_study(plan: Plan, *, compared: bool = True) -> Study:
    """The study of a sweep.

    Args:
        plan: Of the sweep.
        compared: The study is known to search what the plan searches, so that a trial with another setting is damage.

    Raises:
        RunError: the storage cannot be reached, or has no such study.
    """
    import optuna

    storage = open_storage(plan.storage, plan.folder)
    try:
        study = optuna.load_study(
            study_name=plan.name, storage=storage, sampler=make_sampler(plan), pruner=make_pruner(plan)
        )
    except KeyError:
        raise RunError(f"the storage has no study {plan.name!r}: was it deleted, or is it another storage?") from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        raise damaged(plan.storage, plan.folder, f"{type(error).__name__}: {error}") from error
    check_study(study, plan, compared=compared)
    return study


def check_study(study: Study, plan: Plan, *, compared: bool = True) -> None:
    """Raise :class:`RunError` unless a study holds what a sweep of ours writes into it.

    Args:
        study: As the storage has it.
        plan: Of the sweep.
        compared: See :func:`open_study`.
    """
    try:
        trials = study.get_trials(deepcopy=False)
        problem = study_problem(study.user_attrs, trials, plan.space if compared else None)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, OverflowError) as error:
        # What Optuna raises depends on which cell of its tables is damaged.
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise damaged(plan.storage, plan.folder, problem)


def create_or_join(plan: Plan, identity: Mapping[str, Any]) -> bool:
    """Make the study, or make sure that the one of this name searches for the same.

    Args:
        plan: Of the sweep.
        identity: What must be equal, by name.

    Returns:
        Whether it is this folder that founded it.

    Raises:
        RunError: the study of this name is another one; the message names the first difference.
    """
    import optuna

    storage = open_storage(plan.storage, plan.folder)
    direction = optuna.study.StudyDirection[("MINIMIZE", "MAXIMIZE")[get_metric(plan.metric).higher_is_better]]
    try:
        study = optuna.create_study(study_name=plan.name, storage=storage, direction=direction)
    except optuna.exceptions.DuplicatedStudyError:
        study = open_study(plan, compared=False)
        _wait_until_ready(study, plan)
        _check_identity(study, plan, identity)
        check_study(study, plan)
        if plan.sweep.trials > study.user_attrs["trials"]:
            study.set_user_attr("trials", plan.sweep.trials)
        return bool(study.user_attrs["founder"] == plan.place)
    study.set_user_attr("format", FORMAT)
    study.set_user_attr("founder", plan.place)
    set_up(study, plan, identity)
    return True


def set_up(study: Study, plan: Plan, identity: Mapping[str, Any]) -> None:
    """What the founder does first; once more does no harm."""
    if study.user_attrs.get("ready"):
        return
    study.set_user_attr("identity", dict(identity))
    study.set_user_attr("trials", plan.sweep.trials)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(first_params(plan))
    study.set_user_attr("ready", True)


def first_params(plan: Plan) -> dict[str, Any]:
    """The first trial: the settings that a run without a sweep would have, as far as the space holds them."""
    return {key: encoded(clipped(dimension, setting(plan.config, key))) for key, dimension in plan.space.items()}


def _wait_until_ready(study: Study, plan: Plan) -> None:
    deadline = time.monotonic() + _WAIT
    while not study.user_attrs.get("ready"):
        if study.user_attrs.get("founder") == plan.place:
            return  # this folder was stopped while it made the study
        if time.monotonic() > deadline:
            raise RunError(
                f"the study {plan.name!r} was begun but never set up (was it stopped right then?): "
                "choose another sweep.name"
            )
        time.sleep(0.5)


def _check_identity(study: Study, plan: Plan, identity: Mapping[str, Any]) -> None:
    if study.user_attrs.get("format") != FORMAT:
        raise RunError(f"the study {plan.name!r} is none that this version of ercfusion made: choose another name")
    # Through JSON, as the other one went: tuples are lists there, keys are texts.
    theirs, ours = study.user_attrs["identity"], json.loads(json.dumps(identity))
    for key in dict.fromkeys([*theirs, *ours]):
        if theirs.get(key) != ours.get(key):
            raise RunError(
                f"the study {plan.name!r} in this storage was begun with {key} = {_shown(theirs.get(key))}, here it is "
                f"{_shown(ours.get(key))}. Give the same settings to search together, or another sweep.name."
            )


def _shown(value: Any) -> str:
    return "(not there)" if value is None else shown(value)


# Trials


@dataclass(frozen=True)
class Tally:
    """How far a study is. ``over`` and ``running`` count towards ``total``, lost trials do not."""

    total: int
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def over(self) -> int:
        """Trials that have ended."""
        return self.complete + self.pruned + self.failed

    @property
    def missing(self) -> int:
        """Trials that nobody has begun."""
        return max(0, self.total - self.over - self.running)


def counting(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count towards the total."""
    return [trial for trial in trials if not trial.user_attrs.get("lost")]


def tally(study: Study, trials: Sequence[FrozenTrial] | None = None) -> Tally:
    """Count the trials."""
    trials = counting(study.get_trials(deepcopy=False) if trials is None else trials)
    states = [trial.state.name for trial in trials]
    return Tally(
        study.user_attrs["trials"],
        *(states.count(name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")),
    )


def best_trial(trials: Sequence[FrozenTrial], metric: str) -> FrozenTrial | None:
    """The complete trial with the best score (the earliest of equals)."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sign = 1 if get_metric(metric).higher_is_better else -1
    return max(complete, key=lambda trial: (sign * float(trial.value or 0.0), -trial.number), default=None)


def unfinished(trials: Sequence[FrozenTrial], place: str, number: int | None = None) -> list[FrozenTrial]:
    """Trials that a folder (or one of its workers) has begun and not ended."""
    owners = [trial.user_attrs.get("owner") or [None, None] for trial in trials]
    return [
        trial
        for trial, (owner, worker) in zip(trials, owners, strict=True)
        if trial.state.name == "RUNNING" and owner == place and number in (None, worker)
    ]


def check_hope(trials: Sequence[FrozenTrial], place: str, since: float) -> None:
    """Raise :class:`TrainingError` where trials fail one after the other: there is something wrong with them all.

    Args:
        trials: Of the study.
        place: Of this folder: another machine's troubles are its own.
        since: Time of the clock when the sweep was begun or resumed: it may have been put right before.
    """
    trials = counting(trials)
    hopeful = any(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)
    ended = [
        (trial.datetime_complete, trial)
        for trial in trials
        if trial.datetime_complete is not None
        and trial.datetime_complete.timestamp() >= since
        and (trial.user_attrs.get("owner") or [None])[0] == place
    ]
    limit = BROKEN if hopeful else HOPELESS
    last = [trial for _, trial in sorted(ended, key=lambda pair: (pair[0], pair[1].number))][-limit:]
    if len(last) < limit or any(trial.state.name != "FAIL" for trial in last):
        return
    reason = last[-1].user_attrs.get("result", {}).get("reason", "for an unknown reason")
    which = "last" if hopeful else "first"
    raise TrainingError(f"the {which} {len(last)} trials have all failed, the latest with: {reason}")


def next_trial(
    study: Study, plan: Plan, worker: int, deadline: float | None = None, since: float = 0.0
) -> Trial | None:
    """The next trial for a worker: one that it left unfinished, one that waits, or a new one.

    Args:
        study, plan: Of the sweep.
        worker: Its number.
        deadline: Time of the clock after which none is begun.
        since: See :func:`check_hope`.

    Returns:
        None where nothing is left to begin.

    Raises:
        TrainingError: trials fail one after the other.
    """
    from optuna import trial as optuna_trial

    while True:
        trials = study.get_trials(deepcopy=False)
        left = unfinished(trials, plan.place, worker)
        founder = study.user_attrs["founder"] == plan.place
        if left:
            # With the seed that it was begun with: what it has not chosen yet, it chooses as it would have.
            study.sampler = make_sampler(plan, 0 if founder else int(plan.place, 16), worker, left[0].number)
            return _with_params(optuna_trial.Trial(study, left[0]._trial_id), plan)
        check_hope(trials, plan.place, since)
        found = tally(study, trials)
        if deadline is not None and time.time() > deadline:
            return None
        if not found.waiting and not found.missing:
            return None
        # A seed of its own for every trial: a sweep that is resumed goes on as if it had not been stopped, and never
        # begins anew with the same random settings.
        study.sampler = make_sampler(plan, 0 if founder else int(plan.place, 16), worker, len(trials))
        trial = study.ask()
        trial.set_user_attr("owner", [plan.place, worker])
        before = [other for other in counting(study.get_trials(deepcopy=False)) if other.number < trial.number]
        if len(before) < study.user_attrs["trials"]:
            return _with_params(trial, plan)
        # Several processes asked for the last one at the same moment. Those with the lower numbers have it.
        give_up(study, trial.number, "surplus")


def _with_params(trial: Trial, plan: Plan) -> Trial:
    for key, dimension in plan.space.items():
        suggest(trial, key, dimension)
    return trial


def give_up(study: Study, number: int, reason: str) -> bool:
    """End a trial that shall not count; False where somebody else has ended it."""
    import optuna

    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.name != "RUNNING":
        return False
    optuna.trial.Trial(study, frozen._trial_id).set_user_attr("lost", reason)
    return end(study, number, "FAIL")


def end(study: Study, number: int, state: str, value: float | None = None) -> bool:
    """Tell the study how a trial ended; False where somebody else has ended it."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        study.tell(number, value, state=TrialState[state])
    except (ValueError, UpdateFinishedTrialError):
        # Another machine took it for dead, and has given its settings to another trial.
        if study.get_trials(deepcopy=False)[number].state.is_finished():
            return False
        raise
    return True


class Watcher:
    """Finds trials of other machines that nobody works on any more, by their silence.

    Their beat is compared over this process's own clock: machines whose clocks differ do not matter.

    Args:
        plan: Of the sweep.
        patience: Seconds of silence after which a trial is given up.
    """

    def __init__(self, plan: Plan, patience: float) -> None:
        self.plan = plan
        self.patience = patience
        self._seen: dict[int, tuple[tuple[Any, ...], float]] = {}

    def look(self, study: Study, now: float | None = None) -> list[int]:
        """Give up silent trials, and put their settings back in the queue; returns their numbers."""
        now = time.monotonic() if now is None else now
        given_up = []
        for trial in study.get_trials(deepcopy=False):
            owner = (trial.user_attrs.get("owner") or [None])[0]
            if trial.state.name != "RUNNING" or owner == self.plan.place:
                self._seen.pop(trial.number, None)
                continue
            sign = (owner, trial.user_attrs.get("beat"), len(trial.intermediate_values), len(trial.params))
            before, since = self._seen.get(trial.number, (None, now))
            if sign != before:
                self._seen[trial.number] = (sign, now)
            elif now - since > self.patience and give_up(study, trial.number, "silent"):
                given_up.append(trial.number)
                if len(trial.params) == len(self.plan.space):
                    study.enqueue_trial(trial.params, {"continues": [owner, trial.number]})
        return given_up


def adopt(study: Study, plan: Plan, workers: int, *, forgive: bool) -> int:
    """Give the trials that this folder's dead processes left to the workers that begin now; returns their number.

    With ``forgive`` it was the user who stopped them, and not what the trials do.
    """
    from optuna.trial import Trial

    trials = study.get_trials(deepcopy=False)
    own = unfinished(trials, plan.place)
    if plan.storage is None:
        # Stopped between the storage's note that it exists and ours whose it is: nobody else can have begun it.
        own += [trial for trial in trials if trial.state.name == "RUNNING" and not trial.user_attrs.get("owner")]
    for place, frozen in enumerate(own):
        trial = Trial(study, frozen._trial_id)
        trial.set_user_attr("owner", [plan.place, place % workers])
        if forgive:
            trial.set_user_attr("starts", [])
    return len(own)
