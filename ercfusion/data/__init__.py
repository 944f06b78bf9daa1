"""Corpora, conversations and packed batches.

Importing this package loads numpy only; the first batch or store loads torch. Feature extraction needs no torch.
"""

from typing import TYPE_CHECKING, Any

from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.maps import LabelMap, map_between
from ercfusion.batch.task import TaskSpec
from ercfusion.config.corpora import CORPORA
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol
from ercfusion.data.features import FeatureTable

if TYPE_CHECKING:
    from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
    from ercfusion.data.store import ConversationStore

_WITH_TORCH = {
    "ConversationBatch": "ercfusion.batch.batch",
    "SequenceValues": "ercfusion.batch.batch",
    "TaskTargets": "ercfusion.batch.batch",
    "ConversationStore": "ercfusion.data.store",
}

__all__ = [
    "CORPORA",
    "Conversation",
    "ConversationBatch",
    "ConversationStore",
    "Corpus",
    "CorpusCard",
    "FeatureTable",
    "Finding",
    "InputSpec",
    "LabelMap",
    "LabelSchema",
    "Protocol",
    "SequenceValues",
    "Target",
    "TaskSpec",
    "TaskTargets",
    "Turn",
    "get_schema",
    "map_between",
    "open_corpus",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
