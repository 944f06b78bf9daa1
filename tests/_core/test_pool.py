"""Work in several processes: order, failures, deaths, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ClassVar

import pytest

from ercfusion._core import pool
from ercfusion._core.errors import RunError
from ercfusion._core.pool import assigned_gpus, default_workers, run_jobs, usable_cores, visible_gpus


def square(number: int) -> int:
    if number == 3:
        raise RunError("three is not liked here")
    if number == 4:
        raise ZeroDivisionError("a defect")
    time.sleep(0.02 * (5 - number))
    return number * number


def threads_and_process(_: int) -> tuple[int, int]:
    import torch

    found = torch.get_num_threads()
    torch.set_num_threads(found + 3)  # what one job sets, the next must not find
    return found, os.getpid()


def dies_once(marker: str) -> str:
    path = Path(marker)
    if path.name.startswith("fatal") or not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def test_outcomes_are_in_the_jobs_order_and_failures_are_words():
    done = []
    outcomes = run_jobs([1, 2, 3, 4, 0], square, workers=2, on_done=lambda outcome: done.append(outcome.job))
    assert [outcome.job for outcome in outcomes] == [1, 2, 3, 4, 0]
    assert [outcome.result for outcome in outcomes] == [1, 4, None, None, 0]
    assert outcomes[2].error == "three is not liked here"
    assert "unexpected error" in outcomes[3].error
    assert "ZeroDivisionError: a defect" in outcomes[3].error
    assert outcomes[0].error is None
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_processes_are_few_and_share_the_cores():
    outcomes = run_jobs(range(6), threads_and_process, workers=2)
    assert {threads for threads, _ in (outcome.result for outcome in outcomes)} == {max(1, usable_cores() // 2)}
    processes = {process for _, process in (outcome.result for outcome in outcomes)}
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_a_job_whose_process_dies_is_done_once_more(tmp_path):
    jobs = [str(tmp_path / "once"), str(tmp_path / "fatal")]
    outcomes = run_jobs(jobs, dies_once, workers=1)
    assert outcomes[0].result == "survived"
    assert outcomes[1].result is None
    assert "died twice" in outcomes[1].error


class BreaksAt:
    """Processes that are found dead when job ``number`` is handed over, for the first time; jobs are done at once."""

    left: ClassVar[set[int]] = set()

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        return None

    def submit(self, function, work, job):
        if job in self.left:
            self.left.discard(job)
            raise BrokenProcessPool
        future = Future()
        future.set_result(function(work, job))
        return future


@pytest.mark.parametrize("numbers", [{0}, {2}, {5}, {1, 4}, set(range(6))])
def test_a_job_that_could_not_be_handed_over_is_not_lost(numbers, monkeypatch):
    """A process may die between two jobs, so that handing over the next one is what fails."""
    monkeypatch.setattr(pool, "_processes", BreaksAt)
    monkeypatch.setattr(BreaksAt, "left", set(numbers))
    outcomes = run_jobs(range(6), str, workers=2)
    assert [(outcome.job, outcome.result, outcome.error) for outcome in outcomes] == [
        (number, str(number), None) for number in range(6)
    ]


def test_no_jobs():
    assert run_jobs([], square, workers=2) == []


def test_ticks_come_while_jobs_run():
    ticks = []
    run_jobs([1], square, workers=1, on_tick=lambda: ticks.append(1))
    assert ticks


def test_default_workers():
    assert default_workers(1) == 1
    assert 1 <= default_workers(1000) <= usable_cores()


SLEEPERS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from ercfusion._core.pool import run_jobs
from test_pool import sleep_long
if __name__ == "__main__":
    run_jobs([{pids!r}] * 2, sleep_long, workers=2)
"""


def sleep_long(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(120)


@pytest.mark.parametrize("ending", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_processes_end_with_their_parent(tmp_path, ending):
    from runs import environment

    script, pids = tmp_path / "sleepers.py", tmp_path / "pids"
    pids.mkdir()
    script.write_text(SLEEPERS.format(folder=str(Path(__file__).parent), pids=str(pids)))
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment(PYTHONPATH=str(Path(__file__).parent)), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(ending)
    parent.wait(30)
    while any(alive(int(entry.name)) for entry in pids.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_each_worker_has_a_gpu_of_its_own():
    assert assigned_gpus(2, ["0", "1", "2"]) == ["0", "1"]
    assert assigned_gpus(5, ["4", "7"]) == ["4", "7", "4", "7", "4"]
    assert assigned_gpus(3, []) == []


def machine(monkeypatch, gpus, visible=None):
    """As if this machine had this many GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_gpus_that_may_be_used(monkeypatch):
    machine(monkeypatch, 0)
    assert visible_gpus() == []
    machine(monkeypatch, 3)
    assert visible_gpus() == ["0", "1", "2"]
    assert default_workers(2) == 2
    assert default_workers(50) == 3
    machine(monkeypatch, 2, "5, GPU-8932f937")
    assert visible_gpus() == ["5", "GPU-8932f937"]
    machine(monkeypatch, 1, "3")
    assert default_workers(50) == 1


def own_gpu(number):
    time.sleep(0.2)  # so that no worker does both
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), "torch" in sys.modules, "LOCAL_RANK" in os.environ


def test_workers_see_their_gpu_before_torch_is_imported(monkeypatch):
    machine(monkeypatch, 2, "6,3")
    monkeypatch.setenv("LOCAL_RANK", "1")  # whatever started the parent, a worker trains by itself
    outcomes = run_jobs(range(4), own_gpu, workers=2)
    found = {process: (gpu, torch, rank) for process, gpu, torch, rank in (outcome.result for outcome in outcomes)}
    assert {gpu for gpu, _, _ in found.values()} <= {"6", "3"}
    assert len({gpu for gpu, _, _ in found.values()}) == len(found)
    assert not any(torch or rank for _, torch, rank in found.values())
