import importlib.util
from pathlib import Path

import numpy as np
import pytest
from made_faces import write_frames

from ercfusion._core.errors import MissingExtraError
from ercfusion.data.media import Clip
from ercfusion.features import frames
from ercfusion.features.clip_error import ClipError
from ercfusion.features.frames import choose_times, read_frames
from ercfusion.testing.media import tone, write_video, write_wav

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


def numbered(count, size=(48, 64)):
    """Pictures whose every pixel is the number of the frame."""
    return [np.full((*size, 3), number, np.uint8) for number in range(count)]


def taken(path, start=0.0, end=None, **options):
    return [int(frame.image[0, 0, 0]) for frame in read_frames(Clip(path, start, end), **options)]


# Choosing


@pytest.mark.parametrize(
    ("rate", "fps", "every"), [(25, 5, 5), (30, 10, 3), (30000 / 1001, 30000 / 1001, 1), (60, 15, 4), (24, 8, 3)]
)
def test_a_divisor_of_the_rate_takes_every_so_manyth(rate, fps, every):
    times = np.arange(2000) / rate
    assert choose_times(times, fps=fps).tolist() == list(range(0, 2000, every))
    # Containers that round to milliseconds, and a recording that does not begin at 0.
    assert choose_times(np.round(times, 3) + 0.7, fps=fps).tolist() == list(range(0, 2000, every))


def test_other_rates_neither_drift_nor_repeat():
    times = np.arange(2997) * 1001 / 30000
    chosen = choose_times(times, fps=7)
    assert len(chosen) == 700  # 100 seconds
    assert np.abs(times[chosen] - np.arange(700) / 7).max() <= 1001 / 30000 + 1e-3
    assert choose_times(times, fps=1000).tolist() == list(range(2997))


def test_irregular_times():
    times = np.array([0.0, 0.01, 0.02, 0.55, 0.56, 3.0])
    assert choose_times(times, fps=2).tolist() == [0, 3, 5]


def test_window_and_limit():
    times = np.arange(100) / 10
    assert choose_times(times, start=1.0, end=1.5).tolist() == [10, 11, 12, 13, 14]
    assert choose_times(times, start=1.0001, end=1.4999).tolist() == [10, 11, 12, 13, 14]
    assert choose_times(times, start=1.01, end=1.5).tolist() == [11, 12, 13, 14]
    assert choose_times(times, start=9.9).tolist() == [99]
    assert choose_times(times, start=10.0).tolist() == []
    assert choose_times(times, max_frames=4).tolist() == [12, 37, 62, 87]
    assert choose_times(times, fps=1, max_frames=1).tolist() == [50]
    assert choose_times(times, fps=1, max_frames=10).tolist() == list(range(0, 100, 10))


# Decoding


@needs_av
def test_exactly_the_chosen_frames_are_decoded(tmp_path):
    path = write_frames(tmp_path / "v.mov", numbered(50))
    assert taken(path) == list(range(50))
    assert taken(path, fps=5) == list(range(0, 50, 5))
    assert taken(path, 0.4, 1.0, fps=5) == [10, 15, 20]
    assert taken(path, max_frames=2) == [12, 37]
    found = list(read_frames(Clip(path, 1.0), fps=5))
    assert [round(frame.time, 6) for frame in found] == [1.0, 1.2, 1.4, 1.6, 1.8]
    assert found[0].image.shape == (48, 64, 3)
    assert found[0].image.dtype == np.uint8
    assert (found[0].image == 25).all()


@needs_av
@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv", "mpg", "ts"])
def test_containers(tmp_path, ending):
    """Also those that count from another time than 0 (mpg), that state no length (mkv), and that cannot seek."""
    path = write_video(tmp_path / f"v.{ending}", 2.0, fps=25, seed=3)
    every = list(read_frames(Clip(path)))
    assert [round(frame.time, 3) for frame in every] == [round(number / 25, 3) for number in range(50)]
    part = list(read_frames(Clip(path, 1.2, 1.6), fps=12.5))
    assert [round(frame.time, 3) for frame in part] == [1.2, 1.28, 1.36, 1.44, 1.52]
    for frame, number in zip(part, range(30, 40, 2), strict=True):
        np.testing.assert_array_equal(frame.image, every[number].image)


@needs_av
@pytest.mark.parametrize("lands", [0.0, 1.9, None])
def test_formats_that_seek_badly(tmp_path, monkeypatch, lands):
    """Before the place asked for, behind it, or not at all: the frames are the same."""
    path = write_frames(tmp_path / "v.mov", numbered(50))
    expected = taken(path, 1.0, 1.4)
    really = frames._seek
    monkeypatch.setattr(frames, "_seek", lambda *given: lands is not None and really(*given[:3], lands))
    assert taken(path, 1.0, 1.4) == expected == list(range(25, 35))


@needs_av
def test_frames_that_are_stored_in_another_order(tmp_path):
    import av

    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no H.264 encoder")
    images = [np.full((48, 64, 3), 4 * number, np.uint8) for number in range(50)]
    options = {"bf": "3", "b-adapt": "0", "g": "25", "x264-params": "scenecut=0"}
    path = write_frames(tmp_path / "v.mp4", images, codec="libx264", pixels="yuv420p", options=options)
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    whole = list(read_frames(Clip(path), max_frames=50))
    assert [round(frame.time, 3) for frame in whole] == [round(number / 25, 3) for number in range(50)]
    part = list(read_frames(Clip(path, 0.8, 1.6), fps=5))
    assert [round(frame.time, 3) for frame in part] == [0.8, 1.0, 1.2, 1.4]
    assert np.abs([frame.image.mean() / 4 for frame in part] - np.array([20, 25, 30, 35])).max() < 0.6


@needs_av
def test_irregular_videos(tmp_path):
    stamps = [0, 10, 500, 510, 520, 2000]
    path = write_frames(tmp_path / "v.mkv", numbered(6), codec="ffv1", pixels="bgr0", stamps=stamps)
    assert taken(path) == list(range(6))
    assert taken(path, fps=2) == [0, 2, 5]


@needs_av
@pytest.mark.parametrize(("start", "end"), [(0.0, None), (3.0, 4.0)])
@needs_pillow
def test_a_picture_is_one_frame(tmp_path, start, end):
    from PIL import Image

    colours = np.zeros((30, 40, 3), np.uint8)
    colours[:10, :20] = 200, 30, 60
    Image.fromarray(colours).save(tmp_path / "p.png")
    (frame,) = read_frames(Clip(tmp_path / "p.png", start, end), fps=5, max_frames=3)
    assert frame.time == 0
    np.testing.assert_array_equal(frame.image, colours)


@needs_av
@needs_pillow
@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "png"), ("RGBA", "png"), ("P", "png"), ("L", "jpg"), ("RGB", "bmp")]
)
def test_other_kinds_of_pictures(tmp_path, mode, ending):
    from PIL import Image

    Image.new("RGB", (40, 30), (204, 204, 204)).convert(mode).save(tmp_path / f"p.{ending}")
    (frame,) = read_frames(Clip(tmp_path / f"p.{ending}"))
    assert frame.image.shape == (30, 40, 3)
    assert np.abs(frame.image.astype(int) - 204).max() <= 2


@needs_av
@needs_pillow
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_taken_sideways_is_turned_upright(tmp_path, orientation):
    from PIL import Image, ImageOps

    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32] = 250
    image[16:, :32] = 120
    photograph = Image.fromarray(image)
    exif = photograph.getexif()
    exif[0x0112] = orientation
    photograph.save(tmp_path / "p.jpg", quality=100, exif=exif)
    (frame,) = read_frames(Clip(tmp_path / "p.jpg"))
    with Image.open(tmp_path / "p.jpg") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image - expected).mean() < 3


@needs_av
@needs_pillow
@pytest.mark.parametrize(("name", "size"), [("multi_face.jpg", (667, 1000)), ("single_face.jpg", (562, 572))])
def test_real_photographs(name, size):
    from PIL import Image

    if not (FACES / name).is_file():
        pytest.skip("the photographs are not here")
    (frame,) = read_frames(Clip(FACES / name), fps=5)
    assert frame.image.shape == (*size, 3)
    with Image.open(FACES / name) as stored:
        expected = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(frame.image - expected).mean() < 2


# What gives nothing


def reason(path, start=0.0, end=None):
    with pytest.raises(ClipError) as caught:
        list(read_frames(Clip(path, start, end), fps=5))
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


@needs_av
def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    write_wav(tmp_path / "sound.wav", tone(0.2))
    assert reason(tmp_path / "absent.mp4") == "no such file: absent.mp4. Correct the path in the table."
    assert reason(tmp_path / "empty.mp4") == "the file is empty (0 bytes). Copy it again."
    assert (
        reason(tmp_path / "text.mp4")
        == "cannot be decoded: Invalid data found when processing input. Convert the recording, or copy it again."
    )
    assert reason(tmp_path / "sound.wav") == "the file has no video stream. Choose a recipe for sound, or another file."
    (tmp_path / "folder").mkdir()
    assert reason(tmp_path / "folder") == "a folder, not a file: folder. Correct the path in the table."


@needs_av
def test_the_cover_of_a_sound_file_is_no_recording(tmp_path):
    import av

    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        samples = av.AudioFrame.from_ndarray(tone(0.064)[None], format="fltp", layout="mono")
        samples.sample_rate = 16000
        for stream, frame in ((cover, picture), (cover, None), (sound, samples), (sound, None)):
            if frame is not None:
                frame.pts = 0
            container.mux(stream.encode(frame))
    assert reason(tmp_path / "song.mp4") == "the file has no video stream. Choose a recipe for sound, or another file."


@needs_av
def test_damaged_files(tmp_path):
    whole = write_video(tmp_path / "v.mp4", 2.0, fps=25).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "cannot be decoded" in reason(tmp_path / "cut.mp4")
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert "cannot be decoded" in reason(picture)


@needs_av
def test_windows_without_a_frame(tmp_path):
    path = write_video(tmp_path / "v.mp4", 1.0, fps=10)
    assert (
        reason(path, 3.0, 4.0) == "no frame between 3 s and 4 s of the recording. Correct start and end in the table."
    )
    assert reason(path, 3.0) == "no frame between 3 s and the end of the recording. Correct start and end in the table."
    assert (
        reason(path, 0.51, 0.59)
        == "no frame between 0.51 s and 0.59 s of the recording. Correct start and end in the table."
    )
    assert reason(path, 0.5, 0.5) == "the turn ends at 0.5 s, but starts at 0.5 s. Correct start and end in the table."


@needs_av
def test_a_colon_in_a_relative_name(tmp_path, monkeypatch):
    write_frames(tmp_path / "v.mov", numbered(3)).rename(tmp_path / "dia0:utt1.mov")
    monkeypatch.chdir(tmp_path)
    assert taken(Path("dia0:utt1.mov")) == [0, 1, 2]


def test_without_pyav(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Reading frames needs .*'av'.*ercfusion\[face\]"):
        read_frames(Clip(Path("v.mp4")))
