"""Reading tables of faces that Py-Feat or OpenFace wrote, without either of them.

**Fex** is Py-Feat's table, one row a face; a frame without a face has a row of NaN. What is read here is what its
sources at version 2.1.5 write and its test files hold: ``frame``; ``FaceRectX``, ``FaceRectY``, ``FaceRectWidth``,
``FaceRectHeight`` in pixels and ``FaceScore``; ``x_0`` to ``x_67`` and ``y_0`` to ``y_67`` in pixels; ``Pitch``,
``Roll``, ``Yaw`` (degrees in its older test files, radians from 2.x), in later files also ``X``, ``Y``,
``Z``; twenty action units ``AU01`` to ``AU43``, 0 to 1; emotions, 0 to 1, ``anger`` to ``neutral`` from the first
detector and ``Neutral`` to ``Anger`` from the second, which adds ``valence`` and ``arousal`` (-1 to 1); ``gaze_pitch``,
``gaze_yaw``, ``gaze_angle`` in radians. Other columns (identity vectors, mesh, blendshapes) are passed over.
Cheong, Jolly, Xie, Byrne, Kenney, Chang. Py-Feat: Python Facial Expression Analysis Toolbox. Affective Science 4, 2023.

**OpenFace** 2.0 writes names with a blank before them, as its class ``RecorderCSV`` shows: ``frame`` (from 1),
``face_id``, ``timestamp`` (seconds), ``confidence`` (0 to 1), ``success`` (0 or 1) for a sequence, ``face`` and
``confidence`` for a picture; then, each only where it was asked for, gaze directions (unit vectors) and angles
(radians), ``pose_T*`` (mm) and ``pose_R*`` (radians), landmarks (pixels), action units as intensities ``AU*_r`` (0 to
5) and presences ``AU*_c`` (0 or 1). Files of earlier versions have no ``face_id`` and no gaze angles.
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
# The second detector's names for the same seven emotions.
_CAPITALISED = {
    "Anger": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happiness",
    "Sad": "sadness",
    "Surprise": "surprise",
    "Neutral": "neutral",
}
# All columns of a Fex that are read.
FEX_COLUMNS = {*_CAPITALISED, *RECTANGLE, "FaceScore"}.union(*FEX_SETS.values())


def read_fex(path: StrPath, *, video_fps: float | None = None) -> FaceTable:
    """Read a table that Py-Feat wrote with ``to_csv``.

    Emotions have the first detector's names, whichever detector wrote the file. The rows are in the order of the file;
    those of frames without a face have ``found`` False.

    Args:
        path: The file.
        video_fps: Frames a second of the recording, from which the times are computed: a Fex file counts frames only.
            Without it all times are NaN.

    Raises:
        CorpusFormatError: the file is empty, not UTF-8, or not a Fex file; a cell is no number; a frame number belongs
            to two inputs. The message names file, line and column.
        OSError: the file cannot be read.
    """
    path = Path(path)
    cells, lines, inputs = _read(path, [("frame", *RECTANGLE, "FaceScore")], FEX_COLUMNS, "Fex (Py-Feat)", "input")
    frame = _whole(path, cells["frame"], lines, "frame")
    first: dict[int, str] = {}
    for number, line, name in zip(frame.tolist(), lines, inputs, strict=False):  # no inputs where there is no column
        if first.setdefault(number, name) != name:
            raise CorpusFormatError(
                f"{path}, line {line}, column 'input': frame {number} is of {name!r} here and of {first[number]!r} "
                f"above. The rows of several recordings stand in one file: write one file for each."
            )
    seconds = np.full(len(frame), np.nan) if video_fps is None else frame / video_fps
    return fex_table(cells, frame, seconds)


def fex_table(
    cells: Mapping[str, NDArray[np.float64]], frame: NDArray[np.int64], seconds: NDArray[np.float64]
) -> FaceTable:
    """The table for columns of a Fex.

    Args:
        cells: (R,) values by name: ``FaceRectX``, ``FaceRectY``, ``FaceRectWidth``, ``FaceRectHeight``, ``FaceScore``,
            and any of the others.
        frame: (R,) number of the frame.
        seconds: (R,) time, or NaN.
    """
    named = {_CAPITALISED.get(name, name): values for name, values in cells.items()}
    columns = _in_order(named, FEX_SETS)
    rectangle = np.stack([named[name] for name in RECTANGLE], axis=1)
    found = np.asarray(np.isfinite(rectangle).all(axis=1))
    unknown = np.full(len(frame), -1, dtype=np.int64)
    return FaceTable(
        columns, _matrix(named, columns, len(frame)), frame, seconds, rectangle, named["FaceScore"], found, unknown
    )


def read_openface(path: StrPath) -> FaceTable:
    """Read a table that OpenFace wrote, of a sequence (FeatureExtraction, FaceLandmarkVidMulti) or of a picture.

    OpenFace writes no rectangles: where the file has landmarks, the rectangle is the smallest around them. Rows with
    ``success`` 0 have ``found`` False and NaN for all values: what stands there describes no face. ``face_id`` becomes
    the track; a file without it follows one face, which is track 0. In a picture's file all faces are of frame 0 at
    second 0.

    Raises:
        CorpusFormatError: the file is empty, not UTF-8, or not OpenFace's; a cell is no number; ``success`` is neither
            0 nor 1. The message names file, line and column.
        OSError: the file cannot be read.
    """
    path = Path(path)
    cells, lines, _ = _read(path, (_SEQUENCE, _PICTURE), {"face_id"}.union(*OPENFACE_SETS.values()), "OpenFace")
    count = len(lines)
    if "frame" not in cells:
        frame, seconds = np.zeros(count, dtype=np.int64), np.zeros(count)
        found, track = np.ones(count, dtype=bool), _whole(path, cells["face"], lines, "face")
    else:
        frame, seconds = _whole(path, cells["frame"], lines, "frame"), cells["timestamp"]
        success = cells["success"]
        if len(odd := np.flatnonzero(~np.isin(success, (0, 1)))):
            Row(path, lines[odd[0]], {}).fail("success", f"found {success[odd[0]]:g}, but 0 or 1 is expected.")
        found = success == 1
        single = "face_id" not in cells
        track = np.zeros(count, np.int64) if single else _whole(path, cells["face_id"], lines, "face_id")
    columns = _in_order(cells, OPENFACE_SETS)
    values = _matrix(cells, columns, count)
    values[~found] = np.nan
    rectangle = np.full((count, 4), np.nan)
    if all(name in cells for name in LANDMARKS):
        points = _matrix(cells, LANDMARKS, count).reshape(count, 2, 68)
        low = points.min(axis=2)
        rectangle = np.concatenate([low, points.max(axis=2) - low], axis=1)
        rectangle[~found] = np.nan
    return FaceTable(columns, values, frame, seconds, rectangle, cells["confidence"], found, track)


def _read(
    path: Path, forms: Sequence[Sequence[str]], known: Iterable[str], kind: str, text: str = ""
) -> tuple[dict[str, NDArray[np.float64]], list[int], list[str]]:
    """(R,) numbers by column, for the required and ``known`` ones that are there; lines; cells of column ``text``.

    Of the ``forms``, each a list of required columns, the file must have that of which it has the first column. The
    cells are converted while the file is read: an OpenFace file can have 714 columns, most of which nobody asks for.
    """
    records = read_records(path)
    header_line, names = next(records)
    header = [name.strip() for name in names]
    required = next((form for form in forms if form[0] in header), forms[0])
    for column in required:
        if column not in header:
            raise CorpusFormatError(
                f"{path}, line {header_line}: no column {column!r}, so this is no {kind} file. Found: "
                f"{', '.join(map(repr, header[:6]))}{', ...' if len(header) > 6 else ''}.{_other(header, kind)}"
            )
    wanted = sorted({*required, *known}.intersection(header))
    places = [header.index(column) for column in wanted]
    beside = header.index(text) if text in header else None
    numbers, lines, texts = [], [], []
    for line, record in records:
        if len(record) != len(header):
            raise CorpusFormatError(
                f"{path}, line {line}: {len(record)} cells, but the header has {len(header)}. The file was cut off or "
                f"edited: write it again."
            )
        try:
            row = [float(record[place]) for place in places]
        except ValueError:
            row = [_number(path, line, name, record[place]) for name, place in zip(wanted, places, strict=True)]
        numbers.append(row)
        lines.append(line)
        if beside is not None:
            texts.append(record[beside])
    if not lines:
        raise CorpusFormatError(f"{path} holds a header line and no records. The tool was stopped: run it again.")
    matrix = np.array(numbers, dtype=np.float64)
    if np.isinf(matrix).any():
        row_number, column_number = np.argwhere(np.isinf(matrix))[0]
        Row(path, lines[row_number], {}).fail(wanted[column_number], "found an infinite number. Run the tool again.")
    return dict(zip(wanted, matrix.T, strict=True)), lines, texts


def _number(path: Path, line: int, column: str, cell: str) -> float:
    # Nothing at all is how pandas writes NaN; the others come from programs built for Windows, as OpenFace's.
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
        found = numbers[wrong[0]]
        Row(path, lines[wrong[0]], {}).fail(column, f"found {found:g}, but a whole number (0, 1, ...) is expected.")
    return numbers.astype(np.int64)


def _other(header: Sequence[str], kind: str) -> str:
    # The commonest mistake is the other tool's file.
    if kind == "OpenFace":
        return " It looks like Py-Feat's: use tool fex." if "FaceScore" in header else ""
    return " It looks like OpenFace's: use tool openface." if "confidence" in header else ""


def _in_order(cells: Mapping[str, object], sets: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = dict.fromkeys(name for group in sets.values() for name in group)
    return tuple(name for name in names if name in cells)


def _matrix(cells: Mapping[str, NDArray[np.float64]], columns: Sequence[str], count: int) -> NDArray[np.float64]:
    if not columns:
        return np.empty((count, 0))
    return np.stack([cells[name] for name in columns], axis=1)
