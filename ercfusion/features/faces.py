"""Faces in the frames of a clip: columns, choice of the face, statistics over frames."""

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

# Py-Feat's action units, 0 (absent) to 1.
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

# See track_faces: overlap; distance in face sizes; frames.
_OVERLAP = 0.3
_REACH = 0.5
_PATIENCE = 3


@dataclass(frozen=True)
class FaceTable:
    """Faces in the frames of a recording, one row per face, and possibly rows for frames without faces.

    Args:
        columns: D names.
        values: (R, D) float64.
        frame: (R,) int64.
        seconds: (R,) float64 from the recording's start.
        rectangle: (R, 4) float64: left, top, width, height in pixels.
        score: (R,) float64, 0 to 1: the tool's confidence.
        detected: (R,) bool; False for a frame without a face.
        track: (R,) int64, equal for one face in several frames; -1 if unknown.

    Unknown floats are NaN.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    frame: NDArray[np.int64]
    seconds: NDArray[np.float64]
    rectangle: NDArray[np.float64]
    score: NDArray[np.float64]
    detected: NDArray[np.bool_]
    track: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, index: NDArray[Any]) -> FaceTable:
        """The rows at positions, or of a mask."""
        parts: dict[str, Any] = {name: getattr(self, name)[index] for name in _ARRAYS}
        return replace(self, **parts)

    def matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        """(R, len(names)) values of columns; KeyError if one is missing."""
        place = {name: number for number, name in enumerate(self.columns)}
        return self.values[:, [place[name] for name in names]]

    @property
    def area(self) -> NDArray[np.float64]:
        """(R,) square pixels, or NaN."""
        return self.rectangle[:, 2] * self.rectangle[:, 3]


_ARRAYS = tuple(field.name for field in fields(FaceTable) if field.name != "columns")


def join_tables(tables: Sequence[FaceTable]) -> FaceTable:
    """All rows of tables with the same columns."""
    parts: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _ARRAYS}
    return replace(tables[0], **parts)


def track_faces(frame: NDArray[np.int64], rectangle: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the faces so that one person keeps the number from frame to frame.

    In each frame, faces are matched with tracks, best pairs first. A pair needs rectangles overlapping by at least 0.3
    (intersection over union), or centres within half the face's size and sizes within a factor of two. Its quality is
    the overlap minus the distance in face sizes. Unmatched faces start tracks; a track without a face for 3 frames
    ends. Only positions are compared: two people changing places between two frames exchange their numbers.

    Args:
        frame: (R,) consecutive numbers.
        rectangle: (R, 4) left, top, width, height.

    Returns:
        (R,) tracks from 0, in order of first appearance.
    """
    track = np.full(len(frame), -1, dtype=np.int64)
    last: dict[int, int] = {}  # track to its latest row
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
    """Intersection over union, distance of centres in sizes of the smaller face, ratio of sizes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(one[2] * one[3]), float(other[2] * other[3])
    small, large = (max(area, 1e-9) ** 0.5 for area in sorted(areas))
    union = areas[0] + areas[1] - common
    distance = float(np.hypot(*(one[:2] + one[2:] / 2 - other[:2] - other[2:] / 2))) / small
    return common / union if union > 0 else 0.0, distance, large / small


def choose_faces(table: FaceTable, which: WhichFace, min_score: float = 0.0) -> FaceTable:
    """The rows of the chosen faces, ordered by frame, then by track.

    Args:
        table: Frames numbered consecutively.
        which: ``largest``: the first largest rectangle per frame. ``longest_tracked``: the track in most frames, then
            with the largest mean area. ``all``: every face.
        min_score: Minimum score; unknown scores pass.

    Raises:
        ClipError: ``largest``, and a frame has several faces of unknown size.
    """
    # Negated for NaN.
    faces = table.rows(table.detected & ~(table.score < min_score))
    if which == "largest":
        area = faces.area
        several = np.isin(faces.frame, np.flatnonzero(np.bincount(faces.frame) > 1)) if len(faces) else faces.detected
        if np.isnan(area[several]).any():
            raise ClipError(
                "several faces in a frame, without rectangles or landmarks to find the largest. Set which_face to "
                "longest_tracked or all, or write landmarks too."
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
    """Statistics over the finite values.

    Args:
        values: (R, D), R at least 1.
        statistics: Of :data:`STATISTICS`; ``std`` is the population's (0 for one row).

    Returns:
        (len(statistics) * D) values, a block per statistic, and (D) True for columns without finite values, which
        become 0.
    """
    clean = np.where(np.isfinite(values), values, np.nan)
    void = np.asarray(np.isnan(clean).all(axis=0))
    clean[:, void] = 0.0
    pooled = [getattr(np, f"nan{statistic}")(clean, axis=0) for statistic in statistics]
    return np.concatenate(pooled), void


def fill_rows(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Replace non-finite values of (R, D) by their column's mean.

    Returns:
        (R, D) finite values, and (D) True for columns without finite values, which become 0.
    """
    clean = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # empty columns
        mean = np.nanmean(clean, axis=0)
    return np.where(np.isnan(clean), np.nan_to_num(mean), clean), np.asarray(np.isnan(clean).all(axis=0))
