"""Students guided by another model: the recipe's stage, or a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, assert_same_run, command, history, keep_states, read, refused, resume, train
from safetensors.torch import load_file, save_file

from ercfusion.config.compose import Composer
from ercfusion.config.settings import Config
from ercfusion.config.stages import stage_configs
from ercfusion.evaluate import main as evaluate
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.groups import data_of
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.train import main
from ercfusion.training import teacher as teaching
from ercfusion.training.folder import TEACHER

pytestmark = pytest.mark.usefixtures("no_pictures")

STUDENT = ("model=concat", "model.hidden=8", "data.modalities=[text]", "training.max_epochs=2")
GUIDED = (*STUDENT, "recipe=guided", "recipe.stages.teacher.training.max_epochs=3")
WEIGHTS = ("objective.weights.guidance=0.5", "objective.weights.distillation=2")


def test_a_configuration_of_the_recipe() -> None:
    config = Composer().compose(
        ["model=concat", "recipe=guided", "data.modalities=[text]", "missing.train=rate:0.5", "training.start_from=old"]
    )
    assert config["training"]["teacher"] == "teacher"
    assert {"guidance": 1.0, "distillation": 1.0}.items() <= config["objective"]["weights"].items()
    (stage,) = stage_configs(config).values()
    assert stage["data"]["modalities"] is None
    assert not {"guidance", "distillation"} & {name for name, weight in stage["objective"]["weights"].items() if weight}
    assert "missing" not in stage
    assert not {"teacher", "start_from"} & set(stage["training"])
    assert config["training"]["start_from"] == "old"
    assert Config.from_dict(config).to_dict() == config
    several = Composer().compose(
        [
            *("model=concat", "recipe=guided", "recipe.stages.before.training.max_epochs=2", "training.start_from=old"),
            *(
                "recipe.stages.before.objective.weights.guidance=0",
                "recipe.stages.before.objective.weights.distillation=0",
            ),
        ]
    )
    stages = stage_configs(several)
    assert {name: stage["training"].get("start_from") for name, stage in stages.items()} == {
        "teacher": None,
        "before": "old",
    }


def test_a_stage_teaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path, run)
        record = train(run, *GUIDED, "recipe.stages.teacher.model=bclstm", "training.patience=0")
    stage = run / "stages" / "1-teacher"
    assert [len(history(folder)) for folder in (stage, run)] == [3, 2]
    assert record["teacher"]["model"] == "bclstm"
    assert record["teacher"]["modalities"] == ["text", "audio", "visual"]
    assert record["teacher"]["sha256"] == record["recipe"]["stages"][0]["sha256"]
    assert [feature["modality"] for feature in record["features"]] == ["text"]
    assert "start" not in record  # the student begins with random weights
    assert {"train/guidance", "train/distillation"} <= history(run)[0].keys()
    assert "train/guidance" not in history(stage)[0]
    teacher = Recognizer.from_pretrained(stage / "model")
    assert teacher.config["architecture"] == "bclstm"
    # What the student learned from: the teacher's outputs for each utterance.
    stored = load_file(run / TEACHER)
    assert list(stored["hidden"].shape) == [record["corpus"]["train"]["utterances"], teacher.architecture.hidden_size]
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "objective.teaching.project.weight" in state
    assert not [name for name in state if name.startswith("teacher")]
    assert not [name for name in Recognizer.from_pretrained(run / "model").state_dict() if "project." in name[:8]]
    for number in ("2", "4"):  # within the stage, and after the first epoch of the student
        shutil.copytree(tmp_path / number, tmp_path / f"resumed {number}")
        resume(tmp_path / f"resumed {number}")
        assert_same_run(tmp_path / f"resumed {number}", run)
        assert (tmp_path / f"resumed {number}" / TEACHER).read_bytes() == (run / TEACHER).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(folder, "model=bclstm", "model.hidden=6", "training.max_epochs=1", "training.pictures=false")
    return folder


def test_a_finished_run_teaches(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        record = train(whole, *STUDENT, *WEIGHTS, f"training.teacher={source}", "task.export=true")
    assert record["teacher"]["model"] == "bclstm"
    assert record["teacher"]["source"] == "source"
    assert "recipe" not in record
    assert (whole / "packs/text").is_dir()
    assert data_of(record)["teacher"] == "bclstm on text, audio, visual"
    plain = train(tmp_path / "plain", *STUDENT)
    assert "teacher" not in plain
    assert history(tmp_path / "plain") != history(whole)
    # Neither a resumed nor a finished run needs the teacher.
    shutil.rmtree(source)
    resume(tmp_path / "1")
    assert_same_run(tmp_path / "1", whole)
    assert command(evaluate, [str(whole)], capsys)[0] == 0
    write_archive(tmp_path / "archive.json", [record])
    (archived,) = read_archive(tmp_path / "archive.json")
    assert archived["teacher"] == record["teacher"]
    assert "teacher" not in archived["config"]["training"]


def test_stored_outputs_are_those_of_the_teacher(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", *STUDENT, *WEIGHTS, f"training.teacher={finished}")
    from ercfusion.features.loading import load_data

    data = load_data(Config.from_dict(read(finished / "config.json")).data)
    store = data.store("train")
    recognizer = Recognizer.from_pretrained(finished / "model")
    stored = load_file(tmp_path / "run" / TEACHER)
    first = 0
    for number, length in enumerate(store.lengths):
        with torch.no_grad():
            recognized = recognizer(store.batch([number]))
        rows = slice(first, first + length)
        torch.testing.assert_close(stored["hidden"][rows], recognized.encoded.hidden)
        torch.testing.assert_close(stored["logits emotion"][rows], recognized.logits)
        first += length
    assert first == len(stored["hidden"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["data=demo/far"], "its protocol is demo/balanced, the student's demo/far. Choose a teacher of the same"),
        (["data.options.seed=1"], "other utterances of the train split. Choose a teacher of the same corpus"),
        (["data.tasks=[valence]"], "it did not learn the task 'valence', only emotion. Choose another teacher"),
    ],
)
def test_another_corpus_protocol_or_task(
    typed: list[str], message: str, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = [*TINY, *STUDENT, *WEIGHTS, f"training.teacher={finished}", *typed, f"run={tmp_path / 'run'}"]
    assert message in refused(main, arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_other_labels_outputs_and_places(finished: Path, tmp_path: Path, capsys: Any) -> None:
    def message(place: Path | str, *typed: str) -> str:
        arguments = [*TINY, *STUDENT, *WEIGHTS, f"training.teacher={place}", *typed, f"run={tmp_path / 'run'}"]
        return refused(main, arguments, capsys)

    assert "is neither a stage of the recipe nor a folder" in message("teachr")
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    (other / "record.json").unlink()
    assert "the run is not complete. Resume it, or choose a finished run." in message(other)
    config = read(other / "model/config.json")
    labels = config["task"]["schema"]["labels"]
    labels[0], labels[1] = labels[1], labels[0]
    (other / "model/config.json").write_text(json.dumps(config))
    shutil.copy(finished / "record.json", other)
    assert "its task 'emotion' has other labels, kind or range." in message(other)
    assert "training.teacher has no effect without a weight" in message(
        finished, *(f"objective.weights.{name}=0" for name in ("guidance", "distillation"))
    )


def test_other_numbers_of_outputs(tmp_path: Path, capsys: Any) -> None:
    regression = ["data.tasks=[vad]"]
    train(tmp_path / "teacher", *STUDENT, *regression, "objective.regression_loss=gaussian", "training.max_epochs=1")
    arguments = [*TINY, *STUDENT, *WEIGHTS, *regression, f"training.teacher={tmp_path / 'teacher'}"]
    problem = refused(main, [*arguments, f"run={tmp_path / 'run'}"], capsys)
    assert "6 outputs, the student's 3. Set the objective.regression_loss of the teacher." in problem


def test_outputs_that_are_not_finite(finished: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    recognizer = Recognizer.from_pretrained(broken / "model")
    with torch.no_grad():
        recognizer.head.linear.bias[0] = float("nan")
    recognizer.save_pretrained(broken / "model")
    arguments = [*TINY, *STUDENT, *WEIGHTS, f"training.teacher={broken}", f"run={tmp_path / 'run'}"]
    message = refused(main, arguments, capsys)
    assert "training utterances are not finite (first: " in message
    assert not (tmp_path / "run").exists()


def test_utterances_that_the_teacher_does_not_know(
    finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teaching._keys
    calls = []

    def keys(store: Any) -> list[tuple[str, str]]:
        calls.append(store)
        # The teacher's own store comes first.
        return original(store)[1:] if len(calls) == 1 else original(store)

    monkeypatch.setattr(teaching, "_keys", keys)
    arguments = [*TINY, *STUDENT, *WEIGHTS, f"training.teacher={finished}", f"run={tmp_path / 'run'}"]
    assert "it does not know 1 training utterances (first: " in refused(main, arguments, capsys)


def test_a_changed_file_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *STUDENT, *WEIGHTS, f"training.teacher={finished}")
    path = tmp_path / "1" / TEACHER
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "teacher.safetensors was changed or damaged: its checksum differs" in refused(
        main, [f"resume={tmp_path / '1'}"], capsys
    )
    save_file({"hidden": torch.zeros(2, 2)}, path)
    assert refused(main, [f"resume={tmp_path / '1'}"], capsys)
