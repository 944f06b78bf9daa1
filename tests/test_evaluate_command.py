"""``python -m ercfusion.evaluate``: scores a finished run again, and refuses what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import command, read, refused, stub_text_encoder

from ercfusion.batch.task import TaskSpec
from ercfusion.evaluate import main
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import FORMAT
from ercfusion.testing.twins import write_twin
from ercfusion.train import main as train_main


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to write into."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, ["--help"], capsys)
    assert status == 0
    assert "--optimism" in out
    assert command(main, [], capsys)[:2] == (2, out)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_scores_equal_the_record(run_folder: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(run_folder)] if split == "test" else [str(run_folder), f"split={split}"]
    status, out, err = command(main, arguments, capsys)
    assert (status, err) == (0, "")
    record = read(run_folder / "record.json")
    report = read(run_folder / "evaluation" / f"{split}.json")
    assert report["metrics"] == record["metrics"][split]
    assert report["confusion"] == record["splits"][split]["confusion"]
    lines = out.splitlines()
    assert lines[0] == f"cogmen on demo/balanced, {split} split"
    assert lines[-2] == "equal to the run's record"
    assert lines[-1] == str(run_folder / "evaluation" / f"{split}.parquet")
    task = TaskSpec.from_dict(record["task"])
    written = read_predictions(run_folder / "evaluation" / f"{split}.parquet", task)
    stored = read_predictions(run_folder / "predictions.parquet", task)
    assert list(written) == [split]
    assert (written[split].output == stored[split].output).all()


def test_the_training_split(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, [str(run_folder), "split=train"], capsys)
    assert status == 0
    assert "record" not in out
    record = read(run_folder / "record.json")
    assert read(run_folder / "evaluation" / "train.json")["utterances"] == record["corpus"]["train"]["utterances"]


def test_another_model_than_the_recorded_one_is_noticed(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read(run_folder / "record.json")
    epochs = [f"epoch-{number:03d}" for number in (1, 2, 3) if number != record["selection"]["epoch"]]
    for name in ("model.safetensors", "config.json"):
        shutil.copy(run_folder / "checkpoints" / epochs[0] / name, run_folder / "model")
    status, out, _ = command(main, [str(run_folder)], capsys)
    assert status == 0
    assert "differs from the run's record by up to" in out


def test_optimism(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, [str(run_folder), "--optimism"], capsys)
    assert status == 0
    assert "never a result" in out
    record, report = read(run_folder / "record.json"), read(run_folder / "evaluation" / "optimism.json")
    assert set(report["test_by_epoch"]) == {"1", "2", "3"}
    best = max(report["test_by_epoch"].values())
    assert report["test_selected"] == best
    assert report["test_by_epoch"][str(report["test_selected_epoch"])] == best
    chosen = report["test_by_epoch"][str(record["selection"]["epoch"])]
    assert report["dev_selected"] == pytest.approx(chosen, abs=1e-6)
    assert report["optimism"] == pytest.approx(best - chosen, abs=1e-6)
    assert report["optimism"] >= -1e-6
    shutil.rmtree(run_folder / "checkpoints" / "epoch-002")
    assert "models of 2 of its 3 epochs" in refused(main, [str(run_folder), "--optimism"], capsys)
    shutil.rmtree(run_folder / "checkpoints")
    assert "training.keep_every_epoch=true" in refused(main, [str(run_folder), "--optimism"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split=tets"], "'split=tets': no such value. Did you mean 'test'?"),
        (["spilt=dev"], "evaluate has no setting 'spilt' and there is no such path. Did you mean 'split'?"),
        (["data.modalities=[text]"], "evaluate has no setting 'data.modalities'"),
        (["optimism=perhaps"], "Write --optimism"),
        (["--splitt"], "unknown flag"),
        (["another"], "evaluate takes RUN, found 2"),
        (["data.packs.text=/nowhere"], "/nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(main, [str(finished_run), *arguments], capsys)
    assert not (finished_run / "evaluation").exists()


def test_folders_that_hold_no_finished_run(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(main, [str(run_folder / "nowhere")], capsys)
    path = run_folder / "record.json"
    record = path.read_text()
    path.write_text(record[: len(record) // 2])
    assert "not valid JSON" in refused(main, [str(run_folder)], capsys)
    for content, found in (("[1]", "'list'"), ('{"format": 99}', "99")):
        path.write_text(content)
        assert f"record format {found}; this version reads {FORMAT}" in refused(main, [str(run_folder)], capsys)
    path.unlink()
    message = refused(main, [str(run_folder)], capsys)
    assert f"the run is not finished. Resume it with: python -m ercfusion.train resume={run_folder}" in message
    (run_folder / "config.json").unlink()
    assert "and no config.json: not a run folder" in refused(main, [str(run_folder)], capsys)


def test_a_damaged_model(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run_folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: the tensor" in refused(main, [str(run_folder)], capsys)
    weights.unlink()
    assert "model.safetensors is missing" in refused(main, [str(run_folder)], capsys)


def test_another_version_of_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw, folder = write_twin("meld", tmp_path / "meld"), tmp_path / "run"
    settings = ["data=meld", f"data.raw={raw}", "training.max_epochs=1", "training.bootstrap=20"]
    assert train_main([*settings, "model=concat", f"run={folder}"]) == 0
    # The corpus has moved: the recorded folder is of no use, the new one is.
    moved = tmp_path / "elsewhere"
    raw.rename(moved)
    assert "is not a folder" in refused(main, [str(folder)], capsys)
    assert "equal to the run's record" in command(main, [str(folder), f"data.raw={moved}"], capsys)[1]
    # Its content has changed: nothing is built or scored any more.
    other = write_twin("meld", tmp_path / "other", seed=1)
    packs = sorted((tmp_path / "packs").rglob("pack.json"))
    message = refused(main, [str(folder), f"data.raw={other}"], capsys)
    assert "trained on another version of meld" in message
    assert sorted((tmp_path / "packs").rglob("pack.json")) == packs


def test_another_sample_of_the_demo(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read(run_folder / "record.json")
    record["config"]["data"]["options"]["seed"] = 1
    (run_folder / "record.json").write_text(json.dumps(record))
    assert "another version of demo" in refused(main, [str(run_folder)], capsys)
