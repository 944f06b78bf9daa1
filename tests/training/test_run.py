"""What a run leaves behind, and that test is opened once, at the end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runs import TINY, command, history, read, refused, stub_text_encoder, train
from safetensors.torch import load_file

from ercfusion._core.errors import RunError
from ercfusion.batch.task import TaskSpec
from ercfusion.config.compose import Composer
from ercfusion.config.settings import Config, section_from
from ercfusion.features.loading import LoadedData, load_data
from ercfusion.metrics.labels import best_thresholds
from ercfusion.metrics.registry import scores
from ercfusion.metrics.sums import SUMS
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import read_record
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing.twins import write_twin
from ercfusion.train import main
from ercfusion.training import run
from ercfusion.training.build import build_recognizer

# The folder


def test_every_file_of_the_layout_exists(finished_run: Path) -> None:
    named = set(re.findall(r"[\w*]+(?:\.\w+|/)", str(run.__doc__).split("::")[1]))
    assert {"config.json", "metrics.csv", "model/", "plots/", "record.json", "train.log"} <= named
    for name in named - {"*.png"}:
        assert (finished_run / name).exists() or list(finished_run.rglob(name)), name
    assert {path.name for path in (finished_run / "model").iterdir()} == {
        *("model.safetensors", "config.json", "README.md"),
    }
    assert {path.name for path in (finished_run / "plots").iterdir()} == {
        "training.png",
        *(f"{split}-{kind}.png" for split in ("dev", "test") for kind in ("confusion", "class-f1", "reliability")),
    }
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == [
        *("epoch-001", "epoch-002", "epoch-003", "last.ckpt"),
    ]
    assert not list(finished_run.rglob("*.partial"))


def test_the_folder_says_how_it_was_made(finished_run: Path) -> None:
    config = read(finished_run / "config.json")
    assert config["model"]["name"] == "cogmen"
    assert config["training"]["max_epochs"] == 3
    overrides = read(finished_run / "overrides.json")
    assert overrides["overrides"] == [
        *TINY,
        *("model=cogmen", "training.max_epochs=3", "training.keep_every_epoch=true"),
        *("data.options.test=8", "optimizer.lr=0.003", f"run={finished_run}"),
    ]
    environment = read(finished_run / "environment.json")
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["python"]
    log = (finished_run / "train.log").read_text()
    assert len(re.findall(r"epoch \d/3  loss \d\.\d{4}  dev weighted_f1", log)) == 3
    card = (finished_run / "model" / "README.md").read_text()
    assert "model=cogmen" in card
    assert "synthetic" in card


def test_the_record_is_complete(finished_run: Path) -> None:
    record = read_record(finished_run)
    assert record["config"] == read(finished_run / "config.json")
    assert record["environment"] == read(finished_run / "environment.json")
    typed = read(finished_run / "overrides.json")
    assert len(typed.pop("run")) == 16  # of a folder, not of a result
    assert record["command"] == typed
    assert (record["protocol"], record["device"], record["seed"]) == ("demo/balanced", "cpu", 0)
    for split in ("dev", "test"):
        assert {"weighted_f1", "macro_f1", "accuracy", "ece"} <= set(record["metrics"][split])
        assert {"weighted_f1", "macro_f1", "accuracy"} <= set(record["majority"][split])
    assert record["selection"]["epochs"] == 3
    corpus = record["corpus"]
    assert corpus["synthetic"] is True
    assert corpus["reachable_weighted_f1"] == corpus["reachable"]["test"]["weighted_f1"]
    assert record["metrics"]["test"]["weighted_f1"] < corpus["reachable_weighted_f1"] <= 1
    assert corpus["train"]["conversations"] == 6
    assert [entry["modality"] for entry in record["features"]] == ["text", "audio", "visual"]
    for name, (low, high) in record["intervals"]["test"].items():
        assert low < record["metrics"]["test"][name] < high
    cost = record["cost"]
    assert cost["parameters"] == sum(
        value.numel() for value in Recognizer.from_pretrained(finished_run / "model").parameters()
    )
    assert min(cost["seconds"], cost["seconds_per_epoch"], cost["peak_memory_mib"]) > 0


def oracle(matrix: np.ndarray) -> dict[str, float]:
    """Scores of a confusion matrix (rows are the truth), written down independently."""
    support, said, right = matrix.sum(1), matrix.sum(0), np.diag(matrix)
    f1 = [2 * r / (s + p) if s + p else 0.0 for r, s, p in zip(right, support, said, strict=True)]
    seen = [value for value, s, p in zip(f1, support, said, strict=True) if s + p]
    return {
        "weighted_f1": sum(value * s for value, s in zip(f1, support, strict=True)) / support.sum(),
        "macro_f1": sum(seen) / len(seen),
        "accuracy": right.sum() / matrix.sum(),
    }


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_record_alone_gives_the_scores(finished_run: Path, split: str) -> None:
    record = read_record(finished_run)
    part = record["splits"][split]
    data = load_data(section_from("data", record["config"]["data"]))
    lengths = {conversation.id: len(conversation) for conversation in data.splits[split]}
    assert set(part["confusion"]) == set(lengths)
    task = TaskSpec.from_dict(record["task"])
    matrices = {name: SUMS["confusion"].read([cells], task)[0] for name, cells in part["confusion"].items()}
    assert {name: matrix.sum() for name, matrix in matrices.items()} == lengths
    found = oracle(sum(matrices.values()))
    for name, value in found.items():
        assert record["metrics"][split][name] == pytest.approx(value, abs=1e-6)
    assert part["utterances"] == sum(lengths.values())


def test_predictions_agree_with_the_metrics(finished_run: Path) -> None:
    record = read_record(finished_run)
    frame = pd.read_parquet(finished_run / "predictions.parquet")
    assert set(frame["split"]) == {"dev", "test"}
    for split, rows in frame.groupby("split"):
        share = (rows["truth"] == rows["prediction"]).mean()
        assert record["metrics"][split]["accuracy"] == pytest.approx(share, abs=1e-6)
    read_back = read_predictions(finished_run / "predictions.parquet", TaskSpec.from_dict(record["task"]))
    for split, part in read_back.items():
        assert {name: round(value, 6) for name, value in scores(part).items()} == record["metrics"][split]


def test_the_saved_model_predicts_the_same(finished_run: Path) -> None:
    record = read_record(finished_run)
    store = load_data(section_from("data", record["config"]["data"])).store("test")
    recognizer = Recognizer.from_pretrained(finished_run / "model")
    stored = read_predictions(finished_run / "predictions.parquet", recognizer.task)["test"]
    np.testing.assert_allclose(recognizer.predict(store).output, stored.output, atol=1e-6)
    chosen = finished_run / "checkpoints" / f"epoch-{record['selection']['epoch']:03d}" / "model.safetensors"
    assert chosen.read_bytes() == (finished_run / "model" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_no_text_leaves_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = write_twin("meld", tmp_path / "meld")
    assert main(["model=concat", "data=meld", f"data.raw={raw}", "training.max_epochs=1", f"run={tmp_path}/r"]) == 0
    data = load_data(section_from("data", read(tmp_path / "r" / "config.json")["data"]))
    texts = {turn.text for part in data.splits.values() for c in part for turn in c.turns if turn.text}
    assert len(texts) > 10
    written = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert written
    for path in written:
        content = path.read_bytes()
        found = [text for text in texts if text.encode() in content or json.dumps(text)[1:-1].encode() in content]
        assert not found, path


# Order and leaks


@pytest.mark.usefixtures("no_pictures")
def test_the_test_split_is_opened_once_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    store, fit, predict = LoadedData.store, run.fit, Recognizer.predict_all

    def watched_store(self: LoadedData, split: str) -> Any:
        calls.append(split)
        return store(self, split)

    def watched_fit(*arguments: Any) -> str:
        device = fit(*arguments)
        calls.append("trained")
        return device

    def watched_predict(self: Recognizer, part: Any, **settings: Any) -> Any:
        calls.append(f"predict {part.conversations[0].id.split('-')[1]}")
        return predict(self, part, **settings)

    monkeypatch.setattr(LoadedData, "store", watched_store)
    monkeypatch.setattr(run, "fit", watched_fit)
    monkeypatch.setattr(Recognizer, "predict_all", watched_predict)
    train(tmp_path / "run", "model=concat", "training.max_epochs=2")
    assert calls == [
        *("train", "dev", "predict dev", "predict dev", "trained", "predict dev", "test", "predict test"),
    ]


@pytest.mark.usefixtures("no_pictures")
def test_statistics_come_from_the_training_split_alone(tmp_path: Path) -> None:
    settings = ["model=bclstm", "training.max_epochs=1", "objective.class_weights=balanced"]
    one = train(tmp_path / "one", *settings, "data.options.test=3")
    other = train(tmp_path / "other", *settings, "data.options.test=9")
    # More test conversations change the test scores and nothing else.
    assert one["metrics"]["dev"] == other["metrics"]["dev"]
    assert one["metrics"]["test"] != other["metrics"]["test"]
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "other")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    store = load_data(section_from("data", one["config"]["data"])).store("train")
    for column, name in enumerate(("text", "audio", "visual")):
        rows = store.features[name][store.available[:, column]].numpy().astype(np.float64)
        assert len(rows) < store.num_utterances  # some are missing, and must not count as zeros
        np.testing.assert_allclose(weights[0][f"standardize.mean_{name}"], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(weights[0][f"standardize.scale_{name}"], 1 / rows.std(0), rtol=1e-4)


@pytest.mark.usefixtures("no_pictures")
def test_thresholds_are_chosen_on_dev(tmp_path: Path) -> None:
    record = train(tmp_path / "run", "model=concat", "data=demo/multilabel", "training.max_epochs=2")
    recognizer = Recognizer.from_pretrained(tmp_path / "run" / "model")
    data = load_data(section_from("data", record["config"]["data"]))
    kept = np.asarray(recognizer.predict(data.store("dev")).thresholds)
    chosen = {split: best_thresholds(recognizer.predict(data.store(split))) for split in ("dev", "test")}
    np.testing.assert_allclose(kept, chosen["dev"], atol=1e-6)
    assert np.abs(kept - chosen["test"]).max() > 0.01


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("rule", "threshold"), [("uniform", 1 / 6 + 1e-6), ("half", 0.5)])
def test_thresholds_by_name(rule: str, threshold: float, tmp_path: Path) -> None:
    settings = ("data=demo/multilabel", "training.max_epochs=2", f"training.thresholds={rule}")
    record = train(tmp_path / "run", "model=concat", *settings)
    recognizer = Recognizer.from_pretrained(tmp_path / "run" / "model")
    data = load_data(section_from("data", record["config"]["data"]))
    dev = recognizer.predict(data.store("dev"))
    np.testing.assert_allclose(dev.thresholds, threshold, atol=1e-7)
    # The epoch was chosen with these thresholds, too.
    best = history(tmp_path / "run")[record["selection"]["epoch"] - 1]
    assert float(best["dev/weighted_f1"]) == pytest.approx(scores(dev)["weighted_f1"], abs=1e-6)
    assert record["metrics"]["dev"]["weighted_f1"] == pytest.approx(scores(dev)["weighted_f1"], abs=1e-6)


def initial(*settings: str) -> Recognizer:
    config = Composer().compose([*TINY, "model=bclstm", *settings])
    return build_recognizer(Config.from_dict(config), load_data(section_from("data", config["data"])).store("train"))


def test_initial_weights_depend_on_the_seed() -> None:
    one, again, other = (dict(initial(f"seed={seed}").named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    weights = [name for name, value in one.items() if value.ndim > 1]  # the bias of the head comes from the data
    assert len(weights) > 3
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_inputs_are_standardised_if_asked_for() -> None:
    states = {flag: initial(f"training.standardize={flag}").standardize.state_dict() for flag in ("true", "false")}
    for name, value in states["false"].items():
        plain = torch.zeros_like(value) if "mean" in name else torch.ones_like(value)
        assert torch.equal(value, plain), name
        assert not torch.allclose(states["true"][name], plain), name


@pytest.mark.usefixtures("no_pictures")
def test_policy_for_absent_modalities_is_trained_and_saved(tmp_path: Path) -> None:
    settings = ["missing=rate", "missing.policy=learned", "training.max_epochs=1"]
    record = train(tmp_path / "run", "model=concat", *settings)
    recognizer = Recognizer.from_pretrained(tmp_path / "run" / "model")
    assert record["config"]["missing"]["policy"] == recognizer.policy == "learned"
    assert recognizer.fill is not None
    assert all(vector.abs().max() > 0 for vector in recognizer.fill.vectors.values())
    assert initial("data=demo", "missing.policy=zero").policy == "zero"
    assert initial("data=demo").policy is None


class _CaughtError(Exception):
    """Stops a run where what it is made with has been seen."""


def made_with(monkeypatch: pytest.MonkeyPatch, folder: Path, place: Any, name: str, *settings: str) -> dict[str, Any]:
    """The keyword arguments with which a run of these settings calls ``place.name``."""
    seen: dict[str, Any] = {}

    def caught(*arguments: Any, **options: Any) -> None:
        seen.update(options)
        raise _CaughtError

    monkeypatch.setattr(place, name, caught)
    with pytest.raises(_CaughtError):
        train(folder, "model=concat", *settings)
    return seen


@pytest.mark.parametrize(
    ("metric", "maximize"), [("weighted_f1", True), ("ece", False), ("nll", False), ("accuracy", True)]
)
def test_a_plateau_falls_where_the_dev_score_gets_no_better(
    metric: str, maximize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made_with(
        *(monkeypatch, tmp_path / "run", run, "ConversationModule", "scheduler=plateau", f"training.metric={metric}")
    )
    assert found["maximize"] is maximize


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        made_with(monkeypatch, tmp_path / name, run.pl, "Trainer", *settings).get("gradient_clip_val")
        for name, settings in (("a", ()), ("b", ("training.gradient_clip=0.25",)), ("c", ("training.gradient_clip=0",)))
    ]
    assert found == [1.0, 0.25, None]


@pytest.mark.usefixtures("no_pictures")
def test_class_weights_come_from_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = run.class_weights

    def watched(targets: Any, *arguments: Any) -> Any:
        seen.append((len(targets.valid), *arguments[1:]))
        return original(targets, *arguments)

    monkeypatch.setattr(run, "class_weights", watched)
    record = train(tmp_path / "run", "model=concat", "training.max_epochs=1", "objective.class_weights=effective")
    assert seen == [(record["corpus"]["train"]["utterances"], "effective")]


# Models and tasks


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("protocol", ["balanced", "multilabel"])
def test_majority_reaches_exactly_the_floor(tmp_path: Path, protocol: str) -> None:
    record = train(tmp_path / "run", "model=majority", f"data=demo/{protocol}", "training.max_epochs=1")
    found, floor = record["metrics"], record["majority"]
    for split in ("dev", "test"):
        assert floor[split]
        assert {name: found[split][name] for name in floor[split]} == floor[split]
    assert found["test"]["weighted_f1"] < record["corpus"]["reachable_weighted_f1"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("model", ["concat", "bclstm", "cogmen"])
def test_every_kind_of_task_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    lines = write_twin("emotionlines", tmp_path / "emotionlines")
    mosi = write_twin("mosi", tmp_path / "mosi")
    distribution = _distribution_protocol()
    cases = {
        "multi_label": [*TINY, "data=demo/multilabel"],
        "distribution": [f"data={distribution}", f"data.raw={lines}", "trainer=cpu", "training.bootstrap=20"],
        "regression": ["data=mosi/score", f"data.raw={mosi}", "trainer=cpu", "training.bootstrap=20"],
    }
    for kind, settings in cases.items():
        folder = tmp_path / kind
        assert main([f"model={model}", "training.max_epochs=1", *settings, f"run={folder}"]) == 0
        record = read_record(folder)
        assert record["task"]["kind"] == kind
        assert record["selection"]["metric"] == record["task"]["metric"]
        assert np.isfinite([*record["metrics"]["test"].values()]).all()
        stored = read_predictions(folder / "predictions.parquet", TaskSpec.from_dict(record["task"]))
        assert stored["test"].output.shape == (len(stored["test"].valid), stored["test"].task.size)
        if kind == "multi_label":
            counts = np.sum([*record["splits"]["test"]["counts"].values()], axis=0)
            f1 = 2 * counts[:, 0] / np.maximum(2 * counts[:, 0] + counts[:, 1] + counts[:, 2], 1)
            support = counts[:, 0] + counts[:, 2]
            assert record["metrics"]["test"]["weighted_f1"] == pytest.approx(f1 @ support / support.sum(), abs=1e-6)
            assert (stored["test"].thresholds != 0.5).any()
        if kind == "regression":
            assert record["metrics"]["test"]["mae"] == pytest.approx(
                np.abs(stored["test"].output - stored["test"].value)[stored["test"].valid].mean(), abs=1e-6
            )


def _distribution_protocol() -> str:
    from ercfusion.data.corpora import open_corpus

    return next(p.id for p in open_corpus("emotionlines").protocols.values() if p.task.kind == "distribution")


@pytest.mark.usefixtures("no_pictures")
def test_mixed_precision(tmp_path: Path) -> None:
    settings = ["model=cogmen", "training.max_epochs=2", "training.metric=nll"]
    full = train(tmp_path / "full", *settings)
    mixed = train(tmp_path / "mixed", *settings, "trainer.precision=bf16-mixed")
    assert mixed["metrics"]["test"]["nll"] != full["metrics"]["test"]["nll"]
    assert mixed["metrics"]["test"]["nll"] == pytest.approx(full["metrics"]["test"]["nll"], rel=0.02)


@pytest.mark.usefixtures("no_pictures")
def test_auxiliary_terms_are_logged(tmp_path: Path) -> None:
    train(tmp_path / "run", "model=concat", "training.max_epochs=2", "objective.weights.unimodal=0.5")
    frame = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(frame["epoch"]) == [1, 2]
    np.testing.assert_allclose(frame["train/loss"], frame["train/task"] + 0.5 * frame["train/unimodal"], rtol=1e-5)


# Failures


def poison(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int) -> None:
    """From the given batch on, counted from 1, the weights hold a NaN."""
    from ercfusion.training.module import ConversationModule

    original = ConversationModule.training_step

    def step(self: ConversationModule, data: Any, number: int) -> Any:
        if (self.current_epoch + 1, number + 1) == (epoch, batch):
            with torch.no_grad():
                self.recognizer.head.linear.bias[0] = float("nan")
        return original(self, data, number)

    monkeypatch.setattr(ConversationModule, "training_step", step)


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    poison(monkeypatch, epoch=3, batch=2)
    arguments = [*TINY, "model=concat", "optimizer.lr=0.0003", "training.max_epochs=5", f"run={folder}"]
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    message = refused(main, arguments, capsys)
    assert re.search(r"not finite \(task = nan\) at epoch 3, batch 2 \(conversations demo-train-\d{4}, demo", message)
    assert "Lower optimizer.lr=0.0003, lower training.gradient_clip=1, or check their features." in message
    best = pd.read_csv(folder / "metrics.csv")["dev/weighted_f1"].idxmax() + 1
    assert f"{folder} has the log; model/ is the best so far, of epoch {best}. Begin a new run" in message
    Recognizer.from_pretrained(folder / "model")
    loaded = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in loaded["state_dict"].values())
    assert all(torch.isfinite(v).all() for v in load_file(folder / "model/model.safetensors").values())
    assert pd.read_csv(folder / "metrics.csv")["epoch"].tolist() == [1, 2]
    assert not (folder / "record.json").exists()
    assert "stopped: TrainingError" in (folder / "train.log").read_text()


def test_a_rate_that_is_absurd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "model=cogmen", "optimizer=sgd", "optimizer.lr=1e30", "training.gradient_clip=0"]
    message = refused(main, [*arguments, f"run={tmp_path / 'several'}"], capsys)
    assert "the loss is not finite" in message
    assert "epoch 1, batch 2" in message
    # With a single batch an epoch, dev is the first to see it; a model of NaNs is never kept as the last good one.
    message = refused(main, [*arguments, "training.batch_size=6", f"run={tmp_path / 'single'}"], capsys)
    folder = tmp_path / "single"
    assert "the outputs on the dev split are not finite after epoch 1" in message
    assert "Lower optimizer.lr=1e+30, set training.gradient_clip (now 0, off), or check the features." in message
    assert f"{folder} has the log; no epoch was completed. Begin a new run" in message
    assert "not finite after epoch 1" in (folder / "train.log").read_text().splitlines()[-1]
    assert read(folder / "config.json")["optimizer"]["lr"] == 1e30
    assert not (folder / "metrics.csv").exists()
    # The folder is not overwritten; its own settings fail again.
    message = refused(main, [*TINY, "model=cogmen", f"run={folder}"], capsys)
    assert "Choose another folder, delete this one, or resume its run, with its settings: " in message
    assert "not finite after epoch 1" in refused(main, [f"resume={folder}"], capsys)
    shutil.rmtree(folder)
    train(folder, "model=majority", "training.max_epochs=1", "training.pictures=false")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_folder_that_is_not_empty_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    message = refused(main, [*TINY, f"run={folder}"], capsys)
    assert "is not empty, and nothing is overwritten" in message
    assert "resume=" not in message  # there is nothing to go on with
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    (folder / "thesis.tex").unlink()
    train(folder, "model=majority")  # an empty one will do


@pytest.mark.usefixtures("no_pictures")
def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    config = Config.from_dict(Composer().compose(["model=concat", f"output={tmp_path}"]))
    made = [run.free_folder(config, "train", "-seed4") for _ in range(4)]
    assert len(set(made)) == 4
    assert all(re.fullmatch(r"\d{8}-\d{6}-seed4(-\d)?", folder.name) for folder in made)
    assert {folder.parent for folder in made} == {tmp_path / "train" / "concat-demo"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no config.json: not a run folder"), ('{"seed": 1,\n}', "config.json, line 2: not valid JSON")],
)
def test_a_folder_that_is_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message):
        run.open_run_folder(tmp_path)
    with pytest.raises(RunError, match="is not a folder"):
        run.open_run_folder(tmp_path / "nowhere")


def test_quiet_runs_still_write_their_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    arguments = [*TINY, "model=majority", "training.max_epochs=1", f"run={tmp_path / 'run'}"]
    status, out, err = command(main, arguments, capsys)
    assert (status, err) == (0, "")
    assert out.endswith(f"{tmp_path / 'run'}\n")
    assert "epoch 1/1  loss" in (tmp_path / "run" / "train.log").read_text()


def test_a_card_names_no_place_of_this_machine(finished_run: Path) -> None:
    card = (finished_run / "model/README.md").read_text()
    assert "model=cogmen" in card
    assert str(finished_run) not in card
    assert "run=" not in card


# Fewer batches and fewer steps


@pytest.mark.usefixtures("no_pictures")
def test_the_schedule_ends_with_the_last_step(tmp_path: Path) -> None:
    """Six conversations in batches of two; limited to two batches, and with a step for every two of three batches."""
    for number, (settings, steps) in enumerate(
        {
            "training.limit_train_batches=2": 2,
            "training.limit_train_batches=0.4": 1,
            "training.accumulate_grad_batches=2": 2,
        }.items()
    ):
        folder = tmp_path / str(number)
        train(folder, "model=concat", "training.max_epochs=3", "scheduler=cosine", "scheduler.warmup=0", settings)
        state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        assert state["global_step"] == 3 * steps
        assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.accumulate_grad_batches=0", "training.accumulate_grad_batches must be from 1 to 1000000, found 0"),
        ("trainer.num_nodes=0", "trainer.num_nodes must be from 1 to 4096, found 0"),
        ("training.limit_train_batches=0", "training.limit_train_batches must be a share above 0.0 and up to 1.0"),
        ("training.limit_train_batches=1.5", "or a whole number of at least 1, found 1.5"),
        ("training.limit_train_batches=-3", "found -3"),
        ("training.limit_train_batches=many", "training.limit_train_batches takes a number"),
    ],
)
def test_numbers_of_batches_out_of_range(
    setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(main, [*TINY, setting, f"run={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()
