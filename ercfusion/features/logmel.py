"""Log-mel spectrograms as sequence features.

Frames are cut without padding, weighted by a periodic Hann window and Fourier-transformed at the next power of two.
Triangles equally wide on a mel scale sum the power spectrum: HTK's (O'Shaughnessy: 2595 log10(1 + f / 700)), or that of
Slaney's Auditory Toolbox (1998), linear up to 1 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.inputs import Level
from ercfusion.data.media import Clip
from ercfusion.features.extractor import Extracted, check_settings, package_version
from ercfusion.features.sound import check_sound_settings, read_sound

SCALES = ("slaney", "htk")
_DEFAULTS: Mapping[str, Any] = {
    "rate": 16000,
    "window": 25.0,
    "hop": 10.0,
    "bands": 64,
    "lowest": 20.0,
    "highest": 8000.0,
    "scale": "slaney",
    "floor": 1e-10,
}
# Frames transformed together: overlapping frames of an hour of sound would not fit into memory.
_FRAMES = 4096
# Slaney's scale: 200 / 3 Hz per mel up to 1 kHz, then 27 mels per factor of 6.4.
_LINEAR, _CORNER, _STEP = 200 / 3, 1000.0, math.log(6.4) / 27


class LogMelExtractor:
    """The log-mel spectrogram of a clip.

    Settings:
        rate: Hz, after resampling.
        window, hop: Length and distance of frames in ms, rounded to samples.
        bands: Number of triangles.
        lowest, highest: Ends of the first and last triangle in Hz.
        scale: ``slaney`` or ``htk``.
        floor: Minimum energy, above 0; the logarithm is natural.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """

    kind = "audio"
    modality = "audio"
    level: Level = "sequence"
    tool = "logmel"
    licence = ""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = check_settings(settings, _DEFAULTS, self.tool)
        rate, scale = self.settings["rate"], self.settings["scale"]
        if rate is None:
            raise ConfigError("rate=null: the recipe logmel needs one rate for all clips. Use for example rate=16000.")
        check_sound_settings(rate, "all")
        if scale not in SCALES:
            raise ConfigError(f"scale={scale!r}: unknown. {did_you_mean(str(scale), SCALES)}")
        for name in ("window", "hop", "lowest", "highest", "floor"):
            value = self.settings[name]
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name}={value!r}: not a number of at least 0. Use for example {_DEFAULTS[name]}.")
        bands = self.settings["bands"]
        if not isinstance(bands, int) or isinstance(bands, bool) or bands < 1:
            raise ConfigError(f"bands={bands!r}: not a whole number of at least 1. Use for example 64.")
        self.window = round(self.settings["window"] * rate / 1000)
        self.hop = round(self.settings["hop"] * rate / 1000)
        if self.window < 2 or self.hop < 1:
            raise ConfigError(
                f"window={self.settings['window']}, hop={self.settings['hop']}: {self.window} and {self.hop} samples. "
                "Raise them to at least 2 and 1 samples."
            )
        low, high = self.settings["lowest"], self.settings["highest"]
        if not low < high <= rate / 2:
            raise ConfigError(
                f"lowest={low:g}, highest={high:g}: not rising, or above rate / 2 = {rate / 2:g} Hz. Choose lowest < "
                f"highest <= rate / 2."
            )
        if self.settings["floor"] == 0:
            raise ConfigError("floor=0: has no logarithm. Use a small number such as 1e-10.")
        self.transform = 1 << (self.window - 1).bit_length()
        self.filters = mel_filters(bands, self.transform, rate, low, high, scale)
        empty = (self.filters.sum(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise ConfigError(
                f"bands={bands}: {len(empty)} of them contain no line of the spectrum (first: {empty[0]}). Use fewer "
                "bands, a longer window, or a wider range of frequencies."
            )
        self.hann = torch.hann_window(self.window, periodic=True, dtype=torch.float64)
        self.tool_version = package_version("torch")

    @property
    def dimension_names(self) -> list[str]:
        """Number and centre frequency of each band."""
        edges = _edges(
            self.settings["bands"], self.settings["lowest"], self.settings["highest"], self.settings["scale"]
        )
        return [f"band{number:03d}_{centre:.0f}Hz" for number, centre in enumerate(edges[1:-1].tolist())]

    def prepare(self) -> None:
        """Nothing to load."""

    def __call__(self, clip: Clip) -> Extracted:
        """Log energies (T, bands); a clip shorter than a window is padded with silence.

        Raises:
            ClipError: the clip cannot be read.
            MissingExtraError: a package is not installed.
        """
        sound = read_sound(clip, self.settings["rate"], "all")
        notes = sound.notes
        samples = torch.from_numpy(np.asarray(sound.samples, dtype=np.float64))
        if len(samples) < self.window:
            notes.append(f"shorter than the window of {self.settings['window']:g} ms: {sound.seconds:.4f} s of sound")
        return Extracted(self.spectrogram(samples), "; ".join(notes), sound.seconds)

    def spectrogram(self, samples: Tensor) -> NDArray[np.float32]:
        """Log energies (T, bands) of a waveform (n,), T = 1 + (max(n, window) - window) // hop.

        In float64: quiet bands keep their precision, and the number of threads has no effect.
        """
        samples = samples.double()
        if len(samples) < self.window:
            samples = torch.nn.functional.pad(samples, (0, self.window - len(samples)))
        frames = samples.unfold(0, self.window, self.hop)
        parts = []
        for block in frames.split(_FRAMES):
            power = torch.fft.rfft(block * self.hann, n=self.transform).abs().square()
            parts.append((power @ self.filters).clamp(min=self.settings["floor"]).log().float())
        return torch.cat(parts).numpy()


def mel_filters(bands: int, transform: int, rate: int, lowest: float, highest: float, scale: str) -> Tensor:
    """Triangular filters with peak 1, (transform // 2 + 1, bands) float64, with peaks equidistant on the scale."""
    edges = _edges(bands, lowest, highest, scale)
    lines = torch.arange(transform // 2 + 1, dtype=torch.float64) * rate / transform
    rising = (lines[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - lines[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _edges(bands: int, lowest: float, highest: float, scale: str) -> Tensor:
    """(bands + 2) frequencies in Hz: first start, peaks, last end."""
    first, last = (_to_mel(frequency, scale) for frequency in (lowest, highest))
    mels = torch.linspace(first, last, bands + 2, dtype=torch.float64)
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    corner = _CORNER / _LINEAR
    return torch.where(mels < corner, mels * _LINEAR, _CORNER * ((mels - corner) * _STEP).exp())


def _to_mel(frequency: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + frequency / 700)
    if frequency < _CORNER:
        return frequency / _LINEAR
    return _CORNER / _LINEAR + math.log(frequency / _CORNER) / _STEP
