import builtins
import importlib.util
import os
import sys

import numpy as np
import pytest
from made_faces import picture, standin

from ercfusion._core.errors import ConfigError, MissingExtraError
from ercfusion.features.clip_error import ClipError
from ercfusion.features.detector import check_detector, detect_faces, detector_licence, load_detector
from ercfusion.features.faces import FEX_SETS


@pytest.fixture
def feat(monkeypatch):
    yield from standin(monkeypatch)


# Settings


def test_defaults_are_those_of_py_feat():
    options = check_detector({}, ["aus", "emotions", "pose", "gaze"])
    assert options == {
        "version": "v1",
        "device": "cpu",
        "batch_size": 8,
        "face_model": "retinaface",
        "landmark_model": "mobilefacenet",
        "au_model": "xgb",
        "emotion_model": "resmasknet",
        "gaze_model": "l2cs",
        "identity_model": None,
    }
    second = check_detector({"version": "v2"}, ["aus", "valence_arousal", "gaze"])
    assert second == {
        "version": "v2",
        "device": "cpu",
        "batch_size": 8,
        "face_model": "retinaface",
        "identity_model": None,
    }


def test_models_that_nothing_comes_from_are_not_loaded():
    options = check_detector({}, ["pose"])
    assert [options[name] for name in ("au_model", "emotion_model", "gaze_model")] == [None] * 3
    assert check_detector({"au_model": "svm"}, ["pose"])["au_model"] == "svm"


@pytest.mark.parametrize(
    ("given", "columns", "message"),
    [
        ("v1", ["aus"], "detector='v1': not a mapping"),
        ({"version": "v3"}, ["aus"], "detector.version='v3': unknown"),
        ({"au_modle": "xgb"}, ["aus"], "detector v1 of py-feat: unknown setting 'au_modle'. Did you mean 'au_model'"),
        ({"au_model": "xbg"}, ["aus"], "detector.au_model='xbg': unknown. Did you mean 'xgb'"),
        ({"version": "v2", "au_model": "xgb"}, ["aus"], "detector v2 of py-feat: unknown setting 'au_model'"),
        ({"landmark_model": None}, ["aus"], "detector.landmark_model=None: unknown"),
        ({"au_model": None}, ["aus"], "columns: 'aus' comes from detector.au_model, which is null"),
        ({"emotion_model": None}, ["emotions"], "columns: 'emotions' comes from detector.emotion_model"),
        ({}, ["valence_arousal"], "'valence_arousal' is not available from detector.version=v1"),
        ({"device": "gpu"}, ["aus"], "detector.device='gpu': unknown"),
        ({"batch_size": 0}, ["aus"], "detector.batch_size=0: not a whole number above 0"),
        ({"batch_size": True}, ["aus"], "detector.batch_size=True"),
    ],
)
def test_settings_that_do_not_fit(given, columns, message):
    with pytest.raises(ConfigError) as caught:
        check_detector(given, columns)
    assert message in str(caught.value)


def test_licences():
    assert "noncommercial research only" in detector_licence("v2")
    assert "MELD" in detector_licence("v2")
    assert detector_licence("v1") in detector_licence(None)


# Loading


def test_loading_leaves_the_environment_alone(feat, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    detector = load_detector(check_detector({"landmark_model": "pfld"}, ["aus"]))
    assert "OMP_NUM_THREADS" not in os.environ
    assert detector.models == ("retinaface", "pfld", "xgb", None, None, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert load_detector(check_detector({"version": "v2", "identity_model": "facenet"}, ["aus"])).models == ("facenet",)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_py_feat_that_is_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'feat', which is not installed.*ercfusion\[face\]"):
        load_detector(check_detector({}, ["aus"]))


def test_py_feat_that_cannot_be_imported(feat, monkeypatch):
    really = builtins.__import__

    def broken(name, *arguments, **options):
        if name == "feat":
            os.environ["OMP_NUM_THREADS"] = "1"
            raise RuntimeError("operator torchvision::nms does not exist")
        return really(name, *arguments, **options)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(MissingExtraError, match=r"the import fails: RuntimeError: operator .*made for the installed"):
        load_detector(check_detector({}, ["aus"]))
    assert "OMP_NUM_THREADS" not in os.environ


def test_an_old_py_feat(feat, monkeypatch):
    import feat as module

    monkeypatch.delattr(module, "Detectorv2")
    with pytest.raises(MissingExtraError, match=r"has no Detectorv2\. Install version 2\.0 or later"):
        load_detector(check_detector({"version": "v2"}, ["aus"]))


def test_a_detector_that_cannot_be_built(feat):
    with pytest.raises(ConfigError, match=r"Detectorv1 cannot be loaded: RuntimeError: no CUDA here.*weights"):
        load_detector(check_detector({"device": "cuda"}, ["aus"]))


# Detecting


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_faces_of_some_pictures(feat, version, capsys):
    detector = load_detector(check_detector({"version": version}, ["aus", "emotions", "gaze"]))
    images = [
        picture((8, 6, 10, 250), (40, 30, 20, 230)),
        picture(),
        picture((16, 12, 10, 250), (40, 30, 20, 100)),
    ]
    table = detect_faces(detector, images, 0.5)
    assert table.frame.tolist() == [0, 0, 1, 2]
    assert table.detected.tolist() == [True, True, False, True]
    assert table.rectangle[[0, 1, 3]].tolist() == [[8, 6, 10, 10], [40, 30, 20, 20], [16, 12, 10, 10]]
    np.testing.assert_allclose(table.score[[0, 1]], [250 / 255, 230 / 255])
    np.testing.assert_allclose(table.matrix(["AU01", "AU02"])[3], [16 / 80, 12 / 60])
    assert table.matrix(FEX_SETS["emotions"])[0].tolist() == [0, 0, 0, 0.75, 0, 0, 0.25]
    assert ("valence" in table.columns) == (version == "v2")
    assert np.isnan(table.values[2]).all()
    assert len(detect_faces(detector, images, 0.3)) == 5
    shown = capsys.readouterr()
    assert shown.err == shown.out == ""


def test_the_bar_is_given_back(feat):
    detector = load_detector(check_detector({}, ["aus"]))
    module = sys.modules["feat.detector"]
    bar = module.tqdm
    detect_faces(detector, [picture()], 0.5)
    assert module.tqdm is bar
    with pytest.raises(ClipError, match=r"^py-feat failed: RuntimeError: a picture it cannot digest\. Check"):
        detect_faces(detector, [picture(size=(10, 13))], 0.5)
    assert module.tqdm is bar
