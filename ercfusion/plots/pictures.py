"""The figures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion.batch.predictions import Predictions
from ercfusion.data.corpus import EXACT_LEVEL
from ercfusion.metrics.registry import REGISTERED
from ercfusion.plots.figures import PICTURES, plot_title, plot_training_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def task_history(history: Sequence[Mapping[str, float]], task: str) -> list[dict[str, float]]:
    """The history for a further task of the run: its own dev scores replace those of the main task."""
    own = f"dev/{task}:"
    return [
        {name: value for name, value in row.items() if not name.startswith("dev/")}
        | {f"dev/{name.removeprefix(own)}": value for name, value in row.items() if name.startswith(own)}
        for row in history
    ]


def training_figure(
    history: Sequence[Mapping[str, float]], record: Mapping[str, Any], path: Path | None = None
) -> Figure:
    """Losses and scores by epoch (one row of ``history`` each), with the levels of the majority class and the exact
    posterior.

    ``path`` None writes no file.
    """
    chosen = record["selection"]["metric"]
    shown = [
        {
            "epoch": row["epoch"],
            "train/loss": row.get("train/loss"),
            # A rising dev loss shows overfitting.
            **{
                f"dev/loss ({metric.loss})": row.get(f"dev/{metric.name}")
                for metric in REGISTERED.values()
                if metric.loss
            },
            **{f"dev/{name}": row.get(f"dev/{name}") for name in dict.fromkeys([chosen, "weighted_f1", "macro_f1"])},
        }
        for row in history
    ]
    reachable = record["corpus"].get("reachable", {}).get("dev", {})
    levels = {"majority": record["majority"].get("dev", {}), EXACT_LEVEL: reachable}
    return plot_training_curves(
        shown,
        path,
        record["selection"]["epoch"],
        title=f"{record['config']['preset']['model']} on {record['protocol']}",
        synthetic=record["corpus"]["synthetic"],
        levels={f"{name} ({chosen})": level[chosen] for name, level in levels.items() if chosen in level},
    )


def draw_pictures(
    folder: Path,
    history: Sequence[Mapping[str, float]],
    predictions: Mapping[str, Predictions],
    record: Mapping[str, Any],
) -> None:
    """Write the training curves, and for every split the figures of its task kind."""
    folder.mkdir(parents=True, exist_ok=True)
    training_figure(history, record, folder / "training.png")
    model, protocol, synthetic = record["config"]["preset"]["model"], record["protocol"], record["corpus"]["synthetic"]
    for split, part in predictions.items():
        if not part.valid.any():
            continue  # nothing to compare with
        title = plot_title(protocol, model, split)
        for name in part.task.rules.pictures:
            PICTURES[name](part, folder / f"{split}-{name}.png", title, synthetic)
