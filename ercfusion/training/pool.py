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
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from ercfusion.errors import ErcfusionError

J = TypeVar("J")
R = TypeVar("R")

logger = logging.getLogger("ercfusion")

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

    On a machine with a GPU it is one: processes would compete for its memory.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, min(usable_cores(), jobs, int(_free_gib() / _GIB_PER_WORKER)))


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
    """Do ``work`` for every job in ``workers`` processes.

    A job that fails does not stop the others. One whose process dies (killed for memory, for instance) is done once
    more; work that leaves checkpoints then goes on from the last. When the parent is interrupted or dies, so do the
    processes.

    Args:
        jobs: Anything that can be pickled; begun in this order.
        work: A function of a module. It runs with torch on (cores / workers) threads, its log messages go nowhere but
            to the files that it opens itself.
        workers: Number of processes.
        on_done: Called in this process when a job is over, in the order in which they end.
        on_tick: Called in this process about twice a second.

    Returns:
        One outcome a job, in the order of ``jobs``.
    """
    outcomes: dict[int, Outcome[J, R]] = {}
    attempts = dict.fromkeys(range(len(jobs)), 0)

    def settle(number: int, result: R | None, error: str | None) -> None:
        outcomes[number] = Outcome(jobs[number], result, error)
        if on_done is not None:
            on_done(outcomes[number])

    while len(outcomes) < len(jobs):
        left = [number for number in attempts if number not in outcomes]
        with _processes(workers, len(left)) as pool:
            running: dict[Future[tuple[R | None, str | None]], int] = {}
            try:
                while left or running:
                    while left and len(running) < workers:
                        number = left.pop(0)
                        attempts[number] += 1
                        running[pool.submit(_guarded, work, jobs[number])] = number
                    ended, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
                    for future in ended:
                        result, error = future.result()
                        settle(running.pop(future), result, error)
                    if on_tick is not None:
                        on_tick()
            except BrokenProcessPool:
                # One process died, and with it the pool: which job it had is not known.
                for number in running.values():
                    if attempts[number] > 1:
                        settle(number, None, "its process died twice (killed, perhaps for memory)")
                logger.warning("a worker process died; its work is taken up again")
            except BaseException:
                _terminate(pool)
                raise
    return [outcomes[number] for number in range(len(jobs))]


def _processes(workers: int, jobs: int) -> ProcessPoolExecutor:
    count = max(1, min(workers, jobs))
    threads = max(1, usable_cores() // max(1, workers))
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (threads,))


def _terminate(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


_threads = 1  # of torch, in a worker process


def _begin(threads: int) -> None:
    """Prepare a worker process."""
    global _threads
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
    except Exception:
        return None, f"unexpected error\n{traceback.format_exc()}"
