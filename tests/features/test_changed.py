"""Whether the recordings of a pack have changed is known before anything is trained."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from extraction_tools import Recordings, do_clips_here, loudness, own_places, write_recordings
from test_reuse import replaced

from ercfusion import doctor, evaluate, train
from ercfusion._core.errors import PackError
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.pack import read_manifest
from ercfusion.data.recordings import State, compare_all, source_of
from ercfusion.features.changed import check_recordings
from ercfusion.features.extraction import extract_pack
from ercfusion.features.loading import load_data
from ercfusion.testing.twins.custom import write_custom


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_places(tmp_path, monkeypatch)
    do_clips_here(monkeypatch)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_custom(tmp_path / "mine", sizes={"train": 3, "dev": 1, "test": 1})


def pack_of(raw: Path) -> Path:
    corpus = open_corpus("custom", raw)
    return extract_pack(corpus, corpus.protocol(), loudness()).folder


def settings(raw: Path, pack: Path | str) -> Data:
    return Data(name="custom", raw=str(raw), modalities=("audio",), packs={"audio": str(pack)})


def first_recording(raw: Path) -> Path:
    return sorted((raw / "recordings").rglob("*.wav"))[0]


def test_a_stale_pack_is_refused(raw: Path) -> None:
    pack = pack_of(raw)
    load_data(settings(raw, pack))
    path = first_recording(raw)
    sound = path.read_bytes()
    path.write_bytes(sound + b"0000")
    with pytest.raises(PackError) as found:
        load_data(settings(raw, pack))
    text = str(found.value)
    assert f"data.packs.audio={pack}: 1 of " in text
    assert f"recordings changed after extraction (first: recordings/{path.name})" in text
    assert text.endswith(
        "Restore the recordings, or run the command that made the pack again, which extracts only these."
    )
    path.write_bytes(sound)  # another time, the same content
    load_data(settings(raw, pack))


def test_what_was_trained_with_it_goes_on(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack = pack_of(raw)
    first_recording(raw).write_bytes(b"another")
    with caplog.at_level(logging.WARNING, "ercfusion"):
        load_data(settings(raw, pack), refuse_changed=False)
    assert "recordings changed after extraction" in caplog.text


def test_the_pack_in_the_corpus_is_compared_too(raw: Path) -> None:
    shutil.copytree(pack_of(raw), raw / "packs" / "audio")
    asked = replace(settings(raw, ""), packs={})
    load_data(asked)
    replaced(first_recording(raw))
    with pytest.raises(PackError, match=r"packs.audio: 1 of \d+ recordings changed"):
        load_data(asked)


def test_a_corpus_without_its_recordings_trains_silently(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack = pack_of(raw)
    moved = tmp_path / "copied"
    moved.mkdir()
    for name in ("utterances.csv", "corpus.yaml"):
        shutil.copy(raw / name, moved)
    caplog.clear()  # extraction may have said how long its recordings are
    with caplog.at_level(logging.INFO, "ercfusion"):
        load_data(settings(moved, pack))
    assert "recordings" not in caplog.text


def test_recordings_that_were_copied_are_compared_once(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pack_of(raw)
    read: list[str] = []
    monkeypatch.setattr("ercfusion.data.recordings.sha256_of", lambda path: read.append(path) or original(path))
    from ercfusion._core.files import sha256_of as original

    for path in (raw / "recordings").rglob("*.wav"):
        os.utime(path, ns=(10**18, 10**18))
    load_data(settings(raw, pack))
    assert len([path for path in read if path.endswith(".wav")]) == len(list((raw / "recordings").rglob("*.wav")))
    read.clear()
    load_data(settings(raw, pack))
    assert not [path for path in read if path.endswith(".wav")]


def test_a_cache_that_cannot_be_written_costs_a_second_look(raw: Path, tmp_path: Path) -> None:
    pack = pack_of(raw)
    (tmp_path / "cache" / "ercfusion" / "verified").mkdir(parents=True, exist_ok=True)
    for path in (raw / "recordings").rglob("*.wav"):
        os.utime(path, ns=(10**18, 10**18))
    source = source_of(first_recording(raw), raw)
    states = compare_all(
        [(source, first_recording(raw))], memory=tmp_path / "mine" / "utterances.csv" / "x", doubt=True
    )
    assert [state for state, _ in states.values()] == [State.SAME]
    load_data(settings(raw, pack))


def test_recordings_that_gave_nothing_are_a_warning(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = sorted((raw / "recordings").rglob("*.wav"))[-1]  # one of train, where others stay
    assert path.name.startswith("train")
    sound = path.read_bytes()
    path.write_bytes(b"damaged")
    pack = pack_of(raw)
    path.write_bytes(sound)
    with caplog.at_level(logging.WARNING, "ercfusion"):
        load_data(settings(raw, pack))
    assert f"1 recordings without features were replaced since (first: recordings/{path.name})" in (caplog.text)


def test_a_pack_of_a_recipe_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus: Recordings = write_recordings(tmp_path / "raw")
    pack = extract_pack(corpus, corpus.protocol(), loudness()).folder
    replaced(corpus.root() / "talk0-0.wav")
    monkeypatch.setattr("ercfusion.features.changed.recipe_names", lambda: ["loudness"])
    with pytest.raises(PackError, match=r"python -m ercfusion\.extract data=recordings features=loudness data\.raw="):
        check_recordings(pack, read_manifest(pack), corpus, "data.packs.audio=loudness", refuse=True)


def test_the_doctor_finds_it(raw: Path, capsys: Any) -> None:
    pack = pack_of(raw)
    words = ["data=custom", f"data.raw={raw}", f"data.packs.audio={pack}"]
    doctor.main(words)
    assert "recordings changed" not in capsys.readouterr().out
    replaced(first_recording(raw))
    assert doctor.main(words) == 1
    assert f"FAULT data.packs.audio={pack}: 1 of " in capsys.readouterr().out


@pytest.mark.slow
def test_training_is_refused_and_evaluation_is_not(raw: Path, tmp_path: Path, capsys: Any) -> None:
    from runs import command

    pack = pack_of(raw)
    words = ["model=concat", "data=custom", f"data.raw={raw}", f"data.packs.audio={pack}", "data.modalities=audio"]
    few = ["training.max_epochs=1", "training.pictures=false", "training.bootstrap=20", "training.threads=1"]
    run = tmp_path / "run"
    status, _, err = command(train.main, [*words, *few, f"run={run}"], capsys)
    assert status == 0, err
    replaced(first_recording(raw))
    status, _, err = command(train.main, [*words, *few, f"run={tmp_path / 'second'}"], capsys)
    assert status == 2, err
    assert "recordings changed after extraction" in err
    assert not (tmp_path / "second").exists()
    status, _, err = command(evaluate.main, [str(run)], capsys)
    assert status == 0, err
    assert "recordings changed" in err
