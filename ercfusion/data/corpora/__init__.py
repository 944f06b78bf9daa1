"""The corpora that the library reads, by name."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ercfusion.data.corpus import Corpus
from ercfusion.errors import ConfigError, did_you_mean

CORPORA: dict[str, str] = {
    "demo": "ercfusion.data.corpora.demo:DemoCorpus",
    "meld": "ercfusion.data.corpora.meld:MeldCorpus",
    "emorynlp": "ercfusion.data.corpora.emorynlp:EmoryNlpCorpus",
    "mosi": "ercfusion.data.corpora.mosi:MosiCorpus",
    "emotionlines": "ercfusion.data.corpora.emotionlines:EmotionLinesCorpus",
}


def corpus_class(name: str) -> type[Corpus]:
    """The class of a corpus.

    Raises:
        ConfigError: unknown name; the message names the nearest.
    """
    if name not in CORPORA:
        raise ConfigError(f"no corpus {name!r}. {did_you_mean(name, CORPORA)}")
    module, _, attribute = CORPORA[name].partition(":")
    loaded: type[Corpus] = getattr(importlib.import_module(module), attribute)
    return loaded


def register(name: str, target: str) -> None:
    """Make a corpus of your own known by name.

    Args:
        name: New name; a taken one is refused.
        target: ``"module:Class"``, a subclass of :class:`ercfusion.data.corpus.Corpus`.

    Raises:
        ConfigError: the name belongs to another corpus.
    """
    if CORPORA.get(name, target) != target:
        raise ConfigError(f"the corpus name {name!r} is taken by {CORPORA[name]}")
    CORPORA[name] = target


def open_corpus(name: str, raw: str | os.PathLike[str] | None = None, **options: Any) -> Corpus:
    """A corpus by name, reading from ``raw`` (see :class:`ercfusion.data.corpus.Corpus`)."""
    return corpus_class(name)(raw, **options)
