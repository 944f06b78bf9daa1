"""What identifies the data of a run, part by part, so that a change can be named."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ercfusion.data.conversation import Conversation, TargetValue
from ercfusion.data.corpus import Corpus, Protocol, Splits
from ercfusion.data.features import FeatureTable

FEATURES = "features "
"""Begins the names of the checksums of feature values."""


def data_identity(
    corpus: Corpus, protocol: Protocol, splits: Splits, tables: Iterable[FeatureTable], fingerprint: str
) -> dict[str, str]:
    """Names and checksums by what they are of, in the order in which a change is told.

    Args:
        corpus: The reader.
        protocol: Its task says which labels count.
        splits: Conversations of the splits.
        tables: Features of the modalities.
        fingerprint: Of the files of the corpus.

    The checksum of features is the one that their pack's ``pack.json`` has for ``values.safetensors``; the features of
    a corpus without packs are read for it.
    """
    found = {
        "corpus": corpus.name,
        "protocol": protocol.id,
        "task": _digest(task.to_dict() for task in protocol.tasks),
    }
    for split, conversations in splits.items():
        labels = (_labels(conversations, task.name) for task in protocol.tasks)
        found[f"labels of the {split} split"] = _digest(itertools.chain.from_iterable(labels))
        found[f"utterances of the {split} split"] = _digest(_utterances(conversations))
    for table in tables:
        found[f"{FEATURES}{table.modality}"] = str(table.source.get("sha256") or _values(table))
        found[f"keys of the features {table.modality}"] = _digest(table.keys)
    found[f"files of {corpus.name}"] = fingerprint
    return found


def _labels(conversations: Sequence[Conversation], task: str) -> Iterable[Any]:
    for conversation in conversations:
        targets = [turn.targets.get(task) for turn in conversation.turns]
        yield [None if one is None else [_plain(one.value), _plain(one.votes)] for one in targets]


def _utterances(conversations: Sequence[Conversation]) -> Iterable[Any]:
    for conversation in conversations:
        yield [
            conversation.id,
            [[turn.id, turn.speaker, turn.text, turn.start, turn.end] for turn in conversation.turns],
        ]


def _plain(value: TargetValue | Mapping[str, int] | None) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return sorted(value.items()) if isinstance(value, Mapping) else value


def _digest(entries: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _values(table: FeatureTable) -> str:
    digest = hashlib.sha256()
    for array in (table.values, *([] if table.offsets is None else [table.offsets])):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
