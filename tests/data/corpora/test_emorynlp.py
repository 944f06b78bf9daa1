import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.corpora.emorynlp import FILES, UNKNOWN_SPEAKER
from ercfusion.testing.twins import SIZES, write_emorynlp

HEADER = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time"
ROW = """Hm.,['Ada Quill'],Joyful,3,2,1,4,"00:00:01,000","00:00:02,000\""""


@pytest.fixture
def twin(tmp_path):
    return write_emorynlp(tmp_path / "emorynlp")


def load(folder):
    corpus = open_corpus("emorynlp", folder)
    return corpus.conversations(corpus.protocol())


def one_turn(folder, row):
    (folder / FILES["dev"]).write_text(f"{HEADER}\n{row}\n", encoding="utf-8")
    return load(folder)["dev"][0].turns[0]


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    assert str(caught.value).count("\n") <= 4
    return str(caught.value)


def test_twin(twin):
    splits = load(twin)
    assert {split: len(conversations) for split, conversations in splits.items()} == SIZES
    assert splits["train"][0].id == "train/s01e01c01"
    assert [turn.id for turn in splits["train"][1].turns][:2] == ["1", "2"]
    joint = splits["train"][1].turns[1].speaker.split(" & ")
    assert joint == sorted(joint)
    assert len(joint) == 2


def test_sentiment_is_grouped_from_the_emotion(twin):
    pairs = {
        (turn.targets["emotion"].value, turn.targets["sentiment"].value)
        for conversations in load(twin).values()
        for conversation in conversations
        for turn in conversation.turns
    }
    positive = {(emotion, "positive") for emotion in ("joyful", "peaceful", "powerful")}
    assert pairs == positive | {("neutral", "neutral")} | {
        (emotion, "negative") for emotion in ("mad", "sad", "scared")
    }


def test_protocols():
    corpus = open_corpus("emorynlp")
    assert [protocol.task.schema.name for protocol in corpus.protocols.values()] == ["emorynlp7", "emorynlp3"]
    assert corpus.protocol().id == "emorynlp/7way"


def test_speakers_and_unknown_times(twin):
    assert one_turn(twin, ROW.replace("['Ada Quill']", '"[\'B\', ""A\'s""]"')).speaker == "A's & B"
    assert one_turn(twin, ROW.replace("['Ada Quill']", "[]")).speaker == UNKNOWN_SPEAKER
    assert one_turn(twin, ROW.replace("00:00:02,000", "")).end is None


@pytest.mark.parametrize("cell", ["Ada", "('Ada',)", "[1]", "['']", "__import__('os')", "['Ada'"])
def test_bad_speaker(twin, cell):
    row = ROW.replace("['Ada Quill']", '"' + cell + '"')
    (twin / FILES["dev"]).write_text(f"{HEADER}\n{row}\n", encoding="utf-8")
    assert "line 2, column 'Speaker'" in problem(twin)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("Joyful", "Joyfull", "Did you mean 'joyful'?"),
        (",3,2,", ",x,2,", "column 'Scene_ID': found 'x'"),
        ("00:00:01,000", "soon", "column 'Start_Time': found 'soon'"),
    ],
)
def test_bad_cells(twin, old, new, where):
    (twin / FILES["dev"]).write_text(f"{HEADER}\n{ROW.replace(old, new)}\n", encoding="utf-8")
    message = problem(twin)
    assert "emorynlp_dev_final.csv, line 2" in message
    assert where in message


def test_duplicate_utterance_and_missing_column(twin):
    (twin / FILES["dev"]).write_text(f"{HEADER}\n{ROW}\n{ROW}\n", encoding="utf-8")
    assert "Season 1, Episode 4, Scene_ID 3, Utterance_ID 2 is also on line 2" in problem(twin)
    (twin / FILES["dev"]).write_text(f"{HEADER.replace('Scene_ID', 'Scene')}\n{ROW}\n", encoding="utf-8")
    assert "Is it 'Scene'?" in problem(twin)


def test_missing_file(twin):
    (twin / FILES["test"]).unlink()
    assert "emorynlp_test_final.csv not found" in problem(twin, CorpusNotFoundError)


def test_counts_other_than_the_quoted_ones_are_noted(twin):
    corpus = open_corpus("emorynlp", twin)
    # Notes are logged by training too.
    findings = corpus.notes(corpus.protocol()) + corpus.findings(corpus.protocol())
    assert {finding.level for finding in findings} == {"note"}
    assert sum(finding.topic == "quoted counts" for finding in findings) == 3
    assert sum("1 turns have several speakers" in finding.text for finding in findings) == 3


def test_a_scene_in_two_files_is_noted(twin):
    corpus = open_corpus("emorynlp", twin)
    assert not [note for note in corpus.notes(corpus.protocol()) if note.topic == "leakage"]
    for split in ("train", "dev"):
        (twin / FILES[split]).write_text(f"{HEADER}\n{ROW}\n", encoding="utf-8")
    (note,) = [note for note in corpus.notes(corpus.protocol()) if note.topic == "leakage"]
    assert note.text == "1 scenes are in two splits (first: s01e04c03 in train and dev)"
