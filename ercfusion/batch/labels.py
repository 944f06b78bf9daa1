"""Label schemas: the only place where the order of labels lives.

Labels travel by name. Code bases of the field disagree on the order (MELD and its cause-pair annotation do, and so do
the IEMOCAP pickles), so an index is obtained from a :class:`LabelSchema` and never leaves the code that asked for it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ercfusion._core.errors import ConfigError, CorpusFormatError, did_you_mean


def label_key(text: str) -> str:
    """What all spellings of one label have in common: composed Unicode (NFC), small letters, single blanks."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", text).split()).casefold())


@dataclass(frozen=True)
class LabelSchema:
    """An ordered set of label names.

    Args:
        name: Identifier, unique among :data:`SCHEMAS`.
        labels: The names in order; their positions are the class indices.
        synonyms: Other spellings that corpora use, each mapped to one of ``labels``.
        neutral: The label that means "no emotion", if there is one.
    """

    name: str
    labels: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    neutral: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"schema {self.name!r} lists a label twice: {self.labels}")
        for spelling, label in self.synonyms.items():
            if label not in self.labels:
                raise ValueError(f"schema {self.name!r}: synonym {spelling!r} points to {label!r}, which is no label")
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
        """The label that ``text`` is a spelling of; None if there is none.

        Blanks around it, the case of letters and the Unicode form do not matter, unless two labels differ in these
        only.
        """
        if text in self:
            return self.canonical(text)
        wanted = label_key(text)
        found = {self.canonical(name) for name in (*self.labels, *self.synonyms) if label_key(name) == wanted}
        return found.pop() if len(found) == 1 else None

    def index(self, label: str) -> int:
        """Class index of ``label`` (synonyms allowed).

        Raises:
            CorpusFormatError: the schema has no such label; the message names the nearest one.
        """
        position = self._index.get(label)  # type: ignore[attr-defined]
        if position is None:
            raise CorpusFormatError(f"{label!r} is no label of {self.name}. {did_you_mean(label, self.labels)}")
        return int(position)

    def canonical(self, label: str) -> str:
        """The schema's own spelling of ``label``."""
        return self.labels[self.index(label)]


@dataclass(frozen=True)
class LabelMap:
    """A total map from one schema to another; a label mapped to ``None`` becomes invalid (unlabelled)."""

    source: str
    target: str
    mapping: Mapping[str, str | None]
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mapping", MappingProxyType(dict(self.mapping)))

    def __call__(self, label: str) -> str | None:
        """The target schema's name for ``label`` of the source schema; None where it has none."""
        return self.mapping[get_schema(self.source).canonical(label)]

    def __reduce__(self) -> tuple[object, ...]:
        return (LabelMap, (self.source, self.target, dict(self.mapping), self.note))


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
    # Everything that IEMOCAP's raters could choose; "other" and no agreement are no labels.
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
    LabelSchema("sentiment2", ("negative", "positive")),
    LabelSchema("demo6", ("neutral", "joy", "sadness", "anger", "surprise", "fear"), neutral="neutral"),
)

# Directions of emotions in the plane of valence (to the right) and arousal (up), in units of pi / 20 (9 degrees) from
# positive valence, as the released code of Li et al. (ECAI 2025) has them. Boredom, which theirs lacks, stands about
# where Russell (1980, "A circumplex model of affect") puts it, at 242 degrees. There is no direction for EmoryNLP's
# peaceful and powerful, nor for RAVDESS's calm, that could be given beside these.
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
"""Angles of label names on the emotion wheel, in units of pi / 20, 0 to 39."""

MAPS: tuple[LabelMap, ...] = (
    LabelMap("meld7", "emotionlines7", {label: label for label in SCHEMAS["meld7"].labels}),
    LabelMap("emotionlines7", "meld7", {label: label for label in SCHEMAS["meld7"].labels}),
    LabelMap(
        "emorynlp7",
        "emorynlp3",
        {
            "joyful": "positive",
            "peaceful": "positive",
            "powerful": "positive",
            "neutral": "neutral",
            "mad": "negative",
            "sad": "negative",
            "scared": "negative",
        },
        "the grouping used for three-way EmoryNLP results",
    ),
    LabelMap(
        "meld7",
        "emorynlp7",
        {
            "neutral": "neutral",
            "joy": "joyful",
            "anger": "mad",
            "sadness": "sad",
            "fear": "scared",
            "surprise": None,
            "disgust": None,
        },
        "surprise and disgust have no counterpart among EmoryNLP's labels",
    ),
    LabelMap(
        "emorynlp7",
        "meld7",
        {
            "neutral": "neutral",
            "joyful": "joy",
            "mad": "anger",
            "sad": "sadness",
            "scared": "fear",
            "peaceful": None,
            "powerful": None,
        },
        "peaceful and powerful have no counterpart among MELD's labels",
    ),
    LabelMap(
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
        "the usual four-way set: excited counts as happy, frustrated is left out",
    ),
)


def get_schema(name: str) -> LabelSchema:
    """The schema called ``name``.

    Raises:
        KeyError: unknown name; the message lists the nearest one.
    """
    if name not in SCHEMAS:
        raise KeyError(f"no label schema {name!r}. {did_you_mean(name, SCHEMAS)}")
    return SCHEMAS[name]


def map_between(source: str, target: str) -> LabelMap:
    """The registered map from one schema to another (the identity when they are the same)."""
    if source == target:
        return LabelMap(source, target, {label: label for label in get_schema(source).labels})
    for label_map in MAPS:
        if (label_map.source, label_map.target) == (source, target):
            return label_map
    known = ", ".join(f"{entry.source} -> {entry.target}" for entry in MAPS)
    raise KeyError(f"no map from {source!r} to {target!r}. Known maps: {known}")


def wheel_angles(schema: LabelSchema) -> dict[str, int | None]:
    """Where the labels of ``schema`` stand on the emotion wheel, in units of pi / 20; None for the neutral one.

    Raises:
        ConfigError: a label has no place on the wheel; the message names all of these.
    """
    missing = [label for label in schema.labels if label != schema.neutral and label not in WHEEL]
    if missing:
        raise ConfigError(
            f"the labels {schema.name} have no emotion wheel: no valence and arousal is known for {', '.join(missing)}"
        )
    return {label: None if label == schema.neutral else WHEEL[label] for label in schema.labels}


def check_labels(labels: Iterable[str], schema: LabelSchema) -> None:
    """Raise :class:`CorpusFormatError` for the first of ``labels`` that ``schema`` does not know."""
    for label in labels:
        schema.index(label)
