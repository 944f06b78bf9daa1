"""Label schemas, the only place that defines the order of labels.

Labels are stored and passed by name because code bases of the field disagree on their order. Get an index from a
:class:`LabelSchema` and keep it local.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ercfusion._core.errors import ConfigError, CorpusFormatError, did_you_mean


def label_key(text: str) -> str:
    """The common form of all spellings of a label: composed Unicode (NFC), small letters, single blanks."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", text).split()).casefold())


def similar_names(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names with one :func:`label_key`, or None."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(label_key(name), name)
        if other != name:
            return other, name
    return None


def shown_pair(first: str, second: str) -> str:
    """Two similar names, with their Unicode forms if these look alike."""
    if unicodedata.normalize("NFC", first) != unicodedata.normalize("NFC", second):
        return f"{first!r} and {second!r}"
    forms = ("composed" if unicodedata.is_normalized("NFC", name) else "decomposed" for name in (first, second))
    return " and ".join(f"{name!r} ({form} Unicode)" for name, form in zip((first, second), forms, strict=True))


@dataclass(frozen=True)
class LabelSchema:
    """An ordered set of label names.

    Args:
        name: Identifier, unique in :data:`SCHEMAS`.
        labels: The names; their positions are the class indices.
        synonyms: Other spellings, each mapped to one of ``labels``.
        neutral: The label for "no emotion", if there is one.
    """

    name: str
    labels: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    neutral: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"schema {self.name!r} lists a label twice: {self.labels}")
        if pair := similar_names(self.labels):
            raise ValueError(
                f"schema {self.name!r}: the labels {shown_pair(*pair)} differ only in case, blanks or Unicode form. "
                "Rename or remove one"
            )
        for spelling, label in self.synonyms.items():
            if label not in self.labels:
                raise ValueError(
                    f"schema {self.name!r}: synonym {spelling!r} points to {label!r}, which is not a label"
                )
        object.__setattr__(self, "synonyms", MappingProxyType(dict(self.synonyms)))
        lookup = {label: position for position, label in enumerate(self.labels)}
        lookup.update({spelling: lookup[label] for spelling, label in self.synonyms.items()})
        object.__setattr__(self, "_index", lookup)

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return label in self._index  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[object, ...]:
        return (LabelSchema, (self.name, self.labels, dict(self.synonyms), self.neutral))

    def find(self, text: str) -> str | None:
        """The label with the spelling ``text``, or None.

        Blanks around it, case and Unicode form are ignored.
        """
        if text in self:
            return self.canonical(text)
        wanted = label_key(text)
        matches = {self.canonical(name) for name in (*self.labels, *self.synonyms) if label_key(name) == wanted}
        return matches.pop() if len(matches) == 1 else None

    def index(self, label: str) -> int:
        """Class index of a label or synonym.

        Raises:
            CorpusFormatError: the schema does not have the label.
        """
        position = self._index.get(label)  # type: ignore[attr-defined]
        if position is None:
            raise CorpusFormatError(f"{label!r} is not a label of {self.name}. {did_you_mean(label, self.labels)}")
        return int(position)

    def canonical(self, label: str) -> str:
        """The schema's own spelling of ``label``."""
        return self.labels[self.index(label)]


def _schemas(*schemas: LabelSchema) -> dict[str, LabelSchema]:
    return {schema.name: schema for schema in schemas}


SCHEMAS: dict[str, LabelSchema] = _schemas(
    LabelSchema("meld7", ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"), neutral="neutral"),
    LabelSchema("meld3", ("neutral", "positive", "negative"), neutral="neutral"),
    LabelSchema(
        "emotionlines7", ("neutral", "joy", "sadness", "fear", "anger", "surprise", "disgust"), neutral="neutral"
    ),
    LabelSchema("emorynlp7", ("joyful", "mad", "neutral", "peaceful", "powerful", "sad", "scared"), neutral="neutral"),
    LabelSchema("emorynlp3", ("neutral", "positive", "negative"), neutral="neutral"),
    LabelSchema(
        "iemocap6",
        ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
        {"hap": "happy", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"},
        neutral="neutral",
    ),
    LabelSchema("iemocap4", ("happy", "sad", "neutral", "angry"), neutral="neutral"),
    # All choices of IEMOCAP's raters except "other".
    LabelSchema(
        "iemocap9",
        ("neutral", "happy", "sad", "angry", "excited", "frustrated", "fear", "surprise", "disgust"),
        {
            "neu": "neutral",
            "hap": "happy",
            "ang": "angry",
            "exc": "excited",
            "fru": "frustrated",
            "fea": "fear",
            "sur": "surprise",
            "dis": "disgust",
        },
        neutral="neutral",
    ),
    LabelSchema("mosei6", ("happy", "sad", "anger", "surprise", "disgust", "fear")),
    LabelSchema("m3ed7", ("happy", "neutral", "sad", "disgust", "anger", "fear", "surprise"), neutral="neutral"),
    LabelSchema(
        "dailydialog7",
        ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise"),
        {"no emotion": "neutral"},
        neutral="neutral",
    ),
    LabelSchema(
        "emodb7", ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral"), neutral="neutral"
    ),
    LabelSchema(
        "ravdess8",
        ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
        neutral="neutral",
    ),
    LabelSchema("semeval6", ("anger", "disgust", "fear", "joy", "sadness", "surprise")),
    LabelSchema("sentiment2", ("negative", "positive")),
    LabelSchema("demo6", ("neutral", "joy", "sadness", "anger", "surprise", "fear"), neutral="neutral"),
)

# Directions of emotions in the plane of valence (right) and arousal (up), in units of pi / 20 (9 degrees) from positive
# valence: those of the released code of Li et al. (ECAI 2025). Boredom, missing there, is near its place in Russell
# (1980, "A circumplex model of affect"), 242 degrees. EmoryNLP's peaceful and powerful and RAVDESS's calm have no
# published direction compatible with these.
_DIRECTIONS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (3, ("joy", "happy", "happiness")),
    (7, ("excited", "excitement")),
    (9, ("surprise", "surprised")),
    (11, ("anger", "angry")),
    (17, ("disgust",)),
    (19, ("fear", "fearful")),
    (21, ("frustrated", "frustration")),
    (27, ("boredom",)),
    (29, ("sadness", "sad")),
)
WHEEL: Mapping[str, int] = MappingProxyType({name: angle for angle, names in _DIRECTIONS for name in names})
"""Angles of labels on the emotion wheel, 0 to 39 in units of pi / 20."""


def get_schema(name: str) -> LabelSchema:
    """The registered schema of this name.

    Raises:
        KeyError: unknown name.
    """
    if name not in SCHEMAS:
        raise KeyError(f"no label schema {name!r}. {did_you_mean(name, SCHEMAS)}")
    return SCHEMAS[name]


def wheel_angles(schema: LabelSchema) -> dict[str, int | None]:
    """Positions of the labels on the emotion wheel, in units of pi / 20; None for the neutral label.

    Raises:
        ConfigError: a label has no position.
    """
    missing = [label for label in schema.labels if label != schema.neutral and label not in WHEEL]
    if missing:
        raise ConfigError(
            f"the labels {schema.name} have no emotion wheel: valence and arousal are not known for "
            f"{', '.join(missing)}. Use curriculum=emotion_shift"
        )
    return {label: None if label == schema.neutral else WHEEL[label] for label in schema.labels}


def check_labels(labels: Iterable[str], schema: LabelSchema) -> None:
    """Raise :class:`CorpusFormatError` for the first label that ``schema`` does not have."""
    for label in labels:
        schema.index(label)
