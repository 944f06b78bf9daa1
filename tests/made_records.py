"""Made-up run records, shared by the tests of tables, archives and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from ercfusion.batch.labels import get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.compose import Composer
from ercfusion.records.record import FORMAT, record_sums, rounded_scores, split_record
from ercfusion.records.robustness import law_result

TASK = TaskSpec("emotion", "single_label", get_schema("demo6"))


def predictions(skill: float, seed: int, conversations: int = 12, task: TaskSpec = TASK) -> Predictions:
    """Random answers to fixed questions: right with probability ``skill``, otherwise drawn."""
    questions = np.random.default_rng(0)
    lengths = tuple(int(length) for length in questions.integers(3, 9, conversations))
    count = sum(lengths)
    truth = questions.integers(0, task.size, count)
    speaker = questions.integers(0, 2, count)
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(count) < skill, truth, rng.integers(0, task.size, count))
    output = np.full((count, task.size), 0.3 / (task.size - 1))
    output[np.arange(count), said] = 0.7
    return Predictions(
        task=task,
        output=output,
        value=truth,
        valid=np.ones(count, dtype=bool),
        lengths=lengths,
        speaker=speaker,
        conversation_ids=tuple(f"test/{number}" for number in range(conversations)),
        turn_ids=tuple(str(number) for number in range(count)),
    )


def record(
    model: str = "concat", seed: int = 0, skill: float = 0.5, *overrides: str, conversations: int = 12, **changes: Any
) -> dict[str, Any]:
    """A record as ``train`` writes it, with made-up answers of the given skill."""
    made = predictions(skill, 1000 * len(model) + seed, conversations)
    test, dev = rounded_scores(made), rounded_scores(predictions(skill, 5000 + seed, conversations=5))
    config = Composer("train").compose(
        [
            f"model={model}",
            "data=demo",
            f"seed={seed}",
            "output=/home/someone/out",
            "data.raw=/home/someone/raw",
            *overrides,
        ]
    )
    best = test["weighted_f1"]
    return {
        "format": FORMAT,
        "finished": f"2026-01-0{1 + seed}T00:00:00+00:00",
        "command": {"overrides": list(overrides), "command": "python -m ercfusion.train run=/home/someone/x"},
        "config": config,
        "environment": {
            "ercfusion": "0.1.0",
            "revision": {"commit": "0123456789abcdef", "dirty": False},
            "python": "3.11.7",
            "system": "Linux x86_64",
            "cpus": 2,
            "processor": None,
            "instructions": None,
            "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        },
        "seed": seed,
        "device": "cpu",
        "protocol": "demo/balanced",
        "task": TASK.to_dict(),
        "corpus": {
            "name": "demo",
            "synthetic": True,
            "fingerprint": "f" * 64,
            "dev_source": "drawn as such",
            "train": {"conversations": 10, "utterances": 100},
            "reachable": {"dev": {"weighted_f1": 0.9}, "test": {"weighted_f1": 0.95}},
        },
        "features": [
            {
                "modality": "text",
                "width": 24,
                "level": "utterance",
                "source": {"pack": "/home/someone/packs/demo-text", "sha256": "a" * 64, "settings": {"encoder": "E"}},
            }
        ],
        "selection": {"split": "dev", "metric": "weighted_f1", "epoch": 2, "epochs": 3},
        "metrics": {"dev": dev, "test": test},
        "intervals": {"level": 0.95, "resampled": "conversations", "test": {"weighted_f1": [0.1, 0.9]}},
        "majority": {"dev": {"weighted_f1": 0.1}, "test": {"weighted_f1": 0.1}},
        "splits": {"dev": split_record(predictions(skill, 5000 + seed, conversations=5)), "test": split_record(made)},
        "cost": {
            "parameters": 1000,
            "seconds": 60.0,
            "seconds_per_epoch": 2.0,
            "peak_memory_mib": 500.0 + seed,
            "threads": 1,
        },
        "optimism": {
            "metric": "weighted_f1",
            "dev_selected": best,
            "last_epoch": round(best - 0.01, 6),
            "test_selected": round(best + 0.02, 6),
            "test_selected_epoch": 3,
        },
        **changes,
    }


LAWS = {
    "pattern:text": 0.2,
    "pattern:audio": 0.3,
    "pattern:text+audio": 1.0,
    "rate:0": 1.0,
    "rate:0.4": 0.6,
    "rate:0.5": 0.5,
}
"""Laws, and by how much the skill is multiplied."""


def robust_record(model: str = "concat", seed: int = 0, skill: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A record of a run on text and audio with scores under :data:`LAWS`; other arguments as :func:`record`."""
    made = record(model, seed, skill, "missing.grid=[rate:0,rate:0.5]", **changes)
    made["features"].append({**made["features"][0], "modality": "audio"})
    complete = record_sums(made, "test")[1]
    results = {}
    for number, (law, share) in enumerate(LAWS.items()):
        draws = 1000 * len(model) + 10 * number + seed
        results[law] = law_result(predictions(skill * share, draws), "weighted_f1", complete)
        results[law]["reachable"] = {"weighted_f1": round(0.5 + 0.4 * share, 6)}
    results["pattern:text"]["unseen"] = {"utterances": 3, "whole": 3, "of": 60}
    made["robustness"] = {"seed": 0, "laws": results}
    return made
