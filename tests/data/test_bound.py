"""Files that are not the release's do not get the release's protocol."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import stub_text_encoder

from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.bound import bound_protocol, differences_from_card
from ercfusion.data.corpus import Corpus, Protocol
from ercfusion.doctor import main as doctor
from ercfusion.features.loading import load_data
from ercfusion.testing.twins import write_twin


def dyadic(folder: Path) -> Path:
    """The columns of MELD's dyadic files, under the names of the others."""
    write_twin("meld", folder)
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row.update(Old_Dialogue_ID=row["Dialogue_ID"], Old_Utterance_ID=row["Utterance_ID"])
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def bound(corpus: Corpus, name: str | None = None) -> Protocol:
    protocol = corpus.protocol(name)
    return bound_protocol(corpus, protocol, corpus.conversations(protocol))


def test_other_files_get_another_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    raw = dyadic(tmp_path / "meld")
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    with caplog.at_level(logging.WARNING, "ercfusion"):
        data = load_data(Data(name="meld", raw=str(raw), protocol="3way"))
    assert data.protocol.id == "meld/3way-other"
    assert data.protocol.task == open_corpus("meld").protocol("3way").task
    assert "recorded as meld/3way-other and not compared with meld/3way" in caplog.text
    doctor(["data=meld", f"data.raw={raw}"])
    assert "runs are recorded as meld/7way-other" in capsys.readouterr().out


def test_the_counts_decide(tmp_path: Path) -> None:
    corpus: Any = open_corpus("meld", write_twin("meld", tmp_path))
    protocol = corpus.protocol()
    splits = corpus.conversations(protocol)
    assert bound(corpus).id == "meld/7way-other"
    counts = {split: {"conversations": len(part), "utterances": sum(map(len, part))} for split, part in splits.items()}
    labels = {
        split: dict(Counter(str(turn.targets["emotion"].value) for one in part for turn in one.turns))
        for split, part in splits.items()
    }
    corpus.card = replace(corpus.card, counts=counts, labels={"meld/7way": labels})
    assert bound(corpus) is protocol
    # A label that somebody changed is another corpus.
    moved = {**labels["test"], "neutral": labels["test"]["neutral"] + 1}
    corpus.card = replace(corpus.card, labels={"meld/7way": {**labels, "test": moved}})
    assert bound(corpus).id == "meld/7way-other"
    assert [finding.topic for finding in differences_from_card(corpus, protocol, splits)] == ["label counts"]


def test_generated_and_own_corpora_keep_theirs(tmp_path: Path) -> None:
    demo = open_corpus("demo", train=2, dev=1, test=1)
    assert bound(demo).id == "demo/balanced"
    assert bound(open_corpus("custom", write_twin("custom", tmp_path))).id == "custom/emotion"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "protocols"),
    [
        ("meld", "meld", ["meld/7way", "meld/3way", "meld/sets"]),
        ("emotionlines", "emotionlines_friends", ["emotionlines/majority", "emotionlines/multilabel"]),
        ("mosi", "mosi_poria2017", ["mosi/binary"]),
    ],
)
def test_the_releases_keep_theirs(shared_data: Any, name: str, folder: str, protocols: list[str]) -> None:
    corpus = open_corpus(name, shared_data(folder))
    assert [bound(corpus, protocol).id for protocol in protocols] == protocols
