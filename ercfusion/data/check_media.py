"""Checks of ``doctor`` for recordings: absent, empty, damaged or equal files, and unlikely lengths.

Only names, sizes and headers are read, and the contents of files of equal size.
"""

from __future__ import annotations

import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion._core.files import sha256_of
from ercfusion._core.progress import track
from ercfusion.data.conversation import Turn
from ercfusion.data.corpus import Corpus, Finding, Protocol, Splits
from ercfusion.data.features import Key
from ercfusion.data.media import BEYOND, MEDIA_KINDS, RATES, Clip, MediaKind, has_av, sampling_rate, track_rate

LONG = 10.0
"""Seconds not exceeded by a clip of a usual utterance..."""
LONG_BASE, LONG_PER_WORD = 5.0, 4.0
"""...unless its words, spoken very slowly and with a pause, need more."""
SHORT_PER_WORD = 0.05
"""Seconds too short to speak a word."""
RULE = (
    f"longer than {LONG:g} s and than {LONG_BASE:g} s + {LONG_PER_WORD:g} s per word, "
    f"or shorter than {SHORT_PER_WORD:g} s per word"
)
_SHOWN = 3
"""Examples per finding."""
_LISTED = 50
"""Absent files listed per finding."""
_MANY = 20
"""Recordings of one length from which on this is not chance."""
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"})


class _UnreadableError(Exception):
    # A header without usable information; never leaves this module.
    pass


@dataclass
class _File:
    # None: not in the header.
    size: int
    seconds: float | None = None
    rate: int | None = None
    fault: str = ""


def check_clips(corpus: Corpus, protocol: Protocol, splits: Splits) -> list[Finding]:
    """Check recordings: absent, empty, damaged or equal files, and unlikely lengths.

    Without any recording there are no findings, unless the corpus's own table names recordings.
    """
    findings: list[Finding] = []
    files: dict[Path, _File] = {}
    judged: set[tuple[Key, Clip]] = set()
    for kind in MEDIA_KINDS:
        topic = f"{kind} recordings"
        try:
            try:
                clips = corpus.clips(protocol, kind)
            except CorpusNotFoundError:
                clips = corpus.named_clips(protocol, kind)
        except ConfigError:
            continue
        except CorpusFormatError as error:
            findings.append(Finding("fault", topic, str(error)))
            continue
        if not clips:
            continue
        fresh = _read_headers(clips, kind, files)
        findings += _presence(topic, splits, clips, files)
        findings += _damage(topic, fresh, files)
        findings += _equal(topic, splits, clips, fresh, files)
        findings += _one_length(topic, fresh, files)
        if kind == "audio":
            findings += _rates(topic, files)
        # A video that also serves as sound is checked once.
        new = {key: clip for key, clip in clips.items() if (key, clip) not in judged}
        judged.update(new.items())
        findings += _fit(topic, splits, new, files)
    return findings


def _read_headers(clips: Mapping[Key, Clip], kind: MediaKind, files: dict[Path, _File]) -> list[Path]:
    # Returns the added paths.
    fresh = []
    paths = dict.fromkeys(clip.path for clip in clips.values())
    for path in track([path for path in paths if path not in files], f"reading headers of {kind} recordings"):
        if not path.is_file():
            continue
        fresh.append(path)
        files[path] = file = _File(path.stat().st_size)
        if file.size and path.suffix.lower() not in _PICTURES:
            try:
                file.seconds, file.rate = header(path)
            except _UnreadableError as error:
                file.fault = str(error)
    return fresh


def header(path: Path) -> tuple[float | None, int | None]:
    """Duration in seconds and sampling rate in Hz according to a file's header; None if unknown.

    Raises:
        Exception: the header cannot be read.
    """
    if path.suffix.lower() == ".wav":
        try:
            return _wave_header(path)
        except (wave.Error, EOFError, RuntimeError) as error:
            # The standard library reads plain samples only; PyAV reads the others.
            if not has_av():
                if "unknown format" in str(error):
                    return None, sampling_rate(path)
                raise _UnreadableError(str(error) or "the file ends within its header") from error
        except OSError as error:
            raise _UnreadableError(str(error.strerror)) from error
    return _av_header(path) if has_av() else (None, sampling_rate(path))


def _wave_header(path: Path) -> tuple[float, int]:
    with wave.open(str(path), "rb") as stream:
        frames, width = stream.getnframes(), stream.getsampwidth() * stream.getnchannels()
        rate = stream.getframerate()
    if not RATES[0] <= rate <= RATES[1]:
        raise _UnreadableError(f"a sampling rate of {rate} Hz: {RATES[0]} to {RATES[1]} are read")
    size = path.stat().st_size
    if frames * width > size:
        raise _UnreadableError(f"cut off: {frames * width} bytes of sound are announced, the file has {size}")
    return frames / rate, rate


def _av_header(path: Path) -> tuple[float | None, int | None]:
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            rate = track_rate(container)
            if container.duration is not None:
                return float(container.duration / av.time_base), rate
            lengths = [
                float(stream.duration * stream.time_base)
                for stream in container.streams
                if stream.duration is not None and stream.time_base is not None
            ]
    except (av.error.FFmpegError, ValueError) as error:
        raise _UnreadableError(" ".join(str(error).replace(str(path), path.name).split())) from error
    return max(lengths, default=None), rate


def _presence(topic: str, splits: Splits, clips: Mapping[Key, Clip], files: Mapping[Path, _File]) -> list[Finding]:
    findings = []
    for split, turns in _turns(splits).items():
        named = {key: clips[key].path for key in turns if key in clips}
        absent = [path for path in dict.fromkeys(named.values()) if path not in files]
        number = len(set(named.values()))
        if absent:
            text = f"{split}: {len(absent)} of {number} files are absent (first: {absent[0]})"
            if len(absent) > 1:
                more = f", and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
                text += f": {', '.join(path.name for path in absent[:_LISTED])}{more}"
            text += ". Correct the paths, or copy the files."
            findings.append(Finding("fault" if len(absent) == number else "note", topic, text))
        elif number:
            text = f"{split}: {number} files for {len(named)} of {len(turns)} utterances, none absent"
            findings.append(Finding("ok", topic, text))
        else:
            findings.append(Finding("note", topic, f"{split}: no utterance names a recording"))
    return findings


def _damage(topic: str, fresh: Sequence[Path], files: Mapping[Path, _File]) -> list[Finding]:
    findings = []
    if empty := [path.name for path in fresh if not files[path].size]:
        text = f"{len(empty)} files are empty (0 bytes): {some(empty)}. Copy them again."
        findings.append(Finding("fault", topic, text))
    if damaged := [path for path in fresh if files[path].fault]:
        first = damaged[0]
        text = f"{len(damaged)} files cannot be read: {some([path.name for path in damaged])} ({files[first].fault})"
        text += ". Copy them again, or convert them."
        findings.append(Finding("fault", topic, text))
    return findings


def _equal(
    topic: str, splits: Splits, clips: Mapping[Key, Clip], fresh: Sequence[Path], files: Mapping[Path, _File]
) -> list[Finding]:
    # Only files of equal size can be equal.
    sizes = Counter(files[path].size for path in fresh)
    alike: dict[tuple[int, str], list[Path]] = {}
    for path in track([path for path in fresh if files[path].size and sizes[files[path].size] > 1], "comparing files"):
        alike.setdefault((files[path].size, sha256_of(path)), []).append(path)
    groups = [paths for paths in alike.values() if len(paths) > 1]
    if not groups:
        return []
    used = {clips[key].path: split for split, turns in _turns(splits).items() for key in turns if key in clips}
    between = sum(len({used[path] for path in paths}) > 1 for paths in groups)
    shown = some([f"{used[paths[0]]} {paths[0].name} = {used[paths[1]]} {paths[1].name}" for paths in groups])
    text = f"{sum(map(len, groups))} files have the content of another: {shown}"
    if between:
        text += f"; {between} of these {len(groups)} contents are in two splits"
    return [Finding("note", topic, text)]


def _one_length(topic: str, fresh: Sequence[Path], files: Mapping[Path, _File]) -> list[Finding]:
    lengths = Counter(files[path].seconds for path in fresh if files[path].seconds)
    if len(lengths) != 1 or (number := sum(lengths.values())) < _MANY:
        return []
    text = f"all {number} recordings last {next(iter(lengths)):.3f} s: they were cut or padded to one length"
    return [Finding("note", topic, text)]


def _rates(topic: str, files: Mapping[Path, _File]) -> list[Finding]:
    by_rate: dict[int, list[Path]] = {}
    for path, file in files.items():
        if file.rate is not None:
            by_rate.setdefault(file.rate, []).append(path)
    if len(by_rate) < 2:
        return []
    shown = ", ".join(f"{rate} Hz ({len(by_rate[rate])}, first {by_rate[rate][0].name})" for rate in sorted(by_rate))
    text = (
        f"several sampling rates: {shown}. Features of sound depend on the rate. Convert all to one during extraction"
    )
    return [Finding("note", topic, f"{text}: features.resample=all features.rate=16000")]


def _fit(topic: str, splits: Splits, clips: Mapping[Key, Clip], files: Mapping[Path, _File]) -> list[Finding]:
    # Clips too long, too short, or ending after their recording.
    long, short, beyond = [], [], []
    for split, turns in _turns(splits).items():
        for key, turn in turns.items():
            clip = clips.get(key)
            if clip is None or clip.path not in files or clip.path.suffix.lower() in _PICTURES:
                continue
            duration = files[clip.path].seconds
            name = f"{split} {'/'.join(key)}"
            if clip.end is not None and duration is not None and clip.end > duration + BEYOND:
                beyond.append(f"{name} ends at {clip.end:.1f} s of {duration:.1f} s")
            seconds = _seconds(clip, turn, duration)
            if seconds is None or turn.text is None:
                continue
            words = len(turn.text.split())
            text = f"{name} {seconds:.2f} s for {words} words"
            if seconds > LONG and seconds > LONG_BASE + LONG_PER_WORD * words:
                long.append(text)
            elif seconds < SHORT_PER_WORD * words:
                short.append(text)
    findings = []
    for comparison, clips_concerned in (("far longer", long), ("far shorter", short)):
        if clips_concerned:
            text = f"{len(clips_concerned)} clips are {comparison} than their words take: {some(clips_concerned)}. "
            findings.append(Finding("note", topic, f"{text}Rule: {RULE}"))
    if beyond:
        text = f"{len(beyond)} turns end after their recording: {some(beyond)}. Correct the times."
        findings.append(Finding("note", topic, text))
    return findings


def _seconds(clip: Clip, turn: Turn, duration: float | None) -> float | None:
    # Of a part from its times; else from the header, or from the turn's times.
    if clip.end is not None:
        return clip.end - clip.start
    if duration is not None:
        return duration - clip.start
    return None if turn.start is None or turn.end is None else turn.end - turn.start


def _turns(splits: Splits) -> dict[str, dict[Key, Turn]]:
    return {
        split: {(conversation.id, turn.id): turn for conversation in conversations for turn in conversation.turns}
        for split, conversations in splits.items()
    }


def some(names: Sequence[str]) -> str:
    """The first few names, for a finding."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
