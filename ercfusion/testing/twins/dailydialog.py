"""A twin of DailyDialog, as split folders or unsplit files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from ercfusion.data.corpora.dailydialog import END, PARTS, SCHEMA, WHOLE
from ercfusion.testing.twins.text import SIZES

_CUES = {
    "neutral": ("Which platform is it ?", "The shop opens at ten .", "I need two stamps ."),
    "anger": ("That is outrageous !", "You have sold it twice !"),
    "disgust": ("Yuck , it moved .", "The milk smells revolting ."),
    "fear": ("I am scared of the lift .", "Something knocked , do not go ."),
    "happiness": ("Wonderful , we won !", "How lovely to see you !"),
    "sadness": ("I miss our old garden .", "Nobody wrote back , sadly ."),
    "surprise": ("Really ? A goat ?", "Wow , that was quick !"),
}
_TAILS = ("", "It’s on the left .", "Shall we walk ?", "The kettle is on .", "My aunt said so .")


def write_dailydialog(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES, split: bool = True) -> Path:
    """A twin of DailyDialog's texts and emotions; the first dialogue of each split has one utterance.

    Args:
        folder, seed, sizes: As for :func:`ercfusion.testing.twins.text.write_meld`.
        split: Whether to write the folders ``train``, ``validation`` and ``test``, or the two unsplit files.
    """
    folder = Path(folder)
    chance = random.Random(f"dailydialog {seed}")
    dialogues = {name: [_dialogue(chance, number) for number in range(size)] for name, size in sizes.items()}
    if split:
        for name, part in PARTS.items():
            if name in dialogues:
                place = folder / part
                _write(place / f"dialogues_{part}.txt", place / f"dialogues_emotion_{part}.txt", dialogues[name])
    else:
        _write(folder / WHOLE[0], folder / WHOLE[1], [dialogue for part in dialogues.values() for dialogue in part])
    return folder


def _dialogue(chance: random.Random, number: int) -> list[tuple[str, int]]:
    length = 1 if number == 0 else chance.randrange(3, 10)
    spoken = []
    for _ in range(length):
        label = "neutral" if chance.random() < 0.5 else chance.choice(SCHEMA.labels)
        text = f"{chance.choice(_CUES[label])} {chance.choice(_TAILS)}".strip()
        spoken.append((text, SCHEMA.index(label)))
    return spoken


def _write(texts: Path, emotions: Path, dialogues: Sequence[Sequence[tuple[str, int]]]) -> None:
    texts.parent.mkdir(parents=True, exist_ok=True)
    # Separators and spaces as in the release: "a . __eou__ b . __eou__" and "0 4 ".
    lines = ["".join(f"{text} {END} " for text, _ in dialogue).rstrip() + "\n" for dialogue in dialogues]
    texts.write_text("".join(lines), encoding="utf-8")
    marks = ["".join(f"{number} " for _, number in dialogue) + "\n" for dialogue in dialogues]
    emotions.write_text("".join(marks), encoding="utf-8")
