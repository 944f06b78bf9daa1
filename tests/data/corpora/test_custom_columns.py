"""A stranger's table: other names of the file and its columns, and columns which are absent."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import command, refused, stub_text_encoder

from ercfusion import doctor, train
from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.corpora._custom import SYNONYMS
from ercfusion.data.corpus import Finding
from ercfusion.data.features import FeatureTable
from ercfusion.features.loading import load_data

STRANGE = "dialogue,number,name,utterance,feeling,set"
USUAL = "conversation,turn,speaker,text,emotion,split"
ROWS = [
    f"c{number},{turn},{'AB'[turn % 2]},line {number} {turn},{('joy', 'anger')[turn % 2]},{split}"
    for number, split in enumerate(("train", "train", "dev", "test"))
    for turn in range(2)
]
QUICK = ["model=concat", "training.max_epochs=1", "training.pictures=false", "trainer.accelerator=cpu"]


def write(folder: Path, header: str, rows: list[str] = ROWS, name: str = "utterances.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def header(**names: str) -> str:
    return ",".join(names.get(name, name) for name in USUAL.split(","))


def notes(folder: Path) -> list[Finding]:
    corpus = open_corpus("custom", folder)
    return corpus.notes(corpus.protocol())


def problem(folder: Path, error: type[Exception] = CorpusFormatError) -> str:
    with pytest.raises(error) as caught:
        open_corpus("custom", folder).protocol()
    return str(caught.value)


def test_synonyms_have_one_meaning() -> None:
    names = [name for synonyms in SYNONYMS.values() for name in synonyms]
    assert len(set(names)) == len(names)
    assert not set(names) & set(SYNONYMS)


def test_a_folder_with_another_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, USUAL, name="talks.csv")
    (tmp_path / "README.txt").write_text("calls")
    for main, more in ((doctor.main, []), (train.main, QUICK)):
        message = refused(main, ["data=custom", f"data.raw={tmp_path}", *more], capsys)
        assert "found talks.csv. Rename it to utterances.csv." in message
        assert "icence" not in message
    write(tmp_path, USUAL, name="more.csv")
    message = problem(tmp_path, CorpusNotFoundError)
    assert "found more.csv, talks.csv. Rename the one with a row per utterance to utterances.csv." in message
    for name in ("more.csv", "talks.csv"):
        (tmp_path / name).unlink()
    assert "nor another table. Add it with one row per utterance" in problem(tmp_path, CorpusNotFoundError)
    (tmp_path / "talks.parquet").write_bytes(b"PAR1")
    assert "found talks.parquet. Convert it to CSV (UTF-8), named utterances.csv." in problem(
        tmp_path, CorpusNotFoundError
    )


def test_all_missing_columns_are_named_with_what_to_rename(tmp_path: Path) -> None:
    message = problem(write(tmp_path, STRANGE))
    assert "no columns 'conversation' and 'turn'. Found: 'dialogue', 'number', 'name'" in message
    assert (
        "Rename or add: 'dialogue' to 'conversation', 'number' to 'turn'; probably also 'name' to 'speaker', "
        in message
    )
    assert "'utterance' to 'text', 'feeling' to 'emotion', 'set' to 'split'." in message
    message = problem(write(tmp_path, "Dialogue ID,b,c,d,e,f"))
    assert message.endswith("Rename or add: 'Dialogue ID' to 'conversation', a column 'turn'.")
    assert "Is it 'feeling'?" in problem(write(tmp_path, header(emotion="feeling")))


def test_a_target_is_not_to_be_renamed(tmp_path: Path) -> None:
    write(tmp_path, header(conversation="dialogue", emotion="feeling"))
    (tmp_path / "corpus.yaml").write_text("targets:\n  feeling:\n")
    message = problem(tmp_path)
    assert "Rename or add: 'dialogue' to 'conversation'." in message
    write(tmp_path, header(emotion="feeling"))
    assert notes(tmp_path) == []
    # An empty value is an empty mapping.
    without = open_corpus("custom", tmp_path).protocol()
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump({"targets": {"feeling": {}}}))
    assert open_corpus("custom", tmp_path).protocol() == without


def test_columns_under_another_name_are_noted(tmp_path: Path) -> None:
    drawn, unread = notes(write(tmp_path, header(split="set")))
    assert drawn.text == "utterances.csv: no column split: drew 80/10/10 by conversation, seed 0"
    assert unread.text == "utterances.csv: columns not read: set. Rename set to split if it holds the split"
    assert (drawn.warning, unread.warning) == (False, True)
    unread = notes(write(tmp_path, header(text="utterance", speaker="name")))[0]
    assert unread.text.endswith(
        "name, utterance. Rename name to speaker, utterance to text if they hold what these names say"
    )
    # Not if the column exists too.
    (unread,) = notes(write(tmp_path, f"{USUAL},set", [f"{row},x" for row in ROWS]))
    assert (unread.text, unread.warning) == ("utterances.csv: columns not read: set", False)
    assert notes(write(tmp_path, USUAL)) == []


def test_every_decision_is_on_the_screen_and_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docs: training logs every decision, and ``doctor`` reports it."""
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    rows = [row.replace(",joy,", ",Joy,") if "c0" in row else row for row in ROWS]
    folder = write(tmp_path / "calls", header(split="set").replace(",", ";"), [row.replace(",", ";") for row in rows])
    decisions = [note.text for note in notes(folder)]
    assert len(decisions) == 4  # separator, spellings, split, columns
    arguments = ["data=custom", f"data.raw={folder}"]
    _, out, _ = command(doctor.main, arguments, capsys)
    _, _, err = command(train.main, [*arguments, *QUICK, f"output={tmp_path / 'out'}"], capsys)
    (log,) = (tmp_path / "out").rglob("train.log")
    for decision in decisions:
        assert decision in out
        assert f"custom: {decision}" in err
        assert f"custom: {decision}" in log.read_text(encoding="utf-8")


def test_a_warning_for_a_usual_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    caplog.set_level(logging.INFO, "ercfusion")
    load_data(Data(name="custom", raw=str(write(tmp_path / "calls", header(split="set")))))
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert [level for text, level in levels.items() if "columns not read" in text] == ["WARNING"]
    assert [level for text, level in levels.items() if "no column split" in text] == ["INFO"]


def inputs(folder: Path, tables: list[FeatureTable] | None = None) -> list[Finding]:
    corpus = open_corpus("custom", folder)
    results = check_corpus(corpus, corpus.protocol(), tables or [], media=False)
    return [finding for finding in results if finding.topic == "inputs"]


def test_a_table_without_any_input(tmp_path: Path) -> None:
    folder = write(tmp_path, header(text="utterance"))
    (fault,) = inputs(folder)
    assert fault.level == "fault"
    assert fault.text.startswith("utterances.csv: no columns text, audio, video; and no feature pack in")
    assert fault.text.endswith("a model has no input. Add texts, recordings or a feature pack.")
    with pytest.raises(ConfigError) as caught:
        load_data(Data(name="custom", raw=str(folder)))
    assert str(caught.value) == fault.text
    # A pack of the command line is an input, and so is a text.
    keys = [(row.split(",")[0], row.split(",")[1]) for row in ROWS]
    assert inputs(folder, [FeatureTable("audio", keys, np.ones((len(keys), 2)))]) == []
    assert inputs(write(tmp_path, USUAL)) == []
    empty = [row.replace(f"line {row[1]} {row[3]}", "") for row in ROWS]
    assert "nothing in column text" in inputs(write(tmp_path, USUAL, empty))[0].text
    (note,) = inputs(
        write(tmp_path, header(text="audio"), [row.replace("line ", "").replace(" ", "_") for row in ROWS])
    )
    assert note.level == "note"
    assert "python -m ercfusion.extract data=custom" in note.text


def test_doctor_shows_licence_and_citation_only_if_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, USUAL)
    _, out, _ = command(doctor.main, ["data=custom", f"data.raw={tmp_path}"], capsys)
    assert "licence" not in out
    assert "cite" not in out
    (tmp_path / "corpus.yaml").write_text("licence: internal\n")
    _, out, _ = command(doctor.main, ["data=custom", f"data.raw={tmp_path}"], capsys)
    assert "  licence    internal\n" in out


def test_an_unlabelled_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row.replace("anger", "").replace("joy", "") if row.endswith("test") else row for row in ROWS]
    status, out, _ = command(doctor.main, ["data=custom", f"data.raw={write(tmp_path, USUAL, rows)}"], capsys)
    assert status == 0, out
    assert "note  test: not labelled for the task 'emotion': predicted, not scored" in out
