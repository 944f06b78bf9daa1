"""The corpora of the library, by name."""

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
    cls = CORPORA.load(name)
    if not issubclass(cls, Corpus):
        raise ConfigError(
            f"corpus {name!r}: {CORPORA.name_of(name)} is not a subclass of ercfusion.data.corpus.Corpus. Derive it "
            "from this class, or correct the name."
        )
    return cls


def register(name: str, target: str) -> None:
    """Register a corpus of your own under a name.

    Args:
        name: An unused name.
        target: ``"module:Class"``, a subclass of :class:`ercfusion.data.corpus.Corpus`.

    Raises:
        ConfigError: the name belongs to another corpus.
    """
    CORPORA.register(name, target)


def open_corpus(name: str, raw: str | os.PathLike[str] | None = None, **options: Any) -> Corpus:
    """A corpus by name, reading from ``raw`` (see :class:`ercfusion.data.corpus.Corpus`).

    Raises:
        ConfigError: unknown name or option (the message names the nearest), or an invalid value of an option.
    """
    cls = corpus_class(name)
    check_corpus_options(name, options)
    return cls(raw, **options)
