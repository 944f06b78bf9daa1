"""Targets of an own corpus from several columns: marks per label, votes, raters' labels and ratings."""

from __future__ import annotations

import csv
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.task import TaskSpec
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.conversation import Target, Turn
from ercfusion.data.raters import evaluator_weighted_estimate
from ercfusion.tasks.kinds.multi_label import label_parts

LABELS = ("neutral", "joy", "anger")


def write(
    folder: Path, columns: list[str], rows: list[list[Any]], targets: dict[str, Any] | None, separator: str = ","
) -> Path:
    """One turn per row, in conversations of one turn each; the cells are those of the target's columns."""
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter=separator)
        table.writerow(["conversation", "turn", "text", *columns])
        table.writerows([f"c{number}", 1, "Hm.", *cells] for number, cells in enumerate(rows))
    if targets is not None:
        (folder / "corpus.yaml").write_text(yaml.safe_dump({"targets": targets}), encoding="utf-8")
    return folder


def turns(folder: Path) -> list[Turn]:
    corpus = open_corpus("custom", folder)
    parts = corpus.conversations(corpus.protocol())
    named = {one.id: one.turns[0] for part in parts.values() for one in part}
    return [named[f"c{number}"] for number in range(len(named))]


def values(folder: Path, target: str) -> list[Any]:
    return [turn.targets[target].value for turn in turns(folder)]


def task(folder: Path, target: str) -> TaskSpec:
    return open_corpus("custom", folder).protocol(target).task


def notes(folder: Path) -> str:
    corpus = open_corpus("custom", folder)
    return " ".join(finding.text for finding in check_corpus(corpus, corpus.protocol()))


def problem(folder: Path) -> str:
    with pytest.raises(CorpusFormatError) as caught:
        turns(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# A label set in one column


@pytest.mark.parametrize(
    ("cell", "labels", "form", "parts"),
    [
        ("joy", (), "", ["joy"]),
        (" joy | anger ", (), "'|'", ["joy", "anger"]),
        ("joy, anger", (), "','", ["joy", "anger"]),
        ("joy;anger", (), "';'", ["joy", "anger"]),
        ("['joy', 'anger']", (), "a list", ["joy", "anger"]),
        ('["joy"]', (), "a list", ["joy"]),
        ("['joy' 'anger']", (), "a list", ["joy", "anger"]),  # an array of numpy
        ("{'joy', 'anger'}", (), "a list", ["joy", "anger"]),
        ("[joy, anger]", (), "a list", ["joy", "anger"]),
        ("[]", (), "a list", []),
        ("(laughs)", (), "", ["(laughs)"]),
        ("joy, anger", ("joy, anger", "fear"), "", ["joy, anger"]),  # a label with a comma
        ("joy, anger|fear", ("joy, anger", "fear"), "'|'", ["joy, anger", "fear"]),
        ("joy|anger, fear", (), "two separators", ["joy", "anger", "fear"]),
    ],
)
def test_how_sets_are_written(cell: str, labels: tuple[str, ...], form: str, parts: list[str]) -> None:
    assert label_parts(cell, labels) == (form, parts)


def test_a_column_with_three_ways_to_write_sets(tmp_path: Path) -> None:
    cells = [["joy|anger"], ["joy, anger"], ["['joy', 'anger']"], ["-"], ["[]"], [""], ["fear"], ["joy ; fear"]]
    write(tmp_path, ["emotions"], cells, {"emotions": {"kind": "multi_label"}})
    both = frozenset({"joy", "anger"})
    assert values(tmp_path, "emotions") == [
        *(both, both, both, frozenset(), frozenset(), None),
        *({"fear"}, {"joy", "fear"}),
    ]
    assert task(tmp_path, "emotions").output_names == ("anger", "fear", "joy")
    found = notes(tmp_path)
    assert "column 'emotions': read as sets of labels: cells with ',' (1), ';' (1), a list (2)" in found


def test_the_usual_way_is_not_noted(tmp_path: Path) -> None:
    write(tmp_path, ["emotions"], [["joy|anger"], ["joy"], ["-"]], {"emotions": {"kind": "multi_label"}})
    assert "read as sets" not in notes(tmp_path)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("joy|anger, joy", "the labels have two separators. Write '|' between all"),
        ("joy,", "a label is missing next to ','"),
        ("joy||anger", "a label is missing next to '|'"),
        ("['joy', 'angr']", "'angr' is not a label of custom/emotions. Did you mean 'anger'?"),
    ],
)
def test_sets_that_cannot_be_read(tmp_path: Path, cell: str, words: str) -> None:
    targets = {"emotions": {"kind": "multi_label", "labels": ["joy", "anger"]}}
    write(tmp_path, ["emotions"], [["joy"], [cell], ["anger"]], targets)
    message = problem(tmp_path)
    assert "utterances.csv, line 3, column 'emotions': " in message
    assert words in message


# A label set in several columns


def test_marks(tmp_path: Path) -> None:
    columns = ["emotions.joy", "emotions.anger", "emotions.fear"]
    rows = [
        [1, 0, 1],
        ["x", "", "X"],
        ["yes", "NO", "no"],
        ["", "", ""],
        [0, 0, 0],
        ["1.0", "0.0", "true"],
        ["x", 0, 0],
    ]
    write(tmp_path, columns, rows, {"emotions": {"kind": "multi_label"}})
    assert values(tmp_path, "emotions") == [
        *({"joy", "fear"}, {"joy", "fear"}, {"joy"}, None, frozenset(), {"joy", "fear"}, {"joy"}),
    ]
    assert task(tmp_path, "emotions").output_names == ("joy", "anger", "fear")
    # Another order in corpus.yaml.
    write(tmp_path, columns, rows, {"emotions": {"kind": "multi_label", "labels": ["fear", "joy", "anger"]}})
    assert task(tmp_path, "emotions").output_names == ("fear", "joy", "anger")
    assert values(tmp_path, "emotions")[2] == {"joy"}
    assert "columns not read" not in notes(tmp_path)


def test_one_column_is_preferred(tmp_path: Path) -> None:
    rows = [["joy", 1], ["anger", 0], ["joy|anger", 1]]
    write(tmp_path, ["emotions", "emotions.x"], rows, {"emotions": {"kind": "multi_label"}})
    assert values(tmp_path, "emotions") == [{"joy"}, {"anger"}, {"joy", "anger"}]
    assert "columns not read: emotions.x" in notes(tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, "", 0], "column 'emotions.anger': the cell is empty, but others of the target are not"),
        ([1, 2, 0], "column 'emotions.anger': found '2'. Write 1 (or x) for the label, 0 without it"),
    ],
)
def test_wrong_marks(tmp_path: Path, row: list[Any], words: str) -> None:
    columns = ["emotions.joy", "emotions.anger", "emotions.fear"]
    write(tmp_path, columns, [[1, 0, 0], row, [0, 0, 1]], {"emotions": {"kind": "multi_label"}})
    message = problem(tmp_path)
    assert f"line 3, {words}" in message


def test_a_column_of_no_label(tmp_path: Path) -> None:
    targets = {"emotions": {"kind": "multi_label", "labels": ["joy", "anger"]}}
    write(tmp_path, ["emotions.joy", "emotions.anger", "emotions.jov"], [[1, 0, 1]] * 3, targets)
    message = problem(tmp_path)
    assert "utterances.csv, line 1, column 'emotions.jov': 'jov' is not a label of the target 'emotions'" in message


# Votes

COLUMNS = [f"emotion.{label}" for label in LABELS]
RULED = {
    "emotion": {"rule": "majority"},
    "plural": {"rule": "plurality", "votes": "emotion"},
    "shares": {"rule": "distribution", "votes": "emotion"},
    "smooth": {"rule": "smoothed", "votes": "emotion"},
    "all": {"rule": "all-inclusive", "votes": "emotion"},
    "two": {"rule": "at_least_two", "votes": "emotion"},
}


def test_every_rule_from_the_same_columns(tmp_path: Path) -> None:
    rows = [[0, 3, 2], [1, 2, 2], [1, 1, 1], ["", "", ""], ["2.0", 0, 0]]
    write(tmp_path, COLUMNS, rows, RULED)
    assert values(tmp_path, "emotion") == ["joy", None, None, None, "neutral"]
    assert values(tmp_path, "plural") == ["joy", None, None, None, "neutral"]
    assert values(tmp_path, "shares")[0] == {"neutral": 0, "joy": 0.6, "anger": 0.4}
    assert values(tmp_path, "smooth")[4] == pytest.approx({"neutral": 0.95, "joy": 0.025, "anger": 0.025})
    assert values(tmp_path, "all") == [{"joy", "anger"}, {"joy", "anger"}, frozenset(), None, {"neutral"}]
    assert values(tmp_path, "two")[0] == {"joy", "anger"}
    first = turns(tmp_path)[0]
    assert {str(target.votes) for target in first.targets.values()} == {"{'neutral': 0, 'joy': 3, 'anger': 2}"}
    # Tasks of the same votes have the same labels, so that one can be scored against another.
    corpus = open_corpus("custom", tmp_path)
    assert all(corpus.protocol(name).task.schema == task(tmp_path, "emotion").schema for name in RULED)
    assert [corpus.protocol(name).task.metric for name in RULED] == [
        *("weighted_f1", "weighted_f1", "kl", "kl", "macro_f1", "micro_f1")
    ]
    report = notes(tmp_path)
    counted = {rule: sum(map(int, re.findall(rf"{rule} (\d+)", report))) for rule in ("majority", "all_inclusive")}
    assert counted == {"majority": 2, "all_inclusive": 4}
    assert "(1 of them the empty set)" in report


def test_labels_of_the_votes_are_shared(tmp_path: Path) -> None:
    targets = {
        "shares": {"rule": "distribution", "votes": "emotion"},
        "emotion": {"rule": "majority", "labels": ["anger", "joy", "neutral"], "neutral": "neutral"},
    }
    write(tmp_path, COLUMNS, [[0, 3, 2], [1, 1, 1], [0, 0, 1]], targets)
    assert (
        task(tmp_path, "shares").output_names == task(tmp_path, "emotion").output_names == ("anger", "joy", "neutral")
    )
    assert values(tmp_path, "shares")[0] == {"anger": 0.4, "joy": 0.6, "neutral": 0}


@pytest.mark.parametrize("rule", ["majority", "distribution", "all_inclusive"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, -1, 2], "column 'emotion.joy': -1 is negative. Give the number of annotators"),
        ([0, 0, 0], "column 'emotion.neutral': all 3 vote counts are 0. Leave the cells empty"),
        ([1, 0.5, 0], "column 'emotion.joy': found 0.5, but a count of votes is a whole number"),
        ([1, "many", 0], "column 'emotion.joy': found 'many', but a number is expected"),
        ([1, "", 0], "column 'emotion.joy': the cell is empty or marked as missing"),
    ],
)
def test_wrong_votes(tmp_path: Path, rule: str, row: list[Any], words: str) -> None:
    write(tmp_path, COLUMNS, [[0, 3, 2], row, [1, 0, 0]], {"emotion": {"rule": rule}})
    assert f"utterances.csv, line 3, {words}" in problem(tmp_path)


@pytest.mark.parametrize("settings", [{"rule": "majority"}, {"kind": "distribution"}])
def test_votes_for_an_unknown_label(tmp_path: Path, settings: dict[str, Any]) -> None:
    targets = {"emotion": {**settings, "labels": ["neutral", "joy"]}}
    write(tmp_path, COLUMNS, [[0, 3, 2], [1, 1, 1], [1, 0, 0]], targets)
    message = problem(tmp_path)
    assert "line 1, column 'emotion.anger': 'anger' is not a label of the target 'emotion'" in message


def test_shares_stay_without_a_rule(tmp_path: Path) -> None:
    write(tmp_path, COLUMNS, [[0.5, 0.25, 0.25], [1, 1, 2], [1, 0, 0]], {"emotion": {"kind": "distribution"}})
    assert values(tmp_path, "emotion")[:2] == [
        {"neutral": 0.5, "joy": 0.25, "anger": 0.25},
        {"neutral": 0.25, "joy": 0.25, "anger": 0.5},
    ]


# Raters


def test_labels_of_raters_are_votes(tmp_path: Path) -> None:
    columns = ["emotion@ada", "emotion@bo", "emotion@cy"]
    rows = [
        ["joy", "Joy", "anger"],
        ["joy|anger", "", "anger"],
        ["", "", ""],
        ["neutral", "joy", "anger"],
        ["joy", "-", ""],
    ]
    write(tmp_path, columns, rows, RULED)
    assert values(tmp_path, "emotion") == ["joy", "anger", None, None, None]
    assert values(tmp_path, "all") == [{"joy"}, {"anger"}, None, frozenset(), {"joy"}]
    assert [turn.targets["emotion"].votes for turn in turns(tmp_path)][1] == {"neutral": 0, "anger": 2, "joy": 1}
    assert task(tmp_path, "emotion").output_names == ("neutral", "anger", "joy")
    assert "read 'Joy' (1) as 'joy'" in notes(tmp_path)
    assert "columns not read" not in notes(tmp_path)


def test_raters_named_by_the_settings(tmp_path: Path) -> None:
    targets = {"emotion": {"rule": "majority", "raters": ["first", "second", "third"]}}
    rows = [["joy", "joy", "anger"], ["NA", "anger", "anger"], ["joy", "anger", ""]]
    write(tmp_path, ["first", "second", "third"], rows, targets)
    assert values(tmp_path, "emotion") == ["joy", "anger", None]
    assert "column 'first': read as missing: 'NA' (1)" in notes(tmp_path)
    targets["emotion"]["raters"] = ["first", "fourth"]
    write(tmp_path, ["first", "second", "third"], rows, targets)
    assert "the target 'emotion' needs the column 'fourth'" in problem(tmp_path)


@pytest.mark.parametrize(
    ("columns", "targets", "words"),
    [
        (["emotion@a", "emotion@b"], {"emotion": {}}, "To combine the raters, add 'rule' below targets.emotion"),
        (["emotion@a", "emotion.joy"], {"emotion": {"rule": "majority"}}, "of labels ('emotion.joy') and of raters"),
        (["emotion@a", "emotion@b"], {"emotion": {"votes": "emotion"}}, "this key goes with 'rule'"),
        (["emotion@a"], {"emotion": {"rule": "majorty"}}, "Did you mean 'majority'"),
        (["emotion@a"], {"emotion": {"rule": "majority", "kind": "distribution"}}, "Remove 'kind'"),
        (["emotion@a"], {"emotion": {"rule": "mean"}}, "low, high"),
        (["x@a"], {"x": {"rule": "mean", "votes": "y", "low": 0, "high": 1}}, "combines ratings, not votes"),
        (["x@a"], {"x": {"rule": "majority", "raters": [1]}}, "Put the word in quotes"),
        (["emotion.joy", "emotion.anger"], {"emotion": {}}, "Columns emotion.LABEL need 'kind: multi_label'"),
    ],
)
def test_wrong_settings(tmp_path: Path, columns: list[str], targets: dict[str, Any], words: str) -> None:
    rows = [["joy"] * len(columns), ["anger"] * len(columns), ["joy"] * len(columns)]
    write(tmp_path, columns, rows, targets)
    message = problem(tmp_path)
    assert words in message
    assert "corpus.yaml" in message


def test_a_label_of_a_rater_that_is_unknown(tmp_path: Path) -> None:
    targets = {"emotion": {"rule": "majority", "labels": ["joy", "anger"]}}
    write(tmp_path, ["emotion@a", "emotion@b"], [["joy", "joy"], ["joy", "angr"], ["joy", "anger"]], targets)
    assert "line 3, column 'emotion@b': 'angr' is not a label" in problem(tmp_path)


RATED = {"low": 1, "high": 5}


def test_ratings_are_combined(tmp_path: Path) -> None:
    columns = ["valence@a", "valence@b", "valence@c"]
    ratings = np.array([[1.0, 2, 5], [2, 3, 1], [4, 4, 3], [5, 4, np.nan], [np.nan] * 3])
    rows = [["" if np.isnan(number) else number for number in row] for row in ratings]
    write(tmp_path, columns, rows, {"valence": {"rule": "mean", **RATED}})
    found = turns(tmp_path)
    assert [turn.targets["valence"] for turn in found] == [
        *map(Target, (pytest.approx(8 / 3), 2.0, pytest.approx(11 / 3), 4.5, None))
    ]
    assert task(tmp_path, "valence").kind == "regression"
    write(tmp_path, columns, rows, {"valence": {"rule": "ewe", **RATED}})
    expected = evaluator_weighted_estimate(ratings)
    assert values(tmp_path, "valence")[:4] == pytest.approx(list(expected[:4]))
    assert "weights of the raters of valence, from all rows: a " in notes(tmp_path)


def test_ratings_of_several_dimensions(tmp_path: Path) -> None:
    columns = ["affect.valence@a", "affect.arousal@a", "affect.valence@b", "affect.arousal@b"]
    targets = {"affect": {"rule": "mean", "dimensions": ["valence", "arousal"], **RATED}}
    write(tmp_path, columns, [[1, 2, 3, 4], [5, 5, "", ""], ["", "", "", ""]], targets)
    assert values(tmp_path, "affect") == [(2.0, 3.0), (5.0, 5.0), None]
    write(tmp_path, columns, [[1, 2, 3, 4], [5, "", 4, ""], [1, 1, 1, 1]], targets)
    assert "line 3, column 'affect.valence@a': no rating of arousal" in problem(tmp_path)
    write(tmp_path, columns[:3], [[1, 2, 3]] * 3, targets)
    assert "needs the column 'affect.arousal@b'" in problem(tmp_path)


def test_ratings_outside_their_range(tmp_path: Path) -> None:
    columns = ["affect.valence@a", "affect.arousal@a"]
    targets = {"affect": {"rule": "mean", "dimensions": ["valence", "arousal"], **RATED}}
    write(tmp_path, columns, [[1, 2], [3, 7], [1, 1]], targets)
    message = problem(tmp_path)
    assert "line 3, column 'affect.arousal@a': the rating 7 is not between 1 and 5" in message


def test_a_rater_without_a_weight(tmp_path: Path) -> None:
    targets = {"valence": {"rule": "ewe", **RATED}}
    write(tmp_path, ["valence@a", "valence@b"], [[1, 3], [2, 3], [5, 3]], targets)
    message = problem(tmp_path)
    assert "utterances.csv, target 'valence': rater 'b': 3 ratings, but the ratings are equal of valence" in message


# Names that differ only in case or Unicode form


def test_label_names_that_look_alike(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "ärger")
    for labels, words in (
        (["ärger", decomposed], "(composed Unicode) and"),
        (["joy", "Joy"], "'joy' and 'Joy' differ only in case"),
        (["joy", "joy"], "'joy' is listed twice"),
    ):
        targets = {"emotion": {"labels": labels}}
        write(tmp_path, ["emotion"], [["joy"]] * 3, targets)
        message = problem(tmp_path)
        assert "corpus.yaml, key 'targets.emotion.labels': " in message
        assert words in message


@pytest.mark.parametrize(
    ("columns", "targets"),
    [
        (["emotion", "Emotion"], None),
        (["emotion", "emotion ", "TEXT"], None),
        (["votes.joy", "votes.Joy", "votes.anger"], {"votes": {"rule": "majority", "labels": ["joy", "anger"]}}),
    ],
)
def test_columns_that_look_alike(tmp_path: Path, columns: list[str], targets: dict[str, Any] | None) -> None:
    write(tmp_path, columns, [["1"] * len(columns), ["2"] * len(columns), ["1"] * len(columns)], targets)
    message = problem(tmp_path)
    assert "line 1" in message
    assert any(words in message for words in ("differ only in case", "occurs 2 times", "is not a label of the target"))


def test_similar_columns_that_are_not_read_are_allowed(tmp_path: Path) -> None:
    write(tmp_path, ["emotion", "remark", "Remark"], [["joy", 1, 2], ["anger", 1, 2], ["joy", 1, 2]], None)
    assert values(tmp_path, "emotion") == ["joy", "anger", "joy"]
