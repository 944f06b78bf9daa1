"""openSMILE behind the extractor: the same numbers as a direct call, and settings that are checked."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.data.media import Clip
from ercfusion.features.clip_error import ClipError
from ercfusion.testing.media import tone, write_wav

opensmile = pytest.importorskip("opensmile")
from ercfusion.features.audio import FEATURE_SETS, OpenSmileExtractor  # noqa: E402

EMODB = Path(__file__).parents[3] / "shared" / "data" / "emodb"


def direct(path: Path, feature_set: str, level: str = "Functionals", **options: object) -> np.ndarray:
    smile = opensmile.Smile(
        getattr(opensmile.FeatureSet, feature_set), getattr(opensmile.FeatureLevel, level), **options
    )
    return smile.process_file(str(path)).to_numpy()


@pytest.mark.parametrize("number", [0, 200, 500])
def test_equal_to_a_direct_call_on_real_speech(number: int) -> None:
    recordings = sorted(EMODB.glob("**/*.wav"))
    if not recordings:
        pytest.skip("the EmoDB recordings are not there")
    path = recordings[number]
    found = OpenSmileExtractor({})(Clip(path))
    assert found.values.shape == (1, 88)
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, direct(path, "eGeMAPSv02"))


@pytest.mark.parametrize("feature_set", FEATURE_SETS)
def test_every_set_equals_a_direct_call(tmp_path: Path, feature_set: str) -> None:
    path = write_wav(tmp_path / "voice.wav", tone(1.2, seed=1))
    extractor = OpenSmileExtractor({"feature_set": feature_set})
    values = extractor(Clip(path)).values
    np.testing.assert_array_equal(values, direct(path, feature_set))
    assert values.shape == (1, len(extractor.dimension_names))


def test_descriptors_are_a_sequence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "voice.wav", tone(1.0, seed=2))
    for settings, level in (
        ({"feature_level": "descriptors"}, "LowLevelDescriptors"),
        ({"feature_set": "IS09", "feature_level": "descriptors_deltas"}, "LowLevelDescriptors_Deltas"),
    ):
        extractor = OpenSmileExtractor(settings)
        assert extractor.level == "sequence"
        values = extractor(Clip(path)).values
        assert len(values) > 50
        np.testing.assert_array_equal(values, direct(path, extractor.settings["feature_set"], level))


def test_resampled_is_what_opensmile_makes_of_it(tmp_path: Path) -> None:
    both = np.stack([tone(1.0, 22050, seed=3), tone(1.0, 22050, pitch=210, seed=4)], axis=1)
    path = write_wav(tmp_path / "both.wav", both, 22050)
    values = OpenSmileExtractor({"resample": "all"})(Clip(path)).values
    np.testing.assert_array_equal(
        values, direct(path, "eGeMAPSv02", channels=[0, 1], mixdown=True, sampling_rate=16000, resample=True)
    )


def test_too_short_and_silent(tmp_path: Path) -> None:
    extractor = OpenSmileExtractor({})
    short = write_wav(tmp_path / "short.wav", tone(0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing but our own words reaches the user
        with pytest.raises(ClipError, match=r"0\.050 s of sound, too short for eGeMAPSv02"):
            extractor(Clip(short))
    silent = extractor(Clip(write_wav(tmp_path / "silent.wav", np.zeros(16000, np.float32))))
    assert silent.note == "silent: the peak is below -80 dB (1.00 s)"
    assert np.isfinite(silent.values).all()
    assert extractor(Clip(write_wav(tmp_path / "voice.wav", tone(0.5)))).note == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_set": "eGeMAPSv2"}, "Did you mean 'eGeMAPSv02'"),
        ({"feature_level": "functional"}, "Did you mean 'functionals'"),
        ({"feature_level": "descriptors_deltas"}, "eGeMAPSv02 has none"),
        ({"featureset": "IS09"}, "unknown setting 'featureset'. Did you mean 'feature_set'"),
        ({"rate": 0}, "from 1000"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenSmileExtractor(settings)
