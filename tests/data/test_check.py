import subprocess
import sys

import numpy as np
import pytest

from ercfusion.data import Conversation, FeatureTable, Finding, Target, TaskSpec, Turn, get_schema, open_corpus
from ercfusion.data.check import (
    check_corpus,
    check_counts,
    check_overlap,
    check_split,
    check_table,
    check_unseen_labels,
)
from ercfusion.data.corpus import CorpusCard
from ercfusion.testing.twins import TWINS, write_twin

EMOTION = TaskSpec("emotion", "single_label", get_schema("meld7"))


def conversation(identifier, *labels, text="a b c d e", speaker="Ada"):
    turns = (Turn(str(n), speaker, text, targets={"emotion": Target(label)}) for n, label in enumerate(labels))
    return Conversation(identifier, tuple(turns))


def levels(findings, topic):
    return [finding.level for finding in findings if finding.topic == topic]


def text_of(findings, topic):
    return " ".join(finding.text for finding in findings if finding.topic == topic)


@pytest.mark.parametrize("name", TWINS)
def test_every_twin_under_every_protocol(name, tmp_path):
    corpus = open_corpus(name, write_twin(name, tmp_path))
    for protocol in corpus.protocols.values():
        findings = check_corpus(corpus, protocol, list(corpus.features(protocol).values()))
        assert all(isinstance(finding, Finding) for finding in findings)
        assert {finding.topic for finding in findings if finding.level == "fault"} <= {"counts"}
        assert {"lengths", "speakers", "labels", "leakage"} <= {finding.topic for finding in findings}


def test_counts():
    splits = {"train": [conversation("a", "joy", "joy")], "dev": [conversation("b", "joy")]}
    card = CorpusCard("x", "X", "", "", "", counts={"train": {"conversations": 1, "utterances": 2}, "test": {}})
    findings = check_counts(splits, card)
    assert [finding.level for finding in findings] == ["ok", "note", "ok"]
    card = CorpusCard("x", "X", "", "", "", counts={"train": {"conversations": 1, "utterances": 3}})
    assert check_counts(splits, card)[0].level == "fault"


def test_split():
    part = [conversation("a", "joy", "anger", "joy"), conversation("b", None, text=" ")]
    findings = check_split("dev", part, EMOTION)
    assert "1 of 4 utterances are not labelled" in text_of(findings, "unlabelled")
    assert "joy 2" in text_of(findings, "labels")
    assert "at most 3; 1 conversations have one utterance" in text_of(findings, "lengths")
    assert "2 changes" in text_of(findings, "label shifts")
    assert "1 utterances have an empty text" in text_of(findings, "texts")
    assert levels(check_split("dev", [conversation("a", "joy", text=None)], EMOTION), "texts") == ["note"]


def test_split_without_content():
    assert levels(check_split("dev", [], EMOTION), "counts") == ["fault"]
    assert levels(check_split("dev", [conversation("a", None)], EMOTION), "labels") == ["fault"]


def test_foreign_labels_and_values_out_of_range():
    assert levels(check_split("dev", [conversation("a", "glee")], EMOTION), "labels") == ["ok", "fault"]
    task = TaskSpec("emotion", "regression", dimensions=("x",), low=-1, high=1)
    assert levels(check_split("dev", [conversation("a", 0.5, -1.0)], task), "labels") == ["ok"]
    assert levels(check_split("dev", [conversation("a", 0.5, 1.5)], task), "labels") == ["fault"]
    assert levels(check_split("dev", [conversation("a", (0.5,), float("nan"))], task), "labels") == ["fault"]


def test_unseen_labels():
    every = conversation("a", *get_schema("meld7").labels)
    assert check_unseen_labels({"train": [every]}, EMOTION) == []
    findings = check_unseen_labels({"train": [conversation("a", "joy", "anger")]}, EMOTION)
    assert "fear" in findings[0].text


def test_overlap():
    leak = {"train": [conversation("a", "joy", "joy")], "test": [conversation("b", "joy", "joy")]}
    findings = check_overlap(leak)
    assert levels(findings, "leakage") == ["fault"]
    assert "a = b" in text_of(findings, "leakage")
    assert "1 of 1 speakers" in text_of(findings, "speaker overlap")
    short = {"train": [conversation("a", "joy")], "test": [conversation("b", "joy", speaker="Emil")]}
    assert levels(check_overlap(short), "leakage") == ["ok", "note"]
    assert levels(check_overlap(short), "speaker overlap") == ["ok"]
    twice = {"train": [conversation("a", "joy")], "test": [conversation("a", "joy", text="other")]}
    assert levels(check_overlap(twice), "overlap") == ["fault"]


def test_conversations_without_texts_are_no_leak():
    splits = {part: [conversation(part, "joy", "joy", text=None)] for part in ("train", "test")}
    assert levels(check_overlap(splits), "leakage") == ["ok"]


SPLITS = {"train": [conversation("a", "joy", "joy", "joy")], "test": [conversation("b", "joy")]}
KEYS = [("a", "0"), ("a", "1"), ("a", "2"), ("b", "0")]


def test_table_without_fault():
    findings = check_table(SPLITS, FeatureTable("audio", KEYS, np.arange(8.0).reshape(4, 2)))
    assert levels(findings, "features audio") == ["ok", "ok"]


def test_table_with_missing_bad_and_dead_values():
    values = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, np.nan]], dtype=np.float32)
    findings = check_table(SPLITS, FeatureTable("audio", KEYS[:2], values))
    text = text_of(findings, "features audio")
    assert "train: 1 of 3 utterances have none (first: a/2)" in text
    assert "train: 1 utterances have values that are not finite (first: a/1)" in text
    assert "train: 2 of 3 columns are constant" in text
    assert levels(findings, "features audio") == ["note", "fault", "note", "fault"]


def test_table_of_sequences():
    values = np.array([[1.0], [2.0], [np.inf], [4.0], [5.0]])
    table = FeatureTable("audio", KEYS, values, offsets=np.array([0, 2, 2, 4, 5]))
    findings = check_table(SPLITS, table)
    assert "(first: a/2)" in text_of(findings, "features audio")
    assert levels(findings, "features audio") == ["ok", "fault", "ok"]


def test_reading_needs_no_pandas(tmp_path):
    write_twin("mosi", tmp_path)
    code = (
        "import sys; from ercfusion.data import open_corpus; import ercfusion.data.check\n"
        f"corpus = open_corpus('mosi', {str(tmp_path)!r}); corpus.features(corpus.protocol())\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
