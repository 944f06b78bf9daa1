import numpy as np
import pytest

from ercfusion.features.clip_error import ClipError
from ercfusion.features.faces import (
    FEX_SETS,
    OPENFACE_SETS,
    FaceTable,
    choose_faces,
    fill_rows,
    join_tables,
    pool_rows,
    track_faces,
)

NAN = float("nan")


def table(*faces, tracks=None):
    """Rows of (frame, left, top, width, height, score); the value of a row is its number."""
    rows = np.array(faces, dtype=np.float64)
    count = len(rows)
    return FaceTable(
        ("A",),
        np.arange(count, dtype=np.float64)[:, None],
        rows[:, 0].astype(np.int64),
        rows[:, 0] / 5,
        rows[:, 1:5],
        rows[:, 5],
        np.isfinite(rows[:, 1:5]).all(axis=1),
        np.full(count, -1) if tracks is None else np.array(tracks),
    )


def chosen(*arguments):
    faces = choose_faces(*arguments)
    return faces.values[:, 0].astype(int).tolist()


def moving(frames, start, step, size):
    """(frame, left, top, width, height) of a face that moves by ``step`` a frame."""
    return np.array([(number, *(np.array(start) + number * np.array(step)), size, size) for number in frames], float)


def tracks_of(*people, seed=0):
    """Tracks of several people's faces, given to the tracker in a random order within each frame."""
    rows = np.concatenate(people)
    owner = np.repeat(np.arange(len(people)), [len(person) for person in people])
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(rows[order, 0], kind="stable")]
    found = track_faces(rows[order, 0].astype(np.int64), rows[order, 1:])
    return [sorted(set(found[owner[order] == number].tolist())) for number in range(len(people))]


def test_sets():
    assert {name: len(columns) for name, columns in FEX_SETS.items()} == {
        "aus": 20,
        "emotions": 7,
        "pose": 6,
        "angles": 3,
        "landmarks": 136,
        "gaze": 3,
        "valence_arousal": 2,
    }
    assert {name: len(columns) for name, columns in OPENFACE_SETS.items()} == {
        "aus": 35,
        "au_intensities": 17,
        "au_presences": 18,
        "pose": 6,
        "angles": 3,
        "landmarks": 136,
        "gaze": 6,
        "gaze_angles": 2,
    }
    assert OPENFACE_SETS["au_presences"][-2:] == ("AU28_c", "AU45_c")


# Tracking


@pytest.mark.parametrize("seed", range(3))
def test_people_keep_their_tracks(seed):
    still = moving(range(20), (10, 10), (0, 0), 40)
    walking = moving(range(20), (100, 10), (15, 1), 40)  # 3/8 of the face's size a frame
    growing = np.array([(number, 500, 200, 50 + 5 * number, 50 + 5 * number) for number in range(20)], float)
    found = tracks_of(still, walking, growing, seed=seed)
    assert sorted(map(tuple, found)) == [(0,), (1,), (2,)]


def test_crossing_people_without_a_change_of_place():
    """Two faces pass each other above and below: nearest first, not first come first served."""
    left = moving(range(10), (0, 0), (12, 0), 40)
    right = moving(range(10), (108, 45), (-12, 0), 40)
    assert sorted(map(tuple, tracks_of(left, right))) == [(0,), (1,)]


def test_a_jump_begins_a_track():
    rows = np.concatenate([moving(range(3), (0, 0), (0, 0), 40), moving(range(3, 6), (300, 0), (0, 0), 40)])
    assert track_faces(rows[:, 0].astype(int), rows[:, 1:]).tolist() == [0, 0, 0, 1, 1, 1]
    rows[3:, 1:] = 15, 15, 10, 10  # at the same place, but a quarter of the size
    assert track_faces(rows[:, 0].astype(int), rows[:, 1:]).tolist() == [0, 0, 0, 1, 1, 1]


def test_the_best_pair_first():
    """The first face of the second frame would fit both tracks; the other one fits the first track only."""
    rectangles = np.array([[0, 0, 40, 40], [30, 0, 40, 40], [16, 0, 40, 40], [2, 0, 40, 40]], float)
    assert track_faces(np.array([0, 0, 1, 1]), rectangles).tolist() == [0, 1, 1, 0]


def test_a_track_has_one_face_a_frame():
    rectangles = np.array([[0, 0, 40, 40], [2, 0, 40, 40], [1, 0, 40, 40]], float)
    assert track_faces(np.array([0, 1, 1]), rectangles).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("gap", "expected"), [(3, [0, 0]), (4, [0, 1])])
def test_a_hidden_face(gap, expected):
    rectangles = np.array([[0, 0, 40, 40], [1, 1, 40, 40]], float)
    assert track_faces(np.array([5, 5 + gap]), rectangles).tolist() == expected


def test_faces_of_one_frame_are_different_people():
    rectangles = np.array([[0, 0, 40, 40], [2, 2, 40, 40], [1, 1, 40, 40]], float)
    assert track_faces(np.array([0, 0, 1]), rectangles).tolist()[:2] == [0, 1]
    assert track_faces(np.array([], dtype=np.int64), np.empty((0, 4))).tolist() == []


# Choosing


def test_largest():
    faces = table(
        (1, 0, 0, 10, 10, 0.9), (0, 0, 0, 10, 10, 0.9), (0, 50, 0, 20, 20, 0.9), (2, NAN, NAN, NAN, NAN, 0), tracks=None
    )
    assert chosen(faces, "largest") == [2, 0]
    equal = table((0, 0, 0, 10, 10, 0.9), (0, 50, 0, 10, 10, 0.9))
    assert chosen(equal, "largest") == [0]


def test_scores():
    faces = table((0, 0, 0, 10, 10, 0.9), (0, 50, 0, 20, 20, 0.4), (1, 0, 0, 10, 10, NAN))
    assert chosen(faces, "largest", 0.5) == [0, 2]
    assert chosen(faces, "largest", 0.4) == [1, 2]
    assert chosen(faces, "all", 0.95) == [2]


def test_longest_tracked():
    small = [(number, 0, 0, 10, 10, 1) for number in range(4)]
    large = [(number, 100, 0, 90, 90, 1) for number in (0, 1, 3)]
    faces = table(*small, *large)
    assert chosen(faces, "longest_tracked") == [0, 1, 2, 3]
    tie = table(*small[:3], *large)  # three frames each: the larger one
    assert chosen(tie, "longest_tracked") == [3, 4, 5]
    same = table((0, 0, 0, 10, 10, 1), (0, 50, 0, 10, 10, 1))
    assert chosen(same, "longest_tracked") == [0]


def test_the_tool_s_own_tracks():
    """Where the tool tells people apart itself, places do not matter."""
    faces = table((0, 0, 0, 9, 9, 1), (1, 300, 0, 9, 9, 1), (0, 300, 0, 9, 9, 1), tracks=[7, 7, 2])
    assert chosen(faces, "longest_tracked") == [0, 1]
    assert choose_faces(faces, "all").track.tolist() == [2, 7, 7]


def test_all_are_ordered_by_frame_and_track():
    faces = table((1, 100, 0, 10, 10, 1), (0, 0, 0, 10, 10, 1), (0, 100, 0, 10, 10, 1), (1, 0, 0, 10, 10, 1))
    found = choose_faces(faces, "all")
    assert found.values[:, 0].tolist() == [1, 2, 3, 0]
    assert found.track.tolist() == [0, 1, 0, 1]
    assert found.seconds.tolist() == [0.0, 0.0, 0.2, 0.2]


def test_unknown_sizes():
    one = table((0, NAN, NAN, NAN, NAN, 1), (1, NAN, NAN, NAN, NAN, 1), tracks=[0, 0])
    one.detected[:] = True
    assert chosen(one, "largest") == [0, 1]
    two = table((0, NAN, NAN, NAN, NAN, 1), (0, NAN, NAN, NAN, NAN, 1), tracks=[0, 1])
    two.detected[:] = True
    with pytest.raises(ClipError, match=r"several faces in a frame, without .* Set which_face to longest_tracked"):
        choose_faces(two, "largest")
    assert chosen(two, "all") == [0, 1]


@pytest.mark.parametrize("which", ["largest", "longest_tracked", "all"])
def test_no_face(which):
    assert chosen(table((0, NAN, NAN, NAN, NAN, 0)), which) == []


def test_tables():
    one, two = table((0, 0, 0, 10, 10, 1)), table((1, 0, 0, 2, 3, 0.5), (2, 0, 0, 1, 1, 0.5))
    both = join_tables([one, two])
    assert len(both) == 3
    assert both.area.tolist() == [100, 6, 1]
    assert both.rows(np.array([2, 0])).frame.tolist() == [2, 0]
    assert both.matrix(["A", "A"]).tolist() == [[0, 0], [0, 0], [1, 1]]
    with pytest.raises(KeyError):
        both.matrix(["B"])


# Pooling


def test_statistics_are_numpy_s():
    values = np.random.default_rng(0).normal(size=(7, 3))
    pooled, void = pool_rows(values, ["mean", "std", "min", "max"])
    np.testing.assert_allclose(pooled[:3], values.mean(0))
    np.testing.assert_allclose(pooled[3:6], values.std(0))
    np.testing.assert_allclose(pooled[6:], [*values.min(0), *values.max(0)])
    assert not void.any()
    assert pool_rows(values[:1], ["std"])[0].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("error")
def test_missing_numbers_are_left_out():
    values = np.array([[1.0, NAN, np.inf], [NAN, NAN, 4.0], [3.0, NAN, 2.0]])
    pooled, void = pool_rows(values, ["mean", "max"])
    assert pooled.tolist() == [2, 0, 3, 3, 0, 4]
    assert void.tolist() == [False, True, False]
    filled, void = fill_rows(values)
    assert filled.tolist() == [[1, 0, 3], [2, 0, 4], [3, 0, 2]]
    assert void.tolist() == [False, True, False]
    assert np.isnan(values[1, 0])  # the caller's numbers are left alone
