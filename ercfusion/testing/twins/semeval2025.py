"""A twin of SemEval-2025 Task 11: both tracks of English (without disgust) and German."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from pathlib import Path

from ercfusion.data.corpora.semeval2025 import SCHEMA, TRACKS
from ercfusion.testing.twins.text import SIZES

LANGUAGES: Mapping[str, tuple[str, ...]] = {"eng": ("disgust",), "deu": ()}
"""Language to the labels that it lacks."""
_CUES = {
    "anger": "enough, stop moving my tools",
    "disgust": "the soup has fur",
    "fear": "something moved in the cellar",
    "joy": "hooray, the kite flies",
    "sadness": "nobody came to the reading",
    "surprise": "a goat on the roof",
}
_NEUTRAL = "the tram leaves at nine"


def write_semeval2025(
    folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES, labelled: bool = True
) -> Path:
    """A twin of ``track_{a,b}/{train,dev,test}/{eng,deu}.csv``.

    Args:
        folder, seed: As for :func:`ercfusion.testing.twins.text.write_meld`.
        sizes: Sentences by split, times five.
        labelled: Whether the test files have labels.
    """
    chance = random.Random(f"semeval2025 {seed}")
    for language, lacking in LANGUAGES.items():
        labels = [label for label in SCHEMA.labels if label not in lacking]
        for track, place in TRACKS.items():
            for split, size in sizes.items():
                rows = []
                for number in range(1, 5 * size + 1):
                    felt = {label: chance.randrange(1, 4) for label in labels if chance.random() < 0.3}
                    words = [f"{'so ' * felt[label]}{_CUES[label]}" for label in felt] or [_NEUTRAL]
                    cells: list[object] = [
                        felt.get(label, 0) if track == "b" else int(label in felt) for label in labels
                    ]
                    if split == "test" and not labelled:
                        cells = [""] * len(labels)
                    rows.append(
                        [
                            f"{language}_{split}_track_{track}_{number:05d}",
                            f"{'; '.join(words)} ({split} {number})",
                            *cells,
                        ]
                    )
                path = Path(folder) / place / split / f"{language}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w", newline="", encoding="utf-8") as stream:
                    csv.writer(stream).writerows([["id", "text", *labels], *rows])
    return Path(folder)
