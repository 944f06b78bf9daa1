"""Corpora, conversations and packed batches. Importing this package loads torch and numpy only."""

from ercfusion.data.batch import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora import CORPORA, open_corpus
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol
from ercfusion.data.features import FeatureTable, InputSpec
from ercfusion.data.schema import LabelMap, LabelSchema, get_schema, map_between
from ercfusion.data.store import ConversationStore
from ercfusion.data.task import TaskSpec

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
