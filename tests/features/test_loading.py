from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import StubEncoder, stub_text_encoder

from ercfusion._core.errors import ConfigError, CorpusNotFoundError, ErcfusionError, PackError
from ercfusion.config.sections import Data
from ercfusion.data.features import FeatureTable
from ercfusion.data.pack import write_pack
from ercfusion.features.loading import LoadedData, load_data
from ercfusion.testing.twins import write_twin

SIZES = {"train": 3, "dev": 2, "test": 2}


def settings(name: str = "demo", **changed: Any) -> Data:
    return Data(name=name, **{"options": dict(SIZES) if name == "demo" else {}, **changed})


def pack(folder: Path, data: LoadedData, modality: str, fingerprint: str | None = None) -> str:
    keys = [key for split in data.splits.values() for conversation in split for key in conversation.keys()]  # noqa: SIM118
    values = np.arange(5 * len(keys), dtype=np.float32).reshape(-1, 5)
    corpus = data.corpus
    made = {"tool": "test", "tool_version": "1", "settings": {}, "corpus": corpus.name}
    table = FeatureTable(modality, keys, values)
    return str(write_pack(folder, table, **made, fingerprint=fingerprint or corpus.fingerprint()))


def test_all_modalities_of_the_protocol_by_default() -> None:
    data = load_data(settings())
    assert data.protocol.id == "demo/balanced"
    assert [table.modality for table in data.tables] == ["text", "audio", "visual"]
    assert {split: len(part) for split, part in data.splits.items()} == SIZES
    assert {split: len(data.store(split)) for split in SIZES} == SIZES
    assert load_data(settings(protocol="far")).protocol.id == "demo/far"


@pytest.mark.parametrize("asked", [["visual", "text"], ["audio"]])
def test_modalities_come_in_the_order_asked_for(asked: list[str]) -> None:
    data = load_data(settings(modalities=asked))
    assert [table.modality for table in data.tables] == asked
    assert list(data.store("dev").inputs.widths) == asked


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modalities": ["text", "smell"]}, r"has no 'smell', only text, audio, visual.*data\.packs\.smell=FOLDER"),
        ({"modalities": []}, "empty list. Choose from: text, audio, visual"),
        ({"modalities": ["text", "text"]}, "a modality is listed twice"),
        ({"protocol": "fra"}, "Did you mean 'demo/far'"),
        ({"name": "dem"}, "Did you mean 'demo'"),
        ({"options": {"trian": 3}}, "no setting 'trian'"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(settings(**changed))


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ConfigError, match=r"split 'tets': unknown\. Did you mean 'test'"):
        load_data(settings()).store("tets")


def test_missing_files_say_what_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERCFUSION_DATA", raising=False)
    with pytest.raises(CorpusNotFoundError, match=r"(?s)data.raw=FOLDER.*ERCFUSION_DATA.*train_sent_emo.csv.*Licence"):
        load_data(settings("meld"))
    with pytest.raises(CorpusNotFoundError, match=r"(?s)train_sent_emo.csv.* not found in .*Licence"):
        load_data(settings("meld", raw=str(tmp_path)))


def test_a_pack_replaces_and_adds_modalities(tmp_path: Path) -> None:
    data = load_data(settings())
    packs = {"audio": pack(tmp_path / "a", data, "audio"), "motion": pack(tmp_path / "m", data, "motion")}
    found = load_data(settings(packs=packs))
    assert {table.modality: table.width for table in found.tables} == {
        "text": 24,
        "audio": 5,
        "visual": 16,
        "motion": 5,
    }
    store = found.store("train")
    np.testing.assert_array_equal(store.features["motion"][0], np.arange(5))
    again = load_data(settings(packs={"audio": packs["audio"], "voice": packs["audio"]}, modalities=["audio", "voice"]))
    assert [table.modality for table in again.tables] == ["audio", "voice"]
    assert torch.equal(*again.store("dev").features.values())
    only = load_data(settings(packs=packs, modalities=["motion"]))
    assert [table.modality for table in only.tables] == ["motion"]


def test_packs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = load_data(settings())
    with pytest.raises(ConfigError, match="a pack of the modality 'audio'"):
        load_data(settings(packs={"visual": pack(tmp_path / "a", data, "audio")}))
    other = pack(tmp_path / "o", data, "audio", fingerprint="0" * 64)
    with pytest.raises(PackError, match="another version"):
        load_data(settings(packs={"audio": other}))
    with pytest.raises(PackError, match="no such folder"):
        load_data(settings(packs={"audio": str(tmp_path / "nowhere")}))


def test_text_features_are_built_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = str(write_twin("meld", tmp_path / "meld"))
    first = load_data(settings("meld", raw=raw))
    built = StubEncoder.calls
    assert built > 0
    assert [(table.modality, table.width) for table in first.tables] == [("text", 8)]
    again = load_data(settings("meld", raw=raw, protocol="meld/3way"))
    assert StubEncoder.calls == built
    np.testing.assert_array_equal(again.tables[0].values, first.tables[0].values)
    assert len(list((tmp_path / "packs").rglob("pack.json"))) == 1


def test_no_text_is_encoded_where_it_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = str(write_twin("meld", tmp_path / "meld"))
    monkeypatch.setattr(StubEncoder, "encode", lambda *arguments, **settings: pytest.fail("text was encoded"))
    load_data(settings("demo"))
    load_data(settings("mosi", raw=str(write_twin("mosi", tmp_path / "mosi"))))
    with pytest.raises(ErcfusionError):
        load_data(settings("meld", raw=raw, modalities=["audio"]))
    assert not (tmp_path / "packs").exists()
