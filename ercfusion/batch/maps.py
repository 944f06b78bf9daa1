"""Maps between label schemas.

A map sends every label of one schema to a label of another, or to None if it has no counterpart. Probabilities of
labels with one image are summed, so mass is kept except that of labels without counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.labels import SCHEMAS, LabelSchema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelMap:
    """A map from every label of one schema to another.

    Args:
        source, target: Names of the schemas.
        mapping: Every label of ``source``, by its own name, to a label of ``target`` or None (no counterpart).
        note: Grounds of the map.

    Raises:
        ConfigError: a registered schema lacks a label of the map, or a label of ``source`` is missing.
    """

    source: str
    target: str
    mapping: Mapping[str, str | None]
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mapping", MappingProxyType(dict(self.mapping)))
        self.check(SCHEMAS.get(self.source), SCHEMAS.get(self.target))

    def __call__(self, label: str) -> str | None:
        """The target schema's name for ``label`` (or a synonym of it), or None.

        Raises:
            CorpusFormatError: ``label`` is not a label of the source.
        """
        return self.mapping[SCHEMAS[self.source].canonical(label) if self.source in SCHEMAS else label]

    def __reduce__(self) -> tuple[object, ...]:
        return (LabelMap, (self.source, self.target, dict(self.mapping), self.note))

    def check(self, source: LabelSchema | None, target: LabelSchema | None) -> None:
        """Raise :class:`ConfigError` if labels of the map are not those of the schemas; None skips a schema."""
        where = f"label map {self.source} -> {self.target}"
        if source is not None:
            for label in self.mapping:
                if label not in source.labels:
                    raise ConfigError(
                        f"{where}: {label!r} is not a label of {self.source}. {did_you_mean(label, source.labels)}"
                    )
            if missing := [label for label in source.labels if label not in self.mapping]:
                raise ConfigError(
                    f"{where}: nothing is given for {', '.join(missing)}. Give a label of {self.target} for each, "
                    "or None."
                )
        if target is not None:
            for image in self.mapping.values():
                if image is not None and image not in target.labels:
                    raise ConfigError(
                        f"{where}: {image!r} is not a label of {self.target}. {did_you_mean(image, target.labels)}"
                    )

    @property
    def lost(self) -> tuple[str, ...]:
        """Labels of the source without counterpart."""
        return tuple(label for label, image in self.mapping.items() if image is None)

    def matrix(self, source: LabelSchema, target: LabelSchema) -> NDArray[np.float64]:
        """(C, C') zeros and ones: row c has a 1 in the column of the image of label c, or none.

        Args:
            source, target: The schemas, in the order of the map.
        """
        import numpy as np

        self.check(source, target)
        matrix = np.zeros((len(source), len(target)))
        for label, image in self.mapping.items():
            if image is not None:
                matrix[source.index(label), target.index(image)] = 1.0
        return matrix


# Names of one emotion. Joy, anger, sadness, fear, surprise and disgust are the basic emotions of Ekman (1992, "An
# argument for basic emotions"), on which MELD, EmotionLines, DailyDialog, M3ED, CMU-MOSEI and SemEval-2025 are built.
# EmoryNLP's joyful, mad, sad and scared are primary emotions of Willcox's feeling wheel (1982); they count as the same
# emotions here (our reading). Excitement is joy as in the usual four-way IEMOCAP. Peaceful, powerful, calm, frustrated
# and bored have no counterpart.
_EMOTIONS: Mapping[str, tuple[str, ...]] = {
    "neutral": ("neutral",),
    "joy": ("joy", "joyful", "happy", "happiness", "excited"),
    "anger": ("anger", "angry", "mad"),
    "sadness": ("sadness", "sad"),
    "fear": ("fear", "scared", "fearful"),
    "surprise": ("surprise", "surprised"),
    "disgust": ("disgust",),
}
_EMOTION_OF = {name: emotion for emotion, names in _EMOTIONS.items() for name in names}


def emotion_of(label: str) -> str | None:
    """The emotion of a label's name, ``joy`` for ``happy``; None for other names."""
    return _EMOTION_OF.get(label)


_CATEGORICAL = (
    *("meld7", "emotionlines7", "dailydialog7", "emorynlp7", "m3ed7", "iemocap4", "iemocap6", "iemocap9"),
    *("mosei6", "semeval6", "emodb7", "ravdess8"),
)
_SENTIMENTS = ("meld3", "emorynlp3", "sentiment2")
# In MELD each of these emotions has one sentiment; surprise has either.
_SENTIMENT_OF = {
    "neutral": "neutral",
    "joy": "positive",
    "anger": "negative",
    "sadness": "negative",
    "fear": "negative",
    "disgust": "negative",
    "surprise": None,
}
_OTHER_SENTIMENTS = {"peaceful": "positive", "powerful": "positive", "frustrated": "negative"}


def _note(mapping: Mapping[str, str | None], grounds: str) -> str:
    renamed = [f"{one} = {other}" for one, other in mapping.items() if other not in (None, one)]
    lost = [label for label, image in mapping.items() if image is None]
    names = f" ({', '.join(renamed)})" if renamed else ""
    return f"{grounds}{names}" + (f"; without counterpart: {', '.join(lost)}" if lost else "")


def _same_emotions(source: LabelSchema, target: LabelSchema) -> LabelMap | None:
    """Labels of one emotion under two names; None if the target divides an emotion."""
    by_emotion = {_EMOTION_OF[label]: label for label in target.labels if label in _EMOTION_OF}
    if len(by_emotion) < sum(label in _EMOTION_OF for label in target.labels):
        return None
    mapping = {label: by_emotion.get(_EMOTION_OF.get(label, "")) for label in source.labels}
    return LabelMap(source.name, target.name, mapping, _note(mapping, "the same emotions"))


def _to_sentiment(source: LabelSchema, target: LabelSchema) -> LabelMap:
    mapping: dict[str, str | None] = {}
    for label in source.labels:
        sentiment = _OTHER_SENTIMENTS.get(label, _SENTIMENT_OF.get(_EMOTION_OF.get(label, "")))
        mapping[label] = sentiment if sentiment in target.labels else None
    lost = [label for label, image in mapping.items() if image is None]
    note = "the emotion's sentiment" + (f"; either, or none: {', '.join(lost)}" if lost else "")
    return LabelMap(source.name, target.name, mapping, note)


def _by_name(source: LabelSchema, target: LabelSchema) -> LabelMap:
    mapping = {label: target.find(label) for label in source.labels}
    return LabelMap(source.name, target.name, mapping, _note(mapping, "equal names"))


def _own() -> Iterator[LabelMap]:
    yield LabelMap(
        "iemocap6",
        "iemocap4",
        {
            "happy": "happy",
            "excited": "happy",
            "sad": "sad",
            "neutral": "neutral",
            "angry": "angry",
            "frustrated": None,
        },
        "the usual four-way set: excited counts as happy, frustrated is omitted",
    )
    for one in _CATEGORICAL:
        for other in _CATEGORICAL:
            if one != other and (one, other) != ("iemocap6", "iemocap4"):
                label_map = _same_emotions(SCHEMAS[one], SCHEMAS[other])
                if label_map is not None:
                    yield label_map
        for sentiments in _SENTIMENTS:
            yield _to_sentiment(SCHEMAS[one], SCHEMAS[sentiments])
    for one in _SENTIMENTS:
        for other in _SENTIMENTS:
            if one != other:
                yield _by_name(SCHEMAS[one], SCHEMAS[other])


MAPS: dict[tuple[str, str], LabelMap] = {}
"""The maps by names of source and target."""


def register_map(label_map: LabelMap) -> LabelMap:
    """Register a map of your own, in a module named by ``imports=``, and return it.

    Raises:
        ConfigError: another map of the same two schemas is registered, or both schemas are the same.
    """
    pair = (label_map.source, label_map.target)
    if pair[0] == pair[1] or MAPS.get(pair, label_map) != label_map:
        held = MAPS[pair].note if pair in MAPS else "every label is its own image"
        raise ConfigError(
            f"label map {pair[0]} -> {pair[1]}: there is one already ({held}). Use it, or name your schema otherwise."
        )
    MAPS[pair] = label_map
    return label_map


for _map in _own():
    register_map(_map)


def map_between(source: str | LabelSchema, target: str | LabelSchema) -> LabelMap:
    """The registered map between two schemas.

    For one schema it is the identity. Schemas without a map, if every label of the source has its name in the target
    (case aside), are mapped by name: so are those of your own tables.

    Args:
        source, target: Schemas, or names of registered ones.

    Raises:
        ConfigError: no map.
    """
    one, other = (_schema(schema) for schema in (source, target))
    if one == other:
        return LabelMap(one.name, other.name, {label: label for label in one.labels}, "the same labels")
    if (one.name, other.name) in MAPS:
        label_map = MAPS[one.name, other.name]
        label_map.check(one, other)
        return label_map
    if all(other.find(label) is not None for label in one.labels):
        return _by_name(one, other)
    known = [f"{pair[0]} -> {pair[1]}" for pair in MAPS if pair[0] == one.name or pair[1] == other.name]
    raise ConfigError(
        f"no label map from {one.name} to {other.name}. Known maps of one of them: {', '.join(known) or 'none'}. "
        "Register one in a module named by imports=: "
        f"ercfusion.batch.register_map(LabelMap({one.name!r}, {other.name!r}, {{{one.labels[0]!r}: ...}}))"
    )


def _schema(schema: str | LabelSchema) -> LabelSchema:
    if isinstance(schema, LabelSchema):
        return schema
    if schema not in SCHEMAS:
        raise ConfigError(f"no label schema {schema!r}. {did_you_mean(schema, SCHEMAS)}")
    return SCHEMAS[schema]
