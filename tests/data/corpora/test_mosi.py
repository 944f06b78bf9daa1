import csv
import json

import numpy as np
import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.testing.twins import write_mosi

WIDTHS = {"text": 4, "audio": 3, "video": 5}


@pytest.fixture
def twin(tmp_path):
    return write_mosi(tmp_path / "mosi", widths=WIDTHS)


def load(folder, protocol=None):
    corpus = open_corpus("mosi", folder)
    return corpus.conversations(corpus.protocol(protocol))


def tables(folder):
    corpus = open_corpus("mosi", folder)
    return corpus.features(corpus.protocol())


def problem(function, folder, *arguments, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        function(folder, *arguments)
    assert str(caught.value).count("\n") <= 4
    return str(caught.value)


def edit(path, change):
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def edit_list(folder, change):
    def changed(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    edit(folder / "utterances.json", changed)


def test_twin(twin):
    splits = load(twin)
    assert {split: len(videos) for split, videos in splits.items()} == {"train": 12, "dev": 3, "test": 5}
    for videos in splits.values():
        for video in videos:
            assert video.speakers == (video.id,)
            assert [int(turn.id) for turn in video.turns] == list(range(1, 1 + len(video)))
            for turn in video.turns:
                score = turn.targets["sentiment_score"].value
                assert turn.targets["sentiment"].value == ("positive" if score >= 0 else "negative")
                assert turn.text
    assert load(twin, "score") == splits


def test_features_belong_to_their_utterances(twin):
    found = tables(twin)
    assert {modality: table.width for modality, table in found.items()} == {"text": 4, "audio": 3, "visual": 5}
    listed = json.loads((twin / "utterances.json").read_text())["test"]
    rows = (twin / "video" / "video_test0.csv").read_text().splitlines()
    video, number = listed[7]["id"].rsplit("_", 1)
    row = found["visual"].rows([(video, number)])[0]
    expected = [float(cell.strip('"')) for cell in rows[7].split(",")]
    np.testing.assert_allclose(found["visual"].values[row], expected[:-1], rtol=1e-6)
    assert len(found["visual"]) == sum(len(v) for part in load(twin).values() for v in part)


def test_order_is_rebuilt_without_the_list(tmp_path, twin):
    without = write_mosi(tmp_path / "without", widths=WIDTHS, scores=False)
    for modality, table in tables(without).items():
        assert table.keys == tables(twin)[modality].keys
    splits = load(without)
    assert "sentiment_score" not in splits["train"][0].turns[0].targets
    assert [video.id for video in splits["dev"]] == [video.id for video in load(twin)["dev"]]
    assert "utterances.json not found" in problem(load, without, "score", error=CorpusNotFoundError)
    findings = open_corpus("mosi", without).findings(None)
    assert sum("rebuilt" in finding.text for finding in findings) == 2


def test_cut_off_transcripts_without_the_list(tmp_path):
    folder = write_mosi(tmp_path, widths=WIDTHS, scores=False)
    lines = (folder / "transcripts.csv").read_text().splitlines()
    edit(folder / "transcripts.csv", lambda _: "\n".join(line for line in lines if "_te" not in line))
    assert "no video belongs to test" in problem(load, folder)


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(load, tmp_path / "nowhere", error=CorpusNotFoundError)
    (twin / "audio" / "audio_test0.csv").unlink()
    assert "audio/audio_test0.csv not found" in problem(load, twin, error=CorpusNotFoundError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["train"].pop(), "utterances are listed"),
        (
            lambda content: content["train"][3].update(score=1, label=1 - content["train"][3]["label"]),
            "but transcripts.csv has",
        ),
        (lambda content: content["test"][0].update(id="nobody_1"), "not in transcripts.csv"),
        (lambda content: content["test"][0].update(id="nobody"), "VIDEO_NUMBER"),
        (lambda content: content["test"][0].update(id=content["test"][1]["id"]), "already that of"),
        (lambda content: content["test"][2].update(score=3.5), "not between -3 and 3"),
        (lambda content: content["test"][2].update(score=float("nan")), "NaN is not a JSON number"),
        (lambda content: content["test"][2].update(score="1"), "type float"),
        (lambda content: content["test"][2].pop("label"), "no key 'label'"),
        (lambda content: content.pop("test"), "no key 'test'"),
        (lambda content: content["test"].clear(), "empty"),
        (lambda content: content["train"].reverse(), "is not that of"),
    ],
)
def test_bad_list(twin, change, words):
    edit_list(twin, change)
    assert words in problem(tables, twin)


def test_malformed_list(twin):
    edit(twin / "utterances.json", lambda text: text[:-20])
    assert "not valid JSON" in problem(load, twin)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("nan", "is not a finite number"),
        ("inf", "is not a finite number"),
        ("x", "found 'x', but a number is expected"),
        ("", "found '', but a number is expected"),
        ('1","2', "cells, but the first line has"),
    ],
)
def test_bad_feature_cells(twin, cell, words):
    path = twin / "text" / "text_train0.csv"
    lines = path.read_text().splitlines()
    cells = lines[4].split(",")
    cells[1] = f'"{cell}"'
    lines[4] = ",".join(cells)
    path.write_text("\n".join(lines))
    message = problem(tables, twin)
    assert "text_train0.csv, line 5" in message
    assert words in message
    if "cells" not in words:
        assert "column 2" in message


def test_bad_feature_files(twin):
    path = twin / "text" / "text_train0.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    assert f"{len(lines) - 1} rows, but {len(lines)} utterances" in problem(tables, twin)
    path.write_text("\n".join(lines[::-1]))
    assert "line 1, last column" in problem(tables, twin)
    path.write_text("\n".join(line[line.index(",") + 1 :] for line in lines))
    assert "4 feature columns" in problem(tables, twin)
    path.write_text("1\n0\n")
    assert "one column only" in problem(tables, twin)
    path.write_bytes(b"")
    assert "is empty" in problem(tables, twin)
    path.write_bytes("\n".join(lines).encode("utf-16"))
    assert "UTF-16" in problem(tables, twin)


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        (0, "no number", "line 2, column 1"),
        (2, "two", "line 2, column 3: found 'two'"),
        (3, "2", "line 2, column 4: found '2'"),
        (3, '1","1', "line 2: 5 cells"),
    ],
)
def test_bad_transcripts(twin, column, cell, words):
    path = twin / "transcripts.csv"
    lines = path.read_text().splitlines()
    cells = [part.strip('"') for part in lines[1].split('","')]
    cells[column] = cell
    lines[1] = ",".join(f'"{part}"' for part in cells)
    path.write_text("\n".join(lines))
    message = problem(load, twin)
    assert "transcripts.csv" in message
    assert words in message


def test_doubled_transcript(twin):
    edit(twin / "transcripts.csv", lambda text: text + text.splitlines()[0] + "\n")
    assert "is also on line 1" in problem(load, twin)


def test_findings_of_the_twin(twin):
    findings = open_corpus("mosi", twin).findings(None)
    assert sum("the release has" in finding.text for finding in findings) == 3
    edit_list(twin, lambda content: content["test"][0].update(score=-1))
    assert any("contradict" in finding.text for finding in open_corpus("mosi", twin).findings(None))


# The real release


def test_real(shared_data):
    corpus = open_corpus("mosi", shared_data("mosi_poria2017"))
    protocol = corpus.protocol()
    assert protocol.id == "mosi/binary"
    splits = corpus.conversations(protocol)
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [50, 12, 31]
    assert sum(len(video) for split in ("train", "dev") for video in splits[split]) == 1447
    assert sum(map(len, splits["test"])) == 752
    assert {len(video.speakers) for part in splits.values() for video in part} == {1}
    found = corpus.features(protocol)
    assert {name: table.values.shape for name, table in found.items()} == {
        "text": (2199, 100),
        "audio": (2199, 73),
        "visual": (2199, 100),
    }
    findings = check_corpus(corpus, protocol, list(found.values()))
    assert not [finding for finding in findings if finding.level == "fault"]
    assert any("32 of 100 columns are constant" in finding.text for finding in findings)


def test_real_order_is_rebuilt_exactly(shared_data, tmp_path):
    folder = shared_data("mosi_poria2017")
    for name in ("text", "audio", "video", "transcripts.csv"):
        (tmp_path / name).symlink_to(folder / name)
    assert tables(tmp_path)["text"].keys == tables(folder)["text"].keys


def test_a_video_in_both_parts_is_refused(twin):
    """Its utterances would be trained on and tested."""

    def both(content):
        content["test"][0]["id"] = content["train"].pop(0)["id"]

    edit_list(twin, both)
    message = problem(load, twin)
    assert "utterances.json, test item 0 (from 0): the video 'twin" in message
    assert "is that of train item" in message
    assert "but belongs to one part only" in message


def test_a_video_with_two_numbers_is_refused(twin):
    """Without the list of utterances, the number decides in which part a video is."""
    (twin / "utterances.json").unlink()
    path = twin / "transcripts.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0][0].rpartition("_")[0] == rows[1][0].rpartition("_")[0]
    number = rows[1][2]
    rows[1][2] = str(int(number) + 90)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    message = problem(load, twin)
    assert "transcripts.csv, line 2, column 3: the video 'twin" in message
    assert f"has the number {rows[1][2]}, but on line 1 {number}. The number decides between" in message


@pytest.mark.parametrize("identifier", ["a_" + "9" * 5000, "a_1_" + "8" * 10])
def test_numbers_of_thousands_of_digits(twin, identifier):
    edit_list(twin, lambda content: content["test"][0].update(id=identifier))
    message = problem(load, twin)
    assert "VIDEO_NUMBER" in message
    assert len(message) < 500
    path = twin / "transcripts.csv"
    path.write_text(f"{identifier},text,1,0\n", encoding="utf-8")
    assert "VIDEO_NUMBER" in problem(load, twin)
    path.write_text(f"a_1,text,{'9' * 5000},0\n", encoding="utf-8")
    assert "the video's number is expected" in problem(load, twin)
