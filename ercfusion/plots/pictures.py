"""The pictures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion.batch.predictions import Predictions
from ercfusion.data.corpus import EXACT_LEVEL
from ercfusion.metrics.registry import REGISTERED
from ercfusion.plots.figures import PICTURES, plot_title, plot_training_curves


def draw_pictures(
    folder: Path,
    history: Sequence[Mapping[str, float]],
    predictions: Mapping[str, Predictions],
    record: Mapping[str, Any],
) -> None:
    """Training curves, and for every split what the kind of task draws."""
    folder.mkdir(exist_ok=True)
    model, protocol = record["config"]["preset"]["model"], record["protocol"]
    synthetic, metric = record["corpus"]["synthetic"], record["selection"]["metric"]
    shown = [
        {
            "epoch": row["epoch"],
            "train/loss": row.get("train/loss"),
            # Losses of dev show that a model fits train and no longer dev.
            **{
                f"dev/loss ({metric.loss})": row.get(f"dev/{metric.name}")
                for metric in REGISTERED.values()
                if metric.loss
            },
            **{f"dev/{name}": row.get(f"dev/{name}") for name in dict.fromkeys([metric, "weighted_f1", "macro_f1"])},
        }
        for row in history
    ]
    reachable = record["corpus"].get("reachable", {}).get("dev", {})
    levels = {"majority": record["majority"].get("dev", {}), EXACT_LEVEL: reachable}
    plot_training_curves(
        shown,
        folder / "training.png",
        record["selection"]["epoch"],
        title=f"{model} on {protocol}",
        synthetic=synthetic,
        levels={f"{name} ({metric})": found[metric] for name, found in levels.items() if metric in found},
    )
    for split, part in predictions.items():
        if not part.valid.any():
            continue  # nothing to compare with
        title = plot_title(protocol, model, split)
        for name in part.task.rules.pictures:
            PICTURES[name](part, folder / f"{split}-{name}.png", title, synthetic)
