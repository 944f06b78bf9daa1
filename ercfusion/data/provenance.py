"""Labels behind the vectors of a pack, and detection of leaks into dev and test.

Vectors trained with the label of an utterance reveal it: scores on it mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ercfusion._core.errors import PackError
from ercfusion.data.conversation import Conversation
from ercfusion.data.corpus import Splits

TrainedOn = Sequence[Mapping[str, Any]]
"""Items with ``corpus``, ``corpus_fingerprint``, ``protocol``, ``split`` and ``conversations`` (id to turn ids)."""

JUDGED = ("dev", "test")
"""Splits with scores."""


def trained_on(
    corpus: str, fingerprint: str, protocol: str, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """An item of :data:`TrainedOn` for the turns of ``conversations``."""
    return {
        "corpus": corpus,
        "corpus_fingerprint": fingerprint,
        "protocol": protocol,
        "split": split,
        "conversations": {one.id: [turn.id for turn in one.turns] for one in conversations},
    }


def checked(items: Any, where: str) -> TrainedOn:
    """``items`` of a pack's description, checked; None is empty."""
    if items is None:
        return ()
    if isinstance(items, list) and all(
        isinstance(item, dict)
        and all(isinstance(item.get(name), str) for name in ("corpus", "protocol", "split"))
        and isinstance(item.get("conversations"), dict)
        and all(isinstance(turns, list) for turns in item["conversations"].values())
        for item in items
    ):
        return items
    raise PackError(
        f"{where}: the field 'trained_on' (labels behind the values) cannot be read. Export the pack again, or copy it "
        "again from its source."
    )


def summary(items: TrainedOn) -> list[dict[str, Any]]:
    """``items`` with numbers of turns, for run records."""
    return [
        {
            **{name: item[name] for name in ("corpus", "protocol", "split")},
            "turns": sum(len(turns) for turns in item["conversations"].values()),
        }
        for item in items
    ]


def leaks(items: TrainedOn, corpus: str, splits: Splits) -> dict[str, int]:
    """Number of turns of dev and of test behind trained values, by split; empty if there are none."""
    trained = {
        (conversation, turn)
        for item in items
        if item["corpus"] == corpus
        for conversation, turns in item["conversations"].items()
        for turn in turns
    }
    leaked = {}
    for split in JUDGED:
        number = sum((one.id, turn.id) in trained for one in splits.get(split, ()) for turn in one.turns)
        if number:
            leaked[split] = number
    return leaked


def leak_text(items: TrainedOn, leaked: Mapping[str, int], protocol: str) -> str:
    """Result and advice of :func:`leaks` in words."""
    counts = " and ".join(f"{number:,} of {split}" for split, number in leaked.items())
    origins = ", ".join(dict.fromkeys(f"the {item['split']} split of {item['protocol']}" for item in items))
    return (
        f"its vectors were trained with the labels of utterances to be predicted under {protocol}: {counts} "
        f"(trained on {origins}). Scores there say nothing about new utterances. Use vectors trained under {protocol}"
    )
