"""Results of a sweep: table, figures, best settings, and the winner on fresh seeds."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import atomic_write, write_json
from ercfusion._core.pool import Outcome
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.hints import command
from ercfusion.metrics.registry import get_metric
from ercfusion.metrics.statistics import seed_summary
from ercfusion.plots.sweep import plot_importance, plot_search, plot_settings
from ercfusion.records.record import RECORD, read_record
from ercfusion.records.run_schema import Winner
from ercfusion.search.space import setting
from ercfusion.search.status import settings_text
from ercfusion.search.storage import damaged
from ercfusion.search.study import Plan, best_trial, counting, tally
from ercfusion.search.worker import tidy, trial_config, typed_arguments
from ercfusion.training.folder import describe, is_described
from ercfusion.training.many import RunJob, train_many

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

logger = logging.getLogger("ercfusion")

TABLE = "trials.csv"
BEST = "best.yaml"
SUMMARY = "summary.json"
RERUN = "rerun"
WINNER = "winner.json"
# With fewer complete trials, importances are noise.
_ENOUGH = 10


def finish(study: Study, plan: Plan, *, rerun: bool) -> dict[str, Any]:
    """Write the results, train the winner again, write the summary.

    Args:
        rerun: Train the winner on fresh seeds here.

    Raises:
        RunError: no trial is complete.
    """
    tidy(study, plan)
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, plan.metric)
    counts = tally(study, trials)
    if best is None:
        raise RunError(
            f"{plan.folder}: no trial is complete ({counts.pruned} pruned, {counts.failed} failed). Check the column "
            f"'reason' of {TABLE}, and raise sweep.trials."
        )
    if not best.user_attrs.get("result", {}).keys() >= {"epoch", "settings"}:
        raise damaged(plan.storage, plan.folder, f"trial {best.number} is complete without epoch and settings")
    write_best(plan, best, counts.over)
    importance = importances(study)
    draw(plan, trials, best, importance)
    seeds = fresh_seeds(plan) if rerun else []
    records = rerun_winner(plan, best, seeds) if seeds else []
    first = trials[0]
    summary = {
        "study": plan.name,
        "folder": str(plan.folder),
        "model": plan.run.preset.model,
        "protocol": plan.origin.identity["protocol"],
        "synthetic": plan.origin.synthetic,
        "metric": plan.metric,
        "trials": {
            "asked": counts.total,
            **{name: getattr(counts, name) for name in ("over", "complete", "pruned", "failed", "running")},
        },
        "first": {"trial": first.number, "state": first.state.name.lower(), "dev": first.value},
        "best": {
            "trial": best.number,
            "dev": best.value,
            "epoch": best.user_attrs["result"]["epoch"],
            "settings": best.user_attrs["result"]["settings"],
            "differs": settings_text(plan, best),
        },
        "importance": importance,
        "rerun": _rerun_summary(plan, records),
    }
    write_json(plan.folder / SUMMARY, summary)
    return summary


# Tables and files


def rows(plan: Plan, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """One mapping per trial that counts."""
    table = []
    for trial in counting(trials):
        result = trial.user_attrs.get("result", {})
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        row[f"dev/{plan.metric}"] = result.get("value")
        row |= {key: result.get(key) for key in ("epoch", "epochs", "seconds")}
        row["started"] = trial.datetime_start.isoformat(timespec="seconds") if trial.datetime_start else None
        owner = trial.user_attrs.get("owner") or [None, None]
        row |= {"place": owner[0], "worker": owner[1]}
        settings = result.get("settings", trial.params)
        row |= {key: settings.get(key) for key in plan.space}
        row["reason"] = result.get("reason")
        table.append(row)
    return table


def write_table(study: Study, plan: Plan) -> Path:
    """Write all trials to ``trials.csv``."""
    table = rows(plan, study.get_trials(deepcopy=False))
    with atomic_write(plan.folder / TABLE) as stream:
        if table:
            writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return plan.folder / TABLE


def write_best(plan: Plan, best: FrozenTrial, over: int) -> Path:
    """Write typed and best settings to ``best.yaml``, for ``settings=``."""
    import yaml

    settings = {**plan.typed, **best.user_attrs["result"]["settings"]}
    settings["training.metric"] = plan.metric
    settings.setdefault("seed", plan.run.root.seed)
    model, data = plan.run.preset.model, plan.run.preset.data
    lines = [
        f"# The best of {over} trials of the sweep {plan.name} ({model} on {data}): trial {best.number},",
        f"# dev {plan.metric} {best.value:.6f} at epoch {best.user_attrs['result']['epoch']}, seed {settings['seed']}.",
        f"# Optimistic: the best of {over} trials on one seed and one dev split. Report the fresh seeds instead.",
        f"# Use it in this folder: {command('best settings', 'train', f'settings={BEST}', 'seed=1')}",
    ]
    with atomic_write(plan.folder / BEST) as stream:
        stream.write("\n".join(lines) + "\n")
        for key, value in settings.items():
            # A block style would break a list over several lines.
            flow = None if isinstance(value, list | dict) else False
            text = yaml.safe_dump({key: value}, default_flow_style=flow, allow_unicode=True, width=10**6)
            stream.write(text)
    return plan.folder / BEST


# Figures


def importances(study: Study) -> dict[str, float]:
    """Share of each setting in reaching the best tenth (PED-ANOVA); empty with few trials."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = {key for key in study.best_trial.params if len({trial.params.get(key) for trial in complete}) > 1}
    if len(complete) < _ENOUGH or len(varied) < 2:
        return {}
    # With fewer than five best trials the estimate is noise.
    quantile = min(0.5, max(0.1, 5 / len(complete)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile), params=sorted(varied)
        )
    return {key: round(float(value), 4) for key, value in shares.items() if math.isfinite(value)}


def draw(plan: Plan, trials: Sequence[FrozenTrial], best: FrozenTrial, importance: Mapping[str, float]) -> None:
    """Draw the history, the settings and their importances."""
    folder, table = plan.folder / "plots", rows(plan, trials)
    folder.mkdir(exist_ok=True)
    title = f"Sweep of {plan.run.preset.model} on {plan.origin.identity['protocol']}"
    look: dict[str, Any] = {"title": title, "synthetic": plan.origin.synthetic}
    score = f"dev/{plan.metric}"
    points = [
        {"trial": row["trial"], "state": row["state"], "score": row[score], **{key: row[key] for key in plan.space}}
        for row in table
        if row["state"] in ("complete", "pruned", "fail")
    ]
    maximize = get_metric(plan.metric).higher_is_better
    plot_search(points, folder / "history.png", f"Dev {plan.metric}", maximize=maximize, **look)
    log = [key for key, dimension in plan.space.items() if dimension.get("log")]
    defaults = {key: setting(plan.config, key) for key in plan.space}
    plot_settings(points, defaults, folder / "settings.png", f"Dev {plan.metric}", best.number, log=log, **look)
    if importance:
        complete = sum(row["state"] == "complete" for row in table)
        plot_importance(importance, folder / "importance.png", complete=complete, **look)


# The winner on fresh seeds


def fresh_seeds(plan: Plan) -> list[int]:
    """The first whole numbers without the sweep's seed."""
    wanted = plan.sweep.rerun
    return [seed for seed in range(wanted + 1) if seed != plan.run.root.seed][:wanted]


def rerun_winner(plan: Plan, best: FrozenTrial, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train the best settings on fresh seeds; returns the records of successful runs."""
    parent = plan.folder / RERUN
    _move_earlier_winner(parent, best.number)
    # Written first: it marks the folders as this winner's.
    write_json(parent / WINNER, {"trial": best.number, "settings": best.user_attrs["result"]["settings"]})
    jobs = []
    for seed in seeds:
        folder = parent / f"seed-{seed}"
        config = trial_config(plan, {**best.user_attrs["result"]["settings"], "seed": seed}, folder)
        if not is_described(folder):
            folder.mkdir(parents=True, exist_ok=True)
            typed = [argument for argument in typed_arguments(plan, config) if not argument.startswith("seed=")]
            describe(folder, config, [*typed, f"seed={seed}"], plan.command)
        jobs.append(RunJob(f"winner, seed {seed}", config, folder))
    left = [job for job in jobs if not (job.folder / RECORD).is_file()]

    def ended(outcome: Outcome[RunJob, Any]) -> None:
        if outcome.error is not None:
            logger.warning("%s failed: %s", outcome.job.name, outcome.error)

    if left:
        train_many(left, workers=plan.sweep.workers, on_done=ended, description="fresh seeds")
    return [read_record(job.folder) for job in jobs if (job.folder / RECORD).is_file()]


def _move_earlier_winner(parent: Path, trial: int) -> None:
    """Rename the folder of an earlier winner."""
    note = parent / WINNER
    if not note.is_file():
        return
    earlier = read_json(note, Winner, advice="Move the folder away: the runs are made again.")["trial"]
    if earlier != trial:
        parent.rename(parent.with_name(f"{RERUN}-of-trial-{earlier:04d}"))


def _rerun_summary(plan: Plan, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not records:
        return None
    summary: dict[str, Any] = {"seeds": [record["seed"] for record in records]}
    for split in ("dev", "test"):
        values = [
            record["metrics"][split][plan.metric] for record in records if plan.metric in record["metrics"][split]
        ]
        if len(values) < len(records):
            continue  # no labels, or none on which the score is defined
        statistics = seed_summary(values)
        spread = statistics["std"] if len(values) > 1 else None
        summary[split] = {"mean": round(statistics["mean"], 6), "std": spread and round(spread, 6), "values": values}
    return summary


# Text


def report(summary: Mapping[str, Any]) -> str:
    """The lines printed at the end."""
    trials, best, first, rerun = summary["trials"], summary["best"], summary["first"], summary["rerun"]
    synthetic = " (synthetic corpus)" if summary["synthetic"] else ""
    counts = ", ".join(f"{trials[name]} {name}" for name in ("complete", "pruned", "failed", "running") if trials[name])
    metric = summary["metric"]
    lines = [
        "",
        f"{summary['model']} on {summary['protocol']}{synthetic}, {trials['over']} of {trials['asked']} trials "
        f"finished: {counts}",
        f"best settings (trial {best['trial']}): {best['differs']}",
    ]
    if summary["importance"]:
        shares = [f"{key} {value:.0%}" for key, value in list(summary["importance"].items())[:5]]
        lines.append(f"importance of settings: {', '.join(shares)}")
    parts = [f"best trial dev {metric} {best['dev']:.4f} (optimistic: best of {trials['over']})"]
    if first["state"] == "complete" and best["trial"] != first["trial"]:
        parts.insert(0, f"first trial dev {metric} {first['dev']:.4f}")
    if rerun is not None:
        count = len(rerun["seeds"])
        parts.append(f"fresh seeds dev {_spread(rerun['dev'])}")
        test = _spread(rerun["test"]) if "test" in rerun else "not scored (no labels)"
        parts.append(f"test {test} with {count} seed{'s' if count > 1 else ''}")
    lines.append(" | ".join(parts))
    if trials["running"]:
        lines.append(f"{trials['running']} trials are running on other machines; resume this folder when they end")
    return "\n".join(lines)


def _spread(values: Mapping[str, Any]) -> str:
    return f"{values['mean']:.4f}" + (f" +- {values['std']:.4f}" if values["std"] is not None else "")
