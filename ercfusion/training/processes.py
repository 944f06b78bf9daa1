"""Ranks of the processes of a run, and agreement between them before training.

Lightning detects the launcher but exchanges nothing before training: the processes meet at a store of
torch.distributed, at the address and port of the later training.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, first_line, system_words
from ercfusion._core.pool import RANKS
from ercfusion.config.sections import Trainer

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

# The first process's folder, for processes started by Lightning.
FOLDER_VARIABLE = "ERCFUSION_RUN_FOLDER"
# Without any of them, no launcher started this process.
_SIGNS = (*RANKS, "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# Seconds of waiting for other processes; imports may take minutes on a cluster.
PATIENCE = 300.0


def launcher() -> ClusterEnvironment | None:
    """The launcher of this process, as detected by Lightning, or None."""
    if not any(name in os.environ for name in _SIGNS):
        return None  # saves the imports below
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        LSFEnvironment,
        MPIEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # A process not started by srun also has the allocation's variables.
    if "SLURM_PROCID" in os.environ and SLURMEnvironment.detect() and _slurm_tasks() > 1:
        return _slurm_environment()(auto_requeue=False)
    for kind in (LSFEnvironment, MPIEnvironment):
        if kind.detect():
            return kind()
    return LightningEnvironment() if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ else None


def _slurm_tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])


@cache
def _slurm_environment() -> type[Any]:
    from lightning_fabric.plugins.environments import SLURMEnvironment

    class Slurm(SLURMEnvironment):
        """Lightning's class without its own check (:func:`check_launch` checks)."""

        @staticmethod
        def _validate_srun_variables() -> None:
            pass

        def world_size(self) -> int:
            return _slurm_tasks()

    return Slurm


def is_first_process() -> bool:
    """Whether this is the run's first or only process."""
    return _rank(launcher(), 1) == 0


def _rank(environment: ClusterEnvironment | None, devices: int) -> int:
    from_lightning = environment is not None and type(environment).__name__ == "LightningEnvironment"
    if environment is None:
        return 0
    if from_lightning:  # the trainer sets its rank later
        return environment.node_rank() * devices + environment.local_rank()
    return environment.global_rank()


def leave_launcher() -> None:
    """Make this process independent of its launcher."""
    for name in RANKS:
        os.environ.pop(name, None)


def trainer_environment(trainer: Trainer) -> ClusterEnvironment:
    """The trainer's launcher; a run on one device is one process."""
    from lightning_fabric.plugins.environments import LightningEnvironment

    return (launcher() if _size(trainer) > 1 else None) or LightningEnvironment()


def _size(trainer: Trainer) -> int:
    return trainer.devices * trainer.num_nodes


def check_launch(trainer: Trainer) -> None:
    """Raise :class:`ConfigError` unless as many processes as configured were started."""
    environment, wanted = launcher(), _size(trainer)
    devices, nodes = trainer.devices, trainer.num_nodes
    asked = f"trainer.devices={devices} and trainer.num_nodes={nodes}"
    kind = type(environment).__name__
    if environment is None or kind == "LightningEnvironment":
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if nodes > 1 and missing:
            raise ConfigError(
                f"trainer.num_nodes={nodes}, but {', '.join(missing)} is not set. Start the run with torchrun or srun, "
                "or set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node."
            )
        return
    started = environment.world_size()
    name = {"Slurm": "srun", "TorchElasticEnvironment": "torchrun"}.get(kind, "the launcher")
    if started == wanted:
        if environment.local_rank() >= devices:
            raise ConfigError(
                f"{name} started more than {devices} processes on {socket.gethostname()}, but trainer.devices={devices}"
                " is the number per node. Start as many on every node (srun: --ntasks-per-node)."
            )
        return
    may_be_single = "SLURM_STEP_NUM_TASKS" not in os.environ and environment.global_rank() == 0
    if kind == "Slurm" and wanted == 1 and may_be_single:
        return  # the variables are the allocation's: this may be the only process
    if wanted == 1:
        raise ConfigError(
            f"{name} started {started} processes, but the run asks for 1 ({asked}). Start one process, or train in all "
            f"of them: trainer=ddp trainer.devices=N trainer.num_nodes=M, N x M = {started}."
        )
    raise ConfigError(
        f"{name} started {started} processes, but the run asks for {wanted} ({asked}). Start {wanted} processes, or "
        "change these settings."
    )


# Agreeing


@dataclass(frozen=True)
class _Meeting:
    store: Any
    rank: int
    size: int

    def exchange(self, name: str, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        from torch.distributed import DistError

        names = [f"{name}/{rank}" for rank in range(self.size)]
        try:
            self.store.set(names[self.rank], text)
            self.store.wait(names, timedelta(seconds=PATIENCE))
            return [self.store.get(key).decode() for key in names]
        except (DistError, RuntimeError) as error:
            raise RunError(
                f"process {self.rank + 1} of {self.size}: not all processes reached {name!r} within {PATIENCE:.0f} s, "
                f"or the first one has ended: {first_line(error).rstrip('.')}. Check the logs of the other processes."
            ) from error

    def leave(self, name: str) -> None:
        """Wait until all have read: the store ends with the first process."""
        self.store.add(f"{name}/left", 1)
        if self.rank == 0:
            for _ in range(int(10 * PATIENCE)):
                if self.store.add(f"{name}/left", 0) == self.size:
                    return
                _pause()


def _pause() -> None:
    import time

    time.sleep(0.1)


_meeting: _Meeting | None = None
"""Of this run's processes; None for one, or if Lightning starts the others."""


def _meet(trainer: Trainer) -> _Meeting | None:
    environment, devices, size = launcher(), trainer.devices, _size(trainer)
    nodes = size // devices
    rank = _rank(environment, devices)
    if environment is None or not environment.creates_processes_externally:
        # Lightning starts a node's other processes later: only the nodes meet.
        rank, size = rank // devices, nodes
    if size == 1:
        return None
    from lightning_fabric.plugins.environments import LightningEnvironment
    from torch.distributed import DistError, PrefixStore, rendezvous

    environment = environment or LightningEnvironment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=PATIENCE)))
    except (DistError, RuntimeError) as error:
        raise RunError(
            f"process {rank + 1} of {size}: the processes did not meet at {environment.main_address}:"
            f"{environment.main_port} within {PATIENCE:.0f} s: {first_line(error).rstrip('.')}. Start all of them "
            "(srun, not only sbatch), or set MASTER_PORT=N to a free port."
        ) from error
    return _Meeting(PrefixStore("ercfusion", store), rank, size)


@contextmanager
def joint_step(name: str) -> Iterator[None]:
    """A common step: a failure in one process ends all; the first one reports it."""
    error: ErcfusionError | OSError | None = None
    text = ""
    try:
        yield
    except (ErcfusionError, OSError) as caught:
        if _meeting is None:
            raise
        error = caught
        text = system_words(caught) if isinstance(caught, OSError) else str(caught)
    if _meeting is None:
        return
    texts = _meeting.exchange(name, text)
    failed = [rank for rank, text in enumerate(texts) if text]
    if not failed:
        return
    _meeting.leave(name)
    if _meeting.rank > 0:
        raise SystemExit(2)
    if error is not None:
        raise error
    raise RunError(
        f"process {failed[0] + 1} of {_meeting.size}: {texts[failed[0]].rstrip('.')}.\nCorrect this, then start all "
        "processes again."
    )


def end_meeting() -> None:
    """From now on each process continues or ends on its own."""
    global _meeting
    _meeting = None
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would abort the process that ends first


@contextmanager
def from_first_process() -> Iterator[None]:
    """Let only the first process report an error of all."""
    try:
        yield
    except ErcfusionError:
        if is_first_process():
            raise
        raise SystemExit(2) from None


def shared_folder(trainer: Trainer, make: Callable[[], Path]) -> Path:
    """The folder of a run for all its processes; the first one creates it with ``make``.

    Raises:
        ConfigError: see :func:`check_launch`.
        RunError: the processes do not meet, or one cannot read the folder.
    """
    global _meeting
    _meeting = None
    # Without srun's variables the first process may be a valid single one: then the others report.
    unsure = "SLURM_PROCID" in os.environ and "SLURM_STEP_NUM_TASKS" not in os.environ
    with nullcontext() if unsure else from_first_process():
        check_launch(trainer)
    environment = launcher()
    of_lightning = type(environment).__name__ == "LightningEnvironment" and _size(trainer) > 1
    if of_lightning and environment is not None and environment.local_rank() > 0 and FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    _meeting = _meet(trainer)
    folder: Path | None = None
    with joint_step("the folder"):
        if _meeting is None or _meeting.rank == 0:
            folder = make()
    if _meeting is not None:
        folder = Path(_meeting.exchange("its name", str(folder or ""))[0])
        with joint_step("its place"):
            if not folder.is_dir():
                raise RunError(
                    f"{folder} is not visible on {socket.gethostname()}. Set output=DIR or run=DIR to a folder on a "
                    "file system shared by all nodes."
                )
    assert folder is not None
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder
