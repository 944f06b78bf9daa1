import importlib.util
import shutil

import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.corpora.ravdess import ACTORS, GROUPS, STATEMENTS
from ercfusion.testing.twins.speech import write_ravdess


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return write_ravdess(tmp_path_factory.mktemp("ravdess"))


@pytest.fixture
def names(tmp_path):
    # Conversations depend on the names of files alone.
    def make(*more):
        for actor in ACTORS:
            folder = tmp_path / f"Actor_{actor}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"03-01-05-01-01-01-{actor}.wav").touch()
        for name in more:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def load(folder, protocol=None):
    corpus = open_corpus("ravdess", folder)
    return corpus.conversations(corpus.protocol(protocol))


def clips(folder, kind):
    corpus = open_corpus("ravdess", folder)
    return corpus.clips(corpus.protocol(), kind)


def speakers(splits):
    return {split: {name for one in part for name in one.speakers} for split, part in splits.items()}


def test_twin(twin):
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 14 * 8, "dev": 40, "test": 40}
    for part in splits.values():
        for one in part:
            _, _, _, statement, _, actor = one.id.split("-")
            (turn,) = one.turns
            assert (turn.id, turn.speaker, turn.text) == ("0", actor, STATEMENTS[statement])
    labels = {one.id[3:5]: one.turns[0].targets["emotion"].value for one in splits["test"]}
    assert (labels["01"], labels["02"], labels["06"], labels["08"]) == ("neutral", "calm", "fearful", "surprised")


def test_the_folds_are_the_published_ones(twin):
    corpus = open_corpus("ravdess", twin)
    assert list(corpus.protocols) == [f"ravdess/8way-fold{number}" for number in range(5)]
    assert sorted(actor for group in GROUPS.values() for actor in group) == list(ACTORS)
    tested = []
    for number, identifier in enumerate(corpus.protocols):
        found = speakers(load(twin, identifier))
        assert found["test"] == set(GROUPS[str(number)])
        assert found["dev"] == set(GROUPS[str((number + 1) % 5)])
        assert found["train"] == set(ACTORS) - found["test"] - found["dev"]
        tested += found["test"]
    assert sorted(tested) == list(ACTORS)
    assert speakers(load(twin))["test"] == {"02", "05", "14", "15", "16"}


def test_the_card_adds_up():
    card = open_corpus("ravdess").card
    for counted in card.labels.values():
        total = {label: sum(split[label] for split in counted.values()) for label in counted["train"]}
        assert total == {label: 96 if label == "neutral" else 192 for label in total}
        assert sum(total.values()) == 1440


def test_recordings_of_one_take(names):
    take = "01-05-01-01-01"
    folder = names(
        f"Video_Speech_Actor_02/Actor_02/01-{take}-02.mp4",
        f"Video_Speech_Actor_02/Actor_02/02-{take}-02.mp4",
        f"Video_Speech_Actor_05/Actor_05/02-{take}-05.mp4",
    )
    assert sum(len(part) for part in load(folder).values()) == 24
    sound, pictures = clips(folder, "audio"), clips(folder, "visual")
    assert list(sound) == list(pictures)
    assert sound[f"{take}-02", "0"].path.name == f"03-{take}-02.wav"
    assert pictures[f"{take}-02", "0"].path.name == f"01-{take}-02.mp4"
    assert pictures[f"{take}-05", "0"].path.name == f"02-{take}-05.mp4"
    # What is not there is named where the release has it.
    assert pictures[f"{take}-01", "0"].path == folder / "Actor_01" / f"01-{take}-01.mp4"
    (folder / "Actor_02" / f"03-{take}-02.wav").unlink()
    assert clips(folder, "audio")[f"{take}-02", "0"].path.name == f"01-{take}-02.mp4"


def test_videos_of_the_twin(tmp_path):
    if importlib.util.find_spec("av") is None:
        pytest.skip("PyAV is not installed")
    import av

    folder = write_ravdess(tmp_path, video_actors=1)
    found = clips(folder, "visual")
    mine = [clip.path for key, clip in found.items() if key[0].endswith("-01")]
    assert len(mine) == 8
    with av.open(str(mine[0])) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}


def test_no_pictures(twin):
    with pytest.raises(CorpusNotFoundError, match="no visual recordings"):
        clips(twin, "visual")


def test_fingerprint_is_that_of_the_takes(names):
    folder = names()
    first = open_corpus("ravdess", folder).fingerprint()
    names("Video_Speech_Actor_02/Actor_02/01-01-05-01-01-01-02.mp4")
    assert open_corpus("ravdess", folder).fingerprint() == first
    names("Actor_02/03-01-06-01-01-01-02.wav")
    assert open_corpus("ravdess", folder).fingerprint() != first


def test_findings(names):
    folder = names("Actor_02/03-02-05-01-01-01-02.wav", "Video_Speech_Actor_02/Actor_02/01-01-05-01-01-01-02.mp4")
    shutil.copytree(folder / "Actor_01", folder / "audio_speech_actors_01-24" / "Actor_01")
    found = open_corpus("ravdess", folder).findings(None)
    assert [finding.level for finding in found] == ["ok", "note", "note"]
    assert found[0].text == "of 24 utterances, 24 have audio recordings and 1 have visual recordings"
    assert "1 files exist more than once (first: 03-01-05-01-01-01-01.wav)" in found[1].text
    assert "1 files of the song part are skipped" in found[2].text
    assert clips(folder, "audio")["01-05-01-01-01-01", "0"].path.parts[-3] == folder.name


@pytest.mark.parametrize(
    "name",
    ["03-01-09-01-01-01-01.wav", "03-01-05-01-01-01-25.wav", "03-01-05-01-01-01.wav", "01-01-05-01-01-01-01.wav"],
)
def test_foreign_files(names, name):
    folder = names(name)
    with pytest.raises(CorpusFormatError, match="not a file name of RAVDESS") as caught:
        load(folder)
    assert name in str(caught.value)


def test_missing_files(tmp_path, names):
    with pytest.raises(CorpusNotFoundError, match="no recording of speech"):
        load(tmp_path)
    folder = names()
    for actor in GROUPS["1"]:
        shutil.rmtree(folder / f"Actor_{actor}")
    with pytest.raises(CorpusNotFoundError, match="the speakers of dev"):
        load(folder)
