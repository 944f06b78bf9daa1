import subprocess
import sys

import numpy as np
import pytest

from ercfusion.data import Conversation, FeatureTable, Finding, Target, TaskSpec, Turn, get_schema, open_corpus
from ercfusion.data.check import (
    check_corpus,
    check_counts,
    check_duplicates,
    check_label_counts,
    check_modalities,
    check_overlap,
    check_split,
    check_table,
    check_unseen_labels,
)
from ercfusion.data.corpus import CorpusCard, Protocol
from ercfusion.testing.twins import twin_names, write_twin

EMOTION = TaskSpec("emotion", "single_label", get_schema("meld7"))


def conversation(identifier, *labels, text="a b c d e", speaker="Ada"):
    turns = (Turn(str(n), speaker, text, targets={"emotion": Target(label)}) for n, label in enumerate(labels))
    return Conversation(identifier, tuple(turns))


def levels(findings, topic):
    return [finding.level for finding in findings if finding.topic == topic]


def text_of(findings, topic):
    return " ".join(finding.text for finding in findings if finding.topic == topic)


@pytest.mark.parametrize(
    # IEMOCAP has the most protocols.
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "iemocap" else name for name in twin_names()],
)
def test_every_twin_under_every_protocol(name, tmp_path):
    corpus = open_corpus(name, write_twin(name, tmp_path))
    for protocol in corpus.protocols.values():
        findings = check_corpus(corpus, protocol, list(corpus.features(protocol).values()))
        assert all(isinstance(finding, Finding) for finding in findings)
        assert {finding.topic for finding in findings if finding.level == "fault"} <= {"counts", "label counts"}
        assert {"lengths", "speakers", "labels", "leakage"} <= {finding.topic for finding in findings}


def test_counts():
    splits = {"train": [conversation("a", "joy", "joy")], "dev": [conversation("b", "joy")]}
    card = CorpusCard("x", "X", "", "", "", counts={"train": {"conversations": 1, "utterances": 2}, "test": {}})
    findings = check_counts(splits, card)
    assert [finding.level for finding in findings] == ["ok", "note", "ok"]
    card = CorpusCard("x", "X", "", "", "", counts={"train": {"conversations": 1, "utterances": 3}})
    assert check_counts(splits, card)[0].level == "fault"


def test_counts_of_another_protocol():
    splits = {"train": [conversation("a", "joy"), conversation("c", "joy")], "dev": [conversation("b", "joy")]}
    sizes = {"conversations": 1, "utterances": 1}
    card = CorpusCard("x", "X", "", "", "", counts={"train": sizes, "dev": {"conversations": 2, "utterances": 2}})
    assert [finding.level for finding in check_counts(splits, card)] == ["fault", "fault"]
    findings = check_counts(splits, card, default=False)
    assert [finding.level for finding in findings] == ["ok", "ok", "ok"]
    assert "all splits: 3 conversations, 3 utterances, as many" in findings[-1].text
    card = CorpusCard("x", "X", "", "", "", counts={"train": sizes, "dev": sizes})
    findings = check_counts(splits, card, default=False)
    assert findings[-1].level == "fault"
    assert "but the release has 2 conversations, 2 utterances" in findings[-1].text


def test_label_counts():
    protocol = Protocol("x/7way", EMOTION, "", "", ())
    splits = {"train": [conversation("a", "joy", "joy", None, "anger")], "dev": [conversation("b", "joy")]}
    labels = {
        "x/7way": {"train": {"joy": 2, "anger": 1, "fear": 0}, "dev": {"joy": 2}},
        "x/3way": {"train": {"joy": 9}},
    }
    findings = check_label_counts(splits, CorpusCard("x", "X", "", "", "", labels=labels), protocol)
    assert [finding.level for finding in findings] == ["ok", "fault"]
    assert findings[1].text == "dev: the counts of 1 labels differ: joy 1 (the release has 2). Get the files again."
    assert check_label_counts(splits, CorpusCard("x", "X", "", "", ""), protocol) == []
    # A label that the card does not name is none of the release's.
    labels = {"x/7way": {"train": {"joy": 2}}}
    findings = check_label_counts(splits, CorpusCard("x", "X", "", "", "", labels=labels), protocol)
    assert findings[0].text.endswith("anger 1 (the release has 0). Get the files again.")


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
    for split in ("train", "dev"):
        assert levels(check_split(split, [conversation("a", None)], EMOTION), "labels") == ["fault"]
    (finding,) = [one for one in check_split("test", [conversation("a", None)], EMOTION) if one.topic == "labels"]
    assert (finding.level, finding.text) == ("note", "test: not labelled for the task 'emotion': predicted, not scored")


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


def test_given_sentences_are_no_leak():
    sentence = "these are nine words that all of them say"
    part = [conversation(f"{n}", "joy", text=sentence, speaker=f"speaker {n}") for n in range(4)]
    findings = check_overlap({"train": part[:3], "test": part[3:]})
    assert levels(findings, "leakage") == ["note"]
    assert "4 conversations have only 1 different texts" in text_of(findings, "leakage")
    assert levels(check_overlap({"train": part[:2], "test": part[3:]}), "leakage") == ["fault"]


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
    expected = "train: 2 of 3 columns are constant: 1 always 0 (column 2), 1 with another value (column 1)"
    assert expected in text
    assert levels(findings, "features audio") == ["note", "fault", "note", "fault"]


def test_constant_columns_by_name():
    values = np.array([[0, 0, 0, 0, 7, np.nan, 1], [0, 0, 0, 0, 7, np.inf, 2]])
    table = FeatureTable("audio", KEYS[:2], values)
    text = text_of(check_table(SPLITS, table, ["a", "b", "c", "d", "e", "f", "g"]), "features audio")
    assert "train: 6 of 7 columns are constant: 4 always 0 (a, b, c, ...), 1 with another value (e), 1 without" in text
    dead = check_table(SPLITS, FeatureTable("audio", KEYS, np.zeros((4, 2))))
    assert [finding.level for finding in dead if "constant" in finding.text] == ["fault"]
    # One utterance, or one value: neither says that a column is dead.
    assert "constant" not in text_of(check_table(SPLITS, FeatureTable("audio", KEYS[:1], values[:1])), "features audio")


def test_duplicates():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0]])
    (finding,) = check_duplicates(SPLITS, FeatureTable("audio", KEYS, values))
    assert finding.level == "note"
    assert finding.text == "2 of 4 utterances have the same values as another: train a/0 = train a/2"
    values = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    (finding,) = check_duplicates(SPLITS, FeatureTable("audio", KEYS, values))
    assert finding.level == "fault"
    assert "4 of 4 utterances" in finding.text
    assert "2 of them zeros only" in finding.text
    assert "train a/2 = test b/0" in finding.text
    assert check_duplicates(SPLITS, FeatureTable("audio", KEYS, np.arange(8.0).reshape(4, 2))) == []


def test_equal_texts_have_equal_vectors():
    splits = {
        "train": [conversation("a", "joy", text="Hey you!")],
        "test": [conversation("b", "joy", text="hey  you!"), conversation("c", "joy", text="No.")],
    }
    keys = [("a", "0"), ("b", "0"), ("c", "0")]
    values = np.array([[1.0], [1.0], [2.0]])
    assert check_duplicates(splits, FeatureTable("text", keys, values)) == []
    assert len(check_duplicates(splits, FeatureTable("audio", keys, values))) == 1
    (finding,) = check_duplicates(splits, FeatureTable("text", keys, np.ones((3, 1))))
    assert "train a/0 = test c/0" in finding.text


def test_duplicate_sequences():
    values = np.array([[1.0], [2.0], [1.0], [2.0], [1.0]])
    table = FeatureTable("audio", KEYS, values, offsets=np.array([0, 2, 4, 4, 5]))
    (finding,) = check_duplicates(SPLITS, table)
    assert finding.text == "2 of 4 utterances have the same values as another: train a/0 = train a/1"


def test_missing_modalities():
    values = np.ones((4, 1))
    audio, text = FeatureTable("audio", KEYS[:2], values[:2]), FeatureTable("text", KEYS[1:], values[1:])
    findings = check_modalities(SPLITS, [audio, text])
    assert [finding.level for finding in findings] == ["note", "note"]
    assert findings[0].text == "train: of 3 utterances 1 lack audio, 1 lack text, and 0 lack all"
    assert findings[1].text == "test: of 1 utterances 1 lack audio, and 0 lack all"
    visual = FeatureTable("visual", KEYS[:1], values[:1])
    findings = check_modalities(SPLITS, [audio, visual])
    assert [finding.level for finding in findings] == ["note", "fault"]
    assert "2 lack visual, and 1 lack all (first: a/2)" in findings[0].text
    assert check_modalities(SPLITS, [audio]) == []
    whole = [FeatureTable(name, KEYS, values) for name in ("audio", "text")]
    assert [finding.text for finding in check_modalities(SPLITS, whole)] == [
        "train: every utterance has audio, text",
        "test: every utterance has audio, text",
    ]


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
