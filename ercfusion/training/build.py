"""Untrained recognizers of a configuration."""

from __future__ import annotations

import torch

from ercfusion._core.errors import ConfigError
from ercfusion.config.settings import Config, Model
from ercfusion.data.sampler import mix_seed
from ercfusion.data.store import ConversationStore
from ercfusion.features.label_texts import encode_labels, label_texts
from ercfusion.models import architecture_limits
from ercfusion.tasks.label_scores import set_label_vectors
from ercfusion.tasks.recognizer import Recognizer


def build_recognizer(config: Config, train_store: ConversationStore) -> Recognizer:
    """An untrained recognizer; the seed determines its weights."""
    recognizer = untrained(config, train_store)
    recognizer.prepare(train_store, standardize=config.training.standardize)
    return recognizer


def untrained(config: Config, train_store: ConversationStore) -> Recognizer:
    """As :func:`build_recognizer`, without the statistics of the training split."""
    objective, vectors = config.objective, {}
    if objective.label_texts is not None:
        for task in train_store.tasks:
            if task.schema is not None:
                texts = label_texts(task.schema, objective.label_texts)
                vectors[task.name] = encode_labels(texts, config.data.encoder)
    torch.manual_seed(mix_seed(config.root.seed, 0))
    dimension = next((matrix.shape[1] for matrix in vectors.values()), None)
    if objective.label_texts is not None and dimension is None:
        raise ConfigError("objective.label_texts: no task of the run has labels. Set it to null.")
    recognizer = Recognizer(
        config.model.name,
        train_store.inputs,
        train_store.tasks[0],
        config.model.options,
        others=train_store.tasks[1:],
        unimodal=objective.weights.get("unimodal", 0.0) > 0,
        label_smoothing=objective.label_smoothing,
        regression_loss=objective.regression_loss,
        label_dimension=dimension,
        probe=objective.probe,
        policy=config.missing.policy,
    )
    if vectors:
        set_label_vectors(recognizer, vectors)
    return recognizer


def batch_dependence(model: Model) -> str:
    """Why scores depend on batches; empty if they do not."""
    return architecture_limits(model.name, model.options).batch_dependence
