"""Which labels the vectors of a pack were trained with, and whether these are now to be predicted.

Vectors that were trained with the labels of an utterance know its label. Where it lies in dev or test of the protocol
at hand, scores there say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ercfusion._core.errors import PackError
from ercfusion.data.conversation import Conversation
from ercfusion.data.corpus import Splits

TrainedOn = Sequence[Mapping[str, Any]]
"""Entries with ``corpus``, ``corpus_fingerprint``, ``protocol``, ``split`` and ``conversations``: the turns by
conversation."""

JUDGED = ("dev", "test")
"""The splits whose scores are looked at."""


def trained_on(
    corpus: str, fingerprint: str, protocol: str, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """An entry of :data:`TrainedOn` for the turns of ``conversations``."""
    return {
        "corpus": corpus,
        "corpus_fingerprint": fingerprint,
        "protocol": protocol,
        "split": split,
        "conversations": {one.id: [turn.id for turn in one.turns] for one in conversations},
    }


def checked(entries: Any, where: str) -> TrainedOn:
    """``entries`` of a pack's description, of which a pack may have none (None).

    Raises:
        PackError: they are not of the form of :data:`TrainedOn`.
    """
    if entries is None:
        return ()
    if isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("corpus", "protocol", "split"))
        and isinstance(entry.get("conversations"), dict)
        and all(isinstance(turns, list) for turns in entry["conversations"].values())
        for entry in entries
    ):
        return entries
    raise PackError(
        f"{where}: the field 'trained_on', which says whose labels the values were trained with, cannot be read. "
        "Export the pack again, or copy it again from where it came."
    )


def summary(entries: TrainedOn) -> list[dict[str, Any]]:
    """The same with the number of turns in the place of their names, for records of runs."""
    return [
        {
            **{name: entry[name] for name in ("corpus", "protocol", "split")},
            "turns": sum(len(turns) for turns in entry["conversations"].values()),
        }
        for entry in entries
    ]


def leaks(entries: TrainedOn, corpus: str, splits: Splits) -> dict[str, int]:
    """Turns of dev and of test that the values were trained with, by split; empty where there is none.

    Args:
        entries: Of a pack.
        corpus: Name of the corpus at hand. Its version does not matter: a label that was learned is known.
        splits: Of the protocol at hand.
    """
    known = {
        (conversation, turn)
        for entry in entries
        if entry["corpus"] == corpus
        for conversation, turns in entry["conversations"].items()
        for turn in turns
    }
    found = {}
    for split in JUDGED:
        number = sum((one.id, turn.id) in known for one in splits.get(split, ()) for turn in one.turns)
        if number:
            found[split] = number
    return found


def leak_text(entries: TrainedOn, found: Mapping[str, int], protocol: str) -> str:
    """What :func:`leaks` found, in words, and what to do."""
    counts = " and ".join(f"{number:,} of {split}" for split, number in found.items())
    origins = ", ".join(dict.fromkeys(f"the {entry['split']} split of {entry['protocol']}" for entry in entries))
    return (
        f"its vectors were trained with the labels of utterances that are to be predicted under {protocol}: {counts} "
        f"(they were trained on {origins}). Scores there say nothing about new utterances; take vectors that were "
        f"trained under {protocol}"
    )
