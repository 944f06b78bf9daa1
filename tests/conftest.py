"""Fixtures that all tests share."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.metadata
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logs import forget_logging

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LONGEST = 60  # letters of a value in a test's name


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes and long values are called by their argument: what is in them may depend on the clock or the machine.

    The two processes of a test run must collect tests of the same names. (pytest numbers names that are equal.)
    """
    if isinstance(val, bytes | bytearray):
        return argname
    if isinstance(val, int) and not isinstance(val, bool) and val.bit_length() > 4 * LONGEST:
        return argname
    return argname if isinstance(val, str) and len(val) > LONGEST else None


def pytest_collection_finish() -> None:
    """What all test files have imported stays: the collector of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The inputs of the tests are tiny: more threads would only wait for each other, and add in another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables of experiments take up to half a minute: the processes of a test run compute each once."""
    from docs.computed import tables

    base = tmp_path_factory.getbasetemp()
    tables.FOLDER = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _one_look_at_the_surroundings() -> Iterator[None]:
    """Each run asks git, and reads the descriptions of all installed packages: neither changes while tests run."""
    from ercfusion.records import record

    with pytest.MonkeyPatch.context() as patch:
        known = functools.cache(record.revision)
        patch.setattr(record, "revision", lambda: copy.copy(known()))  # a record may be changed
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        patch.setattr(
            "lightning_fabric.utilities.registry.entry_points", functools.cache(importlib.metadata.entry_points)
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """No test finds what another test, or a fixture of a whole file, lets the library log to."""
    forget_logging()
    yield
    forget_logging()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set beside the repository; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.is_dir():
            pytest.skip(f"the real data are not here: no folder ../shared/data/{name} beside the repository")
        return path

    return folder


@pytest.fixture(scope="module")
def preloaded() -> Iterator[None]:
    """Worker processes come from a server that has loaded torch and the trainer once, instead of loading them each."""
    original = multiprocessing.get_context
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    server = original("forkserver")
    server.set_forkserver_preload(["ercfusion.training.run"])

    def context(method: str | None = None) -> Any:
        return server if method == "spawn" else original(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", context)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Runs draw nothing: pictures take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched itself
        patch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of cogmen on a tiny ``demo``, with its pictures and the models of all three epochs; read only."""
    from runs import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    keep = "training.keep_every_epoch=true"
    train(folder, "model=cogmen", "training.max_epochs=3", keep, "data.options.test=8", "optimizer.lr=0.003")
    return folder
