"""Progress of a sweep: a bar on a terminal, lines in a log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from ercfusion._core import progress
from ercfusion.search.space import setting
from ercfusion.search.study import Plan, Tally, best_trial, tally

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

logger = logging.getLogger("ercfusion")

# Seconds between readings of the storage, and between plain lines.
_PAUSE = 1.0
_INTERVAL = 20.0


def differences(plan: Plan, trial: FrozenTrial) -> list[str]:
    """A trial's settings other than the defaults, as arguments."""
    settings = trial.user_attrs.get("result", {}).get("settings", trial.params)
    changed = {key: value for key, value in settings.items() if value != setting(plan.config, key)}
    return [f"{key}={value}" for key, value in changed.items()]


def settings_text(plan: Plan, trial: FrozenTrial) -> str:
    """A trial's settings as text."""
    return " ".join(differences(plan, trial)) or "the defaults"


class SweepProgress:
    """Progress of a sweep trained by other processes."""

    def __init__(self, study: Study, plan: Plan) -> None:
        self.study = study
        self.plan = plan
        self.tally: Tally = tally(study)
        self.best: FrozenTrial | None = None
        self._begun = self._reported = time.monotonic()
        self._read = 0.0
        self._before = self.tally.over
        self._view = progress.LiveView(self._picture)
        self._first = True

    def __enter__(self) -> SweepProgress:
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()

    def started(self, workers: int) -> None:
        """Report the start."""
        counts = tally(self.study)
        if self._first:
            self._first = False
            logger.info(
                "sweep %s: %d of %d trials finished, %d worker%s, searching %s",
                self.plan.name,
                counts.over,
                counts.total,
                workers,
                "" if workers == 1 else "s",
                ", ".join(self.plan.space),
            )

    def due(self) -> bool:
        """Whether the next reading is due."""
        return time.monotonic() - self._read >= _PAUSE

    def tick(self) -> None:
        """Read the study and show changes."""
        now = self._read = time.monotonic()
        trials = self.study.get_trials(deepcopy=False)
        self.tally = tally(self.study, trials)
        best = best_trial(trials, self.plan.metric)
        if best is not None and (self.best is None or best.number != self.best.number):
            known = self.best is None and self._before > 0
            self.best = best
            logger.info("%s: %s%s", self._best_words(), settings_text(self.plan, best), " (earlier)" if known else "")
        self._view.refresh()
        if not self._view.shown and now - self._reported >= _INTERVAL:
            self._reported = now
            logger.info("trials: %s", ", ".join(self.facts()))

    def _best_words(self) -> str:
        assert self.best is not None
        return f"best so far: trial {self.best.number}, dev {self.plan.metric} {self.best.value:.4f}"

    def facts(self) -> list[str]:
        """Finished trials by state, speed, estimated time left."""
        counts, elapsed = self.tally, time.monotonic() - self._begun
        facts = [f"{counts.over} of {counts.total} finished", f"{counts.running} running"]
        facts += [f"{count} {word}" for word, count in (("pruned", counts.pruned), ("failed", counts.failed)) if count]
        fresh = counts.over - self._before
        if fresh > 0 and elapsed > 0:
            facts.append(f"{60 * fresh / elapsed:.2g}/min")
            if counts.total > counts.over:
                left = (counts.total - counts.over) * elapsed / fresh
                facts.append(f"estimated time left: {progress.duration(left)}")
        return facts

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1))
        total = max(self.tally.total, self.tally.over, 1)
        head.add_row("trials", ProgressBar(total=total, completed=self.tally.over, width=24), ", ".join(self.facts()))
        if self.best is None:
            return head
        text = f"  {self._best_words()}: {settings_text(self.plan, self.best)}"
        return Group(head, Text(text, no_wrap=True, overflow="ellipsis"))
