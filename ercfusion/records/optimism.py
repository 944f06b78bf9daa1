"""Optimism of choosing the epoch on test: a diagnostic, not a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import write_json
from ercfusion._core.progress import track
from ercfusion.features.loading import LoadedData
from ercfusion.metrics.registry import check_metric, get_metric, scores
from ercfusion.records.missing import hidden_store, recorded_missing
from ercfusion.records.record import require_test_scores
from ercfusion.tasks.recognizer import Recognizer

OPTIMISM = "evaluation/optimism.json"
EPOCHS = "checkpoints/epoch-*"


def measure_optimism(
    folder: Path, record: Mapping[str, Any], data: LoadedData, metric: str | None = None
) -> dict[str, Any]:
    """Score all epochs' models on test and write ``evaluation/optimism.json``.

    Args:
        folder: A finished run trained with ``training.keep_every_epoch=true``.
        metric: None for the score that chose the checkpoint.

    Returns:
        ``metric``, the test scores ``dev_selected``, ``last_epoch``, ``test_selected``, the ``test_selected_epoch``,
        and ``optimism = test_selected - dev_selected``.

    Raises:
        RunError: models are missing, or test has no labels.
    """
    epochs = sorted(folder.glob(EPOCHS))
    if not epochs:
        raise RunError(f"{folder} has no models of its epochs. Train with training.keep_every_epoch=true.")
    trained = record["selection"]["epochs"]
    if len(epochs) != trained:
        raise RunError(
            f"{folder} has models of {len(epochs)} of its {trained} epochs: training.keep_every_epoch was changed by a "
            "resume, or models were removed. Train again with training.keep_every_epoch=true."
        )
    require_test_scores([record])
    metric = metric or str(record["selection"]["metric"])
    if metric not in record["metrics"]["test"]:
        raise RunError(f"{metric} is not defined on the test split of {folder}. Choose another metric.")
    missing, test = recorded_missing(record), {}
    store, dev_store = (hidden_store(data.store(split), missing, split) for split in ("test", "dev"))
    for path in track(epochs, "scoring epochs"):
        recognizer = Recognizer.from_pretrained(path)
        check_metric(recognizer.task, metric)
        if recognizer.task.rules.thresholds:  # as for the chosen model
            rule = record["config"]["training"]["thresholds"]
            recognizer.choose_thresholds(recognizer.predict(dev_store), rule)
        score = scores(recognizer.predict(store))[metric]
        test[int(path.name.removeprefix("epoch-"))] = round(float(score), 6)
    best = (max if get_metric(metric).higher_is_better else min)(test, key=lambda epoch: test[epoch])
    chosen = record["metrics"]["test"][metric]
    report = {
        "diagnostic": "test-selected scores are optimistic and must not be reported as results",
        "metric": metric,
        "dev_selected": chosen,
        "last_epoch": test[max(test)],
        "test_selected": test[best],
        "test_selected_epoch": best,
        "optimism": round(test[best] - chosen, 6),
    }
    write_json(folder / OPTIMISM, {**report, "test_by_epoch": test}, indent=1)
    return report


def optimism_text(report: Mapping[str, Any]) -> str:
    """The report of :func:`measure_optimism` as text."""
    return "\n".join(
        [
            f"optimism diagnostic (test {report['metric']}; never a result)",
            f"  dev-selected epoch     {report['dev_selected']:.4f}",
            f"  last epoch             {report['last_epoch']:.4f}",
            f"  best test epoch ({report['test_selected_epoch']})   {report['test_selected']:.4f}",
            f"  optimism               {report['optimism']:+.4f}",
        ]
    )
