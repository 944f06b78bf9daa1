"""Multi-label protocols of corpora, as generated twins: from files to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import read, stub_text_encoder

from ercfusion.batch.task import TaskSpec
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.features.loading import load_data
from ercfusion.metrics.registry import scores
from ercfusion.records.predictions import read_predictions
from ercfusion.testing.twins import write_twin
from ercfusion.train import main

MOSEI_LABELS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
ALIGNED = {"level": "sequence", "align": "words"}


def test_mosei_has_the_setting_of_carat(tmp_path: Path) -> None:
    """Six labels, sequences of three modalities with one step per word."""
    pytest.importorskip("h5py")
    raw = str(write_twin("mosei", tmp_path))
    data = load_data(Data(name="mosei", protocol="emotions", raw=raw, options=ALIGNED))
    assert (data.protocol.task.kind, data.protocol.task.output_names) == ("multi_label", MOSEI_LABELS)
    store = data.store("train")
    assert store.inputs.levels == dict.fromkeys(("text", "audio", "visual"), "sequence")
    # Aligned: a turn with all three modalities has as many steps in each of them.
    steps = np.stack([store.sequences[name].offsets.diff().numpy() for name in store.inputs.modalities])
    complete = store.available.all(1).numpy()
    assert complete.sum() > 0.8 * complete.size
    assert (steps[:, complete] == steps[0, complete]).all()
    assert steps.max() > 1
    corpus = open_corpus("mosei", raw)
    splits = corpus.conversations(corpus.protocol("emotions"))
    turns = [turn for video in splits["train"] for turn in video.turns]
    targets = store.targets["emotions"]
    assert bool(targets.valid.all())
    for row, turn in zip(targets.value.tolist(), turns, strict=True):
        names = {name for name, value in zip(MOSEI_LABELS, row, strict=True) if value}
        assert names == turn.targets["emotions"].value


@pytest.mark.parametrize(
    ("name", "protocol", "typed"),
    [
        pytest.param(
            "mosei",
            "emotions",
            [f"data.options.{key}={value}" for key, value in ALIGNED.items()],
            marks=pytest.mark.slow,
        ),
        ("m3ed", "multilabel", []),
        ("m3ed", "dialogue", []),
        ("meld", "sets", []),
    ],
    ids=["mosei", "m3ed", "m3ed dialogues", "meld sets"],
)
def test_from_files_to_scores(
    name: str, protocol: str, typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "mosei":
        pytest.importorskip("h5py")
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw, folder = write_twin(name, tmp_path / "raw"), tmp_path / "run"
    settings = ["model.width=16", "model.heads=2", "model.feedforward=16", "model.layers=1", "training.max_epochs=1"]
    settings += ["training.bootstrap=50", "training.pictures=false", "training.threads=1", "trainer=cpu"]
    corpus = [f"data={name}", f"data.protocol={protocol}", f"data.raw={raw}", *typed]
    assert main(["model=emotx", *corpus, *settings, f"run={folder}"]) == 0
    record: dict[str, Any] = read(folder / "record.json")
    assert record["protocol"].removesuffix("-other") == f"{name}/{protocol}"
    assert (record["task"]["kind"], record["selection"]["metric"]) == ("multi_label", "micro_f1")
    parts = read_predictions(folder / "predictions.parquet", TaskSpec.from_dict(record["task"]))
    assert parts["test"].thresholds is not None
    assert record["metrics"]["test"]["jaccard"] == pytest.approx(scores(parts["test"])["jaccard"], abs=1e-6)
