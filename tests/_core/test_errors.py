"""Suggestions (a slip of the pen is recognised, another word is not offered), and errors in words."""

from __future__ import annotations

import pytest

from ercfusion._core.errors import did_you_mean, first_line, nearest, system_words, with_type

KNOWN = [
    "conversation",
    "speaker",
    "text",
    "split",
    "weighted_f1",
    "macro_f1",
    "--help",
    "--multirun",
    "cogmen",
    "optimizer.lr",
]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("conversaton", "conversation"),
        ("Conversation", "conversation"),
        ("speakers", "speaker"),
        ("tetx", "text"),
        ("f1_weighted", "weighted_f1"),
        ("weighted", "weighted_f1"),
        ("macro", "macro_f1"),
        ("optimizer", "optimizer.lr"),
        ("macrof1", "macro_f1"),
        ("--hlep", "--help"),
        ("--multi-run", "--multirun"),
        ("congmen", "cogmen"),
        ("optimiser.lr", "optimizer.lr"),
    ],
)
def test_slips(word: str, meant: str) -> None:
    assert nearest(word, KNOWN, 1) == [meant]


@pytest.mark.parametrize(
    "word", ["emotion", "--model", "x", "", "transcript", "hubert", "1", "a" * 5000, "convolution"]
)
def test_other_words(word: str) -> None:
    assert nearest(word, KNOWN) == []
    assert did_you_mean(word, KNOWN).startswith("Choose from: ")


def test_the_best_comes_first() -> None:
    assert nearest("cogmn", ["cogmans", "cogmen", "concat"]) == ["cogmen"]
    assert nearest("mled", ["m3ed", "meld"], 1) == ["meld"]
    assert nearest("dropuot", ["dropouts", "dropout"]) == ["dropout", "dropouts"]


def test_a_word_of_a_name_is_a_part_of_it() -> None:
    assert nearest("epochs", ["patience", "max_epochs"]) == ["max_epochs"]
    assert nearest("epochs", ["max_epochs_total", "epoch"], 1) == ["epoch"]
    assert nearest("lr", ["max_lr"]) == []  # too short


def test_errors_in_words() -> None:
    assert first_line(ValueError("\n no such file \nmore")) == "no such file"
    assert first_line(MemoryError()) == "MemoryError"
    assert with_type(KeyError("vocab")) == "KeyError: 'vocab'"
    assert with_type(MemoryError()) == "MemoryError"
    assert system_words(PermissionError(13, "Permission denied", "/data")) == "/data: Permission denied"
    assert system_words(OSError(13, "Permission denied", b"/data")) == "/data: Permission denied"
    assert system_words(OSError(9, "Bad file descriptor", 3)) == "Bad file descriptor"
    assert system_words(OSError(28, "No space left on device")) == "No space left on device"
    assert system_words(OSError("not a\nsystem error")) == "not a system error"
    assert system_words(OSError()) == "OSError", "an empty text would mean that nothing failed"
