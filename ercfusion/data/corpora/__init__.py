"""The corpora that the library reads, by name."""

from __future__ import annotations

import os
from typing import Any

from ercfusion._core.errors import ConfigError
from ercfusion.config.corpora import CORPORA, check_corpus_options
from ercfusion.data.corpus import Corpus


def corpus_class(name: str) -> type[Corpus]:
    """The class of a corpus.

    Raises:
        ConfigError: unknown name (the message names the nearest), or a class of another kind.
    """
    found = CORPORA.load(name)
    if not issubclass(found, Corpus):
        raise ConfigError(f"corpus {name!r}: {CORPORA.name_of(name)} is not a subclass of ercfusion.data.corpus.Corpus")
    return found


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
    """A corpus by name, reading from ``raw`` (see :class:`ercfusion.data.corpus.Corpus`).

    Raises:
        ConfigError: unknown name or option (the message names the nearest), or an option's value that does not fit.
    """
    found = corpus_class(name)
    check_corpus_options(name, options)
    return found(raw, **options)
