"""What is wrong with splits and features is found before training, with the split in the message."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ercfusion._core.errors import BatchError, ConfigError, CorpusFormatError
from ercfusion.data import Conversation, FeatureTable, Target, Turn
from ercfusion.data.corpus import Protocol, Splits
from ercfusion.data.usable import check_presence, check_splits
from ercfusion.testing import make_task

TASK = make_task()
PROTOCOL = Protocol("made/up", TASK, "", "", ("text",))
LABEL = TASK.output_names[0]


def conversation(name: str, *labels: str | None) -> Conversation:
    targets = [{TASK.name: Target(label)} for label in labels]
    return Conversation(name, tuple(Turn(str(n), "A", targets=found) for n, found in enumerate(targets)))


def splits(**changed: list[Conversation]) -> Splits:
    plain = {name: [conversation(name, LABEL, None)] for name in ("train", "dev", "test")}
    return {name: part for name, part in {**plain, **changed}.items() if part is not None}


def test_labelled_splits_pass() -> None:
    assert check_splits(PROTOCOL, splits()) == []


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("absent", [None, []])
def test_an_empty_or_missing_split_is_refused(split: str, absent: list[Conversation] | None) -> None:
    with pytest.raises(ConfigError, match=rf"the {split} split has no conversations \(conversations found: "):
        check_splits(PROTOCOL, splits(**{split: absent}))  # type: ignore[arg-type]


def test_a_split_that_is_not_needed_may_be_empty() -> None:
    assert check_splits(PROTOCOL, splits(test=[]), ("train", "dev")) == []


@pytest.mark.parametrize("split", ["train", "dev"])
def test_train_and_dev_need_labels(split: str) -> None:
    with pytest.raises(ConfigError, match=rf"none of the 2 utterances of the {split} split is labelled.*'emotion'"):
        check_splits(PROTOCOL, splits(**{split: [conversation("x", None, None)]}))


def test_test_may_be_without_labels() -> None:
    assert check_splits(PROTOCOL, splits(test=[conversation("x", None)])) == ["test"]


def test_a_wrong_label_of_test_is_found_now() -> None:
    with pytest.raises(CorpusFormatError, match=r"conversation 'x', turn '1'.*'smelly'"):
        check_splits(PROTOCOL, splits(test=[conversation("x", LABEL, "smelly")]))


def table(modality: str, *conversations: str) -> FeatureTable:
    keys = [(name, str(number)) for name in conversations for number in range(2)]
    return FeatureTable(modality, keys, np.ones((len(keys), 3)))


def test_a_modality_that_a_split_lacks_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tables = [table("text", "train", "dev", "test"), table("audio", "train", "dev")]
    with caplog.at_level(logging.WARNING, "ercfusion"):
        check_presence(tables, splits(), {"audio": "packs/mine"})
    assert [record.getMessage() for record in caplog.records] == [
        "none of the 2 turns of the test split has the modality 'audio' (data.packs.audio=packs/mine): they are "
        "treated as turns without it"
    ]


def test_complete_features_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    part = table("audio", "train", "dev", "test")
    partly = FeatureTable("visual", part.keys[::2], np.ones((3, 4)))  # one turn of each split
    with caplog.at_level(logging.WARNING, "ercfusion"):
        check_presence([part, partly], splits(), {})
    assert not caplog.records


def test_a_split_without_any_modality_is_refused() -> None:
    with pytest.raises(BatchError, match=r"none of the 2 turns of the dev split has any features \(text, audio\)"):
        check_presence([table("text", "train", "test"), table("audio", "train")], splits(), {})


def test_features_of_no_turn_of_the_corpus_are_refused() -> None:
    tables = [table("text", "train", "dev", "test"), table("audio", "other")]
    message = r"'audio' \(data.packs.audio=p\) hold none of the 6 turns.*\('train', '0'\); first held: \('other', '0'\)"
    with pytest.raises(BatchError, match=message):
        check_presence(tables, splits(), {"audio": "p"})
