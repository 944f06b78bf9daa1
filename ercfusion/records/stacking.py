"""Stacked late fusion of regressions: the predictions of finished runs become inputs of another regressor.

In published multistage fusion of AVEC-style ratings (valence, arousal, liking), the regressor is a support vector
machine. Only an abstract was available: this is our reading, with ridge regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import RunError
from ercfusion._core.files import StrPath, expanded
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.records.missing import scored_holes
from ercfusion.records.predictions import prediction_file, read_predictions
from ercfusion.records.record import read_record, task_record

PENALTIES = tuple(float(10.0**power) for power in range(-3, 5))
"""Candidates for the ridge penalty, for inputs with deviation 1."""

Splits = Mapping[str, Predictions]
Floats = NDArray[np.float64]
Fit = Callable[..., Floats]


def stack_runs(
    stages: Sequence[Sequence[StrPath]],
    task: str | None = None,
    *,
    folds: int = 5,
    regressor: Callable[[], Any] | None = None,
) -> dict[str, Predictions]:
    """Stack the predictions of finished runs on the same protocol; see :func:`stack`.

    Args:
        stages: Run folders per stage, such as ``[[audio, visual], [early_fusion]]``.
        task: A regression task of all runs; None for their first one.
        folds: Parts of the dev conversations.
        regressor: See :func:`stack`.

    Raises:
        RunError: a folder without a finished run, or runs that do not fit together: also runs that were scored with
            other missing modalities.

    Example:
        >>> fused = stack_runs([["runs/text", "runs/audio"], ["runs/all"]])  # doctest: +SKIP
        >>> ercfusion.metrics.registry.scores(fused["test"])  # doctest: +SKIP
    """
    _check_same_holes([expanded(run) for runs in stages for run in runs])
    return stack([[_read(expanded(run), task) for run in runs] for runs in stages], folds=folds, regressor=regressor)


def _check_same_holes(folders: Sequence[Path]) -> None:
    holes = {folder: scored_holes(read_record(folder)) for folder in folders}
    for folder, words in holes.items():
        if words != holes[folders[0]]:
            raise RunError(
                f"{folders[0]} was scored with {holes[folders[0]]}, and {folder} with {words}: these are "
                "different dev or test data. Give runs with the same missing.dev, missing.eval and missing.seed."
            )


def _read(folder: Path, task: str | None) -> dict[str, Predictions]:
    record = task_record(read_record(folder), task)
    spec = TaskSpec.from_dict(record["task"])
    return read_predictions(folder / prediction_file(read_record(folder), spec.name), spec)


def stack(
    stages: Sequence[Sequence[Splits]], *, folds: int = 5, regressor: Callable[[], Any] | None = None
) -> dict[str, Predictions]:
    r"""Ridge regression on predictions, in stages.

    The first stage reads all numbers predicted by its runs; each later stage reads the output of the stage before and
    the predictions of its own runs. Per dimension,

    .. math:: \min_{w, b} \sum_i (y_i - b - w^\top z_i)^2 + \lambda \lVert w \rVert^2

    with inputs z standardised over dev. Everything is fitted on the labelled utterances of **dev**, because runs fit
    their training split too well. Cross-validation over conversations chooses the penalty from :data:`PENALTIES`. The
    result for ``dev``, also as the input of the next stage, is predicted by the other folds; the one for ``test`` by a
    fit on all of dev.

    Args:
        stages: Per stage the predictions of its runs, each with ``dev`` and ``test``.
        folds: Parts of the dev conversations, at least 2; fewer if there are fewer conversations.
        regressor: Makes an object with ``fit(z, y)`` and ``predict(z)`` for each dimension, such as
            ``sklearn.svm.SVR``; None for ridge regression.

    Returns:
        ``dev`` and ``test``, clamped to the task's range.

    Raises:
        RunError: no runs, not a regression, other utterances, or fewer than two conversations with labels.
    """
    runs = [run for group in stages for run in group]
    if not runs or not all(stages):
        raise RunError("stacking needs at least one run per stage. Give the folders of finished runs.")
    first = runs[0]
    _check(runs)
    task, dev = first["dev"].task, first["dev"]
    valid = np.asarray(dev.valid)
    conversation = np.repeat(np.arange(len(dev.lengths)), dev.lengths)
    labelled = np.unique(conversation[valid])
    if len(labelled) < 2 or folds < 2:
        raise RunError(
            f"dev has {len(labelled)} conversations with labels, and folds={folds}; stacking needs two of each. "
            "Choose another protocol, or raise folds."
        )
    # Labelled conversations take turns, so that every fold has labels.
    part = np.zeros(len(dev.lengths), dtype=np.int64)
    part[labelled] = np.arange(len(labelled)) % min(folds, len(labelled))
    fold = part[conversation]
    target = np.asarray(dev.value, dtype=np.float64)
    fits: list[Fit] = [partial(ridge, penalty=penalty) for penalty in PENALTIES]
    if regressor is not None:
        fits = [partial(_own, regressor)]
    outputs: dict[str, Floats] = {}
    for group in stages:
        inputs = {split: _inputs([run[split].output for run in group], outputs.get(split)) for split in ("dev", "test")}
        outputs = _fused(inputs, target, valid, fold, fits)
    return {
        split: replace(first[split], output=np.clip(output, task.low, task.high), spread=None)
        for split, output in outputs.items()
    }


def _check(runs: Sequence[Splits]) -> None:
    first = runs[0]
    task = first["dev"].task
    if task.schema is not None:
        raise RunError(f"the task {task.name!r} is {task.kind}; stacking is for regressions. Choose another task.")
    for run in runs[1:]:
        for split in ("dev", "test"):
            one, other = first[split], run[split]
            if (one.task.name, one.task.output_names) != (other.task.name, other.task.output_names):
                raise RunError(
                    f"the runs predict {one.task.name!r} and {other.task.name!r}, or other dimensions. Choose runs of "
                    "one task."
                )
            if (one.conversation_ids, one.turn_ids) != (other.conversation_ids, other.turn_ids):
                raise RunError(f"the runs have other utterances in {split}. Choose runs of one protocol.")


def _inputs(outputs: Sequence[NDArray[np.float64]], before: Floats | None) -> Floats:
    return np.concatenate([*([] if before is None else [before]), *outputs], axis=1)


def _fused(
    inputs: Mapping[str, Floats],
    target: Floats,
    valid: NDArray[np.bool_],
    fold: NDArray[np.int64],
    fits: Sequence[Fit],
) -> dict[str, Floats]:
    """Outputs of one stage for both splits."""
    x, known = inputs["dev"], valid
    result = {split: np.empty((len(part), target.shape[1])) for split, part in inputs.items()}
    for k in range(target.shape[1]):
        y = target[:, k]
        candidates = []
        for place, fit in enumerate(fits):
            outside = np.empty(len(x))
            for number in np.unique(fold):
                inside = fold == number
                outside[inside] = fit(x[known & ~inside], y[known & ~inside], new=x[inside])
            candidates.append((float(np.mean((outside[known] - y[known]) ** 2)), place, outside))
        _, best, result["dev"][:, k] = min(candidates, key=lambda one: one[0])
        result["test"][:, k] = fits[best](x[known], y[known], new=inputs["test"])
    return result


def ridge(x: Floats, y: Floats, penalty: float, new: Floats) -> Floats:
    """Predictions (M) of a ridge regression with an intercept, on inputs standardised over ``x``.

    Args:
        x: (N, D) inputs.
        y: (N) targets.
        penalty: Of the squared weights of the standardised inputs.
        new: (M, D) inputs to predict for.
    """
    z, asked = _standardised(x, new)
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    predicted: Floats = asked @ weights + y.mean()
    return predicted


def _own(regressor: Callable[[], Any], x: Floats, y: Floats, new: Floats) -> Floats:
    z, asked = _standardised(x, new)
    return np.asarray(regressor().fit(z, y).predict(asked), dtype=np.float64)


def _standardised(x: Floats, new: Floats) -> tuple[Floats, Floats]:
    mean, deviation = x.mean(0), x.std(0)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    return (x - mean) / scale, (new - mean) / scale
