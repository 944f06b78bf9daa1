import numpy as np
import pytest
from made_faces import MULTI, OLD, SEQUENCE, V1, V2, face, nobody, seen, write

from ercfusion._core.errors import CorpusFormatError
from ercfusion.features.faces import FEX_SETS, LANDMARKS, OPENFACE_SETS
from ercfusion.features.fex import read_fex, read_openface

# Fex


@pytest.mark.parametrize("index", [False, True])
def test_first_detector(tmp_path, index):
    rows = [face(0, AU01=0.25, happiness=0.7), face(0, left=200.0), nobody(5), face(10, AU43="nan")]
    table = read_fex(write(tmp_path / "f.csv", V1, rows, index=index))
    assert table.columns == tuple(
        name for part in ("aus", "emotions", "pose", "landmarks", "gaze") for name in FEX_SETS[part]
    )
    assert table.values.shape == (4, 20 + 7 + 6 + 136 + 3)
    assert table.frame.tolist() == [0, 0, 5, 10]
    assert table.detected.tolist() == [True, True, False, True]
    assert table.rectangle[1].tolist() == [200, 20, 30, 40]
    assert table.score.tolist() == [0.9, 0.9, 0.0, 0.9]
    assert table.matrix(["AU01", "happiness", "x_67"])[0].tolist() == [0.25, 0.7, 0.5]
    assert np.isnan(table.values[2]).all()
    assert np.isnan(table.matrix(["AU43"])[3, 0])
    assert np.isnan(table.seconds).all()
    assert (table.track == -1).all()


def test_second_detector(tmp_path):
    path = write(tmp_path / "f.csv", V2, [face(0, Happy=0.7, Anger=0.1, Sad=0.05, valence=-0.3), nobody(1)])
    table = read_fex(path)
    emotions = table.matrix(FEX_SETS["emotions"])[0]
    assert emotions.tolist() == [0.1, 0.5, 0.5, 0.7, 0.05, 0.5, 0.5]
    assert table.matrix(["valence", "arousal"])[0].tolist() == [-0.3, 0.5]
    assert not {"Happy", "mesh_x_0", "Identity_1", "jawOpen"} & set(table.columns)


def test_older_files(tmp_path):
    table = read_fex(write(tmp_path / "f.csv", OLD, [face(0), face(1)]), video_fps=25)
    assert {"Pitch", "Roll", "Yaw"} < set(table.columns)
    assert not {"X", "Y", "Z", "gaze_yaw"} & set(table.columns)
    assert table.seconds.tolist() == [0.0, 0.04]


def problem(read, path):
    with pytest.raises(CorpusFormatError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (face(1, AU01="high"), ", line 3, column 'AU01': found 'high', but a number"),
        (face(1, AU01="inf"), ", line 3, column 'AU01': found an infinite number"),
        (face(1.5), ", line 3, column 'frame': found 1.5, but a whole number"),
        (face(-1), ", line 3, column 'frame': found -1, but a whole number"),
        (face(""), ", line 3, column 'frame': found nan, but a whole number"),
        (face(0, input="w.mp4"), ", line 3, column 'input': frame 0 is of 'w.mp4' here, of 'v.mp4' above"),
    ],
)
def test_damaged_fex_files(tmp_path, row, message):
    assert problem(read_fex, write(tmp_path / "f.csv", V1, [face(0), row])).startswith(message)


def test_a_header_in_the_middle(tmp_path):
    """What a detector that was started twice on one file leaves behind."""
    path = write(tmp_path / "f.csv", OLD, [face(0)])
    path.write_text(path.read_text() * 2)
    assert ", line 3, column 'AU01': found 'AU01'" in problem(read_fex, path)


def test_files_that_are_cut_off(tmp_path):
    path = write(tmp_path / "f.csv", OLD, [face(0), face(1)])
    path.write_text(path.read_text()[:-30])
    assert ", line 3: " in problem(read_fex, path)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert "a header line and no records" in problem(read_fex, path)
    path.write_text("")
    assert "is empty" in problem(read_fex, path)


def test_the_other_tool_s_file(tmp_path):
    openface = write(tmp_path / "o.csv", MULTI, [seen(1)], blank=" ")
    assert "line 1: no column 'frame'" not in problem(read_fex, openface)
    assert "no column 'FaceRectX', which Fex" in problem(read_fex, openface)
    assert problem(read_fex, openface).endswith("it looks like OpenFace's (tool openface).")
    fex = write(tmp_path / "f.csv", V1, [face(0)])
    assert problem(read_openface, fex).endswith("it looks like Py-Feat's (tool fex).")


# OpenFace


def test_a_sequence(tmp_path):
    points = {"x_3": 100.0, "x_9": 180.0, "y_3": 50.0, "y_9": 170.0}
    others = {name: 120.0 for name in LANDMARKS if name not in points}
    rows = [seen(1, AU01_r=4.5, AU28_c=1.0, **points, **others), seen(2, success=0, AU01_r=9.0), seen(3)]
    table = read_openface(write(tmp_path / "o.csv", MULTI, rows, blank=" "))
    sets = ("aus", "pose", "landmarks", "gaze", "gaze_angles")
    assert set(table.columns) == {name for part in sets for name in OPENFACE_SETS[part]}
    assert table.frame.tolist() == [1, 2, 3]
    assert table.seconds.tolist() == [0.0, 0.04, 0.08]
    assert table.detected.tolist() == [True, False, True]
    assert table.matrix(["AU01_r", "AU28_c"])[0].tolist() == [4.5, 1.0]
    assert np.isnan(table.values[1]).all()
    assert table.rectangle[0].tolist() == [100, 50, 80, 120]
    assert np.isnan(table.rectangle[1]).all()
    assert table.score.tolist() == [0.98] * 3
    assert table.track.tolist() == [0, 0, 0]


def test_several_faces(tmp_path):
    rows = [seen(1, 0), seen(1, 2), seen(2, 2)]
    table = read_openface(write(tmp_path / "o.csv", (*SEQUENCE, *OPENFACE_SETS["aus"]), rows, blank=" "))
    assert table.track.tolist() == [0, 2, 2]
    assert np.isnan(table.rectangle).all()  # no landmarks were asked for


def test_older_openface_files(tmp_path):
    columns = ("frame", "timestamp", "confidence", "success", *OPENFACE_SETS["gaze"], *OPENFACE_SETS["aus"])
    table = read_openface(write(tmp_path / "o.csv", columns, [seen(1), seen(2)], blank=" "))
    assert table.track.tolist() == [0, 0]
    assert "gaze_angle_x" not in table.columns


def test_a_picture(tmp_path):
    columns = ("face", "confidence", *OPENFACE_SETS["aus"])
    rows = [{"face": 0, "confidence": 0.975}, {"face": 1, "confidence": 0.6}]
    table = read_openface(write(tmp_path / "o.csv", columns, rows, blank=" "))
    assert table.frame.tolist() == [0, 0]
    assert table.seconds.tolist() == [0, 0]
    assert table.track.tolist() == [0, 1]
    assert table.detected.all()
    assert table.score.tolist() == [0.975, 0.6]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (seen(2, success=2), ", line 3, column 'success': found 2, but 0 or 1"),
        (seen(2, success=""), ", line 3, column 'success': found nan, but 0 or 1"),
        (seen(2, AU01_r="1,5"), ", line 3: "),
        (seen(2, AU01_r="-"), ", line 3, column 'AU01_r': found '-', but a number"),
        (seen(2, -1), ", line 3, column 'face_id': found -1"),
    ],
)
def test_damaged_openface_files(tmp_path, row, message):
    assert problem(read_openface, write(tmp_path / "o.csv", MULTI, [seen(1), row], blank=" ")).startswith(message)


def test_how_windows_writes_what_is_no_number(tmp_path):
    rows = [seen(1, gaze_0_x="-nan(ind)", gaze_0_y="-1.#IND00", gaze_0_z="nan", gaze_1_x="-nan")]
    table = read_openface(write(tmp_path / "o.csv", MULTI, rows, blank=" "))
    assert np.isnan(table.matrix(OPENFACE_SETS["gaze"])[0]).tolist() == [True] * 4 + [False] * 2


def test_a_missing_column(tmp_path):
    columns = ("frame", "timestamp", "success", *OPENFACE_SETS["aus"])
    path = write(tmp_path / "o.csv", columns, [seen(1)], blank=" ")
    assert "line 1: no column 'confidence', which OpenFace files have. Found: 'frame'," in problem(read_openface, path)
