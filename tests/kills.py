"""What a kill leaves at every event of the file system, and what the next command makes of it.

A command is run once, to its end. Before and after each call that creates, renames or removes something below a folder
(and each call that writes to a sweep's study), the folder is copied as it lies on the disk: that is what the process
would leave if it were killed there. Locks are not copied, as those of a killed process are not kept. Each state is then
put back in its place, and a process does with it what a user would: give the command again.

Run as a script (``python tests/kills.py SCENARIO FOLDER [STEP]``) it is the process from which the others are forked:
on one thread, with all loaded that is slow to import. STEP=1 goes on from every state. It prints a JSON object, see
:class:`Found`.
"""

from __future__ import annotations

import builtins
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

HIDDEN = re.compile(r"ercfusion-[0-9a-f]{12}")
CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")
# What differs between two runs of one command: times, and the random name of a sweep's folder and study.
TIMES = ("finished", "revision", "created", "cost", "seconds", "seconds_per_epoch", "started")
NAMES = ("place", "name", "command", "overrides", "study", "folder", "run")
EVERY = 10
"""One in so many states is also reached by really killing the process."""


@dataclasses.dataclass
class Found:
    """The result.

    Args:
        events: Calls at which the process was looked at.
        states: Different states of the folder among them from which the command went on.
        kills: Processes that were really killed.
        failures: What went wrong, a line each.
    """

    events: int = 0
    states: int = 0
    kills: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


# Looking


class Recorder:
    """Calls ``at`` before and after each event below ``root``, with a number that rises by one and a description."""

    def __init__(self, root: Path, at: Callable[[int, str], None]) -> None:
        self.root = str(root)
        self.at = at
        self.count = 0
        self._inside = False

    def event(self, what: str) -> None:
        if self._inside:
            return
        self._inside = True
        try:
            self.at(self.count, what)
            self.count += 1
        finally:
            self._inside = False

    def _watched(self, name: str, original: Callable[..., Any], below: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            watched = below(*arguments, **settings)
            what = f"{name} {arguments[0] if isinstance(arguments[0], str | os.PathLike) else ''}"
            if watched:
                self.event(f"before {what}")
            result = original(*arguments, **settings)
            if watched:
                self.event(f"after {what}")
            return result

        return call

    def _below(self, path: Any, *_: Any, **settings: Any) -> bool:
        if settings.get("dir_fd") is not None:  # how a whole tree is removed: names are relative to a handle
            return True
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root)

    def _writes(self, path: Any, mode: Any = "r", *_: Any, **settings: Any) -> bool:
        return self._below(path) and any(letter in str(mode) for letter in "wxa+")

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in CALLS:
                original = getattr(os, name)
                stack.enter_context(mock.patch.object(os, name, self._watched(name, original, self._below)))
            watched = self._watched("open", builtins.open, self._writes)
            stack.enter_context(mock.patch.object(builtins, "open", watched))
            stack.enter_context(mock.patch.object(io, "open", watched))
            from ercfusion._core import files

            stack.enter_context(mock.patch.object(files, "_swap", self._watched("swap", files._swap, self._below)))
            self._watch_study(stack)
            self._watch_journal(stack)
            yield

    def _watch_journal(self, stack: ExitStack) -> None:
        if found := sys.modules.get("ercfusion.features.journal"):
            watched = self._watched("append", found.Journal.append, lambda *_, **settings: True)
            stack.enter_context(mock.patch.object(found.Journal, "append", watched))

    def _watch_study(self, stack: ExitStack) -> None:
        if "optuna" not in sys.modules:
            return
        from optuna.storages import RDBStorage

        for name in vars(RDBStorage):
            if name.startswith(("set_", "create_")):
                original = getattr(RDBStorage, name)
                watched = self._watched(name, original, lambda *_, **settings: True)
                stack.enter_context(mock.patch.object(RDBStorage, name, watched))


def tree(root: Path) -> dict[str, str]:
    """Names and checksums of all that lies below a folder; random parts of hidden names are left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = HIDDEN.sub("ercfusion", str(path.relative_to(root)))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


class Snapshots:
    """Copies of ``root``, one for each state that differs from those before."""

    def __init__(self, root: Path, target: Path) -> None:
        self.root, self.target = root, target
        self.states: dict[str, tuple[int, str]] = {}

    def take(self, number: int, what: str) -> None:
        state = json.dumps(tree(self.root), sort_keys=True)
        if state in self.states:
            return
        self.states[state] = (number, what)
        if self.root.is_dir():
            shutil.copytree(self.root, self.target / str(number))
        else:
            (self.target / str(number)).mkdir(parents=True)


# Comparing


def content(root: Path) -> dict[str, Any]:
    """What is to be equal, by the name of the file."""
    return {
        str(path.relative_to(root)): _normalized(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _normalized(path: Path) -> Any:
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text()))
    if path.suffix == ".csv" and path.name in ("metrics.csv", "trials.csv"):
        with path.open(newline="") as stream:
            return [_plain(row) for row in csv.DictReader(stream)]
    if path.suffix == ".ckpt":
        import torch

        state = torch.load(path, weights_only=True)
        state["ercfusion"].pop("sha256")  # of times, too
        return _plain(state)
    if path.suffix in (".log", ".db") or path.name in ("README.md", "table.tex", "table.csv", "page.html"):
        return "some"  # times stand in it
    if path.suffix == ".yaml":
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items() if key not in TIMES + NAMES}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that differ, or that one side alone has."""
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


# Doing it


@dataclasses.dataclass
class Scenario:
    """A command.

    Args:
        root: The folder below which it writes.
        begin: The command; returns its status.
        again: What a user does where it was killed; returns the status.
        check: Called for every state before that.
        before: Makes what is in ``root`` before the command is given.
        step: One in so many states is gone on from.
        wanted: Makes in ``root``, where the command has ended, what every state is to end as; None if that is there.
    """

    root: Path
    begin: Callable[[], int]
    again: Callable[[], int]
    check: Callable[[], None] = lambda: None
    before: Callable[[], None] = lambda: None
    step: int = 1
    wanted: Callable[[], int] | None = None


def forked(work: Callable[[], int], log: Path) -> int:
    """The exit status of ``work`` in a process of its own (negative: the signal); what it says goes to ``log``."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def investigate(scenario: Scenario, folder: Path) -> Found:
    """Run the scenario, look at every event, go on from every state, and compare the ends."""
    root, log, states = scenario.root, folder / "log", folder / "states.json"
    found = Found()

    def anew() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        scenario.before()

    def fails(what: str) -> None:
        found.failures.append(what)
        print(what, file=sys.stderr, flush=True)

    def recorded() -> int:
        snapshots = Snapshots(root, folder / "states")
        recorder = Recorder(root, snapshots.take)
        with recorder.watching():
            status = scenario.begin()
        states.write_text(json.dumps([recorder.count, list(snapshots.states.values())]))
        return status

    def killed(number: int) -> int:
        def die(now: int, what: str) -> None:
            if now == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with Recorder(root, die).watching():
            return scenario.begin()

    def goes_on(where: str) -> None:
        left = tree(root)

        def work() -> int:
            scenario.check()
            return scenario.again()

        status = forked(work, log)
        if status != 0:
            said = " / ".join(log.read_text().strip().splitlines()[-6:])
            fails(f"{where} ({', '.join(left)}): status {status}: {said}")
            return
        if different := differences(content(root), expected):
            fails(f"{where}: other in the end: {', '.join(different)}")
        if leftovers := [name for name in tree(root) if HIDDEN.sub("", name) != name or "ercfusion." in name]:
            fails(f"{where}: left over: {', '.join(leftovers)}")

    # Once in this process: what is slow the first time (imports, configurations, kernels) is then done for all forks.
    anew()
    scenario.begin()
    anew()
    status = forked(recorded, log)
    if status != 0:
        found.failures.append(f"uninterrupted: status {status}: {log.read_text()[-2000:]}")
        return found
    if scenario.wanted is not None and forked(scenario.wanted, log) != 0:
        found.failures.append(f"what is wanted: {log.read_text()[-2000:]}")
        return found
    expected = content(root)
    found.events, listed = json.loads(states.read_text())
    listed = listed[:: scenario.step]
    found.states = len(listed)
    for place, (number, what) in enumerate(listed):
        shutil.rmtree(root)
        shutil.copytree(folder / "states" / str(number), root)
        goes_on(what)
        if place % EVERY == EVERY // 2:
            anew()
            status = forked(lambda number=number: killed(number), log)
            if status != -signal.SIGKILL:
                fails(f"{what}: not killed, but {status}: {log.read_text()[-500:]}")
                continue
            found.kills += 1
            there = sorted(tree(root))
            copied = sorted(tree(folder / "states" / str(number)))
            if there != copied:
                fails(f"{what}: the kill leaves {there}, the copy has {copied}")
            goes_on(f"killed {what}")
    return found


# Scenarios


def warm(root: str, *arguments: str) -> None:
    """Do what is slow the first time before the processes are forked."""
    import pandas  # noqa: F401  # pyarrow loads it where it is there
    import pyarrow.parquet  # noqa: F401

    from ercfusion.config.compose import Composer

    Composer(root).compose(["resume=x"])
    Composer(root).compose(list(arguments))


def say(main: Callable[[list[str]], int], *arguments: str) -> int:
    """A command, in this process."""
    from ercfusion.cli import run_command

    return run_command(main, list(arguments))


def same_or_resumed(main: Callable[[list[str]], int], arguments: tuple[str, ...], run: Path) -> int:
    """The command once more; where it is refused, what its message advises."""
    status = say(main, *arguments)
    if status == 0:
        return 0
    sys.stderr.flush()
    advised = f"resume={run}"
    said = Path(f"/proc/self/fd/{sys.stderr.fileno()}").resolve().read_text()
    if advised not in said:
        return status
    return say(main, advised)


def train_scenario(folder: Path, *more: str) -> Scenario:
    from runs import TINY

    import ercfusion.training.run  # noqa: F401
    from ercfusion.train import main

    run = folder / "root" / "run"
    fixed = ("model=concat", "training.max_epochs=2", "training.pictures=false")
    arguments = (*TINY, *fixed, *more, f"run={run}")
    warm("train", *arguments)
    return Scenario(folder / "root", lambda: say(main, *arguments), lambda: same_or_resumed(main, arguments, run))


def labels_scenario(folder: Path) -> Scenario:
    made = train_scenario(folder, "data.protocol=demo/multilabel")
    return dataclasses.replace(made, step=4)  # what is written is as for single labels; the thresholds come at the end


def export_scenario(folder: Path) -> Scenario:
    import ercfusion.training.export  # noqa: F401

    made = train_scenario(folder, "model=utterance_encoder", "task.export=true", "curriculum=emotion_shift")
    return dataclasses.replace(made, step=6)  # most of it is as in a run without


def sweep_scenario(folder: Path) -> Scenario:
    import optuna  # noqa: F401
    from runs import TINY
    from sweeps import serially

    import ercfusion.plots.sweep
    import ercfusion.search.results
    import ercfusion.search.run
    import ercfusion.training.many
    import ercfusion.training.run
    from ercfusion.sweep import main

    ercfusion.search.run.run_jobs = serially  # type: ignore[assignment]
    ercfusion.training.many.run_jobs = serially  # type: ignore[assignment]
    ercfusion.search.results.draw = lambda *arguments: None  # type: ignore[assignment]
    run = folder / "root" / "sweep"
    fixed = ("model=concat", "training.max_epochs=1", "training.pictures=false", "sweep.trials=2", "sweep.rerun=0")
    arguments = (*TINY, *fixed, "sweep.only=[model.dropout]", "sweep.workers=1", f"run={run}")
    warm("sweep", *TINY, *fixed)
    return Scenario(
        folder / "root", lambda: say(main, *arguments), lambda: same_or_resumed(main, arguments, run), step=4
    )


PRESET = """
title: A table of one run
data: demo
settings:
  data.options.train: 6
  data.options.dev: 3
  data.options.test: 3
  training.batch_size: 2
  training.bootstrap: 20
  training.max_epochs: 1
  trainer: cpu
seeds: [0]
rows:
  plain: {model: concat}
"""


def reproduce_scenario(folder: Path) -> Scenario:
    from sweeps import serially

    import ercfusion.plots.page
    import ercfusion.records.optimism
    import ercfusion.tables.render
    import ercfusion.tables.table
    import ercfusion.training.many
    import ercfusion.training.run
    import ercfusion.training.tables
    from ercfusion.reproduce import main

    ercfusion.training.many.run_jobs = serially  # type: ignore[assignment]
    (folder / "tiny.yaml").write_text(PRESET)
    warm("train", "model=concat", "trainer=cpu", "training.max_epochs=2")
    root = folder / "root"
    arguments = (str(folder / "tiny.yaml"), f"out={root / 'table'}", f"runs={root / 'runs'}")

    def again() -> int:
        return say(main, *arguments) or say(main, *arguments, "--check")

    return Scenario(root, lambda: say(main, *arguments), again)


def extract_scenario(folder: Path, *, replaced: str = "", **options: Any) -> Scenario:
    """Extraction of nine recordings.

    Args:
        folder: For everything.
        replaced: When another recording takes the place of one: ``before`` the command, on a pack that exists, or
            ``after`` the kill.
        options: Of the command; with any, a pack exists that lacks a turn.
    """
    sys.path.insert(0, str(Path(__file__).parent / "features"))
    import pyarrow.parquet  # noqa: F401
    import safetensors  # noqa: F401
    from extraction_tools import loudness, write_recordings

    import ercfusion.features.extraction as module
    from ercfusion.data.pack import read_pack
    from ercfusion.features.executors import in_this_process

    module._runner = lambda *arguments: in_this_process  # type: ignore[assignment]
    corpus = write_recordings(folder / "raw", count=3)
    damaged, other = folder / "raw" / "talk0-0.wav", folder / "raw" / "talk1-1.wav"
    sound, first = damaged.read_bytes(), other.read_bytes()
    second = first[:44] + first[:43:-1]
    pack = folder / "root" / "pack"

    def extract(**settings: Any) -> int:
        module.extract_pack(corpus, corpus.protocol(), loudness(), out=pack, **settings)
        return 0

    def put(path: Path, content: bytes, second: int) -> None:
        path.write_bytes(content)
        os.utime(path, (second, second))  # the pack has it

    def before() -> None:
        put(other, first, 1)
        put(damaged, sound, 3)
        if replaced == "after" or not (options or replaced):
            return
        put(damaged, b"", 2)
        forked(extract, folder / "before.log")  # a pack that lacks a turn
        put(damaged, sound, 3)
        if replaced:
            put(other, second, 4)

    def check() -> None:
        assert len(read_pack(pack)) in (8, 9), "neither the old nor the new pack"

    def again() -> int:
        if replaced == "after":
            put(other, second, 4)
        # Once more, without what replaces: the pack is there, and what a kill has left beside it goes.
        return extract(**options) or extract()

    def wanted() -> int:
        put(other, second, 4)
        return extract(fresh=True)

    scenario = Scenario(folder / "root", lambda: extract(**options), again, before=before)
    if replaced:
        scenario = dataclasses.replace(scenario, wanted=wanted, step=4)
    return dataclasses.replace(scenario, check=check) if options or replaced == "before" else scenario


SCENARIOS: dict[str, Callable[[Path], Scenario]] = {
    "train": train_scenario,
    "multi-label": labels_scenario,
    "export": export_scenario,
    "sweep": sweep_scenario,
    "reproduce": reproduce_scenario,
    "extract": extract_scenario,
    "fresh": lambda folder: extract_scenario(folder, fresh=True),
    "retry": lambda folder: extract_scenario(folder, retry=True),
    "extract, then another recording": lambda folder: extract_scenario(folder, replaced="after"),
    "extract of another recording": lambda folder: extract_scenario(folder, replaced="before"),
    "retry of another recording": lambda folder: extract_scenario(folder, replaced="before", retry=True),
}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # what a loss of power would take is another question, and disks are slow
    place = Path(sys.argv[2]).resolve()
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    chosen = SCENARIOS[sys.argv[1]](place)
    if len(sys.argv) > 3:
        chosen.step = int(sys.argv[3])
    print(json.dumps(dataclasses.asdict(investigate(chosen, place))))
