"""Late fusion of finished runs: their predicted numbers become the inputs of a regressor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, RunError, require_extra
from ercfusion._core.files import expanded
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.data.permute import seeded_permutation
from ercfusion.metrics.registry import scores
from ercfusion.records.predictions import prediction_file, read_predictions
from ercfusion.records.record import read_record, task_record

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stacked:
    """Result of :func:`stack`.

    Args:
        predictions: ``dev``, out of fold, and ``test``.
        protocol: Protocol of the runs.
        runs: Their folders.
    """

    predictions: Mapping[str, Predictions]
    protocol: str
    runs: tuple[str, ...]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Scores of dev and test by name. Those of dev are out of fold."""
        return {split: scores(part) for split, part in self.predictions.items() if part.valid.any()}


def stack(
    runs: Sequence[str | os.PathLike[str]],
    *,
    task: str | None = None,
    stages: int = 1,
    folds: int = 5,
    seed: int = 0,
    regressor: Callable[[], Any] | None = None,
) -> Stacked:
    """Stacked late fusion of regressions (multistage fusion on AVEC 2019; our reading, the paper has more settings).

    Each dimension has its own regressor, whose inputs are the predicted numbers of all runs and dimensions,
    standardised. It learns on the dev split, which the runs did not learn, and predicts test; test targets are never
    used. Predictions for dev are out of fold by conversation. A further stage has these predictions as additional
    inputs.

    Two sources of optimism on dev, not on test: the runs chose their epochs there, and further stages learn from
    predictions of regressors that knew the other folds. Compare runs and stacks on test.

    Args:
        runs: Folders of finished runs with one protocol: of single modalities, or of several.
        task: A regression of the runs; None for the first task of the first run.
        stages: Number of regressors in a row, 1 to 5.
        folds: Parts of the dev conversations, at least 2.
        seed: Of the parts.
        regressor: Makes an object with ``fit(x, y)`` and ``predict(x)``; None for ``sklearn.svm.SVR()``.

    Raises:
        ConfigError: No run, a task without numbers, too few dev conversations, or a number out of range.
        RunError: A folder is not a finished run, or the runs have other protocols, utterances or targets.
        MissingExtraError: The default regressor without scikit-learn.
    """
    if not runs:
        raise ConfigError("runs is empty. Give the folders of finished runs.")
    if not (1 <= stages <= 5 and folds >= 2):
        raise ConfigError(f"stages={stages} must be from 1 to 5 and folds={folds} at least 2. Correct them.")
    if regressor is None:
        require_extra("sklearn", "stack", "stacking without an own regressor")
        from sklearn.svm import SVR

        regressor = SVR
    folders = [str(expanded(run)) for run in runs]
    protocol, parts = _read(folders, task)
    dev, test = (parts[0][split] for split in ("dev", "test"))
    fold = _folds(dev, folds, seed)
    inputs = {split: np.concatenate([part[split].output for part in parts], axis=1) for split in ("dev", "test")}
    outputs: dict[str, Floats] = {}
    known = np.asarray(dev.valid, dtype=bool)
    for _ in range(stages):
        outputs = {split: np.zeros((len(part), dev.task.size)) for split, part in (("dev", dev), ("test", test))}
        for k in range(dev.task.size):
            target = dev.value[:, k].astype(np.float64)
            for number in range(folds):
                held = fold == number
                outputs["dev"][held, k] = _fitted(regressor, inputs["dev"], target, known & ~held, inputs["dev"][held])
            outputs["test"][:, k] = _fitted(regressor, inputs["dev"], target, known, inputs["test"])
        inputs = {split: np.concatenate([inputs[split], outputs[split]], axis=1) for split in inputs}
    low, high = dev.task.low, dev.task.high
    stacked = {
        split: replace(part, output=np.clip(outputs[split], low, high), spread=None)
        for split, part in (("dev", dev), ("test", test))
    }
    return Stacked(stacked, protocol, tuple(folders))


def _read(folders: Sequence[str], task: str | None) -> tuple[str, list[dict[str, Predictions]]]:
    """The runs' protocol and predictions of one task, which must be of the same utterances."""
    protocol = ""
    parts: list[dict[str, Predictions]] = []
    for folder in folders:
        record = read_record(folder)
        name = task or record["task"]["name"]
        task = name
        own = task_record(record, name)
        spec = TaskSpec.from_dict(own["task"])
        if spec.schema is not None:
            raise ConfigError(f"{folder}: the task {name!r} is {spec.kind}, without numbers. Choose a regression.")
        if parts and own["protocol"] != protocol:
            raise RunError(
                f"{folder} is on {own['protocol']}, but {folders[0]} is on {protocol}. Give runs with one protocol."
            )
        protocol = own["protocol"]
        parts.append(read_predictions(expanded(folder) / prediction_file(record, name), spec))
        for split in ("dev", "test"):
            one, other = parts[0][split], parts[-1][split]
            same = (one.conversation_ids, one.turn_ids) == (other.conversation_ids, other.turn_ids)
            if not same or not np.array_equal(one.value[one.valid], other.value[other.valid]):
                raise RunError(
                    f"{folder} has other utterances or targets in {split} than {folders[0]}. Give runs on the same "
                    "data."
                )
    return protocol, parts


def _folds(dev: Predictions, folds: int, seed: int) -> NDArray[np.int64]:
    """(N) fold of each dev utterance; a conversation is in one."""
    if len(dev.lengths) < folds:
        raise ConfigError(
            f"dev has {len(dev.lengths)} conversations for {folds} folds. Set folds to at most {len(dev.lengths)}."
        )
    order = {name: place for place, name in enumerate(seeded_permutation(dev.conversation_ids, seed))}
    own = np.array([order[name] % folds for name in dev.conversation_ids])
    return own[dev.conversation]


def _fitted(
    maker: Callable[[], Any], inputs: Floats, target: Floats, known: NDArray[np.bool_], asked: Floats
) -> Floats:
    """Predictions for ``asked`` of a regressor that learned the ``known`` rows; standardised by these rows."""
    if known.sum() < 2:
        raise ConfigError("fewer than two labelled dev utterances are left for a regressor. Choose fewer folds.")
    mean, deviation = inputs[known].mean(axis=0), inputs[known].std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    made = maker().fit((inputs[known] - mean) / deviation, target[known])
    return np.asarray(made.predict((asked - mean) / deviation), dtype=np.float64)
