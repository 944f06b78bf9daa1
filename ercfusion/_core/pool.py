"""Work done side by side in processes of this machine.

The models are small: one thread a process and as many processes as cores is what makes the most of a machine
(``benchmarks/README.md``, group ``many``). Processes are spawned, not forked, so that they start clean whatever the
parent has loaded; each serves many jobs, because starting one takes seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ercfusion._core.errors import ErcfusionError

J = TypeVar("J")
R = TypeVar("R")

logger = logging.getLogger("ercfusion")

DIED = "its process died twice (killed, perhaps for memory)"
"""The error of a job over which two processes died."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"
RANKS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_LOCALID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
"""Variables of launchers. A worker is no process of a distributed run, whatever started its parent."""

# Seconds between two calls of ``on_tick``.
_TICK = 0.5
# Memory that one process may need (torch, a corpus and a model of this library's size), for the default number.
_GIB_PER_WORKER = 1.5


@dataclass(frozen=True)
class Outcome(Generic[J, R]):
    """What became of a job.

    Args:
        job: As it was given.
        result: What ``work`` returned; None where it failed.
        error: None, or what went wrong, in words for the user.
    """

    job: J
    result: R | None
    error: str | None


def default_workers(jobs: int) -> int:
    """One process a core that this process may use, but no more than there are jobs or than fit into free memory.

    On a machine with GPUs it is one for each: processes would compete for the memory of one.
    """
    gpus = len(visible_gpus())
    if gpus:
        return max(1, min(gpus, jobs))
    return max(1, min(usable_cores(), jobs, int(_free_gib() / _GIB_PER_WORKER)))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def assigned_gpus(workers: int, gpus: Sequence[str]) -> list[str]:
    """A GPU for each of ``workers`` processes: each its own, or, if there are more processes, the GPUs in turn."""
    return [gpus[number % len(gpus)] for number in range(workers)] if gpus else []


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_gib() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            kib = next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")  # not Linux: no limit is known
    return kib / 2**20


def run_jobs(
    jobs: Sequence[J],
    work: Callable[[J], R],
    *,
    workers: int,
    on_done: Callable[[Outcome[J, R]], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> list[Outcome[J, R]]:
    """Do ``work`` for every job in ``workers`` processes; see :func:`stream_jobs`.

    Args:
        jobs: Anything that can be pickled; begun in this order.
        work: A function of a module. Its log messages go nowhere but to the files that it opens itself.
        workers: Number of processes.
        on_done: Called in this process when a job is over, in the order in which they end.
        on_tick: Called in this process about twice a second.

    Returns:
        One outcome a job, in the order of ``jobs``.
    """
    outcomes: dict[int, Outcome[J, R]] = {}
    for number, outcome in stream_jobs(jobs, work, workers=workers, limit=len(jobs), on_tick=on_tick):
        outcomes[number] = outcome
        if on_done is not None:
            on_done(outcome)
    return [outcomes[number] for number in range(len(jobs))]


def stream_jobs(
    jobs: Iterable[J],
    work: Callable[[J], R],
    *,
    workers: int,
    limit: int | None = None,
    threads: int | None = None,
    ahead: int = 0,
    on_tick: Callable[[], None] | None = None,
) -> Generator[tuple[int, Outcome[J, R]], None, None]:
    """Do ``work`` for one job after the other in ``workers`` processes; yields (number, outcome) as jobs end.

    Neither the jobs nor their results are kept, so that any number of them fits into memory. A job that fails does not
    stop the others. When a process dies (killed for memory, a fault in native code), whatever was being done is done
    once more, one job at a time, so that the one at fault is found; work that leaves checkpoints goes on from the last.
    When the generator is closed, or the parent is interrupted or dies, so are the processes.

    Args:
        jobs: Anything that can be pickled; consumed lazily, in order.
        work: A function of a module.
        workers: Number of processes.
        limit: No more processes than this are started; None where the number of jobs is not known.
        threads: Of torch in each process; None for (cores / workers).
        ahead: Jobs handed over before a process is free for them, so that none waits for the next.
        on_tick: Called in this process about twice a second.
    """
    waiting = enumerate(jobs)
    suspects: list[tuple[int, J]] = []  # were being done when a process died
    over = False
    while not over or suspects:
        alone = bool(suspects)
        count = 1 if alone else max(1, min(workers, workers if limit is None else limit))
        running: dict[Future[tuple[R | None, str | None]], tuple[int, J]] = {}
        taken: tuple[int, J] | None = None  # not handed over yet
        with _processes(workers, count, threads) as pool:
            try:
                while True:
                    while len(running) < (1 if alone else count + ahead):
                        if alone:
                            entry = suspects[0] if suspects else None
                        else:
                            entry = next(waiting, None)
                            over = entry is None
                        if entry is None:
                            break
                        taken = entry
                        running[pool.submit(_guarded, work, entry[1])] = entry  # raises if a process has died meanwhile
                        taken = None
                        if alone:
                            break
                    if not running:
                        break
                    ended, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
                    for future in ended:
                        result, error = future.result()
                        number, job = running.pop(future)
                        if alone:
                            suspects.pop(0)
                        yield number, Outcome(job, result, error)
                    if on_tick is not None:
                        on_tick()
            except BrokenProcessPool:
                # One process died, and with it the pool: which job it had is not known, unless it had one only.
                if not alone:
                    begun = [*running.values(), *([] if taken is None else [taken])]
                    suspects = sorted(begun, key=lambda entry: entry[0])
                    logger.warning("a worker process died; its work is taken up again")
                elif taken is None:  # otherwise the process died of something else, and the job was not begun
                    number, job = suspects.pop(0)
                    yield number, Outcome(job, None, DIED)
            except BaseException:
                _terminate(pool)
                raise


def _processes(workers: int, count: int, threads: int | None) -> ProcessPoolExecutor:
    _quiet_tracker()
    share = max(1, usable_cores() // max(1, workers)) if threads is None else threads
    context = multiprocessing.get_context("spawn")
    gpus = assigned_gpus(count, visible_gpus())
    free = context.SimpleQueue() if gpus else None
    for gpu in gpus:
        free.put(gpu)  # type: ignore[union-attr]
    return ProcessPoolExecutor(count, context, _begin, (share, free))


def _quiet_tracker() -> None:
    """Start the process that removes the semaphores of ours when we are killed, such that it does so without a word."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = quiet if not before else f"{before},{quiet}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _terminate(pool: ProcessPoolExecutor) -> None:
    # A second Ctrl-C would leave processes behind, and tracebacks of what waits for them.
    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if mine else None
    try:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


_threads = 1  # of torch, in a worker process


def _begin(threads: int, gpus: Any = None) -> None:
    """Prepare a worker process; ``gpus`` is a queue of GPUs, of which it takes one."""
    global _threads
    if gpus is not None:
        os.environ[_VISIBLE] = gpus.get()  # before anything asks CUDA
    for name in RANKS:
        os.environ.pop(name, None)
    _threads = threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for a torch that is imported later
    # Ctrl-C reaches all processes of a terminal; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["ERCFUSION_QUIET"] = "1"
    quiet = logging.getLogger("ercfusion")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False


def _die_with_parent() -> None:
    from multiprocessing.connection import wait as wait_for

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _guarded(work: Callable[[J], R], job: J) -> tuple[R | None, str | None]:
    if "torch" in sys.modules:
        # Before every job: the one before may have chosen another number.
        sys.modules["torch"].set_num_threads(_threads)
    # Exceptions come back as words: not every one can be pickled, and a traceback of another process says little.
    try:
        return work(job), None
    except ErcfusionError as error:
        return None, str(error)
    except OSError as error:
        if error.errno is None:
            return None, f"unexpected error\n{traceback.format_exc()}"
        return None, f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    except Exception:
        return None, f"unexpected error\n{traceback.format_exc()}"
