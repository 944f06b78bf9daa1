"""``evaluate RUN data=CORPUS``: another corpus through a label map, on generated twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import TINY, command, read, refused, stub_text_encoder

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.corpora import open_corpus
from ercfusion.evaluate import main
from ercfusion.metrics.classification import confusion_matrix
from ercfusion.metrics.registry import scores
from ercfusion.metrics.sums import SUMS
from ercfusion.records.crossing import pair_tasks
from ercfusion.records.predictions import read_predictions
from ercfusion.testing.twins import write_twin
from ercfusion.train import main as train_main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twins of four corpora, and the packs of their texts."""
    folder = tmp_path_factory.mktemp("crossing")
    for name in ("meld", "emorynlp", "dailydialog", "emotionlines"):
        write_twin(name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    stub_text_encoder(monkeypatch, place / "packs")
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)


def trained(place: Path, name: str, *settings: str) -> Path:
    folder = place / f"run-{'-'.join([name, *settings]).replace('/', '-').replace('=', '-')}"
    if not (folder / "record.json").is_file():
        few = [word for word in TINY if not word.startswith("data.")]
        corpus = name.partition("/")[0]
        words = [f"data={name}", f"data.raw={place / corpus}", "model=concat", "training.max_epochs=2", *settings]
        assert train_main([*few, *words, f"run={folder}"]) == 0
    return folder


def crossed(run: Path, place: Path, name: str, *words: str, capsys: Any) -> tuple[dict[str, Any], str, Path]:
    raw = place / name.partition("/")[0]
    status, out, err = command(main, [str(run), f"data={name}", f"data.raw={raw}", *words], capsys)
    assert status == 0, err
    parquet = Path(out.splitlines()[-1])
    return read(parquet.with_suffix(".json")), out, parquet


@pytest.mark.parametrize(
    ("name", "labels", "lost"),
    [
        ("emorynlp", ("joyful", "mad", "neutral", "sad", "scared"), {"peaceful", "powerful"}),
        ("dailydialog", get_schema("dailydialog7").labels, set()),
        ("emotionlines", get_schema("emotionlines7").labels, set()),
    ],
)
def test_a_run_on_meld_is_scored_elsewhere(
    place: Path, name: str, labels: tuple[str, ...], lost: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(place, "meld")
    report, out, parquet = crossed(run, place, name, capsys=capsys)
    assert tuple(report["labels"]) == labels
    assert set(report["dropped_labels"]) == lost
    assert report["dropped"] == sum(report["dropped_labels"].values())
    assert report["utterances"] + report["dropped"] == report["labelled"] <= report["utterances_of_split"]
    assert f"{report['dropped']:,} dropped" in out
    schema = LabelSchema("x", labels, neutral="neutral")
    part = read_predictions(parquet, TaskSpec("emotion", "single_label", schema))["test"]
    np.testing.assert_allclose(part.output.sum(axis=1), 1, atol=1e-6)
    assert int(part.valid.sum()) == report["utterances"]
    values = scores(part)
    assert {key: round(float(value), 6) for key, value in values.items()} == report["metrics"]
    sums = SUMS["confusion"].read(list(report["confusion"].values()), part.task)
    np.testing.assert_array_equal(sums.sum(axis=0), confusion_matrix(part))
    # The run's own test split: as recorded, and in the shared labels.
    assert report["own"]["recorded"] == read(run / "record.json")["metrics"]["test"]
    if not lost:
        assert report["own"]["metrics"] == pytest.approx(report["own"]["recorded"], abs=1e-6)
        assert list(report["own"]["per_class"]) == list(labels)
    assert sorted(path.name for path in (run / "evaluation").glob(f"{parquet.stem}.*")) == [
        f"{parquet.stem}.json",
        parquet.name,
    ]


def test_the_way_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, _, _ = crossed(trained(place, "emorynlp"), place, "meld", capsys=capsys)
    assert set(report["labels"]) == {"neutral", "fear", "sadness", "joy", "anger"}
    assert set(report["dropped_labels"]) == {"surprise", "disgust"}
    assert (report["map"]["source"], report["map"]["mapped"]) == ("emorynlp7", "outputs")


def test_probability_without_counterpart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(place, "meld")
    shared, _, _ = crossed(run, place, "emorynlp", capsys=capsys)
    wrong, _, parquet = crossed(run, place, "emorynlp", "unmapped=wrong", capsys=capsys)
    assert wrong["labels"] == [*shared["labels"], "unmapped"]
    assert wrong["dropped"] == shared["dropped"]
    assert wrong["metrics"]["accuracy"] <= shared["metrics"]["accuracy"]
    schema = LabelSchema("x", tuple(wrong["labels"]), neutral="neutral")
    part = read_predictions(parquet, TaskSpec("emotion", "single_label", schema))["test"]
    np.testing.assert_allclose(part.output.sum(axis=1), 1, atol=1e-6)
    assert (part.output[:, -1] > 0).all()


def test_sentiment_of_a_run_on_emotions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(place, "meld")
    report, _, _ = crossed(run, place, "emorynlp/3way", "split=dev", capsys=capsys)
    assert report["labels"] == ["neutral", "positive", "negative"]
    assert report["dropped"] == 0
    assert (run / "evaluation" / "emorynlp-3way-dev.json").is_file()
    # Sentiments against emotions: there is no map of the outputs, so the targets are mapped.
    report, _, _ = crossed(trained(place, "meld/3way"), place, "emorynlp", capsys=capsys)
    assert (report["map"]["source"], report["map"]["mapped"]) == ("emorynlp7", "targets")


@pytest.mark.parametrize("protocol", ["distribution", "multilabel"])
def test_votes_and_label_sets(place: Path, protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(place, f"emotionlines/{protocol}")
    report, _, _ = crossed(run, place, f"emotionlines/{protocol}", capsys=capsys)
    assert report["metrics"] == pytest.approx(report["own"]["recorded"], abs=1e-6)
    message = refused(main, [str(run), "data=emorynlp", f"data.raw={place / 'emorynlp'}"], capsys)
    assert "no task of one kind with labels. Use another corpus." in message
    # A run on single labels is scored against that task of the protocol.
    report, _, _ = crossed(trained(place, "meld"), place, f"emotionlines/{protocol}", capsys=capsys)
    assert report["protocol"].startswith("emotionlines/majority")


def test_a_protocol_with_such_a_task_is_named() -> None:
    record = {"protocol": "meld/7way"}
    task = TaskSpec("emotion", "single_label", get_schema("meld7"))
    corpus = open_corpus("iemocap")
    with pytest.raises(
        ConfigError, match=r"predicts emotion \(single_label\), and iemocap/vad-ses5 has .*Use data=iemo"
    ):
        pair_tasks(record, [task], corpus, replace(corpus.protocol("vad-ses5"), others=()), "renormalize")
    (pair,) = pair_tasks(record, [task], corpus, corpus.protocol("4way-ses5"), "renormalize")
    assert pair.shared.schema.labels == ("happy", "sad", "neutral", "angry")


def test_shared_dialogues_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(place, "meld")
    report, out, _ = crossed(run, place, "emotionlines", capsys=capsys)
    assert "warning: MELD was made from the Friends dialogues of EmotionLines." in out
    # The twins share sentences, too.
    overlap = report["overlap"]
    assert 0 < overlap["in_training"] <= overlap["texts"]
    assert overlap["unseen_conversations"] < overlap["conversations"]
    assert f"{overlap['in_training']:,} of {overlap['texts']:,} texts of at least 4 words" in out
    report, out, _ = crossed(run, place, "dailydialog", capsys=capsys)
    assert "made from" not in out
    moved = place / "meld-moved"
    (place / "meld").rename(moved)
    try:  # without the run's files nothing is compared
        report, out, _ = crossed(run, place, "emotionlines", capsys=capsys)
    finally:
        moved.rename(place / "meld")
    assert report["overlap"] is None
    assert "unseen" not in out


def test_other_features_are_refused(
    place: Path, finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(place, "meld")
    raw = f"data.raw={place / 'emorynlp'}"
    crossed(run, place, "emorynlp", capsys=capsys)
    emorynlp = next((place / "packs").rglob("emorynlp/*/pack.json")).parent
    from ercfusion.data.pack import read_pack, write_pack

    table = read_pack(emorynlp)

    def written(name: str, **changes: Any) -> str:
        source = {"tool": "sentence-transformers", "encoder": "all-MiniLM-L6-v2", **changes}
        write_pack(
            place / name,
            table,
            tool=source["tool"],
            tool_version="1",
            settings={"encoder": source["encoder"]},
            corpus="emorynlp",
            fingerprint=table.source["corpus_fingerprint"],
            licence="none",
        )
        return f"data.packs.text={place / name}"

    message = refused(main, [str(run), "data=emorynlp", raw, written("e5", encoder="e5-small")], capsys)
    assert "text features of emorynlp: encoder e5-small" in message
    assert "the run was trained with encoder all-MiniLM-L6-v2" in message
    table.values = table.values[:, :5]
    message = refused(main, [str(run), "data=emorynlp", raw, written("narrow")], capsys)
    assert "5 dimensions per utterance; the run was trained with 8 dimensions per utterance" in message
    message = refused(main, [str(finished_run), "data=meld", f"data.raw={place / 'meld'}"], capsys)
    assert "data.modalities: meld/7way has no 'audio'" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unmapped=wrong"], "unmapped is about another corpus. Add data=CORPUS, or remove it."),
        (["data.protocol=3way"], "data.protocol is about another corpus"),
        (["data.options.seed=1"], "data.options.seed is about another corpus"),
        (["data=demo", "--optimism"], "--optimism is about the run's own corpus"),
        (["data=demo", "unmapped=keep"], "no such value. Choose from: renormalize, wrong"),
        (["data=demoo"], "demoo"),
        (["data=demo", "data.options.sead=1"], "Did you mean"),
        (["data=demo/speakers"], "has no protocol 'demo/speakers'"),
    ],
)
def test_mistakes(words: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(main, [str(finished_run), *words], capsys)
    assert not (finished_run / "evaluation").exists()
