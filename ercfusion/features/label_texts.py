"""Texts of labels and their vectors, for classifiers by similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion._core.schemas.reading import read_yaml
from ercfusion.batch.labels import LabelSchema
from ercfusion.features.encoders import load_encoder

NAMES = "names"
DEFINED = "definitions"
_KEY = "objective.label_texts"

_DEFINITIONS: Mapping[tuple[str, ...], str] = {
    ("neutral",): "no particular feeling, calm and factual",
    ("joy", "joyful", "happy", "happiness"): "joy: feeling good because something pleasant happens",
    ("excited",): "excitement: lively joy and anticipation of something",
    ("anger", "angry", "mad"): "anger: being upset with someone who did something wrong",
    ("sadness", "sad"): "sadness: feeling low because of a loss or disappointment",
    ("fear", "scared", "fearful"): "fear: feeling threatened by a danger",
    ("surprise", "surprised"): "surprise: reacting to something unexpected",
    ("disgust",): "disgust: strong dislike of something repulsive",
    ("frustrated",): "frustration: being annoyed because one cannot get what one wants",
    ("peaceful",): "peacefulness: feeling calm, content and safe",
    ("powerful",): "powerfulness: feeling confident, proud and respected",
    ("calm",): "calmness: being relaxed, without tension",
    ("boredom",): "boredom: having no interest in what happens",
    ("positive",): "a positive feeling about what is said",
    ("negative",): "a negative feeling about what is said",
}
DEFINITIONS: Mapping[str, str] = {name: text for names, text in _DEFINITIONS.items() for name in names}
"""Our definitions of emotion labels, by label."""


def label_texts(schema: LabelSchema, source: str) -> list[str]:
    """The texts of the labels of a schema, in its order.

    Args:
        schema: The labels.
        source: ``names``, ``definitions`` (:data:`DEFINITIONS`), or a YAML or JSON file with a text per label.

    Raises:
        ConfigError: the file is not such a mapping, or a label has no text.
    """
    if source == NAMES:
        return list(schema.labels)
    texts: Mapping[Any, Any] = DEFINITIONS
    if source != DEFINED:
        path = expanded(source)
        if not path.is_file():
            raise ConfigError(
                f"{_KEY}={source}: there is no such file. Use {NAMES}, {DEFINED}, or a YAML file with a text per label."
            )
        content = read_yaml(path, error=ConfigError, advice="Write one text per label: `joy: feeling good`.")
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}: no mapping from labels to texts. Write one text per label: `joy: feeling good`."
            )
        texts = content
    chosen = []
    for label in schema.labels:
        text = texts.get(label)
        if not isinstance(text, str) or not text.strip():
            where = f"a file: {_KEY}=FILE" if source == DEFINED else source
            known = [str(name) for name in texts]
            raise ConfigError(
                f"{_KEY}={source}: the label {label!r} of {schema.name} has no text. Give one in {where}. "
                f"{did_you_mean(label, known) if source != DEFINED else ''}".rstrip()
            )
        chosen.append(text.strip())
    return chosen


def encode_labels(texts: Sequence[str], encoder: str) -> NDArray[np.float32]:
    """(L, D) vectors of L texts.

    Args:
        texts: One per label.
        encoder: As in ``data.encoder``.

    Raises:
        ConfigError: two texts are equal, or a vector is 0.
    """
    repeated = [text for place, text in enumerate(texts) if text in texts[:place]]
    if repeated:
        raise ConfigError(f"{_KEY}: two labels have the text {repeated[0]!r}. Give each label its own text.")
    loaded = load_encoder(encoder, None)
    vectors = loaded.model.encode(list(texts), batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)
    vectors = np.asarray(vectors, dtype=np.float32)
    for text, norm in zip(texts, np.linalg.norm(vectors, axis=1), strict=True):
        if not (np.isfinite(norm) and norm > 0):
            raise ConfigError(f"{_KEY}: the encoder {encoder} gives no direction for {text!r}. Use another text.")
    return vectors
