"""Runs under laws of missing modalities: training, selection, records, and scores of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, assert_same_run, command, history, keep_states, read, refused, resume, train

from ercfusion import evaluate, load
from ercfusion.config.missing_laws import parse
from ercfusion.config.settings import Config, section_from
from ercfusion.data.features import FeatureTable
from ercfusion.features.loading import load_data
from ercfusion.metrics.registry import scores
from ercfusion.records.missing import Scoring, hidden_store, missing_lines, unseen_text, unseen_utterances
from ercfusion.records.record import read_record, rounded_scores
from ercfusion.records.robust_runs import exact_scores
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.train import main

pytestmark = pytest.mark.usefixtures("no_pictures")

RATE = ("missing=rate", "missing.eval=rmm:0.7", "missing.seed=5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: trained and selected under ``rate:0.5``, tested under ``rmm:0.7``."""
    folder = tmp_path_factory.mktemp("missing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
        train(folder, "model=bclstm", *RATE, "training.max_epochs=2", "training.keep_every_epoch=true")
    return folder


def store_of(folder: Path, split: str) -> Any:
    return load_data(section_from("data", read_record(folder)["config"]["data"])).store(split)


def test_the_masks_are_drawn_again_from_the_record_alone(trained: Path) -> None:
    record = read_record(trained)
    missing = record["missing"]
    assert missing["laws"] == {"train": "rate:0.5", "dev": "rate:0.5", "test": "rmm:0.7"}
    recognizer = Recognizer.from_pretrained(trained / "model")
    for split in ("dev", "test"):
        complete = store_of(trained, split)
        hidden = complete.hidden(parse(missing["laws"][split]), missing["seed"], split)
        assert rounded_scores(recognizer.predict(hidden)) == record["metrics"][split]
        assert rounded_scores(recognizer.predict(complete)) != record["metrics"][split]
    unseen = missing["unseen"]
    assert unseen == {"test": unseen_utterances(hidden)}
    assert 0 < unseen["test"]["utterances"] < unseen["test"]["of"] == complete.num_utterances
    # The exact posterior of the record sees the same holes.
    best, data = record["corpus"]["reachable"]["test"], load_data(section_from("data", record["config"]["data"]))
    assert best == data.corpus.reachable(data.protocol, "test", hidden.seen)
    assert best["accuracy"] < data.corpus.reachable(data.protocol, "test")["accuracy"]
    assert record["corpus"]["reachable_accuracy"] == best["accuracy"]


def test_the_epoch_is_chosen_under_the_law_of_dev(trained: Path) -> None:
    record = read_record(trained)
    epoch = record["selection"]["epoch"]
    recognizer = Recognizer.from_pretrained(trained / f"checkpoints/epoch-{epoch:03d}")
    dev = hidden_store(store_of(trained, "dev"), Config.from_dict(record["config"]).missing, "dev")
    row = history(trained)[epoch - 1]
    assert float(row["dev/weighted_f1"]) == pytest.approx(scores(recognizer.predict(dev))["weighted_f1"], abs=1e-12)


def test_summary_and_card_name_the_laws(trained: Path) -> None:
    record = read_record(trained)
    first, second = missing_lines(record)
    assert first == "missing modalities: train rate:0.5, dev rate:0.5, test rmm:0.7; seed of the masks 5"
    unseen = record["missing"]["unseen"]["test"]
    assert second == f"missing on test: {unseen_text(unseen)}"
    for line in (first, second):
        assert line in load(trained).summary()
    card = (trained / "model" / "README.md").read_text()
    assert "- **Missing modalities**: train rate:0.5, dev rate:0.5, test rmm:0.7; seed of the masks 5\n" in card
    assert f"- **Missing on test**: {unseen_text(unseen)}\n" in card


def test_the_sentence_about_utterances_without_any_modality() -> None:
    start = (
        "the model saw no modality in 12 of 1,500 utterances; its answer there is a prior, which depends on no input"
    )
    assert unseen_text({"utterances": 12, "whole": 12, "of": 1500}) == start
    assert (
        unseen_text({"utterances": 12, "whole": 3, "of": 1500})
        == f"{start}, or follows from the rest of the conversation"
    )


def test_statistics_and_priors_come_from_complete_data(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain", "model=bclstm", "training.max_epochs=1")
    models = [Recognizer.from_pretrained(folder / "model") for folder in (trained, tmp_path / "plain")]
    states = [model.standardize.state_dict() for model in models]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_run_without_laws_has_no_new_key(tmp_path: Path) -> None:
    record = train(tmp_path / "run", "model=majority")
    assert "missing" not in record
    assert "missing" not in record["config"]
    seed = train(tmp_path / "seed", "model=majority", "missing.seed=3", "missing.eval=rate:0")
    assert "missing" not in seed
    assert seed["metrics"] == record["metrics"]


def test_a_resumed_run_draws_the_same_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["model=concat", "missing=rate", "training.modality_dropout=0.2", "training.accumulate_grad_batches=2"]
    settings += ["training.max_epochs=3", "training.patience=0"]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        record = train(tmp_path / "whole", *settings)
    for epoch in ("1", "2"):
        resumed = resume(tmp_path / epoch)
        assert_same_run(tmp_path / epoch, tmp_path / "whole")
        assert resumed["missing"] == record["missing"]
    # The masks matter: without the law the run is another one.
    train(tmp_path / "plain", *[text for text in settings if text != "missing=rate"])
    assert history(tmp_path / "plain") != history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("law", ["patterns:0.7", "rmfm", "rmfm-released", "block:0.5", "tmfm:0.5", "stmfm:0.5"])
def test_every_law_trains_and_reproduces(law: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(tmp_path / "run", "model=concat", f"missing.train={law}", "training.max_epochs=1")
    assert record["missing"]["laws"] == dict.fromkeys(("train", "dev", "test"), law)
    assert "equal to the run's record" in command(evaluate.main, [str(tmp_path / "run")], capsys)[1]


def test_another_law_of_a_resumed_run_is_refused(trained: Path, tmp_path: Path) -> None:
    from ercfusion.records.groups import changed_settings, settings_of

    record = read_record(trained)
    config = Config.from_dict(record["config"]).to_dict()
    other = {**config, "missing": {**config["missing"], "train": "rate:0.6", "grid": ["none"]}}
    assert changed_settings(config, other) == {
        "missing.train": ("rate:0.5", "rate:0.6"),
        "missing.grid": (None, ["none"]),
    }
    # Further scores under a grid are no other experiment.
    assert settings_of({**config, "missing": {**config["missing"], "grid": ["none"]}}) == settings_of(config)


# Mistakes that are visible without features


@pytest.fixture
def no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_tables(*_: Any) -> None:
        raise AssertionError("features were read")

    monkeypatch.setattr("ercfusion.features.loading.load_tables", read_tables)


@pytest.mark.usefixtures("no_features")
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "missing.train=pattern:mocap",
            "missing.train 'pattern:mocap': no modality 'mocap' here, only text, audio, visual",
        ),
        ("missing.grid=[pattern:text+mocap]", "missing.grid 'pattern:text+mocap': no modality 'mocap' here"),
        ("missing.train=rate:1.5", "missing.train 'rate:1.5': rate must be from 0 to 1, found 1.5"),
        ("missing.dev=pattern:", "missing.dev 'pattern:' leaves nothing"),
    ],
)
def test_mistakes_are_named_before_features_are_read(
    typed: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(main, [typed, f"run={tmp_path}/run"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_features")
def test_a_law_needs_a_modality_that_the_run_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["data.modalities=[text]", "missing.eval=pattern:audio", f"run={tmp_path}/run"]
    assert "missing.eval 'pattern:audio': no modality 'audio' here, only text." in refused(main, typed, capsys)


def test_the_law_of_a_stage_is_checked_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["recipe.stages.first.missing.train=pattern:mocap", f"run={tmp_path}/run"]
    assert "missing.train 'pattern:mocap': no modality 'mocap' here" in refused(main, [*TINY, *typed], capsys)
    assert not (tmp_path / "run").exists()


# Finished runs


def test_evaluate_repeats_the_run_under_its_own_laws(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(trained)
    for split, law in (("dev", "rate:0.5"), ("test", "rmm:0.7")):
        status, out, err = command(evaluate.main, [str(trained), f"split={split}"], capsys)
        assert (status, err) == (0, "")
        assert out.splitlines()[0] == f"bclstm on demo/balanced, {split} split, missing {law}"
        assert "equal to the run's record" in out
        report = read(trained / "evaluation" / f"{split}.json")
        assert report["metrics"] == record["metrics"][split]
        assert (report["missing"]["law"], report["missing"]["seed"]) == (law, 5)
    assert f"note: {unseen_text(record['missing']['unseen']['test'])}" in out
    assert report["missing"]["unseen"] == record["missing"]["unseen"]["test"]
    # The same law, typed: the same files.
    again = command(evaluate.main, [str(trained), "missing.eval=rmm:.7", "missing.seed=5"], capsys)[1]
    assert "equal to the run's record" in again
    assert str(trained / "evaluation" / "test.parquet") in again


@pytest.mark.parametrize(
    ("typed", "title", "name"),
    [
        (["missing.eval=none"], ", missing none", "test-none"),
        (["missing.eval=pattern:audio+text"], ", missing pattern:text+audio", "test-pattern-text+audio"),
        (["missing.seed=6"], ", missing rmm:0.7, seed 6", "test-rmm-0.7-seed6"),
        (["missing.policy=zero"], ", missing rmm:0.7, policy zero", "test-rmm-0.7-zero"),
    ],
)
def test_evaluate_under_another_law(
    typed: list[str], title: str, name: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = command(evaluate.main, [str(trained), *typed], capsys)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"bclstm on demo/balanced, test split{title}"
    assert out.splitlines()[1].split() == ["scored", "recorded"]
    assert "equal to" not in out
    report, record = read(trained / "evaluation" / f"{name}.json"), read_record(trained)
    assert report["metrics"] != record["metrics"]["test"]
    assert (trained / "evaluation" / f"{name}.parquet").is_file()


def test_a_pattern_reads_only_the_features_of_its_modalities(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_tables: list[list[str]] = []

    def and_note(original: Any) -> Any:
        def load_tables(*arguments: Any) -> list[FeatureTable]:
            tables: list[FeatureTable] = original(*arguments)
            read_tables.append([table.modality for table in tables])
            return tables

        return load_tables

    from ercfusion.features import loading

    monkeypatch.setattr(loading, "load_tables", and_note(loading.load_tables))
    assert command(evaluate.main, [str(trained), "missing.eval=pattern:audio"], capsys)[0] == 0
    assert read_tables == [["audio"]]
    monkeypatch.undo()
    # The same as the masks on complete data.
    report = read(trained / "evaluation" / "test-pattern-audio.json")
    hidden = store_of(trained, "test").hidden(parse("pattern:audio"), 0, "test")
    assert rounded_scores(Recognizer.from_pretrained(trained / "model").predict(hidden)) == report["metrics"]


def test_the_only_modality_of_a_run_may_be_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    record = train(folder, "model=concat", "data.modalities=[text]", "training.max_epochs=1")
    status, out, err = command(evaluate.main, [str(folder), "missing.eval=rmm:1"], capsys)
    assert (status, err) == (0, "")
    report = read(folder / "evaluation" / "test-rmm-1.json")
    count = store_of(folder, "test").num_utterances
    assert report["missing"]["unseen"] == {"utterances": count, "whole": count, "of": count}
    assert (
        f"the model saw no modality in {count} of {count} utterances; its answer there is a prior, which depends on no "
        "input\n" in out
    )
    # One answer for all utterances, as that of majority.
    predictions = load(folder).recognizer.predict(store_of(folder, "test").hidden(parse("rmm:1"), 0, "test"))
    assert (predictions.output == predictions.output[0]).all()
    assert report["metrics"] != record["metrics"]["test"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "missing.eval=pattern:adio",
            "missing.eval 'pattern:adio': no modality 'adio' here, only text, audio, visual. Did",
        ),
        ("missing.eval=pattern:", "missing.eval 'pattern:' leaves nothing"),
        ("missing.eval=rate:2", "missing.eval 'rate:2': rate must be from 0 to 1, found 2"),
        ("missing.eval=", "missing.eval '': no law has the name ''"),
        ("missing.seed=-1", "missing.seed takes a whole number of at least 0, not '-1'"),
        ("missing.policy=mena", "'missing.policy=mena': no such value. Did you mean 'mean'?"),
        ("missing.policy=learned", "has no vectors for it"),
        ("missing.train=none", "evaluate has no setting 'missing.train'"),
        ("hide=audio", "evaluate has no setting 'hide'"),
    ],
)
def test_mistakes_of_evaluate(typed: str, message: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(evaluate.main, [str(trained), typed], capsys)


def test_optimism_is_measured_under_the_laws_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(evaluate.main, [str(trained), "--optimism"], capsys)[0] == 0
    report, record = read(trained / "evaluation" / "optimism.json"), read_record(trained)
    metric, epoch = record["selection"]["metric"], record["selection"]["epoch"]
    assert report["test_by_epoch"][str(epoch)] == record["metrics"]["test"][metric]
    message = refused(evaluate.main, [str(trained), "--optimism", "missing.eval=none"], capsys)
    assert "--optimism scores the run unchanged. Remove missing.eval=, or --optimism." in message


def test_several_tasks_and_views_under_a_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    settings = ["model=concat", "data.tasks=[emotion,valence]", "missing.train=rmm:0.6", "training.max_epochs=1"]
    record = train(folder, *settings)
    out = command(evaluate.main, [str(folder)], capsys)[1]
    assert out.count("equal to the run's record") == len(record["others"]) + 1 == 2
    assert command(evaluate.main, [str(folder), "missing.eval=pattern:text"], capsys)[0] == 0
    names = sorted(path.name for path in (folder / "evaluation").glob("*.json"))
    assert names == ["test-pattern-text-valence.json", "test-pattern-text.json", "test-valence.json", "test.json"]


def test_names_of_files_are_safe_and_distinct(trained: Path) -> None:
    record = read_record(trained)
    typed = ["none", "rate:0.5", "rate:0.25", "pattern:text+audio", "pattern:text", "rmm:1e-7", "rmfm", "rmfm:0.5"]
    parts = ["-".join(Scoring.of(record, "test", law).file_parts) for law in typed]
    assert len(set(parts)) == len(parts)
    assert all(part.replace("-", "").replace("+", "").replace(".", "").isalnum() for part in parts)


def test_the_exact_posterior_sees_the_modalities_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", "data.protocol=missing", "data.modalities=[audio]", "training.max_epochs=1")
    record = read_record(tmp_path / "run")
    data = load_data(section_from("data", record["config"]["data"]))
    best, complete = record["corpus"]["reachable"], data.corpus.reachable(data.protocol, "test")
    for split in ("dev", "test"):
        audio = data.corpus.ceilings(data.protocol, split)["audio"]
        assert best[split] == pytest.approx(audio)
    assert best["test"]["accuracy"] < complete["accuracy"]
    # It knows nothing of a modality that a pack adds.
    seen = data.store("test").seen
    monkeypatch.setattr(data.corpus, "features", None)  # only names are needed: files of features may be gone
    exact = exact_scores(data, "test")
    assert exact is not None
    assert exact({**seen, "gait": seen["audio"]}) == best["test"]
