"""Visual features: faces of a clip, detected by Py-Feat or read from tables of Py-Feat or OpenFace.

Sources: see :mod:`ercfusion.features.fex`. Choice of frames: :mod:`ercfusion.features.frames`; of faces:
:mod:`ercfusion.features.faces`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, CorpusFormatError, did_you_mean, require_extra
from ercfusion._core.files import expanded
from ercfusion.batch.inputs import Level
from ercfusion.data.media import Clip
from ercfusion.features.clip_error import ClipError
from ercfusion.features.detector import RUNNING, check_detector, detect_faces, detector_licence, load_detector
from ercfusion.features.extractor import Extracted, check_settings, package_version
from ercfusion.features.faces import (
    FEX_SETS,
    OPENFACE_SETS,
    STATISTICS,
    WHICH_FACES,
    FaceTable,
    choose_faces,
    fill_rows,
    join_tables,
    pool_rows,
)
from ercfusion.features.fex import read_fex, read_openface
from ercfusion.features.frames import check_window, choose_times, read_frames

TOOLS = ("py-feat", "fex", "openface")

_COMMON: Mapping[str, Any] = {
    "fps": None,
    "max_frames": None,
    "columns": ["aus", "emotions", "pose"],
    "which_face": "largest",
    "pooling": ["mean", "std", "max"],
    "min_score": 0.5,
}
_TABLE: Mapping[str, Any] = {"folder": None, "pattern": "{stem}.csv", "tool_version": "unknown"}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "py-feat": {**_COMMON, "fps": 5.0, "detector": {}},
    "fex": {**_COMMON, **_TABLE, "video_fps": None},
    # OpenFace marks valid rows itself (success).
    "openface": {**_COMMON, **_TABLE, "columns": ["aus", "pose", "gaze"], "min_score": 0.0},
}
_OPENFACE_LICENCE = (
    "OpenFace is licensed for academic or non-profit noncommercial research only; publications must cite its papers."
)


class VisualExtractor:
    """Faces of a clip, as one vector or as a sequence of frames.

    Settings:
        tool: ``py-feat`` (detects faces), ``fex`` or ``openface`` (reads the table written for the clip's file).
        fps: Frames per second; None for all. Default: 5 for ``py-feat``, all rows of a table.
        max_frames: Maximum number of frames, at equal distances.
        columns: Names of :data:`~ercfusion.features.faces.FEX_SETS`, or of
            :data:`~ercfusion.features.faces.OPENFACE_SETS` for ``openface``, in the order of the features.
        which_face: ``largest``, ``longest_tracked`` or ``all``; see :func:`~ercfusion.features.faces.choose_faces`.
        pooling: Statistics over the frames, of ``mean``, ``std``, ``min``, ``max``: one block of columns each, then
            ``face_share``, the share of frames with a chosen face. None gives a sequence, a row per chosen face, with
            a last column ``track`` for ``which_face=all``.
        min_score: Minimum confidence, 0 to 1 (``FaceScore``, ``confidence``).
        detector: For ``py-feat``; see :func:`~ercfusion.features.detector.check_detector`.
        folder, pattern: For tables: ``folder/pattern`` is a clip's table, with ``{stem}``, ``{name}`` and ``{parent}``
            of the clip's file; folder None is the clip's own. Rows outside the clip are ignored.
        video_fps: For ``fex``: frames per second of the recording; needed for parts of recordings, and with ``fps``.
        tool_version: For tables, for the record.

    Statistics ignore NaN; sequences replace it by the clip's mean of the column. A column without numbers becomes 0.

    Raises:
        ConfigError: unknown or contradicting settings.
        MissingExtraError: ``py-feat`` or PyAV is needed and not installed.
    """

    modality = "visual"
    kind: Literal["visual"] = "visual"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.tool = str(settings.get("tool", "py-feat"))
        if self.tool not in TOOLS:
            raise ConfigError(f"tool={self.tool!r}: no tool for visual features. {did_you_mean(self.tool, TOOLS)}")
        self.settings = check_settings(settings, _DEFAULTS[self.tool], self.tool)
        chosen = self.settings
        sets = OPENFACE_SETS if self.tool == "openface" else FEX_SETS
        chosen["columns"] = _names("columns", chosen["columns"], list(sets))
        self.columns = [column for name in chosen["columns"] for column in sets[name]]
        self._set_of = {column: name for name in chosen["columns"] for column in sets[name]}
        if len(self._set_of) < len(self.columns):
            raise ConfigError(
                f"columns={chosen['columns']}: some columns are in two of these sets. Remove the smaller set."
            )
        if chosen["pooling"] is not None:
            chosen["pooling"] = _names("pooling", chosen["pooling"], STATISTICS)
        if chosen["which_face"] not in WHICH_FACES:
            wrong = chosen["which_face"]
            raise ConfigError(f"which_face={wrong!r}: unknown. {did_you_mean(str(wrong), WHICH_FACES)}")
        for name in ("fps", "max_frames", "video_fps"):
            _check_positive(name, chosen.get(name), whole=name == "max_frames")
        if not (_is_number(chosen["min_score"]) and 0 <= chosen["min_score"] <= 1):
            raise ConfigError(f"min_score={chosen['min_score']!r}: not a number from 0 to 1. Use for example 0.5.")
        if self.tool == "py-feat":
            require_extra("feat", "face", "Detecting faces")
            require_extra("av", "face", "Reading frames")
            self._options = check_detector(chosen["detector"], chosen["columns"])
            # Settings of speed and memory do not identify a pack.
            chosen["detector"] = {name: value for name, value in self._options.items() if name not in RUNNING}
            self.tool_version = package_version("py-feat")
        else:
            _check_pattern(chosen["pattern"])
            # Without the path, which is private.
            self._folder = None if chosen["folder"] is None else expanded(chosen["folder"])
            chosen["folder"] = None if self._folder is None else self._folder.name
            self.tool_version = str(chosen["tool_version"])
        if self.tool == "fex" and chosen["fps"] is not None and chosen["video_fps"] is None:
            raise ConfigError(
                "fps: a Fex file has no times. Add video_fps=N, the frames per second of the recordings, or omit fps."
            )
        self.level: Level = "sequence" if chosen["pooling"] is None else "utterance"
        self._detector: Any = None
        self._latest: tuple[Path, FaceTable] | None = None

    @property
    def licence(self) -> str:
        """Terms of the tool and of Py-Feat's weights."""
        if self.tool == "openface":
            return _OPENFACE_LICENCE
        return detector_licence(self.settings["detector"]["version"] if self.tool == "py-feat" else None)

    @property
    def dimension_names(self) -> list[str]:
        """``AU01.mean``, ..., ``face_share``; for a sequence the columns (and ``track``)."""
        if self.settings["pooling"] is None:
            return [*self.columns, "track"] if self.settings["which_face"] == "all" else list(self.columns)
        return [f"{column}.{name}" for name in self.settings["pooling"] for column in self.columns] + ["face_share"]

    def prepare(self) -> None:
        """Load Py-Feat's detector; see :func:`~ercfusion.features.detector.load_detector`."""
        if self.tool == "py-feat" and self._detector is None:
            self._detector = load_detector(self._options)

    def __getstate__(self) -> dict[str, Any]:
        # For workers: the detector may be on a device.
        return self.__dict__ | {"_detector": None, "_latest": None}

    def __call__(self, clip: Clip) -> Extracted:
        """Features (T, D) float32; T = 1 if pooled.

        Raises:
            ClipError: missing, empty or unreadable file, nothing between start and end, or no face.
        """
        self.prepare()
        table, looked = self._detected(clip) if self.tool == "py-feat" else self._recorded(clip)
        faces = choose_faces(table, self.settings["which_face"], self.settings["min_score"])
        if not len(faces):
            raise ClipError(f"no face in any of {looked} frames. Lower min_score if there should be one.")
        values = faces.matrix(self.columns)
        if self.settings["pooling"] is None:
            features, void = fill_rows(values)
            if self.settings["which_face"] == "all":
                features = np.column_stack([features, faces.track])
        else:
            pooled, void = pool_rows(values, self.settings["pooling"])
            features = np.append(pooled, len(np.unique(faces.frame)) / looked)[None]
        empty = dict.fromkeys(self._set_of[name] for name, is_void in zip(self.columns, void, strict=True) if is_void)
        note = f"{int(void.sum())} columns of {', '.join(empty)} have no number and became 0" if empty else ""
        seconds = 0.0 if clip.end is None else clip.end - clip.start
        if clip.end is None and np.isfinite(table.seconds).any():
            seconds = float(np.nanmax(table.seconds)) - clip.start
        return Extracted(features.astype(np.float32), note, max(seconds, 0.0))

    def source(self, clip: Clip) -> Path:
        """The file read for a clip: its own, or its table."""
        if self.tool == "py-feat":
            return clip.path
        name = self.settings["pattern"].format(**_parts(clip.path))
        return (self._folder or clip.path.parent) / name

    def _detected(self, clip: Clip) -> tuple[FaceTable, int]:
        """Py-Feat's faces, frames numbered from 0, and the number of frames."""
        tables: list[FaceTable] = []
        batch: list[NDArray[np.uint8]] = []
        times: list[float] = []

        def look() -> None:
            first = len(times) - len(batch)
            faces = detect_faces(self._detector, batch, self.settings["min_score"])
            frame = faces.frame + first
            tables.append(replace(faces, frame=frame, seconds=np.array(times)[frame]))
            batch.clear()

        for frame in read_frames(clip, fps=self.settings["fps"], max_frames=self.settings["max_frames"]):
            # One tensor per batch, but frame sizes may change.
            if batch and (len(batch) == self._options["batch_size"] or batch[0].shape != frame.image.shape):
                look()
            batch.append(frame.image)
            times.append(frame.time)
        look()
        table = join_tables(tables)
        self._require_columns(table, "Py-Feat's answer")
        return table, len(times)

    def _recorded(self, clip: Clip) -> tuple[FaceTable, int]:
        """The table's rows in the clip, frames numbered from 0, and the number of frames."""
        check_window(clip)
        table = self._table(self.source(clip))
        frames, first, frame = np.unique(table.frame, return_index=True, return_inverse=True)
        times = table.seconds[first]
        if np.isnan(times).any():
            if clip.start > 0 or clip.end is not None:
                raise ClipError("the clip is a part of its recording, and a Fex file has no times. Set video_fps.")
            # No window and no rate: any rising numbers will do.
            times = frames.astype(np.float64)
        taken = choose_times(
            times,
            start=clip.start,
            end=clip.end,
            fps=self.settings["fps"],
            max_frames=self.settings["max_frames"],
        )
        if not len(taken):
            until = "the end" if clip.end is None else f"{clip.end:g} s"
            raise ClipError(
                f"no row between {clip.start:g} s and {until} of the table. Check that the table is of this recording."
            )
        inside = np.isin(frame, taken)
        return replace(table.rows(inside), frame=np.searchsorted(taken, frame[inside]).astype(np.int64)), len(taken)

    def _table(self, path: Path) -> FaceTable:
        # Consecutive turns share a table.
        if self._latest is None or self._latest[0] != path:
            if not path.is_file():
                raise ClipError(
                    f"no such file: {path.name}. Run the tool on the recording, or correct folder or pattern."
                )
            try:
                if self.tool == "fex":
                    table = read_fex(path, video_fps=self.settings["video_fps"])
                else:
                    table = read_openface(path)
            except CorpusFormatError as error:
                # Without this machine's folders: the pack stores it.
                raise ClipError(str(error).replace(str(path), path.name)) from error
            self._require_columns(table, path.name)
            self._latest = (path, table)
        return self._latest[1]

    def _require_columns(self, table: FaceTable, where: str) -> None:
        missing = [column for column in self.columns if column not in table.columns]
        if missing:
            name = self._set_of[missing[0]]
            advice = "angles instead (older tables have no position)" if name == "pose" else "the other sets"
            raise ClipError(f"{where}: no column {missing[0]!r} of the set {name!r}. Set columns to {advice}.")


def _names(setting: str, value: Any, known: Sequence[str]) -> list[str]:
    """``value`` as a checked list of names."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{setting}={value!r}: not a list of names. Write one, for example [{known[0]}].")
    for name in value:
        if name not in known:
            raise ConfigError(f"{setting}: unknown name {name!r}. {did_you_mean(str(name), known)}")
        if list(value).count(name) > 1:
            raise ConfigError(f"{setting}: {name!r} is listed twice. Remove one.")
    return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_positive(setting: str, value: Any, *, whole: bool) -> None:
    if value is not None and not (_is_number(value) and value > 0 and not (whole and not isinstance(value, int))):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{setting}={value!r}: not {kind} above 0 or null. Use one of them.")


def _parts(path: Path) -> dict[str, str]:
    return {"stem": path.stem, "name": path.name, "parent": path.parent.name}


def _check_pattern(pattern: Any) -> None:
    try:
        str(pattern).format(**_parts(Path("folder/clip.mp4")))
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"pattern={pattern!r}: cannot be filled in ({error}). Use only {{stem}}, {{name}} and {{parent}}."
        ) from error
