"""Training under a curriculum: every epoch is complete, and what depends on the number of batches copes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import assert_same_run, history, keep_states, python, read, refused, resume, train
from test_callbacks import Recorder, run_epochs

from ercfusion._core.errors import RunError
from ercfusion.config.settings import section_of
from ercfusion.data.corpora import open_corpus
from ercfusion.data.curriculum import PACINGS, Curriculum, build_curriculum
from ercfusion.plots.curriculum import plot_curriculum
from ercfusion.train import main
from ercfusion.training.callbacks import Selection, TrainingBar
from ercfusion.training.module import ConversationModule, cosine_factor

# Eleven conversations, two a batch: parts of 3, 6, 9 and 11 conversations make 2, 3, 5 and 6 batches.
PACED = ("data.options.train=11", "curriculum=emotion_shift", "curriculum.buckets=4", "model=concat")
PARTS = [3, 6, 9, 11]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...], float]]:
    """From now on every training step's epoch, conversations and learning rate."""
    seen: list[tuple[int, tuple[str, ...], float]] = []
    original = ConversationModule.training_step

    def step(self: ConversationModule, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append((self.current_epoch, batch.ids, self.trainer.optimizers[0].param_groups[0]["lr"]))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ConversationModule, "training_step", step)
    return seen


def paced(count: int, **settings: Any) -> Curriculum:
    return Curriculum(tuple(map(str, range(count))), (0.5,) * count, tuple(range(count)), **settings)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("pacing", ["baby_step", "one_pass"])
def test_every_epoch_is_complete(pacing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer would cut later, longer epochs at the length of the first."""
    seen = watch(monkeypatch)
    settings = [*PACED, f"curriculum.pacing={pacing}", "scheduler=cosine", "training.max_epochs=6", "optimizer.lr=0.01"]
    record = train(tmp_path / "run", *settings)
    corpus = open_corpus("demo", train=11, dev=3, test=3)
    talks = corpus.conversations(corpus.protocol())["train"]
    expected = build_curriculum(
        section_of("curriculum", record["config"]["curriculum"]), talks, corpus.protocol().task, 0
    )
    assert expected is not None
    counts = [*PARTS, 11, 11] if pacing == "baby_step" else [3, 3, 3, 2, 11, 11]
    assert [expected.count(epoch) for epoch in range(6)] == counts
    batches = [[ids for at, ids, _ in seen if at == epoch] for epoch in range(6)]
    assert [len(part) for part in batches] == [-(-count // 2) for count in counts]
    for epoch, part in enumerate(batches):
        used = sorted(name for ids in part for name in ids)
        assert used == sorted(talks[index].id for index in expected.conversations(epoch))
    # The cosine runs over the steps that there are, to its end.
    factor = cosine_factor(len(seen), 0.1)
    assert [rate for _, _, rate in seen] == pytest.approx([0.01 * factor(step) for step in range(len(seen))])
    assert float(history(tmp_path / "run")[-1]["lr"]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.usefixtures("no_pictures")
def test_without_a_curriculum_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bucket is no curriculum: the run is the same to the last bit, though the loader is asked for anew."""
    for name, group in (("none", "none"), ("one", "emotion_shift")):
        buckets = [] if group == "none" else ["curriculum.buckets=1"]
        train(tmp_path / name, "model=concat", "training.max_epochs=3", f"curriculum={group}", *buckets)
    assert history(tmp_path / "one") == history(tmp_path / "none")
    model = "model/model.safetensors"
    assert (tmp_path / "one" / model).read_bytes() == (tmp_path / "none" / model).read_bytes()
    assert not (tmp_path / "none" / "curriculum.csv").exists()
    assert read(tmp_path / "none" / "record.json")["config"]["curriculum"] == {"name": "none"}


def test_what_the_folder_says(tmp_path: Path) -> None:
    settings = [*PACED, "curriculum=weighted_shift", "curriculum.beta=0.25", "training.max_epochs=5"]
    record = train(tmp_path / "run", *settings)
    assert record["config"]["curriculum"] == {
        **{"name": "weighted_shift", "scope": "same", "weight": 1.0, "beta": 0.25, "buckets": 4},
        **{"pacing": "baby_step", "epochs_per_bucket": 1, "reverse": False},
    }
    with (tmp_path / "run" / "curriculum.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["bucket"] for row in rows] == [*"111", *"222", *"333", *"44"]
    hardness = [float(row["difficulty"]) for row in rows]
    assert hardness == sorted(hardness)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "curriculum weighted_shift, baby_step: 4 buckets; all conversations are in use from epoch 4" in log
    assert re.findall(r"epoch (\d)/5 .* s  (\d+) of 11 conversations\n", log) == [("1", "3"), ("2", "6"), ("3", "9")]
    assert len(re.findall(r"epoch \d/5 ", log)) == 5
    assert (tmp_path / "run" / "plots" / "curriculum.png").stat().st_size > 10_000
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.usefixtures("no_pictures")
def test_more_buckets_than_conversations_and_fewer_epochs(tmp_path: Path) -> None:
    settings = ["model=concat", "curriculum=emotion_shift", "curriculum.buckets=50", "training.max_epochs=2"]
    train(tmp_path / "run", *settings)
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("6 buckets (50 were asked for); all conversations are in use from epoch 6") == 1
    assert log.count("training.max_epochs=2: training ends before") == 1
    assert re.findall(r"(\d) of 6 conversations", log) == ["1", "2"]


# Resuming


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("pacing", "scheduler"),
    [
        ("baby_step", "cosine"),
        pytest.param("one_pass", "constant", marks=pytest.mark.slow),
        pytest.param("root", "plateau", marks=pytest.mark.slow),
    ],
)
def test_resume_in_the_middle_equals_the_uninterrupted_run(
    pacing: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        settings = [f"curriculum.pacing={pacing}", f"scheduler={scheduler}", "training.patience=1"]
        record = train(tmp_path / "whole", *PACED, *settings, "training.max_epochs=6")
    assert record["config"]["model"]["dropout"] > 0
    last = record["selection"]["epochs"]
    for epoch in (2, 3, last):  # the next part is longer, the next is the last or all, nothing is left
        seen = watch(monkeypatch)
        resume(tmp_path / str(epoch))
        assert_same_run(tmp_path / str(epoch), tmp_path / "whole")
        assert {at + 1 for at, _, _ in seen} == set(range(epoch + 1, last + 1))
        table = "curriculum.csv"
        assert (tmp_path / str(epoch) / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
        monkeypatch.undo()


@pytest.mark.usefixtures("no_pictures")
def test_another_curriculum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *PACED, "training.max_epochs=2")
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path / "plain")
        train(tmp_path / "without", "model=concat", "training.max_epochs=2", "data.options.train=11")
    folder = tmp_path / "1"
    original, table = read(folder / "config.json"), (folder / "curriculum.csv").read_bytes()
    rest = original["curriculum"]
    for settings in ({**rest, "buckets": 3}, {**rest, "pacing": "root"}, {**rest, "reverse": True}, {"name": "none"}):
        (folder / "config.json").write_text(json.dumps({**original, "curriculum": settings}))
        message = refused(main, [f"resume={folder}"], capsys)
        assert "changed since it was made: curriculum." in message
        assert len(history(folder)) == 1
        assert (folder / "curriculum.csv").read_bytes() == table
    (folder / "config.json").write_text(json.dumps(original))
    resume(folder)
    assert_same_run(folder, tmp_path / "whole")
    # Nor may a run that began without one go on with one;
    folder = tmp_path / "plain" / "1"
    original = read(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**original, "curriculum": rest}))
    assert "changed since it was made: curriculum." in refused(main, [f"resume={folder}"], capsys)
    (folder / "config.json").write_text(json.dumps(original))
    resume(folder)
    assert_same_run(folder, tmp_path / "without")


def test_a_state_of_another_curriculum_is_refused(tmp_path: Path) -> None:
    row = {"epoch": 1.0, "seconds": 0.1, "dev/uar": 0.5}
    made = Selection(tmp_path, None, "uar", max_epochs=9, curriculum=paced(9, buckets=4))  # type: ignore[arg-type]
    made.history, made.saved = [row], "0" * 64
    other = Selection(tmp_path, None, "uar", max_epochs=9, curriculum=paced(9, buckets=3))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="made under another curriculum"):
        other.load_state_dict(made.state_dict())


# Patience and progress


@pytest.mark.parametrize(
    ("patience", "pacing", "epochs"), [(1, "baby_step", 4), (2, "baby_step", 5), (2, "one_pass", 6), (0, "one_pass", 8)]
)
def test_patience_begins_when_all_are_in_use(
    patience: int, pacing: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four buckets: all are in use from epoch 4 on, and from epoch 5 on with one pass. No epoch beats the first."""

    def callback() -> Selection:
        curriculum = paced(9, buckets=4, pacing=pacing)
        return Selection(tmp_path, None, "uar", max_epochs=9, patience=patience, curriculum=curriculum)  # type: ignore[arg-type]

    first = callback()
    trainer, done = run_epochs(first, monkeypatch, "uar", [0.9, *[0.5] * 7])
    assert len(done) == epochs
    assert trainer.should_stop == (patience > 0)
    monkeypatch.setattr(Selection, "check_model", lambda self: None)
    again, fresh = callback(), Recorder()
    again.load_state_dict(first.state_dict())
    again.on_train_start(fresh, fresh)  # type: ignore[arg-type]
    assert fresh.should_stop == trainer.should_stop


def test_patience_counts_from_a_later_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Selection(tmp_path, None, "uar", max_epochs=9, patience=2, curriculum=paced(9, buckets=3))  # type: ignore[arg-type]
    _, done = run_epochs(callback, monkeypatch, "uar", [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])
    assert len(done) == 6


def test_the_bar_counts_the_batches_that_there_are() -> None:
    from ercfusion.data.sampler import ConversationSampler

    sampler = ConversationSampler([3] * 11, 2, curriculum=paced(11, buckets=4))
    bar = TrainingBar()
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(sampler=sampler), max_epochs=6, current_epoch=2)
    try:
        bar.on_train_start(trainer, trainer)
        task = bar._bar.tasks[0]
        assert (task.completed, task.total) == (2 + 3, 2 + 3 + 5 + 6 + 6 + 6)
    finally:
        bar.on_train_end(trainer, trainer)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curriculum=emotion_shift", "data=demo/multilabel"], "is a multi_label task. Use curriculum=none"),
        (
            ["curriculum=emotion_shift", "curriculum.pacing=slow"],
            "curriculum.pacing must be one of baby_step, one_pass",
        ),
        (["curriculum=emotion_shift", "curriculum.buckets=0"], "curriculum.buckets must be from 1 to 1000000, found 0"),
        (["curriculum=emotion_shift", "curriculum.beta=1"], "there is no setting 'curriculum.beta'"),
        (["curriculum=emotional_shift"], "no such choice of curriculum. Did you mean 'emotion_shift'?"),
    ],
)
def test_mistakes_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(main, [*arguments, "trainer=cpu", f"output={tmp_path}"], capsys)
    assert not list(tmp_path.rglob("config.json"))


# The picture


@pytest.mark.slow
@pytest.mark.parametrize("pacing", PACINGS)
def test_pictures_are_the_same_twice(pacing: str, tmp_path: Path) -> None:
    corpus = open_corpus("demo", train=11, dev=3, test=3)
    protocol = corpus.protocol()
    settings = {
        **{"name": "emotion_shift", "scope": "both", "buckets": 4, "pacing": pacing},
        **{"epochs_per_bucket": 2, "reverse": False},
    }
    curriculum = build_curriculum(
        section_of("curriculum", settings), corpus.conversations(protocol)["train"], protocol.task, 0
    )
    assert curriculum is not None
    first, second = (
        plot_curriculum(curriculum, tmp_path / f"{name}.svg", 9, title="Pace", synthetic=True) for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    for words in ("Pace (synthetic corpus)", "bucket 1", "bucket 4", "all 11", "Difficulty", "Epoch"):
        assert f"<!-- {words} -->" in text


def test_pictures_of_one_epoch_and_of_many_buckets(tmp_path: Path) -> None:
    text = plot_curriculum(paced(40, buckets=12), tmp_path / "a.svg", 1).read_text()  # all equally hard
    assert "<!-- bucket 12 -->" in text
    assert "<!-- bucket 2 -->" not in text
    with pytest.raises(ValueError, match="no epoch was trained"):
        plot_curriculum(paced(2, buckets=1), tmp_path / "b.svg", 0)


# Several processes


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_processes_keep_the_pace(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    settings = ["data.options.train=11", "training.batch_size=3", "model=concat", "model.dropout=0", "optimizer=sgd"]
    settings += ["model.input_dropout=0", "data.options.dev=3", "data.options.test=3", "training.threads=1"]
    settings += ["curriculum=emotion_shift", "curriculum.buckets=4", "training.max_epochs=5", "training.bootstrap=50"]
    done = python(
        *("-m", "ercfusion.train", *settings, "trainer=ddp", "trainer.accelerator=cpu", f"run={two}"), timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("all conversations are in use from epoch 4") == 1
    train(one, *settings, "training.batch_size=3")
    for row, other in zip(history(two), history(one), strict=True):
        for name in ("epoch", "lr", "train/loss", "dev/nll"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-9), name
    assert (two / "curriculum.csv").read_bytes() == (one / "curriculum.csv").read_bytes()
