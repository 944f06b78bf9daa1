"""The corpora that the library reads, by name."""

from __future__ import annotations

import os
from typing import Any

from ercfusion._core.registry import Registry
from ercfusion.data.corpus import Corpus

CORPORA: Registry[Corpus] = Registry(
    "corpus",
    {
        "demo": "ercfusion.data.corpora.demo:DemoCorpus",
        "meld": "ercfusion.data.corpora.meld:MeldCorpus",
        "emorynlp": "ercfusion.data.corpora.emorynlp:EmoryNlpCorpus",
        "mosi": "ercfusion.data.corpora.mosi:MosiCorpus",
        "emotionlines": "ercfusion.data.corpora.emotionlines:EmotionLinesCorpus",
        "iemocap": "ercfusion.data.corpora.iemocap:IemocapCorpus",
        "mosei": "ercfusion.data.corpora.sdk:MoseiCorpus",
        "mosi_sdk": "ercfusion.data.corpora.sdk:MosiSdkCorpus",
        "m3ed": "ercfusion.data.corpora.m3ed:M3edCorpus",
        "dailydialog": "ercfusion.data.corpora.dailydialog:DailyDialogCorpus",
        "emodb": "ercfusion.data.corpora.emodb:EmodbCorpus",
        "ravdess": "ercfusion.data.corpora.ravdess:RavdessCorpus",
        "custom": "ercfusion.data.corpora.custom:CustomCorpus",
    },
)


def corpus_class(name: str) -> type[Corpus]:
    """The class of a corpus.

    Raises:
        ConfigError: unknown name; the message names the nearest.
    """
    return CORPORA.load(name)


def register(name: str, target: str) -> None:
    """Make a corpus of your own known by name.

    Args:
        name: New name; a taken one is refused.
        target: ``"module:Class"``, a subclass of :class:`ercfusion.data.corpus.Corpus`.

    Raises:
        ConfigError: the name belongs to another corpus.
    """
    CORPORA.register(name, target)


def open_corpus(name: str, raw: str | os.PathLike[str] | None = None, **options: Any) -> Corpus:
    """A corpus by name, reading from ``raw`` (see :class:`ercfusion.data.corpus.Corpus`)."""
    return corpus_class(name)(raw, **options)
