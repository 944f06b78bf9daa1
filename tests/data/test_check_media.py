import importlib.util
import shutil
import struct
import wave
from types import SimpleNamespace

import pytest

from ercfusion._core.errors import ConfigError, CorpusNotFoundError
from ercfusion.data import Conversation, Target, Turn, open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.check_media import RULE, check_clips, header
from ercfusion.data.media import Clip, sampling_rate
from ercfusion.testing.media import tone, write_video, write_wav
from ercfusion.testing.twins import write_twin

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
AUDIO = "audio recordings"


@pytest.fixture
def without_av(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "av" else real(name, *more))


def look(clips, texts=None, split=lambda number: "train", times=(None, None), visual=None):
    """Findings for clips ``(path, start, end)``, one a conversation of one turn, by topic."""
    splits, found = {}, {}
    for number, clip in enumerate(clips):
        text = texts[number] if texts else "some four words here"
        turn = Turn("0", "Ada", text, *times, targets={"emotion": Target("joy")})
        splits.setdefault(split(number), []).append(Conversation(f"c{number}", (turn,)))
        if clip is not None:
            found[f"c{number}", "0"] = Clip(*clip) if isinstance(clip, tuple) else Clip(clip)

    def media(protocol, kind):
        if kind == "visual" and visual is None:
            raise ConfigError("no pictures")
        return found if kind == "audio" else visual(found)

    return check_clips(SimpleNamespace(clips=media, named_clips=lambda *arguments: {}), None, splits)


def wav(folder, name, seconds=1.0, seed=0):
    return write_wav(folder / name, tone(seconds, 8000, seed=seed), 8000)


def texts_of(findings, level=None):
    return [finding.text for finding in findings if level in (None, finding.level)]


@pytest.mark.parametrize("error", [ConfigError("x"), CorpusNotFoundError("x")])
def test_a_corpus_without_recordings_says_nothing(error):
    def media(protocol, kind):
        raise error

    assert check_clips(SimpleNamespace(clips=media, named_clips=lambda *arguments: {}), None, {"train": []}) == []


def test_all_in_order(tmp_path):
    paths = [wav(tmp_path, f"{n}.wav", seed=n) for n in range(3)]
    findings = look(paths, split=lambda n: "test" if n == 2 else "train")
    assert texts_of(findings, "ok") == [
        "train: 2 files for 2 of 2 utterances, none absent",
        "test: 1 files for 1 of 1 utterances, none absent",
    ]
    assert len(findings) == 2


def test_recordings_of_one_length_were_cut(tmp_path):
    cut = [wav(tmp_path, f"cut{n}.wav", 1.0, seed=n) for n in range(20)]
    assert texts_of(look(cut), "note") == ["all 20 recordings last 1.000 s: they were cut or padded to one length"]
    assert texts_of(look(cut[:19]), "note") == []
    assert texts_of(look([*cut, wav(tmp_path, "own.wav", 1.1)]), "note") == []


def test_several_sampling_rates(tmp_path):
    paths = [write_wav(tmp_path / f"{rate}.wav", tone(1.0, rate), rate) for rate in (8000, 48000)]
    (text,) = texts_of(look([*paths, wav(tmp_path, "own.wav", seed=1)]), "note")
    assert text.startswith("several sampling rates: 8000 Hz (2, first 8000.wav), 48000 Hz (1, first 48000.wav).")
    assert "features.resample=all features.rate=16000" in text
    assert texts_of(look([paths[0], wav(tmp_path, "more.wav", seed=2)]), "note") == []


def test_a_sampling_rate_that_nobody_records_with(tmp_path):
    path = wav(tmp_path, "odd.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = (1).to_bytes(4, "little")
    path.write_bytes(content)
    (text,) = texts_of(look([path]), "fault")
    assert "a sampling rate of 1 Hz: 1000 to 192000 are read" in text


def test_absent_files(tmp_path):
    here, gone = wav(tmp_path, "here.wav"), tmp_path / "gone.wav"
    findings = look([here, gone, gone, None], split=lambda n: ("train", "train", "dev", "test")[n])
    assert [(finding.level, finding.topic) for finding in findings] == [
        ("note", AUDIO),
        ("fault", AUDIO),
        ("note", AUDIO),
    ]
    assert texts_of(findings)[0].startswith(f"train: 1 of 2 files are absent (first: {gone}). Correct the paths")
    assert texts_of(findings)[2] == "test: no utterance names a recording"


def test_empty_and_damaged_files(tmp_path, without_av):
    empty = tmp_path / "empty.wav"
    empty.touch()
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound at all, but a letter")
    cut = wav(tmp_path, "cut.wav")
    cut.write_bytes(cut.read_bytes()[:2000])
    faults = texts_of(look([empty, noise, cut]), "fault")
    assert faults[0] == "1 files are empty (0 bytes): empty.wav. Copy them again."
    assert faults[1].startswith("2 files cannot be read: noise.wav, cut.wav (")
    assert "cut off: 16000 bytes of sound are announced" in texts_of(look([cut]), "fault")[0]


@needs_av
def test_damaged_files_with_pyav(tmp_path):
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound at all, but a letter")
    video = tmp_path / "video.mp4"
    video.write_bytes(b"neither")
    (fault,) = texts_of(look([noise, video]), "fault")
    assert fault.startswith("2 files cannot be read: noise.wav, video.mp4")
    assert str(tmp_path) not in fault


def test_equal_files(tmp_path):
    first = wav(tmp_path, "a.wav")
    copy = tmp_path / "b.wav"
    shutil.copy(first, copy)
    other = wav(tmp_path, "same_size.wav", seed=1)
    assert other.stat().st_size == first.stat().st_size
    (note,) = texts_of(look([first, copy, other]), "note")
    assert note == "2 files have the content of another: train a.wav = train b.wav"
    (note,) = texts_of(look([first, copy, other], split=lambda n: "test" if n == 1 else "train"), "note")
    assert note.endswith("train a.wav = test b.wav; 1 of these 1 contents are in two splits")


def test_clips_that_do_not_fit_their_words(tmp_path):
    path = wav(tmp_path, "all.wav", seconds=60)
    clips = [
        (path, 0, 12),
        (path, 0, 14),
        (path, 0, 9.9),
        (path, 0, 0.19),
        (path, 0, 0.21),
        (path, 0, 30),
        (path, 0, 10),
    ]
    texts = ["one", "one two three", "", "one two three four", "one two three four", None, "x"]
    notes = texts_of(look(clips, texts), "note")
    assert len(notes) == 2
    assert notes[0] == f"1 clips are far longer than their words take: train c0/0 12.00 s for 1 words. Rule: {RULE}"
    assert notes[1] == f"1 clips are far shorter than their words take: train c3/0 0.19 s for 4 words. Rule: {RULE}"
    assert "10 s" in RULE
    assert "5 s + 4 s per word" in RULE
    assert "0.05 s per word" in RULE


def test_whole_files_are_measured_by_their_header(tmp_path):
    long = wav(tmp_path, "long.wav", seconds=15)
    # The turn's own times say otherwise, but they may count from the beginning of a conversation.
    (note,) = texts_of(look([long], ["one"], times=(0.0, 1.0)), "note")
    assert "15.00 s for 1 words" in note


def test_without_a_readable_header_the_times_count(tmp_path, without_av):
    video = tmp_path / "video.mp4"
    video.write_bytes(b"cannot be judged without PyAV")
    (note,) = texts_of(look([video], ["one"], times=(0.0, 15.0)), "note")
    assert "15.00 s for 1 words" in note
    assert texts_of(look([video], ["one"]), "note") == []


def test_turns_that_end_after_their_recording(tmp_path):
    path = wav(tmp_path, "a.wav", seconds=2)
    (note,) = texts_of(look([(path, 0, 2.4), (path, 1, 2.6)]), "note")
    assert note == "1 turns end after their recording: train c1/0 ends at 2.6 s of 2.0 s. Correct the times."


def test_durations(tmp_path, without_av):
    assert header(wav(tmp_path, "a.wav", 1.5)) == (1.5, 8000)
    assert header(tmp_path / "b.mp4") == (None, None)
    # A WAV file of another format than plain samples is nothing that the standard library could judge.
    other = wav(tmp_path, "float.wav")
    data = bytearray(other.read_bytes())
    data[20:22] = struct.pack("<H", 3)
    other.write_bytes(bytes(data))
    assert header(other)[0] is None
    assert texts_of(look([other]), "fault") == []


def test_a_header_is_read_once(tmp_path, monkeypatch):
    opened = []
    paths = [wav(tmp_path, "a.wav", 2), wav(tmp_path, "b.wav", 2)]
    original = wave.open
    monkeypatch.setattr(wave, "open", lambda *given: opened.append(given[0]) or original(*given))
    look(paths, ["one", "two"])
    assert sorted(opened) == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    path = wav(tmp_path, "a.wav", 2)

    def refuse(*given):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wave, "open", refuse)
    (fault,) = texts_of(look([path]), "fault")
    assert "1 files cannot be read: a.wav (Permission denied)" in fault


@needs_av
def test_durations_with_pyav(tmp_path):
    video = write_video(tmp_path / "a.mp4", 2.0, sound=tone(2.0))
    seconds, rate = header(video)
    assert seconds == pytest.approx(2.0, abs=0.15)
    assert rate == sampling_rate(video)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "float.wav", tone(1.0), 16000, subtype="FLOAT")
    assert header(tmp_path / "float.wav") == (pytest.approx(1.0), 16000)


@needs_av
def test_a_video_that_serves_twice_is_judged_once(tmp_path):
    video = write_video(tmp_path / "a.mp4", 12.0, fps=2)
    findings = look([video], ["one"], visual=lambda clips: clips)
    assert [finding.topic for finding in findings] == [AUDIO, AUDIO, "visual recordings"]
    assert [finding.level for finding in findings] == ["ok", "note", "ok"]


def test_pictures_have_no_duration(tmp_path):
    picture = tmp_path / "face.png"
    picture.write_bytes(b"any")
    findings = look([picture], ["one"], times=(0.0, 15.0))
    assert [finding.level for finding in findings] == ["ok"]


def test_twin_of_a_corpus_with_recordings(tmp_path):
    folder = write_twin("custom", tmp_path)
    corpus = open_corpus("custom", folder)
    protocol = corpus.protocol()
    found = [finding for finding in check_corpus(corpus, protocol) if finding.topic == AUDIO]
    assert [finding.level for finding in found] == ["ok", "ok", "ok"]
    (folder / "recordings" / "train00_0.wav").write_bytes(b"")
    found = [finding for finding in check_corpus(corpus, protocol) if finding.topic == AUDIO]
    assert "1 files are empty (0 bytes): train00_0.wav. Copy them again." in texts_of(found, "fault")
    assert not [f for f in check_corpus(corpus, protocol, media=False) if f.topic == AUDIO]


def test_real_recordings_are_in_order(shared_data):
    corpus = open_corpus("emodb", shared_data("emodb"))
    protocol = corpus.protocol()
    findings = check_clips(corpus, protocol, corpus.conversations(protocol))
    assert [finding.level for finding in findings][:3] == ["ok", "ok", "ok"], texts_of(findings)
    assert not texts_of(findings, "fault")
