"""Which process this is, from the variables of launchers, and how processes agree before they train."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, read, refused, train

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.config.sections import Trainer
from ercfusion.train import main
from ercfusion.training import processes
from ercfusion.training.folder import new_run_folder, open_run_folder
from ercfusion.training.processes import (
    FOLDER_VARIABLE,
    check_launch,
    is_first_process,
    joint_step,
    launcher,
    leave_launcher,
    shared_folder,
    trainer_environment,
)

UNSET = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes._SIGNS, *UNSET, FOLDER_VARIABLE):
        monkeypatch.setenv(name, "")  # so that what a test leaves behind is undone, too
        monkeypatch.delenv(name)
    monkeypatch.setattr(processes, "_meeting", None)


def torchrun(rank: int, size: int = 2) -> dict[str, Any]:
    return {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "GROUP_RANK": 0}


def allocation(rank: int, tasks: int = 2) -> dict[str, Any]:
    """As in the script of a job: variables of the allocation, and no others."""
    return {"SLURM_NTASKS": tasks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_JOB_ID": 7}


def srun(rank: int, tasks: int = 2) -> dict[str, Any]:
    return {**allocation(rank, tasks), "SLURM_STEP_NUM_TASKS": tasks}


def lightning(rank: int, node: int = 0) -> dict[str, Any]:
    return {"LOCAL_RANK": rank, "NODE_RANK": node, "WORLD_SIZE": 2}


def start(monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def trainer(devices: int = 2, nodes: int = 1) -> Trainer:
    return Trainer(devices=devices, num_nodes=nodes)


@pytest.mark.parametrize("started", [torchrun, srun, allocation, lightning])
def test_the_first_process_of_every_launcher(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first_process()
    for rank in (0, 1):
        start(monkeypatch, started(rank))
        assert is_first_process() == (rank == 0)
        environment = trainer_environment(trainer())
        assert environment.local_rank() == rank
        assert environment.creates_processes_externally
        if started is not lightning:
            assert (environment.global_rank(), environment.world_size()) == (rank, 2)
            check_launch(trainer())


def test_the_first_process_of_another_node_is_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, {"NODE_RANK": 1})
    assert not is_first_process()
    assert processes._rank(launcher(), 4) == 4


def test_lightning_starts_the_others_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher() is None
    assert not trainer_environment(trainer()).creates_processes_externally
    # An allocation for one task, or a shell inside of one, is no launcher.
    for variables in (allocation(0, 1), {"SLURM_NTASKS": 4}, {**allocation(0), "SLURM_JOB_NAME": "bash"}):
        with monkeypatch.context() as patch:
            start(patch, variables)
            assert launcher() is None
            check_launch(trainer())


@pytest.mark.parametrize("started", [allocation(0, 4), srun(0, 1), torchrun(0, 1), {}])
def test_one_device_is_one_process(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, started)
    check_launch(trainer(1))
    assert type(trainer_environment(trainer(1))).__name__ == "LightningEnvironment"


@pytest.mark.parametrize(
    ("started", "wanted", "message"),
    [
        (srun(0, 4), trainer(1), r"srun started 4 processes, but the run asks for 1 .*trainer=ddp .* N x M = 4"),
        (allocation(2, 4), trainer(1), "srun started 4 processes, but the run asks for 1"),
        (srun(1, 4), trainer(2), r"srun started 4 .* asks for 2 \(trainer.devices=2 and trainer.num_nodes=1\)"),
        (torchrun(1, 3), trainer(1), "torchrun started 3 processes, but the run asks for 1"),
        (torchrun(0, 3), trainer(2, 2), "torchrun started 3 processes, but the run asks for 4"),
        (srun(3, 4), trainer(2, 2), "srun started more than 2 processes on .*--ntasks-per-node"),
        ({}, trainer(1, 2), "trainer.num_nodes=2, but MASTER_ADDR, MASTER_PORT, NODE_RANK is not set"),
    ],
)
def test_another_number_of_processes_is_refused(
    started: dict[str, Any], wanted: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, started)
    with pytest.raises(ConfigError, match=message):
        check_launch(wanted)


def test_a_refusal_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start(monkeypatch, srun(1, 4))
    with pytest.raises(SystemExit) as caught:
        shared_folder(trainer(1), lambda: tmp_path)
    assert caught.value.code == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_run_inside_of_an_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, {**allocation(0, 4), "SLURM_JOB_NAME": "night"})
    record = train(tmp_path / "run", "model=concat", "training.max_epochs=1")
    assert record["selection"]["epoch"] == 1


def test_a_process_of_lightnings_takes_the_folder_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, {**lightning(1), FOLDER_VARIABLE: tmp_path})
    assert shared_folder(trainer(), lambda: pytest.fail("it is not the first")) == tmp_path


def test_standing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in (srun(1), torchrun(1), lightning(1)):
        start(monkeypatch, variables)
        assert not is_first_process()
        leave_launcher()
        assert is_first_process()


# Agreeing


def meetings(size: int) -> list[Any]:
    store = torch.distributed.HashStore()
    return [processes._Meeting(store, rank, size) for rank in range(size)]


def together(works: list[Any]) -> list[Any]:
    results: list[Any] = [None] * len(works)

    def do(number: int) -> None:
        results[number] = works[number]()

    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_processes_exchange_texts() -> None:
    three = meetings(3)
    found = together([lambda each=each: each.exchange("word", f"of {each.rank}, é") for each in three])
    assert found == [["of 0, é", "of 1, é", "of 2, é"]] * 3
    assert together([lambda each=each: each.leave("word") for each in three]) == [None] * 3


def test_a_process_that_does_not_come_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    with pytest.raises(RunError, match="process 1 of 2: not all processes reached 'the data'"):
        meetings(2)[0].exchange("the data", "")


class Heard:
    """A meeting at which the others have said something already."""

    def __init__(self, rank: int, others: dict[int, str]) -> None:
        self.rank, self.size, self.others, self.said = rank, 3, others, []  # type: ignore[var-annotated]

    def exchange(self, name: str, text: str) -> list[str]:
        self.said.append((name, text))
        return [text if rank == self.rank else self.others.get(rank, "") for rank in range(self.size)]

    def leave(self, name: str) -> None:
        self.said.append((name, "left"))


def test_what_fails_in_one_process_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(rank: int, others: dict[int, str]) -> Heard:
        heard = Heard(rank, others)
        monkeypatch.setattr(processes, "_meeting", heard)
        return heard

    heard = meet(0, {})
    with joint_step("the data"):
        pass
    assert heard.said == [("the data", "")]
    heard = meet(0, {2: "no file"})
    with pytest.raises(RunError, match="process 3 of 3: no file"), joint_step("the data"):
        pass
    assert heard.said[-1] == ("the data", "left")  # the store lives as long as the first process
    meet(0, {1: "no file"})
    with pytest.raises(ConfigError, match="my own"), joint_step("the data"):
        raise ConfigError("my own")
    heard = meet(1, {})
    with pytest.raises(SystemExit), joint_step("the data"):
        raise PermissionError(13, "Permission denied", "/data")
    assert heard.said[0] == ("the data", "/data: Permission denied")
    heard = meet(1, {})
    with pytest.raises(SystemExit), joint_step("the data"):
        raise OSError(28, "No space left on device")
    assert heard.said[0] == ("the data", "No space left on device")
    meet(1, {0: "no file"})
    with pytest.raises(SystemExit), joint_step("the data"):
        pass
    monkeypatch.setattr(processes, "_meeting", None)
    with pytest.raises(PermissionError), joint_step("the data"):
        raise PermissionError(13, "Permission denied", "/data")


def test_all_processes_work_in_the_folder_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, torchrun(1))
    heard = Heard(1, {})
    monkeypatch.setattr(processes, "_meet", lambda settings: heard)
    heard.others = {0: str(tmp_path)}
    # The first exchange is about failures: there, the first process has said nothing.
    exchange = heard.exchange
    monkeypatch.setattr(
        heard, "exchange", lambda name, text: exchange(name, text) if name == "its name" else ["", text, ""]
    )
    assert shared_folder(trainer(), lambda: pytest.fail("it is not the first")) == tmp_path
    assert os.environ[FOLDER_VARIABLE] == str(tmp_path)
    heard.others = {0: str(tmp_path / "elsewhere")}
    with pytest.raises(SystemExit):
        shared_folder(trainer(), lambda: pytest.fail("it is not the first"))


def test_a_folder_that_others_do_not_see_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    config = read(finished_run / "config.json")
    config.update(run=str(tmp_path / "run"), resume=None)
    config["trainer"].update(devices=2, num_nodes=1)
    start(monkeypatch, torchrun(0))
    heard = Heard(0, {})
    monkeypatch.setattr(processes, "_meet", lambda settings: heard)
    monkeypatch.setattr(
        heard, "exchange", lambda name, text: [text, "not seen on node7" if name == "its place" else "", ""]
    )
    with pytest.raises(RunError, match="process 2 of 3: not seen on node7"):
        new_run_folder(config, [])
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_checks_its_launcher(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, torchrun(0))
    with pytest.raises(ConfigError, match="torchrun started 2 processes, but the run asks for 1"):
        open_run_folder(finished_run)


def test_combinations_are_single_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refused(main, ["-m", *TINY, "trainer.num_nodes=2", f"output={tmp_path}"], capsys)
    assert "-m does not go with several devices" in error
    start(monkeypatch, srun(0))
    error = refused(main, ["-m", "workers=1", *TINY, f"output={tmp_path}"], capsys)
    assert "srun started 2 processes, but the run asks for 1" in error
