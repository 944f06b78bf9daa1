"""What users' own tables look like: each test writes the input on which somebody failed."""

from __future__ import annotations

import logging
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import StubEncoder, stub_text_encoder

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, ErcfusionError
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.conversation import Turn
from ercfusion.data.corpus import Finding
from ercfusion.features.loading import load_data
from ercfusion.testing.media import tone, write_wav

EMOTIONS = ("joy", "anger", "neutral")
HEADER = ("conversation", "turn", "speaker", "text", "emotion")


def rows_of(conversations: int = 6, turns: int = 4) -> list[dict[str, str]]:
    return [
        {
            "conversation": f"g{number}",
            "turn": str(turn + 1),
            "speaker": "AB"[turn % 2],
            "text": f"line {number} {turn}",
            "emotion": EMOTIONS[(number + turn) % 3],
        }
        for number in range(conversations)
        for turn in range(turns)
    ]


def write(folder: Path, rows: list[dict[str, str]], separator: str = ",", encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    (folder / "utterances.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    return folder


def notes(folder: Path, **options: Any) -> list[str]:
    corpus = open_corpus("custom", folder, **options)
    found = corpus.notes(corpus.protocol())
    assert {entry.level for entry in found} <= {"note"}
    return [entry.text for entry in found if "no column split: drew" not in entry.text]


def turns(folder: Path, **options: Any) -> dict[str, list[Turn]]:
    corpus = open_corpus("custom", folder, **options)
    splits = corpus.conversations(corpus.protocol())
    return {one.id: list(one.turns) for part in splits.values() for one in part}


def labels(folder: Path, **options: Any) -> set[Any]:
    return {turn.targets["emotion"].value for part in turns(folder, **options).values() for turn in part}


def findings(folder: Path, **options: Any) -> list[Finding]:
    corpus = open_corpus("custom", folder, **options)
    return check_corpus(corpus, corpus.protocol())


def problem(folder: Path, error: type[ErcfusionError] = CorpusFormatError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        turns(folder, **options)
    message = str(caught.value)
    assert "release" not in message
    return message


# Separators


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), (",", "")])
def test_separators(tmp_path: Path, separator: str, name: str) -> None:
    write(tmp_path / "mine", rows_of(), separator)
    write(tmp_path / "plain", rows_of())
    assert turns(tmp_path / "mine") == turns(tmp_path / "plain")
    assert notes(tmp_path / "mine") == ([f"utterances.csv: cells are separated by {name}"] if name else [])


def test_a_line_that_names_the_separator_is_no_header(tmp_path: Path) -> None:
    write(tmp_path, rows_of(), ";")
    path = tmp_path / "utterances.csv"
    path.write_bytes(b"sep=;\r\n" + path.read_bytes())
    assert len(turns(tmp_path)) == 6


def test_decimal_commas_come_with_semicolons(tmp_path: Path) -> None:
    rows = [{**row, "start": f"{2 * int(row['turn'])},5", "end": f"{2 * int(row['turn']) + 1}"} for row in rows_of()]
    write(tmp_path, rows, ";")
    assert [(turn.start, turn.end) for turn in turns(tmp_path)["g0"]] == [(2.5, 3), (4.5, 5), (6.5, 7), (8.5, 9)]
    assert "24 numbers have a decimal comma" in notes(tmp_path)[1]
    write(tmp_path, [{**row, "start": "2,5", "end": "3"} for row in rows_of()], "\t")
    assert turns(tmp_path)["g0"][0].start == 2.5


def test_a_header_that_fits_with_no_separator(tmp_path: Path) -> None:
    rows = [{"dialogue": row.pop("conversation"), **row} for row in rows_of()]
    message = problem(write(tmp_path, rows, ";"))
    assert "no column 'conversation'. Found: 'dialogue', 'turn', 'speaker', 'text', 'emotion'" in message
    assert "Rename or add: 'dialogue' to 'conversation'." in message


# Order


@pytest.mark.parametrize("names", ["{}", "{:03d}"])
def test_turns_in_another_order(tmp_path: Path, names: str) -> None:
    rows = [{**row, "turn": names.format(int(row["turn"]))} for row in rows_of(3, 11)]
    plain, mine = write(tmp_path / "plain", rows), write(tmp_path / "mine", rows[::-1])
    assert turns(mine) == turns(plain)
    assert notes(plain) == []
    (note,) = notes(mine)
    assert "3 of 3 conversations are not in order of 'turn'" in note
    assert turns(mine, order="file")["g0"][0].text == "line 0 10"


def test_start_orders_turns_whose_ids_are_no_numbers(tmp_path: Path) -> None:
    # As in a corpus whose file lists one speaker after the other: the names count each speaker's utterances.
    rows = [
        {**row, "turn": f"G{row['speaker']}_{(int(row['turn']) + 1) // 2:03d}", "start": row["turn"], "end": ""}
        for row in rows_of()
    ]
    write(tmp_path, sorted(rows, key=lambda row: (row["conversation"], row["speaker"], row["turn"])))
    assert [turn.id for turn in turns(tmp_path)["g0"]] == ["GA_001", "GB_001", "GA_002", "GB_002"]
    assert any("6 of 6 conversations are not in order of 'start'" in note for note in notes(tmp_path))
    assert [turn.id for turn in turns(tmp_path, order="file")["g0"]] == ["GA_001", "GA_002", "GB_001", "GB_002"]


def test_numbers_within_ids(tmp_path: Path) -> None:
    rows = [{**row, "turn": f"utt_{row['turn']}"} for row in rows_of(2, 11)]
    assert notes(write(tmp_path, rows)) == []
    message = problem(write(tmp_path, rows[::-1]))
    assert "data.options.order=turn or data.options.order=file" in message
    assert "2 of 2 conversations" in message
    assert [turn.id for turn in turns(tmp_path, order="turn")["g0"]] == [f"utt_{number}" for number in range(1, 12)]
    assert turns(tmp_path, order="file")["g0"][0].id == "utt_11"


def test_turn_and_start_that_contradict_each_other(tmp_path: Path) -> None:
    rows = [{**row, "start": str(9 - int(row["turn"])), "end": ""} for row in rows_of()]
    message = problem(write(tmp_path, rows))
    assert "data.options.order=turn or data.options.order=start" in message
    assert [turn.id for turn in turns(tmp_path, order="start")["g0"]] == ["4", "3", "2", "1"]
    assert [turn.id for turn in turns(tmp_path, order="turn")["g0"]] == ["1", "2", "3", "4"]
    # In a few conversations a wrong time is a wrong time.
    rows = [{**row, "start": "9" if row == rows[0] else row["turn"]} for row in rows]
    assert [turn.id for turn in turns(write(tmp_path, rows))["g0"]] == ["1", "2", "3", "4"]


def test_an_order_that_nothing_tells_is_said(tmp_path: Path) -> None:
    rows = [{**row, "turn": "abcd"[int(row["turn"]) - 1]} for row in rows_of()]
    write(tmp_path, rows)
    assert "the order of the rows is used" in notes(tmp_path)[0]
    assert notes(tmp_path, order="file") == []
    assert "that column of" in problem(tmp_path, ConfigError, order="turn")
    assert "some of its cells are empty" in problem(tmp_path, ConfigError, order="start")
    with pytest.raises(ConfigError, match=r"data\.options\.order must be one of turn, start, file"):
        open_corpus("custom", tmp_path, order="turns")


# Splits


def split_rows(**parts: int) -> list[dict[str, str]]:
    names = [split for split, count in parts.items() for _ in range(count)]
    rows = rows_of(len(names))
    return [{**row, "split": names[int(row["conversation"][1:])]} for row in rows]


def test_a_split_without_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    write(tmp_path, split_rows(train=30, test=3))

    def sizes(**options: Any) -> dict[str, list[str]]:
        corpus = open_corpus("custom", tmp_path, **options)
        return {split: [one.id for one in part] for split, part in corpus.conversations(corpus.protocol()).items()}

    found = sizes()
    assert {split: len(part) for split, part in found.items()} == {"train": 27, "dev": 3, "test": 3}
    assert sorted(found["train"] + found["dev"]) == sorted(f"g{number}" for number in range(30))
    assert found == sizes(split_seed=0) != sizes(split_seed=1)
    (note,) = notes(tmp_path)
    assert "3 of the 30 training conversations are dev, drawn by conversation with the seed 0" in note
    corpus = open_corpus("custom", tmp_path)
    assert "names no dev: 10 % of train" in corpus.protocol().dev_source
    assert [entry.text for entry in findings(tmp_path) if entry.level == "fault"] == []
    # Training's log has the note, before any feature is built.
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    caplog.set_level(logging.INFO, "ercfusion")
    load_data(Data(name="custom", raw=str(tmp_path)))
    assert StubEncoder.calls
    logged = [record.getMessage() for record in caplog.records]
    assert f"custom: {note}" in logged
    assert logged.index(f"custom: {note}") < next(i for i, text in enumerate(logged) if "building text" in text)


def test_one_training_conversation_gives_no_dev(tmp_path: Path) -> None:
    message = problem(write(tmp_path, split_rows(train=1, test=3)))
    assert "no conversation is in dev" in message
    assert "at least 2" in message


def test_other_names_of_splits(tmp_path: Path) -> None:
    rows = split_rows(train=3, dev=2, test=2)
    other = {"train": " Train", "dev": "valid", "test": "TEST"}
    write(tmp_path / "mine", [{**row, "split": other[row["split"]]} for row in rows])
    assert turns(tmp_path / "mine") == turns(write(tmp_path / "plain", rows))
    (note,) = notes(tmp_path / "mine")
    assert "'valid' (8) as dev" in note


# Labels


def test_spellings_of_one_label_are_one_label(tmp_path: Path) -> None:
    angry = "ärger"
    decomposed = unicodedata.normalize("NFD", angry)
    assert decomposed != angry
    spelled = {"anger": (angry, decomposed, "Ärger"), "joy": ("freude", " freude ", "FREUDE"), "neutral": ("neutral",)}
    rows = rows_of(9)
    for emotion, forms in spelled.items():
        same = [row for row in rows if row["emotion"] == emotion]
        for row, form in zip(same, forms, strict=False):
            row["emotion"] = form
        for row in same[len(forms) :]:
            row["emotion"] = forms[0]
    assert labels(write(tmp_path, rows)) == {"neutral", angry, "freude"}
    corpus = open_corpus("custom", tmp_path)
    assert corpus.protocol().task.schema is not None
    assert corpus.protocol().task.schema.labels == ("neutral", "freude", angry)
    said = " ".join(notes(tmp_path))
    assert f"{decomposed!r} in decomposed Unicode" in said
    assert "'FREUDE' (" in said
    assert "blanks around the label" in said
    # The same where the labels are listed, in whichever form.
    settings = {"targets": {"emotion": {"labels": ["Neutral", decomposed, "freude"]}}}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    assert labels(tmp_path) == {"Neutral", angry, "freude"}


def test_the_usual_spelling_names_the_label(tmp_path: Path) -> None:
    rows = rows_of(9)
    joyful = [row for row in rows if row["emotion"] == "joy"]
    for row in joyful[1:]:
        row["emotion"] = "Joy"
    assert labels(write(tmp_path, rows)) == {"Joy", "anger", "neutral"}
    settings = {"targets": {"emotion": {"kind": "single_label", "synonyms": {"JOY": "happiness"}}}}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings))
    assert labels(tmp_path) == {"happiness", "anger", "neutral"}


def test_two_labels_that_differ_in_capitals_only(tmp_path: Path) -> None:
    rows = rows_of()
    rows[0]["emotion"] = "JOY"
    settings = {"targets": {"emotion": {"labels": ["neutral", "anger", "joy", "JOY"]}}}
    write(tmp_path, rows)
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings))
    message = problem(tmp_path)
    assert "key 'targets.emotion.labels': 'joy' and 'JOY' differ only in case" in message


def test_ids_and_speakers_in_two_unicode_forms(tmp_path: Path) -> None:
    rows = [{**row, "conversation": f"gespräch{row['conversation']}", "speaker": "Jürgen"} for row in rows_of()]
    for row in rows[::2]:
        for column in ("conversation", "speaker"):
            row[column] = unicodedata.normalize("NFD", row[column])
    found = turns(write(tmp_path, rows))
    assert len(found) == 6
    assert {turn.speaker for part in found.values() for turn in part} == {"Jürgen"}
    assert sum("decomposed Unicode" in note for note in notes(tmp_path)) == 2


# Missing values


def test_words_for_missing_values(tmp_path: Path) -> None:
    rows = [{**row, "start": "NA", "end": "NaN", "audio": "NA"} for row in rows_of()]
    rows[0]["emotion"], rows[1]["emotion"], rows[2]["emotion"] = "NA", "#N/A", "unclear"
    write(tmp_path, rows)
    assert labels(tmp_path) == {*EMOTIONS, "unclear", None}
    assert labels(tmp_path, missing=["unclear"]) == {*EMOTIONS, None}
    with pytest.raises(ConfigError, match="takes a list, found 'unclear'"):
        labels(tmp_path, missing="unclear")
    assert turns(tmp_path)["g0"][0].start is None
    said = " ".join(notes(tmp_path, missing=["unclear"]))
    assert "column 'emotion': read as missing: '#N/A' (1), 'NA' (1), 'unclear' (1)" in said
    assert "column 'start': read as missing: 'NA' (24)" in said
    corpus = open_corpus("custom", tmp_path)
    with pytest.raises(ConfigError, match="no row has a path"):
        corpus.clips(corpus.protocol(), "audio")


def test_a_listed_label_is_no_missing_value(tmp_path: Path) -> None:
    rows = rows_of()
    rows[0]["emotion"] = "NA"
    rows[1]["text"] = "NA"
    write(tmp_path, rows)
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump({"targets": {"emotion": {"labels": ["NA", *EMOTIONS]}}}))
    assert labels(tmp_path) == {"NA", *EMOTIONS}
    assert turns(tmp_path)["g0"][1].text == "NA"
    assert notes(tmp_path) == []


# Times


def timed_rows() -> list[dict[str, str]]:
    return [{**row, "start": row["turn"], "end": f"{row['turn']}.5"} for row in rows_of()]


def test_turns_that_end_when_they_start(tmp_path: Path) -> None:
    rows = timed_rows()
    rows[1]["end"], rows[6]["end"] = rows[1]["start"], rows[6]["start"]
    write(tmp_path, rows)
    (note,) = notes(tmp_path)
    assert "2 turns end when they start: line 3 (2 s), line 8 (3 s)" in note
    assert turns(tmp_path)["g0"][1].end == 2
    assert not [entry for entry in findings(tmp_path) if entry.level == "fault"]


def test_a_recording_that_cannot_be_cut(tmp_path: Path) -> None:
    rows = [{**row, "audio": f"{row['conversation']}.wav"} for row in timed_rows()]
    rows[1]["end"], rows[6]["end"] = rows[1]["start"], rows[6]["start"]
    write(tmp_path, rows)
    for number in range(6):
        write_wav(tmp_path / f"g{number}.wav", tone(6, seed=number))
    corpus = open_corpus("custom", tmp_path)
    with pytest.raises(CorpusFormatError, match=r"2 turns .* line 3 \(2 s\), line 8 \(3 s\)"):
        corpus.clips(corpus.protocol(), "audio")
    (fault,) = [entry.text for entry in findings(tmp_path) if entry.level == "fault"]
    assert "line 3 (2 s), line 8 (3 s)" in fault
    # A file of its own is read whole.
    write(tmp_path, [{**row, "audio": f"{position}.wav"} for position, row in enumerate(rows)])
    write_wav(tmp_path / "0.wav", tone(1))
    corpus = open_corpus("custom", tmp_path)
    assert corpus.clips(corpus.protocol(), "audio")["g0", "2"].end is None


def test_turns_that_end_before_they_start_are_all_named(tmp_path: Path) -> None:
    rows = timed_rows()
    rows[1]["end"], rows[6]["end"] = "0", "1"
    message = problem(write(tmp_path, rows))
    assert "line 3, column 'end': the turn ends at 0 s and starts at 2 s" in message
    assert "line 8, column 'end': the turn ends at 1 s and starts at 3 s" in message


# Recordings


def test_paths_with_backslashes(tmp_path: Path) -> None:
    rows = [{**row, "audio": rf"rec\{row['conversation']}_{row['turn']}.wav"} for row in rows_of()]
    write(tmp_path, rows)
    found = [entry for entry in findings(tmp_path) if entry.topic == "audio recordings"]
    assert {entry.level for entry in found} == {"fault"}
    said = " ".join(entry.text for entry in found)
    assert all(f"{row['conversation']}_{row['turn']}.wav" in said for row in rows)
    assert "backslashes separate folders in 24 paths" in notes(tmp_path)[0]
    corpus = open_corpus("custom", tmp_path)
    with pytest.raises(CorpusNotFoundError, match="none of the 24 recordings"):
        corpus.clips(corpus.protocol(), "audio")
    for row in rows[1:]:
        write_wav(tmp_path / "rec" / f"{row['conversation']}_{row['turn']}.wav", tone(1))
    clips = corpus.clips(corpus.protocol(), "audio")
    assert sum(clip.path.is_file() for clip in clips.values()) == 23
    absent = [entry.text for entry in findings(tmp_path) if "absent (first" in entry.text]
    assert len(absent) == 1
    assert "g0_1.wav" in absent[0]


def test_a_drive_of_another_system(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "audio": rf"C:\calls\{row['turn']}.wav"} for row in rows_of()])
    assert "24 paths begin with a Windows drive (first: C:\\calls\\1.wav)" in " ".join(notes(tmp_path))


def test_a_backslash_within_a_name_and_a_decomposed_name(tmp_path: Path) -> None:
    rows = rows_of(1, 2)
    write(tmp_path, [{**row, "audio": path} for row, path in zip(rows, (r"a\b.wav", "gespräch.wav"), strict=True)])
    write_wav(tmp_path / r"a\b.wav", tone(1))
    write_wav(tmp_path / unicodedata.normalize("NFD", "gespräch.wav"), tone(1))
    corpus = open_corpus("custom", tmp_path)
    assert all(clip.path.is_file() for clip in corpus.clips(corpus.protocol(), "audio").values())


# Encodings and workbooks


def test_encodings(tmp_path: Path) -> None:
    rows = [{**row, "text": f"Straße {row['turn']}"} for row in rows_of()]
    write(tmp_path, rows, encoding="cp1252")
    message = problem(tmp_path)
    assert "line 2, byte 12" in message
    assert "Windows-1252 (cp1252)" in message
    assert "data.options.encoding=cp1252" in message
    assert turns(tmp_path, encoding="cp1252")["g0"][0].text == "Straße 1"
    assert "is not ascii" in problem(tmp_path, encoding="ascii")
    with pytest.raises(ConfigError, match=r"there is no such encoding\. Did you mean 'cp1252'"):
        open_corpus("custom", tmp_path, encoding="cp1253x")
    for name in ("hex", "undefined"):
        with pytest.raises(ConfigError, match="there is no such encoding"):
            open_corpus("custom", tmp_path, encoding=name)
    with pytest.raises(ConfigError, match="takes a list, found 3"):
        open_corpus("custom", tmp_path, missing=3)
    write(tmp_path, rows, encoding="utf-32")
    assert turns(tmp_path, encoding="utf-32")["g0"][0].text == "Straße 1"
    write(tmp_path, rows, encoding="utf-16")
    assert "data.options.encoding=utf-16" in problem(tmp_path)
    assert turns(tmp_path, encoding="utf-16")["g0"][0].text == "Straße 1"
    write(tmp_path, [{**row, "text": "一路平安，明天见"} for row in rows], encoding="gb18030")
    assert "gb18030 (Chinese)" in problem(tmp_path)
    assert turns(tmp_path, encoding="gb18030")["g0"][0].text == "一路平安，明天见"


def test_settings_in_another_encoding(tmp_path: Path) -> None:
    write(tmp_path, rows_of())
    (tmp_path / "corpus.yaml").write_bytes("title: Gespräche".encode("cp1252"))
    assert "corpus.yaml, line 1, byte 13" in problem(tmp_path)


def workbook(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("xl/workbook.xml", "<workbook/>")


def test_workbooks(tmp_path: Path) -> None:
    workbook(tmp_path / "utterances.xlsx")
    message = problem(tmp_path, CorpusNotFoundError)
    assert "There is utterances.xlsx: save it as CSV (UTF-8) under the name utterances.csv." in message
    (tmp_path / "utterances.xlsx").rename(tmp_path / "calls.xlsx")
    assert "There is calls.xlsx" in problem(tmp_path, CorpusNotFoundError)
    (tmp_path / "calls.xlsx").rename(tmp_path / "utterances.csv")
    message = problem(tmp_path)
    assert "an Excel workbook (.xlsx)" in message
    assert "Windows-1252" not in message
    (tmp_path / "utterances.csv").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100))
    assert "an old Excel workbook (.xls)" in problem(tmp_path)


def test_other_names_of_the_table(tmp_path: Path) -> None:
    write(tmp_path, rows_of())
    for name in ("Utterances.CSV", "utterances.tsv", "utterances.csv.txt"):
        path = (tmp_path / "utterances.csv").rename(tmp_path / name)
        message = problem(tmp_path, CorpusNotFoundError)
        assert f"There is {name}: if it is this file, rename it to utterances.csv." in message
        path.rename(tmp_path / "utterances.csv")


def test_a_release_that_a_spreadsheet_saved(tmp_path: Path) -> None:
    workbook(tmp_path / "train_sent_emo.xlsx")
    corpus = open_corpus("meld", tmp_path)
    with pytest.raises(CorpusNotFoundError, match=r"There is train_sent_emo\.xlsx"):
        corpus.conversations(corpus.protocol())


# The cases themselves, where they are at hand

CASES = {
    "semicolon": ({}, "separated by semicolons"),
    "tab": ({}, "separated by tabs"),
    "turns_reversed": ({}, "12 of 12 conversations are not in order of 'turn'"),
    "split_without_dev": ({}, "names no dev"),
    "start_equals_end": ({}, "1 turns end when they start: line 15"),
    "label_unicode_forms": ({}, "in decomposed Unicode (8)"),
    "label_NA": ({}, "read as missing: 'NA' (6)"),
    "recordings_with_backslashes": ({}, "backslashes separate folders in 48 paths"),
    "cp1252": ({"encoding": "cp1252"}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    folder = Path(__file__).resolve().parents[4] / "shared" / "cases" / case
    if not folder.is_dir():
        pytest.skip(f"no folder ../shared/cases/{case} beside the repository")
    options, note = CASES[case]
    found = findings(folder, **options)
    assert note in " ".join(entry.text for entry in found)
    faults = [entry for entry in found if entry.level == "fault"]
    assert {entry.topic for entry in faults} == ({"audio recordings"} if "recordings" in case else set())
    parts = turns(folder, **options)
    assert len(parts) == 12
    assert all([turn.id for turn in part] == ["1", "2", "3", "4"] for part in parts.values())
    assert len(labels(folder, **options) - {None}) == 3


def test_messages_do_not_speak_of_a_release(tmp_path: Path) -> None:
    assert "column 'turn': the cell is empty. Fill it." in problem(write(tmp_path, [{**rows_of()[0], "turn": ""}]))
    (tmp_path / "utterances.csv").write_text(",".join(HEADER) + "\n")
    assert "no records. Add a row per utterance" in problem(tmp_path)
    (tmp_path / "utterances.csv").write_text(",".join(HEADER) + '\n"a')
    assert "is not CSV" in problem(tmp_path)
