"""Training encoders for their vectors: the configuration, the export, its resumption, and the guard against leaks."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, command, read, refused

from ercfusion import doctor
from ercfusion._core.errors import ConfigError, PackError, RunError
from ercfusion.config.compose import Composer
from ercfusion.config.sections import Data
from ercfusion.config.settings import section_from, section_of
from ercfusion.data import open_corpus
from ercfusion.data.pack import MANIFEST, read_manifest, read_pack
from ercfusion.data.provenance import leaks
from ercfusion.extract import main as extract
from ercfusion.features.loading import load_data
from ercfusion.records.groups import differences, settings_of
from ercfusion.tasks.objective import check_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_store
from ercfusion.testing.twins.speech import write_emodb
from ercfusion.train import main
from ercfusion.training import run as training
from ercfusion.training.export import export_packs

SMALL = ("training.bootstrap=50", "training.threads=1", "trainer=cpu", "training.pictures=false")
NET = ("model.channels=2", "model.embedding=16", "training.max_epochs=2", "training.batch_size=16")


def data_settings(corpus: Path, protocol: str | None = None, **packs: str) -> Data:
    return Data(name="emodb", raw=str(corpus), protocol=protocol, encoder="", packs=packs)


class Place:
    """A twin of EmoDB, its log-mel pack, and a finished run."""

    def __init__(self, root: Path) -> None:
        self.root, self.corpus = root, write_emodb(root / "emodb")
        self.data = ("data=emodb", f"data.raw={self.corpus}")
        assert extract([*self.data, "features=logmel", f"out={root / 'logmel'}", "workers=1"]) == 0
        self.run = root / "run"
        self.train(self.run)

    def train(self, folder: Path, *more: str) -> None:
        fed = (
            ()
            if any(entry.startswith("data.packs.audio=") for entry in more)
            else (f"data.packs.audio={self.root / 'logmel'}",)
        )
        assert main(["task=metric_learning", *self.data, *fed, *SMALL, *NET, *more, f"run={folder}"]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("metric learning"))


# The configuration


def test_what_the_task_brings_and_what_is_typed() -> None:
    composer = Composer()
    plain = composer.compose([])
    assert plain["task"] == {"name": "recognition", "export": False}
    assert plain["objective"]["probe"] is False
    found = composer.compose(["task=metric_learning"])
    assert found["task"] == {"name": "metric_learning", "export": True}
    assert found["preset"]["model"] == found["model"]["name"] == "utterance_encoder"
    assert found["objective"]["probe"] is True
    assert {name: found["objective"]["weights"][name] for name in ("triplet", "covariance", "variance")} == {
        **{"triplet": 20.0, "covariance": 5.0, "variance": 1.0},
    }
    assert found["objective"]["triplet"]["adaptive"] is True
    assert found["objective"]["triplet"]["literal"] is False
    typed = composer.compose(
        ["task=metric_learning", "model=concat", "objective=default", "optimizer=sgd", "training.max_epochs=7"]
    )
    assert typed["model"]["name"] == "concat"
    assert typed["objective"] == plain["objective"]
    assert typed["optimizer"] == composer.compose(["optimizer=sgd"])["optimizer"]
    assert typed["training"]["max_epochs"] == 7
    assert composer.compose(["task=metric_learning", "task.export=false"])["task"]["export"] is False
    with pytest.raises(ConfigError, match="Did you mean 'metric_learning'"):
        composer.compose(["task=metric_lerning"])


def test_what_a_probe_and_an_export_decide() -> None:
    new = Composer().compose([])
    probed = Composer().compose(["objective.probe=true"])
    assert differences(settings_of(new), settings_of(probed)) == {"objective.probe": (False, True)}
    assert settings_of(Composer().compose(["task.export=true"])) == settings_of(new)


# The probe


def test_a_probe_sends_no_gradient_back() -> None:
    store = random_store((4, 5), tasks=[make_task()])
    batch = store.batch([0, 1])
    outputs = []
    for probe in (False, True):
        torch.manual_seed(0)
        recognizer = Recognizer("concat", store.inputs, make_task(), {"hidden": 8}, unimodal=True, probe=probe).eval()
        recognized = recognizer(batch)
        (recognized.logits.square().sum() + sum(x.square().sum() for x in recognized.unimodal.values())).backward()
        inside = [parameter.grad for parameter in recognizer.architecture.parameters()]
        assert all(gradient is not None for gradient in inside)  # distributed training waits for each
        assert any(bool(gradient.any()) for gradient in inside if gradient is not None) != probe
        heads = [*recognizer.head.parameters(), *recognizer.unimodal_heads.parameters()]
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in heads)
        recognizer.zero_grad(set_to_none=True)
        recognizer(batch).encoded.hidden.square().sum().backward()
        assert any(
            parameter.grad.any() for parameter in recognizer.architecture.parameters() if parameter.grad is not None
        )
        outputs.append(recognized.logits)
    torch.testing.assert_close(*outputs)


def test_a_probe_is_saved(tmp_path: Path) -> None:
    store = random_store((4, 5), tasks=[make_task()])
    folder = Recognizer("concat", store.inputs, make_task(), {"hidden": 8}, probe=True).save_pretrained(
        tmp_path / "new"
    )
    assert Recognizer.from_pretrained(folder).probe is True


def test_a_probe_needs_another_term(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    check_objective(section_of("objective", {"probe": True, "weights": {"triplet": 1.0}}))
    for weights in ({}, {"task": 1.0, "unimodal": 1.0, "triplet": 0.0}):
        with pytest.raises(ConfigError, match=r"objective\.probe=true: .* learns nothing"):
            check_objective(section_of("objective", {"probe": True, "weights": weights}))
    message = refused(main, [*TINY, "objective.probe=true", f"run={tmp_path / 'run'}"], capsys)
    assert "learns nothing" in message
    assert not (tmp_path / "run").exists()


# A run and its packs


def test_the_run_exports_what_the_model_says(place: Place) -> None:
    record = read(place.run / "record.json")
    table = read_pack(place.run / "packs" / "audio", corpus="emodb", width=16, verify="full")
    assert (table.modality, table.level, table.values.dtype.name) == ("audio", "utterance", "float32")
    assert len(table) == 70
    np.testing.assert_allclose(np.linalg.norm(table.values, axis=1), 1, atol=1e-6)
    recognizer = Recognizer.from_pretrained(place.run / "model")
    assert recognizer.probe
    loaded = load_data(section_from("data", record["config"]["data"]))
    for split in ("train", "dev", "test"):
        for conversation in loaded.splits[split][:3]:
            store = type(loaded.store(split))([conversation], loaded.tables, [loaded.protocol.task])
            with torch.no_grad():
                vector = recognizer(store.batch([0])).encoded.modalities["audio"][0]  # alone: no other's business
            row = table.rows([(conversation.id, "0")])[0]
            np.testing.assert_allclose(table.values[row], (vector / vector.norm()).numpy(), atol=1e-5)
    manifest = read_manifest(place.run / "packs" / "audio")
    assert (manifest["tool"], manifest["settings"]["run"]) == ("ercfusion-run", "run")
    assert manifest["settings"]["architecture"] == "utterance_encoder"
    assert set(manifest["sources"]) == {"model.safetensors", "config.json", "audio features"}
    (entry,) = manifest["trained_on"]
    assert (entry["corpus"], entry["protocol"], entry["split"]) == ("emodb", "emodb/7way-spk03-other", "train")
    assert set(entry["conversations"]) == {one.id for one in loaded.splits["train"]}
    assert record["packs"]["audio"] == {
        **{
            "folder": "packs/audio",
            "width": 16,
            "keys": 70,
            "sha256": manifest["files"]["values.safetensors"]["sha256"],
        },
    }


def test_training_is_of_the_terms_alone(place: Place) -> None:
    rows = [line.split(",") for line in (place.run / "metrics.csv").read_text().splitlines()]
    assert {"train/task", "train/triplet", "train/variance", "train/covariance"} <= set(rows[0])
    assert len(rows) == 3


def test_the_pack_is_fed_to_another_model(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = [*place.data, f"data.packs.audio={place.run / 'packs' / 'audio'}", *SMALL, "training.max_epochs=1"]
    with caplog.at_level(logging.WARNING, "ercfusion"):
        assert main([*arguments, "model=concat", f"run={tmp_path / 'fed'}"]) == 0
    assert "trained with the labels" not in caplog.text  # the same protocol
    (fed,) = read(tmp_path / "fed" / "record.json")["features"]
    assert fed["source"]["tool"] == "ercfusion-run"
    turns = [{"corpus": "emodb", "protocol": "emodb/7way-spk03-other", "split": "train", "turns": 56}]
    assert fed["source"]["trained_on"] == turns
    assert "leak" not in fed["source"]


def test_resuming_completes_the_export(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place.run, tmp_path / "whole")
    expected = read_pack(tmp_path / "whole" / "packs" / "audio")
    folder = tmp_path / "stopped"

    def die(*arguments: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training, "export", die)
        with pytest.raises(RuntimeError, match="killed"):
            place.train(folder)
    assert not (folder / "record.json").exists()
    assert not (folder / "packs").exists()
    # Another time the pack was there already, and the record was not.
    with monkeypatch.context() as patch:
        patch.setattr(training, "write_record", die)
        with pytest.raises(RuntimeError, match="killed"):
            main([f"resume={folder}"])
    assert (folder / "packs" / "audio" / MANIFEST).is_file()
    assert main([f"resume={folder}"]) == 0
    found = read_pack(folder / "packs" / "audio", verify="full")
    assert found.keys == expected.keys
    np.testing.assert_array_equal(found.values, expected.values)
    assert read(folder / "record.json")["packs"] == read(place.run / "record.json")["packs"]


def test_resuming_in_the_middle_is_exact(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops, masks and noise come from the random state that the trainer sets before every batch."""
    from runs import assert_same_run, keep_states, resume

    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        place.train(tmp_path / "whole", "model.frames=30")
    resume(tmp_path / "1")
    assert_same_run(tmp_path / "1", tmp_path / "whole")


def test_without_export_and_without_anything_to_export(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.train(tmp_path / "plain", "task.export=false", "training.max_epochs=1")
    assert not (tmp_path / "plain" / "packs").exists()
    assert "packs" not in read(tmp_path / "plain" / "record.json")
    message = refused(main, [*TINY, "model=majority", "task.export=true", f"run={tmp_path / 'no'}"], capsys)
    assert "majority with these options has no representation of a single modality" in message


def test_any_model_can_export(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "model=concat", "task.export=true", "training.max_epochs=1", f"run={folder}"]) == 0
    assert set(read(folder / "record.json")["packs"]) == {"text", "audio", "visual"}
    manifest = read_manifest(folder / "packs" / "visual")
    assert manifest["missing"]  # the generated corpus lacks modalities here and there
    assert {entry["reason"] for entry in manifest["missing"]} == {"without visual features"}
    utterances = sum(
        sum(map(len, part))
        for part in load_data(section_from("data", read(folder / "config.json")["data"])).splits.values()
    )
    assert manifest["keys"] + len(manifest["missing"]) == utterances


# Another corpus, and afterwards


@pytest.mark.slow
def test_export_for_another_corpus(place: Place, tmp_path: Path) -> None:
    other = write_emodb(tmp_path / "other", seed=1)
    assert extract(["data=emodb", f"data.raw={other}", "features=logmel", f"out={tmp_path / 'lm'}", "workers=1"]) == 0
    with pytest.raises(ConfigError, match="out= is missing"):
        export_packs(place.run, data=data_settings(other, audio=str(tmp_path / "lm")))
    made = export_packs(place.run, data=data_settings(other, audio=str(tmp_path / "lm")), out=tmp_path / "made")
    table = read_pack(made["audio"], corpus="emodb", fingerprint=open_corpus("emodb", other).fingerprint())
    assert len(table) == 70
    assert read_manifest(made["audio"])["trained_on"] == read_manifest(place.run / "packs" / "audio")["trained_on"]
    # Once more for its own corpus: the same values, and nothing is replaced unasked.
    again = export_packs(place.run, out=tmp_path / "again")
    kept = read_pack(place.run / "packs" / "audio")
    np.testing.assert_array_equal(read_pack(again["audio"]).values, kept.values)
    with pytest.raises(PackError, match="exists already"):
        export_packs(place.run, out=tmp_path / "again")
    export_packs(place.run, out=tmp_path / "again", overwrite=True)
    with pytest.raises(RunError, match="is not a folder"):
        export_packs(tmp_path / "nowhere")


# The guard


def test_what_was_trained_with_the_labels_to_be_predicted(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = f"data.packs.audio={place.run / 'packs' / 'audio'}"
    other = "data.protocol=emodb/7way-spk11"  # whose dev and test speakers were trained on
    with caplog.at_level(logging.WARNING, "ercfusion"):
        arguments = [*place.data, other, pack, *SMALL, "model=concat", "training.max_epochs=1"]
        assert main([*arguments, f"run={tmp_path / 'run'}"]) == 0
    warnings = [entry.getMessage() for entry in caplog.records if "trained with the labels" in entry.getMessage()]
    assert len(warnings) == 1
    assert "emodb/7way-spk11: 7 of dev and 7 of test (trained on" in warnings[0]
    assert "of emodb/7way-spk03-other)" in warnings[0]
    (fed,) = read(tmp_path / "run" / "record.json")["features"]
    assert fed["source"]["leak"] == {"dev": 7, "test": 7}
    status, out, _ = command(doctor.main, [*place.data, other, pack], capsys)
    assert status == 1
    assert "FAULT its vectors were trained with the labels" in out
    _, out, _ = command(doctor.main, [*place.data, pack], capsys)
    assert "trained with the labels" not in out


def test_what_is_inherited(place: Place, tmp_path: Path) -> None:
    """Vectors that were trained on vectors know what these know."""
    pack = f"data.packs.audio={place.run / 'packs' / 'audio'}"
    folder = tmp_path / "second"
    place.train(folder, pack, "data.protocol=emodb/7way-spk14", "training.max_epochs=1")
    entries = read_manifest(folder / "packs" / "audio")["trained_on"]
    assert [entry["protocol"] for entry in entries] == ["emodb/7way-spk14-other", "emodb/7way-spk03-other"]


def test_leaks_are_counted_by_turn(place: Place) -> None:
    corpus = open_corpus("emodb", place.corpus)
    splits = corpus.conversations(corpus.protocol("emodb/7way-spk16"))
    entries = read_manifest(place.run / "packs" / "audio")["trained_on"]
    assert leaks(entries, "emodb", splits) == {"test": 7}  # its dev speaker is 03, who was test
    assert leaks(entries, "ravdess", splits) == {}
    assert leaks([], "emodb", splits) == {}


def test_a_description_that_cannot_be_read(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.run / "packs" / "audio", tmp_path / "pack")
    manifest = read(tmp_path / "pack" / MANIFEST)
    for wrong in ("emodb", [{"corpus": "emodb"}], [{**manifest["trained_on"][0], "conversations": {"03a01Wa": "0"}}]):
        (tmp_path / "pack" / MANIFEST).write_text(json.dumps({**manifest, "trained_on": wrong}))
        with pytest.raises(PackError, match="key 'trained_on"):
            read_pack(tmp_path / "pack")
