"""Which process of a distributed run this is, whatever started it, and how the processes agree before they train.

Lightning knows the launchers (``lightning_fabric.plugins.environments``). It has no means to exchange anything before
training, so the processes meet at a store of torch.distributed: at the address and port at which they train later.
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

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError
from ercfusion._core.pool import RANKS
from ercfusion.config.sections import Trainer

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

# Tells the processes that Lightning starts which folder the first one made.
FOLDER_VARIABLE = "ERCFUSION_RUN_FOLDER"
# Variables without which no launcher has started this process together with others.
_SIGNS = (*RANKS, "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# Seconds for which a process waits for the others. On a cluster, importing alone may take minutes.
PATIENCE = 300.0


def launcher() -> ClusterEnvironment | None:
    """The launcher that started this process together with others, as Lightning detects it; None if none did."""
    if not any(name in os.environ for name in _SIGNS):
        return None  # and nothing is imported for it
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        LSFEnvironment,
        MPIEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Inside of an allocation, a process that was not started by srun has the variables of the allocation.
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
        """Lightning's own, but not refusing ``--ntasks`` without ``--ntasks-per-node`` (see :func:`check_launch`)."""

        @staticmethod
        def _validate_srun_variables() -> None:
            pass

        def world_size(self) -> int:
            return _slurm_tasks()

    return Slurm


def is_first_process() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    return _rank(launcher(), 1) == 0


def _rank(environment: ClusterEnvironment | None, devices: int) -> int:
    from_lightning = environment is not None and type(environment).__name__ == "LightningEnvironment"
    if environment is None:
        return 0
    if from_lightning:  # it learns its rank from the trainer
        return environment.node_rank() * devices + environment.local_rank()
    return environment.global_rank()


def stand_alone() -> None:
    """Make this process one that works by itself, whatever started it or its parent together with others."""
    for name in RANKS:
        os.environ.pop(name, None)


def trainer_environment(trainer: Trainer) -> ClusterEnvironment:
    """What the trainer shall take as its launcher; a run on one device is one process, also in an allocation of many.

    Args:
        trainer: The section ``trainer`` of a configuration.
    """
    from lightning_fabric.plugins.environments import LightningEnvironment

    return (launcher() if _size(trainer) > 1 else None) or LightningEnvironment()


def _size(trainer: Trainer) -> int:
    return trainer.devices * trainer.num_nodes


def check_launch(trainer: Trainer) -> None:
    """Raise :class:`ConfigError` unless a launcher started as many processes as the run asks for.

    Args:
        trainer: The section ``trainer`` of a configuration.
    """
    environment, wanted = launcher(), _size(trainer)
    devices, nodes = trainer.devices, trainer.num_nodes
    asked = f"trainer.devices={devices} and trainer.num_nodes={nodes}"
    kind = type(environment).__name__
    if environment is None or kind == "LightningEnvironment":
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if nodes > 1 and missing:
            raise ConfigError(
                f"trainer.num_nodes={nodes}, but {', '.join(missing)} is not set. Start the run with torchrun or srun, "
                "or set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node"
            )
        return
    started = environment.world_size()
    name = {"Slurm": "srun", "TorchElasticEnvironment": "torchrun"}.get(kind, "the launcher")
    if started == wanted:
        if environment.local_rank() >= devices:
            raise ConfigError(
                f"{name} started more than {devices} processes on {socket.gethostname()}, but trainer.devices={devices}"
                " is the number for every node (srun: --ntasks-per-node)"
            )
        return
    alone = "SLURM_STEP_NUM_TASKS" not in os.environ and environment.global_rank() == 0
    if kind == "Slurm" and wanted == 1 and alone:
        return  # the number of tasks is that of the allocation: this process may well be the only one
    what = f"{name} started {started} processes, but the run asks for {wanted} ({asked}). "
    if wanted == 1:
        what += (
            "Start one process, or train in all of them: trainer=ddp trainer.devices=N trainer.num_nodes=M, "
            f"N x M = {started}"
        )
    else:
        what += f"Start {wanted} processes, or change these settings"
    raise ConfigError(what)


# Agreeing


@dataclass(frozen=True)
class _Meeting:
    store: Any
    rank: int
    size: int

    def exchange(self, name: str, text: str) -> list[str]:
        """The texts of all processes, in the order of their ranks."""
        from torch.distributed import DistError

        names = [f"{name}/{rank}" for rank in range(self.size)]
        try:
            self.store.set(names[self.rank], text)
            self.store.wait(names, timedelta(seconds=PATIENCE))
            return [self.store.get(key).decode() for key in names]
        except (DistError, RuntimeError) as error:
            raise RunError(
                f"process {self.rank + 1} of {self.size}: not all processes have come as far as {name!r} within "
                f"{PATIENCE:.0f} s, or the first one has ended: {str(error).splitlines()[0]}"
            ) from error

    def leave(self, name: str) -> None:
        """Wait until all have read what was exchanged: the store is gone when the first process ends."""
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
"""Of the processes of the present run; None if it has one, or if Lightning starts the others."""


def _meet(trainer: Trainer) -> _Meeting | None:
    environment, devices, size = launcher(), trainer.devices, _size(trainer)
    nodes = size // devices
    rank = _rank(environment, devices)
    if environment is None or not environment.creates_processes_externally:
        # Lightning starts the other processes of a node, when the first one has the folder: the nodes meet.
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
            f"{environment.main_port} within {PATIENCE:.0f} s: {str(error).splitlines()[0]}. Were all of them started "
            "(srun, not only sbatch)? Is the port free (MASTER_PORT=N chooses another one)?"
        ) from error
    return _Meeting(PrefixStore("ercfusion", store), rank, size)


@contextmanager
def agreed(name: str) -> Iterator[None]:
    """What fails inside, in one process or in all, ends all of them; the first one says why."""
    error: ErcfusionError | OSError | None = None
    text = ""
    try:
        yield
    except (ErcfusionError, OSError) as found:
        if _meeting is None:
            raise
        error = found
        text = f"{found.filename}: {found.strerror}" if isinstance(found, OSError) else str(found)
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
    raise RunError(f"process {failed[0] + 1} of {_meeting.size}: {texts[failed[0]]}")


def part() -> None:
    """End what the processes of a run have in common: each goes on, or ends, by itself."""
    global _meeting
    _meeting = None
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would abort a process that ends first


@contextmanager
def said_once() -> Iterator[None]:
    """What every process finds wrong is said by the first one only."""
    try:
        yield
    except ErcfusionError:
        if is_first_process():
            raise
        raise SystemExit(2) from None


def shared_folder(trainer: Trainer, make: Callable[[], Path]) -> Path:
    """The folder in which all processes of a run work: the first one makes it and tells the others.

    Args:
        trainer: The section ``trainer`` of the configuration.
        make: Called in the first process; what it raises ends all of them.

    Raises:
        ConfigError: see :func:`check_launch`.
        RunError: the processes do not meet, or one does not see the folder.
    """
    global _meeting
    _meeting = None
    # In an allocation without srun's own variables the first process may be alone and well: then the others speak.
    unsure = "SLURM_PROCID" in os.environ and "SLURM_STEP_NUM_TASKS" not in os.environ
    with nullcontext() if unsure else said_once():
        check_launch(trainer)
    environment = launcher()
    of_lightning = type(environment).__name__ == "LightningEnvironment" and _size(trainer) > 1
    if of_lightning and environment is not None and environment.local_rank() > 0 and FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    _meeting = _meet(trainer)
    folder: Path | None = None
    with agreed("the folder"):
        if _meeting is None or _meeting.rank == 0:
            folder = make()
    if _meeting is not None:
        folder = Path(_meeting.exchange("its name", str(folder or ""))[0])
        with agreed("its place"):
            if not folder.is_dir():
                raise RunError(
                    f"{folder} is not seen on {socket.gethostname()}: all nodes need a file system in common "
                    "(output=DIR or run=DIR chooses the place)"
                )
    assert folder is not None
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder
