"""The same work on a dask.distributed cluster: the same pack, and a worker that is killed half-way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from extraction_tools import Recordings, loudness, write_recordings
from test_extraction import content
from test_reuse import replaced

from ercfusion._core.errors import ConfigError, RunError
from ercfusion.data.pack import read_pack
from ercfusion.features.executors import executor
from ercfusion.features.extraction import extract_pack

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # where the workers find the tool
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        yield cluster
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return write_recordings(tmp_path / "raw", count=8)


def extract(corpus: Recordings, out: Path, recipe: Any, **options: Any) -> Path:
    return extract_pack(corpus, corpus.protocol(), recipe, out=out, **options).folder


@pytest.mark.slow
def test_the_same_pack_although_a_worker_is_killed(cluster: Any, corpus: Recordings, tmp_path: Path) -> None:
    (corpus.root() / "talk1-1.wav").write_bytes(b"damaged")
    log = tmp_path / "log"
    recipe = loudness(wait=0.15, log=str(log))
    victim = next(iter(cluster.workers.values())).pid

    def kill_half_way() -> None:
        deadline = time.monotonic() + 60
        while (not log.exists() or len(log.read_text().splitlines()) < 10) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    there = extract(corpus, tmp_path / "there", recipe, executor_name="dask", address=cluster.scheduler_address)
    killer.join()
    done = len(log.read_text().splitlines())
    assert done >= 24
    here = extract(corpus, tmp_path / "here", recipe, workers=1)
    assert content(there) == content(here)
    assert len(read_pack(there)) == 23
    # One that was replaced is extracted again, there as here.
    replaced(corpus.root() / "talk2-0.wav")
    done = len(log.read_text().splitlines())
    extract(corpus, there, recipe, executor_name="dask", address=cluster.scheduler_address)
    assert log.read_text().splitlines()[done:] == ["talk2-0.wav"]
    extract(corpus, here, recipe, workers=1)
    assert content(there) == content(here)


@pytest.mark.slow
def test_a_result_that_dies_with_its_worker(
    cluster: Any, corpus: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first result is lost between the news of it and its use."""
    lost = []

    class Late(distributed.as_completed):  # type: ignore[misc]
        def __next__(self) -> Any:
            future = super().__next__()
            if not lost:
                lost.append(future.key)
                task = cluster.scheduler.tasks[future.key]
                holders = set(task.who_has)
                for holder in holders:
                    os.kill(cluster.workers[holder.name].pid, signal.SIGKILL)
                while future.status == "finished" and set(task.who_has or holders) == holders:  # or computed again
                    time.sleep(0.005)
            return future

    monkeypatch.setattr(distributed, "as_completed", Late)
    recipe = loudness(wait=0.15)
    there = extract(corpus, tmp_path / "there", recipe, executor_name="dask", address=cluster.scheduler_address)
    assert lost
    assert content(there) == content(extract(corpus, tmp_path / "here", recipe, workers=1))


def test_a_cluster_that_is_not_there(corpus: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.features.executors.CONNECT", "1s")
    with pytest.raises(RunError, match=r"executor\.address=tcp://127\.0\.0\.1:9: the scheduler does not answer"):
        extract(corpus, tmp_path / "pack", loudness(), executor_name="dask", address="tcp://127.0.0.1:9")


def test_a_tool_that_cannot_be_loaded(cluster: Any, corpus: Recordings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a worker failed: ConfigError: the weights cannot be loaded"):
        extract(
            corpus,
            tmp_path / "pack",
            loudness(broken=True),
            executor_name="dask",
            address=cluster.scheduler_address,
        )


def test_settings() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dask'"):
        executor("dusk", address=None, workers=1)
    with pytest.raises(ConfigError, match=r"local processes have no address"):
        executor("local", address="tcp://somewhere", workers=1)


sys.path.insert(0, str(Path(__file__).parents[1]))
