"""Reading sound: to the sample for plain files, cut and resampled as said, and faults in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.data.media import Clip
from ercfusion.features.clip_error import ClipError
from ercfusion.features.sound import check_sound_settings, read_sound, uneven_rates
from ercfusion.testing.media import tone, write_video, write_wav

soundfile = pytest.importorskip("soundfile")
av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    voice = tone(1.0, 22050)
    write_wav(folder / "voice.wav", voice, 22050)
    soundfile.write(folder / "voice.flac", soundfile.read(folder / "voice.wav", dtype="int16")[0], 22050)
    write_wav(folder / "stereo.wav", np.stack([voice, -0.5 * voice], axis=1), 22050)
    write_wav(folder / "silent.wav", np.zeros(8000, np.float32), 16000)
    write_wav(folder / "nothing.wav", np.zeros(0, np.float32), 16000)
    (folder / "empty.wav").touch()
    (folder / "noise.wav").write_bytes(b"RIFF" + bytes(range(256)) * 4)
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    write_video(folder / "mute.mp4", 0.5)
    write_video(folder / "talk.mp4", 2.0, sound=tone(2.0, 44100), rate=44100)
    return folder


def test_plain_files_are_read_to_the_sample(folder: Path) -> None:
    expected, rate = soundfile.read(folder / "voice.wav", dtype="float32")
    for name in ("voice.wav", "voice.flac"):
        sound = read_sound(Clip(folder / name), 16000, "tracks")
        assert sound.rate == rate == 22050
        np.testing.assert_array_equal(sound.samples, expected)
        assert not sound.silent
    part = read_sound(Clip(folder / "voice.wav", 0.25, 0.5))
    np.testing.assert_array_equal(part.samples, expected[round(0.25 * rate) : round(0.5 * rate)])
    beyond = read_sound(Clip(folder / "voice.wav", 0.9, 5.0))
    np.testing.assert_array_equal(beyond.samples, expected[round(0.9 * rate) :])


def test_channels_are_averaged(folder: Path) -> None:
    both, _ = soundfile.read(folder / "stereo.wav", dtype="float32")
    np.testing.assert_allclose(read_sound(Clip(folder / "stereo.wav")).samples, both.mean(axis=1), atol=1e-7)


def test_resampled_once(folder: Path) -> None:
    audresample = pytest.importorskip("audresample")
    plain = read_sound(Clip(folder / "voice.wav"))
    sound = read_sound(Clip(folder / "voice.wav"), 16000, "all")
    assert (sound.rate, len(sound.samples)) == (16000, 16000)
    np.testing.assert_array_equal(sound.samples, audresample.resample(plain.samples[None], 22050, 16000)[0])


def test_what_overshoots_is_held_at_the_limit(tmp_path: Path) -> None:
    """16-bit arithmetic behind it would wrap around from loud to loud with the other sign."""
    square = np.where(np.arange(8000) // 20 % 2, 1.0, -1.0).astype(np.float32)
    write_wav(tmp_path / "square.wav", square, 8000)
    sound = read_sound(Clip(tmp_path / "square.wav"), 11025, "all")
    assert sound.samples.max() == np.float32(32767 / 32768)
    assert sound.samples.min() == -1.0


def test_tracks_of_videos(folder: Path) -> None:
    sound = read_sound(Clip(folder / "talk.mp4"), 16000, "tracks")
    assert sound.rate == 16000
    assert abs(sound.seconds - 2.0) < 0.1
    # The pitch is what was put in: 150 Hz, and its harmonics.
    spectrum = np.abs(np.fft.rfft(sound.samples * np.hanning(len(sound.samples))))
    pitch = np.argmax(spectrum[: round(250 * sound.seconds)]) / sound.seconds
    assert abs(pitch - 150) < 15
    own = read_sound(Clip(folder / "talk.mp4"), None, "none")
    assert own.rate == 44100


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.7), (0.3, 0.8), (1.1, 1.6), (1.1, None)])
def test_a_part_of_a_track_is_that_part(folder: Path, start: float, end: float | None) -> None:
    """Decoding from a seek point gives what cutting the whole track gives, up to the codec's own lead-in."""
    whole = read_sound(Clip(folder / "talk.mp4"), None, "none").samples
    part = read_sound(Clip(folder / "talk.mp4", start, end), None, "none").samples
    expected = whole[round(start * 44100) : None if end is None else round(end * 44100)]
    assert len(part) == len(expected)
    inner = slice(4096, -4096)
    assert np.corrcoef(part[inner], expected[inner])[0, 1] > 0.999


@pytest.mark.parametrize(
    ("name", "start", "end", "reason"),
    [
        ("absent.wav", 0, None, r"no such file: absent\.wav"),
        ("empty.wav", 0, None, r"empty \(0 bytes\)"),
        ("noise.wav", 0, None, "cannot be decoded"),
        ("noise.mp4", 0, None, "cannot be decoded"),
        ("mute.mp4", 0, None, "no sound track"),
        ("nothing.wav", 0, None, "holds no sound"),
        ("voice.wav", 3, None, "ends before 3 s"),
        ("talk.mp4", 30, 31, "ends before 30 s"),
        ("voice.wav", 0.5, 0.5, r"ends at 0\.5 s, but starts"),
    ],
)
def test_faults_in_words(folder: Path, name: str, start: float, end: float | None, reason: str) -> None:
    with pytest.raises(ClipError, match=reason):
        read_sound(Clip(folder / name, start, end), 16000, "tracks")


def test_silence_is_known(folder: Path) -> None:
    assert read_sound(Clip(folder / "silent.wav")).silent


def test_settings() -> None:
    check_sound_settings(None, "none")
    for rate, resample, message in (
        (16000, "some", "Did you mean|Choose from"),
        (None, "all", "needs a rate"),
        (12, "all", "from 1000"),
        ("fast", "tracks", "whole number"),
        (True, "tracks", "whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_sound_settings(rate, resample)  # type: ignore[arg-type]


def test_what_is_missing_at_the_end_is_noted(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "voice.wav").read_bytes()
    header, half = 44, 22050
    (tmp_path / "cut.wav").write_bytes(whole[: header + half])  # half of 22,050 frames of two bytes
    cut = "cut off: the file announces 1.00 s of sound and holds 0.50 s"
    assert read_sound(Clip(tmp_path / "cut.wav")).notes == [cut]
    assert read_sound(Clip(tmp_path / "cut.wav"), 16000, "all").notes == [cut]
    assert read_sound(Clip(tmp_path / "cut.wav", 0.0, 0.4)).notes == []  # this part is whole
    assert read_sound(Clip(folder / "voice.wav")).notes == []
    assert read_sound(Clip(folder / "voice.wav", 0.5, 1.4)).notes == []  # times are rounded
    late = "the turn ends at 5.00 s, its recording at 1.00 s"
    assert read_sound(Clip(folder / "voice.wav", 0.5, 5.0)).notes == [late]
    assert "the turn ends at 9.00 s" in read_sound(Clip(folder / "talk.mp4", 0.5, 9.0), 16000, "tracks").notes[0]


def test_a_length_that_the_writer_did_not_know(folder: Path, tmp_path: Path) -> None:
    """Programs that write into a pipe announce the largest length: nothing was cut off."""
    whole = bytearray((folder / "voice.wav").read_bytes())
    whole[40:44] = (0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "pipe.wav").write_bytes(whole)
    assert read_sound(Clip(tmp_path / "pipe.wav")).notes == []


@pytest.mark.parametrize("rate", [1, 10_000_000])
def test_a_sampling_rate_that_nobody_records_with(folder: Path, tmp_path: Path, rate: int) -> None:
    """One second that is called 1 Hz would become hours of sound."""
    whole = bytearray((folder / "voice.wav").read_bytes())
    whole[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "odd.wav").write_bytes(whole)
    with pytest.raises(ClipError, match=f"a sampling rate of {rate} Hz, outside 1000 to 192000"):
        read_sound(Clip(tmp_path / "odd.wav"), 16000, "all")


def test_clips_at_another_rate_than_most(folder: Path, tmp_path: Path) -> None:
    for name, rate in (("a", 16000), ("b", 16000), ("c", 48000)):
        write_wav(tmp_path / f"{name}.wav", tone(0.1, rate), rate)
    soundfile.write(tmp_path / "float.wav", tone(0.1, 48000), 48000, subtype="FLOAT")
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(256)))
    a, b, c, floats, noise, absent = (
        Clip(tmp_path / f"{name}.wav") for name in ("a", "b", "c", "float", "noise", "absent")
    )
    note = "processed at 48000 Hz, most of this pack at 16000 Hz"
    assert uneven_rates([a, b, c, noise, absent], 16000, "tracks") == {c: note}
    assert uneven_rates([a, a, b, floats], None, "none") == {floats: note}
    assert uneven_rates([a, b, c], 16000, "all") == {}
    assert uneven_rates([a, b], None, "none") == uneven_rates([], 16000, "tracks") == {}
    # Half and half: the higher rate counts as usual, in any order.
    assert list(uneven_rates([a, b, c, floats], None, "none")) == [a, b]
    assert list(uneven_rates([floats, c, a, b], None, "none")) == [a, b]
    # Sound tracks are brought to the rate of the recipe, plain files keep their own.
    track = Clip(folder / "talk.mp4")
    assert uneven_rates([a, b, track], 16000, "tracks") == {}
    assert list(uneven_rates([a, b, track], None, "none")) == [track]
    assert list(uneven_rates([c, floats, track], 16000, "tracks")) == [track]


def test_parts_of_a_wav_file_that_are_longer_than_the_file(tmp_path):
    from ercfusion.data.check_media import _UnreadableError, header
    from ercfusion.data.media import announced_frames, sampling_rate

    path = write_wav(tmp_path / "a.wav", tone(0.2))
    data = path.read_bytes()
    path.write_bytes(data[:12] + b"junk" + (2**31).to_bytes(4, "little") + data[12:])
    assert announced_frames(path) is None
    assert sampling_rate(path) is None
    with pytest.raises(_UnreadableError):
        header(path)
    with pytest.raises(ClipError):
        read_sound(Clip(path))


def test_sound_is_read_in_parts(tmp_path, monkeypatch):
    path = write_wav(tmp_path / "a.wav", np.stack([tone(0.2), tone(0.2, pitch=200)], axis=1))
    whole = read_sound(Clip(path, 0.05, 0.15)).samples
    monkeypatch.setattr("ercfusion.features.sound._PART", 100)
    np.testing.assert_array_equal(read_sound(Clip(path, 0.05, 0.15)).samples, whole)
