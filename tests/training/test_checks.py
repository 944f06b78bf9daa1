"""What ends a run must end it before its first epoch; a test split without labels does not end it at all."""

from __future__ import annotations

import csv
import json
import shutil
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import predictions as made_predictions
from made_records import record as made_record
from runs import command, refused

from ercfusion import compare, evaluate, verify
from ercfusion._core.errors import ConfigError, RunError
from ercfusion.batch.task import TaskSpec
from ercfusion.config.compose import Composer
from ercfusion.config.sections import Training
from ercfusion.config.settings import Model
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpora import open_corpus
from ercfusion.data.features import FeatureTable
from ercfusion.data.pack import write_pack
from ercfusion.models import ARCHITECTURES, architecture_limits
from ercfusion.records.archive import write_archive
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import read_record
from ercfusion.testing import make_task, random_store
from ercfusion.train import main
from ercfusion.training import checks
from ercfusion.training.callbacks import Selection
from ercfusion.training.tables import check_testable

LABELS = ("anger", "joy", "neutral")


def write_corpus(
    folder: Path,
    unlabelled: Sequence[str] = (),
    lengths: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """A corpus of one's own; the conversations of each split have the given lengths."""
    folder.mkdir(parents=True)
    lengths = {"train": [3, 4, 3], "dev": [4, 3], "test": [3, 3], **(lengths or {})}
    number = 0
    with (folder / "utterances.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["conversation", "turn", "speaker", "text", "split", "emotion"])
        for split, sizes in lengths.items():
            for place, size in enumerate(sizes):
                for turn in range(size):
                    number += 1
                    label = "" if split in unlabelled else LABELS[number % 3]
                    writer.writerow([f"{split}{place}", turn, "AB"[turn % 2], f"line {number}", split, label])
    return folder


def write_features(folder: Path, raw: Path, modality: str, splits: Sequence[str] = ("train", "dev", "test")) -> str:
    """A pack with random vectors for the turns of ``splits``; returns the setting that names it."""
    corpus = open_corpus("custom", str(raw))
    found = corpus.conversations(corpus.protocol())
    keys = [key for split in splits for one in found[split] for key in one.keys()]  # noqa: SIM118
    values = np.random.default_rng(0).normal(size=(len(keys), 6)).astype(np.float32)
    made = {"tool": "test", "tool_version": "1", "settings": {}, "corpus": "custom"}
    write_pack(folder, FeatureTable(modality, keys, values), **made, fingerprint=corpus.fingerprint())
    return f"data.packs.{modality}={folder}"


def arguments(tmp_path: Path, **corpus: Any) -> list[str]:
    raw = write_corpus(tmp_path / "raw", **corpus)
    return [
        *("model=concat", "data=custom", f"data.raw={raw}", "training.max_epochs=1", "training.bootstrap=20"),
        *("training.threads=1", "training.batch_size=2", "trainer=cpu"),
        *("data.modalities=[text]", write_features(tmp_path / "text", raw, "text")),
    ]


# Ends before training


@pytest.fixture
def no_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: Any) -> None:
        raise AssertionError("an epoch was trained")

    monkeypatch.setattr(Selection, "on_train_epoch_end", trained)


@pytest.fixture
def no_features(no_epochs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("features were read")

    monkeypatch.setattr("ercfusion.features.loading.load_tables", read)


@pytest.mark.usefixtures("no_features")
@pytest.mark.parametrize(
    ("corpus", "typed", "message"),
    [
        ({"unlabelled": ["dev"]}, [], "none of the 7 utterances of the dev split is labelled"),
        ({"unlabelled": ["train"]}, [], "none of the 10 utterances of the train split is labelled"),
        ({"lengths": {"test": []}}, [], "the test split has no conversations"),
        ({}, ["training.metric=wighted_f1"], "Did you mean 'weighted_f1'"),
        ({}, ["objective.class_weights={joy: 1, angr: 2}"], "'angr' is not a label. Did you mean 'anger'?"),
        (
            {"lengths": {"test": [2, 7]}},
            ["model=dialoguegcn_released", "model.positions=6"],
            "'test1' of the test split",
        ),
    ],
)
def test_what_needs_no_features_is_found_before_they_are_read(
    corpus: dict[str, Any], typed: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert message in refused(main, [*arguments(tmp_path, **corpus), *typed, f"run={folder}"], capsys)
    assert not folder.exists()


@pytest.mark.usefixtures("no_epochs")
def test_a_score_that_dev_cannot_have_is_found_before_the_first_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Turns of one speaker each: nobody's emotion can shift.
    typed = [*arguments(tmp_path, lengths={"dev": [2, 2]}), "training.metric=shift_accuracy", f"run={tmp_path}/run"]
    assert "training.metric=shift_accuracy is not defined on the dev split" in refused(main, typed, capsys)


@pytest.mark.usefixtures("no_epochs")
def test_a_disk_without_room_is_found_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    message = refused(main, [*arguments(tmp_path), f"run={tmp_path}/run"], capsys)
    assert "the run needs about" in message
    assert "has 1 MiB free" in message
    assert not (tmp_path / "run").exists()


def test_kept_epochs_need_room_and_files_that_are_there_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    module = torch.nn.Linear(2**18, 4, bias=False)  # 4 MiB
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 60 * 2**20))

    def config(keep: bool) -> Training:
        return Training(keep_every_epoch=keep, max_epochs=5)

    checks.check_disk(tmp_path, module, config(False))  # 8 * 4 + 16 = 48 MiB
    with pytest.raises(RunError, match=r"keep_every_epoch=true, needs about 68 MiB.*60 MiB free.*output=DIR"):
        checks.check_disk(tmp_path, module, config(True))
    (tmp_path / "last.ckpt").write_bytes(bytes(8 * 2**20))
    checks.check_disk(tmp_path, module, config(True))


def test_a_conversation_at_the_limit_passes() -> None:
    config = Model("dialoguegcn", {"edges": "position", "positions": 5})

    def split(length: int) -> list[Conversation]:
        return [Conversation("c", tuple(Turn(str(number), "A") for number in range(length)))]

    checks.check_lengths(config, {"train": split(5), "dev": split(2), "test": split(5)})
    with pytest.raises(
        ConfigError, match=r"up to 5 utterances; 1 are longer, the longest is 'c' of the dev split with 6"
    ):
        checks.check_lengths(config, {"train": split(5), "dev": split(6), "test": split(5)})
    checks.check_lengths(config, {"train": split(5), "dev": split(5), "test": split(6)}, needed=("train", "dev"))
    checks.check_lengths(Model("dialoguegcn", {"positions": 5}), {"train": split(99)})


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_by_default_no_architecture_limits_conversations(name: str) -> None:
    assert architecture_limits(name).longest is None


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "distribution", "regression"])
def test_constant_answers_can_be_scored(kind: Any) -> None:
    from ercfusion.metrics.registry import scores
    from ercfusion.testing import make_task

    task = make_task(kind)
    answers = checks.constant_answers(random_store((3, 5), tasks=[task], seed=1), task)
    assert task.metric in scores(answers)


# A test split without labels


def test_a_run_without_test_labels_ends_with_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    typed = [*arguments(tmp_path, unlabelled=["test"]), "training.pictures=false", f"run={folder}"]
    status, out, err = command(main, typed, capsys)
    assert status == 0, err
    assert err.startswith("the test split has no labels")
    assert "the test split has no labels: its predictions are in predictions.parquet" in out
    record = read_record(folder)
    assert record["unlabelled"] == ["test"]
    assert record["metrics"]["test"] == record["intervals"]["test"] == record["majority"]["test"] == {}
    assert record["metrics"]["dev"]["weighted_f1"] >= 0
    assert (record["splits"]["test"]["conversations"], record["splits"]["test"]["utterances"]) == (2, 0)
    predictions = read_predictions(folder / "predictions.parquet", TaskSpec.from_dict(record["task"]))
    assert len(predictions["test"]) == 6
    assert not predictions["test"].valid.any()
    assert np.isfinite(predictions["test"].output).all()
    row = next(
        line for line in (folder / "model" / "README.md").read_text().splitlines() if line.startswith("accuracy")
    )
    assert row.split() == ["accuracy", f"{record['metrics']['dev']['accuracy']:.4f}", "-"]

    status, out, err = command(evaluate.main, [str(folder)], capsys)
    assert status == 0, err
    assert "no labels in this split: predictions only" in out
    assert json.loads((folder / "evaluation" / "test.json").read_text())["metrics"] == {}
    assert len(read_predictions(folder / "evaluation" / "test.parquet", predictions["test"].task)["test"]) == 6
    status, out, err = command(evaluate.main, [str(folder), "split=dev"], capsys)
    assert (status, err) == (0, "")
    assert "equal to the run's record" in out

    no_scores = "has no test scores: its test split has no labels"
    assert no_scores in refused(compare.main, [str(folder), str(folder)], capsys)
    recorded = write_archive(tmp_path / "recorded.json", [made_record(seed=0), made_record(seed=1)])
    assert no_scores in refused(verify.main, [str(folder), str(recorded)], capsys)
    shutil.copytree(folder / "model", folder / "checkpoints" / "epoch-001")
    assert no_scores in refused(evaluate.main, [str(folder), "--optimism"], capsys)


def test_a_split_without_labels_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ercfusion.plots import pictures

    drawn: list[str] = []

    def draw(what: Any, path: Path, *_: Any, **__: Any) -> None:
        drawn.append(path.name)

    monkeypatch.setattr(pictures, "plot_training_curves", draw)
    for name in pictures.PICTURES:
        monkeypatch.setitem(pictures.PICTURES, name, draw)
    dev = made_predictions(0.5, 0)
    test = replace(dev, valid=np.zeros_like(dev.valid))
    pictures.draw_pictures(tmp_path / "plots", [{"epoch": 1}], {"dev": dev, "test": test}, made_record())
    assert drawn == ["training.png", "dev-class-f1.png", "dev-confusion.png", "dev-reliability.png"]


def test_a_multirun_without_test_labels_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*arguments(tmp_path, unlabelled=["test"]), "training.pictures=false", f"output={tmp_path}/out"]
    status, out, err = command(main, ["-m", "workers=1", "seed=0,1", *typed], capsys)
    assert status == 0, err
    row = out.splitlines()[-1].split()
    assert row[:3] == ["concat", "2", "weighted_f1"]
    assert row[-1] == "-"


def test_a_table_is_not_begun_without_test_labels(tmp_path: Path) -> None:
    config = Composer("train").compose(arguments(tmp_path, unlabelled=["test"]))
    with pytest.raises(RunError, match="custom/emotion: the test split has no labels, so a table has no scores"):
        check_testable(config)


@pytest.mark.usefixtures("no_pictures")
def test_class_weights_by_name_decide_and_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = arguments(tmp_path)
    weights = "objective.class_weights={joy: 3, anger: 0, neutral: 1.5}"
    losses = []
    for name, extra in (("plain", []), ("weighted", [weights])):
        folder = tmp_path / name
        assert main([*typed, *extra, f"run={folder}"]) == 0
        losses.append((folder / "metrics.csv").read_text())
    assert losses[0] != losses[1]
    record = read_record(tmp_path / "weighted")
    assert record["config"]["objective"]["class_weights"] == {"joy": 3, "anger": 0, "neutral": 1.5}
    assert command(evaluate.main, [str(tmp_path / "weighted")], capsys)[0] == 0
    assert main([f"resume={tmp_path / 'weighted'}"]) == 0


def test_outputs_that_are_not_finite_are_named() -> None:
    from ercfusion._core.errors import TrainingError
    from ercfusion.testing import make_task
    from ercfusion.training.checks import check_finite

    task = make_task()
    answers = checks.constant_answers(random_store((3, 5), tasks=[task]), task)
    check_finite(answers, "test")
    answers.output[4, 1] = np.nan
    where = f"{answers.conversation_ids[1]}/{answers.turn_ids[4]}"
    with pytest.raises(TrainingError, match=rf"1 utterances of the test split are not finite \(first: {where}\)"):
        check_finite(answers, "test")


# Batches of one utterance


@pytest.mark.parametrize("model", ["cogmen_released", "tfn_released"])
def test_a_batch_of_one_utterance_is_trained_on_under_batch_normalisation(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*arguments(tmp_path, lengths={"train": [3, 1, 4]}), f"model={model}", "training.batch_size=1"]
    settings += ["training.max_epochs=2", "training.pictures=false", "training.length_aware=false"]
    status, out, err = command(main, [*settings, f"run={tmp_path}/run"], capsys)
    assert status == 0, err
    record = read_record(tmp_path / "run")
    assert record["selection"]["epochs"] == 2
    # One of the two presets reads padding; run, record and summary say so.
    said = "depends on the other conversations of its batch, because mask_padding=false"
    released = model == "cogmen_released"
    assert [said in err, said in out, "padding" in record.get("batch_dependence", "")] == [released] * 3


# A modality that a whole split lacks


@pytest.mark.parametrize("lacking", ["train", "dev", "test"])
def test_a_split_may_lack_a_modality(lacking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [entry for entry in arguments(tmp_path) if not entry.startswith("data.modalities")]
    splits = [split for split in ("train", "dev", "test") if split != lacking]
    audio = write_features(tmp_path / "audio", tmp_path / "raw", "audio", splits)
    folder = tmp_path / "run"
    status, _, err = command(main, [*typed, audio, "training.pictures=false", f"run={folder}"], capsys)
    assert status == 0, err
    assert f"turns of the {lacking} split has the modality 'audio' ({audio})" in err
    record = read_record(folder)
    assert record["metrics"]["test"]["weighted_f1"] >= 0
    assert {entry["modality"] for entry in record["features"]} == {"text", "audio"}


@pytest.mark.usefixtures("no_epochs")
def test_the_only_modality_must_be_in_every_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = arguments(tmp_path)[:-2]
    audio = write_features(tmp_path / "audio", tmp_path / "raw", "audio", ["train", "dev"])
    message = refused(main, [*typed, "data.modalities=[audio]", audio, f"run={tmp_path}/run"], capsys)
    assert "none of the 6 turns of the test split has any features (audio)" in message


def test_a_multi_label_run_says_how_empty_sets_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runs import TINY

    folder = tmp_path / "run"
    typed = [*TINY, "model=concat", "data=demo/multilabel", "training.max_epochs=1", "training.pictures=false"]
    status, out, err = command(main, [*typed, f"run={folder}"], capsys)
    assert status == 0, err
    assert "an utterance without a label, predicted without one, counts: accuracy 1, jaccard 1, samples_f1 1" in out
    record = read_record(folder)
    counted = "accuracy 1, jaccard 1, samples_f1 1"
    assert record["conventions"] == {"an utterance without a label, predicted without one, counts": counted}
    assert "equal to the run's record" in command(evaluate.main, [str(folder)], capsys)[1]


def test_thresholds_need_labels_on_dev() -> None:
    tasks = [make_task("single_label"), replace(make_task("multi_label"), name="emotions")]
    store = random_store((2, 3), tasks=tasks)
    checks.check_thresholds(store)
    store.targets["emotions"].valid[:] = False
    message = r"'emotions' \(multi_label\): decision thresholds are chosen on dev, and none of its 5 utterances"
    with pytest.raises(ConfigError, match=message):
        checks.check_thresholds(store)
    store.targets["emotions"].valid[1] = True
    checks.check_thresholds(store)
