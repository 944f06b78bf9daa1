"""Log-mel spectrograms agree with an independent implementation, and behave in the pipeline as other features do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ercfusion._core.errors import ConfigError
from ercfusion.data import open_corpus
from ercfusion.data.media import Clip
from ercfusion.data.pack import read_manifest, read_pack
from ercfusion.features.clip_error import ClipError
from ercfusion.features.extraction import extract_pack
from ercfusion.features.logmel import LogMelExtractor, mel_filters
from ercfusion.features.recipe import read_recipe
from ercfusion.testing.media import tone, write_wav


def extractor(**settings: Any) -> LogMelExtractor:
    return LogMelExtractor({"tool": "logmel", **settings})


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize(("bands", "low", "high"), [(64, 20.0, 8000.0), (23, 0.0, 4000.0), (40, 1200.0, 7600.0)])
def test_filters_are_those_of_another_implementation(scale: str, bands: int, low: float, high: float) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    expected = audio_utils.mel_filter_bank(257, bands, low, high, 16000, norm=None, mel_scale=scale)
    np.testing.assert_allclose(mel_filters(bands, 512, 16000, low, high, scale).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("settings", [{}, {"window": 32.0, "hop": 7.5, "bands": 30, "highest": 6000.0}])
def test_the_spectrogram_is_that_of_another_implementation(scale: str, settings: dict[str, Any]) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    tool = extractor(scale=scale, **settings)
    sound = np.random.default_rng(0).normal(0, 0.1, 7001)
    expected = audio_utils.spectrogram(
        sound,
        audio_utils.window_function(tool.window, "hann"),
        frame_length=tool.window,
        hop_length=tool.hop,
        fft_length=tool.transform,
        power=2.0,
        center=False,
        mel_filters=tool.filters.numpy(),
        mel_floor=1e-10,
        log_mel="log",
        dtype=np.float64,
    )
    found = tool.spectrogram(torch.from_numpy(sound))
    assert found.shape == (1 + (7001 - tool.window) // tool.hop, tool.settings["bands"])
    np.testing.assert_allclose(found, expected.T, rtol=1e-5, atol=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tool, sound = extractor(), torch.from_numpy(tone(1.0, seed=3))
    whole = tool.spectrogram(sound)
    monkeypatch.setattr("ercfusion.features.logmel._FRAMES", 7)
    np.testing.assert_array_equal(tool.spectrogram(sound), whole)


def test_a_pure_tone_is_loudest_in_its_band() -> None:
    tool = extractor()
    time = torch.arange(16000, dtype=torch.float64) / 16000
    values = tool.spectrogram(0.5 * torch.sin(2 * torch.pi * 1000 * time))
    centres = [float(name.partition("_")[2].removesuffix("Hz")) for name in tool.dimension_names]
    assert abs(centres[int(values.mean(0).argmax())] - 1000) < 30


def test_silence_short_clips_and_other_rates(tmp_path: Path) -> None:
    tool = extractor()
    silent = tool(Clip(write_wav(tmp_path / "silent.wav", np.zeros(8000, np.float32))))
    assert "silent" in silent.note
    np.testing.assert_allclose(silent.values, np.log(1e-10), rtol=1e-6)
    sound = tone(0.5)
    short = tool(Clip(write_wav(tmp_path / "short.wav", sound[:200])))
    assert short.values.shape == (1, 64)
    assert "shorter than the window of 25 ms: 0.0125 s" in short.note
    filled = tool(Clip(write_wav(tmp_path / "filled.wav", np.concatenate([sound[:200], np.zeros(200, np.float32)]))))
    np.testing.assert_array_equal(filled.values, short.values)
    part = tool(Clip(write_wav(tmp_path / "whole.wav", sound), 0.1, 0.3))
    assert part.values.shape == (18, 64)
    assert part.note == ""
    pytest.importorskip("audresample")
    whole = tool(Clip(tmp_path / "whole.wav")).values
    twice = np.repeat(sound, 2)  # the same sound at another rate, but for images above 8 kHz
    other = tool(Clip(write_wav(tmp_path / "other.wav", twice, 32000))).values
    assert other.shape == whole.shape
    assert np.abs(other - whole)[:, :40].mean() < 0.2
    with pytest.raises(ClipError, match="no such file"):
        tool(Clip(tmp_path / "absent.wav"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"band": 3}, "unknown setting 'band'. Did you mean 'bands'"),
        ({"scale": "mel"}, "scale='mel': unknown"),
        ({"bands": 0}, "bands=0: not a whole number of at least 1"),
        ({"bands": 200}, "contain no line of the spectrum"),
        ({"highest": 9000.0}, "above rate / 2 = 8000"),
        ({"lowest": 8000.0}, "not rising"),
        ({"floor": 0.0}, "floor=0: has no logarithm"),
        ({"hop": 0.01}, ": 400 and 0 samples"),
        ({"window": "long"}, "window='long': not a number"),
        ({"rate": 10}, "from 1000 to 192000"),
        ({"rate": None}, "needs one rate"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extractor(**settings)


@pytest.mark.slow
def test_a_pack(tmp_path: Path) -> None:
    """The pipeline: several workers give the bits of one; a damaged clip is missing, with the reason."""
    rows = ["conversation,turn,speaker,text,split,audio,emotion"]
    for number in range(6):
        write_wav(tmp_path / "corpus" / f"{number}.wav", tone(0.2 + 0.05 * number, seed=number))
        split = ("train", "train", "train", "train", "dev", "test")[number]
        rows.append(f"c{number},0,A,word {number},{split},{number}.wav,{('anger', 'neutral')[number % 2]}")
    (tmp_path / "corpus" / "utterances.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "corpus" / "1.wav").write_bytes(b"RIFF and nothing else")
    corpus = open_corpus("custom", tmp_path / "corpus")
    tables = []
    for workers in (1, 2):
        made = extract_pack(
            corpus, corpus.protocol(), read_recipe("logmel"), out=tmp_path / f"pack{workers}", workers=workers
        )
        assert list(made.missing) == [("c1", "0")]
        tables.append(read_pack(made.folder, corpus="custom", fingerprint=corpus.pack_fingerprints()))
    assert tables[0].level == "sequence"
    assert tables[0].width == 64
    assert len(tables[0]) == 5
    np.testing.assert_array_equal(tables[0].values, tables[1].values)
    assert tables[0].offsets is not None
    assert np.diff(tables[0].offsets).tolist() == [18, 28, 33, 38, 43]
    manifest = read_manifest(tmp_path / "pack1")
    assert manifest["tool"] == "logmel"
    assert manifest["settings"]["scale"] == "slaney"
    assert len(set(manifest["dimensions"])) == 64
