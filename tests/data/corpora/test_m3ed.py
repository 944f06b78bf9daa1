import json
from itertools import chain

import pytest

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.conversation import Conversation
from ercfusion.testing.twins.m3ed import write_m3ed


@pytest.fixture
def twin(tmp_path):
    return write_m3ed(tmp_path / "m3ed")


def load(folder, protocol=None):
    corpus = open_corpus("m3ed", folder)
    return corpus.conversations(corpus.protocol(protocol))


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    return str(caught.value)


def edit(folder, change):
    path = folder / "annotation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def utterance(content, key="wenquan_2_3"):
    series, dialogue, _ = key.split("_")
    return content[series][f"{series}_{dialogue}"]["Dialog"][key]


def turn(folder, key="wenquan_2_3"):
    return next(turn for dialogue in load(folder)["train"] for turn in dialogue.turns if turn.id == key)


def texts(folder):
    corpus = open_corpus("m3ed", folder)
    return [finding.text for finding in corpus.findings(corpus.protocol())]


def test_twin(twin):
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 12, "dev": 4, "test": 5}
    content = json.loads((twin / "annotation.json").read_text(encoding="utf-8"))
    for part in splits.values():
        for dialogue in part:
            entry = content[dialogue.id.rsplit("_", 1)[0]][dialogue.id]
            assert [turn.id for turn in dialogue.turns] == [f"{dialogue.id}_{n}" for n in range(1, 1 + len(dialogue))]
            assert len(dialogue.speakers) <= 2
            for spoken in dialogue.turns:
                given = entry["Dialog"][spoken.id]
                emotions = given["EmoAnnotation"]
                assert spoken.text == given["Text"]
                assert spoken.speaker.endswith(entry["SpeakerInfo"][given["Speaker"]]["Name"])
                assert spoken.targets["emotion"].value == emotions["final_main_emo"].lower()
                assert spoken.targets["emotions"].value == set(emotions["final_mul_emo"].lower().split(","))
                shares = spoken.targets["emotion_distribution"].value
                assert sum(shares.values()) == pytest.approx(1)
    starts = [turn.start for turn in splits["train"][5].turns]
    assert starts == sorted(starts)
    assert load(twin, "votes") == load(twin, "multilabel") == splits


def test_protocols():
    corpus = open_corpus("m3ed")
    tasks = {name: corpus.protocol(name).task for name in ("main", "multilabel", "votes")}
    assert [task.kind for task in tasks.values()] == ["single_label", "multi_label", "distribution"]
    assert corpus.protocol().id == "m3ed/main"


def test_protocols_of_votes(twin):
    corpus = open_corpus("m3ed", twin)
    kinds = {name: corpus.protocol(name).task for name in ("majority", "plurality", "votes-smoothed", "all-inclusive")}
    assert [task.kind for task in kinds.values()] == ["single_label", "single_label", "distribution", "multi_label"]
    names = {task.name for task in corpus.protocol().tasks}
    protocols = [protocol for name, protocol in corpus.protocols.items() if "dialogue" not in name]
    assert {frozenset(task.name for task in protocol.tasks) for protocol in protocols} == {frozenset(names)}
    for protocol in protocols:
        assert not [one for one in check_corpus(corpus, protocol) if one.level == "fault" and one.topic == "labels"]


def test_votes(twin):
    def change(content):
        utterance(content)["EmoAnnotation"] = {
            "EmoAnnotator1": "Sad,Anger",
            "EmoAnnotator2": "Sad",
            "EmoAnnotator3": "Other",
            "final_mul_emo": "Sad，Anger",
            "final_main_emo": "Sad",
        }

    edit(twin, change)
    targets = turn(twin).targets
    assert targets["emotion"].votes == {"sad": 2, "anger": 1}
    assert targets["emotion_distribution"].value["sad"] == pytest.approx(2 / 3)
    assert targets["emotion_distribution"].value["neutral"] == 0
    assert targets["emotions"].value == {"sad", "anger"}
    # Two of the two annotators who named an emotion; of the three votes both have a share above 1/7.
    assert targets["emotion_majority"].value == targets["emotion_plurality"].value == "sad"
    assert targets["emotions_all"].value == {"sad", "anger"}
    assert targets["emotion_smoothed"].value["sad"] == pytest.approx(2 / 3 * 0.95 + 1 / 3 * 0.05 / 6)


def test_an_utterance_without_votes_is_unlabelled_for_the_distribution_alone(twin):
    def change(content):
        for number in (1, 2, 3):
            utterance(content)["EmoAnnotation"][f"EmoAnnotator{number}"] = None if number == 1 else "NotSure"

    edit(twin, change)
    targets = turn(twin).targets
    assert not targets["emotion_distribution"].valid
    assert not targets["emotions_all"].valid
    assert targets["emotion"].valid
    assert any("1 utterances have no votes" in text for text in texts(twin))
    assert any("'NotSure' 2" in text for text in texts(twin))


def test_times(twin):
    edit(twin, lambda content: utterance(content).update(StartTime="01:02:03:05", EndTime="01:02:03:30"))
    found = turn(twin)
    assert (found.start, found.end) == (pytest.approx(3723.2), pytest.approx(3724.2))
    edit(twin, lambda content: utterance(content).update(EndTime="00:12"))
    found = turn(twin)
    assert (found.start, found.end) == (None, None)
    assert any("1 utterances have times unlike HH:MM:SS:FF" in text for text in texts(twin))


def test_names_that_do_not_tell_the_speakers_apart(twin):
    def change(content):
        for person in content["wenquan"]["wenquan_2"]["SpeakerInfo"].values():
            person["Name"] = "林一"

    edit(twin, change)
    dialogue = next(entry for entry in load(twin)["train"] if entry.id == "wenquan_2")
    assert set(dialogue.speakers) == {"wenquan_2/A", "wenquan_2/B"}


def test_findings(twin):
    def change(content):
        labels = utterance(content)["EmoAnnotation"]
        labels.update(final_main_emo="Fear", final_mul_emo="Sad", EmoAnnotator1="Sad", EmoAnnotator2="Sad")
        labels["EmoAnnotator3"] = "Other"
        content["nolist"] = content["heliu"]

    edit(twin, change)
    found = texts(twin)
    assert any("1 main emotions are not in the set" in text for text in found)
    assert any("1 main emotions were named by no annotator" in text for text in found)
    assert any("1 series are in no list" in text and "nolist" in text for text in found)


def test_check(twin):
    corpus = open_corpus("m3ed", twin)
    faults = [finding for finding in check_corpus(corpus, corpus.protocol("votes")) if finding.level == "fault"]
    assert {finding.topic for finding in faults} == {"counts"}  # a twin is smaller than the release


def test_clips(tmp_path):
    folder = write_m3ed(tmp_path, recordings=True)
    corpus = open_corpus("m3ed", folder)
    clips = corpus.clips(corpus.protocol(), "audio")
    assert list(clips) == [key for part in load(folder).values() for key in chain(*map(Conversation.keys, part))]
    assert sum(not clip.path.is_file() for clip in clips.values()) == 1
    spoken = json.loads((folder / "annotation.json").read_text(encoding="utf-8"))
    path = clips["wenquan_2", "wenquan_2_3"].path
    assert path.name == f"{utterance(spoken)['Speaker']}_wenquan_2_3.wav"
    with pytest.raises(ConfigError, match="no visual recordings"):
        corpus.clips(corpus.protocol(), "visual")


def test_no_clips(twin):
    corpus = open_corpus("m3ed", twin)
    with pytest.raises(CorpusNotFoundError, match="modality_speech"):
        corpus.clips(corpus.protocol(), "audio")


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(tmp_path / "nowhere", CorpusNotFoundError)
    (twin / "splitInfo" / "movie_list_val.txt").unlink()
    assert "splitInfo/movie_list_val.txt not found" in problem(twin, CorpusNotFoundError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry["EmoAnnotation"].update(final_main_emo="Hapy"), "Did you mean 'happy'?"),
        (lambda entry: entry["EmoAnnotation"].update(final_main_emo="Sad,Anger"), "2 emotions, but one is main"),
        (lambda entry: entry["EmoAnnotation"].update(final_mul_emo=" , "), "the text is empty"),
        (lambda entry: entry["EmoAnnotation"].pop("final_mul_emo"), "no key 'final_mul_emo'"),
        (lambda entry: entry.update(Text=3), "type str is expected"),
        (lambda entry: entry.pop("Speaker"), "no key 'Speaker'"),
        (lambda entry: entry.update(EmoAnnotation=[]), "type dict is expected"),
    ],
)
def test_bad_utterances(twin, change, words):
    edit(twin, lambda content: change(utterance(content)))
    message = problem(twin)
    assert words in message
    assert "annotation.json" in message
    assert "wenquan_2_3" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["wenquan"].update(wenquan_2=[]), "key 'wenquan_2'"),
        (lambda content: content["wenquan"]["wenquan_2"].update(Dialog={}), "there is no utterance"),
        (lambda content: content["wenquan"]["wenquan_2"]["Dialog"].update(last={}), "found the utterance 'last'"),
        (lambda content: content["heliu"].update(wenquan_2=content["heliu"]["heliu_1"]), "is also one of"),
        (lambda content: content.pop("xiaoqiao"), "none of the 1 series"),
    ],
)
def test_bad_dialogues(twin, change, words):
    edit(twin, change)
    assert words in problem(twin)


def test_a_series_in_two_lists(twin):
    path = twin / "splitInfo" / "movie_list_test.txt"
    path.write_text(path.read_text() + "\nwenquan\n")
    assert "line 3: the series 'wenquan' is already in movie_list_train.txt" in problem(twin)


def test_seeds(tmp_path):
    first, again, other = (write_m3ed(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert open_corpus("m3ed", first).fingerprint() == open_corpus("m3ed", again).fingerprint()
    assert load(first) != load(other)


def test_a_number_of_thousands_of_digits(twin):
    def rename(content):
        dialog = content["wenquan"]["wenquan_2"]["Dialog"]
        dialog["wenquan_2_" + "9" * 5000] = dialog.pop("wenquan_2_3")

    edit(twin, rename)
    message = problem(twin)
    assert "a name ending in an underscore and a number is expected" in message
    assert len(message) < 500
