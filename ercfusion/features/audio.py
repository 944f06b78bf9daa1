"""Acoustic features by openSMILE: functionals per utterance, or low-level descriptors over time.

Eyben, Wöllmer, Schuller. openSMILE: the Munich versatile and fast open-source audio feature extractor. ACM MM 2010.
eGeMAPS: Eyben et al. The Geneva Minimalistic Acoustic Parameter Set. IEEE Trans. Affective Computing 7(2), 2016.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean, require_extra
from ercfusion.batch.inputs import Level
from ercfusion.data.media import Clip
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extractor import Extracted, check_settings, package_version
from ercfusion.features.sound import check_sound_settings, read_sound, uneven_rates

FEATURE_SETS = ("eGeMAPSv02", "ComParE_2016", "emobase", "IS09", "IS10", "IS11", "IS12", "IS13", "GeMAPSv01b")
LEVELS = {
    "functionals": "Functionals",
    "descriptors": "LowLevelDescriptors",
    "descriptors_deltas": "LowLevelDescriptors_Deltas",
}
_DEFAULTS: Mapping[str, Any] = {
    "feature_set": "eGeMAPSv02",
    "feature_level": "functionals",
    "rate": 16000,
    "resample": "tracks",
}


class OpenSmileExtractor:
    """openSMILE on the sound of a clip.

    Values are bit-identical to ``opensmile.Smile(feature_set, feature_level)`` with ``sampling_rate=rate,
    resample=True`` (if resampled) and ``channels=range(n), mixdown=True``, except that samples beyond -1 to 1 are
    clipped.

    Settings:
        feature_set: ``eGeMAPSv02``, ``ComParE_2016``, ``emobase``, ``IS09`` to ``IS13``, or ``GeMAPSv01b``.
        feature_level: ``functionals`` (one vector per utterance), ``descriptors`` (one per 10 ms), or
            ``descriptors_deltas`` (their derivatives; not for the GeMAPS family).
        rate, resample: See :func:`ercfusion.features.sound.read_sound`.

    Raises:
        ConfigError: unknown setting or value.
        MissingExtraError: openSMILE is not installed.
    """

    kind = "audio"
    modality = "audio"
    tool = "opensmile"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = check_settings(settings, _DEFAULTS, self.tool)
        wanted, level = self.settings["feature_set"], self.settings["feature_level"]
        if wanted not in FEATURE_SETS:
            raise ConfigError(f"feature_set={wanted!r}: unknown. {did_you_mean(str(wanted), FEATURE_SETS)}")
        if level not in LEVELS:
            raise ConfigError(f"feature_level={level!r}: unknown. {did_you_mean(str(level), LEVELS)}")
        if level == "descriptors_deltas" and "GeMAPS" in wanted:
            raise ConfigError(
                f"feature_level=descriptors_deltas: {wanted} has none. Use feature_level=descriptors, or another "
                "feature_set."
            )
        check_sound_settings(self.settings["rate"], self.settings["resample"])
        require_extra("opensmile", "audio", "Extracting acoustic features")
        self.level: Level = "utterance" if level == "functionals" else "sequence"
        self.tool_version = package_version("opensmile")
        self._smile: Any = None

    @property
    def licence(self) -> str:
        """openSMILE's terms."""
        return (
            "openSMILE is licensed by audEERING for research, teaching and personal use only; commercial use needs a "
            "licence of its own. The terms are in the file LICENSE of the package opensmile."
        )

    @property
    def dimension_names(self) -> list[str]:
        """openSMILE's own names."""
        self.prepare()
        return list(self._smile.feature_names)

    def prepare(self) -> None:
        """Load the feature set."""
        if self._smile is None:
            import opensmile

            self._smile = opensmile.Smile(
                getattr(opensmile.FeatureSet, self.settings["feature_set"]),
                getattr(opensmile.FeatureLevel, LEVELS[self.settings["feature_level"]]),
            )

    def __call__(self, clip: Clip) -> Extracted:
        """Features (T, D); T = 1 for functionals.

        Raises:
            ClipError: unreadable, or too short for the feature set.
        """
        self.prepare()
        sound = read_sound(clip, self.settings["rate"], self.settings["resample"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "Segment too short" becomes the ClipError below
            values: NDArray[np.float32] = self._smile(sound.samples, sound.rate)[0].T
        if np.isnan(values).all():
            raise ClipError(
                f"{sound.seconds:.3f} s of sound, too short for {self.settings['feature_set']}. Check the turn's start "
                "and end."
            )
        return Extracted(np.asarray(values, dtype=np.float32), "; ".join(sound.notes), sound.seconds)

    def remarks(self, clips: Sequence[Clip]) -> dict[Clip, str]:
        """See :func:`.sound.uneven_rates`."""
        return uneven_rates(clips, self.settings["rate"], self.settings["resample"])
