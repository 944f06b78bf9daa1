import pytest

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.corpora.emodb import SENTENCES, SPEAKERS
from ercfusion.data.media import Clip
from ercfusion.metrics.registry import metric_names
from ercfusion.testing.twins.speech import write_emodb


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return write_emodb(tmp_path_factory.mktemp("emodb"), takes=2)


@pytest.fixture
def names(tmp_path):
    # Conversations depend on the names of files alone.
    def make(*more):
        for speaker in SPEAKERS:
            (tmp_path / f"{speaker}a01Wa.wav").touch()
        for name in more:
            (tmp_path / name).touch()
        return tmp_path

    return make


def load(folder, protocol=None):
    corpus = open_corpus("emodb", folder)
    return corpus.conversations(corpus.protocol(protocol))


def speakers(splits):
    return {split: {name for one in part for name in one.speakers} for split, part in splits.items()}


def test_twin(twin):
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 112, "dev": 14, "test": 14}
    for part in splits.values():
        assert [one.id for one in part] == sorted(one.id for one in part)
        for one in part:
            (turn,) = one.turns
            assert (turn.id, turn.speaker, turn.text) == ("0", one.id[:2], SENTENCES[one.id[2:5]])
    assert {one.turns[0].targets["emotion"].value for one in splits["test"] if one.id[5] == "W"} == {"anger"}
    assert {one.turns[0].targets["emotion"].value for one in splits["test"] if one.id[5] == "T"} == {"sadness"}


def test_the_same_seed_gives_the_same_bytes(tmp_path, twin):
    def content(folder):
        return {path.name: path.read_bytes() for path in folder.rglob("*.wav")}

    assert content(write_emodb(tmp_path / "a", takes=2)) == content(twin) != content(write_emodb(tmp_path / "b", 1, 2))


def test_every_speaker_is_tested_once(twin):
    corpus = open_corpus("emodb", twin)
    assert list(corpus.protocols) == [f"emodb/7way-spk{speaker}" for speaker in SPEAKERS]
    tested = []
    for position, (identifier, protocol) in enumerate(corpus.protocols.items()):
        assert protocol.task.metric == "uar"
        assert "uar" in metric_names(protocol.task)
        found = speakers(load(twin, identifier))
        assert found["test"] == {SPEAKERS[position]}
        assert found["dev"] == {SPEAKERS[(position + 1) % 10]}
        assert found["train"] == set(SPEAKERS) - found["test"] - found["dev"]
        tested += found["test"]
    assert tested == list(SPEAKERS)
    assert corpus.protocol("7way-spk16").description.startswith("7 emotions; test: speaker 16; dev: speaker 03;")


def test_the_card_adds_up():
    card = open_corpus("emodb").card
    assert card.counts["test"]["utterances"] == 49
    for counted in card.labels.values():
        assert sum(number for split in counted.values() for number in split.values()) == 535
        assert set(counted["train"]) == set(open_corpus("emodb").protocol().task.schema.labels)


def test_clips(twin):
    corpus = open_corpus("emodb", twin)
    protocol = corpus.protocol()
    clips = corpus.clips(protocol, "audio")
    assert len(clips) == 140
    assert all(clip == Clip(twin / "wav" / f"{key[0]}.wav") and clip.path.is_file() for key, clip in clips.items())
    with pytest.raises(ConfigError, match="no visual recordings"):
        corpus.clips(protocol, "visual")


def test_folder_without_wav_below_it(names):
    folder = names("._03a01Wa.wav", "readme.txt")
    assert speakers(load(folder))["test"] == {"03"}
    assert sum(len(part) for part in load(folder).values()) == 10


def test_fingerprint_covers_content(names):
    folder = names()
    first = open_corpus("emodb", folder).fingerprint()
    assert first == open_corpus("emodb", folder).fingerprint()
    (folder / "03a01Wa.wav").write_bytes(b"other")
    assert open_corpus("emodb", folder).fingerprint() != first


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("03a01W.wav", "are named by two digits for the speaker"),
        ("07a01Wa.wav", "EmoDB has no speaker '07'"),
        ("03a03Wa.wav", "EmoDB has no sentence 'a03'. Did you mean"),
        ("03a01Xa.wav", "EmoDB has no emotion 'X'"),
    ],
)
def test_foreign_files(names, name, words):
    folder = names(name)
    with pytest.raises(CorpusFormatError) as caught:
        load(folder)
    assert name in str(caught.value)
    assert words in str(caught.value)


def test_missing_files(tmp_path, names):
    with pytest.raises(CorpusNotFoundError, match="no wav file"):
        load(tmp_path)
    folder = names()
    (folder / "08a01Wa.wav").unlink()
    with pytest.raises(CorpusNotFoundError, match=r"no utterance of 08, the speakers of dev"):
        load(folder)
    # Another speaker's absence leaves a training split; the doctor reports the counts.
    assert speakers(load(folder, "7way-spk10"))["dev"] == {"11"}


def test_real(shared_data):
    from ercfusion.data.check import check_corpus

    corpus = open_corpus("emodb", shared_data("emodb"))
    for protocol in corpus.protocols.values():
        findings = check_corpus(corpus, protocol, media=False)
        assert [finding for finding in findings if finding.level == "fault"] == []
        assert sum(finding.level == "ok" and finding.topic == "label counts" for finding in findings) == 3
