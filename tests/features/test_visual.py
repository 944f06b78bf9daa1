import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from made_faces import MULTI, OLD, SEQUENCE, V1, face, nobody, picture, seen, standin, write, write_frames

from ercfusion._core.errors import ConfigError, MissingExtraError
from ercfusion.data.media import Clip
from ercfusion.features import visual
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import EXTRACTORS
from ercfusion.features.faces import FEX_SETS, LANDMARKS, OPENFACE_SETS
from ercfusion.features.frames import Frame
from ercfusion.features.visual import VisualExtractor
from ercfusion.testing.media import write_video

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


@pytest.fixture
def feat(monkeypatch):
    yield from standin(monkeypatch)


def extractor(tool, **settings):
    return VisualExtractor({"tool": tool, **settings})


def value(features, made, name):
    return features.values[0, made.dimension_names.index(name)]


def reason(made, path, start=0.0, end=None):
    with pytest.raises(ClipError) as caught:
        made(Clip(path, start, end))
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


# Settings


def test_interface():
    for tool in ("py-feat", "fex", "openface"):
        assert EXTRACTORS.load(tool) is VisualExtractor
    made = extractor("openface", tool_version="2.2.0")
    assert (made.modality, made.kind, made.level, made.tool, made.tool_version) == (
        "visual",
        "visual",
        "utterance",
        "openface",
        "2.2.0",
    )
    assert "noncommercial" in made.licence
    assert "MELD" in extractor("fex").licence
    columns = [name for part in ("aus", "pose", "gaze") for name in OPENFACE_SETS[part]]
    names = [f"{column}.{statistic}" for statistic in ("mean", "std", "max") for column in columns]
    assert made.dimension_names == [*names, "face_share"]
    assert len(made.dimension_names) == 3 * 47 + 1


def test_sequences_have_the_columns_themselves():
    made = extractor("fex", pooling=None, columns=["angles", "valence_arousal"])
    assert made.level == "sequence"
    assert made.dimension_names == ["Pitch", "Roll", "Yaw", "valence", "arousal"]
    assert extractor("fex", pooling=None, columns=["angles"], which_face="all").dimension_names[-1] == "track"


def test_settings_are_not_shared():
    one, two = extractor("openface"), extractor("openface")
    one.settings["columns"].append("x")
    assert two.settings["columns"] == extractor("openface").settings["columns"] == ["aus", "pose", "gaze"]


@pytest.mark.parametrize(
    ("tool", "settings", "message"),
    [
        ("pyfeat", {}, "tool='pyfeat': no tool for visual features. Did you mean 'py-feat'?"),
        ("openface", {"frames": 5}, "openface: unknown setting 'frames'"),
        ("openface", {"detector": {}}, "openface: unknown setting 'detector'"),
        ("openface", {"columns": "aus"}, "columns='aus': not a list of names"),
        ("openface", {"columns": []}, "columns=[]: not a list of names"),
        ("openface", {"columns": ["emotions"]}, "columns: unknown name 'emotions'"),
        ("fex", {"columns": ["emotion"]}, "columns: unknown name 'emotion'. Did you mean 'emotions'?"),
        ("fex", {"columns": ["aus", "aus"]}, "columns: 'aus' is listed twice"),
        ("fex", {"columns": ["pose", "angles"]}, "some columns are in two of these sets"),
        ("fex", {"pooling": ["median"]}, "pooling: unknown name 'median'. Did you mean 'mean'?"),
        ("fex", {"which_face": "biggest"}, "which_face='biggest': unknown"),
        ("fex", {"max_frames": 2.5}, "max_frames=2.5: not a whole number above 0 or null"),
        ("fex", {"max_frames": 0}, "max_frames=0"),
        ("openface", {"fps": -1}, "fps=-1: not a number above 0 or null"),
        ("openface", {"fps": float("nan")}, "fps=nan"),
        ("fex", {"fps": 5}, "Add video_fps=N"),
        ("fex", {"min_score": 2}, "min_score=2: not a number from 0 to 1"),
        ("fex", {"pattern": "{clip}.csv"}, "pattern='{clip}.csv': cannot be filled in ('clip')"),
        ("fex", {"pattern": "{stem.csv"}, "pattern='{stem.csv': cannot be filled in"),
    ],
)
def test_settings_that_do_not_fit(tool, settings, message):
    with pytest.raises(ConfigError) as caught:
        extractor(tool, **settings)
    assert message in str(caught.value)


def test_py_feat_is_asked_for_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Detecting faces needs .*ercfusion\[face\]"):
        extractor("py-feat")
    extractor("fex")  # needs neither


# OpenFace


def test_openface_pooled(tmp_path):
    rows = [seen(1, AU01_r=1.0), seen(2, AU01_r=3.0), seen(3, success=0), seen(4, AU01_r=2.0)]
    write(tmp_path / "c.csv", MULTI, rows, blank=" ")
    made = extractor("openface")
    found = made(Clip(tmp_path / "c.mp4"))
    assert found.values.shape == (1, len(made.dimension_names))
    assert found.values.dtype == np.float32
    assert value(found, made, "AU01_r.mean") == 2
    assert value(found, made, "AU01_r.max") == 3
    assert value(found, made, "AU01_r.std") == pytest.approx(np.std([1, 3, 2]))
    assert value(found, made, "face_share") == pytest.approx(3 / 4)
    assert found.note == ""
    assert found.seconds == pytest.approx(0.12)


def test_parts_of_a_recording(tmp_path, monkeypatch):
    """The turns of a dialogue: rows between start and end, and one reading for all of them."""
    write(tmp_path / "d.csv", MULTI, [seen(number + 1, AU01_r=float(number)) for number in range(100)], blank=" ")
    readings = []
    read = visual.read_openface
    monkeypatch.setattr(visual, "read_openface", lambda path: readings.append(path) or read(path))
    made = extractor("openface", pooling=None, columns=["aus"])
    one = made(Clip(tmp_path / "d.mp4", 0.4, 0.8))
    assert one.values[:, 0].tolist() == list(range(10, 20))
    assert one.seconds == pytest.approx(0.4)
    assert made(Clip(tmp_path / "d.mp4", 3.8)).values[:, 0].tolist() == list(range(95, 100))
    thinned = extractor("openface", pooling=None, columns=["aus"], fps=5, max_frames=3)
    assert thinned(Clip(tmp_path / "d.mp4")).values[:, 0].tolist() == [15, 50, 80]
    assert len(readings) == 2
    assert (
        reason(made, tmp_path / "d.mp4", 9.0, 10.0)
        == "no row between 9 s and 10 s of the table. Check that the table is of this recording."
    )
    assert (
        reason(made, tmp_path / "d.mp4", 2.0, 1.0)
        == "the turn ends at 1 s, but starts at 2 s. Correct start and end in the table."
    )


def test_several_faces_by_openface(tmp_path):
    far = {name: 10.0 if name.endswith("_0") else 12.0 for name in LANDMARKS}
    near = {name: 100.0 if name.endswith("_0") else 180.0 for name in LANDMARKS}
    rows = [
        *(seen(number, 0, AU01_r=1.0, **far) for number in range(1, 5)),
        *(seen(number, 1, AU01_r=3.0, **near) for number in range(2, 4)),
    ]
    write(tmp_path / "c.csv", MULTI, rows, blank=" ")

    def first(**settings):
        return extractor("openface", pooling=None, columns=["aus"], **settings)(Clip(tmp_path / "c.mp4")).values

    assert first(which_face="largest")[:, 0].tolist() == [1, 3, 3, 1]
    assert first(which_face="longest_tracked")[:, 0].tolist() == [1, 1, 1, 1]
    every = first(which_face="all")
    assert every[:, 0].tolist() == [1, 1, 3, 1, 3, 1]
    assert every[:, -1].tolist() == [0, 0, 1, 0, 1, 0]
    write(tmp_path / "c.csv", (*SEQUENCE, *OPENFACE_SETS["aus"]), rows, blank=" ")
    assert "which_face" in reason(extractor("openface", columns=["aus"]), tmp_path / "c.mp4")


def test_where_the_tables_lie(tmp_path):
    write_to = tmp_path / "out" / "train"
    write_to.mkdir(parents=True)
    write(write_to / "dia0_utt1.of.csv", MULTI, [seen(1)], blank=" ")
    made = extractor("openface", folder=str(tmp_path / "out"), pattern="{parent}/{stem}.of.csv")
    clip = tmp_path / "clips" / "train" / "dia0_utt1.mp4"
    assert value(made(Clip(clip)), made, "face_share") == 1
    assert made.source(Clip(clip)) == write_to / "dia0_utt1.of.csv"
    assert extractor("openface").source(Clip(clip)) == clip.with_suffix(".csv")
    assert (
        reason(made, clip.with_name("dia0_utt2.mp4"))
        == "no such file: dia0_utt2.of.csv. Run the tool on the recording, or correct folder or pattern."
    )


def test_tables_that_give_nothing(tmp_path):
    made = extractor("openface")
    write(tmp_path / "none.csv", MULTI, [seen(1, success=0), seen(2, success=0)], blank=" ")
    assert reason(made, tmp_path / "none.mp4") == "no face in any of 2 frames. Lower min_score if there should be one."
    (tmp_path / "empty.csv").touch()
    assert reason(made, tmp_path / "empty.mp4").startswith("empty.csv is empty (0 bytes)")
    write(tmp_path / "other.csv", V1, [face(0)])
    assert reason(made, tmp_path / "other.mp4").endswith("it looks like Py-Feat's (tool fex).")
    write(tmp_path / "less.csv", (*SEQUENCE, *OPENFACE_SETS["aus"]), [seen(1)], blank=" ")
    assert reason(made, tmp_path / "less.mp4") == (
        "less.csv: no column 'pose_Tx' of the set 'pose'. Set columns to angles instead (older tables have no "
        "position)."
    )


# Fex


def test_fex_pooled_with_gaps(tmp_path):
    rows = [
        face(0, AU01=0.2, AU02="nan", gaze_yaw=""),
        nobody(5),
        face(10, AU01=0.6, AU02=0.8, gaze_yaw=""),
        face(15, FaceScore=0.3),
    ]
    write(tmp_path / "c.csv", V1, rows)
    made = extractor("fex", columns=["aus", "gaze"], pooling=["mean"])
    found = made(Clip(tmp_path / "c.mp4"))
    assert value(found, made, "AU01.mean") == pytest.approx(0.4)
    assert value(found, made, "AU02.mean") == pytest.approx(0.8)
    assert value(found, made, "gaze_yaw.mean") == 0
    assert value(found, made, "face_share") == 0.5  # 15 is not sure enough
    assert found.note == "1 columns of gaze have no number and became 0"
    rows_of = extractor("fex", columns=["aus"], pooling=None)(Clip(tmp_path / "c.mp4")).values
    assert rows_of.shape == (2, 20)
    np.testing.assert_allclose(rows_of[:, 1], [0.8, 0.8])


def test_a_fex_file_counts_frames_only(tmp_path):
    write(tmp_path / "c.csv", OLD, [face(number, AU01=number / 100) for number in range(50)])
    without = extractor("fex", columns=["aus"], pooling=None)
    assert len(without(Clip(tmp_path / "c.mp4")).values) == 50
    assert reason(without, tmp_path / "c.mp4", 0.4, 0.8) == (
        "the clip is a part of its recording, and a Fex file has no times. Set video_fps."
    )
    known = extractor("fex", columns=["aus"], pooling=None, video_fps=25, fps=12.5)
    np.testing.assert_allclose(known(Clip(tmp_path / "c.mp4", 0.4, 0.8)).values[:, 0] * 100, range(10, 20, 2))


def test_tracks_in_a_thinned_table(tmp_path):
    """Two frames a second of 25: neighbours are twelve frames apart in the file, and the same person all the same."""
    rows = [face(number, AU01=0.25) for number in range(0, 100)]
    rows += [face(number, 300.0, AU01=0.75, FaceRectWidth=90.0) for number in (0, 13)]
    write(tmp_path / "c.csv", OLD, sorted(rows, key=lambda row: row["frame"]))
    made = extractor("fex", columns=["aus"], pooling=None, video_fps=25, fps=2, which_face="longest_tracked")
    assert made(Clip(tmp_path / "c.mp4")).values[:, 0].tolist() == [0.25] * 8


def test_older_fex_files_have_angles_only(tmp_path):
    write(tmp_path / "c.csv", OLD, [face(0, Pitch=-3.5)])
    assert "no column 'X' of the set 'pose'. Set columns to angles" in reason(extractor("fex"), tmp_path / "c.mp4")
    made = extractor("fex", columns=["angles"])
    assert value(made(Clip(tmp_path / "c.mp4")), made, "Pitch.mean") == -3.5


# Py-Feat, by its stand-in


def person(number, *more):
    """A face that walks to the right, 80 pixels wide pictures."""
    return picture((4 + number, 6, 10, 250), *more)


@needs_av
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_video(feat, tmp_path, version):
    images = [person(number) if number < 20 else picture() for number in range(25)]
    write_frames(tmp_path / "c.mov", images)
    columns = ["aus", "emotions", *(["valence_arousal"] if version == "v2" else [])]
    made = extractor("py-feat", detector={"version": version, "batch_size": 2}, columns=columns)
    found = made(Clip(tmp_path / "c.mov"))
    walked = (4 + np.array([0, 5, 10, 15])) / 80
    assert value(found, made, "AU01.mean") == pytest.approx(walked.mean())
    assert value(found, made, "AU01.std") == pytest.approx(walked.std())
    assert value(found, made, "AU01.max") == pytest.approx(walked.max())
    assert value(found, made, "happiness.mean") == 0.75
    assert value(found, made, "face_share") == pytest.approx(4 / 5)
    assert found.values.shape == (1, len(made.dimension_names))
    assert found.note == ""
    assert sys.modules["feat.detector"].CALLS == [(2, 3, 60, 80), (2, 3, 60, 80), (1, 3, 60, 80)]
    if version == "v2":
        assert value(found, made, "valence.mean") == 0.5


@needs_av
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_size_of_a_batch_changes_nothing(feat, tmp_path, batch):
    images = [person(number, (50, 30, 20, 230)) if number % 3 else person(number) for number in range(12)]
    write_frames(tmp_path / "c.mov", images)

    def rows(which):
        made = extractor("py-feat", fps=None, pooling=None, which_face=which, detector={"batch_size": batch})
        return made(Clip(tmp_path / "c.mov")).values

    moved = (4 + np.arange(12)) / 80
    np.testing.assert_allclose(rows("longest_tracked")[:, 0], moved, rtol=1e-6)
    np.testing.assert_allclose(rows("largest")[:, 0], np.where(np.arange(12) % 3, 50 / 80, moved), rtol=1e-6)
    every = rows("all")
    assert every[:, -1].tolist() == [0.0] + [0.0, 1.0, 0.0, 1.0, 0.0] * 3 + [0.0, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(every[every[:, -1] == 0, 0], moved, rtol=1e-6)


@needs_av
def test_a_recording_that_changes_its_size(feat, tmp_path, monkeypatch):
    images = [person(0), person(1), picture((8, 6, 10, 250), size=(60, 100)), person(3)]
    read = [Frame(number / 5, image) for number, image in enumerate(images)]
    monkeypatch.setattr(visual, "read_frames", lambda clip, **_: iter(read))
    found = extractor("py-feat", columns=["aus"], pooling=None)(Clip(tmp_path / "c.mov"))
    np.testing.assert_allclose(found.values[:, 0], [4 / 80, 5 / 80, 8 / 100, 7 / 80], rtol=1e-6)


@needs_av
def test_windows_and_limits(feat, tmp_path):
    write_frames(tmp_path / "c.mov", [person(number) for number in range(50)])
    made = extractor("py-feat", pooling=None, fps=5, max_frames=2, columns=["aus"])
    assert made.source(Clip(tmp_path / "c.mov")) == tmp_path / "c.mov"
    found = made(Clip(tmp_path / "c.mov", 0.4, 1.4))
    np.testing.assert_allclose(found.values[:, 0] * 80 - 4, [15, 25], atol=1e-4)
    assert found.seconds == pytest.approx(1.0)


@needs_av
def test_clips_that_give_nothing(feat, tmp_path):
    made = extractor("py-feat")
    path = write_video(tmp_path / "c.mp4", 1.0, fps=10, seed=1)
    found = extractor("py-feat", min_score=0.999)
    assert reason(found, path) == "no face in any of 5 frames. Lower min_score if there should be one."
    assert (
        reason(made, path, 5.0)
        == "no frame between 5 s and the end of the recording. Correct start and end in the table."
    )
    assert reason(made, tmp_path / "absent.mp4") == "no such file: absent.mp4. Correct the path in the table."


@needs_av
def test_a_detector_that_fails(feat, tmp_path):
    write_frames(tmp_path / "c.mov", [picture(size=(10, 13))])
    expected = "py-feat failed: RuntimeError: a picture it cannot digest. "
    expected += "Check that the recording plays, and convert it if not."
    assert reason(extractor("py-feat"), tmp_path / "c.mov") == expected


@needs_av
def test_how_the_detector_runs_does_not_tell_packs_apart(feat):
    one, two = extractor("py-feat"), extractor("py-feat", detector={"device": "auto", "batch_size": 64})
    assert one.settings == two.settings
    assert one.settings["detector"]["au_model"] == "xgb"
    assert extractor("py-feat", detector={"au_model": "svm"}).settings != one.settings
    assert json.loads(json.dumps(one.settings)) == one.settings


@needs_av
def test_a_worker_gets_no_detector(feat, tmp_path):
    write_frames(tmp_path / "c.mov", [person(0)])
    made = extractor("py-feat")
    made.prepare()
    detector = made._detector
    made.prepare()
    assert made._detector is detector
    sent = pickle.loads(pickle.dumps(made))
    assert sent._detector is None
    np.testing.assert_array_equal(sent(Clip(tmp_path / "c.mov")).values, made(Clip(tmp_path / "c.mov")).values)


@needs_av
@pytest.mark.parametrize(("name", "size"), [("single_face.jpg", (562, 572)), ("multi_face.jpg", (667, 1000))])
def test_real_photographs_reach_the_detector(feat, name, size):
    """What the stand-in takes for faces there means nothing; sizes, channels and the one frame do."""
    if not (FACES / name).is_file():
        pytest.skip("the photographs are not here")
    made = extractor("py-feat", columns=["aus", "emotions", "pose", "landmarks", "gaze"], min_score=0.2)
    found = made(Clip(FACES / name))
    (shape,) = sys.modules["feat.detector"].CALLS
    assert shape == (1, 3, *size)
    assert np.isfinite(found.values).all()
    assert value(found, made, "face_share") == 1
    assert len(made.dimension_names) == 3 * sum(len(FEX_SETS[part]) for part in made.settings["columns"]) + 1
