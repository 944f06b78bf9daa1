import json
import re

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, MissingExtraError
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.corpora._csd import ComputationalSequence, overlapping
from ercfusion.features.loading import load_data
from ercfusion.testing.twins.sdk import write_csd, write_mosei, write_mosi_sdk

h5py = pytest.importorskip("h5py", reason="h5py, which reads .csd files, is not installed")

WIDTHS = {"text": 6, "audio": 5, "visual": 4}
TWINS = {"mosei": write_mosei, "mosi_sdk": write_mosi_sdk}
LABELS = "CMU_MOSEI_Labels.csd"
WORDS = "CMU_MOSEI_TimestampedWords.csd"
COVAREP = "CMU_MOSEI_COVAREP.csd"
FACET = "CMU_MOSEI_VisualFacet42.csd"
GLOVE = "CMU_MOSEI_TimestampedWordVectors.csd"
FOLDS = "cmu_mosei_std_folds.py"


@pytest.fixture
def twin(tmp_path):
    return write_mosei(tmp_path / "mosei", widths=WIDTHS)


def load(folder, name="mosei", **options):
    corpus = open_corpus(name, folder, **options)
    return corpus.conversations(corpus.protocol())


def tables(folder, name="mosei", **options):
    corpus = open_corpus(name, folder, **options)
    return corpus.features(corpus.protocol())


def problem(function, folder, error=CorpusFormatError, **options):
    with pytest.raises(error) as caught:
        function(folder, **options)
    return str(caught.value)


def entries(path):
    """Everything in a .csd file, as `write_csd` takes it."""
    with h5py.File(path) as file:
        root = next(iter(file))
        data = file[root]["data"]
        return root, {key: (data[key]["intervals"][()], data[key]["features"][()]) for key in data}


def edit(path, change):
    root, content = entries(path)
    change(content)
    write_csd(path, root, content)


def by_hand(folder, file, key, start, end):
    """Frames of a video that overlap a segment, values that are not finite set to 0."""
    times, values = entries(folder / file)[1][key]
    rows = [row for row, (a, b) in enumerate(times) if min(b, end) - max(a, start) > 1e-5]
    return np.where(np.isfinite(values[rows]), values[rows], 0.0)


@pytest.mark.parametrize("name", TWINS)
def test_twin(tmp_path, name):
    folder = TWINS[name](tmp_path, widths=WIDTHS)
    splits = load(folder, name)
    assert {split: len(part) for split, part in splits.items()} == {"train": 12, "dev": 4, "test": 5}
    corpus = open_corpus(name, folder)
    _, labels = entries(folder / corpus.labels_file)
    _, words = entries(folder / corpus.words_file)
    order = ("happy", "sad", "anger", "surprise", "disgust", "fear")
    for part in splits.values():
        for video in part:
            assert video.speakers == (video.id,)
            times, rows = labels[video.id]
            assert [turn.start for turn in video.turns] == sorted(times[:, 0])
            for turn in video.turns:
                row = rows[list(times[:, 0]).index(turn.start)]
                assert turn.targets["sentiment_score"].value == pytest.approx(float(row[0]))
                assert turn.targets["sentiment"].value == ("negative" if row[0] < 0 else "positive")
                if name == "mosei":
                    present = {label for label, value in zip(order, row[1:], strict=True) if value > 0}
                    assert turn.targets["emotions"].value == present
                spoken = [
                    word.decode()
                    for (start, end), (word,) in zip(*words[video.id], strict=True)
                    if turn.start - 1e-9 <= start < end <= turn.end + 1e-9 and word != b"sp"
                ]
                assert turn.text == " ".join(spoken)
    protocols = {protocol.id.split("/")[1]: protocol.task.kind for protocol in corpus.protocols.values()}
    expected = {"binary": "single_label", "score": "regression"}
    assert protocols == ({"emotions": "multi_label", **expected} if name == "mosei" else expected)


def test_utterance_features_are_means_over_the_overlapping_steps(twin):
    found = tables(twin)
    assert {modality: table.width for modality, table in found.items()} == WIDTHS
    assert {table.level for table in found.values()} == {"utterance"}
    video = load(twin)["test"][2]
    for modality, file in (("text", GLOVE), ("audio", COVAREP), ("visual", FACET)):
        for turn in video.turns:
            (row,) = found[modality].rows([(video.id, turn.id)])
            frames = by_hand(twin, file, video.id, turn.start, turn.end)
            assert len(frames) > 1
            np.testing.assert_allclose(found[modality].values[row], frames.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(table.values).all() for table in found.values())
    assert found["audio"].source["replaced"] > 0


def test_sequence_features_are_the_steps(twin):
    found = tables(twin, level="sequence")
    video = load(twin)["dev"][1]
    for modality, file in (("text", GLOVE), ("audio", COVAREP), ("visual", FACET)):
        table = found[modality]
        assert table.level == "sequence"
        assert len(table.values) == table.offsets[-1]
        for turn in video.turns:
            (group,) = table.rows([(video.id, turn.id)])
            steps = table.values[table.offsets[group] : table.offsets[group + 1]]
            np.testing.assert_allclose(steps, by_hand(twin, file, video.id, turn.start, turn.end), rtol=1e-6)


def test_word_aligned_features_have_one_step_a_word(twin):
    def drop(content):
        times, values = content["twintrain002"]
        start, end = entries(twin / GLOVE)[1]["twintrain002"][0][1]
        kept = (times[:, 1] <= start) | (times[:, 0] >= end)
        content["twintrain002"] = (times[kept], values[kept])

    def lengthen(content):
        # The last word of the first segment reaches beyond it: frames behind the segment's end are not the word's.
        times = content["twintrain002"][0]
        times[np.argmax(times[1:, 0] - times[:-1, 1] > 0.05), 1] += 0.1

    edit(twin / GLOVE, lengthen)
    edit(twin / COVAREP, drop)
    corpus = open_corpus("mosei", twin, level="sequence", align="words")
    found = corpus.features(corpus.protocol())
    video = next(video for video in load(twin)["train"] if video.id == "twintrain002")
    times, _ = entries(twin / GLOVE)[1][video.id]
    for turn in video.turns:
        key = (video.id, turn.id)
        inside = times[[row for row, (a, b) in enumerate(times) if min(b, turn.end) - max(a, turn.start) > 1e-5]]
        for modality, file in (("audio", COVAREP), ("visual", FACET)):
            table = found[modality]
            (group,) = table.rows([key])
            steps = table.values[table.offsets[group] : table.offsets[group + 1]]
            assert len(steps) == len(inside)
            for step, (start, end) in zip(steps, inside, strict=True):
                frames = by_hand(twin, file, video.id, max(start, turn.start), min(end, turn.end))
                expected = frames.mean(axis=0) if len(frames) else np.zeros(WIDTHS[modality])
                np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-6)
    findings = [finding.text for finding in corpus.findings(corpus.protocol())]
    assert any("words have no frames of their own" in text for text in findings)


def test_missing_modalities_have_no_key(twin):
    found = tables(twin)
    first, second = load(twin)["train"][:2]
    assert (first.id, "0") not in found["visual"]
    assert (first.id, "1") in found["visual"]
    assert (first.id, "0") in found["audio"]
    assert not any(key in found["visual"] for key in second.keys())  # noqa: SIM118


def test_steps_at_the_border_belong_to_both_segments():
    times = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 2.0], [1.9, 3.0], [np.nan, np.nan], [2.000005, 9.0]])
    assert overlapping(times, 0.0, 1.0).tolist() == [0]
    assert overlapping(times, 0.5, 2.0).tolist() == [0, 1, 3]
    assert overlapping(times, 1.95, 2.5).tolist() == [1, 3, 5]
    assert overlapping(times, 1.0, 1.0).tolist() == []
    assert overlapping(times, 3.0, 1.0).tolist() == []


def test_parts_of_aligned_files_are_put_together(twin):
    expected = tables(twin)["audio"]

    def split(content):
        times, values = content.pop("twintest001")
        content["twintest001[10]"] = (times[:5], values[:5])
        content["twintest001[9]"] = (times[5:], values[5:])

    edit(twin / COVAREP, split)
    found = tables(twin)["audio"]
    assert found.keys == expected.keys
    np.testing.assert_array_equal(found.values, expected.values)


def test_no_duration_no_words_no_features(twin):
    def change(content):
        times, _ = content["twindev000"]
        times[:, 1] = np.where(times[:, 0] == times[:, 0].min(), times[:, 0], times[:, 1])

    edit(twin / LABELS, change)
    turn = load(twin)["dev"][0].turns[0]
    assert turn.start == turn.end
    assert turn.text is None
    assert ("twindev000", "0") not in tables(twin)["text"]
    corpus = open_corpus("mosei", twin)
    texts = [finding.text for finding in corpus.findings(corpus.protocol())]
    assert any(text.startswith("dev: 1 segments have no duration") for text in texts)


def test_an_empty_set_of_emotions_is_an_answer(twin):
    sets = [turn.targets["emotions"] for video in load(twin)["train"] for turn in video.turns]
    assert any(target.value == frozenset() and target.valid for target in sets)
    assert any(len(target.value) == 2 for target in sets)


# Splits


def test_splits_file_comes_first(twin):
    splits = load(twin)
    lists = {"train": "dev", "valid": "test", "test": "train"}
    content = {key: [video.id for video in splits[split]] for key, split in lists.items()}
    (twin / "splits.json").write_text(json.dumps(content))
    changed = load(twin)
    assert [video.id for video in changed["dev"]] == [video.id for video in splits["test"]]


def test_folds_are_never_executed(twin, tmp_path):
    path = twin / FOLDS
    mark = tmp_path / "executed"
    path.write_text(f"open({str(mark)!r}, 'w').close()\n" + path.read_text())
    load(twin)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("standard_valid_fold", "valid"), "no key 'standard_valid_fold'"),
        (lambda text: re.sub(r"valid_fold=\[.*\]", "valid_fold=[]", text), "found an empty list"),
        (lambda text: re.sub(r"valid_fold=\[.*\]", "valid_fold=[3]", text), "found 3"),
        (lambda text: re.sub(r"valid_fold=\[.*\]", "valid_fold=list('ab')", text), "line 2: standard_valid_fold is no"),
        (lambda text: text.replace("'twindev000'", "'twintrain003'"), "'twintrain003' is also in"),
        (lambda text: text + "x = (", "no valid Python"),
        (lambda text: text.replace("twindev", "other"), "no video of dev"),
    ],
)
def test_bad_folds(twin, change, words):
    (twin / FOLDS).write_text(change((twin / FOLDS).read_text()))
    message = problem(load, twin)
    assert words in message
    assert FOLDS in message


def test_no_folds(twin):
    (twin / FOLDS).unlink()
    message = problem(load, twin, CorpusNotFoundError)
    assert "neither splits.json nor cmu_mosei_std_folds.py" in message
    assert "CMU-MultimodalSDK" in message


# Files


def test_folders_of_the_downloader(twin):
    expected = load(twin)
    for name, folder in ((LABELS, "cmumosei_labels"), (WORDS, "cmumosei_raw"), (COVAREP, "cmumosei_highlevel")):
        (twin / folder).mkdir()
        (twin / name).rename(twin / folder / name)
    assert load(twin) == expected
    assert set(tables(twin)) == {"text", "audio", "visual"}


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(load, tmp_path / "nowhere", CorpusNotFoundError)
    (twin / COVAREP).unlink()
    load(twin)
    message = problem(tables, twin, CorpusNotFoundError)
    assert f"{COVAREP} not found" in message
    assert "data.options.audio=null" in message
    (twin / WORDS).unlink()
    assert f"{WORDS} not found" in problem(load, twin, CorpusNotFoundError)


def test_features_that_are_switched_off(twin):
    (twin / COVAREP).unlink()
    (twin / GLOVE).unlink()
    corpus = open_corpus("mosei", twin, audio=None, text=None)
    assert corpus.protocol().modalities == ("text", "visual")
    assert set(corpus.features(corpus.protocol())) == {"visual"}
    options = {"audio": None, "text": None}
    loaded = load_data(Data(name="mosei", raw=str(twin), protocol="score", modalities=("visual",), options=options))
    assert [table.modality for table in loaded.tables] == ["visual"]


def test_a_file_of_ones_own(twin):
    (twin / COVAREP).rename(twin / "mine.csd")
    assert tables(twin, audio="mine.csd")["audio"].source["files"] == ["mine.csd"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"audio": "COVARP"}, "Did you mean 'COVAREP'?"),
        ({"visual": "OpenFace1"}, "Did you mean 'OpenFace2'?"),
        ({"level": "word"}, "utterance, sequence; found 'word'"),
        ({"align": "glove", "level": "sequence"}, "none, words; found 'glove'"),
        ({"align": "words"}, "level=sequence"),
        ({"align": "words", "level": "sequence", "text": None}, "text is null"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ConfigError) as caught:
        open_corpus("mosei", **options)
    assert words in str(caught.value)


def test_the_release_of_mosi_has_more_kinds():
    open_corpus("mosi_sdk", audio="openSMILE_IS09", visual="OpenFace1")


def test_h5py_is_missing(twin, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "ercfusion[sdk]" in problem(load, twin, MissingExtraError)


# Damage


def test_no_hdf5(twin):
    content = (twin / LABELS).read_bytes()
    for bad in (b"", b"<html>404</html>", content[: len(content) // 2]):
        (twin / LABELS).write_bytes(bad)
        message = problem(load, twin)
        assert LABELS in message
        assert "Get it again" in message


def test_no_computational_sequence(twin):
    with h5py.File(twin / LABELS, "w") as file:
        file["one"] = [1]
    assert "found 'one' at the top" in problem(load, twin)
    with h5py.File(twin / LABELS, "w") as file:
        file.create_group("All Labels/data")
    assert "found 'All Labels' at the top" in problem(load, twin)
    with h5py.File(twin / LABELS, "w") as file:
        file.create_group("All Labels/data/a")
        file.create_group("two")
    assert "found 'All Labels', 'two' at the top" in problem(load, twin)


def _set(column, value):
    def change(content):
        content["twindev000"][1][0, column] = value

    return change


def _replace(key, make):
    def change(content):
        content[key] = make(*content[key])

    return change


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (LABELS, _set(0, 3.5), "sentiment: 3.5 is not from -3 to 3"),
        (LABELS, _set(2, -0.5), "sad: -0.5 is not from 0 to 3"),
        (LABELS, _set(6, np.nan), "fear: nan is not from 0 to 3"),
        (LABELS, _replace("twindev000", lambda times, rows: (times, rows[:, :1])), "1 columns, but 7 are"),
        (LABELS, _replace("twindev000", lambda times, rows: (times * np.nan, rows)), "lasts from nan to nan"),
        (LABELS, _replace("twindev000", lambda times, rows: (times[1:], rows)), "rows of features, but"),
        (LABELS, _replace("twindev000", lambda times, rows: (times[:, :1], rows)), "(steps, 2) numbers"),
        (WORDS, _replace("twindev000", lambda times, rows: (times, np.zeros(rows.shape))), "one of words is expected"),
        (WORDS, _replace("twindev000", lambda times, rows: (times, np.full(rows.shape, b"\xff"))), "is not UTF-8"),
        (COVAREP, _replace("twindev000", lambda times, rows: (times, rows[:, 1:])), "4 columns, but 5 in other"),
        (COVAREP, _replace("twindev000", lambda times, rows: (times, rows.astype("S8"))), "numbers are expected"),
        (COVAREP, _replace("twindev000", lambda times, rows: (times, rows[:, 0])), "of the shape"),
        (COVAREP, lambda content: [content.pop(key) for key in list(content) if key != "twinnofold"], "no step of it"),
    ],
)
def test_damaged_entries(twin, file, change, words):
    edit(twin / file, change)
    message = problem(tables, twin)
    assert words in message
    assert file in message
    assert "no step" in words or "data/twindev000" in message


def test_a_missing_array(twin):
    with h5py.File(twin / LABELS, "a") as file:
        del file["All Labels/data/twindev000/intervals"]
    assert "there is no array 'intervals'" in problem(load, twin)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (1 << 40, 5), "chunks": (1024, 5), "dtype": "f4"}, "at most 1024 MiB are read"),
        ({"shape": (100_000, 5), "chunks": (1024, 5), "dtype": "f4"}, "but no values are stored"),
    ],
)
def test_a_shape_that_only_claims(twin, options, words):
    """A file of a few bytes may state any shape; what is not stored would be read as zeros."""
    with h5py.File(twin / COVAREP, "a") as file:
        entry = file[next(iter(file))]["data/twindev000"]
        del entry["features"]
        entry.create_dataset("features", **options)
    message = problem(tables, twin)
    assert words in message
    assert "data/twindev000" in message


# Findings and reproducibility


def test_findings(twin):
    corpus = open_corpus("mosei", twin)
    protocol = corpus.protocol("binary")
    found = check_corpus(corpus, protocol, list(corpus.features(protocol).values()))
    assert not [finding for finding in found if finding.level == "fault"]
    texts = [finding.text for finding in found]
    assert any("1 videos with labels are in no fold of" in text and "twinnofold" in text for text in texts)
    replaced = next(finding for finding in found if finding.topic == "features audio" and "steps" in finding.text)
    assert replaced.level == "note"
    assert int(replaced.text.split()[0]) > 0
    assert any("segments have the sentiment 0" in text for text in texts)


def test_only_the_videos_that_are_needed_are_read(twin, monkeypatch):
    read = []
    original = ComputationalSequence.features
    monkeypatch.setattr(ComputationalSequence, "features", lambda self, key: read.append(key) or original(self, key))
    tables(twin)
    assert "twinnofold" not in read


def test_seeds(tmp_path):
    folders = [write_mosei(tmp_path / name, seed, widths=WIDTHS) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    prints = [open_corpus("mosei", folder).fingerprint() for folder in folders]
    assert prints[0] == prints[1] != prints[2]
    for name in (COVAREP, FACET, GLOVE):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
