"""Several runs at a time: the same results as one by one, and what is shown of them meanwhile."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import TINY, StubEncoder, assert_same_run, keep_states, stub_text_encoder, train

from ercfusion._core import progress
from ercfusion._core.progress import duration
from ercfusion.config.compose import Composer
from ercfusion.config.sections import Training
from ercfusion.testing.twins import write_twin
from ercfusion.training.callbacks import HISTORY, write_history
from ercfusion.training.many import RunJob, prepare_packs, train_many, train_run
from ercfusion.training.run import new_run_folder
from ercfusion.training.watch import RunsProgress, WatchedRun, seconds_left

# Pictures take most of the time of a tiny run.
UNDRAWN = "training.pictures=false"


def new_job(folder: Path, *overrides: str) -> RunJob:
    typed = [*TINY, *overrides, UNDRAWN, f"run={folder}"]
    config = Composer().compose(typed)
    return RunJob(folder.name, config, new_run_folder(config, typed))


@pytest.mark.slow
def test_new_interrupted_complete_and_failing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"concat": ["model=concat", "seed=1"], "cogmen": ["model=cogmen", "seed=2"]}
    settings = {name: [*typed, UNDRAWN, "training.max_epochs=3"] for name, typed in settings.items()}
    (tmp_path / "alone").mkdir()
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path / "states")
        expected = train(tmp_path / "alone" / "cogmen", *settings["cogmen"])
    train(tmp_path / "alone" / "concat", *settings["concat"])
    (tmp_path / "states" / "1").rename(tmp_path / "cogmen")  # interrupted after its first epoch
    jobs = [
        new_job(tmp_path / "concat", *settings["concat"]),
        RunJob("cogmen", expected["config"], tmp_path / "cogmen"),
        RunJob("complete", expected["config"], tmp_path / "alone" / "cogmen"),
        new_job(tmp_path / "fails", "model=majority", "data.protocol=fra"),
    ]
    done: list[str] = []
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        outcomes = train_many(jobs, workers=1, on_done=lambda outcome: done.append(outcome.job.name))
    assert [outcome.job for outcome in outcomes] == jobs
    assert sorted(done) == ["cogmen", "complete", "concat", "fails"]
    for name in ("concat", "cogmen"):
        assert_same_run(tmp_path / name, tmp_path / "alone" / name)
    results = [outcome.result for outcome in outcomes]
    assert results[1] is not None
    assert results[1]["metrics"] == expected["metrics"]
    assert results[2] == expected
    assert results[3] is None
    assert "Did you mean 'demo/far'" in str(outcomes[3].error)
    # A line about all runs comes every 20 s, on a slow machine also here.
    lines = [line for record in caplog.records if not (line := record.getMessage()).startswith("runs: ")]
    assert len(lines) == 4
    score = f"dev weighted_f1 {expected['metrics']['dev']['weighted_f1']:.4f}, test weighted_f1 "
    assert [score in line for line in lines if line.startswith(("cogmen: epoch", "complete: epoch"))] == [True, True]
    assert sum(", complete already (" in line for line in lines) == 1
    assert any(line.startswith("fails: failed, ") for line in lines)
    # What a run says goes to its own log.
    log = (tmp_path / "concat" / "train.log").read_text()
    assert "epoch 3/3" in log
    assert "Warning" not in log
    # The summary is there once, also after a resume, and not again for a complete run.
    for name in ("concat", "cogmen", "alone/cogmen"):
        log = (tmp_path / name / "train.log").read_text(encoding="utf-8")
        assert log.count("95 % interval") == log.count(" parameters, 0.") == 1
        assert log.rstrip().endswith(str(tmp_path / name))


def test_a_run_uses_one_thread_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ercfusion.training import run

    found = []
    monkeypatch.setattr(run, "train", lambda config, folder: found.append(torch.get_num_threads()) or {})
    torch.set_num_threads(2)
    train_run(RunJob("any", {}, tmp_path))
    assert found == [1]


# Features


def test_text_features_are_made_once_before_the_processes_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = write_twin("meld", tmp_path / "meld")
    meld = Composer().compose(["data=meld", f"data.raw={raw}"])
    other = Composer().compose(["data=meld", "data.raw=/nowhere"])
    prepare_packs([Composer().compose(["data=demo"]), other, meld, {**meld, "seed": 1}])
    calls = StubEncoder.calls
    assert calls > 0
    assert len(list((tmp_path / "packs").glob("meld/minilm-*"))) == 1
    prepare_packs([meld])
    assert StubEncoder.calls == calls


# Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watched(folder: Path, name: str, epochs: int = 10, patience: int = 0, model: str = "concat") -> WatchedRun:
    folder.mkdir(exist_ok=True)
    return WatchedRun(name, Training(max_epochs=epochs, patience=patience), model, folder)


def epochs_done(run: WatchedRun, count: int, now: float, seconds: float = 1.0) -> None:
    rows = [{"epoch": float(n), "seconds": seconds, "dev/weighted_f1": n % 3 / 10} for n in range(1, count + 1)]
    write_history(run.folder / HISTORY, rows)
    os.utime(run.folder / HISTORY, (now, now))


def test_time_left(tmp_path: Path, clock: Clock) -> None:
    runs = [watched(tmp_path / str(n), f"concat, seed {n}") for n in range(3)]
    runs.append(watched(tmp_path / "cogmen", "cogmen, seed 0", model="cogmen"))
    shown = RunsProgress(runs, 2, clock=clock)
    assert seconds_left(runs, 2, clock.now) is None
    shown.tick()
    assert [run.begun for run in runs] == [1000.0, 1000.0, None, None]
    # First seen with two epochs done, then with four 6 s later: 3 s an epoch, of which the trainer knows 1 s.
    clock.now = 1010.0
    epochs_done(runs[0], 2, 1010.0)
    shown.tick()
    assert runs[0].pace == 1.0
    clock.now = 1016.0
    epochs_done(runs[0], 4, 1016.0)
    shown.tick()
    assert runs[0].pace == 3.0
    # 18 s for the first, and then the third; 30 s for the second, which has no epoch yet, and then cogmen.
    assert seconds_left(runs, 2, clock.now) == 30 + 30
    assert "4 of 40 epochs, 0.25 epochs/s, estimated time left: 60 s" in ", ".join(shown.facts())
    # It took 39 s, 9 more than its epochs: so will the others.
    clock.now = 1039.0
    epochs_done(runs[0], 10, 1034.0)
    shown.ended(0, None)
    assert runs[0].pace == 3.0
    assert runs[0].overhead == 9.0
    shown.tick()
    assert runs[2].begun == 1039.0
    # 30 s for the second, and then cogmen; the third is over by then.
    assert seconds_left(runs, 2, clock.now) == 30 + 39
    shown.ended(1, "out of memory")
    shown.tick()
    assert runs[3].begun == 1039.0


def test_time_left_of_a_run_not_begun_is_that_of_its_kind(tmp_path: Path) -> None:
    runs = [
        watched(tmp_path / str(n), name, model=name.split(",")[0])
        for n, name in enumerate(["a, lr=1, seed 0", "a, lr=2, seed 0", "b, seed=0", "a, lr=1, seed 1", "a, lr=3", "c"])
    ]
    for run, seconds in zip(runs[:3], (1.0, 3.0, 8.0), strict=True):
        epochs_done(run, 10, 5.0, seconds)
        run.read()
        run.begun, run.ended = 0.0, 10 * seconds
    assert seconds_left(runs[:4], 1, 0.0) == 10
    assert seconds_left([*runs[:3], runs[4]], 1, 0.0) == 20
    assert seconds_left([*runs[:3], runs[5]], 1, 0.0) == 40
    # With as many processes as runs, the longest decides.
    assert seconds_left(runs, 3, 0.0) == 40


def test_epochs_before_an_interruption_are_not_counted_again(tmp_path: Path, clock: Clock) -> None:
    epochs_done(watched(tmp_path / "a", "a"), 8, 900.0)
    run = watched(tmp_path / "a", "a", patience=5)
    shown = RunsProgress([run], 1, clock=clock)
    shown.tick()
    assert ", ".join(shown.facts()) == "0 of 1 finished, 8 of 10 epochs, estimated time left: at most 2 s"


def test_a_run_without_test_scores_ends_like_others(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched(tmp_path / "a", "a")
    epochs_done(run, 3, 1000.0)
    selection = {"metric": "weighted_f1", "epoch": 2, "epochs": 3}
    record = {"selection": selection, "metrics": {"dev": {"weighted_f1": 0.5}, "test": {}}}
    monkeypatch.setattr("ercfusion.training.watch._record", lambda folder: record)
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        RunsProgress([run], 1, clock=clock).ended(0, None)
    assert caplog.records[-1].getMessage().startswith("a: epoch 2 of 3, dev weighted_f1 0.5000, ")


def test_plain_lines_are_few(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    run = watched(tmp_path / "a", "a", epochs=100)
    with caplog.at_level(logging.INFO, logger="ercfusion"), RunsProgress([run], 1, "trials", clock=clock) as shown:
        for second in range(50):
            clock.now = 1000.0 + second
            epochs_done(run, second + 1, clock.now)
            shown.tick()
        shown.ended(0, None)
    assert [record.getMessage() for record in caplog.records] == [
        "trials: 0 of 1 finished, 21 of 100 epochs, 1.1 epochs/s, estimated time left: 80 s",
        "trials: 0 of 1 finished, 41 of 100 epochs, 1 epochs/s, estimated time left: 60 s",
        "a: done, 49 s (1 of 1)",
    ]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    drawn = io.StringIO()
    shared = progress.Console(file=drawn, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", lambda: shared)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    yield drawn
    assert not progress._bar_shown.locked()


def test_on_a_terminal(tmp_path: Path, clock: Clock, terminal: io.StringIO) -> None:
    runs = [watched(tmp_path / str(n), f"concat, seed {n}", patience=3) for n in range(12)]
    with RunsProgress(runs, 10, clock=clock) as shown:
        shown.tick()
        epochs_done(runs[0], 4, 1002.0)
        clock.now = 1002.0
        shown.tick()
        assert "concat, seed 0: epoch 4/10, dev weighted_f1 0.1000 (best 0.2000 at 2)" in terminal.getvalue()
        assert "0 of 12 finished, 4 of 120 epochs, 2 epochs/s" in terminal.getvalue()
        assert "concat, seed 7: epoch 0/10" in terminal.getvalue()
        assert "concat, seed 8" not in terminal.getvalue()
        assert "and 2 more" in terminal.getvalue()
        with shown.hidden():
            terminal.truncate(0)
        shown.ended(0, None)
    assert "concat, seed 1: epoch 0/10" in terminal.getvalue()


def test_quiet(tmp_path: Path, clock: Clock, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    with RunsProgress([watched(tmp_path / "a", "a")], 1, clock=clock) as shown:
        shown.tick()
        with shown.hidden():
            pass
    assert terminal.getvalue() == ""


def test_another_metric_is_shown_where_it_decides(tmp_path: Path) -> None:
    run = watched(tmp_path / "a", "a")
    write_history(tmp_path / "a" / HISTORY, [{"epoch": 1.0, "seconds": 1.0, "dev/mae": 0.5, "dev/ccc": 0.25}])
    run.read()
    assert run.state() == "a: epoch 1/10, dev mae 0.5000 (best 0.5000 at 1)"
    run.metric = "ccc"
    assert "dev ccc 0.2500" in run.state()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "0 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
