"""The study: the state shared by all processes of a sweep.

Attributes of trials:

- ``owner``: the folder's id and the worker's number;
- ``starts``: epochs done at each start;
- ``beat``: rises while a process works on the trial;
- ``result``: see :mod:`ercfusion.search.worker`;
- ``lost``: given up, does not count;
- ``continues``: id and number of the lost trial with these settings.
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
# Consecutive failures that end a sweep: without any success, and after one.
HOPELESS = 3
BROKEN = 10
# Starts at one epoch before a trial counts as killing its process.
STARTS = 3
# Seconds of waiting for another machine to create the study.
_WAIT = 60


@dataclass(frozen=True)
class StudyOrigin:
    """What a search is about, recorded at its start.

    Args:
        metric: The dev score to optimise.
        synthetic: Whether the corpus is.
        identity: What must be equal to search together.
        data: Identity of the data.
    """

    metric: str
    synthetic: bool
    identity: dict[str, Any]
    data: dict[str, str]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StudyOrigin:
        """Read from ``config.json``, ignoring other keys."""
        return cls(content["metric"], content["synthetic"], content["identity"], content["data"])


@dataclass(frozen=True)
class Plan:
    """The description of a sweep for its processes.

    Args:
        config: Resolved, as in ``config.json``.
        storage: Address with password; None for SQLite in the folder.
        place: Id of the folder in the study.
        metric: The dev score to optimise.
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
        space: Space = self.config["space"]
        return space

    @property
    def sweep(self) -> Sweep:
        """The settings of the search."""
        return section_from("sweep", self.config["sweep"])

    @property
    def run(self) -> Config:
        """The start settings; their modules must be imported."""
        return Config.from_dict(self.config)

    @property
    def origin(self) -> StudyOrigin:
        """The record of the search's start."""
        return StudyOrigin.from_dict(self.config["study"])

    @property
    def typed(self) -> dict[str, Any]:
        """The typed settings by dotted key."""
        typed: dict[str, Any] = self.config["typed"]
        return typed

    @property
    def command(self) -> str:
        """The command line that started the search."""
        return str(self.config["command"])

    def trial_folder(self, number: int) -> Path:
        """The trial's folder."""
        return self.folder / "trials" / f"{number:04d}"


# The study as a whole


def make_pruner(plan: Plan) -> BasePruner:
    """Optuna's pruner of trials."""
    from optuna import pruners

    epochs, settings = plan.run.training.max_epochs, plan.sweep
    warmup = settings.warmup if settings.warmup is not None else max(1, epochs // 4)
    if settings.pruner == "none":
        return pruners.NopPruner()
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, min(warmup, epochs)), max_resource=epochs)
    # Epochs count from 1; the warm-up is the pruner's first active step.
    return pruners.MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=warmup + 1, n_min_trials=2)


def make_sampler(plan: Plan, *numbers: int) -> BaseSampler:
    """Optuna's sampler, with ``numbers`` in its seed: no two processes try the same."""
    from optuna import samplers

    seed = mix_seed(plan.sweep.seed, *numbers) % 2**32
    if plan.sweep.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    # Unfinished trials count as bad ones: the next trial keeps a distance.
    return samplers.TPESampler(seed=seed, constant_liar=True)


def open_study(plan: Plan, *, compared: bool = True) -> Study:
    """Load the study of a sweep.

    Args:
        compared: Also check the settings of the trials.

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
        raise RunError(
            f"the storage has no study {plan.name!r}. Check sweep.storage and sweep.name, or begin a new sweep."
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        raise damaged(plan.storage, plan.folder, f"{type(error).__name__}: {error}") from error
    check_study(study, plan, compared=compared)
    return study


def check_study(study: Study, plan: Plan, *, compared: bool = True) -> None:
    """Raise :class:`RunError` unless a study has the content of a sweep."""
    try:
        trials = study.get_trials(deepcopy=False)
        problem = study_problem(study.user_attrs, trials, plan.space if compared else None)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, OverflowError) as error:
        # The type depends on the damaged cell of Optuna's tables.
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise damaged(plan.storage, plan.folder, problem)


def create_or_join(plan: Plan, identity: Mapping[str, Any]) -> bool:
    """Create the study, or check that the existing one searches for the same; returns whether it was created.

    Raises:
        RunError: another search; the message names the first difference.
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
    """First steps of the founder, repeatable."""
    if study.user_attrs.get("ready"):
        return
    study.set_user_attr("identity", dict(identity))
    study.set_user_attr("trials", plan.sweep.trials)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(first_params(plan))
    study.set_user_attr("ready", True)


def first_params(plan: Plan) -> dict[str, Any]:
    """The settings of a run without a sweep, moved into the space if necessary."""
    return {key: encoded(clipped(dimension, setting(plan.config, key))) for key, dimension in plan.space.items()}


def _wait_until_ready(study: Study, plan: Plan) -> None:
    deadline = time.monotonic() + _WAIT
    while not study.user_attrs.get("ready"):
        if study.user_attrs.get("founder") == plan.place:
            return  # this folder was stopped before
        if time.monotonic() > deadline:
            raise RunError(
                f"the study {plan.name!r} was created but not set up: its founder was probably stopped. "
                "Choose another sweep.name."
            )
        time.sleep(0.5)


def _check_identity(study: Study, plan: Plan, identity: Mapping[str, Any]) -> None:
    if study.user_attrs.get("format") != FORMAT:
        raise RunError(
            f"the study {plan.name!r} was not created by this version of ercfusion. Choose another sweep.name."
        )
    # As stored: JSON turns tuples into lists and keys into texts.
    founders, own = study.user_attrs["identity"], json.loads(json.dumps(identity))
    for key in dict.fromkeys([*founders, *own]):
        if founders.get(key) != own.get(key):
            raise RunError(
                f"the study {plan.name!r} in this storage was begun with {key} = {_shown(founders.get(key))}, "
                f"here it is {_shown(own.get(key))}. Give the same settings to search together, or another sweep.name."
            )


def _shown(value: Any) -> str:
    return "(missing)" if value is None else shown(value)


# Trials


@dataclass(frozen=True)
class Tally:
    """Number of trials by state; lost ones do not count."""

    total: int
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def over(self) -> int:
        """Finished trials."""
        return self.complete + self.pruned + self.failed

    @property
    def missing(self) -> int:
        """Trials not started yet."""
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
    """The complete trial with the best score, the earliest if equal."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sign = 1 if get_metric(metric).higher_is_better else -1
    return max(complete, key=lambda trial: (sign * float(trial.value or 0.0), -trial.number), default=None)


def unfinished(trials: Sequence[FrozenTrial], place: str, number: int | None = None) -> list[FrozenTrial]:
    """Unfinished trials of a folder or one of its workers."""
    owners = [trial.user_attrs.get("owner") or [None, None] for trial in trials]
    return [
        trial
        for trial, (owner, worker) in zip(trials, owners, strict=True)
        if trial.state.name == "RUNNING" and owner == place and number in (None, worker)
    ]


def check_failures(trials: Sequence[FrozenTrial], place: str, since: float) -> None:
    """Raise :class:`TrainingError` if consecutive trials of this folder fail.

    Args:
        since: Unix time of the sweep's start or resumption; earlier failures do not count.
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
    raise TrainingError(
        f"the {which} {len(last)} trials have all failed, the latest with: {reason.rstrip('.')}. Correct "
        "the cause, then resume."
    )


def next_trial(
    study: Study, plan: Plan, worker: int, deadline: float | None = None, since: float = 0.0
) -> Trial | None:
    """A worker's next trial: unfinished, queued or new; None if none is left.

    Args:
        deadline: Unix time after which no trial starts.
        since: See :func:`check_failures`.

    Raises:
        TrainingError: consecutive trials fail.
    """
    from optuna import trial as optuna_trial

    while True:
        trials = study.get_trials(deepcopy=False)
        left = unfinished(trials, plan.place, worker)
        founder = study.user_attrs["founder"] == plan.place
        if left:
            # The seed of its first start, for missing values.
            study.sampler = make_sampler(plan, 0 if founder else int(plan.place, 16), worker, left[0].number)
            return _with_params(optuna_trial.Trial(study, left[0]._trial_id), plan)
        check_failures(trials, plan.place, since)
        counts = tally(study, trials)
        if deadline is not None and time.time() > deadline:
            return None
        if not counts.waiting and not counts.missing:
            return None
        # One seed per trial: a resumed sweep continues as if never stopped, without repeating random settings.
        study.sampler = make_sampler(plan, 0 if founder else int(plan.place, 16), worker, len(trials))
        trial = study.ask()
        trial.set_user_attr("owner", [plan.place, worker])
        earlier = [other for other in counting(study.get_trials(deepcopy=False)) if other.number < trial.number]
        if len(earlier) < study.user_attrs["trials"]:
            return _with_params(trial, plan)
        # Several processes asked for the last trial: the lowest number gets it.
        give_up(study, trial.number, "surplus")


def _with_params(trial: Trial, plan: Plan) -> Trial:
    for key, dimension in plan.space.items():
        suggest(trial, key, dimension)
    return trial


def give_up(study: Study, number: int, reason: str) -> bool:
    """End a trial without counting it; False if it has ended."""
    import optuna

    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.name != "RUNNING":
        return False
    optuna.trial.Trial(study, frozen._trial_id).set_user_attr("lost", reason)
    return end(study, number, "FAIL")


def end(study: Study, number: int, state: str, value: float | None = None) -> bool:
    """Store the end of a trial; False if it has ended."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        study.tell(number, value, state=TrialState[state])
    except (ValueError, UpdateFinishedTrialError):
        # Another machine gave it up.
        if study.get_trials(deepcopy=False)[number].state.is_finished():
            return False
        raise
    return True


class Watcher:
    """Gives up trials of other machines without signals for ``patience`` seconds.

    Silence is measured on this process's clock, so the machines' clocks may differ.
    """

    def __init__(self, plan: Plan, patience: float) -> None:
        self.plan = plan
        self.patience = patience
        self._signs: dict[int, tuple[tuple[Any, ...], float]] = {}

    def check(self, study: Study, now: float | None = None) -> list[int]:
        """Give up silent trials and queue their settings; returns their numbers."""
        now = time.monotonic() if now is None else now
        given_up = []
        for trial in study.get_trials(deepcopy=False):
            owner = (trial.user_attrs.get("owner") or [None])[0]
            if trial.state.name != "RUNNING" or owner == self.plan.place:
                self._signs.pop(trial.number, None)
                continue
            sign = (owner, trial.user_attrs.get("beat"), len(trial.intermediate_values), len(trial.params))
            earlier, since = self._signs.get(trial.number, (None, now))
            if sign != earlier:
                self._signs[trial.number] = (sign, now)
            elif now - since > self.patience and give_up(study, trial.number, "silent"):
                given_up.append(trial.number)
                if len(trial.params) == len(self.plan.space):
                    study.enqueue_trial(trial.params, {"continues": [owner, trial.number]})
        return given_up


def adopt(study: Study, plan: Plan, workers: int, *, forgive: bool) -> int:
    """Give trials of dead processes to the next workers; returns their number.

    ``forgive``: the user stopped the processes, so their starts do not count.
    """
    from optuna.trial import Trial

    trials = study.get_trials(deepcopy=False)
    own = unfinished(trials, plan.place)
    if plan.storage is None:
        # Stopped before the trial got an owner: no other machine can have started it.
        own += [trial for trial in trials if trial.state.name == "RUNNING" and not trial.user_attrs.get("owner")]
    for position, frozen in enumerate(own):
        trial = Trial(study, frozen._trial_id)
        trial.set_user_attr("owner", [plan.place, position % workers])
        if forgive:
            trial.set_user_attr("starts", [])
    return len(own)
