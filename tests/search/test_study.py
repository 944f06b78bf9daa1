"""What processes know of each other: counting, taking over, giving up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from quick import every

from ercfusion._core.errors import RunError, TrainingError
from ercfusion.config.compose import Composer
from ercfusion.config.sections import Sweep
from ercfusion.config.settings import section_to
from ercfusion.search import study as studies
from ercfusion.search.study import Plan

optuna = pytest.importorskip("optuna")

SPACE = {"x.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "x.kind": {"choices": [["a"], ["b"]]}}


def plan(folder: Path, place: str = "00000001", storage: str | None = None, **sweep: Any) -> Plan:
    settings = Sweep(**{"trials": 4, "sampler": "random", "pruner": "none", **sweep})
    own = {"space": SPACE, "sweep": section_to(settings), "x": {"lr": 1e-3, "kind": ["b"]}}
    config = {**Composer().compose(["training.max_epochs=8"]), **own}
    return Plan(folder, config, storage, "study", place, "weighted_f1")


def begun(folder: Path, **options: Any) -> tuple[Plan, Any]:
    made = plan(folder, **options)
    assert studies.create_or_join(made, {"a": 1})
    return made, studies.open_study(made)


def test_the_first_trial_has_the_settings_of_a_run(tmp_path: Path) -> None:
    made, study = begun(tmp_path)
    trial = studies.next_trial(study, made, 0, None)
    assert trial is not None
    assert trial.params == {"x.lr": 1e-3, "x.kind": '["b"]'}
    assert trial.user_attrs["owner"] == ["00000001", 0]


def test_a_trial_of_a_dead_worker_is_gone_on_with(tmp_path: Path) -> None:
    made, study = begun(tmp_path)
    first, other = studies.next_trial(study, made, 0, None), studies.next_trial(study, made, 1, None)
    assert first is not None
    assert other is not None
    again = studies.next_trial(studies.open_study(made), made, 1, None)
    assert again is not None
    assert again.number == other.number == 1
    assert again.params == other.params
    # A worker less: its trial goes to the one that is left.
    assert studies.adopt(study, made, 1, forgive=True) == 2
    assert [trial.user_attrs["owner"][1] for trial in study.trials] == [0, 0]


def test_a_trial_that_was_stopped_before_it_chose_chooses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        made, study = begun(tmp_path / name)
        first = studies.next_trial(study, made, 0, None)
        assert first is not None
        studies.end(study, first.number, "COMPLETE", 0.5)
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(studies, "_with_params", lambda *arguments: None)
                studies.next_trial(study, made, 0, None)
            study = studies.open_study(made)
        second = studies.next_trial(study, made, 0, None)
        assert second is not None
        assert second.number == 1
        chosen.append(second.params)
    assert chosen[0] == chosen[1]


def test_a_trial_that_nobody_has_signed_is_ours_where_nobody_else_works(tmp_path: Path) -> None:
    made, study = begun(tmp_path)
    study.ask()  # and the process was killed right then
    assert studies.adopt(study, made, 2, forgive=True) == 1
    trial = studies.next_trial(study, made, 0, None)
    assert trial is not None
    assert trial.number == 0
    assert set(trial.params) == set(SPACE)


def test_exactly_as_many_trials_as_asked_for(tmp_path: Path) -> None:
    made, study = begun(tmp_path, trials=2)
    for _ in range(2):
        trial = studies.next_trial(study, made, 0, None)
        assert trial is not None
        studies.end(study, trial.number, "COMPLETE", 0.5)
    assert studies.next_trial(study, made, 0, None) is None
    # Another process had looked before the last one was begun: what it gets does not count.
    surplus = study.ask()
    assert studies.give_up(study, surplus.number, "surplus")
    assert studies.tally(study) == studies.Tally(2, 2, 0, 0, 0, 0)
    study.set_user_attr("trials", 3)
    trial = studies.next_trial(study, made, 0, None)
    assert trial is not None
    assert studies.next_trial(study, made, 1, None) is None


def test_a_race_for_the_last_trial_has_one_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, study = begun(tmp_path, trials=1)
    original = study.ask

    def too_late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(study, "ask", original)
        other = studies.next_trial(studies.open_study(made), made, 7, None)
        assert other is not None
        return original(*arguments, **options)

    monkeypatch.setattr(study, "ask", too_late)
    assert studies.next_trial(study, made, 0, None) is None
    assert [(trial.state.name, trial.user_attrs.get("lost")) for trial in study.trials] == [
        ("RUNNING", None),
        ("FAIL", "surplus"),
    ]


def test_no_two_processes_try_the_same(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    made, study = begun(tmp_path, storage=storage, trials=100)
    joined = plan(tmp_path, "00000002", storage, trials=100)
    assert not studies.create_or_join(joined, {"a": 1})
    rates = []
    for _ in range(3):
        for who, worker in ((made, 0), (made, 1), (joined, 0)):
            trial = studies.next_trial(study, who, worker, None)
            assert trial is not None
            studies.end(study, trial.number, "COMPLETE", 0.5)
            rates.append(trial.params["x.lr"])
    assert len(set(rates)) == len(rates)
    assert rates[0] == 1e-3


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'shared.journal'}"
    begun(tmp_path, storage=storage)
    with pytest.raises(RunError, match=r"'study' in this storage was begun with a = 1, here it is 2"):
        studies.create_or_join(plan(tmp_path, "00000002", storage), {"a": 2})
    with pytest.raises(RunError, match=r"begun with b = \(missing\), here it is 3"):
        studies.create_or_join(plan(tmp_path, "00000002", storage), {"a": 1, "b": 3})
    # More trials are for all; fewer change nothing.
    studies.create_or_join(plan(tmp_path, "00000003", storage, trials=9), {"a": 1})
    studies.create_or_join(plan(tmp_path, "00000004", storage, trials=2), {"a": 1})
    assert studies.open_study(plan(tmp_path, storage=storage)).user_attrs["trials"] == 9


def test_a_silent_machines_trial_is_done_again(tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'shared.journal'}"
    made, study = begun(tmp_path, storage=storage)
    far = plan(tmp_path, "0000000f", storage)
    lost, alive = studies.next_trial(study, far, 0, None), studies.next_trial(study, far, 1, None)
    own = studies.next_trial(study, made, 0, None)
    assert lost is not None
    assert alive is not None
    assert own is not None
    watcher = studies.Watcher(made, 300)
    assert watcher.check(study, 0.0) == []
    assert watcher.check(study, 200.0) == []
    alive.set_user_attr("beat", 1)
    assert watcher.check(study, 301.0) == [lost.number]
    assert watcher.check(study, 302.0) == []
    states = {trial.number: trial.state.name for trial in study.trials}
    assert states == {0: "FAIL", 1: "RUNNING", 2: "RUNNING", 3: "WAITING"}
    # It does not count, its settings come again, and whoever has its folder knows where to go on.
    assert studies.tally(study).failed == 0
    assert studies.tally(study).missing == 2
    again = studies.next_trial(study, made, 5, None)
    assert again is not None
    assert again.params == lost.params
    assert again.user_attrs["continues"] == ["0000000f", lost.number]
    # The machine was only asleep: its result comes too late.
    assert not studies.end(study, lost.number, "COMPLETE", 0.9)
    assert studies.best_trial(study.trials, "weighted_f1") is None


def test_pruners(tmp_path: Path) -> None:
    made = studies.make_pruner(plan(tmp_path, pruner="median"))
    assert (made._n_warmup_steps, made._n_startup_trials) == (3, 5)  # type: ignore[attr-defined]
    assert isinstance(studies.make_pruner(plan(tmp_path, pruner="hyperband")), optuna.pruners.HyperbandPruner)
    assert isinstance(studies.make_pruner(plan(tmp_path, pruner="none")), optuna.pruners.NopPruner)
    sampler = studies.make_sampler(plan(tmp_path, sampler="tpe"), 1)
    assert isinstance(sampler, optuna.samplers.TPESampler)


def test_trials_past_their_time(tmp_path: Path) -> None:
    made, study = begun(tmp_path)
    trial = studies.next_trial(study, made, 0, None)
    assert trial is not None
    # What was begun is ended, nothing else is begun.
    assert studies.next_trial(study, made, 0, 1.0) is not None
    studies.end(study, trial.number, "COMPLETE", 0.5)
    assert studies.next_trial(study, made, 0, 1.0) is None


def test_failures_in_a_row(tmp_path: Path) -> None:
    made, study = begun(tmp_path, trials=100)
    began = time.time() - 1

    def ended(state: str, count: int) -> None:
        for _ in range(count):
            trial = studies.next_trial(study, made, 0)
            assert trial is not None
            trial.set_user_attr("result", {"reason": "it is broken"})
            studies.end(study, trial.number, state, 0.5 if state == "COMPLETE" else None)

    ended("FAIL", 2)
    studies.check_failures(study.trials, made.place, began)
    with pytest.raises(TrainingError, match="the first 3 trials have all failed, the latest with: it is broken"):
        ended("FAIL", 3)
    # Put right, and resumed; or another machine's.
    studies.check_failures(study.trials, made.place, time.time() + 1)
    studies.check_failures(study.trials, "another", began)
    later = time.time() + 0.01
    time.sleep(0.02)
    trial = studies.next_trial(study, made, 0, None, later)
    assert trial is not None
    studies.end(study, trial.number, "COMPLETE", 0.5)
    ended("FAIL", 9)
    studies.check_failures(study.trials, made.place, began)
    ended("FAIL", 1)
    with pytest.raises(TrainingError, match="the last 10 trials have all failed"):
        studies.check_failures(study.trials, made.place, began)


def test_a_study_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no study 'study'"):
        studies.open_study(plan(tmp_path))


@pytest.mark.parametrize(
    ("statement", "message"),
    every(
        3,
        [
            ("UPDATE trial_user_attributes SET value_json='0.5' WHERE key='owner'", "trial 0, key 'owner'"),
            ("UPDATE trial_user_attributes SET value_json='[1, \"a\"]' WHERE key='owner'", "owner is not a place"),
            ("UPDATE trial_user_attributes SET value_json='[' WHERE key='owner'", "JSONDecodeError"),
            ("DELETE FROM study_user_attributes WHERE key='trials'", "the study has no 'trials'"),
            (
                "UPDATE study_user_attributes SET value_json='-3' WHERE key='trials'",
                "the study, key 'trials': found -3",
            ),
            ("UPDATE trials SET number=7", "trial 7 is in position 0"),
            ("UPDATE trial_values SET value=NULL", "complete without a score|is damaged"),
            ("UPDATE trial_values SET value_type='{}'", "is damaged"),
            ("UPDATE trial_params SET param_name='x.other' WHERE param_name='x.lr'", "a setting 'x.other'"),
            ("UPDATE trials SET state='ODD'", "is damaged"),
        ],
    ),
)
def test_a_damaged_study_is_refused(tmp_path: Path, statement: str, message: str) -> None:
    import sqlite3

    made, study = begun(tmp_path)
    trial = studies.next_trial(study, made, 0, None)
    assert trial is not None
    studies.end(study, trial.number, "COMPLETE", 0.5)
    assert studies.open_study(made)
    with sqlite3.connect(tmp_path / "study.db") as base:
        assert base.execute(statement).rowcount > 0
    base.close()
    with pytest.raises(RunError, match=message) as caught:
        studies.open_study(made)
    assert len(str(caught.value)) <= 300
    assert "study.db is damaged" in str(caught.value)


def test_a_journal_that_was_cut_off_and_written_to_is_named(tmp_path: Path) -> None:
    from ercfusion.search.storage import named_failures

    made, _ = begun(tmp_path, storage=f"journal:{tmp_path / 'a.journal'}")
    path = tmp_path / "a.journal"
    path.write_bytes(path.read_bytes()[:-20] + b'{"op_code": 4,\n')
    with pytest.raises(RunError), named_failures(made.storage):
        studies.set_up(studies.open_study(made), made, {"a": 1})
    with pytest.raises(RunError, match="failed"), named_failures(made.storage):
        raise json.JSONDecodeError("Expecting value", "", 0)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    made, study = begun(tmp_path, storage=f"journal:{tmp_path / 'a.journal'}")
    assert studies.next_trial(study, made, 0, None)
    path = tmp_path / "a.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"[1]\n", b"{\n", b"\xff\n", b'{"op_code": 99}\n', b"null\n"):
        path.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        with pytest.raises(RunError) as caught:
            studies.open_study(made)
        assert len(str(caught.value)) <= 300
