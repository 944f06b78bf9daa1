"""``python -m ercfusion.sweep`` from end to end: what it searches, what it leaves, and that it never sees test."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import command, history, read, refused, train
from sweeps import SMALL, config_of, in_process, table, without_times

from ercfusion._core.errors import TrainingError
from ercfusion.config.settings import Config
from ercfusion.data.corpora.demo import DemoCorpus
from ercfusion.features.loading import LoadedData
from ercfusion.models import ARCHITECTURES
from ercfusion.records.record import RECORD
from ercfusion.search import worker
from ercfusion.sweep import main
from ercfusion.train import main as train_main
from ercfusion.training.callbacks import LAST, Selection
from ercfusion.training.origin import seal

__all__ = ["in_process"]  # a fixture


def sweep(folder: Path, *arguments: str) -> dict[str, Any]:
    """A tiny sweep in this process; returns its summary."""
    assert main([*SMALL, *arguments, f"run={folder}"]) == 0
    return read(folder / "summary.json")


def more(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main([f"resume={folder}", *arguments]) == 0
    return read(folder / "summary.json")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(main, ["--help"], capsys)
    assert (status, err) == (0, "")
    for word in (
        "sweep.trials=50",
        "sweep.storage=null",
        "resume=DIR",
        "settings=FILE",
        "cogmen",
        "meld",
        "optimistic",
    ):
        assert word in out
    for name in set(ARCHITECTURES) - {"majority"}:
        assert re.search(rf"^  space=[^()]*\b{name}\b", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 120


def test_cfg_shows_what_would_be_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cfg", "model=concat", "data=meld", "model.dropout=0.3", "model.hidden=8,16", f"output={tmp_path}"]
    status, out, _ = command(main, arguments, capsys)
    assert status == 0
    shown = yaml.safe_load(out)
    assert shown["sweep"]["trials"] == 50
    assert "model.dropout" not in shown["space"]
    assert shown["space"]["model.hidden"] == {"choices": [8, 16]}
    assert shown["training"]["max_epochs"] == 15  # the tuned settings are where it begins
    assert not list(tmp_path.iterdir())


MISTAKES = [
    ("model=majority", "there is nothing to search"),
    ("space=cogmem", "no such choice of space. Did you mean 'cogmen'?"),
    ("optimizer.lrr=interval(0,1)", "Did you mean 'optimizer.lr'?"),
    ("model.dropout=interval(0,2)", "model.dropout must be from 0 to 1, found 2"),
    ("model.hidden=8,abc", "model.hidden takes a whole number"),
    ("optimizer.lr=interval(-1,1)", "the space reaches optimizer.lr=-1.0"),
    ("model=concat,bclstm", "a sweep searches settings, not model. Start one sweep for each"),
    ("sweep.only=[model.dropuot]", "not searched. Did you mean 'model.dropout'?"),
    ("sweep.trials=0", "sweep.trials must be from 1 to 1000000, found 0"),
    ("sweep.pruner=mean", "one of median, hyperband, none; found 'mean'"),
    ("sweep.triels=3", "Did you mean 'sweep.trials'?"),
    ("sweep.metric=mae", "'mae' is not a metric"),
    ("sweep.storage=here", "a database URL"),
    ("sweep.storage=abc://x/y", "abc://x/y"),
    ("trainer=ddp", "Set trainer.devices=1 and trainer.num_nodes=1"),
    ("resume=/nowhere", "cannot be changed now"),
    ("settings=/nowhere.yaml", "/nowhere.yaml is missing"),
]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("argument", "message"), MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_mistakes_are_named_and_leave_nothing(
    argument: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    assert message in refused(main, [*(entry for entry in SMALL if entry != "trainer=cpu"), argument], capsys)
    assert not list(tmp_path.rglob("*.*"))


def test_everything_fixed_leaves_nothing_to_search(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "optimizer.lr=0.1", "sweep.only=[optimizer.lr]"]
    assert "which has a fixed value" in refused(main, arguments, capsys)


@pytest.mark.usefixtures("in_process")
def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    arguments = ["model.dropout=0.35", "model.hidden=8,16", "sweep.trials=3", "sweep.workers=1", "sweep.rerun=2"]
    folder = tmp_path / "sweep"
    status, out, err = command(main, [*SMALL, *arguments, f"run={folder}", "seed=1"], capsys)
    assert status == 0, err
    assert out.splitlines()[-1] == str(folder)
    assert "searching optimizer.lr" in err
    assert "best so far: trial" in err
    rows, summary = table(folder), read(folder / "summary.json")
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    # What was typed is fixed; the first trial has the settings that a run would have.
    assert "model.dropout" not in rows[0]
    assert float(rows[0]["optimizer.lr"]) == 0.001
    assert {row["model.hidden"] for row in rows} <= {"8", "16", "256"}
    for row in rows:
        trial = folder / "trials" / f"{int(row['trial']):04d}"
        config = config_of(trial)
        assert config["model"]["dropout"] == 0.35
        assert config["optimizer"]["lr"] == float(row["optimizer.lr"])
        assert config["seed"] == 1
        assert float(row["dev/weighted_f1"]) == max(float(line["dev/weighted_f1"]) for line in history(trial))
        # Of the others small files remain.
        assert (trial / "model").is_dir() == (int(row["trial"]) == summary["best"]["trial"])
        assert not (trial / "checkpoints").exists()
        assert not (trial / RECORD).exists()
    scores = [float(row["dev/weighted_f1"]) for row in rows if row["state"] == "complete"]
    assert summary["best"]["dev"] == max(scores)
    assert summary["first"]["dev"] == float(rows[0]["dev/weighted_f1"])
    # The winner on seeds that the sweep has not used, as complete runs.
    records = [read(folder / "rerun" / f"seed-{seed}" / RECORD) for seed in (0, 2)]
    assert summary["rerun"]["seeds"] == [0, 2] == [record["seed"] for record in records]
    for split in ("dev", "test"):
        values = [record["metrics"][split]["weighted_f1"] for record in records]
        assert summary["rerun"][split]["values"] == values
        assert summary["rerun"][split]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
        assert summary["rerun"][split]["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), abs=1e-6)
    assert "(optimistic: best of 3) | fresh seeds dev" in out
    assert "with 2 seeds" in out
    assert all(record["config"]["model"]["dropout"] == 0.35 for record in records)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_best_settings_make_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    summary = sweep(folder, "sweep.trials=2", "data.modalities=[text,audio]", "scheduler=constant", "seed=3")
    best = str(folder / "best.yaml")
    assert train_main([f"settings={best}", "training.bootstrap=50", f"run={tmp_path / 'again'}"]) == 0
    record = read(tmp_path / "again" / RECORD)
    assert record["metrics"]["dev"]["weighted_f1"] == round(summary["best"]["dev"], 6)
    assert record["seed"] == 3
    assert record["config"]["scheduler"]["name"] == "constant"
    assert record["config"]["data"]["modalities"] == ["text", "audio"]
    assert history(tmp_path / "again") == history(folder / "trials" / f"{summary['best']['trial']:04d}")
    # What is typed wins.
    status, out, _ = command(train_main, [f"settings={best}", "--cfg", "seed=9", "optimizer.lr=0.5"], capsys)
    assert status == 0
    assert yaml.safe_load(out)["seed"] == 9
    assert yaml.safe_load(out)["optimizer"]["lr"] == 0.5
    # A sweep that begins with them searches them all the same.
    status, out, _ = command(main, [f"settings={best}", "--cfg"], capsys)
    assert status == 0
    shown = yaml.safe_load(out)
    settings = yaml.safe_load((folder / "best.yaml").read_text())
    assert "optimizer.lr" in shown["space"]
    assert shown["optimizer"]["lr"] == settings["optimizer.lr"]


@pytest.mark.usefixtures("in_process")
def test_trials_never_see_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = LoadedData.store

    def watched(self: LoadedData, split: str) -> Any:
        assert split != "test", "a sweep opened the test split"
        opened.append(split)
        return original(self, split)

    monkeypatch.setattr(LoadedData, "store", watched)
    monkeypatch.setattr("ercfusion.search.worker._loaded", {})
    sweep(tmp_path / "sweep", "sweep.trials=2")
    # Loaded once, whatever the number of trials.
    assert opened == ["train", "dev"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_one_worker_repeats_itself_and_resumes_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep.trials=2", "sweep.workers=1", "sweep.sampler=random", "training.max_epochs=3"]
    sweep(tmp_path / "one", *arguments)
    original = Selection.on_train_epoch_end
    left = 5

    def stops(self: Selection, trainer: Any, module: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt  # in the second epoch of the second trial
        original(self, trainer, module)

    monkeypatch.setattr(Selection, "on_train_epoch_end", stops)
    folder = tmp_path / "other"
    status, _, err = command(main, [*SMALL, *arguments, f"run={folder}"], capsys)
    assert status == 130
    assert f"continue with: python -m ercfusion.sweep resume={folder}" in err
    assert [row["state"] for row in table(folder)] == ["complete", "running"]
    assert len(history(folder / "trials/0001")) == 1
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(Selection, "on_train_epoch_end", original)
    more(folder)
    assert without_times(table(folder)) == without_times(table(tmp_path / "one"))
    assert history(folder / "trials/0001") == history(tmp_path / "one/trials/0001")
    assert "resuming" in (folder / "trials/0001/train.log").read_text()
    # And once more adds trials, without beginning anew.
    more(folder, "sweep.trials=3")
    rows = table(folder)
    assert len(rows) == 3
    assert len({row["optimizer.lr"] for row in rows}) == 3
    assert without_times(rows[:2]) == without_times(table(tmp_path / "one"))


@pytest.mark.usefixtures("in_process")
def test_what_cannot_change_when_a_sweep_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    sweep(folder, "sweep.trials=1")
    for argument, message in (
        ("optimizer.lr=0.1", "'optimizer.lr=0.1' cannot be changed now. Change only sweep.trials"),
        ("sweep.sampler=random", "'sweep.sampler=random' cannot be changed now."),
        ("sweep.trials=0", "sweep.trials must be from 1 to"),
        ("sweep.workers=many", "takes a whole number"),
        ("settings=x.yaml", "Remove settings="),
    ):
        assert message in refused(main, [f"resume={folder}", argument], capsys)
    train(tmp_path / "run", "model=majority", "training.max_epochs=1")
    assert "is the folder of a run, not of a sweep" in refused(main, [f"resume={tmp_path / 'run'}"], capsys)
    assert "is not empty, and nothing is overwritten" in refused(main, [*SMALL, f"run={folder}"], capsys)
    assert len(table(folder)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_bad_trials_are_pruned(tmp_path: Path) -> None:
    """Those that are behind the others after the warm-up are stopped; the first trial never is."""
    arguments = ["training.max_epochs=5", "sweep.only=[optimizer.lr]", "optimizer.lr=1e-9,0.003,0.004,0.005"]
    arguments += ["sweep.startup=2", "sweep.warmup=2", "sweep.trials=6", "sweep.sampler=random"]
    summary = sweep(tmp_path / "sweep", *arguments)
    rows = table(tmp_path / "sweep")
    assert rows[0]["state"] == "complete"
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned
    assert summary["trials"]["pruned"] == len(pruned)
    for row in pruned:
        assert row["epochs"] in ("3", "4")  # after the warm-up, and before the end
        assert float(row["dev/weighted_f1"]) < summary["best"]["dev"]


@pytest.mark.usefixtures("in_process")
def test_a_trial_that_diverges_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = worker.fit

    def diverges(config: Config, *arguments: Any) -> str:
        if "0001" in str(config.root.run):
            raise TrainingError("the loss is not finite (task = nan) at epoch 2\nThe last good checkpoint ...")
        if "0002" in str(config.root.run):
            raise RuntimeError("out of memory")
        return original(config, *arguments)

    monkeypatch.setattr(worker, "fit", diverges)
    summary = sweep(tmp_path / "sweep", "sweep.trials=4", "sweep.metric=nll", "sweep.pruner=none")
    rows = table(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["complete", "fail", "fail", "complete"]
    assert rows[1]["reason"] == "the loss is not finite (task = nan) at epoch 2"
    assert rows[2]["reason"] == "RuntimeError: out of memory"
    assert summary["trials"]["failed"] == 2
    # And for this metric lower is better.
    assert summary["best"]["dev"] == min(float(row["dev/nll"]) for row in rows if row["state"] == "complete")
    assert yaml.safe_load((tmp_path / "sweep/best.yaml").read_text())["training.metric"] == "nll"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_sweep_that_only_fails_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> str:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(worker, "fit", fails)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    message = refused(main, [*SMALL, "sweep.trials=20", f"run={tmp_path / 'sweep'}"], capsys)
    assert "the first 3 trials have all failed, the latest with: the loss is not finite" in message
    assert len(table(tmp_path / "sweep")) == 3


def test_a_new_winner_leaves_the_old_ones_runs(tmp_path: Path) -> None:
    from ercfusion.search import results

    (tmp_path / "rerun/seed-1").mkdir(parents=True)
    (tmp_path / "rerun/winner.json").write_text(json.dumps({"trial": 7, "settings": {}}))
    results._move_earlier_winner(tmp_path / "rerun", 7)
    assert (tmp_path / "rerun/seed-1").is_dir()
    results._move_earlier_winner(tmp_path / "rerun", 9)
    assert (tmp_path / "rerun-of-trial-0007/seed-1").is_dir()
    assert not (tmp_path / "rerun").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_sweep_notices_what_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, data, the checkpoint of a trial, and a module that only the folder names: nothing is trained."""
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    (tmp_path / "my_module_of_a_sweep.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder, original, left = tmp_path / "sweep", Selection.on_train_epoch_end, 2

    def stops(self: Selection, trainer: Any, module: Any) -> None:
        nonlocal left
        original(self, trainer, module)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    settings = [
        "sweep.trials=1",
        "sweep.only=[optimizer.lr]",
        "training.max_epochs=3",
        "imports=[my_module_of_a_sweep]",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Selection, "on_train_epoch_end", stops)
        status, _, err = command(main, [*SMALL, *settings, f"run={folder}"], capsys)
    assert status == 130, err
    assert f"resume={folder} 'imports=[my_module_of_a_sweep]'" in err
    sys.modules.pop("my_module_of_a_sweep")
    message = refused(main, [f"resume={folder}"], capsys)
    assert f"python -m ercfusion.sweep resume={folder} 'imports=[my_module_of_a_sweep]'" in message
    assert "which do not import 'json'" in refused(main, [f"resume={folder}", "imports=[json]"], capsys)
    again = [f"resume={folder}", "imports=[my_module_of_a_sweep]"]

    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**config, "training": {**config["training"], "batch_size": 3}}))
    message = refused(main, again, capsys)
    assert "changed since the sweep was begun: training.batch_size: 2 -> 3. Restore that" in message
    (folder / "config.json").write_text(json.dumps(config))

    worker._loaded.clear()
    tables = DemoCorpus.features

    def other_values(self: DemoCorpus, protocol: Any) -> Any:
        found = tables(self, protocol)
        found["text"].values = found["text"].values + 1
        return found

    with monkeypatch.context() as patch:
        patch.setattr(DemoCorpus, "features", other_values)
        assert "changed since the sweep was begun: features text: " in refused(main, again, capsys)
    worker._loaded.clear()

    last = folder / "trials/0000" / LAST
    state = last.read_bytes()
    loaded = torch.load(last, weights_only=True)
    loaded["ercfusion"]["run"] = "0" * 16
    rest = {key: value for key, value in loaded["ercfusion"].items() if key != "sha256"}
    loaded.pop("ercfusion")
    torch.save(seal(loaded, rest), last)
    assert "it is of another run" in refused(main, again, capsys)
    assert [row["state"] for row in table(folder)] == ["running"]  # and has not failed: its settings are not at fault
    last.write_bytes(state)
    assert main(again) == 0
    assert [row["state"] for row in table(folder)] == ["complete"]
    assert "resuming" in (folder / "trials/0000/train.log").read_text()


@pytest.mark.usefixtures("in_process")
def test_a_password_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The address is that of a server that is not there; and of a file, with a password that SQLite does not read."""
    from ercfusion.search import storage

    url = "postgresql://me:hu%2Fsh@127.0.0.1:1/base"
    monkeypatch.setenv("ERCFUSION_SWEEP_STORAGE", url)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    message = refused(main, [*SMALL, f"output={tmp_path}/out"], capsys)
    assert "cannot be opened" in message
    assert "hu%2Fsh" not in message
    assert "hu/sh" not in message
    assert not list(tmp_path.rglob("config.json"))

    database = tmp_path / "elsewhere.db"
    original = storage._database
    monkeypatch.setattr(storage, "_database", lambda url: original(storage.sqlite_url(database)))
    folder = tmp_path / "sweep"
    sweep(folder, "sweep.trials=1", f"sweep.storage='{url}'")
    assert database.is_file()
    assert config_of(folder)["sweep"]["storage"].endswith("://me:***@127.0.0.1:1/base")
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"hu%2Fsh" not in path.read_bytes(), path
            assert b"hu/sh" not in path.read_bytes(), path
    monkeypatch.delenv("ERCFUSION_SWEEP_STORAGE")
    message = refused(main, [f"resume={folder}", "sweep.trials=2"], capsys)
    assert "its password is not stored. Give the whole address again, in the environment variable" in message
    monkeypatch.setenv("ERCFUSION_SWEEP_STORAGE", url)
    more(folder, "sweep.trials=2")
    assert len(table(folder)) == 2


@pytest.mark.usefixtures("in_process")
def test_sweeps_of_one_name_join_if_they_search_for_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    shared = [f"sweep.storage=journal:{tmp_path / 'shared.journal'}", "sweep.name=together"]
    sweep(tmp_path / "one", *shared, "sweep.trials=2", "sweep.rerun=1")
    for arguments, message in (
        (["optimizer.lr=0.1"], "begun with space.optimizer.lr = "),
        (["training.max_epochs=1"], "begun with training.max_epochs = 2, here it is 1"),
        (["data.options.seed=5"], "begun with the corpus's fingerprint = "),
    ):
        assert message in refused(main, [*SMALL, *shared, *arguments, f"run={tmp_path / 'no'}"], capsys)
        assert not (tmp_path / "no").exists()
    summary = sweep(tmp_path / "two", *shared, "sweep.trials=4", "sweep.rerun=1")
    assert summary["trials"]["over"] == 4
    # All trials are in both tables; those of the other machine have their folders there.
    assert [row["trial"] for row in table(tmp_path / "two")] == ["0", "1", "2", "3"]
    assert sorted(path.name for path in (tmp_path / "two/trials").iterdir()) == ["0002", "0003"]
    assert len({row["place"] for row in table(tmp_path / "two")}) == 2
    # The winner is trained again where the sweep was begun, or where it is asked for.
    assert summary["rerun"] is None
    assert more(tmp_path / "two", "sweep.rerun=1")["rerun"] is not None


@pytest.mark.usefixtures("in_process")
def test_a_sweep_that_was_stopped_before_it_had_a_study_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ercfusion.search import run as module

    folder, plans = tmp_path / "sweep", []
    shared = f"sweep.storage=journal:{tmp_path / 'shared.journal'}"
    with monkeypatch.context() as patch:
        patch.setattr(module, "create_or_join", lambda *arguments: True)
        patch.setattr(module, "run_sweep", lambda plan, **options: plans.append(plan) or {})
        patch.setattr("ercfusion.search.results.report", lambda summary: "")
        assert main([*SMALL, "sweep.trials=1", shared, f"run={folder}"]) == 0
    assert len(plans) == 1
    assert more(folder)["trials"]["over"] == 1
