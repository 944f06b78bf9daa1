from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import read, stub_text_encoder

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.testing.twins import write_twin
from ercfusion.testing.twins.semeval2025 import write_semeval2025
from ercfusion.train import main


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_semeval2025(tmp_path / "semeval2025")


def load(folder: Path, protocol: str | None = None, **options: str) -> Any:
    corpus = open_corpus("semeval2025", folder, **options)
    return corpus.conversations(corpus.protocol(protocol))


def change(path: Path, edit: Callable[[list[list[str]]], None]) -> None:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    edit(rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def test_track_a(twin: Path) -> None:
    splits = load(twin)
    assert {split: len(part) for split, part in splits.items()} == {"train": 60, "dev": 20, "test": 25}
    with (twin / "track_a/test/eng.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for sentence, row in zip(splits["test"], rows, strict=True):
        (turn,) = sentence.turns
        assert (sentence.id, turn.text) == (row["id"], row["text"])
        expected = {label for label in ("anger", "fear", "joy", "sadness", "surprise") if row[label] == "1"}
        assert turn.targets["emotions"].value == expected
    assert any(not sentence.turns[0].targets["emotions"].value for sentence in splits["test"])


def test_track_b(twin: Path) -> None:
    splits = load(twin, "deu-intensity", language="deu")
    with (twin / "track_b/dev/deu.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for sentence, row in zip(splits["dev"], rows, strict=True):
        felt = sentence.turns[0].targets["intensities"].value
        assert felt == {label: int(row[label]) for label in row if label not in ("id", "text") and row[label] != "0"}
    assert {number for one in splits["train"] for number in one.turns[0].targets["intensities"].value.values()} == {
        1,
        2,
        3,
    }


def test_labels_of_a_language(twin: Path) -> None:
    english, german = (open_corpus("semeval2025", twin, language=name) for name in ("eng", "deu"))
    assert "disgust" not in english.protocol().task.schema
    assert english.protocol("eng-intensity").task.output_names == ("anger", "fear", "joy", "sadness", "surprise")
    assert german.protocol().task.schema.name == "semeval6"
    assert [note.text for note in english.notes(english.protocol())] == ["eng has no disgust: 5 labels"]
    assert not german.notes(german.protocol())
    assert english.fingerprint() != german.fingerprint()
    assert (english.protocol().task.metric, english.protocol("eng-intensity").task.metric) == (
        "macro_f1", "intensity_pearson",
    )  # fmt: skip
    assert list(open_corpus("semeval2025", language="yor").protocols) == ["semeval2025/yor"]  # not in track B


def test_other_layouts(twin: Path, tmp_path: Path) -> None:
    expected = load(twin)
    deeper = tmp_path / "deeper" / "semeval-2025-task11-dataset"
    deeper.parent.mkdir()
    twin.rename(deeper)
    assert load(deeper.parent) == expected == load(deeper)

    def capitals(rows: list[list[str]]) -> None:
        rows[0][2:] = [name.title() for name in rows[0][2:]]

    for split in ("train", "dev", "test"):
        change(deeper / "track_a" / split / "eng.csv", capitals)
    assert load(deeper) == expected


def test_unlabelled_test_files(tmp_path: Path) -> None:
    splits = load(write_semeval2025(tmp_path / "early", labelled=False))
    assert all(not sentence.turns[0].targets["emotions"].valid for sentence in splits["test"])
    assert all(sentence.turns[0].targets["emotions"].valid for sentence in splits["dev"])


def test_one_track_is_enough(twin: Path) -> None:
    for path in (twin / "track_b").rglob("*.csv"):
        path.unlink()
    corpus = open_corpus("semeval2025", twin)
    assert len(corpus.files()) == 3
    assert len(load(twin)["train"]) == 60
    with pytest.raises(CorpusNotFoundError, match=r"track_b/train/eng\.csv"):
        load(twin, "eng-intensity")


def test_the_doctor_agrees(twin: Path) -> None:
    corpus = open_corpus("semeval2025", twin)
    assert not [one for one in check_corpus(corpus, corpus.protocol()) if one.level == "fault"]


def test_languages(twin: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.language=ger: .* Did you mean 'deu'|Choose from"):
        open_corpus("semeval2025", twin, language="ger")
    with pytest.raises(ConfigError, match=r"semeval2025/deu is another language .*Set data\.options\.language=deu"):
        open_corpus("semeval2025", twin).protocol("semeval2025/deu")
    with pytest.raises(ConfigError, match="has no protocol 'english'"):
        open_corpus("semeval2025", twin).protocol("english")
    with pytest.raises(CorpusNotFoundError, match=r"track_a/train/afr\.csv"):
        load(twin, language="afr")


@pytest.mark.parametrize(
    ("track", "row", "column", "cell", "message"),
    [
        ("a", 3, 2, "2", r"line 4, column 'anger': found 2, but 0 to 1 is expected"),
        ("b", 3, 3, "4", r"line 4, column 'fear': found 4, but 0 to 3 is expected"),
        ("b", 3, 3, "0.5", r"line 4, column 'fear': found 0.5, but 0 to 3"),
        ("a", 3, 4, "", r"line 4, column 'joy': the cell is empty, but anger is not"),
        ("a", 3, 4, "yes", r"line 4, column 'joy': found 'yes', but a number"),
        ("a", 3, 0, "eng_train_track_a_00001", "eng_train_track_a_00001"),
        ("a", 0, 1, "sentence", "text"),
    ],
)
def test_wrong_cells(twin: Path, track: str, row: int, column: int, cell: str, message: str) -> None:
    def edit(rows: list[list[str]]) -> None:
        rows[row][column] = cell

    change(twin / f"track_{track}/train/eng.csv", edit)
    with pytest.raises(CorpusFormatError, match=message):
        load(twin, "eng-intensity" if track == "b" else "eng")


def test_a_label_in_one_split_only(twin: Path) -> None:
    def edit(rows: list[list[str]]) -> None:
        for number, cells in enumerate(rows):
            cells.append("0" if number else "disgust")

    change(twin / "track_a/test/eng.csv", edit)
    with pytest.raises(CorpusFormatError, match="the column 'disgust' is not in the training file of the language"):
        load(twin)


@pytest.mark.parametrize("protocol", ["eng", "eng-intensity"])
def test_training(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
    raw = write_twin("semeval2025", tmp_path / "raw")
    words = [f"data=semeval2025/{protocol}", f"data.raw={raw}", "model=concat", "training.max_epochs=2"]
    assert main([*words, "training.bootstrap=20", "trainer=cpu", f"run={tmp_path / 'run'}"]) == 0
    record = read(tmp_path / "run" / "record.json")
    assert record["protocol"] == f"semeval2025/{protocol}"
    assert record["config"]["data"]["options"] == {"language": "eng"}
    assert record["selection"]["metric"] in record["metrics"]["test"]
