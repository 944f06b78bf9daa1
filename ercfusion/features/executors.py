"""Executors of an extraction: local processes, or a cluster of dask.distributed.

They yield the results of each group of items, or None and a reason if its processes died; other errors end the
extraction. Values do not depend on the executor: groups are fixed, and torch has one thread per process.
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

from ercfusion._core.errors import ConfigError, MissingExtraError, RunError, did_you_mean, require_extra, with_type
from ercfusion._core.pool import DIED, stream_jobs
from ercfusion.data.media import Clip
from ercfusion.data.recordings import source_of
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import Extracted, TextExtractor
from ercfusion.features.journal import Result
from ercfusion.features.recipe import Recipe

logger = logging.getLogger("ercfusion")

CONNECT = "20s"
"""Timeout for connecting to a cluster's scheduler."""
_READS = 3
"""Attempts to read a file that changes meanwhile."""


@dataclass(frozen=True)
class Group:
    """Items processed together.

    Args:
        recipe: Sent to other processes.
        numbers: Positions in the work list.
        items: Texts, or one clip.
        root: See :class:`~ercfusion.features.work.WorkList`.
    """

    recipe: Recipe
    numbers: tuple[int, ...]
    items: tuple[Any, ...]
    root: Path | None = None


Outcomes = Iterator[tuple[Group, list[Result] | None, str | None]]


def in_this_process(groups: Iterable[Group]) -> Outcomes:
    """Process groups here, for few texts: starting processes takes longer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for group in groups:
            yield group, do_group(group), None
    finally:
        torch.set_num_threads(threads)


def on_processes(groups: Iterable[Group], workers: int) -> Outcomes:
    """Process groups in ``workers`` processes; one that dies is replaced."""
    with closing(stream_jobs(groups, do_group, workers=workers, threads=1, ahead=workers)) as stream:
        for _, outcome in stream:
            if outcome.error not in (None, DIED):
                raise RunError(outcome.error)
            yield outcome.job, outcome.result, outcome.error


def on_dask(groups: Iterable[Group], address: str | None, workers: int) -> Outcomes:
    """Process groups on the cluster with the scheduler at ``address``, or on ``workers`` local dask processes.

    Workers need ercfusion, and the recordings under the same paths.

    Raises:
        RunError: the scheduler does not answer, or a worker failed.
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
        raise RunError(
            f"executor.address={address}: the scheduler does not answer ({error}). Check that it runs and that this "
            "machine reaches it."
        ) from error
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

        # Bounded, so that the results need not fit into memory.
        for _ in range(3 * slots):
            submit()
        for future in done:
            status = future.status
            if status in ("pending", "lost"):  # its worker died with the result, which is computed again
                done.add(future)
                continue
            group = running.pop(future.key)
            if status == "finished":
                yield group, future.result(), None
            elif status == "cancelled":
                raise RunError("executor=dask: the scheduler disappeared. Start it, and run the same command again.")
            else:
                fault = future.exception()
                if not isinstance(fault, KilledWorker):
                    raise RunError(
                        f"executor=dask: a worker failed: {with_type(fault)}. Check that its Python has "
                        "the same packages as this one."
                    )
                yield group, None, "several workers of the cluster died while processing it"
            future.release()
            submit()
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def do_group(group: Group) -> list[Result]:
    """Extract one group in a worker; a recording's fault becomes a result."""
    extractor = _prepared(group.recipe)
    if isinstance(extractor, TextExtractor):
        with _encoding:  # tokenizers are not thread-safe
            return [Result(values) for values in extractor.encode(group.items)]
    return [_do_clip(extractor, clip, group.root) for clip in group.items]


def _do_clip(extractor: Callable[[Clip], Any], clip: Clip, root: Path | None) -> Result:
    path: Path = extractor.source(clip) if hasattr(extractor, "source") else clip.path
    for _ in range(_READS):
        # Values and checksum must be of the same content.
        stamp = _stamp(path)
        result = _extracted(extractor, clip)
        source = source_of(path, root)
        if stamp == _stamp(path) == (source.size, source.modified):
            return replace(result, source=source)
    return Result(None, "the file changes while it is read. Wait until it is complete.", source=source)


def _extracted(extractor: Callable[[Clip], Any], clip: Clip) -> Result:
    try:
        extracted = extractor(clip)
    except ClipError as error:
        return Result(None, str(error))
    except (ConfigError, MissingExtraError):
        raise  # not about this clip
    except Exception as error:
        # Tools raise anything for a damaged file.
        return Result(None, f"unexpected {with_type(error)}")
    if not isinstance(extracted, Extracted):
        extracted = Extracted(extracted)
    return Result(extracted.values, extracted.note, extracted.seconds)


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
        _extractors.clear()  # keep one: models are large
        _extractors[key] = extractor
    return _extractors[key]


EXECUTORS: dict[str, Callable[..., Outcomes]] = {"local": on_processes, "dask": on_dask}
"""Executors by the setting ``executor``."""


def executor(name: str, *, address: str | None, workers: int) -> Callable[[Iterable[Group]], Outcomes]:
    """The executor by name.

    Raises:
        ConfigError: unknown, or an address for local processes.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"executor={name}: unknown executor. {did_you_mean(name, EXECUTORS)}")
    if name == "dask":
        return partial(on_dask, address=address, workers=workers)
    if address is not None:
        raise ConfigError(
            f"executor.address={address}: local processes have no address. Add executor=dask, or omit it."
        )
    return partial(on_processes, workers=workers)
