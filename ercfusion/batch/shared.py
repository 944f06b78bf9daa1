"""The labels that two schemas share, and predictions in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.maps import LabelMap, map_between
from ercfusion.batch.predictions import Predictions

Unmapped = Literal["renormalize", "wrong"]
"""What becomes of the probability of labels without counterpart; see :func:`shared_labels`."""
UNMAPPED = "unmapped"
"""Name of the label that collects it with ``wrong``."""


@dataclass(frozen=True, eq=False)
class SharedLabels:
    """The K labels in which predictions of one schema are scored against targets of another.

    Args:
        label_map: The map that is used, in either direction.
        schema: The labels.
        outputs: (C, K) from the labels of the predictions to ``schema``.
        targets: (C', K) from the labels of the targets to ``schema``. A row of zeros has no counterpart.
    """

    label_map: LabelMap
    schema: LabelSchema
    outputs: NDArray[np.float64]
    targets: NDArray[np.float64]

    def of(self, predictions: Predictions, targets: tuple[NDArray[Any], NDArray[Any]] | None = None) -> Predictions:
        """Predictions and targets in the shared labels.

        Args:
            predictions: Over the labels of the predictions.
            targets: Encoded targets over the other schema, and (N) bool, True if there is one. None takes those of
                ``predictions``, over its labels.

        Returns:
            Utterances whose target has no counterpart are not ``valid``. A threshold is that of the only label behind
            a shared one, else 0.5. Only own targets keep their votes.

        Raises:
            ConfigError: the kind of task has no labels.
        """
        task = replace(predictions.task, schema=self.schema)
        rules = task.rules
        if targets is None:
            matrix = self.outputs.copy()
            if UNMAPPED in self.schema:  # as in the other corpus, no target is this label
                matrix[:, self.schema.index(UNMAPPED)] = 0
            value, valid = rules.merge_targets(predictions.value, predictions.valid, matrix)
            votes = None if predictions.votes is None else predictions.votes @ matrix
        else:
            votes = None
            value, valid = rules.merge_targets(*targets, self.targets)
        thresholds = None
        if predictions.thresholds is not None:
            single = (self.outputs > 0).sum(axis=0) == 1
            thresholds = np.where(single, predictions.thresholds @ self.outputs, 0.5)
        output = rules.merge_outputs(predictions.output, self.outputs)
        return replace(
            predictions, task=task, output=output, value=value, valid=valid, thresholds=thresholds, votes=votes
        )


def shared_labels(source: LabelSchema, target: LabelSchema, unmapped: Unmapped = "renormalize") -> SharedLabels:
    """The labels in which predictions over ``source`` are scored against targets over ``target``.

    The map from source to target is used, and the shared labels are those of ``target`` that it reaches. Without one
    the map from target to source is used: the targets are mapped, and the shared labels are those of ``source`` that
    it reaches.

    Args:
        source: Labels of the predictions.
        target: Labels of the targets.
        unmapped: What becomes of the probability of predicted labels without counterpart. ``renormalize``: the others
            share it in proportion, so the choice is among the shared labels. ``wrong``: it stays, as the label
            ``unmapped``, which is never right.

    Raises:
        ConfigError: no map in either direction, or no shared label.
    """
    try:
        label_map = map_between(source, target)
        outputs, targets, schema = label_map.matrix(source, target), np.eye(len(target)), target
    except ConfigError:
        try:
            label_map = map_between(target, source)
        except ConfigError:
            label_map = map_between(source, target)  # raises again, about the wanted direction
        outputs, targets, schema = np.eye(len(source)), label_map.matrix(target, source), source
    kept = (outputs.sum(axis=0) > 0) & (targets.sum(axis=0) > 0)
    if not kept.any():
        raise ConfigError(
            f"label map {label_map.source} -> {label_map.target}: no label has a counterpart. Use another task or map."
        )
    outputs, targets = outputs[:, kept], targets[:, kept]
    labels = tuple(label for label, there in zip(schema.labels, kept, strict=True) if there)
    lost = outputs.sum(axis=1) == 0
    if unmapped == "wrong" and lost.any():
        if UNMAPPED in labels:
            raise ConfigError(f"the labels {schema.name} have the name {UNMAPPED!r}. Use unmapped=renormalize.")
        outputs = np.column_stack([outputs, lost.astype(float)])
        targets = np.column_stack([targets, np.zeros(len(targets))])
        labels += (UNMAPPED,)
    if labels != schema.labels:
        neutral = schema.neutral if schema.neutral in labels else None
        schema = LabelSchema(f"{label_map.source} -> {label_map.target}", labels, neutral=neutral)
    return SharedLabels(label_map, schema, outputs, targets)
