"""Frames of a clip: which ones are taken, and their pixels.

The frames are chosen here rather than by a face detector, so that every corpus and every tool sees a recording at the
same stated rate, whatever the rate of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import require_extra
from ercfusion.data.media import Clip
from ercfusion.features.clip_error import ClipError

# Containers round time stamps, commonly to milliseconds, so that the distance of two is up to a millisecond wrong: two
# that are closer than this are the same moment.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Frame:
    """One picture of a recording.

    Args:
        time: Seconds from the beginning of the file (0 for a picture file).
        image: (height, width, 3) uint8, red, green, blue, upright as the file's rotation says.
    """

    time: float
    image: NDArray[np.uint8]


def choose_times(
    times: NDArray[np.float64],
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
) -> NDArray[np.int64]:
    """Which of the frames at ``times`` are taken.

    Time is cut into slots of 1 / ``fps`` seconds, counted from the first frame in the window, and the first frame of
    every slot is taken: of a recording with 25 frames a second, ``fps=5`` takes every fifth, and rounded time stamps or
    an irregular rate do not add up to a drift. A recording with fewer frames than ``fps`` asks for gives those it has;
    none is repeated. Where more than ``max_frames`` remain, that many are taken at equal distances over the window.

    Args:
        times: (T,) seconds, rising.
        start, end: The window in seconds, without its end; None for no end.
        fps: Frames a second; None for all.
        max_frames: The most frames to take; None for no limit.

    Returns:
        (K,) positions in ``times``, rising; empty where nothing lies in the window.
    """
    inside = times >= start - TOLERANCE
    if end is not None:
        inside &= times < end - TOLERANCE
    taken = np.flatnonzero(inside)
    if fps is not None and len(taken):
        slots = np.floor((times[taken] - times[taken[0]] + TOLERANCE) * fps)
        taken = taken[np.unique(slots, return_index=True)[1]]
    if max_frames is not None and len(taken) > max_frames:
        # The middles of max_frames equal parts, so that neither end is preferred.
        middles = (np.arange(max_frames) + 0.5) * len(taken) / max_frames
        taken = taken[middles.astype(np.int64)]
    return taken.astype(np.int64)


def read_frames(clip: Clip, *, fps: float | None = None, max_frames: int | None = None) -> Iterator[Frame]:
    """Decode the frames that :func:`choose_times` takes of a clip, one after the other.

    Two passes: the time stamps are read first, without decoding, so that a limit on the number spreads over the whole
    clip; then the chosen frames are decoded. A picture file is one frame, whatever the clip's times. Only one decoded
    frame is held at a time.

    Args:
        clip: A video or a picture in any format that PyAV reads.
        fps, max_frames: See :func:`choose_times`.

    Raises:
        MissingExtraError: PyAV is not installed.
        ClipError: the file is missing or empty, cannot be decoded, has no video stream, or has no frame between the
            clip's start and end.
    """
    require_extra("av", "face", "Reading frames")
    check_window(clip)
    return _frames(clip, fps, max_frames)


def check_window(clip: Clip) -> None:
    """Raise :class:`ClipError` where a clip ends before it begins."""
    if clip.end is not None and clip.end <= clip.start:
        raise ClipError(f"the turn ends at {clip.end:g} s, not after its start at {clip.start:g} s")


def _frames(clip: Clip, fps: float | None, max_frames: int | None) -> Iterator[Frame]:
    with _video(clip.path) as (container, stream, origin):
        if _is_picture(container):
            picture = next(container.decode(stream), None)
            if picture is None:
                raise ClipError("cannot be decoded: the picture has no pixels")
            yield Frame(0.0, _upright(picture))
            return
        sought = clip.start > 0 and _seek(container, stream, origin, clip.start)
        times = _stamps(container, stream, origin, clip.end)
    if sought and (not len(times) or times[0] > clip.start + TOLERANCE):
        # Without an index some formats land behind the place asked for: read those from their beginning.
        sought = False
        with _video(clip.path) as (container, stream, origin):
            times = _stamps(container, stream, origin, clip.end)
    wanted = times[choose_times(times, start=clip.start, end=clip.end, fps=fps, max_frames=max_frames)]
    if not len(wanted):
        until = "the end" if clip.end is None else f"{clip.end:g} s"
        raise ClipError(f"no frame between {clip.start:g} s and {until} of the recording")
    given = 0
    with _video(clip.path) as (container, stream, origin):
        if sought:
            _seek(container, stream, origin, clip.start)
        for picture in container.decode(stream):
            time = _seconds(picture.pts, stream, origin)
            if time is None or time < wanted[given] - TOLERANCE:
                continue
            yield Frame(time, _upright(picture))
            # Several at once where frames in between could not be decoded.
            given = int(np.searchsorted(wanted, time + TOLERANCE, side="right"))
            if given == len(wanted):
                return
    if given == 0:
        raise ClipError(f"cannot be decoded: none of {len(wanted)} frames")


@contextmanager
def _video(path: Path) -> Iterator[tuple[Any, Any, float]]:
    """The open file, its video stream, and the time in seconds that the file counts from."""
    import av

    if not path.is_file():
        raise ClipError(f"{'a folder, not a file' if path.is_dir() else 'no such file'}: {path.name}")
    if path.stat().st_size == 0:
        raise ClipError("the file is empty (0 bytes)")
    try:
        # An absolute path, because a colon in a relative one is taken for the end of a protocol's name.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            # The cover picture of a sound file is a video stream too, but no recording.
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise ClipError("the file has no video stream")
            yield container, streams[0], (container.start_time or 0) / av.time_base
    except av.error.FFmpegError as error:
        raise ClipError(f"cannot be decoded: {error.strerror}") from error


def _is_picture(container: Any) -> bool:
    name = container.format.name
    return name == "image2" or name.endswith("_pipe")


def _seek(container: Any, stream: Any, origin: float, start: float) -> bool:
    """Go to the last key frame before ``start``; False where the format cannot."""
    import av

    try:
        container.seek(int((start + origin) / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError:
        return False  # the caller reads from the beginning instead, which gives the same frames
    return True


def _stamps(container: Any, stream: Any, origin: float, end: float | None) -> NDArray[np.float64]:
    """Seconds of the frames from where the file stands up to ``end``, (T,) rising, found without decoding."""
    found = []
    for packet in container.demux(stream):
        # Some formats (AVI) state only the order of decoding, which differs from that of showing by a constant.
        time = _seconds(packet.dts if packet.pts is None else packet.pts, stream, origin)
        if time is not None and not packet.is_discard:
            found.append(time)
        decoded_at = _seconds(packet.dts, stream, origin)
        # A frame is never shown before it is decoded, so nothing that follows belongs to the window.
        if end is not None and decoded_at is not None and decoded_at > end:
            break
    return np.array(sorted(found), dtype=np.float64)


def _seconds(stamp: int | None, stream: Any, origin: float) -> float | None:
    return None if stamp is None else float(stamp * stream.time_base) - origin


def _upright(picture: Any) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = picture.to_ndarray(format="rgb24")
    # Telephones store what the sensor sees, and the angle beside it; detectors miss faces that lie on their side.
    if picture.rotation % 90 == 0 and picture.rotation % 360:
        image = np.ascontiguousarray(np.rot90(image, picture.rotation // 90))
    return image
