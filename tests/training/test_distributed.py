"""Data-parallel training with two CPU processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import TINY, history, python, read, train
from safetensors.torch import load_file

# Five conversations in batches of three: uneven shares, and a last batch of two. (Not Adam: it blows up the rounding
# errors of gradients that are zero, such as those of the attention's key bias.)
SETTINGS = (
    *(*TINY, "data.options.train=5", "training.batch_size=3", "seed=1"),
    *("model=cogmen", "model.dropout=0", "optimizer=sgd", "scheduler=constant"),
)


def distributed(*arguments: str) -> list[str]:
    done = python("-m", "ercfusion.train", *arguments, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "warn" not in done.stderr.lower()
    # Each line once: the second process says nothing.
    lines = done.stderr.splitlines()
    assert len(lines) == len(set(lines))
    return done.stdout.splitlines()


def assert_close(found: Path, expected: Path) -> None:
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (found, expected))
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
    for row, other in zip(history(found), history(expected), strict=True):
        for name in ("epoch", "lr", "train/loss", "train/task", "dev/nll"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name


@pytest.mark.usefixtures("no_pictures")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    settings = [*SETTINGS, "training.max_epochs=3", "training.metric=nll", "scheduler=plateau"]
    out = distributed(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"run={two}")
    assert out[-1] == str(two)
    assert sum("95 % interval" in line for line in out) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    record = train(one, *settings)
    assert_close(two, one)
    assert read(two / "record.json")["selection"] == record["selection"]
    assert read(two / "record.json")["metrics"]["test"]["nll"] == pytest.approx(
        record["metrics"]["test"]["nll"], rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_resume_with_two_processes(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    settings = [*SETTINGS, "training.metric=nll"]
    distributed(*settings, "training.max_epochs=2", "trainer=ddp", "trainer.accelerator=cpu", f"run={two}")
    # As if it had been killed after two epochs of four.
    (two / "record.json").unlink()
    config = read(two / "config.json")
    config["training"]["max_epochs"] = 4
    (two / "config.json").write_text(json.dumps(config))
    assert distributed(f"resume={two}")[-1] == str(two)
    train(one, *settings, "training.max_epochs=4")
    assert len(history(two)) == 4
    assert_close(two, one)


@pytest.mark.slow
def test_every_process_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    arguments = [*SETTINGS, "optimizer.lr=1e30", "training.gradient_clip=0", f"run={tmp_path / 'run'}"]
    done = python("-m", "ercfusion.train", *arguments, "trainer=ddp", "trainer.accelerator=cpu", timeout=240)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert errors[0].startswith("error: the loss is not finite")
    assert "Traceback" not in done.stderr
