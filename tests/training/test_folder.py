"""Run folders: at every moment new, resumable or complete, and a message that says what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from kills import Recorder, Snapshots, tree
from runs import TINY, command, read, refused, train

from ercfusion._core.errors import RunError
from ercfusion.config.compose import Composer
from ercfusion.config.settings import Config
from ercfusion.train import main
from ercfusion.training import folder as module
from ercfusion.training.folder import (
    DESCRIPTION,
    describe,
    discard_if_empty,
    is_described,
    is_unused,
    new_run_folder,
    open_run_folder,
    read_config,
)

LEFT = ".config.json.ercfusion-0123456789ab.partial"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.records.record.revision", lambda: None)  # it asks git
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setenv(module.FOLDER_VARIABLE, "")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return Composer("train").compose([*TINY, "model=concat", f"run={tmp_path / 'root' / 'run'}"])


def test_at_every_moment_of_its_making_a_folder_is_new_or_can_be_resumed(
    config: dict[str, Any], tmp_path: Path
) -> None:
    root, run = tmp_path / "root", tmp_path / "root" / "run"
    root.mkdir()
    snapshots = Snapshots(root, tmp_path / "states")
    with Recorder(root, snapshots.take).watching():
        new_run_folder(config, ["a=1"])
        discard_if_empty(run)
    assert not run.exists()
    states = [number for number, _ in snapshots.states.values()]
    assert len(states) >= 10
    resumable = 0
    for number in states:
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "states" / str(number), root)
        if run.is_dir() and is_described(run):
            resumable += 1
            open_run_folder(run)
            with pytest.raises(RunError, match=r"not empty.* resume="):
                new_run_folder(config, [])
        else:
            new_run_folder(config, ["a=1"])
        assert read(run / "config.json") == config
        assert read(run / "overrides.json")["overrides"] == ["a=1"]
        assert sorted(tree(run)) == sorted(DESCRIPTION)
    assert resumable >= 1


@pytest.mark.parametrize("missing", DESCRIPTION)
def test_what_a_folder_lacks_is_named(config: dict[str, Any], tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    describe(folder, config, [])
    (folder / missing).unlink()
    with pytest.raises(RunError, match=rf"has no {missing}.*run={folder}"):
        open_run_folder(folder)
    (folder / "metrics.csv").touch()
    assert not is_unused(folder)
    with pytest.raises(RunError, match=rf"has no {missing}.*(Copy the file back|not a run folder)"):
        open_run_folder(folder)
    config["run"] = str(folder)
    with pytest.raises(RunError, match=r"not empty, and nothing is overwritten\. Choose another folder\.$"):
        new_run_folder(config, [])


def test_a_folder_that_older_versions_were_killed_in_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    folder = tmp_path / "run"
    train(folder, "model=majority", "training.max_epochs=1")
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name not in ("config.json", "overrides.json") or path.parent != folder:
            path.rmdir() if path.is_dir() else path.unlink()
    (folder / LEFT).touch()
    message = refused(main, [f"resume={folder}"], capsys)
    assert f"{folder} has no environment.json" in message
    assert f"run={folder}" in message
    status, _, err = command(main, [*TINY, "model=majority", f"run={folder}"], capsys)
    assert status == 0, err
    assert "environment" in read(folder / "record.json")
    assert not (folder / LEFT).exists()


def test_resuming_removes_what_a_kill_has_left_anywhere_in_the_folder(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    describe(folder, config, [])
    (folder / "model" / LEFT).touch()
    read_config(folder)  # to look is not to open
    assert (folder / "model" / LEFT).exists()
    open_run_folder(folder)
    assert not (folder / "model" / LEFT).exists()
    assert (folder / "model").is_dir()


def test_a_folder_with_anything_of_somebody_elses_is_not_new(tmp_path: Path) -> None:
    for name in (LEFT, ".lock", "environment.json", "overrides.json", "train.log"):
        (tmp_path / name).touch()
    assert is_unused(tmp_path)
    (tmp_path / "thesis.tex").touch()
    assert not is_unused(tmp_path)


def test_the_folder_of_a_class_has_no_colon_in_its_name(config: dict[str, Any], tmp_path: Path) -> None:
    changed = {"preset": {**config["preset"], "model": "my_models:Gated"}, "output": str(tmp_path)}
    found = module.free_folder(Config.from_dict({**config, **changed}), "train")
    assert found.parent.name == f"my_models.Gated-{config['data']['name']}"
