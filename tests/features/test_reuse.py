"""Recordings that change under a pack or under an extraction: values are never those of another file than is listed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from extraction_tools import Loudness, Recordings, do_clips_here, loudness, own_places, write_recordings
from test_extraction import content

from ercfusion._core.errors import PackError
from ercfusion._core.files import sha256_of
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.pack import MANIFEST, RECORDINGS, read_manifest, read_pack
from ercfusion.data.recordings import source_of
from ercfusion.features.executors import in_this_process, on_processes
from ercfusion.features.extraction import Extraction, extract_pack
from ercfusion.features.loading import load_data
from ercfusion.features.recipe import Recipe
from ercfusion.testing.media import tone, write_wav
from ercfusion.testing.twins.custom import write_custom

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the worker processes


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_places(tmp_path, monkeypatch)
    do_clips_here(monkeypatch)


@pytest.fixture
def corpus(tmp_path: Path) -> Recordings:
    return write_recordings(tmp_path / "raw")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def extract(corpus: Recordings, log: Path, out: Path | None = None, **options: Any) -> Extraction:
    out = corpus.root().parent / "pack" if out is None else out
    return extract_pack(corpus, corpus.protocol(), loudness(log=str(log)), out=out, **options)


def read_again(log: Path) -> list[str]:
    """The recordings that were extracted since the last call."""
    names = log.read_text().splitlines() if log.exists() else []
    log.write_text("")
    return names


def replaced(path: Path, seed: int = 99, *, quiet: bool = False) -> None:
    """Another sound; ``quiet``: of the same size and time."""
    before = path.stat()
    write_wav(path, tone(before.st_size / 16000 - 22 / 8000, 8000, pitch=300, seed=seed), 8000)
    assert path.stat().st_size == before.st_size
    if quiet:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def fresh(corpus: Recordings, log: Path) -> Any:
    """What an extraction of the recordings as they are makes."""
    found = content(extract(corpus, log, corpus.root().parent / "fresh", fresh=True).folder)
    read_again(log)
    return found


def test_a_pack_lists_its_recordings(corpus: Recordings, log: Path) -> None:
    path = corpus.root() / "talk1-0.wav"
    path.write_bytes(b"damaged")
    (corpus.root() / "talk1-1.wav").unlink()
    pack = extract(corpus, log).folder
    listed = {one.pop("path"): one for one in json.loads((pack / RECORDINGS).read_text())["recordings"]}
    assert len(listed) == 12
    status = path.stat()
    assert listed["talk1-0.wav"] == {
        "bytes": 7,
        "modified": status.st_mtime_ns,
        "sha256": sha256_of(path),
        "used": False,
    }
    assert listed["talk1-1.wav"] == {"bytes": 0, "modified": 0, "sha256": "", "used": False}
    assert listed["talk0-2.wav"]["sha256"] == sha256_of(corpus.root() / "talk0-2.wav")
    assert str(corpus.root().parent) not in (pack / RECORDINGS).read_text()


@pytest.mark.parametrize("options", [{}, {"retry": True}])
def test_replaced_recordings_are_extracted_again(
    corpus: Recordings, log: Path, caplog: pytest.LogCaptureFixture, options: dict[str, bool]
) -> None:
    before = content(extract(corpus, log).folder)
    read_again(log)
    replaced(corpus.root() / "talk1-0.wav")
    replaced(corpus.root() / "talk2-2.wav")
    with caplog.at_level(logging.WARNING, "ercfusion"):
        made = extract(corpus, log, **options)
    assert not made.existed
    assert read_again(log) == ["talk1-0.wav", "talk2-2.wav"]
    assert "2 recordings have changed since: talk1-0.wav, talk2-2.wav. They are extract" in caplog.text
    assert content(made.folder) == fresh(corpus, log) != before
    assert extract(corpus, log).existed


def test_a_recording_of_the_same_size_and_time_is_compared_by_retry(corpus: Recordings, log: Path) -> None:
    extract(corpus, log)
    read_again(log)
    replaced(corpus.root() / "talk1-0.wav", quiet=True)
    assert extract(corpus, log).existed
    assert not extract(corpus, log, retry=True).existed
    assert read_again(log) == ["talk1-0.wav"]
    assert content(corpus.root().parent / "pack") == fresh(corpus, log)


def test_a_recording_that_was_only_touched_is_the_same(corpus: Recordings, log: Path) -> None:
    extract(corpus, log)
    read_again(log)
    for path in corpus.root().glob("*.wav"):
        os.utime(path, ns=(10**18, 10**18))
    assert extract(corpus, log).existed
    assert not read_again(log)
    memory = list((corpus.root().parent / "cache" / "ercfusion" / "verified").glob("recordings-*.json"))
    assert len(json.loads(memory[0].read_text())) == 12
    assert extract(corpus, log).existed


def test_a_damaged_or_absent_recording_that_was_mended(corpus: Recordings, log: Path) -> None:
    damaged, absent, still = (corpus.root() / f"talk0-{turn}.wav" for turn in range(3))
    sounds = damaged.read_bytes(), absent.read_bytes()
    damaged.write_bytes(b"")
    absent.unlink()
    still.write_bytes(b"")
    first = extract(corpus, log)
    assert len(first.missing) == 3
    read_again(log)
    damaged.write_bytes(sounds[0])
    absent.write_bytes(sounds[1])
    made = extract(corpus, log)
    assert read_again(log) == ["talk0-0.wav", "talk0-1.wav"]  # what was missing and is as it was stays missing
    assert made.missing == {("talk0", "2"): "cannot be read: EOFError"}
    assert content(made.folder) == fresh(corpus, log)


def test_a_recording_that_was_removed_keeps_its_features(
    corpus: Recordings, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack = extract(corpus, log).folder
    before = content(pack)
    read_again(log)
    (corpus.root() / "talk1-0.wav").unlink()
    with caplog.at_level(logging.WARNING, "ercfusion"):
        assert extract(corpus, log).existed
    assert "1 of 12 recordings no longer exist (first: talk1-0.wav); the pack keeps their" in caplog.text
    extract(corpus, log, retry=True)
    assert content(pack) == before
    assert not read_again(log)
    assert extract(corpus, log, fresh=True).missing == {("talk1", "0"): "cannot be read: FileNotFoundError"}


def test_the_old_pack_stays_until_the_new_one_is_complete(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = extract(corpus, log).folder
    before = content(pack)
    read_again(log)
    replaced(corpus.root() / "talk0-0.wav")
    replaced(corpus.root() / "talk3-0.wav")

    def stopped(self: Loudness, clip: Any) -> Any:
        if clip.path.name == "talk3-0.wav":
            raise KeyboardInterrupt
        return original(self, clip)

    original = Loudness.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Loudness, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract(corpus, log)
    assert content(pack) == before
    assert read_again(log) == ["talk0-0.wav"]
    # Meanwhile the one that was done is replaced once more: its new values are those of the second file.
    replaced(corpus.root() / "talk0-0.wav", seed=7)
    extract(corpus, log)
    assert read_again(log) == ["talk0-0.wav", "talk3-0.wav"]
    assert content(pack) == fresh(corpus, log)


@pytest.mark.parametrize("change", ["replaced", "touched", "removed"])
def test_a_recording_that_changes_while_an_extraction_is_stopped(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ercfusion.features.extraction._assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(corpus, log)
    read_again(log)
    path = corpus.root() / "talk1-0.wav"
    if change == "replaced":
        replaced(path)
    elif change == "touched":
        os.utime(path, ns=(10**18, 10**18))
    else:
        path.unlink()
    made = extract(corpus, log)
    assert read_again(log) == ([] if change == "touched" else ["talk1-0.wav"])
    assert len(made.missing) == (change == "removed")
    assert content(made.folder) == fresh(corpus, log)
    assert json.loads((made.folder / RECORDINGS).read_text()) == json.loads(
        (corpus.root().parent / "fresh" / RECORDINGS).read_text()
    )


def test_a_recording_that_changes_while_it_is_extracted(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, later = corpus.root() / "talk1-0.wav", corpus.root() / "talk0-0.wav"
    original, seen = Loudness.__call__, list[str]()

    def changing(self: Loudness, clip: Any) -> Any:
        found = original(self, clip)
        if clip.path == path and path.name not in seen:
            replaced(path, seed=5)
            replaced(later, seed=6)  # one that is done already
        seen.append(clip.path.name)
        return found

    monkeypatch.setattr(Loudness, "__call__", changing)
    made = extract(corpus, log)
    assert [seen.count(one.name) for one in (path, later)] == [2, 2]
    assert not made.missing
    assert content(made.folder) == fresh(corpus, log)


def test_recordings_that_change_all_the_time(corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus.root() / "talk1-0.wav"
    original, count = Loudness.__call__, [0]

    def changing(self: Loudness, clip: Any) -> Any:
        found = original(self, clip)
        count[0] += 1
        if clip.path == path:
            replaced(path, seed=count[0])
        return found

    monkeypatch.setattr(Loudness, "__call__", changing)
    made = extract(corpus, log)
    assert made.missing == {("talk1", "0"): "the file changes while it is read. Wait until it is complete."}

    def others(self: Loudness, clip: Any) -> Any:
        found = original(self, clip)
        count[0] += 1
        if clip.path != path:
            replaced(path, seed=count[0])
        return found

    monkeypatch.setattr(Loudness, "__call__", others)
    monkeypatch.setattr("ercfusion.features.extraction._ROUNDS", 1)
    with pytest.raises(PackError, match="recordings still change while they are extracted"):
        extract(corpus, log, fresh=True)


def test_parts_of_one_recording(tmp_path: Path, log: Path) -> None:
    raw = write_custom(tmp_path / "mine", sizes={"train": 2, "dev": 1, "test": 1})

    def make(**options: Any) -> Extraction:
        corpus = open_corpus("custom", raw)
        return extract_pack(corpus, corpus.protocol(), loudness(log=str(log)), workers=1, **options)

    made = make()
    names = read_again(log)
    whole = next(name for name in names if names.count(name) > 1)
    path = next((raw / "recordings").rglob(whole))
    sound = bytearray(path.read_bytes())
    sound[-1000:] = bytes(range(250)) * 4
    path.write_bytes(sound)
    again = make()
    assert again.folder == made.folder
    assert read_again(log) == [whole] * names.count(whole)
    assert content(again.folder) == content(make(out=tmp_path / "other").folder)


def test_retry_after_a_stopped_extraction_tries_what_that_took_over(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus.root() / "talk0-0.wav").write_bytes(b"damaged")
    extract(corpus, log)
    read_again(log)
    replaced(corpus.root() / "talk1-0.wav")
    with monkeypatch.context() as patch:
        patch.setattr("ercfusion.features.extraction._assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(corpus, log)
    assert read_again(log) == ["talk1-0.wav"]
    extract(corpus, log, retry=True)
    assert read_again(log) == ["talk0-0.wav"]


def test_a_pack_that_another_process_replaces_meanwhile(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ercfusion.features import extraction

    pack = extract(corpus, log).folder
    replaced(corpus.root() / "talk1-0.wav")
    original = extraction.announce_changed

    def meanwhile(*arguments: Any) -> None:
        original(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(extraction, "announce_changed", original)
            extract(corpus, log, fresh=True)

    monkeypatch.setattr(extraction, "announce_changed", meanwhile)
    with pytest.raises(PackError, match="another process replaced the pack meanwhile"):
        extract(corpus, log)
    assert extract(corpus, log).existed
    assert content(pack) == fresh(corpus, log)


def test_texts_that_change(tmp_path: Path) -> None:
    """A pack of texts is bound to them: other texts are another pack."""
    raw = write_custom(tmp_path / "mine", sizes={"train": 3, "dev": 1, "test": 1})
    recipe = Recipe("letters", "extraction_tools:Letters", {})

    def make(**options: Any) -> Extraction:
        corpus = open_corpus("custom", raw)
        return extract_pack(corpus, corpus.protocol(), recipe, workers=1, **options)

    first, out = make(), tmp_path / "pack"
    make(out=out)
    settings = Data(name="custom", raw=str(raw), encoder="")
    load_data(replace(settings, packs={"text": str(out)}))
    table = raw / "utterances.csv"
    text = load_data(replace(settings, packs={"text": str(out)})).splits["test"][0].turns[0].text
    assert text
    table.write_text(table.read_text().replace(text, f"NOT {text}", 1))
    for place in (out, first.folder):
        with pytest.raises(PackError, match="made from another version of the corpus 'custom'"):
            load_data(replace(settings, packs={"text": str(place)}))
    with pytest.raises(PackError, match=r"another version.*--fresh"):
        make(out=out)
    again = make()
    assert not again.existed
    assert again.folder != first.folder
    make(out=out, fresh=True)
    assert content(out)[:2] == content(again.folder)[:2]


@pytest.mark.parametrize("change", ["added", "removed"])
def test_turns_that_are_added_or_removed(tmp_path: Path, log: Path, change: str) -> None:
    raw = write_custom(tmp_path / "mine", sizes={"train": 3, "dev": 1, "test": 1})

    def make(**options: Any) -> Extraction:
        corpus = open_corpus("custom", raw)
        return extract_pack(corpus, corpus.protocol(), loudness(log=str(log)), workers=1, **options)

    first, pack = make(), make(out=tmp_path / "pack").folder
    number = len(read_manifest(pack)["missing"]) + len(read_pack(pack))
    table = raw / "utterances.csv"
    lines = table.read_text().splitlines()
    last = lines[-1]
    if change == "added":
        turn = last.split(",")[1]
        lines.append(last.replace(f",{turn},", ",99,", 1))
    else:
        lines.pop()
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(PackError, match=r"--fresh"):
        make(out=pack)
    again = make()
    assert again.folder != first.folder
    made = len(again.missing) + len(read_pack(again.folder))
    assert made == number + (1 if change == "added" else -1)


@pytest.mark.slow
def test_in_processes(corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *_: partial(on_processes, workers=2))
    extract(corpus, log)
    read_again(log)
    replaced(corpus.root() / "talk1-0.wav")
    replaced(corpus.root() / "talk2-0.wav")
    pack = extract(corpus, log).folder
    assert sorted(read_again(log)) == ["talk1-0.wav", "talk2-0.wav"]
    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *_: in_this_process)
    assert content(pack) == fresh(corpus, log)


def test_versions_of_a_tool_are_not_mixed(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack = extract(corpus, log).folder
    before = content(pack)
    monkeypatch.setattr(Loudness, "tool_version", "2")
    with caplog.at_level(logging.INFO, "ercfusion"):
        assert extract(corpus, log).existed
    assert "was made with loudness 1; 2 is installed. Use --fresh to make it again" in caplog.text
    replaced(corpus.root() / "talk1-0.wav")
    for options in ({}, {"retry": True}):
        with pytest.raises(PackError, match=r"made with loudness 1, but 2 is installed.*cannot mix.*--fresh"):
            extract(corpus, log, **options)
        assert content(pack) == before
    assert read_manifest(extract(corpus, log, fresh=True).folder)["tool_version"] == "2"


def test_what_compares_a_turn_with_the_others_is_found_out_again(
    corpus: Recordings, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note of a turn that is taken over does not keep what was so of the others then."""
    (corpus.root() / "talk0-0.wav").write_bytes(b"RIFF")
    write_wav(corpus.root() / "talk0-1.wav", tone(0.3, 8000) * 0, 8000)

    def sizes(self: Loudness, clips: Any) -> dict[Any, str]:
        held = sorted(clip.path.stat().st_size for clip in clips)
        return {clip: f"{held.index(clip.path.stat().st_size)} smaller" for clip in clips if "talk0" in clip.path.name}

    monkeypatch.setattr(Loudness, "remarks", sizes, raising=False)
    extract(corpus, log)
    write_wav(corpus.root() / "talk0-0.wav", tone(3, 8000), 8000)
    made = extract(corpus, log)
    assert made.notes["talk0", "1"] == "silent; 0 smaller"
    assert content(made.folder) == fresh(corpus, log)


@pytest.mark.parametrize("damage", ["absent", "changed", "hostile"])
def test_a_damaged_list_is_noticed(corpus: Recordings, log: Path, damage: str) -> None:
    pack = extract(corpus, log).folder
    path = pack / RECORDINGS
    if damage == "absent":
        path.unlink()
    elif damage == "changed":
        path.write_text(path.read_text().replace("talk1-0", "talk1-9", 1))
    else:
        path.write_text('{"recordings": [{"path": "a", "bytes": -5, "modified": 1, "sha256": ""}]}')
        manifest = read_manifest(pack)
        manifest["files"][RECORDINGS] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        (pack / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackError, match=r"recordings\.json"):
        extract(corpus, log)
    with pytest.raises(PackError, match=r"recordings\.json"):
        read_pack(pack, verify="full")


def test_recordings_outside_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "clips").mkdir()
    path = tmp_path / "clips" / "a.wav"
    path.write_bytes(b"abc")
    assert source_of(path, tmp_path / "raw").name == "../clips/a.wav"


def test_a_copied_pack_is_complete(corpus: Recordings, log: Path, tmp_path: Path) -> None:
    pack = extract(corpus, log).folder
    shutil.copytree(pack, tmp_path / "elsewhere")
    for path in corpus.root().glob("*.wav"):
        path.unlink()
    assert read_pack(tmp_path / "elsewhere", verify="full").keys
