"""Tiny sweeps, and servers that they write to; shared by the tests of searching."""

from __future__ import annotations

import csv
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, environment, read

from ercfusion._core.pool import Outcome

SMALL = (*TINY, "model=concat", "data=demo", "training.max_epochs=2", "sweep.rerun=0")


def serially(jobs: Sequence[Any], work: Callable[[Any], Any], **options: Any) -> list[Outcome[Any, Any]]:
    """Stands in for ``run_jobs``: one job after the other, in this process."""
    from ercfusion._core.errors import ErcfusionError

    outcomes = []
    for job in jobs:
        try:
            outcomes.append(Outcome(job, work(job), None))
        except ErcfusionError as error:
            outcomes.append(Outcome(job, None, str(error)))
        if options.get("on_tick"):
            options["on_tick"]()
        if options.get("on_done"):
            options["on_done"](outcomes[-1])
    return outcomes


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps start no processes and draw nothing: both take most of the time of a tiny one."""
    pytest.importorskip("optuna")
    monkeypatch.setattr("ercfusion.search.run.run_jobs", serially)
    monkeypatch.setattr("ercfusion.training.many.run_jobs", serially)
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
    monkeypatch.setattr("ercfusion.search.results.draw", lambda *arguments: None)
    monkeypatch.delenv("ERCFUSION_SWEEP_STORAGE", raising=False)


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of ``trials.csv``."""
    with (folder / "trials.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_times(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "started", "place")} for row in rows]


def sweep_process(*arguments: str, **extra: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that all of it can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "ercfusion.sweep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**extra),
    )


def kill_group(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    """Kill the coordinator and, as a machine that loses power would, its workers with it."""
    os.killpg(process.pid, how)
    process.communicate(timeout=60)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.05)


def config_of(folder: Path) -> dict[str, Any]:
    return read(folder / "config.json")


# PostgreSQL


def _unprivileged() -> str | None:
    """A user that may run PostgreSQL, where we are root, for whom it refuses to start."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextmanager
def postgres(password: str = "se/cret@1") -> Iterator[str]:
    """A real PostgreSQL server of its own; gives the address of an empty database on it, with its password."""
    from urllib.parse import quote

    pytest.importorskip("psycopg")
    for program in ("initdb", "pg_ctl"):
        if shutil.which(program) is None:
            pytest.skip(f"PostgreSQL is not installed: no program {program}")
    user = _unprivileged()
    # Not pytest's folder: its parents are closed to other users. Short, because it holds a Unix socket.
    root = Path(tempfile.mkdtemp(prefix="ercpg"))
    as_user: dict[str, Any] = {"cwd": root, "text": True, "capture_output": True}
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(root, entry.pw_uid, entry.pw_gid)
        as_user |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    as_user["env"] = {**os.environ, "HOME": str(root), "LC_ALL": "C"}

    def run(*arguments: str) -> None:
        done = subprocess.run(arguments, timeout=120, **as_user)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"

    data, note = root / "data", root / "password"
    note.write_text(password + "\n")
    note.chmod(0o644)
    try:
        run("initdb", "-D", str(data), "-U", "sweeper", "--auth=scram-sha-256", f"--pwfile={note}", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories={root} -c fsync=off"
        # Its messages go to a file: a pipe would stay open as long as the server runs.
        run("pg_ctl", "-D", str(data), "-w", "-t", "60", "-l", str(root / "log"), "-o", settings, "start")
        yield f"postgresql://sweeper:{quote(password, safe='')}@/postgres?host={root}"
    finally:
        if (data / "postmaster.pid").is_file():
            subprocess.run(("pg_ctl", "-D", str(data), "-m", "immediate", "stop"), timeout=60, **as_user)
        shutil.rmtree(root, ignore_errors=True)
