"""Small generated recordings for twins and tests: tones in WAV files, and videos with sound."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import require_extra


def tone(seconds: float, rate: int = 16000, pitch: float = 150.0, seed: int = 0) -> NDArray[np.float32]:
    """A voice-like sound, (samples,) in -1 to 1: rising and falling harmonics of ``pitch`` Hz, and a little noise."""
    chance = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    glide = pitch * (1 + 0.05 * np.sin(2 * np.pi * 1.5 * time + chance.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(glide) / rate
    voice = sum(np.sin(number * phase) / number for number in range(1, 9))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * time + chance.uniform(0, 6))
    sound = 0.25 * loudness * voice + 0.01 * chance.standard_normal(len(time))
    return np.asarray(np.clip(sound, -1, 1), dtype=np.float32)


def write_wav(path: str | Path, sound: NDArray[np.float32], rate: int = 16000) -> Path:
    """Write (samples,) or (samples, channels) in -1 to 1 as 16-bit PCM."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = sound[:, None] if sound.ndim == 1 else sound
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels.shape[1])
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.ascontiguousarray(np.round(channels * 32767), dtype="<i2").tobytes())
    return path


def write_video(
    path: str | Path,
    seconds: float,
    *,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    sound: NDArray[np.float32] | None = None,
    rate: int = 16000,
    seed: int = 0,
) -> Path:
    """Write an MP4 of moving colours (width, height in ``size``), with ``sound`` (samples,) as its track.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    require_extra("av", "audio", "Writing a video")
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    base = chance.integers(0, 200, 3)
    width, height = size
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=fps)
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        track = None
        if sound is not None:
            track = container.add_stream("aac", rate=rate)
            track.layout = "mono"
        for number in range(max(1, round(seconds * fps))):
            pixels = np.empty((height, width, 3), np.uint8)
            pixels[:] = (base + number * 3) % 256
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            for packet in picture.encode(frame):
                container.mux(packet)
        for packet in picture.encode():
            container.mux(packet)
        if track is not None and sound is not None:
            block = 1024
            for start in range(0, len(sound), block):
                samples = sound[None, start : start + block].astype(np.float32)
                audio = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                audio.sample_rate = rate
                audio.pts = start
                for packet in track.encode(audio):
                    container.mux(packet)
            for packet in track.encode():
                container.mux(packet)
    return path
