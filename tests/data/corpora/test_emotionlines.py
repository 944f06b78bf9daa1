import json
from collections import Counter

import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.corpora.emotionlines import repair_text
from ercfusion.testing.twins import write_emotionlines


@pytest.fixture
def twin(tmp_path):
    return write_emotionlines(tmp_path / "emotionlines")


def load(folder):
    corpus = open_corpus("emotionlines", folder)
    return corpus.conversations(corpus.protocol())


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    assert str(caught.value).count("\n") <= 4
    return str(caught.value)


def turns(splits):
    return [turn for part in splits.values() for dialogue in part for turn in dialogue.turns]


def rewrite(folder, change):
    path = folder / "friends.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_twin_is_split_by_dialogue(twin):
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 24, "dev": 3, "test": 3}
    assert {d.id for part in splits.values() for d in part} == {f"friends/{number}" for number in range(30)}
    assert splits == load(twin)


def test_released_splits_are_used_where_all_three_exist(twin):
    write_emotionlines(twin, split=True)
    splits = load(twin)
    assert [splits[split][0].id for split in ("train", "dev", "test")] == ["train/0", "dev/0", "test/0"]
    (twin / "friends_dev.json").unlink()
    assert load(twin)["train"][0].id.startswith("friends/")


def test_targets(twin):
    def change(content):
        content[0] = [
            {"speaker": "A", "utterance": "x", "emotion": "joy", "annotation": "0410000"},
            {"speaker": "A", "utterance": "x", "emotion": "non-neutral", "annotation": "2201000"},
            {"speaker": "A", "utterance": "x", "emotion": "non-neutral", "annotation": "1111100"},
        ]

    rewrite(twin, change)
    dialogue = next(d for part in load(twin).values() for d in part if d.id == "friends/0")
    first, second, third = (turn.targets for turn in dialogue.turns)
    assert [one["emotion"].value for one in (first, second, third)] == ["joy", None, None]
    assert second["emotion"].votes["joy"] == 2
    assert first["emotion_distribution"].value["joy"] == 0.8
    assert first["emotion_distribution"].value["sadness"] == 0.2
    assert first["emotions"].value == {"joy"}
    assert second["emotions"].value == {"neutral", "joy"}
    assert third["emotions"].value == {"neutral", "joy", "sadness", "fear", "anger"}
    assert [one["emotion_plurality"].value for one in (first, second, third)] == ["joy", None, None]
    assert first["emotions_all"].value == {"joy", "sadness"}
    assert second["emotions_all"].value == {"neutral", "joy", "fear"}
    assert first["emotion_smoothed"].value["joy"] == pytest.approx(0.8 * 0.95 + 0.2 * 0.05 / 6)
    assert sum(first["emotion_smoothed"].value.values()) == pytest.approx(1)
    assert all(target.votes == first["emotion"].votes for target in first.values())


def test_text_is_repaired(twin):
    assert repair_text("he\x92s \x93so\x94\x85 é\x81") == "he’s “so”… é\x81"
    raw = json.loads((twin / "friends.json").read_text())
    assert any("It\x92s" in line["utterance"] for dialogue in raw for line in dialogue)
    assert any("It’s" in turn.text for turn in turns(load(twin)))
    assert not any("\x92" in turn.text for turn in turns(load(twin)))


def test_protocols():
    kinds = {key: protocol.task.kind for key, protocol in open_corpus("emotionlines").protocols.items()}
    assert kinds == {
        "emotionlines/majority": "single_label",
        "emotionlines/distribution": "distribution",
        "emotionlines/multilabel": "multi_label",
        "emotionlines/plurality": "single_label",
        "emotionlines/distribution-smoothed": "distribution",
        "emotionlines/all-inclusive": "multi_label",
    }


def test_every_protocol_offers_all_tasks():
    corpus = open_corpus("emotionlines")
    first = {protocol.task.name: protocol for protocol in corpus.protocols.values()}
    assert list(first) == [
        "emotion",
        "emotion_distribution",
        "emotions",
        "emotion_plurality",
        "emotion_smoothed",
        "emotions_all",
    ]
    for protocol in corpus.protocols.values():
        assert {task.name for task in protocol.tasks} == set(first)
        assert {task.schema.name for task in protocol.tasks} == {"emotionlines7"}
        # Without data.tasks a run has its own task only, and the first of data.tasks decides the protocol.
        assert corpus.with_tasks(protocol, None).tasks == (protocol.task,)
        for name, own in first.items():
            assert corpus.with_tasks(protocol, [name]).id == own.id


@pytest.mark.parametrize("protocol", ["majority", "distribution", "multilabel", "all-inclusive"])
def test_doctor_reads_every_protocol(twin, protocol):
    corpus = open_corpus("emotionlines", twin)
    findings = check_corpus(corpus, corpus.protocol(protocol))
    known = {"counts"} if protocol == "distribution" else {"counts", "label counts"}
    assert {finding.topic for finding in findings if finding.level == "fault"} == known
    assert any(finding.topic == "votes" for finding in findings)


def test_contradicting_and_uneven_votes_are_noted(twin):
    rewrite(twin, lambda content: [line.update(emotion="joy", annotation="4000000") for line in content[0]])
    texts = " ".join(finding.text for finding in open_corpus("emotionlines", twin).findings(None))
    assert "is not the majority" in texts
    assert "do not have 5 votes" in texts


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(tmp_path / "nowhere", CorpusNotFoundError)
    (twin / "friends.json").unlink()
    assert "friends.json not found" in problem(twin, CorpusNotFoundError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[2][1].update(annotation="00020"), "found '00020', but 7 digits"),
        (lambda content: content[2][1].update(annotation="0000000"), "found '0000000'"),
        (lambda content: content[2][1].update(annotation="00 2120"), "found '00 2120'"),
        (lambda content: content[2][1].update(annotation=2120), "type str"),
        (lambda content: content[2][1].update(emotion="joyy"), "Did you mean 'joy'?"),
        (lambda content: content[2][1].pop("speaker"), "no key 'speaker'"),
        (lambda content: content[2].__setitem__(1, "hello"), "but an object"),
    ],
)
def test_bad_entries(twin, change, words):
    rewrite(twin, change)
    message = problem(twin)
    assert "friends.json, dialogue 2, utterance 1" in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"[]", "a list of dialogues"),
        (b"{}", "a list of dialogues"),
        (b"[[]]", "a list of utterances"),
        (b'[[{"speaker": "A"', "not valid JSON"),
        ('[["é"]]'.encode("latin-1"), "is not UTF-8"),
        ("[[1]]".encode("utf-16"), "UTF-16"),
    ],
)
def test_bad_files(twin, content, words):
    (twin / "friends.json").write_bytes(content)
    assert words in problem(twin)


@pytest.mark.slow
def test_real(shared_data):
    corpus = open_corpus("emotionlines", shared_data("emotionlines_friends"))
    splits = corpus.conversations(corpus.protocol())
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [800, 100, 100]
    spoken = turns(splits)
    assert len(spoken) == 14503
    counts = Counter(turn.targets["emotion"].value for turn in spoken)
    assert counts == {
        "neutral": 6530,
        None: 2772,
        "joy": 1710,
        "surprise": 1657,
        "anger": 759,
        "sadness": 498,
        "disgust": 331,
        "fear": 246,
    }
    assert {sum(turn.targets["emotion"].votes.values()) for turn in spoken} == {5}
    assert Counter(len(turn.targets["emotions"].value) for turn in spoken) == {1: 10433, 2: 3996, 5: 74}
    assert not any(0x80 <= ord(character) < 0xA0 for turn in spoken for character in turn.text + turn.speaker)
    findings = check_corpus(corpus, corpus.protocol())
    assert not [finding for finding in findings if finding.level == "fault"]
    assert not any("is not the majority" in finding.text for finding in findings)
    kept = [finding.text for finding in findings if "labelled by the rule" in finding.text]
    assert kept[2] == (
        "test: utterances with votes: 1436; labelled by the rule: majority 1149, plurality 1259, distribution 1436, "
        "smoothed 1436, at_least_two 1436, all_inclusive 1436"
    )


def as_chats(content):
    names = {}
    for entry in [entry for dialogue in content for entry in dialogue]:
        entry["speaker"] = names.setdefault(entry["speaker"], str(1050103855 + len(names)))


@pytest.mark.parametrize("name", ["friends.json", "emotionpush.json"])
def test_emotionpush(twin, name):
    rewrite(twin, as_chats)
    (twin / "friends.json").rename(twin / name)
    corpus = open_corpus("emotionlines", twin)
    assert list(corpus.protocols) == [
        f"emotionlines/push-{name.partition('/')[2]}" for name in open_corpus("emotionlines").protocols
    ]
    assert corpus.protocol("push-multilabel").task.kind == "multi_label"
    assert all(dialogue.id.startswith("push/") for part in load(twin).values() for dialogue in part)
    assert "EmotionPush" in corpus.card.title
    found = check_corpus(corpus, corpus.protocol("push-multilabel"))
    assert not [finding for finding in found if finding.level == "fault" and "release" in finding.text]
    notes = [finding.text for finding in corpus.notes(corpus.protocol())]
    assert [text.partition(":")[0] for text in notes] == (["friends.json"] if name == "friends.json" else [])
    # The other part is as it was.
    assert open_corpus("emotionlines").protocol().id == "emotionlines/majority"


def test_every_protocol_has_its_own_label_counts():
    card = open_corpus("emotionlines").card
    for split, counts in card.counts.items():
        names = ("majority", "plurality", "multilabel", "all-inclusive")
        majority, plurality, several, every = (
            sum(card.labels[f"emotionlines/{name}"][split].values()) for name in names
        )
        assert majority < plurality < counts["utterances"] < several < every


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["majority", "multilabel", "plurality", "all-inclusive"])
def test_label_counts_of_the_release(shared_data, protocol):
    corpus = open_corpus("emotionlines", shared_data("emotionlines_friends"))
    found = [finding for finding in check_corpus(corpus, corpus.protocol(protocol)) if finding.topic == "label counts"]
    assert [finding.level for finding in found] == ["ok"] * 3
