import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.testing.twins.dailydialog import write_dailydialog


@pytest.fixture
def twin(tmp_path):
    return write_dailydialog(tmp_path / "dailydialog")


@pytest.fixture
def unsplit(tmp_path):
    return write_dailydialog(tmp_path / "unsplit", split=False)


def load(folder):
    corpus = open_corpus("dailydialog", folder)
    return corpus.conversations(corpus.protocol())


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    return str(caught.value)


def edit(path, change):
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def test_twin(twin):
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 12, "dev": 4, "test": 5}
    assert len(splits["train"][0]) == 1
    second = splits["test"][1]
    assert second.id == "test/1"
    texts = (twin / "test" / "dialogues_test.txt").read_text(encoding="utf-8").splitlines()[1]
    assert " __eou__ ".join(turn.text for turn in second.turns) + " __eou__" == texts
    numbers = (twin / "test" / "dialogues_emotion_test.txt").read_text().splitlines()[1].split()
    order = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
    assert [turn.targets["emotion"].value for turn in second.turns] == [order[int(number)] for number in numbers]
    assert second.speaker_numbers() == [place % 2 for place in range(len(second))]
    assert not set(second.speakers) & {name for dialogue in splits["train"] for name in dialogue.speakers}


def test_protocol():
    protocol = open_corpus("dailydialog").protocol()
    assert (protocol.id, protocol.task.metric) == ("dailydialog/7way", "micro_f1_without_neutral")


def test_the_card_adds_up():
    card = open_corpus("dailydialog").card
    for split, counts in card.counts.items():
        assert sum(card.labels["dailydialog/7way"][split].values()) == counts["utterances"]
    assert sum(counts["utterances"] for counts in card.counts.values()) == 102979
    assert sum(counts["conversations"] for counts in card.counts.values()) == 13118


@pytest.mark.parametrize("deeper", [True, False])
def test_other_places(twin, deeper):
    expected = load(twin)
    for part in ("train", "validation", "test"):
        for path in list((twin / part).iterdir()):
            place = twin / part / part if deeper else twin
            place.mkdir(exist_ok=True)
            path.rename(place / path.name)
    assert load(twin) == expected


def test_unsplit_files(twin, unsplit):
    splits = load(unsplit)
    assert {split: len(part) for split, part in splits.items()} == {"train": 17, "dev": 2, "test": 2}
    ids = [dialogue.id for part in splits.values() for dialogue in part]
    assert sorted(ids) == sorted(f"all/{line}" for line in range(21))
    assert [dialogue.id for dialogue in load(unsplit)["dev"]] == [dialogue.id for dialogue in splits["dev"]]
    corpus = open_corpus("dailydialog", unsplit)
    found = check_corpus(corpus, corpus.protocol())
    assert not [finding for finding in found if finding.level == "fault"]
    assert any("is split by this library" in finding.text for finding in found)
    assert open_corpus("dailydialog", twin).card.counts["train"]["conversations"] == 11118


def test_the_split_files_come_first(twin):
    write_dailydialog(twin, split=False)
    assert len(load(twin)["train"]) == 12
    assert load(twin)["train"][0].id == "train/0"


def test_one_mismatch_of_the_unsplit_files_is_left_out(unsplit):
    lines = (unsplit / "dialogues_emotion.txt").read_text().splitlines()
    lines[4] += "0 "
    (unsplit / "dialogues_emotion.txt").write_text("\n".join(lines))
    assert "all/4" not in {dialogue.id for part in load(unsplit).values() for dialogue in part}
    corpus = open_corpus("dailydialog", unsplit)
    texts = [finding.text for finding in corpus.findings(corpus.protocol())]
    assert any("line 5" in text and "is omitted" in text for text in texts)
    lines[7] += "0 "
    (unsplit / "dialogues_emotion.txt").write_text("\n".join(lines))
    assert "line 8" in problem(unsplit)


def test_repetition_and_leakage_are_reported(twin):
    path = twin / "train" / "dialogues_train.txt"
    labels = twin / "train" / "dialogues_emotion_train.txt"
    line, marks = path.read_text().splitlines()[3], labels.read_text().splitlines()[3]
    edit(path, lambda text: text + line + "\n")
    edit(labels, lambda text: text + marks + "\n")
    edit(twin / "test" / "dialogues_test.txt", lambda text: text + line + "\n")
    edit(twin / "test" / "dialogues_emotion_test.txt", lambda text: text + marks + "\n")
    corpus = open_corpus("dailydialog", twin)
    found = check_corpus(corpus, corpus.protocol())
    assert any(finding.text == "train: 1 dialogues repeat an earlier one word for word" for finding in found)
    assert any(finding.level == "fault" and "same texts in two splits" in finding.text for finding in found)


def test_characters_that_look_like_line_ends_stay(twin):
    path = twin / "train" / "dialogues_train.txt"
    expected = load(twin)["train"][0].turns[0].text.replace(" ", " \u2028\x85 ", 1)
    edit(path, lambda text: text.replace(" ", " \u2028\x85 ", 1).replace("\n", "\r\n"))
    assert load(twin)["train"][0].turns[0].text == expected
    assert len(load(twin)["train"]) == 12


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(tmp_path / "nowhere", CorpusNotFoundError)
    (twin / "validation" / "dialogues_emotion_validation.txt").unlink()
    message = problem(twin, CorpusNotFoundError)
    assert "validation/dialogues_emotion_validation.txt not found" in message
    assert "extract ijcnlp_dailydialog.zip" in message


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("dialogues_emotion_test.txt", lambda text: text.replace("0", "7", 1), "found '7', but numbers from 0 to 6"),
        ("dialogues_emotion_test.txt", lambda text: text.replace("0", "x", 1), "found 'x'"),
        ("dialogues_emotion_test.txt", lambda text: text[text.index("\n") + 1 :], "has 5 lines"),
        ("dialogues_emotion_test.txt", lambda text: "0 " + text, "line 1: 1 utterances"),
        ("dialogues_test.txt", lambda text: "\n" + text[text.index("\n") + 1 :], "line 1: an empty line"),
        ("dialogues_test.txt", lambda text: "", "is empty"),
    ],
)
def test_bad_files(twin, name, change, words):
    edit(twin / "test" / name, change)
    message = problem(twin)
    assert words in message
    assert name in message or "dialogues_test.txt" in message


def test_seeds(tmp_path):
    first, again, other = (write_dailydialog(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert load(first) == load(again) != load(other)
    assert open_corpus("dailydialog", first).fingerprint() == open_corpus("dailydialog", again).fingerprint()


def long_text(folder, utterances, line=7852):
    """A train text that has a dialogue of 11 labels on ``line``."""
    texts = ["Hi. __eou__ Hello. __eou__"] * (line - 1)
    labels = ["0 4"] * (line - 1)
    texts.append(" __eou__ ".join(f"Word {number}." for number in range(1, utterances + 1)) + " __eou__")
    labels.append(" ".join("01234561234"))
    (folder / "train" / "dialogues_train.txt").write_text("\n".join(texts) + "\n")
    (folder / "train" / "dialogues_emotion_train.txt").write_text("\n".join(labels) + "\n")


def test_the_train_text_with_a_cut_utterance(twin):
    long_text(twin, 12)
    dialogue = load(twin)["train"][7851]
    texts = [turn.text for turn in dialogue.turns]
    assert texts == [*(f"Word {n}." for n in range(1, 5)), "Word 5. Word 6.", *(f"Word {n}." for n in range(7, 13))]
    order = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
    assert [turn.targets["emotion"].value for turn in dialogue.turns] == [order[int(n)] for n in "01234561234"]
    corpus = open_corpus("dailydialog", twin)
    (note,) = corpus.notes(corpus.protocol())
    assert "line 7852: 12 utterances, but 11 labels" in note.text
    assert "utterances 5 and 6 are read as one" in note.text


def test_no_other_line_is_joined(twin):
    corpus = open_corpus("dailydialog", twin)
    assert corpus.notes(corpus.protocol()) == []
    long_text(twin, 11)
    assert len(load(twin)["train"][7851]) == 11
    corpus = open_corpus("dailydialog", twin)
    assert corpus.notes(corpus.protocol()) == []
    long_text(twin, 13)
    assert "line 7852: 13 utterances" in problem(twin)
    long_text(twin, 12, line=7851)
    assert "line 7851: 12 utterances" in problem(twin)
