"""Every failure of a reader is one short error that names file, line or key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from ercfusion._core.errors import ConfigError, ErcfusionError, PackError, RunError
from ercfusion._core.schemas.common import Closed, Count, Open, Value
from ercfusion._core.schemas.reading import (
    check,
    failure,
    parse_json,
    read_json,
    read_rows,
    read_text,
    read_yaml,
    shown,
)


class Inner(Closed):
    size: Count
    note: str = ""


class Outer(Open):
    inner: Inner
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    option: Value = None
    share: float = Field(default=0.0, ge=0, le=1)


def short(error: ErcfusionError) -> str:
    text = str(error)
    assert len(text) <= 300
    assert len(text.splitlines()) <= 3
    return text


def of_json(tmp_path: Path, content: bytes | str, **settings: Any) -> str:
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError) as found:
        read_json(path, Outer, **settings)
    text = short(found.value)
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe", "line 1: not UTF-8 (byte 0xff)"),
        (b'{\n"a": "\xe9"}', "line 2: not UTF-8 (byte 0xe9)"),
        ("", "line 1: not valid JSON"),
        ('{\n"inner": ', "line 2: not valid JSON"),
        ('{"inner": NaN}', "NaN is not a JSON number"),
        ('{"inner": -Infinity}', "-Infinity is not a JSON number"),
        ('{"inner": 1e999}', "the number 1e999 is too large"),
        ('{"inner": ' + "9" * 5000 + "}", "has 5000 characters"),
        ('{"inner": 99999999999999999999}', "has 20 characters"),
        ("[" * 100_000, "too many levels"),
        ("[" * 60 + "]" * 60, "nested in more than 40 levels"),
        ('{"inner": {"size": 1}, "inner": {"size": 2}}', "the key 'inner' is there twice"),
        ("{}", "the key 'inner' is missing"),
        ("[]", "found [], but a mapping (key: value) is expected"),
        ('{"inner": {"size": -1}}', "key 'inner.size': found -1, but a number of at least 0 is expected"),
        ('{"inner": {"size": true}}', "key 'inner.size': found True, but a whole number is expected"),
        ('{"inner": {"size": 1.0}}', "key 'inner.size': found 1.0, but a whole number is expected"),
        ('{"inner": {"sise": 1}}', "there is no key 'inner.sise'. Did you mean 'size'?"),
        ('{"inner": {"size": 1}, "many": [{"size": 1}, {"size": "x"}]}', "key 'many[1].size': found 'x'"),
        ('{"inner": {"size": 1}, "by_name": {"a": {"size": 1, "nota": ""}}}', "Did you mean 'note'?"),
        ('{"inner": {"size": 1}, "option": {"a": 1}}', "key 'option': found a dict inside"),
        ('{"inner": {"size": 1}, "share": 1.5}', "key 'share': found 1.5, but a number of at most 1"),
        ('{"inner": "' + "x" * 200_000 + '"}', "key 'inner': found 'xxx"),
        ('{"' + "k" * 100_000 + '": 1, "inner": {"' + "k" * 100_000 + '": 2}}', "there is no key 'inner.kkk"),
    ],
)
def test_json(tmp_path: Path, content: bytes | str, expected: str) -> None:
    assert expected in of_json(tmp_path, content)


def test_advice_is_given_if_there_is_room(tmp_path: Path) -> None:
    assert of_json(tmp_path, "{}", advice="Do it again.").endswith("is missing. Do it again.")
    assert "Do it" not in of_json(tmp_path, '{"inner": "' + "é" * 500 + '"}', advice="Do it again. " * 20)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"absent\.json is missing"):
        read_json(tmp_path / "absent.json", error=PackError)
    with pytest.raises(RunError, match="this is not a file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="this is not a file"):
        read_text(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 11)
    with pytest.raises(RunError, match="11 bytes; at most 10 are read"):
        read_text(tmp_path / "large", most=10)


def test_what_fits_comes_back_as_it_is(tmp_path: Path) -> None:
    value = {"inner": {"size": 3}, "option": [1, "a", None], "share": 1, "of another version": {"x": [1.5]}}
    assert parse_json('{"inner": {"size": 3}, "option": [1, "a", null], "share": 1, '
                      '"of another version": {"x": [1.5]}}', "f", Outer) == value  # fmt: skip
    check(value, Outer, "f")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("inner: [", "line 1: not valid YAML"),
        ("inner: {size: 1}\ninner: {size: 2}", "line 2: not valid YAML (the key 'inner' is there twice)"),
        ("inner: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
        ("inner: !!set {a}", "the tag 'tag:yaml.org,2002:set' is not read"),
        ("inner: !!binary aGk=", "is not read"),
        ("inner: " + "9" * 5000, "has 5000 characters"),
        ("inner: .inf", ".inf is not a finite number"),
        ("[" * 3000, "too many levels"),
        ("inner: &a [*a]", "nested in more than 40 levels"),
        ("a: &a [1]\nb: [" + "*a, " * 30 + "]", "too many aliases"),
        ("? [a, b]\n: 1", "a key is not a word"),
        ("inner: \x00", "not valid YAML"),
        ("--- a\n--- b", "another document"),
        ("inner: {size: 2020-01-01}", "found '2020-01-01', but a whole number is expected"),
        ("inner: !!int x", "not valid YAML"),
    ],
)
def test_yaml(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as found:
        read_yaml(path, Outer, error=ConfigError)
    assert expected in short(found.value)


def test_aliases_cannot_make_much_of_little(tmp_path: Path) -> None:
    # Ten aliases for each of nine levels would stand for a thousand million words.
    levels = ["a0: &a0 [x, x, x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 10))]
    path = tmp_path / "file.yaml"
    path.write_text("\n".join(levels))
    assert len(read_yaml(path)["a9"]) == 2
    path.write_text("a: &a [" + "x, " * 20_000 + "]\nb: [" + "*a, " * 15 + "]")
    with pytest.raises(RunError, match="more than 200,000 values"):
        read_yaml(path)


def test_yaml_s_numbers_and_dates(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: 1e-3\nb: 2020-01-01\nc: 1.5\nd: 1_000\ne: 3\nf: 1e3x\ng: &x {y: 1}\nh: {<<: *x, z: 2}")
    plain = {"a": "1e-3", "b": "2020-01-01", "c": 1.5, "d": 1000, "e": 3, "f": "1e3x", "g": {"y": 1}}
    assert read_yaml(path) == {**plain, "h": {"y": 1, "z": 2}}
    assert read_yaml(path, floats=True)["a"] == 0.001


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"a,b\n1\n", "line 2: 1 cells for 2 columns"),
        (b"a,a\n1,2\n", "line 1: the column 'a' is there twice"),
        (b'a,b\n"1,2\n', "not valid CSV"),
        (b"a,b\n" + b"1" * 200_000 + b",2\n", "line 2: not valid CSV (field larger than"),
        (b"a,b\n1,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_csv(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(RunError) as found:
        read_rows(path)
    assert expected in short(found.value)


def test_long_paths_and_values_are_cut() -> None:
    text = short(failure(RunError, "/a" * 300, ": " + "problem " * 300, "Advice."))
    assert text.startswith("...")
    assert len(shown({"k" * 100: ["v" * 1000] * 50})) <= 60
