import pytest

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.labels import get_schema
from ercfusion.data.permute import seeded_permutation
from ercfusion.data.tabular import (
    check_unique,
    group_rows,
    pick,
    read_json,
    read_own_table,
    read_records,
    read_table,
    read_text,
)


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problem(function, *arguments):
    with pytest.raises(CorpusFormatError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.count("\n") <= 3
    return message


def test_rows_remember_their_lines(write):
    rows = read_table(write('id,text\n1,"two\nlines"\n\n2,b\n'), ["id", "text"])
    assert [(row.line, row["id"], row["text"]) for row in rows] == [(2, "1", "two\nlines"), (5, "2", "b")]


@pytest.mark.parametrize("content", ["\ufeffid,text\r\n1,é\r\n", " id , text,other\n1,é,x\n", "text,id\né,1"])
def test_marks_line_ends_order_and_further_columns_do_not_matter(write, content):
    (row,) = read_table(write(content), ["id", "text"])
    assert (row.integer("id"), row.text("text")) == (1, "é")


def test_quoted_commas_and_doubled_quotes(write):
    assert read_table(write('a,b\n"x, ""y""",1\n'), ["a"])[0]["a"] == 'x, "y"'


def test_missing_column_names_the_nearest_found(write):
    message = problem(read_table, write("Emotions,x\njoy,1\n"), ["Emotion"])
    assert "a.csv, line 1: no column 'Emotion'" in message
    assert "Is it 'Emotions'?" in message


def test_doubled_column(write):
    assert "occurs 2 times" in problem(read_table, write("a,a\n1,2\n"), ["a"])


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_empty_file(write, content):
    assert "is empty" in problem(read_table, write(content), ["a"])


def test_nothing_but_commas(write):
    assert "Found: nothing but commas" in problem(read_table, write(",,\n,,\n"), ["a"])


def test_header_only(write):
    assert "no records" in problem(read_table, write("a,b\n"), ["a"])


@pytest.mark.parametrize("content", ["a,b\n1,2\n1,2,3\n", "a,b\n1,2\n1\n"])
def test_wrong_number_of_cells(write, content):
    assert "line 3" in problem(read_table, write(content), ["a"])


@pytest.mark.parametrize("content", ['a,b\n1,2\n"x"y,2\n3,4\n', 'a,b\n1,2\n"open,2\n3,4\n'])
def test_bad_quotation_marks_name_the_line_where_the_record_starts(write, content):
    message = problem(read_table, write(content), ["a"])
    assert "line 3" in message
    assert "quotation mark" in message


def test_utf_16(write):
    assert "UTF-16" in problem(read_text, write("a,b\n1,2\n".encode("utf-16")))
    assert "zero byte" in problem(read_text, write("a,b\n1,2\n".encode("utf-16-le")))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_latin_1_names_line_and_byte(write, mark):
    message = problem(read_text, write(mark + "a,b\n1,caf\u00e9\n".encode("latin-1")))
    assert "line 2, byte 6" in message
    assert "0xe9" in message
    assert "save it as UTF-8" in message


@pytest.mark.parametrize("cell", ["1.0", "-1", "x", "", "1_0", "+3", "٣", "1" * 10, "1" * 5000])
def test_not_an_integer(write, cell):
    row = read_table(write(f"n,x\n{cell},1\n"), ["n"])[0]
    message = problem(row.integer, "n")
    assert "line 2, column 'n'" in message
    assert repr(cell)[:40] in message


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_release_with_another_separator_is_refused_by_name(write, separator, name):
    message = problem(read_table, write(f"a{separator}b\n1{separator}2\n"), ["a", "b"])
    assert f"separated by {name}. Get the file again from the release" in message
    rows, found = read_own_table(write(f"a{separator}b\n1,5{separator}2\n"), ["a", "b"])
    assert (rows[0].cells, rows[0].decimal, found) == ({"a": "1,5", "b": "2"}, ",", separator)


def test_cells_that_are_too_many_name_the_separator(write):
    assert "a semicolon or quotation mark" in problem(read_own_table, write("a;b\n1;2;3\n"), ["a"])
    assert "a comma or quotation mark" in problem(read_table, write("a,b\n1,2,3\n"), ["a"])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"PK\x03\x04" + bytes(20), "Excel workbook (.xlsx)"),
        (b"\xd0\xcf\x11\xe0" + bytes(20), "old Excel workbook (.xls)"),
        (b"PAR1" + bytes(20), "Parquet"),
        (b"\x1f\x8b" + bytes(20), "gzip"),
    ],
)
def test_other_files_under_the_name_of_a_text(write, content, name):
    assert name in problem(read_text, write(content))


def test_an_encoding_that_is_given(write):
    assert read_text(write("é".encode("cp1252")), "cp1252") == "é"
    assert read_text(write("é".encode("utf-16")), "utf-16") == "é"
    assert "line 1, byte 1: the byte 0xe9 is not ascii" in problem(read_text, write("é".encode("cp1252")), "ascii")
    assert "cannot be read as undefined" in problem(read_text, write("a"), "undefined")


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("00:20:57,256", 1257.256),
        ("0:12:43,012", 763.012),
        ("00:18:36,00", 1116.0),
        ("1:2:3.5", 3723.5),
        ("0:0:7", 7.0),
    ],
)
def test_times(write, cell, seconds):
    assert read_table(write(f't,x\n"{cell}",1\n'), ["t"])[0].seconds("t") == seconds


@pytest.mark.parametrize("cell", ["57.2", "00:61:00,000", "00:00:60,000", "late", "", "-0:00:01,000", "00:20:57,"])
def test_not_a_time(write, cell):
    row = read_table(write(f't,x\n"{cell}",1\n'), ["t"])[0]
    assert "HH:MM:SS,mmm" in problem(row.seconds, "t")


def test_labels_ignore_capital_letters_and_wrong_ones_name_the_nearest(write):
    rows = read_table(write("e,x\nJoy ,1\njoyy,2\nzzz,3\n"), ["e"])
    schema = get_schema("meld7")
    assert rows[0].label("e", schema) == "joy"
    message = problem(rows[1].label, "e", schema)
    assert "line 3, column 'e': 'joyy' is not a label of meld7. Did you mean 'joy'?" in message
    assert "Choose from: neutral" in problem(rows[2].label, "e", schema)


def test_empty_cell(write):
    assert "line 2, column 'e'" in problem(read_table(write("e,x\n ,1\n"), ["e"])[0].text, "e")


def test_duplicates_name_both_lines(write):
    rows = read_table(write("d,u\n1,0\n1,1\n01,0\n"), ["d", "u"])
    message = problem(check_unique, rows, lambda row: (row.integer("d"), row.integer("u")), ("d", "u"))
    assert "line 4" in message
    assert "line 2" in message
    check_unique(rows, lambda row: row.line, ())


def test_groups_keep_the_order_of_the_file(write):
    rows = read_table(write("d,u\n2,a\n1,b\n2,c\n"), ["d", "u"])
    groups = group_rows(rows, lambda row: row.integer("d"))
    assert {key: [row["u"] for row in rows] for key, rows in groups.items()} == {2: ["a", "c"], 1: ["b"]}
    assert list(groups) == [2, 1]


def test_records_without_header(write):
    assert list(read_records(write('"1","2"\n"3","4"\n'))) == [(1, ["1", "2"]), (2, ["3", "4"])]


def test_malformed_json_names_line_and_column(write):
    message = problem(read_json, write('{"a": [1,\n2,,]}', "a.json"))
    assert "a.json, line 2, column 3" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
        ("[" + "9" * 5000 + "]", "the number 999999999999... has 5000 characters"),
        ("[1e999]", "the number 1e999 is too large"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[" * 50 + "]" * 50, "more than 40 levels"),
        ("[" * 100_000 + "]" * 100_000, "too many levels"),
    ],
)
def test_hostile_json(write, content, words):
    assert words in problem(read_json, write(content, "a.json"))


def test_pick(tmp_path):
    def pick_a(entry, kind=int):
        return pick(entry, "a", kind, tmp_path, "entry 3")

    assert pick_a({"a": 1}) == 1
    assert pick_a({"a": 1}, float) == 1.0
    for entry, kind in (({"a": True}, int), ({"a": "1"}, int), ({"b": 1}, int), ([1], int), ({"a": 1}, str)):
        assert "entry 3" in problem(pick_a, entry, kind)


def test_permutation_depends_on_the_seed_and_not_on_the_given_order():
    names = [str(number) for number in range(100)]
    order = seeded_permutation(names, 0)
    assert order != names
    assert sorted(order) == sorted(names)
    assert order == seeded_permutation(reversed(names), 0)
    assert order != seeded_permutation(names, 1)
    # Written down: splits made with it must never change.
    assert seeded_permutation("abcde", 0) == list("dacbe")


@pytest.mark.parametrize(("text", "reason"), [("[" * 5000, "too many levels"), ("[" + "9" * 5000 + "]", "not valid")])
def test_json_beyond_all_measure_is_named(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CorpusFormatError, match=reason):
        read_json(path)


def test_long_values_in_messages_are_cut():
    value = "x" * 70_000
    message = str(CorpusFormatError(f"a.csv, line 3, column 'Emotion': found {value!r}. Did you mean 'joy'?"))
    assert len(message) < 130
    assert message.endswith("xxx... Did you mean 'joy'?")
    assert len(str(CorpusFormatError("many words " * 100))) == 600
