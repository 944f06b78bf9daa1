"""Where the work of an extraction is done: in processes of this machine, or on a cluster of dask.distributed.

Either yields what became of each group of items as it ends: its results, or None and the reason where the processes
that tried it died. An error of another kind (a model that cannot be loaded) ends everything.

Neither decides about the values: groups are small, the same whoever does them, and torch is held to one thread in each
process, so the values do not depend on how many processes there are.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, RunError, did_you_mean, require_extra
from ercfusion._core.pool import DIED, stream_jobs
from ercfusion.data.media import Clip
from ercfusion.data.recordings import source_of
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import Extracted, TextExtractor
from ercfusion.features.journal import Result
from ercfusion.features.recipe import Recipe

logger = logging.getLogger("ercfusion")

CONNECT = "20s"
"""How long a cluster's scheduler is waited for."""
_READS = 3
"""How often a file is read that changes meanwhile."""


@dataclass(frozen=True)
class Group:
    """Items that are taken up together.

    Args:
        recipe: What is done with them, as plain containers that any process can be sent.
        numbers: Of the items in the work list.
        items: Clips (one a group) or texts.
        root: See :class:`~ercfusion.features.work.WorkList`.
    """

    recipe: Recipe
    numbers: tuple[int, ...]
    items: tuple[Any, ...]
    root: Path | None = None


Outcomes = Iterator[tuple[Group, list[Result] | None, str | None]]


def in_this_process(groups: Iterable[Group]) -> Outcomes:
    """One after the other, here: for small texts, where starting processes would take longer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for group in groups:
            yield group, do_group(group), None
    finally:
        torch.set_num_threads(threads)


def on_processes(groups: Iterable[Group], workers: int) -> Outcomes:
    """In ``workers`` processes of this machine. One that dies over a recording is replaced, and the recording named."""
    with closing(stream_jobs(groups, do_group, workers=workers, threads=1, ahead=workers)) as stream:
        for _, outcome in stream:
            if outcome.error not in (None, DIED):
                raise RunError(outcome.error)
            yield outcome.job, outcome.result, outcome.error


def on_dask(groups: Iterable[Group], address: str | None, workers: int) -> Outcomes:
    """On the cluster whose scheduler listens at ``address``; without one, on a cluster of ``workers`` processes here.

    Every worker must see the recordings under the same paths as this machine does, and have ercfusion installed.

    Raises:
        RunError: the scheduler does not answer, or went away.
        MissingExtraError: dask.distributed is not installed.
    """
    require_extra("distributed", "cluster", "Extracting on a cluster (executor=dask)")
    from distributed import Client, KilledWorker, LocalCluster, as_completed

    try:
        cluster = None
        if address is None:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        client = Client(cluster or address, timeout=CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(f"executor.address={address}: the scheduler does not answer ({error}).") from error
    try:
        waiting = iter(groups)
        slots = max(1, sum(client.nthreads().values()))
        running: dict[Any, Group] = {}
        done = as_completed(loop=client.loop)

        def submit() -> None:
            group = next(waiting, None)
            if group is not None:
                future = client.submit(do_group, group, pure=False)
                running[future.key] = group
                done.add(future)

        # A bounded number is under way, so that neither the list nor its results need fit into memory.
        for _ in range(3 * slots):
            submit()
        for future in done:
            group = running.pop(future.key)
            if future.status == "finished":
                yield group, future.result(), None
            elif future.status == "cancelled":
                raise RunError("the cluster's scheduler went away; start it again, and extract again to go on.")
            else:
                fault = future.exception()
                if not isinstance(fault, KilledWorker):
                    raise RunError(f"a worker of the cluster failed: {type(fault).__name__}: {fault}")
                yield group, None, "several workers of the cluster died over it"
            future.release()
            submit()
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def do_group(group: Group) -> list[Result]:
    """What a worker does: extract the items of one group. Faults of a recording become results; others are raised."""
    extractor = _prepared(group.recipe)
    if isinstance(extractor, TextExtractor):
        with _encoding:  # tokenizers are not made for threads, which workers of a cluster may have
            return [Result(values) for values in extractor.encode(group.items)]
    return [_do_clip(extractor, clip, group.root) for clip in group.items]


def _do_clip(extractor: Callable[[Clip], Any], clip: Clip, root: Path | None) -> Result:
    path: Path = extractor.source(clip) if hasattr(extractor, "source") else clip.path
    for _ in range(_READS):
        # The values must be those of the file whose checksum is recorded: it may be replaced while it is read.
        before = _stamp(path)
        result = _extracted(extractor, clip)
        source = source_of(path, root)
        if before == _stamp(path) == (source.size, source.modified):
            return replace(result, source=source)
    return Result(None, "the file changes while it is read", source=source)


def _extracted(extractor: Callable[[Clip], Any], clip: Clip) -> Result:
    try:
        found = extractor(clip)
    except ClipError as error:
        return Result(None, str(error))
    except ConfigError:
        raise
    except Exception as error:
        # Tools raise whatever they like over a damaged file; one recording shall not end the work on all others.
        return Result(None, f"unexpected {type(error).__name__}: {(str(error).strip() or 'no words').splitlines()[0]}")
    if not isinstance(found, Extracted):
        found = Extracted(found)
    return Result(found.values, found.note, found.seconds)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


_extractors: dict[str, Any] = {}
_encoding = threading.Lock()


def _prepared(recipe: Recipe) -> Any:
    key = repr(recipe)
    if key not in _extractors:
        extractor = recipe.extractor()
        extractor.prepare()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        _extractors.clear()  # one at a time: models are large
        _extractors[key] = extractor
    return _extractors[key]


EXECUTORS: dict[str, Callable[..., Outcomes]] = {"local": on_processes, "dask": on_dask}
"""By the setting ``executor``."""


def executor(name: str, *, address: str | None, workers: int) -> Callable[[Iterable[Group]], Outcomes]:
    """The function that does groups, from the settings of the command.

    Raises:
        ConfigError: no such executor, or an address for one that takes none.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"executor={name}: unknown. {did_you_mean(name, EXECUTORS)}")
    if name == "dask":
        return partial(on_dask, address=address, workers=workers)
    if address is not None:
        raise ConfigError("executor.address is for executor=dask; local processes need none")
    return partial(on_processes, workers=workers)
