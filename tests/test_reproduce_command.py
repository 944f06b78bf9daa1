"""``python -m ercfusion.reproduce``: does what is missing, survives being killed, writes what the records say."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from runs import command, environment, refused
from sweeps import serially

from ercfusion import reproduce as module
from ercfusion._core.errors import TrainingError
from ercfusion.cli import run_command
from ercfusion.data.corpora.demo import DemoCorpus
from ercfusion.records.archive import read_archive
from ercfusion.tables.preset import known_presets, read_preset
from ercfusion.training import many, run, tables

TINY = """
title: A tiny table
data: demo
settings:
  data.options.train: 6
  data.options.dev: 3
  data.options.test: 6
  training.batch_size: 2
  training.bootstrap: 20
  training.max_epochs: {epochs}
  trainer: cpu
seeds: [0, 1]
rows:
  plain: {{model: concat}}
  deeper, graph:
    model: cogmen
    settings: {{model.layers: 1, training.metric: nll}}
    published: [{{score: 0.5, source: "Nobody (2020)", selection: test, differs: [features]}}]
"""


def write(folder: Path, epochs: int = 2) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(epochs=epochs))
    return path


def computed(folder: Path, epochs: int) -> Path:
    """The folder of a preset whose table was computed without a stop.

    In this process: those that the command would start take most of the time. The slow tests start them.
    """
    preset = write(folder, epochs)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("ercfusion.training.many.run_jobs", serially)
        patch.setenv("ERCFUSION_QUIET", "0")
        patch.chdir(folder)
        status = run_command(module.main, [str(preset), f"runs={folder / 'runs'}", "workers=2"])
    assert status == 0, err.getvalue()
    assert out.getvalue().splitlines()[0] == str(folder / "tiny" / "README.md")
    assert "4 of 4 runs have no record yet" in err.getvalue()
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Of two epochs."""
    return computed(tmp_path_factory.mktemp("made"), epochs=2)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_table_is_computed(made):
    assert {path.name for path in (made / "tiny").iterdir()} == {*module.FILES, "records"}
    records = read_archive(made / "tiny" / "records" / "deeper-graph.json")
    assert [record["seed"] for record in records] == [0, 1]
    for record in records:
        assert record["config"]["model"]["layers"] == 1
        optimism = record["optimism"]
        assert optimism["metric"] == "weighted_f1"
        assert optimism["test_selected"] >= optimism["dev_selected"] == record["metrics"]["test"]["weighted_f1"]
        assert record["cost"]["threads"] == 1
        assert "environment" in record
    text = (made / "tiny" / "README.md").read_text()
    assert "## Optimism" in text
    assert "| deeper, graph |" in text
    run = made / "runs" / "deeper-graph" / "seed-0"
    assert (run / "record.json").is_file()
    assert not list(run.glob("checkpoints/epoch-*")), "the models of all epochs fill the disk"
    assert (run / "model" / "model.safetensors").is_file()


@pytest.mark.usefixtures("made")
def test_what_the_shared_folder_was_made_with_is_not_logged_to():
    """A command of this test must log to its own streams."""
    assert logging.getLogger("ercfusion").handlers == []


def test_no_path_and_no_text_in_what_is_kept(made):
    for path in (made / "tiny").rglob("*"):
        if path.is_file():
            assert str(made) not in path.read_text(), path


def test_nothing_is_done_twice(made, capsys):
    preset = made / "tiny.yaml"
    before = {path: path.stat().st_mtime_ns for path in (made / "tiny" / "records").iterdir()}
    status, out, err = command(module.main, [str(preset), f"runs={made / 'runs'}"], capsys)
    assert status == 0
    assert "no record yet" not in err
    assert before == {path: path.stat().st_mtime_ns for path in (made / "tiny" / "records").iterdir()}
    status, out, _ = command(module.main, [str(preset), "--check"], capsys)
    assert (status, out) == (0, "A tiny table: 4 records, all files up to date\n")


def test_check_tells_what_has_drifted(copy, capsys):
    preset, folder = copy / "tiny.yaml", copy / "tiny"
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("weighted", "heavy", 1))
    (folder / "page.html").unlink()
    status, out, _ = command(module.main, [str(preset), "--check"], capsys)
    assert status == 1
    assert f"{folder / 'README.md'} does not match the records" in out
    assert f"{folder / 'page.html'} is missing" in out
    assert "table.csv" not in out
    assert command(module.main, [str(preset), "--tables"], capsys)[0] == 0
    assert (folder / "README.md").read_text() == text
    content = json.loads((folder / "records" / "plain.json").read_text())
    content["runs"].pop()
    (folder / "records" / "plain.json").write_text(json.dumps(content))
    status, out, _ = command(module.main, [str(preset), "--check"], capsys)
    assert status == 1
    assert "plain: no record for seed 1" in out


def test_records_of_other_settings_are_not_mixed_in(copy, capsys):
    preset = copy / "tiny.yaml"
    preset.write_text(preset.read_text().replace("model.layers: 1", "model.layers: 2"))
    message = refused(module.main, [str(preset)], capsys)
    assert "model.layers was 1 and is 2" in message
    assert "--renew" in message
    assert command(module.main, [str(preset), "--check"], capsys)[0] == 1
    assert len(read_archive(copy / "tiny" / "records" / "deeper-graph.json")) == 2, "nothing is thrown away unasked"


@pytest.mark.slow
def test_renewing_keeps_the_old_run_folder(copy, capsys):
    preset = copy / "tiny.yaml"
    preset.write_text(preset.read_text().replace("model.layers: 1", "model.layers: 0").replace("[0, 1]", "[0]"))
    status, _, err = command(module.main, [str(preset), f"runs={copy / 'runs'}", "--renew", "workers=1"], capsys)
    assert status == 0, err
    (record,) = [entry for entry in read_archive(copy / "tiny" / "records" / "deeper-graph.json") if entry["seed"] == 0]
    assert record["config"]["model"]["layers"] == 0
    kept = list((copy / "runs" / "deeper-graph").glob("seed-0-until-*"))
    assert len(kept) == 1
    assert json.loads((kept[0] / "config.json").read_text())["model"]["layers"] == 1


@pytest.mark.slow
def test_a_fresh_table_beside_the_recorded_one_is_the_same(made, tmp_path, capsys):
    preset = made / "tiny.yaml"
    arguments = [str(preset), "--fresh", f"out={tmp_path / 'mine'}", f"runs={tmp_path / 'runs'}", "rows=plain"]
    status, _, err = command(module.main, arguments, capsys)
    assert status == 0, err
    again, first = (read_archive(folder / "records" / "plain.json") for folder in (tmp_path / "mine", made / "tiny"))
    for one, other in zip(again, first, strict=True):
        assert one["metrics"] == other["metrics"]
        assert one["splits"] == other["splits"]
        assert one["optimism"] == other["optimism"]
    assert "Not run yet: deeper, graph." in (tmp_path / "mine" / "README.md").read_text()
    message = refused(module.main, [str(preset), "--fresh"], capsys)
    assert "Give a folder with out=DIR" in message


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True], ids=["only ours", "a note of the user"])
def test_a_run_folder_that_was_never_finished_being_made(made, tmp_path, capsys, foreign):
    """It is used, unless it holds something that is not ours: then it is kept under another name."""
    begun = tmp_path / "runs" / "plain" / "seed-0"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    if foreign:
        (begun / "notes.txt").write_text("mine")
    preset = write(tmp_path)
    preset.write_text(preset.read_text().replace("[0, 1]", "[0]"))
    arguments = [str(preset), f"runs={tmp_path / 'runs'}", "rows=plain", "workers=1"]
    status, _, err = command(module.main, arguments, capsys)
    assert status == 0, err
    (record,) = read_archive(tmp_path / "tiny" / "records" / "plain.json")
    assert record["metrics"] == read_archive(made / "tiny" / "records" / "plain.json")[0]["metrics"]
    assert [path.read_text() for path in begun.parent.glob("seed-0-until-*/notes.txt")] == ["mine"] * foreign


@pytest.mark.slow
def test_a_run_whose_data_have_changed_is_not_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(many, "run_jobs", serially)
    preset = write(tmp_path, epochs=1)
    preset.write_text(preset.read_text().replace("[0, 1]", "[0]"))
    arguments = [str(preset), f"runs={tmp_path / 'runs'}", "rows=plain"]

    def stops(*_):
        raise TrainingError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", stops)
        assert "stopped" in refused(module.main, arguments, capsys)
    tables = DemoCorpus.features

    def other_values(self, protocol):
        found = tables(self, protocol)
        found["audio"].values = found["audio"].values + 1
        return found

    with monkeypatch.context() as patch:
        patch.setattr(DemoCorpus, "features", other_values)
        message = refused(module.main, arguments, capsys)
    assert "plain, seed 0: " in message
    assert "last.ckpt: changed since it was made: features audio: " in message
    assert "Restore that, or begin a new run." in message
    assert not list(tmp_path.rglob("plain.json"))
    status, _, err = command(module.main, arguments, capsys)
    assert status == 0, err
    assert "resuming" in (tmp_path / "runs/plain/seed-0/train.log").read_text()
    # Other settings: the run is kept under another name, and another one is begun.
    (tmp_path / "tiny/records/plain.json").unlink()
    (tmp_path / "runs/plain/seed-0/record.json").unlink()
    config = json.loads((tmp_path / "runs/plain/seed-0/config.json").read_text())
    (tmp_path / "runs/plain/seed-0/config.json").write_text(json.dumps({**config, "seed": 7}))
    status, _, err = command(module.main, arguments, capsys)
    assert status == 0, err
    assert len(list((tmp_path / "runs/plain").glob("seed-0-until-*"))) == 1


@pytest.mark.slow
def test_one_failing_row_does_not_stop_the_others(tmp_path, capsys):
    preset = write(tmp_path, epochs=1)
    text = preset.read_text().replace(
        "{model.layers: 1, training.metric: nll}", "{model.projection: 126, model.context_heads: 4}"
    )
    preset.write_text(text.replace("[0, 1]", "[0]"))
    status, _, err = command(module.main, [str(preset), f"runs={tmp_path / 'runs'}", "workers=1"], capsys)
    assert status == 2
    assert "error: deeper, graph, seed 0:" in err
    assert "Traceback" not in err or "unexpected" in err
    assert (tmp_path / "tiny" / "records" / "plain.json").is_file()
    assert "Not run yet: deeper, graph." in (tmp_path / "tiny" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiments/demo.yaml"], "Use demo, the name of the recorded table"),
        (["melt"], "Did you mean 'meld'"),
        (["demo", "meld"], "reproduce takes TABLE, found 2"),
        (["demo", "worker=2"], "Did you mean 'workers'"),
        (["demo", "model.layers=2"], "Edit the table file to change the runs."),
        (["demo", "workers=none"], "a whole number of at least 1"),
        (["demo", "fresh=maybe"], "Write --fresh"),
        (["demo", "rows=nothing", "--fresh", "out=x"], "demo: no row 'nothing'"),
        (["demo", "--tabels"], "Did you mean '--tables'"),
        (["demo", "--fresh", "out=nowhere", "--tables"], "Remove --tables"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(module.main, arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_two_cannot_work_on_one_table(made, tmp_path, capsys):
    from ercfusion._core.files import one_at_a_time

    preset = write(tmp_path)
    with one_at_a_time(tmp_path / "runs", "it"):
        message = refused(module.main, [str(preset), f"runs={tmp_path / 'runs'}"], capsys)
    assert "another process is working on this table" in message


def test_a_copy_has_the_records_and_overwrites_nothing(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = command(module.main, [str(copy / "tiny.yaml"), "copy=mine"], capsys)
    assert status == 0
    assert out.splitlines()[:2] == ["mine.yaml", "mine/records"]
    assert out.endswith("python -m ercfusion.reproduce mine.yaml\n")
    for name in (".yaml", "/records/plain.json", "/records/deeper-graph.json"):
        assert Path(f"mine{name}").read_bytes() == (copy / f"tiny{name}").read_bytes()
    assert "no record yet" not in command(module.main, ["mine.yaml"], capsys)[2]
    assert Path("mine/table.csv").read_bytes() == (copy / "tiny/table.csv").read_bytes()
    for name in ("mine", "mine.yaml"):
        assert "exists. Choose another name" in refused(module.main, ["demo", f"copy={name}"], capsys)
    Path("mine.yaml").unlink()
    assert "mine exists" in refused(module.main, ["demo", "copy=mine"], capsys)
    assert "Omit workers=, --fresh" in refused(module.main, ["demo", "copy=b", "workers=1", "--fresh"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]


def test_a_copy_that_cannot_be_finished_leaves_nothing(copy, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "atomic_write", full)
    with pytest.raises(OSError, match="No space"):
        tables.copy_table(read_preset(copy / "tiny.yaml"), str(tmp_path / "mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_help(capsys):
    status, out, _ = command(module.main, ["--help"], capsys)
    assert status == 0
    assert ", ".join(known_presets()) in " ".join(out.split())


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Of so many epochs that a run can be stopped in its middle."""
    return computed(tmp_path_factory.mktemp("straight"), epochs=20)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_table_goes_on(straight, tmp_path, ending):
    """The whole process group is stopped in the middle of a run; the next call ends with the undisturbed result."""
    preset = write(tmp_path, epochs=20)
    arguments = [sys.executable, "-m", "ercfusion.reproduce", str(preset), f"runs={tmp_path / 'runs'}", "workers=2"]
    options = {"env": environment(), "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, start_new_session=True, **options)
    deadline = time.monotonic() + 120
    while not any(epochs_of(folder) >= 3 for folder in (tmp_path / "runs").glob("*/seed-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, ending)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if ending is signal.SIGINT:
        assert process.returncode == 130
        assert "Repeat the command to continue" in err
    unfinished = [folder for folder in (tmp_path / "runs").glob("*/seed-*") if not (folder / "record.json").is_file()]
    assert unfinished, "nothing was left to do: the test says nothing"
    again = subprocess.run(arguments, timeout=300, **options)
    assert again.returncode == 0, again.stderr
    for name in ("plain.json", "deeper-graph.json"):
        stopped, other = (read_archive(folder / "tiny" / "records" / name) for folder in (tmp_path, straight))
        assert [record["metrics"] for record in stopped] == [record["metrics"] for record in other]
        assert [record["optimism"] for record in stopped] == [record["optimism"] for record in other]


def epochs_of(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0
