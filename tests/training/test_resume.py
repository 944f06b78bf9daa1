"""A run that was stopped and resumed is the uninterrupted run, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import TINY, assert_same_run, command, environment, history, keep_states, python, read, refused, resume, train

from ercfusion.train import main
from ercfusion.training.callbacks import RestrictedCheckpointIO, read_history, write_history
from ercfusion.training.origin import seal

SCHEDULERS = {
    "constant": ["scheduler=constant"],
    "cosine": ["scheduler=cosine", "scheduler.warmup=0.3"],
    "linear": ["scheduler=linear", "scheduler.warmup=0.3", "optimizer=bert_adam", "optimizer.tensor_clip=0.1"],
    # A rate so low that the score does not move, so that the rate falls within four epochs.
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=1e-5"],
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("model", "scheduler"),
    [
        pytest.param(model, scheduler, marks=[] if (model, scheduler) == ("cogmen", "linear") else [pytest.mark.slow])
        for model in ("cogmen", "bclstm")
        for scheduler in SCHEDULERS
    ],
)
def test_resume_after_any_epoch_equals_the_uninterrupted_run(
    model: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        settings = [f"model={model}", *SCHEDULERS[scheduler], "training.max_epochs=4", "training.patience=0"]
        record = train(tmp_path / "whole", *settings)
    assert record["config"]["model"]["dropout"] > 0
    rates = [row["lr"] for row in history(tmp_path / "whole")]
    assert (len(set(rates)) > 1) == (scheduler != "constant")
    for epoch in ("1", "2", "3", "4"):
        assert len(history(tmp_path / epoch)) == int(epoch)
        resume(tmp_path / epoch)
        assert_same_run(tmp_path / epoch, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_prototypes_queue_and_shuffled_labels_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["model=carat", "model.queue=40", "model.contrast=8", "data=demo/multilabel", *SCHEDULERS["cosine"]]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *settings, "training.max_epochs=3", "training.patience=0")
    state = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    first = torch.load(tmp_path / "1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name in ("prototypes.prototypes", "contrastive.queue.vectors"):
        assert not torch.equal(state[f"recognizer.architecture.{name}"], first[f"recognizer.architecture.{name}"])
    for epoch in ("1", "2"):
        resume(tmp_path / epoch)
        assert_same_run(tmp_path / epoch, tmp_path / "whole")


KILLED = """
import os, signal, sys
import ercfusion.training.run as run
from ercfusion.train import main
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.callbacks import RestrictedCheckpointIO
from ercfusion.training.module import ConversationModule

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, condition):
    original = getattr(owner, name)
    def patched(self, *arguments, **settings):
        if condition(self, *arguments):
            die()
        return original(self, *arguments, **settings)
    setattr(owner, name, patched)

counts = {"saved": 0}
def third_checkpoint(self, *arguments):
    counts["saved"] += 1
    return counts["saved"] == 3

folder, *arguments = sys.argv[1:]
for moment in ("epoch", "model", "record"):
    # All that is slow to import is there already; nothing has been computed yet, so a fork is safe.
    if (pid := os.fork()) == 0:
        if moment == "epoch":
            before(ConversationModule, "training_step", lambda self, batch, number: (self.current_epoch, number) == (1, 1))
        elif moment == "model":
            before(RestrictedCheckpointIO, "save_checkpoint", third_checkpoint)
        else:
            run.finish = lambda *arguments: die()
        main([*arguments, f"run={folder}/{moment}"])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_is_continued_as_if_nothing_had_happened(tmp_path: Path) -> None:
    # A rising score makes epoch 3 the best so far: its model is in place when the run dies before the checkpoint.
    settings = ["model=cogmen", "training.max_epochs=4", "optimizer.lr=0.002", "training.metric=nll", "seed=3"]
    done = python("-c", KILLED, str(tmp_path), *TINY, *settings)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*/record.json"))
    assert [len(history(tmp_path / moment)) for moment in ("epoch", "model", "record")] == [1, 3, 4]
    record = train(tmp_path / "whole", *settings)
    assert record["selection"]["epoch"] >= 3
    for moment in ("epoch", "model", "record"):
        resume(tmp_path / moment)
        assert_same_run(tmp_path / moment, tmp_path / "whole")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_had_stopped_early_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        # A rate of 0 never improves: the second epoch exhausts a patience of 1.
        train(tmp_path / "whole", "model=concat", "optimizer.lr=0", "training.max_epochs=9", "training.patience=1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "whole"]
    record = resume(tmp_path / "2")
    assert record["selection"] == {"split": "dev", "metric": "weighted_f1", "epoch": 1, "epochs": 2}
    assert_same_run(tmp_path / "2", tmp_path / "whole")


@pytest.mark.usefixtures("no_pictures")
def test_resume_of_a_complete_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    train(tmp_path / "run", "model=majority")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, out, err = command(main, [f"resume={tmp_path / 'run'}"], capsys)
    assert status == 0
    assert err == f"{tmp_path / 'run'}: this run is complete already\n"
    assert out.splitlines()[-1] == str(tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_pictures")
def test_the_seconds_of_a_resumed_run_include_the_epochs_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", "model=concat", "training.max_epochs=3")
    rows = read_history(tmp_path / "2" / "metrics.csv")
    for row in rows:
        row["seconds"] += 1000.0
    write_history(tmp_path / "2" / "metrics.csv", rows)
    last = tmp_path / "2" / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    origin = {key: value for key, value in state.pop("ercfusion").items() if key != "sha256"}
    state["callbacks"]["Selection"]["history"] = rows
    torch.save(seal(state, origin), last)
    record = resume(tmp_path / "2")
    assert 2000 < record["cost"]["seconds"] < 3000
    assert 600 < record["cost"]["seconds_per_epoch"] < 1000


@pytest.mark.slow
def test_other_settings_are_refused_before_the_slow_imports(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ercfusion.cli import run_command\nfrom ercfusion.train import main\n"
        "status = run_command(main, sys.argv[1:])\nprint(status, 'pytorch_lightning' in sys.modules)"
    )
    done = python("-c", code, f"resume={tmp_path / 'none'}", "training.max_epochs=60")
    assert done.stdout == "2 False\n"
    assert (
        "resume= uses the settings of the run; 'training.max_epochs=60' cannot be changed now. Omit it." in done.stderr
    )


@pytest.mark.usefixtures("no_pictures")
def test_resume_without_a_checkpoint_starts_over_in_the_same_folder(tmp_path: Path) -> None:
    settings = ["model=concat", "training.max_epochs=2"]
    train(tmp_path / "whole", *settings)
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.json", "overrides.json", "environment.json"):
        shutil.copy(tmp_path / "whole" / name, begun)
    resume(begun)
    assert_same_run(begun, tmp_path / "whole")


def test_a_resume_that_fails_leaves_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    composed = ["data=meld", f"data.raw={tmp_path}/moved", f"run={folder}"]
    assert "is not a folder" in refused(main, composed, capsys)
    assert not folder.exists()  # a new run that could not begin leaves nothing
    folder.mkdir()
    train(tmp_path / "other", "model=majority")
    config = read(tmp_path / "other" / "config.json")
    config["data"].update(name="meld", raw=f"{tmp_path}/moved", options={})
    import json

    (folder / "config.json").write_text(json.dumps(config))
    for name in ("overrides.json", "environment.json"):
        shutil.copy(tmp_path / "other" / name, folder)
    assert "is not a folder" in refused(main, [f"resume={folder}"], capsys)
    assert (folder / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_ctrl_c_names_the_command_that_continues(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*TINY, "model=concat", "training.max_epochs=40", "training.patience=0", f"run={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ercfusion.train", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert f"interrupted; continue with: python -m ercfusion.train resume={folder}" in err
    assert not (folder / "record.json").exists()
    assert 1 <= len(history(folder)) < 40
    record = resume(folder)
    assert record["selection"]["epochs"] == 40
    train(tmp_path / "whole", "model=concat", "training.max_epochs=40", "training.patience=0")
    assert_same_run(folder, tmp_path / "whole")


# Checkpoints


@pytest.mark.usefixtures("no_pictures")
def test_checkpoints_hold_plain_containers_only(tmp_path: Path) -> None:
    train(tmp_path / "run", "model=concat", "training.max_epochs=1", "scheduler=plateau")
    loaded = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)

    def check(value: object, where: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                check(key, where)
                check(inner, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner, where)
        else:
            assert isinstance(value, torch.Tensor | str | int | float | type(None)), (where, type(value))

    check(loaded, "checkpoint")


@pytest.mark.usefixtures("no_pictures")
def test_a_truncated_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train(folder, "model=concat", "training.max_epochs=1")
    (folder / "record.json").unlink()
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    message = refused(main, [f"resume={folder}"], capsys)
    assert f"{last} cannot be read as a checkpoint" in message
    assert "Begin a new run with other settings" not in message
    assert last.is_file()


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    from ercfusion._core.errors import RunError

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"state_dict": Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(RunError, match=r"bad\.ckpt cannot be read"):
        RestrictedCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm").exists()


def test_saving_replaces_a_checkpoint_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = RestrictedCheckpointIO()
    content = {"epoch": 1, "global_step": 3, "state_dict": {}, "callbacks": {}, "loops": {}}
    content |= {"optimizer_states": [], "lr_schedulers": []}
    plugin.save_checkpoint(content, tmp_path / "deep" / "last.ckpt")

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            plugin.save_checkpoint({"epoch": 2}, tmp_path / "deep" / "last.ckpt")
    assert plugin.load_checkpoint(tmp_path / "deep" / "last.ckpt") == content
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.ckpt"]
    plugin.remove_checkpoint(tmp_path / "deep" / "last.ckpt")
    plugin.remove_checkpoint(tmp_path / "deep" / "last.ckpt")
    assert not list((tmp_path / "deep").iterdir())
