"""Data-parallel training with two CPU processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, assert_same_run, environment, history, python, read, train
from safetensors.torch import load_file
from shared_batches import assert_equal_steps, averaged, model_cases, objective_cases, work_of_a_process

from ercfusion.config.terms import TERMS
from ercfusion.models import ARCHITECTURES
from ercfusion.train import main
from ercfusion.training.origin import seal

# Five conversations in batches of four: the last batch has one, for two processes. (Not Adam: it blows up the rounding
# errors of gradients that are zero, such as those of the attention's key bias.)
SETTINGS = (
    *(*TINY, "data.options.train=5", "training.batch_size=4", "seed=1"),
    *("model=cogmen", "model.dropout=0", "objective=supcon", "optimizer=sgd", "scheduler=constant"),
)

DDP = ("trainer=ddp", "trainer.accelerator=cpu")


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
        for name in ("epoch", "lr", "train/loss", "train/task", "train/supcon", "dev/nll"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name


@pytest.mark.slow
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
def test_a_teacher_in_two_processes(tmp_path: Path) -> None:
    teacher = [*SETTINGS[:-3], "training.max_epochs=1", f"run={tmp_path / 'teacher'}"]
    assert main(teacher) == 0
    guided = ("objective.weights.guidance=0.5", "objective.weights.distillation=0.1")
    views = ("recipe=self_distillation", "missing.train=pattern:text+audio", "objective.weights.supcon=0.3")
    for number, more in enumerate(
        [(*views, "objective.supcon.queue=16"), (*guided, f"training.teacher={tmp_path / 'teacher'}")]
    ):
        settings = [*(part for part in SETTINGS if part != "objective=supcon"), *more, "training.metric=nll"]
        settings.append("training.max_epochs=2")
        two, one = tmp_path / f"two {number}", tmp_path / f"one {number}"
        distributed(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"run={two}")
        train(one, *settings)
        for row, other in zip(history(two), history(one), strict=True):
            terms = [name for name in other if name.startswith("train/")]
            assert {"train/guidance", "train/distillation"} <= set(terms)
            for name in (*terms, "dev/nll"):
                assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name


@pytest.mark.slow
def test_every_term_and_every_architecture_in_two_processes(tmp_path: Path) -> None:
    """Gradients, losses and running averages of three batches, in two processes and in one."""
    cases = [*objective_cases(), *model_cases()]
    assert {case.model for case in cases} >= set(ARCHITECTURES)
    assert {name for case in cases for name in case.objective.get("weights", {})} >= set(TERMS)
    torch.multiprocessing.spawn(work_of_a_process, (2, cases, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, *found in zip(cases, *parts, strict=True):
        assert_equal_steps(case, averaged(found), case.steps())


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_law_without_chance_hides_the_same_in_two_processes(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    settings = [*SETTINGS, "training.max_epochs=2", "training.metric=nll", "missing.train=pattern:text+visual"]
    distributed(*settings, "training.accumulate_grad_batches=2", *DDP, f"run={two}")
    record = train(one, *settings, "training.accumulate_grad_batches=2")
    assert_close(two, one)
    assert read(two / "record.json")["missing"] == record["missing"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_resumed_processes_draw_the_same_holes(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = [*SETTINGS, "training.metric=nll", "missing=rate", "training.modality_dropout=0.2", *DDP]
    distributed(*settings, "training.max_epochs=4", f"run={whole}")
    distributed(*settings, "training.max_epochs=2", f"run={resumed}")
    killed_after_two_of_four(resumed)
    assert distributed(f"resume={resumed}")[-1] == str(resumed)
    assert_same_run(resumed, whole)


def killed_after_two_of_four(run: Path) -> None:
    """Change the folder of a run of two epochs as if it had been killed after two epochs of four."""
    (run / "record.json").unlink()
    config = read(run / "config.json")
    config["training"]["max_epochs"] = 4
    (run / "config.json").write_text(json.dumps(config))
    last = run / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    origin = {key: value for key, value in state.pop("ercfusion").items() if key != "sha256"}
    torch.save(seal(state, {**origin, "config": config}), last)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_resume_with_two_processes(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    settings = [*SETTINGS, "training.metric=nll"]
    distributed(*settings, "training.max_epochs=2", *DDP, f"run={two}")
    killed_after_two_of_four(two)
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


# Launchers


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_torchrun(tmp_path: Path) -> None:
    settings = [*SETTINGS, "training.max_epochs=2", "training.metric=nll", "training.accumulate_grad_batches=2"]
    settings.append("data.tasks=[emotion,valence]")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ercfusion.train"]
    more = ["trainer=ddp", "trainer.accelerator=cpu", f"output={tmp_path / 'out'}"]
    done = python(*launch, *settings, *more, timeout=240)
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "out" / "train" / "cogmen-demo").iterdir()
    assert done.stdout.splitlines()[-1] == str(two)
    assert done.stderr.count("epoch 1/2") == 1
    record = train(tmp_path / "one", *settings)
    assert_close(two, tmp_path / "one")
    for row, other in zip(history(two), history(tmp_path / "one"), strict=True):
        for name in ("train/valence", "dev/valence:nll"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name
    found, expected = (
        one["others"]["valence"]["metrics"]["test"]["nll"] for one in (read(two / "record.json"), record)
    )
    assert found == pytest.approx(expected, rel=1e-4)


def srun(*arguments: str) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of the two processes that ``srun --ntasks=2`` would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "night", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    variables |= {"SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ercfusion.train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=240) for process in started]
    return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_srun(tmp_path: Path) -> None:
    settings = [*SETTINGS, "training.max_epochs=2", "training.metric=nll"]
    two, one = tmp_path / "out", tmp_path / "one"
    first, second = srun(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"run={two}")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].splitlines()[-1] == str(two)
    assert second[1:] == ("", "")
    train(one, *settings)
    assert_close(two, one)
    # What the first process cannot do ends the second one.
    first, second = srun(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"run={two}")
    assert (first[0], second[0]) == (2, 2)
    assert "is not empty" in first[2]
    assert second[1:] == ("", "")
