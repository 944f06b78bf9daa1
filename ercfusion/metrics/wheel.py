"""Scores of open vocabularies: sets of emotion words, compared by their groups on emotion wheels.

Words pass three maps: form to base word, base word to wheel word, wheel word to group. Sources: OV-MER (Lian et al.,
2024) and MER-UniBench (AffectGPT, 2025), read from descriptions of their released code: our reading. Their word lists
are not included; :data:`WHEEL` is a small one of our own, and :func:`read_wheel` reads a table of yours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ercfusion._core.errors import ConfigError
from ercfusion._core.schemas.reading import read_yaml
from ercfusion.batch.labels import label_key

LEVELS = (1, 2)
"""1: groups; 2: wheel words."""
_ADVICE = "Write `group: {word: [other forms and synonyms]}`."


@dataclass(frozen=True)
class EmotionWheel:
    """Groups of emotion words.

    Args:
        name: For messages.
        groups: Group to wheel words to their other forms and synonyms. A word that occurs twice belongs to the first
            place in alphabetical order of group and wheel word.
    """

    name: str
    groups: Mapping[str, Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        places: dict[str, tuple[str, str]] = {}
        for group in sorted(self.groups):
            for word in sorted(self.groups[group]):
                for form in (word, *self.groups[group][word]):
                    places.setdefault(label_key(form), (group, word))
        object.__setattr__(self, "_places", places)

    def map(self, words: Iterable[str], level: int = 1) -> frozenset[str]:
        """Groups (level 1) or wheel words (level 2) of some words; unknown words are left out.

        Raises:
            ConfigError: another level.
        """
        if level not in LEVELS:
            raise ConfigError(f"level={level} is not a level of an emotion wheel. Use 1 (groups) or 2 (wheel words).")
        places: Mapping[str, tuple[str, str]] = self._places  # type: ignore[attr-defined]
        known = (places.get(label_key(word)) for word in words)
        return frozenset(place[level - 1] for place in known if place is not None)


def _forms(**words: str) -> Mapping[str, Sequence[str]]:
    return MappingProxyType({word: tuple(forms.split()) for word, forms in words.items()})


WHEEL = EmotionWheel(
    "ercfusion",
    {
        "joy": _forms(
            joy="joyful joyous joyfully joyfulness",
            happiness="happy happily glad gladly cheerful cheerfully merry",
            excitement="excited exciting excitedly thrilled eager enthusiastic enthusiasm",
            contentment="content contented satisfied satisfaction pleased peaceful calm relaxed relief relieved",
            amusement="amused amusing playful",
            love="loving affection affectionate tender tenderness caring",
            pride="proud proudly powerful confident confidence",
            hope="hopeful optimistic optimism",
            gratitude="grateful thankful",
        ),
        "surprise": _forms(
            surprise="surprised surprising surprisingly",
            amazement="amazed amazing astonished astonishment",
            shock="shocked shocking stunned",
            confusion="confused confusing puzzled perplexed",
        ),
        "anger": _forms(
            anger="angry angrily mad",
            rage="furious fury enraged",
            annoyance="annoyed annoying irritated irritation bothered",
            frustration="frustrated frustrating",
            resentment="resentful bitter jealous jealousy envy envious",
        ),
        "disgust": _forms(
            disgust="disgusted disgusting repulsed revulsion",
            contempt="contemptuous scornful scorn disdain",
            disapproval="disapproving",
        ),
        "sadness": _forms(
            sadness="sad sadly unhappy sorrow sorrowful",
            grief="grieving heartbroken mourning",
            disappointment="disappointed disappointing let-down",
            loneliness="lonely isolated",
            guilt="guilty ashamed shame remorse regret regretful",
            despair="desperate hopeless depressed depression",
            boredom="bored boring",
        ),
        "fear": _forms(
            fear="fearful afraid scared frightened",
            terror="terrified terrifying horror horrified",
            anxiety="anxious anxiously worried worry worrying nervous nervousness",
            insecurity="insecure",
        ),
        "neutral": _forms(neutral="neutrality indifferent unemotional"),
    },
)
"""A wheel of our own with seven groups; its words include the labels of the library's corpora."""


def read_wheel(path: str | Path) -> EmotionWheel:
    """Read a wheel from a YAML or JSON file: ``group: {word: [other forms and synonyms]}``.

    Raises:
        ConfigError: the file cannot be read or has another form.
    """
    path = Path(path)
    content = read_yaml(path, error=ConfigError, advice=_ADVICE)
    fits = isinstance(content, dict) and all(
        isinstance(words, dict)
        and all(isinstance(forms, list) and all(isinstance(form, str) for form in forms) for forms in words.values())
        and all(isinstance(word, str) for word in words)
        for words in content.values()
    )
    if not fits or not content:
        raise ConfigError(f"{path}: this is not an emotion wheel. {_ADVICE}")
    return EmotionWheel(path.stem, {str(group): words for group, words in content.items()})


@dataclass(frozen=True)
class WheelScores:
    """Scores of sets of words.

    Args:
        precision, recall: Means over the samples.
        f1: Harmonic mean of the two means.
        samples: Number of samples with a true word of the wheel.
    """

    precision: float
    recall: float
    f1: float
    samples: int


def wheel_scores(
    truth: Sequence[Iterable[str]], predicted: Sequence[Iterable[str]], wheel: EmotionWheel = WHEEL, level: int = 1
) -> WheelScores:
    """Precision, recall and F1 of sets of words on one wheel.

    Words outside the wheel vanish. A sample without true words is left out; one without predicted words counts 0.

    Args:
        truth, predicted: A set of words per sample.
        wheel, level: See :meth:`EmotionWheel.map`.

    Raises:
        ConfigError: other numbers of samples, or no sample has a true word of the wheel.
    """
    _check_lengths(truth, predicted)
    pairs = [(wheel.map(true, level), wheel.map(given, level)) for true, given in zip(truth, predicted, strict=True)]
    pairs = [(true, given) for true, given in pairs if true]
    if not pairs:
        raise ConfigError(f"no sample has a true word of the wheel {wheel.name!r}. Use another wheel.")
    precision = float(np.mean([len(true & given) / len(given) if given else 0.0 for true, given in pairs]))
    recall = float(np.mean([len(true & given) / len(true) for true, given in pairs]))
    total = precision + recall
    return WheelScores(precision, recall, 2 * precision * recall / total if total else 0.0, len(pairs))


def wheel_f1(
    truth: Sequence[Iterable[str]],
    predicted: Sequence[Iterable[str]],
    wheels: Sequence[EmotionWheel] = (WHEEL,),
    level: int = 1,
) -> float:
    """Mean of the F1 scores over several wheels; see :func:`wheel_scores`.

    Raises:
        ConfigError: no wheel, or see there.
    """
    if not wheels:
        raise ConfigError("no emotion wheel was given. Give at least one.")
    return float(np.mean([wheel_scores(truth, predicted, wheel, level).f1 for wheel in wheels]))


def hit_rate(
    labels: Sequence[str], predicted: Sequence[Iterable[str]], wheel: EmotionWheel = WHEEL, level: int = 2
) -> float:
    """Share of samples with one true label whose predicted words contain it, by their wheel words or groups.

    Args:
        labels: One true label per sample.
        predicted: A set of words per sample.
        wheel, level: See :meth:`EmotionWheel.map`. A label outside the wheel is compared as it is written.

    Raises:
        ConfigError: other numbers of samples, or none.
    """
    _check_lengths(labels, predicted)
    if not labels:
        raise ConfigError("no samples to score. Give at least one label.")
    hits = []
    for label, given in zip(labels, predicted, strict=True):
        words = list(given)
        mapped = wheel.map([label], level)
        hits.append(bool(mapped & wheel.map(words, level)) or label_key(label) in map(label_key, words))
    return float(np.mean(hits))


def _check_lengths(truth: Sequence[object], predicted: Sequence[object]) -> None:
    if len(truth) != len(predicted):
        raise ConfigError(
            f"{len(truth)} true and {len(predicted)} predicted samples. Give one set of words per sample."
        )
