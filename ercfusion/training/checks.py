"""Checks of a run before its first epoch and of its outputs."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from ercfusion._core.errors import ConfigError, RunError, TrainingError
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing import check_laws, training_law
from ercfusion.config.sections import Missing, Objective, Training
from ercfusion.config.settings import Config, Model
from ercfusion.data.corpus import Protocol, Splits
from ercfusion.data.store import ConversationStore
from ercfusion.data.usable import check_splits
from ercfusion.features.loading import wanted_modalities
from ercfusion.metrics.registry import check_metric, scores
from ercfusion.models import architecture_limits
from ercfusion.tasks.heads import Head, check_class_weights, check_dimension_weights
from ercfusion.tasks.teaching import check_teaching

logger = logging.getLogger("ercfusion")

SPLITS = ("train", "dev", "test")
# Logs, predictions, figures and the record.
_SMALL_FILES = 16 * 2**20


def before_features(
    config: Config, needed: Sequence[str] = SPLITS, metric: str | None = None
) -> Callable[[Protocol, Splits], None]:
    """Checks without features, for :func:`ercfusion.features.loading.load_data`.

    Args:
        needed: Splits in use.
        metric: The score choosing the checkpoint; None for the configured or the protocol's one.
    """

    def check(protocol: Protocol, splits: Splits) -> None:
        check_passes(config.objective, config.training)
        check_metric(protocol.task, metric or config.training.metric or protocol.task.metric)
        check_class_weights(config.objective.class_weights, protocol.task)
        check_dimension_weights(config.objective.dimension_weights, protocol.tasks)
        check_lengths(config.model, splits, needed)
        if config.missing != Missing() or config.training.complete_pass:
            offered = list(dict.fromkeys([*protocol.modalities, *config.data.packs]))
            modalities = wanted_modalities(config.data.modalities, offered, protocol)
            check_laws(config.missing, modalities)
            check_holes(config, modalities)
        if config.task.export and protocol.view is not None:
            raise ConfigError(
                f"task.export=true: {protocol.id} has entities of dialogues, and a feature pack is for utterances. Set "
                "task.export=false, or choose another protocol."
            )
        if check_splits(protocol, splits, needed):
            logger.warning(
                "the test split has no labels for the task %r: the run will predict it, but record no test scores",
                protocol.task.name,
            )

    return check


def check_passes(objective: Objective, training: Training) -> None:
    """Raise :class:`ConfigError` for a pass on complete batches that cannot be, or a term without its teacher."""
    check_teaching(objective.weights, complete=training.complete_pass, teacher=training.teacher is not None)
    if training.complete_pass and training.accumulate_grad_batches > 1:
        raise ConfigError(
            f"training.complete_pass=true makes two optimiser steps per batch, so "
            f"training.accumulate_grad_batches={training.accumulate_grad_batches} does not apply. Set it to 1."
        )


def check_holes(config: Config, modalities: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if both passes of ``training.complete_pass`` are on complete batches."""
    if not config.training.complete_pass or config.training.modality_dropout:
        return
    law = training_law(config.missing)
    if not law.leaves_all(modalities):
        return
    if law.keeps_one and not law.hides_nothing:
        raise ConfigError(
            f"training.complete_pass=true: missing.train={law} hides nothing in a run with one modality, "
            f"{modalities[0]}. Add a modality, or set missing.train=rmm:0.5."
        )
    raise ConfigError(
        f"training.complete_pass=true: no modality is hidden in the second pass (missing.train={law}). Set "
        "missing.train=rate:0.5, or another law."
    )


def check_lengths(model: Model, splits: Splits, needed: Sequence[str] = SPLITS) -> None:
    """Raise :class:`ConfigError` for conversations too long for the architecture."""
    longest = architecture_limits(model.name, model.options).longest
    if longest is None:
        return
    too_long = [(split, item) for split in needed for item in splits.get(split, []) if len(item) > longest]
    if too_long:
        split, first = max(too_long, key=lambda pair: len(pair[1]))
        raise ConfigError(
            f"model={model.name}: these options take conversations of up to {longest} utterances; "
            f"{len(too_long)} are longer, the longest is {first.id!r} of the {split} split with "
            f"{len(first)}. Set other options, choose another model, or split the conversations."
        )


def check_selectable(dev: ConversationStore, head: Head, metric: str) -> None:
    """Raise :class:`ConfigError` unless ``metric`` is defined on dev for any answers of the head."""
    answers = constant_answers(dev, head.task)
    if head.rules.has_spread:
        answers = replace(answers, spread=np.ones_like(answers.output))
    if metric not in scores(answers):
        if metric in scores(replace(answers, spread=np.ones_like(answers.output))):
            raise ConfigError(
                f"training.metric={metric} needs predicted standard deviations. Set "
                "objective.regression_loss=gaussian, or choose another score."
            )
        raise ConfigError(
            f"training.metric={metric} is not defined on the dev split: none of its {dev.num_utterances} utterances "
            "counts for it. Choose another score, or another dev split."
        )


def check_thresholds(dev: ConversationStore) -> None:
    """Raise :class:`ConfigError` if a learned task has thresholds to choose on dev, which has no labels for it.

    A view without labels on dev keeps the threshold 0.5 (:func:`ercfusion.batch.views.with_thresholds`).
    """
    for task in dev.tasks:
        if task.rules.thresholds and not dev.targets[task.name].valid.any():
            raise ConfigError(
                f"task {task.name!r} ({task.kind}): decision thresholds are chosen on dev, and none of its "
                f"{dev.num_utterances} utterances is labelled for it. Label the dev split, remove the task from "
                "data.tasks, or set training.thresholds=half."
            )


def constant_answers(store: ConversationStore, task: TaskSpec) -> Predictions:
    """One prediction for all utterances: the middle of the range, or equal probabilities."""
    targets = store.targets[task.name]
    outputs = len(task.rules.output_columns(task))
    return Predictions(
        task=task,
        output=np.full((store.num_utterances, outputs), task.rules.constant_output(task)),
        value=targets.value.numpy(),
        valid=targets.valid.numpy(),
        lengths=tuple(store.lengths),
        speaker=store.speaker.numpy(),
        conversation_ids=tuple(conversation.id for conversation in store.conversations),
        turn_ids=tuple(turn.id for conversation in store.conversations for turn in conversation.turns),
    )


def check_disk(folder: Path, module: nn.Module, settings: Training) -> None:
    """Raise :class:`RunError` if the disk has clearly too little space for the run."""
    weights = sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))
    # A checkpoint holds the weights and Adam's two moments; old and new file exist together for a moment.
    needed = 2 * 3 * weights + 2 * weights + _SMALL_FILES
    if settings.keep_every_epoch:
        needed += settings.max_epochs * weights
    existing = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed - existing:
        option = ", with training.keep_every_epoch=true," if settings.keep_every_epoch else ""
        raise RunError(
            f"{folder}: the run{option} needs about {_mebibytes(needed - existing)} MiB on this disk, which has "
            f"{_mebibytes(free, up=False)} MiB free. Free some space, or set output=DIR to a folder on another disk."
        )


def _mebibytes(count: float, *, up: bool = True) -> str:
    return f"{(math.ceil if up else math.floor)(count / 2**20):,}"


def check_finite(predictions: Predictions, split: str) -> None:
    """Raise :class:`TrainingError` unless all outputs for a split are finite."""
    wrong = ~np.isfinite(predictions.output).all(axis=1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        where = f"{predictions.conversation_ids[predictions.conversation[row]]}/{predictions.turn_ids[row]}"
        raise TrainingError(
            f"{split} split: the outputs for {int(wrong.sum())} utterances of the {split} split are not finite (first: "
            f"{where}). Check the features of these utterances."
        )
