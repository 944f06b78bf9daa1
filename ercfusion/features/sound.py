"""Read sound files and sound tracks of videos as one channel of float32, resampled at most once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean, first_line, require_extra
from ercfusion.data.media import BEYOND, RATES, Clip, announced_frames, sampling_rate
from ercfusion.features.clip_error import ClipError

Resample = Literal["tracks", "all", "none"]

# Read by libsndfile with sample accuracy.
_PLAIN = {".wav", ".flac", ".ogg", ".aif", ".aiff", ".au", ".w64", ".caf"}
# -80 dB of full scale: less than four steps of 16-bit sound.
SILENCE = 1e-4
# Seconds decoded before a clip's start: packets depend on earlier ones.
_LEAD = 0.5
# Samples read at a time.
_PART = 1 << 20


@dataclass(frozen=True)
class Sound:
    """A waveform.

    Args:
        samples: (n,) float32, -1 to 1.
        rate: Hz.
        cut: Why less was read than requested.
    """

    samples: NDArray[np.float32]
    rate: int
    cut: str = ""

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether the peak is below -80 dB of full scale."""
        return not len(self.samples) or float(np.abs(self.samples).max()) < SILENCE

    @property
    def notes(self) -> list[str]:
        """Oddities: silence, missing sound at the end."""
        silent = f"silent: the peak is below -80 dB ({self.seconds:.2f} s)" if self.silent else ""
        return [note for note in (silent, self.cut) if note]


def check_sound_settings(rate: int | None, resample: str) -> None:
    """Raise :class:`ConfigError` for invalid settings of :func:`read_sound`."""
    if resample not in get_args(Resample):
        raise ConfigError(f"resample={resample!r}: unknown. {did_you_mean(str(resample), get_args(Resample))}")
    if rate is None and resample != "none":
        raise ConfigError(f"resample={resample}: needs a rate. Add it, for example rate=16000 (samples per second).")
    if rate is not None and (not isinstance(rate, int) or isinstance(rate, bool) or not RATES[0] <= rate <= RATES[1]):
        raise ConfigError(
            f"rate={rate!r}: not a whole number of Hz from {RATES[0]} to {RATES[1]}. Use for example 16000."
        )


def read_sound(clip: Clip, rate: int | None = None, resample: Resample = "none") -> Sound:
    """The sound of a clip.

    Channels of sound files are averaged; FFmpeg mixes those of videos (in surround sound, the centre has the voices).

    Args:
        clip: The file, and the part of it.
        rate: Hz, after resampling.
        resample: ``tracks``: sound tracks of videos and compressed sound; ``all``: plain files (WAV, FLAC, ...) too;
            ``none``: nothing.

    Raises:
        ClipError: missing, empty or damaged file, or no sound between start and end.
        MissingExtraError: soundfile or PyAV is not installed.
    """
    try:
        size = clip.path.stat().st_size
    except OSError as error:
        if clip.path.exists():
            raise ClipError(f"cannot be read: {error.strerror}. Check the file's permissions.") from error
        raise ClipError(f"no such file: {clip.path.name}. Correct the path in the table.") from error
    if size == 0:
        raise ClipError("the file is empty (0 bytes). Copy it again.")
    if clip.end is not None and clip.end <= clip.start:
        raise ClipError(
            f"the turn ends at {clip.end:g} s, but starts at {clip.start:g} s. Correct start and end in the table."
        )
    plain = clip.path.suffix.lower() in _PLAIN
    if plain:
        sound = _plain(clip)
        if resample == "all" and rate is not None and sound.rate != rate:
            sound = Sound(_resampled(sound, rate), rate, sound.cut)
    else:
        sound = _track(clip, None if resample == "none" else rate)
    if not len(sound.samples):
        if clip.start == 0:
            raise ClipError("the file holds no sound. Copy it again.")
        raise ClipError(f"the file ends before {clip.start:g} s. Correct the turn's start, or copy the file again.")
    # Resampling can overshoot, and values beyond 1 would wrap around as 16-bit numbers.
    return Sound(np.clip(sound.samples, -1.0, np.float32(32767 / 32768)), sound.rate, sound.cut or _short(clip, sound))


def uneven_rates(clips: Sequence[Clip], rate: int | None, resample: Resample) -> dict[Clip, str]:
    """Clips processed at another sampling rate than most, with a note each.

    Loudness and spectral measures of one voice differ at 16 and 48 kHz. Only headers are read; unreadable files are
    ignored.
    """
    rates: dict[Path, int] = {}
    for path in dict.fromkeys(clip.path for clip in clips):
        keeps = resample == "none" or (resample == "tracks" and path.suffix.lower() in _PLAIN)
        file_rate = sampling_rate(path) if keeps and path.is_file() else rate
        if file_rate is not None:
            rates[path] = file_rate
    counts = Counter(rates.values())
    if len(counts) < 2:
        return {}
    # The higher of equally frequent rates, whatever the order of clips.
    usual = max(counts, key=lambda value: (counts[value], value))
    return {
        clip: f"processed at {rates[clip.path]} Hz, most of this pack at {usual} Hz"
        for clip in clips
        if clip.path in rates and rates[clip.path] != usual
    }


def _short(clip: Clip, sound: Sound) -> str:
    ends = clip.start + sound.seconds
    if clip.end is None or clip.end <= ends + BEYOND:
        return ""
    return f"the turn ends at {clip.end:.2f} s, its recording at {ends:.2f} s"


def _plain(clip: Clip) -> Sound:
    require_extra("soundfile", "audio", "Reading sound files")
    import soundfile

    try:
        with soundfile.SoundFile(str(clip.path)) as stream:
            if not RATES[0] <= stream.samplerate <= RATES[1]:
                raise ClipError(
                    f"a sampling rate of {stream.samplerate} Hz, outside {RATES[0]} to {RATES[1]}. Convert the file."
                )
            first = round(clip.start * stream.samplerate)
            last = stream.frames if clip.end is None else min(stream.frames, round(clip.end * stream.samplerate))
            if first >= stream.frames:
                return Sound(np.empty(0, np.float32), stream.samplerate)
            stream.seek(first)
            samples = _samples(stream, last - first)
            rate, length = int(stream.samplerate), int(stream.frames)
    except (soundfile.SoundFileError, OSError) as error:
        raise ClipError(f"cannot be decoded: {_sentence(error)} Convert the recording, or copy it again.") from error
    mixed = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return Sound(
        np.ascontiguousarray(mixed, dtype=np.float32), rate, _cut_off(clip, rate, min(length, first + len(mixed)))
    )


def _samples(stream: Any, count: int) -> NDArray[np.float32]:
    # A damaged header can announce more than fits into memory.
    parts = [stream.read(min(count, _PART), dtype="float32", always_2d=True)]
    while len(parts[-1]) == _PART and (count := count - _PART) > 0:
        parts.append(stream.read(min(count, _PART), dtype="float32", always_2d=True))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cut_off(clip: Clip, rate: int, length: int) -> str:
    # The file ends before its header says: an interrupted copy or download.
    announced = announced_frames(clip.path)
    if announced is None or announced <= length or (clip.end is not None and round(clip.end * rate) <= length):
        return ""
    return f"cut off: the file announces {announced / rate:.2f} s of sound and holds {length / rate:.2f} s"


def _resampled(sound: Sound, rate: int) -> NDArray[np.float32]:
    require_extra("audresample", "audio", "Resampling")
    import audresample

    return np.asarray(audresample.resample(sound.samples[None], sound.rate, rate)[0], dtype=np.float32)


def _track(clip: Clip, rate: int | None) -> Sound:
    require_extra("av", "audio", "Reading the sound of videos")
    import av

    try:
        with av.open(str(clip.path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ClipError("the file has no sound track. Choose a recipe for text or faces, or another file.")
            stream = container.streams.audio[0]
            own_rate = int(getattr(stream, "rate", None) or 0)  # a track without a decoder has none
            if own_rate <= 0:
                raise ClipError("the sound track states no sampling rate. Convert the file to WAV.")
            if clip.start > _LEAD:
                container.seek(int((clip.start - _LEAD) * 1_000_000), backward=True)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate or own_rate)
            frames = list(_needed(container.decode(stream), clip, own_rate))
            samples = _through(resampler, frames)
    except ClipError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError(f"cannot be decoded: {_sentence(error)} Convert the recording, or copy it again.") from error
    return Sound(samples, rate or own_rate)


def _needed(frames: Any, clip: Clip, rate: int) -> Any:
    # Frames between start and end, cut to the sample.
    import av

    first = round(clip.start * rate)
    last = None if clip.end is None else round(clip.end * rate)
    position = None
    for frame in frames:
        if position is None:
            position = 0 if clip.start <= _LEAD else round(float(frame.time or 0.0) * rate)
        begin, end = position, position + frame.samples
        position = end
        if last is not None and begin >= last:
            return
        cut_front, cut_back = max(0, first - begin), 0 if last is None else max(0, end - last)
        if cut_front >= frame.samples:
            continue
        if cut_front or cut_back:
            values = frame.to_ndarray()
            packed = not frame.format.is_planar
            channels = frame.layout.nb_channels
            width = channels if packed else 1
            values = np.ascontiguousarray(values[:, cut_front * width : values.shape[1] - cut_back * width])
            part = av.AudioFrame.from_ndarray(values, format=frame.format.name, layout=frame.layout.name)
            part.sample_rate = frame.sample_rate
            frame = part
        frame.pts = None  # without gaps
        yield frame


def _through(resampler: Any, frames: list[Any]) -> NDArray[np.float32]:
    parts = []
    for frame in [*frames, None] if frames else []:
        parts += [np.asarray(out.to_ndarray()[0], dtype=np.float32) for out in resampler.resample(frame)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _sentence(error: BaseException) -> str:
    return first_line(error).rstrip(".") + "."
