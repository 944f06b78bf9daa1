"""Checksums identifying the data of a run, part by part: a message can name the changed part."""

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
"""Prefix of the names of checksums of feature values."""


def data_identity(
    corpus: Corpus, protocol: Protocol, splits: Splits, tables: Iterable[FeatureTable], fingerprint: str
) -> dict[str, str]:
    """Checksums by name of the part, in the order of reports about changes.

    Checksums of features are those of their ``pack.json``; without a pack they are computed.
    """
    identity = {
        "corpus": corpus.name,
        "protocol": protocol.id,
        "task": _digest(task.to_dict() for task in protocol.tasks),
    }
    for split, conversations in splits.items():
        labels = (_labels(conversations, task.name) for task in protocol.tasks)
        identity[f"labels of the {split} split"] = _digest(itertools.chain.from_iterable(labels))
        identity[f"utterances of the {split} split"] = _digest(_utterances(conversations))
    for table in tables:
        identity[f"{FEATURES}{table.modality}"] = str(table.source.get("sha256") or _values(table))
        identity[f"keys of the features {table.modality}"] = _digest(table.keys)
    identity[f"files of {corpus.name}"] = fingerprint
    return identity


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


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _values(table: FeatureTable) -> str:
    digest = hashlib.sha256()
    for array in (table.values, *([] if table.offsets is None else [table.offsets])):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
