"""Read face tables written by Py-Feat or OpenFace, without either tool.

**Fex** is Py-Feat's table (2.1.5), one row per face, and a row of NaN for a frame without a face:

- ``frame``; ``FaceRectX``, ``FaceRectY``, ``FaceRectWidth``, ``FaceRectHeight`` in pixels; ``FaceScore``;
- landmarks ``x_0`` to ``x_67`` and ``y_0`` to ``y_67`` in pixels;
- ``Pitch``, ``Roll``, ``Yaw`` (degrees in older files, radians from 2.x); later files also ``X``, ``Y``, ``Z``;
- action units ``AU01`` to ``AU43``, 0 to 1; emotions, 0 to 1: ``anger`` ... or (second detector) ``Anger`` ...;
- ``valence`` and ``arousal``, -1 to 1 (second detector); ``gaze_pitch``, ``gaze_yaw``, ``gaze_angle`` in radians.

Cheong, Jolly, Xie, Byrne, Kenney, Chang. Py-Feat: Python Facial Expression Analysis Toolbox. Affective Science 4, 2023.

**OpenFace** 2.0 (class ``RecorderCSV``) writes a blank before each name. A sequence has ``frame`` (from 1),
``face_id``, ``timestamp`` (seconds), ``confidence`` (0 to 1), ``success`` (0 or 1); a picture has ``face`` and
``confidence``. Optional: gaze directions (unit vectors) and angles (radians), ``pose_T*`` (mm), ``pose_R*`` (radians),
landmarks (pixels), action units ``AU*_r`` (0 to 5) and ``AU*_c`` (0 or 1). Earlier versions have no ``face_id`` and no
gaze angles.
Baltrusaitis, Zadeh, Lim, Morency. OpenFace 2.0: Facial Behavior Analysis Toolkit. FG 2018.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import CorpusFormatError
from ercfusion._core.files import StrPath
from ercfusion.data.tabular import Row, read_records
from ercfusion.features.faces import FEX_SETS, LANDMARKS, OPENFACE_SETS, FaceTable

RECTANGLE = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
_SEQUENCE = ("frame", "timestamp", "confidence", "success")
_PICTURE = ("face", "confidence")
# The second detector's names of the same emotions.
_CAPITALISED = {
    "Anger": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happiness",
    "Sad": "sadness",
    "Surprise": "surprise",
    "Neutral": "neutral",
}
# All columns of a Fex in use.
FEX_COLUMNS = {*_CAPITALISED, *RECTANGLE, "FaceScore"}.union(*FEX_SETS.values())


def read_fex(path: StrPath, *, video_fps: float | None = None) -> FaceTable:
    """Read a table of Py-Feat's ``to_csv``; emotions get the first detector's names.

    Args:
        path: The file.
        video_fps: Frames per second, for the times (NaN without it): a Fex file has frame numbers only.

    Raises:
        CorpusFormatError: not a Fex, a cell is not a number, or a frame number belongs to two inputs.
        OSError: the file cannot be read.
    """
    path = Path(path)
    cells, lines, inputs = _read(path, [("frame", *RECTANGLE, "FaceScore")], FEX_COLUMNS, "Fex (Py-Feat)", "input")
    frame = _whole(path, cells["frame"], lines, "frame")
    first: dict[int, str] = {}
    for number, line, name in zip(frame.tolist(), lines, inputs, strict=False):  # inputs is empty without the column
        if first.setdefault(number, name) != name:
            raise CorpusFormatError(
                f"{path}, line {line}, column 'input': frame {number} is of {name!r} here, of {first[number]!r} above. "
                f"Write one file per recording."
            )
    seconds = np.full(len(frame), np.nan) if video_fps is None else frame / video_fps
    return fex_table(cells, frame, seconds)


def fex_table(
    cells: Mapping[str, NDArray[np.float64]], frame: NDArray[np.int64], seconds: NDArray[np.float64]
) -> FaceTable:
    """The face table of a Fex's columns: (R,) values by name, frame numbers, and times or NaN."""
    named = {_CAPITALISED.get(name, name): values for name, values in cells.items()}
    columns = _in_order(named, FEX_SETS)
    rectangle = np.stack([named[name] for name in RECTANGLE], axis=1)
    detected = np.asarray(np.isfinite(rectangle).all(axis=1))
    unknown = np.full(len(frame), -1, dtype=np.int64)
    return FaceTable(
        columns, _matrix(named, columns, len(frame)), frame, seconds, rectangle, named["FaceScore"], detected, unknown
    )


def read_openface(path: StrPath) -> FaceTable:
    """Read a table of OpenFace for a sequence (FeatureExtraction, FaceLandmarkVidMulti) or a picture.

    The rectangle is the one around the landmarks, if there are any. ``success`` 0 means no face. ``face_id`` becomes
    the track (0 without it). Faces of a picture are in frame 0 at second 0.

    Raises:
        CorpusFormatError: not OpenFace's, a cell is not a number, or ``success`` is neither 0 nor 1.
        OSError: the file cannot be read.
    """
    path = Path(path)
    cells, lines, _ = _read(path, (_SEQUENCE, _PICTURE), {"face_id"}.union(*OPENFACE_SETS.values()), "OpenFace")
    count = len(lines)
    if "frame" not in cells:
        frame, seconds = np.zeros(count, dtype=np.int64), np.zeros(count)
        detected, track = np.ones(count, dtype=bool), _whole(path, cells["face"], lines, "face")
    else:
        frame, seconds = _whole(path, cells["frame"], lines, "frame"), cells["timestamp"]
        success = cells["success"]
        if len(odd := np.flatnonzero(~np.isin(success, (0, 1)))):
            Row(path, lines[odd[0]], {}).fail(
                "success", f"found {success[odd[0]]:g}, but 0 or 1 is expected. Run the tool again."
            )
        detected = success == 1
        single = "face_id" not in cells
        track = np.zeros(count, np.int64) if single else _whole(path, cells["face_id"], lines, "face_id")
    columns = _in_order(cells, OPENFACE_SETS)
    values = _matrix(cells, columns, count)
    values[~detected] = np.nan
    rectangle = np.full((count, 4), np.nan)
    if all(name in cells for name in LANDMARKS):
        points = _matrix(cells, LANDMARKS, count).reshape(count, 2, 68)
        low = points.min(axis=2)
        rectangle = np.concatenate([low, points.max(axis=2) - low], axis=1)
        rectangle[~detected] = np.nan
    return FaceTable(columns, values, frame, seconds, rectangle, cells["confidence"], detected, track)


def _read(
    path: Path, forms: Sequence[Sequence[str]], known: Iterable[str], kind: str, text: str = ""
) -> tuple[dict[str, NDArray[np.float64]], list[int], list[str]]:
    """(R,) numbers by column, lines, and cells of column ``text``.

    ``forms`` are alternative lists of required columns, recognised by the first. Cells are converted while reading: an
    OpenFace file can have 714 columns, most of them unused.
    """
    records = read_records(path)
    header_line, names = next(records)
    header = [name.strip() for name in names]
    required = next((form for form in forms if form[0] in header), forms[0])
    for column in required:
        if column not in header:
            raise CorpusFormatError(
                f"{path}, line {header_line}: no column {column!r}, which {kind} files have. Found: "
                f"{', '.join(map(repr, header[:6]))}{', ...' if len(header) > 6 else ''}. Check that "
                f"the recipe's tool wrote the file{_other(header, kind)}."
            )
    wanted = sorted({*required, *known}.intersection(header))
    places = [header.index(column) for column in wanted]
    text_place = header.index(text) if text in header else None
    numbers, lines, texts = [], [], []
    for line, record in records:
        if len(record) != len(header):
            raise CorpusFormatError(
                f"{path}, line {line}: {len(record)} cells, but the header has {len(header)}. Write the file again: it "
                f"was cut off or edited."
            )
        try:
            row = [float(record[place]) for place in places]
        except ValueError:
            row = [_number(path, line, name, record[place]) for name, place in zip(wanted, places, strict=True)]
        numbers.append(row)
        lines.append(line)
        if text_place is not None:
            texts.append(record[text_place])
    if not lines:
        raise CorpusFormatError(f"{path}: a header line and no records. Run the tool again: it was stopped.")
    matrix = np.array(numbers, dtype=np.float64)
    if np.isinf(matrix).any():
        row_number, column_number = np.argwhere(np.isinf(matrix))[0]
        Row(path, lines[row_number], {}).fail(wanted[column_number], "found an infinite number. Run the tool again.")
    return dict(zip(wanted, matrix.T, strict=True)), lines, texts


def _number(path: Path, line: int, column: str, cell: str) -> float:
    # pandas writes NaN as an empty cell; the other forms come from Windows programs such as OpenFace.
    if re.fullmatch(r"|-?nan\(\w*\)|-?1\.#(IND|QNAN)\w*", cell.strip(), re.IGNORECASE):
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        Row(path, line, {}).fail(column, f"found {cell.strip()!r}, but a number is expected. Run the tool again.")


def _whole(path: Path, numbers: NDArray[np.float64], lines: Sequence[int], column: str) -> NDArray[np.int64]:
    wrong = np.flatnonzero(
        ~(np.isfinite(numbers) & (numbers >= 0) & (numbers < 2**53) & (numbers == np.floor(numbers)))
    )
    if len(wrong):
        value = numbers[wrong[0]]
        Row(path, lines[wrong[0]], {}).fail(
            column, f"found {value:g}, but a whole number (0, 1, ...) is expected. Run the tool again."
        )
    return numbers.astype(np.int64)


def _other(header: Sequence[str], kind: str) -> str:
    # The commonest mistake is the other tool's file.
    if kind == "OpenFace":
        return ": it looks like Py-Feat's (tool fex)" if "FaceScore" in header else ""
    return ": it looks like OpenFace's (tool openface)" if "confidence" in header else ""


def _in_order(cells: Mapping[str, object], sets: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = dict.fromkeys(name for group in sets.values() for name in group)
    return tuple(name for name in names if name in cells)


def _matrix(cells: Mapping[str, NDArray[np.float64]], columns: Sequence[str], count: int) -> NDArray[np.float64]:
    if not columns:
        return np.empty((count, 0))
    return np.stack([cells[name] for name in columns], axis=1)
