"""Progress of runs in other processes, read from their folders, and the estimated time left."""

from __future__ import annotations

import heapq
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ercfusion._core import progress
from ercfusion._core.errors import RunError
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.config.sections import Training
from ercfusion.records.record import RECORD, read_record
from ercfusion.training.callbacks import HISTORY, best_row, read_history

logger = logging.getLogger("ercfusion")

# Seconds between plain lines.
_INTERVAL = 20.0
# Maximum number of runs shown one by one.
_LINES = 8


class WatchedRun:
    """One run, observed through its folder.

    Args:
        model: The model's preset.
    """

    def __init__(self, name: str, training: Training, model: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.max_epochs = training.max_epochs
        self.may_stop_early = bool(training.patience)
        self.metric = training.metric
        # Runs of one kind take about the same time; the narrower kind first.
        self.kinds = (re.sub(r"[,;]?\s*\bseed[ =]\S+", "", name), model)
        self.complete = (folder / RECORD).is_file()
        self.begun: float | None = None
        self.ended: float | None = None
        self.rows: list[dict[str, float]] = []
        self._stamp = 0.0
        self._first: tuple[int, float] | None = None  # epochs at the first reading, and its time
        self.read()
        self.before = len(self.rows)
        self._first = None

    def read(self) -> None:
        """Read the epochs done since the last call."""
        path = self.folder / HISTORY
        try:
            stamp = path.stat().st_mtime
        except FileNotFoundError:
            return
        if stamp != self._stamp:
            self._stamp, self.rows = stamp, read_history(path)
            if self._first is None:
                self._first = len(self.rows), stamp

    @property
    def epochs(self) -> int:
        """Number of epochs done."""
        return len(self.rows)

    @property
    def pace(self) -> float | None:
        """Seconds per epoch with scoring and saving; None before the first."""
        if not self.rows:
            return None
        if self._first is not None and self.epochs > self._first[0]:
            return (self._stamp - self._first[1]) / (self.epochs - self._first[0])
        return sum(row["seconds"] for row in self.rows) / self.epochs

    @property
    def overhead(self) -> float | None:
        """Seconds outside the epochs of a run observed to its end; else None."""
        if self.complete or self.begun is None or self.ended is None or self.pace is None:
            return None
        return max(0.0, self.ended - self.begun - self.pace * (self.epochs - self.before))

    def state(self) -> str:
        """``cogmen, seed 3: epoch 4/12, dev weighted_f1 0.5512 (best 0.5600 at 3)``."""
        shown = f"{self.name}: epoch {self.epochs}/{self.max_epochs}"
        usual = (task_kind(name).default_metric for name in KINDS)  # the settings may name none
        for metric in (self.metric, *usual):
            if metric is not None and self.rows and f"dev/{metric}" in self.rows[-1]:
                best = best_row(self.rows, metric)
                score = f"dev/{metric}"
                return f"{shown}, dev {metric} {self.rows[-1][score]:.4f} (best {best[score]:.4f} at {best['epoch']:g})"
        return shown


def seconds_left(runs: Sequence[WatchedRun], workers: int, now: float) -> float | None:
    """Seconds until all runs end without early stops; None before the first epoch of any.

    Runs not yet started are assumed to take as long as those of the same name (without seed), else model, else all.
    """
    paces: dict[str | None, list[float]] = {}
    for run in runs:
        if run.pace is not None:
            for kind in (*run.kinds, None):
                paces.setdefault(kind, []).append(run.pace)
    if not paces:
        return None
    overheads = [run.overhead for run in runs if run.overhead is not None]
    overhead = sum(overheads) / len(overheads) if overheads else 0.0
    busy: list[float] = []
    waiting: list[float] = []
    for run in runs:
        if run.complete or run.ended is not None:
            continue
        similar = next(paces[kind] for kind in (*run.kinds, None) if kind in paces)
        pace = run.pace if run.pace is not None else sum(similar) / len(similar)
        duration = (run.max_epochs - run.before) * pace + overhead
        if run.begun is None:
            waiting.append(duration)
        else:
            busy.append(max(duration - (now - run.begun), (run.max_epochs - run.epochs) * pace))
    # Every process takes the next run when it is free.
    free = busy + [0.0] * (workers - len(busy))
    heapq.heapify(free)
    for duration in waiting:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


class RunsProgress:
    """Progress of many runs: a bar and one line per run, or plain lines at most every 20 s without a terminal.

    Args:
        description: Name of the runs in the lines.
        clock: Unix time.
    """

    def __init__(
        self,
        runs: Sequence[WatchedRun],
        workers: int,
        description: str = "runs",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.runs = list(runs)
        self.workers = workers
        self.description = description
        self._clock = clock
        self._finished = 0
        self._started = self._reported = clock()
        self._view = progress.LiveView(self._picture)

    def __enter__(self) -> RunsProgress:
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()

    def hidden(self) -> AbstractContextManager[None]:
        """Hide the bar while something is printed."""
        return self._view.hidden()

    def tick(self) -> None:
        """Read the folders and show changes."""
        now = self._clock()
        begun = 0
        for run in self.runs:
            # Runs start in order, the next one whenever one ends.
            if run.ended is None and begun < self.workers:
                begun += 1
                if run.begun is None:
                    run.begun = now
                run.read()
        self._view.refresh()
        if not self._view.shown and now - self._reported >= _INTERVAL:
            self._reported = now
            logger.info("%s: %s", self.description, ", ".join(self.facts()))

    def ended(self, number: int, error: str | None) -> None:
        """Report the end of a run, given its index."""
        run, now = self.runs[number], self._clock()
        run.read()
        run.begun = now if run.begun is None else run.begun
        run.ended = now
        self._finished += 1
        facts = [f"{run.name}: {'failed' if error else 'done'}"]
        record = None if error else _record(run.folder)
        if record is not None:
            metric, scores = record["selection"]["metric"], record["metrics"]
            facts = [f"{run.name}: epoch {record['selection']['epoch']} of {record['selection']['epochs']}"]
            by_split = {split: scores[split].get(metric) for split in ("dev", "test") if split in scores}
            # Without labels, test has no scores.
            facts += [f"{split} {metric} {value:.4f}" for split, value in by_split.items() if value is not None]
        took = "complete already" if run.complete else progress.duration(now - run.begun)
        logger.info("%s, %s (%d of %d)", ", ".join(facts), took, self._finished, len(self.runs))

    def facts(self) -> list[str]:
        """Finished runs and epochs, speed, estimated time left."""
        now = self._clock()
        done = sum(run.epochs for run in self.runs)
        total = sum(run.epochs if run.ended is not None or run.complete else run.max_epochs for run in self.runs)
        texts = [f"{self._finished} of {len(self.runs)} finished", f"{done} of {total} epochs"]
        fresh = done - sum(run.before for run in self.runs)
        if fresh and now > self._started:
            texts.append(f"{progress.rate(fresh / (now - self._started))} epochs/s")
        left = seconds_left(self.runs, self.workers, now)
        if left is not None and self._finished < len(self.runs):
            limit = "at most " if any(run.may_stop_early for run in self.runs if run.ended is None) else ""
            texts.append(f"estimated time left: {limit}{progress.duration(left)}")
        return texts

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self._clock()
        left, spent = seconds_left(self.runs, self.workers, now), now - self._started
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=0.0 if left is None else spent / max(spent + left, 1e-9), width=24)
        head.add_row(self.description, bar, ", ".join(self.facts()))
        running = [run for run in self.runs if run.begun is not None and run.ended is None]
        lines = [run.state() for run in running[:_LINES]]
        lines += [f"and {len(running) - _LINES} more"] if len(running) > _LINES else []
        return Group(head, *(Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in lines))


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return read_record(folder)
    except RunError:
        return None  # a job other than training writes no record
