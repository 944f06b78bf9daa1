"""Recipes with stages, initial weights and frozen parts."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, assert_same_run, command, history, keep_states, python, read, refused, resume, train
from safetensors.torch import load_file

from ercfusion._core.errors import ConfigError
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.config.settings import Config
from ercfusion.config.stages import stage_configs
from ercfusion.sweep import main as sweep
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task
from ercfusion.train import main
from ercfusion.training.start import belongs, freeze, matching, parts_of

pytestmark = pytest.mark.usefixtures("no_pictures")

MODEL = ("model=concat", "model.hidden=8")
STAGED = (
    *MODEL,
    "recipe.stages.first.training.max_epochs=3",
    "recipe.stages.second.optimizer=sgd",
    "recipe.stages.second.training.freeze=[architecture.encoders]",
    "training.freeze=[architecture]",
    "training.max_epochs=2",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "model" / "model.safetensors")
    return loaded


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    names = dict(Recognizer.from_pretrained(folder / "model").named_parameters())
    return {name: value for name, value in weights(folder).items() if name in names}


# Configurations


def composed(*typed: str) -> dict[str, Any]:
    return Composer().compose(["model=concat", *typed])


def test_without_a_recipe_a_configuration_has_none_of_its_keys() -> None:
    config = composed()
    assert "recipe" not in config
    assert not {"start_from", "load", "freeze"} & set(config["training"])
    assert Config.from_dict(config).to_dict() == config
    assert stage_configs(config) == {}
    # Typing a default changes nothing.
    assert composed("training.freeze=[]", "training.start_from=null") == config


def test_a_configuration_with_a_recipe_is_itself_again() -> None:
    config = composed("recipe.stages.first.training.max_epochs=3", "training.freeze=[head]", "training.load=[]")
    assert config["recipe"] == {"stages": {"first": {"training": {"max_epochs": 3}}}}
    assert Config.from_dict(config).to_dict() == config


def test_a_stage_has_the_settings_of_the_run_and_its_own() -> None:
    config = composed(
        *("training.max_epochs=7", "training.batch_size=4", "training.start_from=old", "training.freeze=[head]"),
        *("training.keep_every_epoch=true", "optimizer.lr=0.5", "optimizer.betas=[0.5,0.5]"),
        *("objective.weights.supcon=0.1", "recipe.stages.a.optimizer.lr=0.25", "recipe.stages.a.model.hidden=3"),
        *("recipe.stages.a.objective.weights.supcon=null", "recipe.stages.b.optimizer=sgd"),
        *("recipe.stages.b.training.freeze=[architecture]", "recipe.stages.b.scheduler.name=plateau"),
        *("recipe.stages.c.model=bclstm", "recipe.stages.c.data.tasks=[emotion]"),
    )
    stages = stage_configs(config)
    assert list(stages) == ["a", "b", "c"]
    a, b, c = stages.values()
    for stage in stages.values():
        assert "recipe" not in stage
        assert stage["training"]["batch_size"] == 4
        assert stage["training"]["max_epochs"] == 7
        assert stage["training"]["keep_every_epoch"] is False
    assert a["training"]["start_from"] == "old"
    assert not {"start_from", "freeze"} & set(c["training"])
    assert "freeze" not in a["training"]
    assert b["training"]["freeze"] == ["architecture"]
    assert a["optimizer"] == {**config["optimizer"], "lr": 0.25}
    assert a["model"] == {**config["model"], "hidden": 3}
    assert a["objective"]["weights"] == {"task": 1.0, "unimodal": 0.0}
    assert b["objective"]["weights"]["supcon"] == 0.1
    assert b["optimizer"] == composed("optimizer=sgd")["optimizer"]
    assert b["scheduler"] == composed("scheduler=plateau")["scheduler"]
    assert c["model"] == Composer().compose(["model=bclstm"])["model"] | {"residual": c["model"]["residual"]}
    assert c["data"]["tasks"] == ["emotion"]
    assert config["model"]["name"] == "concat"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("a.trainin.max_epochs=2", "recipe.stages.a has no section 'trainin'. Did you mean 'training'?"),
        ("a.task.export=true", "recipe.stages.a has no section 'task'. Choose from: model, data"),
        ("a.training.max_epoch=2", "recipe.stages.a: training has no setting 'max_epoch'. Did you mean 'max_epochs'?"),
        ("a.training.max_epochs=x", "recipe.stages.a, key 'training.max_epochs': found 'x', but a whole number"),
        ("a.training.max_epochs=0", "recipe.stages.a, key 'training.max_epochs': must be from 1"),
        ("a.model.hiden=3", "recipe.stages.a: model 'concat' has no setting 'hiden'. Did you mean 'hidden'?"),
        ("a.model.hidden=0", "recipe.stages.a: model.hidden must be from 1"),
        ("a.model=cogmem", "recipe.stages.a: model=cogmem is unknown. Did you mean 'cogmen'?"),
        ("a.optimizer=sgdd", "recipe.stages.a: optimizer.name='sgdd' is unknown. Did you mean 'sgd'?"),
        ("a.optimizer.beta=1", "recipe.stages.a: optimizer has no setting 'beta'. Did you mean 'betas'?"),
        ("a.training=3", "recipe.stages.a: training=3 is not a mapping. Give the settings of the section."),
        ("a=3", "recipe.stages.a=3 is not a mapping. Give the settings of the stage by section."),
    ],
)
def test_what_is_wrong_in_a_stage_is_named_at_once(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(f"recipe.stages.{typed}")
    assert message in str(error.value)


def test_one_process(capsys: Any) -> None:
    message = refused(main, [*TINY, *STAGED, "trainer.devices=2"], capsys)
    assert "a recipe with stages is trained in one process" in message


def test_a_sweep_has_no_stages(capsys: Any) -> None:
    assert "a trial of a sweep is one training" in refused(sweep, [*TINY, *STAGED, "sweep.trials=1"], capsys)


# Runs


def test_every_stage_starts_from_the_one_before(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    record = train(run, *STAGED)
    first, second = run / "stages" / "1-first", run / "stages" / "2-second"
    assert [len(history(folder)) for folder in (first, second, run)] == [3, 2, 2]
    assert sorted(path.name for path in first.iterdir()) == [
        *("checkpoints", "config.json", "metrics.csv", "model", "stage.json", "train.log")
    ]
    # The first stage is an ordinary run.
    plain = train(tmp_path / "plain", *MODEL, "training.max_epochs=3")
    assert history(first) == history(tmp_path / "plain")
    assert plain["selection"] == record["recipe"]["stages"][0]["selection"]
    assert "start" not in plain
    one, two, three = parameters(first), parameters(second), parameters(run)
    changed = {name.rpartition(".")[0] for name in two if not torch.equal(two[name], one[name])}
    assert any(name.startswith("architecture.fuse") for name in changed)
    assert not any(name.startswith("architecture.encoders") for name in changed)
    assert {name for name in three if not torch.equal(three[name], two[name])} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    total = sum(value.numel() for value in three.values())
    heads = sum(value.numel() for name, value in three.items() if name.startswith("head"))
    encoders = sum(value.numel() for name, value in three.items() if name.startswith("architecture.encoders"))
    stages = record["recipe"]["stages"]
    assert record["recipe"]["name"] is None
    assert [stage["name"] for stage in stages] == ["first", "second"]
    assert [stage["parameters"] for stage in stages] == [total, total - encoders]
    assert record["start"]["frozen"] == ["architecture"]
    assert record["start"]["loaded"] == ["architecture", "head"]
    assert record["start"]["left"] == []
    assert record["start"]["source"] == "2-second"
    assert record["start"]["sha256"] == stages[1]["sha256"]
    assert record["start"]["fixed_mode"] == ["Dropout"]
    assert (record["start"]["trainable"], record["start"]["parameters"]) == (heads, total)
    assert record["cost"]["parameters"] == heads
    assert record["cost"]["seconds"] > sum(stage["seconds"] for stage in stages)
    log = (run / "train.log").read_text()
    for line in (
        "stage 1 of 3: first",
        "stage 3 of 3: the run itself",
        f"frozen: architecture; {heads:,} of {total:,}",
    ):
        assert line in log
    assert "initial weights from 1-first: architecture, head" in (second / "train.log").read_text()
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert [len(group["params"]) for group in state["optimizer_states"][0]["param_groups"]] == [1, 1]
    assert "stage second (demo/balanced): epoch" in log


def test_a_stopped_recipe_goes_on_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = tmp_path / "copies"
    with monkeypatch.context() as patch:
        keep_states(patch, copies, tmp_path / "whole")
        train(tmp_path / "whole", *STAGED)
    assert len(list(copies.iterdir())) == 7
    for number in range(1, 8):
        copy = copies / str(number)
        resume(copy)
        assert_same_run(copy, tmp_path / "whole")
        for stage in ("1-first", "2-second"):
            one, other = copy / "stages" / stage, tmp_path / "whole" / "stages" / stage
            assert history(one) == history(other)
            assert {**read(one / "stage.json"), "seconds": 0} == {**read(other / "stage.json"), "seconds": 0}
            assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


KILLED = """
import os, signal, sys
from ercfusion.train import main
from ercfusion.training.module import ConversationModule

original, count = ConversationModule.training_step, 0

def step(self, *arguments):
    global count
    count += 1
    if count == 11:  # the second epoch of the second stage: each epoch has three batches
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)

ConversationModule.training_step = step
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_recipe_is_continued_as_if_nothing_had_happened(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = python("-c", KILLED, *TINY, *STAGED, "recipe.stages.second.training.max_epochs=3", f"run={killed}")
    assert done.returncode == -signal.SIGKILL
    assert (killed / "stages/1-first/stage.json").is_file()
    assert not (killed / "stages/2-second/stage.json").exists()
    assert not (killed / "checkpoints").exists()
    train(whole, *STAGED, "recipe.stages.second.training.max_epochs=3")
    resume(killed)
    assert_same_run(killed, whole)
    assert os.listdir(killed / "stages") == os.listdir(whole / "stages")


def test_a_lost_stage_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ercfusion.training.run.finish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "run", *STAGED)
    (tmp_path / "run" / "stages" / "1-first" / "stage.json").unlink()
    message = refused(main, [f"resume={tmp_path / 'run'}"], capsys)
    assert "1-first has no stage.json, although a later stage began" in message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "training.freeze=[architecture.encoderz]",
            "training.freeze: no parameter begins with 'architecture.encoderz'.",
        ),
        ("recipe.stages.second.training.load=[hed]", "training.load: no parameter of the model begins with 'hed'."),
        ("recipe.stages.second.model.hidden=4", "there has [8"),
        ("recipe.stages.second.model=bclstm", "have no parameter of the architecture in common"),
    ],
)
def test_a_mistake_in_a_late_stage_is_seen_before_the_first(
    wrong: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    assert message in refused(main, [*TINY, *STAGED, wrong, f"run={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_cannot_begin_leaves_no_folder(tmp_path: Path, capsys: Any) -> None:
    wrong = "recipe.stages.first.objective.weights.nothing=1"
    assert "no term 'nothing'" in refused(main, [*TINY, *STAGED, wrong, f"run={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()


# By hand


def test_weights_of_a_finished_run(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path / "old", *MODEL, "training.max_epochs=1", "seed=5")
    new = (*MODEL, "training.max_epochs=1", "optimizer.lr=0", "scheduler=constant", "optimizer.weight_decay=0")
    record = train(tmp_path / "all", *new, f"training.start_from={tmp_path / 'old'}")
    old = weights(tmp_path / "old")
    for name, value in weights(tmp_path / "all").items():
        assert torch.equal(value, old[name]), name
    assert record["start"]["source"] == "old"
    assert record["start"]["model"] == "concat on demo/balanced"
    assert record["start"]["frozen"] == []
    assert "initial weights from old (concat on demo/balanced)" in (tmp_path / "all" / "train.log").read_text()
    part = ("training.load=[architecture.fuse]", f"training.start_from={tmp_path / 'old' / 'model'}")
    record = train(tmp_path / "part", *new, *part)
    assert record["start"]["loaded"] == ["architecture.fuse"]
    assert sorted(record["start"]["left"]) == ["architecture.absent", "architecture.encoders", "head"]
    changed = {name for name, value in parameters(tmp_path / "part").items() if not torch.equal(value, old[name])}
    assert "architecture.encoders.text.1.weight" in changed
    assert not any(name.startswith("architecture.fuse") for name in changed)


def test_a_resumed_run_needs_its_initial_weights_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "old", *MODEL, "training.max_epochs=1", "seed=5")
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        started = (f"training.start_from={tmp_path / 'old'}", "training.freeze=[architecture.encoders]")
        train(tmp_path / "whole", *MODEL, *started, "training.max_epochs=3")
    shutil.rmtree(tmp_path / "old")
    for epoch in ("1", "2", "3"):
        record = resume(tmp_path / epoch)
        assert record["start"] == read(tmp_path / "whole" / "record.json")["start"]
        assert_same_run(tmp_path / epoch, tmp_path / "whole")


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: Any) -> None:
    arguments = [*TINY, *MODEL, f"run={tmp_path / 'run'}"]
    assert "is not a saved model" in refused(main, [*arguments, f"training.start_from={tmp_path}"], capsys)
    assert "training.load has no effect" in refused(main, [*arguments, "training.load=[head]"], capsys)
    message = refused(main, [*arguments, "training.freeze=[architecture,head]"], capsys)
    assert "no parameter is left to train" in message
    assert not (tmp_path / "run").exists()


def test_the_commands_output_names_stages(tmp_path: Path, capsys: Any) -> None:
    status, out, _ = command(main, [*TINY, *STAGED, f"run={tmp_path / 'run'}"], capsys)
    assert status == 0
    assert "stage first (demo/balanced): epoch" in out
    assert "frozen: architecture; " in out


# Parts


def made(*tasks: str, hidden: int = 4, seed: int = 0) -> Recognizer:
    torch.manual_seed(seed)
    first, *others = (make_task(kind, kind) for kind in tasks)
    inputs = InputSpec({"text": 3, "audio": 2})
    return Recognizer("concat", inputs, first, {"hidden": hidden}, others=others, unimodal=True)


def test_heads_are_found_by_their_task() -> None:
    one, other = made("single_label", "regression"), made("regression", "single_label", seed=1)
    pairs = matching(one, other, None)
    assert set(pairs) == {name for name in one.state_dict() if not name.endswith("thresholds")}
    label = one.task.name
    assert torch.equal(pairs["head.linear.weight"][1], other.others[label].head.linear.weight)  # type: ignore[union-attr,arg-type]
    unimodal = pairs["unimodal_heads.text.linear.weight"][1]
    assert torch.equal(unimodal, other.others[label].unimodal_heads["text"].linear.weight)  # type: ignore[union-attr,index,arg-type]
    only = matching(made("single_label"), made("regression"), None)
    assert not any("head" in name for name in only)
    assert "standardize.mean_text" in only


def test_heads_of_other_labels_are_left_out_or_refused() -> None:
    from dataclasses import replace

    from ercfusion.batch.labels import LabelSchema

    torch.manual_seed(0)
    inputs = InputSpec({"text": 3})
    task = make_task("single_label")
    assert task.schema is not None
    smaller = replace(task, schema=LabelSchema("fewer", task.schema.labels[:3]))
    one, other = Recognizer("concat", inputs, task), Recognizer("concat", inputs, smaller)
    assert not any(name.startswith("head") for name in matching(one, other, None))
    with pytest.raises(ConfigError, match=r"head\.linear\.weight has the shape \[4, .*there has \[3"):
        matching(one, other, ["head"])


def test_frozen_modules_stay_in_eval_mode() -> None:
    model = made("single_label")
    assert freeze(model, ["architecture.encoders"]) == ["Dropout"]
    modes = {name: module.training for name, module in model.named_modules()}
    assert not any(mode for name, mode in modes.items() if belongs(name, "architecture.encoders"))
    assert all(mode for name, mode in modes.items() if not belongs(name, "architecture.encoders"))
    assert model.representation_widths()
    assert not model.architecture.encoders.training  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in model.architecture.encoders.parameters())  # type: ignore[union-attr]
    assert model.eval().train().architecture.fuse.training  # type: ignore[union-attr]
    assert freeze(made("single_label"), []) == []


def test_parts_end_at_a_dot() -> None:
    assert belongs("a.b.c", "a.b")
    assert belongs("a.b", "a.b")
    assert not belongs("a.bc", "a.b")
    names = ["a.x.1", "a.x.2", "a.y", "b.z"]
    assert parts_of(names, names) == ["a", "b"]
    assert parts_of(names, ["a.x.1", "a.x.2", "b.z"]) == ["a.x", "b"]
    assert parts_of(names, ["a.x.2"]) == ["a.x.2"]
    assert parts_of(names, []) == []


def test_a_changed_start_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *MODEL, "training.freeze=[architecture.encoders]", "training.max_epochs=2")
    start = tmp_path / "1" / "start.json"
    start.write_text(start.read_text().replace('"trainable"', '"trained"'))
    assert "key 'trainable' is missing" in refused(main, [f"resume={tmp_path / '1'}"], capsys)
