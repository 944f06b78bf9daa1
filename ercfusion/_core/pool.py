"""Parallel work in processes of this machine.

One process per core with one thread each is fastest for the small models (``benchmarks/README.md``, group ``many``).
Processes are spawned, not forked, and serve many jobs, because a start takes seconds.
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

from ercfusion._core.errors import ErcfusionError, system_words

J = TypeVar("J")
R = TypeVar("R")

logger = logging.getLogger("ercfusion")

DIED = "its process died twice (killed, perhaps for lack of memory)"
"""Error of a job whose process died twice."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"
RANKS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_LOCALID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
"""Variables of launchers, removed in workers, which are not ranks of distributed training."""

# Seconds between calls of ``on_tick``.
_TICK = 0.5
# Estimated memory per process: torch, a corpus and a model.
_GIB_PER_WORKER = 1.5


@dataclass(frozen=True)
class Outcome(Generic[J, R]):
    """A job with the return value of ``work`` or an error message."""

    job: J
    result: R | None
    error: str | None


def default_workers(jobs: int) -> int:
    """One process per usable core, limited by jobs and free memory; with GPUs, one per GPU."""
    gpus = len(visible_gpus())
    if gpus:
        return max(1, min(gpus, jobs))
    return max(1, min(usable_cores(), jobs, int(_free_gib() / _GIB_PER_WORKER)))


def visible_gpus() -> list[str]:
    """GPUs available to this process, as named in ``CUDA_VISIBLE_DEVICES``."""
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def assigned_gpus(workers: int, gpus: Sequence[str]) -> list[str]:
    """One GPU per process, in turn."""
    return [gpus[number % len(gpus)] for number in range(workers)] if gpus else []


def usable_cores() -> int:
    """Number of cores available to this process."""
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
    """Run ``work`` for every job; see :func:`stream_jobs`. Returns one outcome per job, in the order of ``jobs``.

    ``on_done`` is called after each job, in the order of completion.
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
    """Run ``work`` for each job in ``workers`` processes; yields (number, outcome) as jobs end.

    A failed job does not stop the others. If a process dies, the jobs then running are repeated one at a time to find
    the culprit. The processes end with the generator or this process.

    Args:
        jobs: Picklable objects, consumed lazily and in order.
        work: Module-level function. Its log messages reach only files that it opens.
        workers: Number of processes.
        limit: Maximum number of processes, usually the number of jobs.
        threads: torch threads per process; None for cores / workers.
        ahead: Number of jobs queued for busy processes.
        on_tick: Called in this process about twice per second.
    """
    waiting = enumerate(jobs)
    suspects: list[tuple[int, J]] = []  # were running when a process died
    over = False
    while not over or suspects:
        single = bool(suspects)
        count = 1 if single else max(1, min(workers, workers if limit is None else limit))
        running: dict[Future[tuple[R | None, str | None]], tuple[int, J]] = {}
        taken: tuple[int, J] | None = None  # not submitted yet
        with _processes(workers, count, threads) as pool:
            try:
                while True:
                    while len(running) < (1 if single else count + ahead):
                        if single:
                            item = suspects[0] if suspects else None
                        else:
                            item = next(waiting, None)
                            over = item is None
                        if item is None:
                            break
                        taken = item
                        running[pool.submit(_guarded, work, item[1])] = item  # raises if a process died
                        taken = None
                        if single:
                            break
                    if not running:
                        break
                    ended, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
                    for future in ended:
                        result, error = future.result()
                        number, job = running.pop(future)
                        if single:
                            suspects.pop(0)
                        yield number, Outcome(job, result, error)
                    if on_tick is not None:
                        on_tick()
            except BrokenProcessPool:
                # A dead process breaks the whole pool. The guilty job is known only if it was the only one.
                if not single:
                    begun = [*running.values(), *([] if taken is None else [taken])]
                    suspects = sorted(begun, key=lambda item: item[0])
                    logger.warning("a worker process died; its jobs are repeated one at a time")
                elif taken is None:  # otherwise the process died before the job began
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
    """Start the semaphore tracker without the warnings that it prints if we are killed."""
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
    # A second Ctrl-C would leave processes behind and print tracebacks.
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
    """Prepare a worker process; it takes a GPU from the queue ``gpus``."""
    global _threads
    if gpus is not None:
        os.environ[_VISIBLE] = gpus.get()  # before CUDA starts
    for name in RANKS:
        os.environ.pop(name, None)
    _threads = threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    # Ctrl-C reaches all processes of a terminal; only the parent reacts.
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
        # The previous job may have changed the number.
        sys.modules["torch"].set_num_threads(_threads)
    # Messages, because some exceptions cannot be pickled.
    try:
        return work(job), None
    except ErcfusionError as error:
        return None, str(error)
    except OSError as error:
        if error.errno is None:
            return None, f"unexpected error\n{traceback.format_exc()}"
        return None, system_words(error)
    except Exception:
        return None, f"unexpected error\n{traceback.format_exc()}"
