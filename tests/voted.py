"""A small corpus of one's own with the same labels in several forms: single labels, shares of votes and label sets."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

LABELS = ("neutral", "joy", "anger")
_SETTINGS = f"""\
title: Votes (made up)
licence: Made up by ercfusion; free of third-party rights.
synthetic: true
targets:
  emotion: {{labels: [{", ".join(LABELS)}]}}
  shares: {{kind: distribution, labels: [{", ".join(LABELS)}]}}
  sets: {{kind: multi_label, labels: [{", ".join(LABELS)}]}}
  strong: {{kind: multi_label, labels: [{", ".join(LABELS)}]}}
  mood: {{labels: [good, bad]}}
  force: {{kind: regression, low: 0, high: 5}}
"""


def write_voted(folder: Path, *, without: Collection[tuple[str, str]] = ()) -> Path:
    """14 conversations of six turns, five votes per turn; ``without`` has (split, target) pairs without labels."""
    chance = np.random.default_rng(0)
    head = ["conversation", "turn", "speaker", "text", "split"]
    targets = ["emotion", *(f"shares.{label}" for label in LABELS), "sets", "strong", "mood", "force"]
    rows = []
    for number in range(14):
        split = "train" if number < 6 else "dev" if number < 10 else "test"
        for turn in range(6):
            votes = chance.multinomial(5, chance.dirichlet([0.5] * 3))
            largest = int(votes.argmax())
            cells = {
                "emotion": LABELS[largest] if votes[largest] > 2 else "",
                **{f"shares.{label}": int(count) for label, count in zip(LABELS, votes, strict=True)},
                "sets": "|".join(label for label, count in zip(LABELS, votes, strict=True) if count),
                "strong": "|".join(label for label, count in zip(LABELS, votes, strict=True) if count > 1) or "-",
                "mood": "good" if largest < 2 else "bad",
                "force": int(votes[2]),
            }
            empty = [name for name in cells if (split, name.partition(".")[0]) in without]
            text = " ".join(LABELS[index] * int(count) for index, count in enumerate(votes))
            rows.append([f"c{number}", turn, "AB"[turn % 2], text, split, *(cells | dict.fromkeys(empty, "")).values()])
    folder.mkdir(parents=True)
    (folder / "corpus.yaml").write_text(_SETTINGS, encoding="utf-8")
    with (folder / "utterances.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([[*head, *targets], *rows])
    return folder
