"""Predictions of every kind of task, for tests of what is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec

EMOTION = TaskSpec("emotion", "single_label", get_schema("meld7"))
DISTRIBUTION = TaskSpec("emotion", "distribution", get_schema("meld7"))
LABELS = TaskSpec("emotions", "multi_label", LabelSchema("six", tuple("abcdef")))
LABEL_A = TaskSpec("x", "multi_label", LabelSchema("one", ("a",)))
INTENSITY = TaskSpec("felt", "intensity", LabelSchema("four", tuple("abcd")), low=1, high=3)
VAD = TaskSpec("vad", "regression", dimensions=("valence", "arousal", "dominance"), low=1, high=5)
SENTIMENT = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3)
SIMS = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-1, high=1)


def make(
    task: TaskSpec,
    output: Any,
    value: Any,
    valid: Any = None,
    lengths: Any = None,
    speaker: Any = None,
    spread: Any = None,
) -> Predictions:
    output = np.asarray(output, dtype=np.float64)
    count = len(output)
    lengths = tuple(lengths or (count,))
    return Predictions(
        task=task,
        output=output,
        value=np.asarray(value),
        valid=np.ones(count, dtype=bool) if valid is None else np.asarray(valid),
        lengths=lengths,
        speaker=np.zeros(count, dtype=np.int64) if speaker is None else np.asarray(speaker),
        conversation_ids=tuple(f"c{number}" for number in range(len(lengths))),
        turn_ids=tuple(f"t{number}" for number in range(count)),
        spread=spread,
    )


def random_predictions(task: TaskSpec, seed: int, lengths: tuple[int, ...] = (7, 1, 30, 12), **kwargs: Any) -> Any:
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    shape = (count, task.size)
    valid = rng.random(count) < 0.8
    valid[0] = True
    value: Any
    if task.kind == "single_label":
        output = rng.dirichlet(np.full(task.size, 0.3), size=count)
        value = rng.choice(task.size, size=count, p=rng.dirichlet(np.ones(task.size)))
    elif task.kind == "distribution":
        output = rng.dirichlet(np.full(task.size, 0.3), size=count)
        value = (rng.multinomial(3, np.full(task.size, 1 / task.size), size=count) / 3).astype(np.float32)
    elif task.kind == "multi_label":
        output, value = rng.random(shape), (rng.random(shape) < 0.3).astype(np.float32)
    elif task.kind == "intensity":
        value = (rng.integers(1, 4, shape) * (rng.random(shape) < 0.4)).astype(np.float32)
        output = np.concatenate([rng.random(shape), np.clip(value + rng.normal(size=shape), 1, 3)], axis=1)
    else:
        value = rng.uniform(task.low, task.high, shape).astype(np.float32)
        output = value + rng.normal(size=shape)
    speaker = rng.integers(0, 3, count)
    if task.kind == "regression":
        kwargs = {"spread": rng.uniform(0.5, 1.5, shape), **kwargs}
    return make(task, output, value, valid, lengths, speaker=speaker, **kwargs)
