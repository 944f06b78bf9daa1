"""Runs that learn several tasks: from the command line to records, predictions, tables and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assert_same_run, history, keep_states, resume, stub_text_encoder, train

import ercfusion
from ercfusion import compare, evaluate
from ercfusion._core.errors import ConfigError, RunError
from ercfusion.batch.task import TaskSpec
from ercfusion.data import open_corpus
from ercfusion.data.bound import bound_protocol
from ercfusion.metrics.registry import scores
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.predictions import prediction_file, read_predictions
from ercfusion.records.record import read_record, task_record, tasks_of
from ercfusion.tables.preset import Row, TablePreset, read_preset
from ercfusion.tables.table import compute_table
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing.twins.text import write_meld
from ercfusion.train import main

RUNS = {
    "plain": (),
    "emotion": ("data.tasks=[emotion]",),
    "both": ("data.tasks=[emotion,valence]",),
    "valence": ("data.tasks=[valence]",),
    "unimportant": ("data.tasks=[emotion,valence]", "objective.weights.valence=0"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    for name, typed in RUNS.items():
        pictures = "true" if name == "both" else "false"
        train(folder / name, "model=concat", "training.max_epochs=2", f"training.pictures={pictures}", *typed)
    return {name: folder / name for name in RUNS}


@pytest.mark.slow
def test_one_selected_task_is_the_run_without_a_selection(runs: dict[str, Path]) -> None:
    assert history(runs["plain"]) == history(runs["emotion"])
    plain, emotion = read_record(runs["plain"]), read_record(runs["emotion"])
    keys = ("protocol", "task", "metrics", "intervals", "majority", "splits", "selection")
    assert all(plain[key] == emotion[key] for key in keys)
    assert "others" not in emotion
    weights = [(runs[name] / "model" / "model.safetensors").read_bytes() for name in ("plain", "emotion")]
    assert weights[0] == weights[1]


def test_a_run_has_scores_of_every_task(runs: dict[str, Path]) -> None:
    record = read_record(runs["both"])
    assert tasks_of(record) == ["emotion", "valence"]
    assert record["protocol"] == "demo/balanced"
    own = record["others"]["valence"]
    assert own["protocol"] == "demo/balanced-valence"
    assert own["selection"]["epoch"] == record["selection"]["epoch"]
    for name in tasks_of(record):
        view = task_record(record, name)
        parts = read_predictions(runs["both"] / prediction_file(record, name), TaskSpec.from_dict(view["task"]))
        for split, part in parts.items():
            found = scores(part)["weighted_f1"]
            assert view["metrics"][split]["weighted_f1"] == pytest.approx(found, abs=1e-6)
    assert not parts["test"].valid.all()  # every fifth turn has no valence
    assert set(record["files"]) == {"predictions.parquet", "predictions-valence.parquet"}
    drawn = {path.name for path in (runs["both"] / "plots" / "valence").iterdir()}
    assert {"training.png", "dev-confusion.png", "test-class-f1.png"} <= drawn
    assert "The same model for valence" in (runs["both"] / "model" / "README.md").read_text()
    rows = history(runs["both"])
    assert float(rows[0]["dev/valence:weighted_f1"]) > 0
    assert float(rows[0]["train/valence"]) > 0


def test_the_first_task_chooses_the_checkpoint(runs: dict[str, Path]) -> None:
    record, rows = read_record(runs["both"]), history(runs["both"])
    best = max(rows, key=lambda row: float(row["dev/weighted_f1"]))
    assert record["selection"]["epoch"] == int(float(best["epoch"]))


def test_a_task_without_weight_changes_nothing_that_the_first_one_learns(runs: dict[str, Path]) -> None:
    models = [Recognizer.from_pretrained(runs[name] / "model") for name in ("plain", "unimportant")]
    one, other = (model.head.linear.weight for model in models)
    np.testing.assert_allclose(one.detach(), other.detach(), atol=1e-4)
    assert {row["dev/weighted_f1"] for row in history(runs["plain"])} == {
        row["dev/weighted_f1"] for row in history(runs["unimportant"])
    }


def test_evaluate_scores_every_task(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(runs["both"])]) == 0
    out = capsys.readouterr().out
    assert out.count("equal to the run's record") == 2
    report = json.loads((runs["both"] / "evaluation" / "test-valence.json").read_text())
    assert report["protocol"] == "demo/balanced-valence"


def test_a_task_is_compared_with_a_run_of_its_own(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    both, valence = str(runs["both"]), str(runs["valence"])
    assert compare.main([both, valence, "task=valence"]) == 0
    assert "demo/balanced-valence" in capsys.readouterr().out
    with pytest.raises(RunError, match="has no task 'emotion'"):
        compare.main([both, valence, "task=emotion"])
    records = {name: [read_record(runs[name])] for name in ("both", "valence")}
    rows = tuple(Row(name, "concat", RUNS[name], (0,)) for name in records)
    preset = TablePreset(Path("table.yaml"), "Title", "demo", (), rows, task="valence")
    table = compute_table(preset, records)
    assert table.task.name == "valence"
    assert [line.row.name for line in table.lines] == ["both", "valence"]
    assert len(table.comparisons) == 1


def test_a_run_in_python_shows_every_task(runs: dict[str, Path]) -> None:
    run = ercfusion.load(runs["both"])
    valence = run.task("valence")
    assert (
        valence.scores.loc["weighted_f1", "test"] == run.record["others"]["valence"]["metrics"]["test"]["weighted_f1"]
    )
    assert set(valence.predictions()["prediction"]) <= {"neutral", "positive", "negative"}
    assert len(valence.predictions()) == len(run.predictions())
    assert list(run.task("emotion").predictions()["truth"]) == list(run.predictions()["truth"])
    assert valence.figures.training() is not None
    assert valence.figures.confusion() is not None
    with pytest.raises(RunError, match="has no task 'anger'"):
        run.task("anger")


def test_archives_keep_every_task(runs: dict[str, Path], tmp_path: Path) -> None:
    record = read_record(runs["both"])
    again = read_archive(write_archive(tmp_path / "archive.json", [record]))[0]
    for name in tasks_of(record):
        kept, read = (task_record(entry, name) for entry in (record, again))
        for key in ("confusion", "shift", "per_class"):
            assert kept["splits"]["test"][key] == read["splits"]["test"][key], (name, key)


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_with_two_tasks_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ("model=concat", "training.max_epochs=2", "data.tasks=[emotion,valence]", "objective.weights.unimodal=0.5")
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path / "states")
        train(tmp_path / "run", *typed)
    record = resume(tmp_path / "states" / "1")
    assert_same_run(tmp_path / "states" / "1", tmp_path / "run")
    assert record["others"] == read_record(tmp_path / "run")["others"]


def test_a_preset_of_a_table_names_the_task(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(
        "title: Two tasks\ndata: demo\ntask: valence\nsettings: {data.tasks: [emotion, valence]}\n"
        "rows:\n  together: {model: concat}\n"
    )
    preset = read_preset(path)
    assert preset.task == "valence"
    assert preset.config(preset.rows[0], 0)["data"]["tasks"] == ["emotion", "valence"]


def test_meld_has_emotion_and_sentiment_for_the_same_utterances(tmp_path: Path) -> None:
    corpus = open_corpus("meld", write_meld(tmp_path / "meld"))
    own = corpus.protocol("7way")
    both = corpus.with_tasks(own, ["emotion", "sentiment"])
    assert (both.id, [task.name for task in both.tasks]) == ("meld/7way", ["emotion", "sentiment"])
    assert corpus.with_tasks(own, ["sentiment", "emotion"]).id == "meld/3way"
    assert corpus.with_tasks(own, None).tasks == (own.task,)
    splits = corpus.conversations(own)
    assert bound_protocol(corpus, corpus.with_tasks(own, ["sentiment"]), splits).id == "meld/3way-other"
    turns = [turn for part in splits.values() for one in part for turn in one.turns]
    assert all({"emotion", "sentiment"} <= turn.targets.keys() for turn in turns)


@pytest.mark.usefixtures("no_pictures")
def test_emotion_and_sentiment_of_meld_are_learnt_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = write_meld(tmp_path / "meld")
    typed = ["model=concat", "data=meld", f"data.raw={raw}", "data.tasks=[emotion,sentiment]", "training.max_epochs=1"]
    assert main([*typed, "training.bootstrap=20", "trainer=cpu", f"run={tmp_path / 'run'}"]) == 0
    record = read_record(tmp_path / "run")
    assert record["protocol"] == "meld/7way-other"  # the twin is not the release
    assert record["others"]["sentiment"]["protocol"] == "meld/3way-other"
    assert set(record["others"]["sentiment"]["splits"]["test"]["per_class"]) == {"neutral", "positive", "negative"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["emotion", "sentimnet"], "demo/balanced has no task 'sentimnet'"),
        (["valence", "valence"], "Name each task once, out of emotion, valence"),
        ([], "Name each task once"),
    ],
)
def test_wrong_selections_are_refused(names: list[Any], words: str) -> None:
    corpus = open_corpus("demo")
    with pytest.raises(ConfigError, match=words):
        corpus.with_tasks(corpus.protocol(), names)
