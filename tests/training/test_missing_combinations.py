"""Laws of missing modalities together with views, other corpora, curricula, packs, teachers, stacking and ``-m``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, assert_same_run, command, history, keep_states, read, resume, stub_text_encoder, train
from safetensors.torch import load_file
from voted import write_voted

from ercfusion import evaluate
from ercfusion._core.errors import RunError
from ercfusion.config.missing_laws import parse
from ercfusion.config.settings import section_from
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import load_data
from ercfusion.metrics.cautions import MARK
from ercfusion.records.record import read_record, rounded_scores
from ercfusion.records.stacking import stack_runs
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.train import main
from ercfusion.training.export import vectors
from ercfusion.training.folder import TEACHER

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ("model=concat", "model.hidden=8", "data=demo/missing", "training.max_epochs=1")


def store_of(folder: Path, split: str) -> ConversationStore:
    return load_data(section_from("data", read_record(folder)["config"]["data"])).store(split)


def model_of(folder: Path) -> Recognizer:
    return Recognizer.from_pretrained(folder / "model")


@pytest.mark.slow
def test_several_tasks_and_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw, run = write_voted(tmp_path / "raw"), tmp_path / "run"
    typed = ["model=concat", "data=custom", f"data.raw={raw}", "data.tasks=[emotion,shares]", "data.views=[sets]"]
    typed += ["missing.train=rmm:0.5", "missing.dev=none", "training.max_epochs=2", "training.batch_size=2"]
    assert main([*typed, "training.bootstrap=50", "training.threads=1", "trainer=cpu", f"run={run}"]) == 0
    record = read_record(run)
    assert (list(record["others"]), list(record["views"])) == (["shares"], ["sets"])
    outputs = model_of(run).predict_all(store_of(run, "test").hidden(parse("rmm:0.5"), 0, "test"))
    assert rounded_scores(outputs["emotion"]) == record["metrics"]["test"]
    assert rounded_scores(outputs["shares"]) == record["others"]["shares"]["metrics"]["test"]
    for split in ("dev", "test"):
        status, out, _ = command(evaluate.main, [str(run), f"split={split}"], capsys)
        assert (status, out.count("equal to the run's record")) == (0, 3)
    assert command(evaluate.main, [str(run), "missing.eval=none"], capsys)[0] == 0
    report = read(run / "evaluation" / "test-none-sets.json")
    assert report["metrics"] != record["views"]["sets"]["metrics"]["test"]


def test_another_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(run, *SMALL, "missing=rate", "missing.eval=rmm:0.7")
    other = [str(run), "data=demo/far", "data.options.train=2", "data.options.dev=2", "data.options.test=2"]
    status, out, _ = command(evaluate.main, other, capsys)
    assert status == 0
    assert ", missing rmm:0.7\n" in out
    assert "own test are under" not in out
    settings = {**read_record(run)["config"]["data"], "protocol": "demo/far"}
    settings["options"] = dict.fromkeys(("train", "dev", "test"), 2)
    store = load_data(section_from("data", settings)).store("test")
    report = read(run / "evaluation" / "demo-far-test.json")
    assert report["metrics"] == rounded_scores(model_of(run).predict(store.hidden(parse("rmm:0.7"), 0, "test")))
    for law in ("pattern:text", "none"):
        out = command(evaluate.main, [*other, f"missing.eval={law}"], capsys)[1]
        assert f", missing {law}\n" in out
        assert "by the same rules; this column and own test are under missing rmm:0.7\n" in out


@pytest.mark.slow
def test_a_curriculum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*SMALL, "curriculum=emotion_shift", "missing=rate", "training.max_epochs=3", "training.patience=0"]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *settings)
    assert (tmp_path / "whole" / "curriculum.csv").is_file()
    resume(tmp_path / "1")
    assert_same_run(tmp_path / "1", tmp_path / "whole")
    train(tmp_path / "plain", *[typed for typed in settings if typed != "missing=rate"])
    assert history(tmp_path / "plain") != history(tmp_path / "whole")


def test_packs_have_no_holes(tmp_path: Path) -> None:
    """Vectors for another model come from all stored features: laws are for training and scoring."""
    run = tmp_path / "run"
    record = train(run, *SMALL, "missing.train=rmm:0.8", "task.export=true")
    store = store_of(run, "test")
    for name, (keys, values) in vectors(model_of(run), store).items():
        assert len(keys) == store.num_utterances
        stored = load_file(run / "packs" / name / "values.safetensors")
        (matrix,) = [value.numpy() for value in stored.values() if value.ndim == 2]
        np.testing.assert_allclose(matrix[-len(keys) :], values, atol=1e-6)
        assert record["packs"][name]["keys"] == len(matrix)
    again = train(tmp_path / "again", *SMALL, f"data.packs.text={run / 'packs/text'}", "missing=rate")
    assert again["missing"]["laws"]["test"] == "rate:0.5"


def test_a_teacher_under_a_law_teaches_from_complete_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    typed = ["recipe=guided", "recipe.stages.teacher.missing.train=rmm:0.8", "missing=rate", "missing.eval=none"]
    record = train(run, *SMALL, *typed)
    assert record["missing"]["laws"] == {"train": "rate:0.5", "dev": "rate:0.5", "test": "none"}
    stage = run / "stages" / "1-teacher"
    assert read(stage / "config.json")["missing"]["train"] == "rmm:0.8"
    store, stored = store_of(run, "train"), load_file(run / TEACHER)
    with torch.no_grad():
        outputs = model_of(stage)(store.batch(range(len(store))))
    torch.testing.assert_close(stored["logits emotion"], outputs.logits, rtol=1e-4, atol=1e-5)


def test_stacking_refuses_other_holes(tmp_path: Path) -> None:
    common = [*SMALL, "data.tasks=[vad]", "missing=rate"]
    for name, more in (
        ("one", []),
        ("two", ["seed=1"]),
        ("other", ["missing.eval=rmm:0.7"]),
        ("seed", ["missing.seed=1"]),
    ):
        train(tmp_path / name, *common, *more)
    assert set(stack_runs([[tmp_path / "one"], [tmp_path / "two"]])) == {"dev", "test"}
    for name, words in (("other", "test rmm:0.7; seed of the masks 0"), ("seed", "test rate:0.5; seed of the masks 1")):
        with pytest.raises(RunError, match=f"{name} with dev rate:0.5, {words}: these are different"):
            stack_runs([[tmp_path / "one"], [tmp_path / name]])


@pytest.mark.parametrize("typed", ["missing.train=none,rate:0.5", "missing=none,rate"])
def test_several_laws_in_one_command(typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = [*TINY, *SMALL, "workers=1", f"output={tmp_path}"]
    status, out, _ = command(main, ["-m", *fixed, typed], capsys)
    assert status == 0
    assert out.splitlines()[-1].startswith(f"{MARK} these runs were scored under different laws")
    laws = [read(path).get("missing", {}).get("laws", {}).get("test") for path in tmp_path.rglob("record.json")]
    assert sorted(laws, key=str) == [None, "rate:0.5"]
    out = command(main, ["-m", *fixed, typed, "missing.dev=none", "missing.eval=none"], capsys)[1]
    assert MARK + " these runs were scored" not in out
