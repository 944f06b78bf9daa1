"""Faces found in the frames of a clip: which columns there are, which face is taken, and what is made of its rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion.features.clip_error import ClipError

WhichFace = Literal["largest", "longest_tracked", "all"]
WHICH_FACES: tuple[WhichFace, ...] = ("largest", "longest_tracked", "all")
STATISTICS = ("mean", "std", "min", "max")

LANDMARKS = tuple(f"{axis}_{number}" for axis in "xy" for number in range(68))

# Py-Feat: the units of the facial action coding system that both detectors give, 0 (absent) to 1.
_FEX_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43)
_ANGLES = ("Pitch", "Roll", "Yaw")
FEX_SETS: Mapping[str, tuple[str, ...]] = {
    "aus": tuple(f"AU{unit:02d}" for unit in _FEX_UNITS),
    "emotions": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    "pose": (*_ANGLES, "X", "Y", "Z"),
    "angles": _ANGLES,
    "landmarks": LANDMARKS,
    "gaze": ("gaze_pitch", "gaze_yaw", "gaze_angle"),
    "valence_arousal": ("valence", "arousal"),
}

_OPENFACE_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
_INTENSITIES = tuple(f"AU{unit:02d}_r" for unit in _OPENFACE_UNITS)
_PRESENCES = tuple(f"AU{unit:02d}_c" for unit in sorted((*_OPENFACE_UNITS, 28)))
_ROTATION = ("pose_Rx", "pose_Ry", "pose_Rz")
OPENFACE_SETS: Mapping[str, tuple[str, ...]] = {
    "aus": _INTENSITIES + _PRESENCES,
    "au_intensities": _INTENSITIES,
    "au_presences": _PRESENCES,
    "pose": ("pose_Tx", "pose_Ty", "pose_Tz", *_ROTATION),
    "angles": _ROTATION,
    "landmarks": LANDMARKS,
    "gaze": tuple(f"gaze_{eye}_{axis}" for eye in "01" for axis in "xyz"),
    "gaze_angles": ("gaze_angle_x", "gaze_angle_y"),
}

# A face in the next frame continues a track where the rectangles overlap this much, ...
_OVERLAP = 0.3
# ... or, for a head that moved between two frames taken at a low rate, where the centres are no further apart than this
# share of the face's size and one is at most twice as large as the other.
_REACH = 0.5
# Frames from one sight of a face to the next, hidden by a hand or a bowed head in between, without losing its track.
_PATIENCE = 3


@dataclass(frozen=True)
class FaceTable:
    """Faces in the frames of a recording, one row a face; a frame without a face may have a row that says so.

    Args:
        columns: D names.
        values: (R, D) float64, NaN where the tool gave none.
        frame: (R,) int64 number of the frame.
        seconds: (R,) float64 from the beginning of the recording, NaN where it is not known.
        rectangle: (R, 4) float64 left, top, width, height in pixels, NaN where it is not known.
        score: (R,) float64 0 to 1, the tool's certainty that this is a face; NaN where it is not known.
        found: (R,) bool, False for a row that stands for a frame without a face.
        track: (R,) int64, the same for the same face in several frames; -1 where the tool did not say.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    frame: NDArray[np.int64]
    seconds: NDArray[np.float64]
    rectangle: NDArray[np.float64]
    score: NDArray[np.float64]
    found: NDArray[np.bool_]
    track: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, index: NDArray[Any]) -> FaceTable:
        """The rows at ``index`` (positions, or a mask)."""
        parts: dict[str, Any] = {name: getattr(self, name)[index] for name in _ARRAYS}
        return replace(self, **parts)

    def matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        """(R, len(names)) values of the named columns.

        Raises:
            KeyError: a column is not there.
        """
        place = {name: number for number, name in enumerate(self.columns)}
        return self.values[:, [place[name] for name in names]]

    @property
    def area(self) -> NDArray[np.float64]:
        """(R,) square pixels, NaN where the rectangle is not known."""
        return self.rectangle[:, 2] * self.rectangle[:, 3]


_ARRAYS = tuple(field.name for field in fields(FaceTable) if field.name != "columns")


def join_tables(tables: Sequence[FaceTable]) -> FaceTable:
    """One table of all rows of tables with the same columns, which are at least one."""
    parts: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _ARRAYS}
    return replace(tables[0], **parts)


def track_faces(frame: NDArray[np.int64], rectangle: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the faces so that one person keeps the number from frame to frame.

    In each frame, pairs of a face and a track are taken best first, every face and every track once. A pair is allowed
    where the face's rectangle and the track's last one overlap by at least 0.3 (intersection over union), or where
    their centres lie within half the face's size and their sizes within a factor of two. Its quality is the overlap
    minus the distance in face sizes. A face that fits no track begins one; a track that nothing fits in 3 frames ends.
    Only positions are compared, not looks: two people who change places between two frames change their numbers.

    Args:
        frame: (R,) number of the frame, consecutive for the frames that were looked at.
        rectangle: (R, 4) left, top, width, height.

    Returns:
        (R,) track of each row, numbered from 0 in order of first appearance.
    """
    track = np.full(len(frame), -1, dtype=np.int64)
    last: dict[int, int] = {}  # track to the row of its latest face
    begun = 0
    for number in np.unique(frame).tolist():
        here = np.flatnonzero(frame == number).tolist()
        last = {name: row for name, row in last.items() if number - frame[row] <= _PATIENCE}
        pairs = []
        for row in here:
            for name, before in last.items():
                overlap, distance, ratio = _compare(rectangle[row], rectangle[before])
                if overlap >= _OVERLAP or (distance <= _REACH and ratio <= 2):
                    pairs.append((distance - overlap, name, row))
        used: set[int] = set()
        for _, name, row in sorted(pairs):
            if name not in used and track[row] < 0:
                track[row] = name
                used.add(name)
        for row in here:
            if track[row] < 0:
                track[row] = begun
                begun += 1
            last[int(track[row])] = row
    return track


def _compare(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, float]:
    """Intersection over union, distance of the centres in sizes of the smaller face, and how many times larger."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(one[2] * one[3]), float(other[2] * other[3])
    small, large = (max(area, 1e-9) ** 0.5 for area in sorted(areas))
    union = areas[0] + areas[1] - common
    distance = float(np.hypot(*(one[:2] + one[2:] / 2 - other[:2] - other[2:] / 2))) / small
    return common / union if union > 0 else 0.0, distance, large / small


def choose_faces(table: FaceTable, which: WhichFace, min_score: float = 0.0) -> FaceTable:
    """The rows of the faces that are taken, ordered by frame, then by track.

    Args:
        table: Frames numbered consecutively, for tracking.
        which: ``largest``: in each frame the face with the largest rectangle, the first of equal ones.
            ``longest_tracked``: the track that is in the most frames, of equal ones that with the largest mean area.
            ``all``: every face. Tracks that the tool did not state are those of :func:`track_faces`.
        min_score: Faces of which the tool is less certain are left out.

    Returns:
        At most one row a frame, save for ``all``; empty where there is no face.

    Raises:
        ClipError: ``largest`` where a frame has several faces whose size is not known.
    """
    # Compared this way round, so that an unknown (NaN) score is kept.
    faces = table.rows(table.found & ~(table.score < min_score))
    if which == "largest":
        area = faces.area
        several = np.isin(faces.frame, np.flatnonzero(np.bincount(faces.frame) > 1)) if len(faces) else faces.found
        if np.isnan(area[several]).any():
            raise ClipError(
                "several faces in a frame, and neither rectangles nor landmarks say which is the largest: set "
                "which_face to longest_tracked or all, or write landmarks too"
            )
        order = np.lexsort((-np.nan_to_num(area), faces.frame))
        return faces.rows(order[np.unique(faces.frame[order], return_index=True)[1]])
    if (faces.track < 0).any():
        faces = replace(faces, track=track_faces(faces.frame, faces.rectangle))
    if which == "longest_tracked" and len(faces):
        names, index = np.unique(faces.track, return_inverse=True)
        count = np.bincount(index)
        area = np.bincount(index, weights=np.nan_to_num(faces.area)) / count
        faces = faces.rows(index == np.lexsort((np.arange(len(names)), -area, -count))[0])
    return faces.rows(np.lexsort((faces.track, faces.frame)))


def pool_rows(values: NDArray[np.float64], statistics: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Statistics over the rows, with what is not a finite number left out of its column.

    Args:
        values: (R, D), R at least 1.
        statistics: Of :data:`STATISTICS`; ``std`` is that of the population (0 for one row).

    Returns:
        (len(statistics) * D) values, one block of D a statistic, and (D) True for columns without any number, whose
        statistics are 0.
    """
    clean = np.where(np.isfinite(values), values, np.nan)
    void = np.asarray(np.isnan(clean).all(axis=0))
    clean[:, void] = 0.0
    pooled = [getattr(np, f"nan{statistic}")(clean, axis=0) for statistic in statistics]
    return np.concatenate(pooled), void


def fill_rows(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Replace what is not a finite number by the mean of its column over the clip.

    Args:
        values: (R, D).

    Returns:
        (R, D) finite values, and (D) True for columns without any number, which become 0.
    """
    clean = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing, which becomes 0 below
        mean = np.nanmean(clean, axis=0)
    return np.where(np.isnan(clean), np.nan_to_num(mean), clean), np.asarray(np.isnan(clean).all(axis=0))
