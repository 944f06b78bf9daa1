"""Py-Feat behind an adapter: its settings, loading it, and asking it for the faces in some pictures.

Written to the sources of version 2.1.5 (the same in 2.0.0 as far as it is used): ``feat.Detectorv1``, a chain of
separate models, and ``feat.Detectorv2``, one network for all; ``detect(tensor, data_type="tensor")`` with pictures
(B, 3, H, W) uint8, which returns a pandas table with a row for each face, and a row of NaN for a picture without one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, MissingExtraError, did_you_mean, require_extra
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import check_settings
from ercfusion.features.faces import FaceTable
from ercfusion.features.fex import FEX_COLUMNS, fex_table

# The choices of each detector's constructor, the first being its own default. None: the model is not loaded.
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
# Which model of the first detector a set of columns comes from.
_SOURCES = {"aus": "au_model", "emotions": "emotion_model", "gaze": "gaze_model"}
_MINE: Mapping[str, Any] = {"version": "v1", "device": "cpu", "batch_size": 8}
# Settings that change speed and memory, and the values by no more than rounding.
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


def check_detector(given: Any, columns: Sequence[str]) -> dict[str, Any]:
    """The settings of a detector, with defaults.

    Args:
        given: ``version``: ``v1`` (default) or ``v2``. ``device``: ``cpu`` (default), ``cuda``, ``mps`` or ``auto``.
            ``batch_size``: pictures at a time (8). And the models that the version has a choice of: ``face_model``,
            ``landmark_model``, ``au_model``, ``emotion_model``, ``gaze_model``, ``identity_model`` for ``v1``,
            ``face_model`` and ``identity_model`` for ``v2``. What is not given is Py-Feat's own default, but models
            that none of ``columns`` comes from are not loaded; so there is no identity model unless one is named
            (faces are tracked by their position, and the vectors are not used).
        columns: Names of :data:`~ercfusion.features.faces.FEX_SETS`.

    Raises:
        ConfigError: a setting or a value that does not exist, or a set of columns without the model that it is from.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"detector={given!r}: settings by name are expected, for example {{version: v1}}")
    version = given.get("version", _MINE["version"])
    if version not in _MODELS:
        raise ConfigError(f"detector.version={version!r} is unknown. {did_you_mean(str(version), _MODELS)}")
    models = _MODELS[version]
    needed = {_SOURCES[name] for name in columns if name in _SOURCES}
    defaults = {
        name: None if name in {*_SOURCES.values(), "identity_model"} - needed else choices[0]
        for name, choices in models.items()
    }
    options = check_settings(given, {**_MINE, **defaults}, f"detector {version} of py-feat")
    for name, choices in {**models, "device": _DEVICES}.items():
        if options[name] not in choices:
            raise ConfigError(
                f"detector.{name}={options[name]!r} is unknown. {did_you_mean(str(options[name]), map(str, choices))}"
            )
    size = options["batch_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"detector.batch_size={size!r}: a whole number above 0 is expected")
    for name in columns:
        if version == "v1" and name == "valence_arousal":
            raise ConfigError("columns: 'valence_arousal' comes from detector.version=v2 only")
        if version == "v1" and name in _SOURCES and options[_SOURCES[name]] is None:
            raise ConfigError(f"columns: {name!r} needs detector.{_SOURCES[name]}, which is set to null")
    return options


def detector_licence(version: str | None) -> str:
    """What the weights of a detector ask for, as the licence files of Py-Feat 2.1.5 say; of both for None."""
    return _LICENCES[version] if version else f"First detector: {_LICENCES['v1']} Second detector: {_LICENCES['v2']}"


def load_detector(options: Mapping[str, Any]) -> Any:
    """Build a detector; on first use, Py-Feat downloads its weights from a model hub.

    Args:
        options: From :func:`check_detector`.

    Raises:
        MissingExtraError: Py-Feat is not installed, too old, or cannot be imported.
        ConfigError: the detector cannot be built.
    """
    require_extra("feat", "face", "Detecting faces")
    name = f"Detector{options['version']}"
    try:
        with _environment_kept():
            import feat
        build = getattr(feat, name)
    except AttributeError as error:
        raise MissingExtraError(f"the installed py-feat has no {name}; version 2.0 or later is needed") from error
    except Exception as error:  # its import loads torchvision, torchcodec and xgboost, each of which has ways to fail
        raise MissingExtraError(
            f"py-feat is installed, but cannot be imported: {type(error).__name__}: {error}. Its torchvision and "
            f"torchcodec must fit the installed torch."
        ) from error
    arguments = {key: value for key, value in options.items() if key in _MODELS[options["version"]]}
    if options["version"] == "v2":
        del arguments["face_model"]  # there is one, and the constructor does not ask
    try:
        return build(**arguments, device=options["device"])
    except Exception as error:  # among them: no connection to the hub, no such device, too little memory
        raise ConfigError(
            f"py-feat's {name} cannot be loaded: {type(error).__name__}: {error}. Its weights are downloaded from a "
            f"model hub on first use; connect once, or copy the cache of a machine that has them."
        ) from error


def detect_faces(detector: Any, images: Sequence[NDArray[np.uint8]], min_score: float) -> FaceTable:
    """The faces in some pictures of one size.

    Args:
        detector: From :func:`load_detector`.
        images: At least one, (height, width, 3) uint8, red, green, blue.
        min_score: The detector's own threshold.

    Returns:
        A row for each face, ``frame`` counted from 0; pictures without a face may have a row of NaN or none.

    Raises:
        ClipError: Py-Feat failed, or its answer lacks what every version of it has.
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
    except Exception as error:  # its many models raise whatever they like over a picture that none of them expected
        words = (str(error).strip() or "no words").splitlines()[0]
        raise ClipError(f"py-feat failed: {type(error).__name__}: {words}") from error


@contextmanager
def _environment_kept() -> Iterator[None]:
    # Importing feat limits OpenMP to one thread for this process and all its children; that is for the user to decide.
    before = os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)


@contextmanager
def _without_bar(detector: Any) -> Iterator[None]:
    # The first detector draws a bar for its first batch whatever progress_bar says: a line of noise for every clip.
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
