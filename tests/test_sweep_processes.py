"""Sweeps in real processes: killed, interrupted, side by side on one storage, and on a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from runs import command, history, python, refused
from sweeps import SMALL, config_of, kill_group, postgres, serially, sweep_process, table, wait_for

from ercfusion._core.errors import ErcfusionError
from ercfusion.sweep import main as sweep
from ercfusion.training.callbacks import LAST

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that this process begins or resumes trains in it, too: processes are started where they are the point."""
    monkeypatch.setattr("ercfusion.search.run.run_jobs", serially)
    monkeypatch.setattr("ercfusion.training.many.run_jobs", serially)


@pytest.mark.usefixtures("here")
def test_killed_in_the_middle_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = [*SMALL, "sweep.trials=6", "sweep.workers=2", "training.max_epochs=10", "training.patience=0"]
    arguments += ["data.options.train=60", f"run={folder}", "sweep.pruner=none"]
    process = sweep_process(*arguments)

    def in_the_middle() -> bool:
        rows = [path for path in folder.glob("trials/*/metrics.csv") if (path.parent / "checkpoints").is_dir()]
        return len(list(folder.glob("trials/*"))) >= 4 and len(rows) >= 2

    wait_for(in_the_middle, process)
    kill_group(process)
    before = {path.parent.name: history(path.parent) for path in folder.glob("trials/*/metrics.csv")}
    # The first epoch's row is written before its checkpoint: a trial killed in between begins anew.
    with_checkpoint = {path.parent.parent.name for path in folder.glob(f"trials/*/{LAST}")}
    rows = sqlite3.connect(folder / "study.db").execute("select number, state from trials").fetchall()
    running = [number for number, state in rows if state == "RUNNING"]
    assert running
    assert sweep([f"resume={folder}"]) == 0
    rows_after = table(folder)
    assert [int(row["trial"]) for row in rows_after] == list(range(6))
    assert {row["state"] for row in rows_after} == {"complete"}
    assert len({tuple(row[key] for key in config_of(folder)["space"]) for row in rows_after}) == 6
    for name, epochs in before.items():
        # What had been computed is still there, and was gone on from.
        assert history(folder / "trials" / name)[: len(epochs)] == epochs
    for number in running:
        if f"{number:04d}" in with_checkpoint:
            assert "resuming" in (folder / "trials" / f"{number:04d}" / "train.log").read_text()
    for row in rows_after:
        assert len(history(folder / "trials" / f"{int(row['trial']):04d}")) == 10


@pytest.mark.usefixtures("here")
def test_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = sweep_process(*SMALL, "sweep.trials=200", "sweep.workers=2", f"run={folder}")
    wait_for(lambda: len(list(folder.glob("trials/*/metrics.csv"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert f"interrupted; continue with: python -m ercfusion.sweep resume={folder}" in err
    over = sum(row["state"] != "running" for row in table(folder))
    assert over >= 1
    assert sweep([f"resume={folder}", f"sweep.trials={len(table(folder)) + 1}"]) == 0
    assert "running" not in {row["state"] for row in table(folder)}


def test_a_second_process_in_one_folder_is_refused(tmp_path: Path) -> None:
    """The second is this one."""
    folder = tmp_path / "sweep"
    process = sweep_process(*SMALL, "sweep.trials=500", "sweep.workers=1", f"run={folder}")
    wait_for(lambda: bool(list(folder.glob("trials/*/metrics.csv"))), process)
    try:
        with pytest.raises(ErcfusionError, match="another process is working on the sweep"):
            sweep([f"resume={folder}"])
    finally:
        kill_group(process)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found in /proc")
def test_a_worker_that_dies_takes_its_trial_up_again(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = [*SMALL, "sweep.trials=4", "sweep.workers=1", "training.max_epochs=15", "training.patience=0"]
    process = sweep_process(*arguments, "data.options.train=60", f"run={folder}")
    wait_for(lambda: (folder / "trials/0000/checkpoints/last.ckpt").is_file(), process)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(folder)
    assert [row["state"] for row in table(folder)].count("complete") >= 1
    assert len(table(folder)) == 4
    assert "resuming" in (folder / "trials/0000/train.log").read_text()


@pytest.mark.usefixtures("here")
def test_two_machines_and_a_journal(tmp_path: Path) -> None:
    shared = [f"sweep.storage={tmp_path / 'study.journal'}", "sweep.name=together", "sweep.workers=1", "sweep.rerun=1"]
    folders = [tmp_path / "one", tmp_path / "two"]
    # One after the other, so that both have trials of their own, ...
    for folder, trials in zip(folders, (2, 4), strict=True):
        assert sweep([*SMALL, *shared, f"sweep.trials={trials}", f"run={folder}"]) == 0
    # ... and then at the same time; who takes which of the others is left to chance.
    processes = [sweep_process(f"resume={folder}", "sweep.trials=8") for folder in folders]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    for folder in folders:
        assert sweep([f"resume={folder}"]) == 0
    tables = [table(folder) for folder in folders]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 8
    assert len({row["place"] for row in tables[0]}) == 2
    made = [{path.name for path in (folder / "trials").iterdir()} for folder in folders]
    assert {"0000", "0001"} <= made[0]
    assert {"0002", "0003"} <= made[1]
    assert not made[0] & made[1]
    assert sorted(made[0] | made[1]) == [f"{int(row['trial']):04d}" for row in tables[0]]


@pytest.mark.usefixtures("here")
def test_a_real_postgresql_server_and_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgres() as url:
        folder = tmp_path / "sweep"
        arguments = ["sweep.name=shared", "sweep.workers=2", "sweep.trials=8", f"run={folder}"]
        done = python("-m", "ercfusion.sweep", *SMALL, *arguments, ERCFUSION_SWEEP_STORAGE=url)
        assert done.returncode == 0, done.stderr
        assert sorted(int(row["trial"]) for row in table(folder)) == list(range(8))
        assert {row["worker"] for row in table(folder)} <= {"0", "1"}
        assert not (folder / "study.db").exists()
        # Another machine joins and adds to it.
        other = [*SMALL, "sweep.name=shared", "sweep.workers=2", "sweep.trials=12", f"run={tmp_path / 'other'}"]
        assert sweep([*other, f"sweep.storage='{url}'"]) == 0
        assert len(table(tmp_path / "other")) == 12
        wrong = url.replace("cret", "kret")
        monkeypatch.setenv("ERCFUSION_SWEEP_STORAGE", wrong)
        said = refused(sweep, [f"resume={folder}"], capsys)
        assert "cannot be opened" in said
        for text in (said, *(path.read_text() for path in tmp_path.rglob("*.json"))):
            assert "cret" not in text
            assert "kret" not in text


@pytest.mark.usefixtures("here")
def test_pictures_and_the_default_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "sweep.trials=14", "sweep.workers=1", "sweep.rerun=1", f"output={tmp_path}/out"]
    status, out, err = command(sweep, [*arguments, "sweep.pruner=none"], capsys)
    assert status == 0, err
    folder = Path(out.splitlines()[-1])
    assert folder.parent == tmp_path / "out/sweep/concat-demo"
    assert {path.name for path in (folder / "plots").iterdir()} == {"history.png", "settings.png", "importance.png"}
    assert "importance of settings: " in out
    shutil.rmtree(folder)
