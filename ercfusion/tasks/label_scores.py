"""Label vectors of a recognizer, and scores of labels that it did not learn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.batch.split import Split
from ercfusion.tasks.heads import Head
from ercfusion.tasks.label_similarity import LabelSimilarity
from ercfusion.tasks.recognizer import Recognizer


def _similarities(recognizer: Recognizer) -> dict[str, list[LabelSimilarity]]:
    """Classifiers by similarity, by task; that of all modalities first."""
    layers = {}
    for task in recognizer.tasks:
        heads = recognizer.heads(task.name)
        every = [head.linear for head in (heads.head, *heads.unimodal_heads.values()) if isinstance(head, Head)]
        if own := [layer for layer in every if isinstance(layer, LabelSimilarity)]:
            layers[task.name] = own
    return layers


def set_label_vectors(recognizer: Recognizer, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Store label vectors in all classifiers by similarity; they are saved with the model.

    Args:
        recognizer: With ``label_dimension``.
        vectors: (C, D) by task.

    Raises:
        ConfigError: no task has such a classifier.
    """
    layers = _similarities(recognizer)
    if not layers:
        raise ConfigError(
            "objective.label_texts: no task of the run has a classifier with one logit per label. Set it to null, or "
            "learn another task."
        )
    for task, own in layers.items():
        for layer in own:
            layer.vectors.copy_(torch.from_numpy(vectors[task]))


@torch.no_grad()
def score_labels(
    recognizer: Recognizer, store: Split, vectors: NDArray[np.float32], task: str | None = None
) -> NDArray[np.float64]:
    """(N, L) probabilities of L labels, also of labels that were not learned, for the utterances of a split.

    Args:
        recognizer: Trained with ``objective.label_texts``.
        store: The split.
        vectors: (L, D) vectors of the labels' texts, from the encoder of the run.
        task: A task with labels; None for the first.

    Raises:
        ConfigError: the task has no classifier by similarity, or D differs.
    """
    name = task or recognizer.task.name
    layers = _similarities(recognizer).get(name)
    if layers is None:
        raise ConfigError(f"the classifier of {name!r} has no label texts. Train with objective.label_texts=names.")
    width = layers[0].vectors.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ConfigError(f"label vectors of shape {vectors.shape}, not (L, {width}). Use the encoder of the run.")
    head = recognizer.heads(name).head
    assert isinstance(head, Head)
    device, was_training = next(recognizer.parameters()).device, recognizer.training
    given, parts = torch.from_numpy(vectors).to(device), []
    recognizer.eval()
    for batch in store.batches(64):
        hidden = recognizer(batch.to(device)).encoded.hidden
        logits = layers[0].logits(hidden, given).float()
        parts.append(head.rules.outputs(logits, head.task).double().cpu())
    recognizer.train(was_training)
    return np.asarray(torch.cat(parts).numpy())
