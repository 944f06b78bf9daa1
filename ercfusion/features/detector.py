"""Adapter of Py-Feat 2.1.5 (and 2.0.0).

``detect(tensor, data_type="tensor")`` of ``feat.Detectorv1`` (separate models) and ``feat.Detectorv2`` (one network)
takes pictures (B, 3, H, W) uint8 and returns a pandas table, one row per face, and a row of NaN without faces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, MissingExtraError, did_you_mean, require_extra, with_type
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import check_settings
from ercfusion.features.faces import FaceTable
from ercfusion.features.fex import FEX_COLUMNS, fex_table

# Choices of the constructors, default first; None: not loaded.
_MODELS: Mapping[str, Mapping[str, tuple[str | None, ...]]] = {
    "v1": {
        "face_model": ("retinaface", "img2pose"),
        "landmark_model": ("mobilefacenet", "mobilenet", "pfld"),
        "au_model": ("xgb", "svm", None),
        "emotion_model": ("resmasknet", "svm", None),
        "gaze_model": ("l2cs", None),
        "identity_model": ("arcface", "facenet", None),
    },
    "v2": {
        "face_model": ("retinaface",),
        "identity_model": ("arcface", "facenet", None),
    },
}
_DEVICES = ("cpu", "cuda", "mps", "auto")
# The first detector's model of each set of columns.
_SOURCES = {"aus": "au_model", "emotions": "emotion_model", "gaze": "gaze_model"}
_MINE: Mapping[str, Any] = {"version": "v1", "device": "cpu", "batch_size": 8}
# Settings of speed and memory, affecting values only by rounding.
RUNNING = ("device", "batch_size")

_LICENCES = {
    "v1": (
        "Py-Feat is under the MIT licence, not all of its models are: img2pose is CC BY-NC 4.0, the weights of ArcFace "
        "and L2CS are for noncommercial use, others carry the terms of their training data."
    ),
    "v2": (
        "Py-Feat is under the MIT licence; the weights of its second detector are for noncommercial research only. "
        "They were trained, among others, on MELD."
    ),
}


def check_detector(chosen: Any, columns: Sequence[str]) -> dict[str, Any]:
    """The settings of a detector, with Py-Feat's defaults.

    Models not needed for ``columns`` are not loaded, nor is an identity model unless named.

    Args:
        chosen: ``version``: ``v1`` (default) or ``v2``. ``device``: ``cpu`` (default), ``cuda``, ``mps`` or ``auto``.
            ``batch_size``: pictures at a time (8). Models of ``v1``: ``face_model``, ``landmark_model``, ``au_model``,
            ``emotion_model``, ``gaze_model``, ``identity_model``; of ``v2``: ``face_model``, ``identity_model``.
        columns: Names of :data:`~ercfusion.features.faces.FEX_SETS`.

    Raises:
        ConfigError: unknown setting or value, or columns without their model.
    """
    if not isinstance(chosen, Mapping):
        raise ConfigError(f"detector={chosen!r}: not a mapping. Give settings by name, for example {{version: v1}}.")
    version = chosen.get("version", _MINE["version"])
    if version not in _MODELS:
        raise ConfigError(f"detector.version={version!r}: unknown. {did_you_mean(str(version), _MODELS)}")
    models = _MODELS[version]
    needed = {_SOURCES[name] for name in columns if name in _SOURCES}
    defaults = {
        name: None if name in {*_SOURCES.values(), "identity_model"} - needed else choices[0]
        for name, choices in models.items()
    }
    options = check_settings(chosen, {**_MINE, **defaults}, f"detector {version} of py-feat")
    for name, choices in {**models, "device": _DEVICES}.items():
        if options[name] not in choices:
            raise ConfigError(
                f"detector.{name}={options[name]!r}: unknown. {did_you_mean(str(options[name]), map(str, choices))}"
            )
    size = options["batch_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"detector.batch_size={size!r}: not a whole number above 0. Give one, for example 8.")
    for name in columns:
        if version == "v1" and name == "valence_arousal":
            raise ConfigError(
                "columns: 'valence_arousal' is not available from detector.version=v1. Set detector.version=v2, or "
                "remove it."
            )
        if version == "v1" and name in _SOURCES and options[_SOURCES[name]] is None:
            raise ConfigError(
                f"columns: {name!r} comes from detector.{_SOURCES[name]}, which is null. Choose a model there, or "
                f"remove {name!r}."
            )
    return options


def detector_licence(version: str | None) -> str:
    """Terms of the weights in Py-Feat 2.1.5; of both detectors for None."""
    return _LICENCES[version] if version else f"First detector: {_LICENCES['v1']} Second detector: {_LICENCES['v2']}"


def load_detector(options: Mapping[str, Any]) -> Any:
    """Create a detector from :func:`check_detector`'s settings; the first use downloads weights from a model hub.

    Raises:
        MissingExtraError: Py-Feat is not installed, too old, or cannot be imported.
        ConfigError: the detector cannot be created.
    """
    require_extra("feat", "face", "Detecting faces")
    name = f"Detector{options['version']}"
    try:
        with _environment_kept():
            import feat
        build = getattr(feat, name)
    except AttributeError as error:
        raise MissingExtraError(
            f"py-feat: the installed version has no {name}. Install version 2.0 or later: pip install 'ercfusion[face]'"
        ) from error
    except Exception as error:  # from torchvision, torchcodec or xgboost
        raise MissingExtraError(
            f"py-feat: installed, but the import fails: {with_type(error)}. Install versions of "
            f"torchvision and torchcodec made for the installed torch."
        ) from error
    arguments = {key: value for key, value in options.items() if key in _MODELS[options["version"]]}
    if options["version"] == "v2":
        del arguments["face_model"]  # not an argument of the constructor
    try:
        return build(**arguments, device=options["device"])
    except Exception as error:  # connection, device, memory
        raise ConfigError(
            f"py-feat: {name} cannot be loaded: {with_type(error)}. Download its weights from the "
            f"model hub with a connection, or copy the cache of a machine with them."
        ) from error


def detect_faces(detector: Any, images: Sequence[NDArray[np.uint8]], min_score: float) -> FaceTable:
    """The faces in at least one picture (height, width, 3) uint8 RGB, all of one size.

    Returns:
        A row per face, ``frame`` from 0; NaN or no row for a picture without faces.

    Raises:
        ClipError: Py-Feat failed, or its answer lacks required columns.
    """
    import torch

    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    try:
        with _without_bar(detector):
            fex = detector.detect(
                pictures,
                data_type="tensor",
                batch_size=len(images),
                face_detection_threshold=min_score,
                progress_bar=False,
            )
        cells = {name: np.asarray(fex[name], dtype=np.float64) for name in fex.columns if name in FEX_COLUMNS}
        frame = np.asarray(fex["frame"], dtype=np.int64)
        return fex_table(cells, frame, np.full(len(frame), np.nan))
    except Exception as error:  # models raise anything
        raise ClipError(
            f"py-feat failed: {with_type(error)}. Check that the recording plays, and convert it if not."
        ) from error


@contextmanager
def _environment_kept() -> Iterator[None]:
    # Importing feat sets OMP_NUM_THREADS=1 for this process and its children.
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)


@contextmanager
def _without_bar(detector: Any) -> Iterator[None]:
    # The first detector ignores progress_bar=False.
    module: Any = sys.modules[type(detector).__module__]
    bar = getattr(module, "tqdm", None)
    if bar is None:
        yield
        return
    module.tqdm = lambda loader: loader
    try:
        yield
    finally:
        module.tqdm = bar
