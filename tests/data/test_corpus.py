"""One conversation is in one split, whatever a reader makes of its files."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from ercfusion._core.errors import CorpusFormatError
from ercfusion.config.corpora import CORPORA
from ercfusion.data import Conversation, Turn
from ercfusion.data.corpora import corpus_class
from ercfusion.data.corpus import Corpus, CorpusCard, Protocol, Splits, check_unique_ids
from ercfusion.testing import make_task


def conversation(name: str) -> Conversation:
    return Conversation(name, (Turn("0", "A"),))


class Mine(Corpus):
    """A reader of one's own."""

    card: ClassVar[CorpusCard] = CorpusCard("mine", "My calls", "", "", "")
    protocols: ClassVar[dict[str, Protocol]] = {"mine/x": Protocol("mine/x", make_task(), "", "", ())}
    names: ClassVar[dict[str, list[str]]] = {}

    def conversations(self, protocol: Protocol) -> Splits:
        """As they are in ``names``."""
        return {split: [conversation(name) for name in names] for split, names in self.names.items()}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"train": ["a", "b"], "dev": ["c"], "test": ["d", "b"]}, "1 conversations .* 'b', in train and in test"),
        ({"train": ["a", "b", "a"], "dev": ["c"], "test": ["d"]}, "1 conversations .* 'a', in train and in train"),
        ({"train": ["a", "b"], "dev": ["b"], "test": ["a"]}, "2 conversations .* 'b', in train and in dev"),
        ({"train": ["a" * 9999], "test": ["a" * 9999]}, r"^.{0,200}in train and in test"),
    ],
)
def test_an_id_in_two_places_is_refused(monkeypatch: pytest.MonkeyPatch, names: Any, words: str) -> None:
    monkeypatch.setattr(Mine, "names", names)
    corpus = Mine()
    with pytest.raises(CorpusFormatError, match=words) as caught:
        corpus.conversations(corpus.protocol())
    assert "My calls" in str(caught.value)


def test_different_ids_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mine, "names", {"train": ["a", "b"], "dev": ["c"], "test": []})
    corpus = Mine()
    assert [len(part) for part in corpus.conversations(corpus.protocol()).values()] == [2, 1, 0]
    check_unique_ids("x", {})


def test_a_subclass_of_a_reader_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(Mine):
        def conversations(self, protocol: Protocol) -> Splits:
            splits = super().conversations(protocol)
            return {**splits, "test": splits["train"]}

    monkeypatch.setattr(Mine, "names", {"train": ["a"], "dev": ["c"], "test": []})
    with pytest.raises(CorpusFormatError, match="'a', in train and in test"):
        Twice().conversations(Mine().protocol())


@pytest.mark.parametrize("name", CORPORA)
def test_every_reader_is_checked(name: str) -> None:
    assert hasattr(corpus_class(name).conversations, "__wrapped__")
