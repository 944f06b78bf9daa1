"""Views (``data.views``): outputs scored against further targets, from the command line to records and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import history, read, refused, stub_text_encoder
from voted import LABELS, write_voted

import ercfusion
from ercfusion import compare, evaluate
from ercfusion._core.errors import RunError
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.registry import scores
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import checked_record, read_record, task_record, tasks_of
from ercfusion.tables.preset import Row, TablePreset
from ercfusion.tables.table import compute_table
from ercfusion.train import main

TYPED = ("model=concat", "data=custom", "training.max_epochs=3", "training.batch_size=2", "training.bootstrap=50")
FIXED = ("training.threads=1", "training.pictures=false", "trainer=cpu")
RUNS = {
    "plain": ("data.protocol=emotion",),
    "viewed": ("data.protocol=emotion", "data.views=[shares,sets,strong]"),
    "shares": ("data.protocol=shares", "data.views=[emotion,sets]"),
    "uniform": ("data.protocol=shares", "data.views=[sets]", "training.thresholds=uniform"),
    "sets": ("data.protocol=sets", "data.views=[emotion,shares,strong]"),
}


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("views")
        stub_text_encoder(patch, folder / "packs")
        yield folder


@pytest.fixture(scope="module")
def runs(patched: Path) -> dict[str, Path]:
    raw = write_voted(patched / "raw")
    for name, typed in RUNS.items():
        assert main([*TYPED, *FIXED, *typed, f"data.raw={raw}", f"run={patched / name}"]) == 0
    return {name: patched / name for name in RUNS}


def test_views_change_nothing_that_is_learned_or_scored(runs: dict[str, Path]) -> None:
    assert history(runs["plain"]) == history(runs["viewed"])
    weights = [(runs[name] / "model" / "model.safetensors").read_bytes() for name in ("plain", "viewed")]
    assert weights[0] == weights[1]
    plain, viewed = read_record(runs["plain"]), read_record(runs["viewed"])
    assert "views" not in plain
    keys = ("protocol", "task", "metrics", "intervals", "majority", "splits", "selection")
    assert all(plain[key] == viewed[key] for key in keys)
    assert plain["files"]["predictions.parquet"] == viewed["files"]["predictions.parquet"]


@pytest.mark.parametrize("name", ["viewed", "shares", "sets"])
def test_a_view_is_scored_like_a_task_of_its_own(runs: dict[str, Path], name: str) -> None:
    record = read_record(runs[name])
    own = read_predictions(runs[name] / "predictions.parquet", TaskSpec.from_dict(record["task"]))
    assert tasks_of(record)[1:] == list(record["views"])
    for view, part in record["views"].items():
        assert part["source"] == record["task"]["name"]
        assert part["protocol"] == f"custom/{view}"
        assert part["selection"]["epoch"] == record["selection"]["epoch"]
        task = TaskSpec.from_dict(part["task"])
        for split, stored in read_predictions(runs[name] / f"predictions-{view}.parquet", task).items():
            np.testing.assert_array_equal(stored.output, task.rules.view(own[split].output, own[split].task.rules))
            expected = {key: pytest.approx(value, abs=1e-6) for key, value in scores(stored).items()}
            assert part["metrics"][split] == expected
            assert (stored.thresholds is None) == (task.kind != "multi_label")
            if stored.thresholds is not None:
                assert part["thresholds"] == stored.thresholds.tolist()
        assert set(part["splits"]["test"]["per_class"]) == set(LABELS)
        assert part["majority"]["test"]
        assert part["intervals"]["test"]
    # Targets are those of the corpus: a turn without a majority has no single label, but shares and sets.
    counted = {view: task_record(record, view)["splits"]["test"]["utterances"] for view in tasks_of(record)}
    assert counted["emotion"] < counted["sets"] == 24


def test_thresholds_of_a_view_are_chosen_on_dev_for_its_own_targets(runs: dict[str, Path]) -> None:
    record = read_record(runs["sets"])
    task = TaskSpec.from_dict(record["views"]["strong"]["task"])
    dev = read_predictions(runs["sets"] / "predictions-strong.parquet", task)["dev"]
    np.testing.assert_array_equal(record["views"]["strong"]["thresholds"], task.rules.best_thresholds(dev))
    own = read_predictions(runs["sets"] / "predictions.parquet", TaskSpec.from_dict(record["task"]))["dev"]
    assert own.thresholds is not None
    assert own.thresholds.tolist() != record["views"]["strong"]["thresholds"]


def test_thresholds_of_a_view_by_name(runs: dict[str, Path]) -> None:
    view = read_record(runs["uniform"])["views"]["sets"]
    assert view["thresholds"] == pytest.approx([1 / len(LABELS) + 1e-6] * len(LABELS))
    assert view["thresholds"] != read_record(runs["shares"])["views"]["sets"]["thresholds"]


def test_evaluate_scores_views_with_the_recorded_thresholds(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(runs["viewed"])]) == 0
    assert capsys.readouterr().out.count("equal to the run's record") == 4
    report = json.loads((runs["viewed"] / "evaluation" / "test-sets.json").read_text())
    assert report["protocol"] == "custom/sets"
    assert evaluate.main([str(runs["viewed"]), "split=train"]) == 0


def test_summary_and_card_show_views(runs: dict[str, Path]) -> None:
    assert "sets (custom/sets, outputs for emotion):" in ercfusion.load(runs["viewed"]).summary()
    assert "outputs for emotion" in (runs["viewed"] / "model" / "README.md").read_text()


def test_a_view_is_compared_with_a_run_that_learned_it(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(runs["viewed"]), str(runs["sets"]), "task=sets"]) == 0
    out = capsys.readouterr().out
    assert "custom/sets" in out
    assert "jaccard" in out
    with pytest.raises(RunError, match="has no task 'strong'"):
        compare.main([str(runs["shares"]), str(runs["sets"]), "task=strong"])


def test_a_table_shows_a_view(runs: dict[str, Path]) -> None:
    names = ("viewed", "shares", "sets")
    rows = tuple(Row(name, "concat", RUNS[name], (0,)) for name in names)
    preset = TablePreset(Path("table.yaml"), "Title", "custom", (), rows, task="sets")
    table = compute_table(preset, {name: [read_record(runs[name])] for name in names})
    assert table.metric == "weighted_f1"
    for line in table.lines:
        expected = task_record(read_record(runs[line.row.name]), "sets")["metrics"]["test"]["weighted_f1"]
        assert line.test["weighted_f1"].mean == expected
    assert len(table.comparisons) == 3


def test_a_run_in_python_shows_views(runs: dict[str, Path]) -> None:
    run = ercfusion.load(runs["viewed"])
    sets = run.task("sets")
    assert sets.scores.loc["jaccard", "test"] == run.record["views"]["sets"]["metrics"]["test"]["jaccard"]
    assert len(sets.predictions()) == len(run.predictions())
    assert sets.figures.class_f1() is not None
    axes, own = (one.figures.training().axes[0] for one in (sets, run))
    assert [line.get_label() for line in axes.lines] == [line.get_label() for line in own.lines]
    with pytest.raises(RunError, match="has no task 'anger'"):
        run.task("anger")


def test_archives_keep_views(runs: dict[str, Path], tmp_path: Path) -> None:
    record = read_record(runs["shares"])
    again = read_archive(write_archive(tmp_path / "archive.json", [record]))[0]
    for name in tasks_of(record):
        kept, other = (task_record(one, name) for one in (record, again))
        for key in {"confusion", "counts", "divergence"} & kept["splits"]["test"].keys():
            assert kept["splits"]["test"][key] == other["splits"]["test"][key], (name, key)
    assert again["views"]["sets"]["thresholds"] == record["views"]["sets"]["thresholds"]


def test_a_damaged_view_is_named(runs: dict[str, Path]) -> None:
    record = read(runs["viewed"] / "record.json")
    record["views"]["sets"]["thresholds"] = [0.5]
    with pytest.raises(RunError, match=r"views\.sets.*thresholds has 1 values for 3 outputs"):
        checked_record(record, runs["viewed"] / "record.json")
    del record["views"]["sets"]
    record["views"]["shares"].pop("source")
    with pytest.raises(RunError, match=r"views\.shares\.source"):
        checked_record(record, runs["viewed"] / "record.json")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["data.protocol=emotion", "data.views=[sest]"], "custom/emotion has no task 'sest'. Did you mean 'sets'"),
        (["data.protocol=emotion", "data.views=[emotion]"], "'emotion' is learned, so it is scored already"),
        (["data.protocol=emotion", "data.views=[sets,sets]"], "'sets' is listed twice"),
        (["data.protocol=emotion", "data.views=[mood]"], "'mood' has the labels good, bad, and no learned task"),
        (["data.protocol=emotion", "data.views=[force]"], "'force' is a regression task"),
        (["data.protocol=force", "data.views=[sets]"], r"the run learns force (regression)"),
        (["data.tasks=[emotion,sets]", "data.views=[sets]"], "'sets' is learned"),
    ],
)
def test_wrong_views_are_refused_before_training(
    patched: Path, tmp_path: Path, capsys: Any, typed: list[str], words: str
) -> None:
    raw = patched / "raw"
    if not raw.exists():
        write_voted(raw)
    folder = tmp_path / "run"
    assert words in refused(main, [*TYPED, *FIXED, *typed, f"data.raw={raw}", f"run={folder}"], capsys)
    assert not folder.exists()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_view_without_labels_in_a_split_has_no_scores_of_it(tmp_path: Path, split: str) -> None:
    raw = write_voted(tmp_path / "raw", without={(split, "sets"), (split, "shares")})
    typed = [*TYPED, *FIXED, "data.protocol=emotion", "data.views=[sets,shares]", f"data.raw={raw}"]
    assert main([*typed, f"run={tmp_path / 'run'}"]) == 0
    record = read_record(tmp_path / "run")
    for name, part in record["views"].items():
        assert part["unlabelled"] == [split]
        assert {one for one, values in part["metrics"].items() if values} == {"dev", "test"} - {split}
        assert ("thresholds" in part) == (name == "sets" and split != "dev")
        assert bool(part["majority"]["dev"]) == (split == "test")
        assert bool(part["intervals"]["test"]) == (split != "test")
    assert f"without labels for sets, so without these scores: {split}" in ercfusion.load(tmp_path / "run").summary()
    assert evaluate.main([str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(("split", "words"), [("train", "nothing could be learned"), ("dev", "no epoch could be")])
def test_a_learned_task_without_labels_is_refused(tmp_path: Path, capsys: Any, split: str, words: str) -> None:
    raw = write_voted(tmp_path / "raw", without={(split, "shares")})
    typed = [*TYPED, *FIXED, "data.tasks=[shares,emotion]", "data.views=[sets]", f"data.raw={raw}"]
    message = refused(main, [*typed, f"run={tmp_path / 'run'}"], capsys)
    assert words in message
    assert "'shares'" in message
