"""Choose and decode the frames of a clip, at a stated rate for every corpus and tool."""

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

# Containers round time stamps, commonly to milliseconds.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Frame:
    """One frame: its time in seconds (0 for a picture file) and pixels (height, width, 3) uint8 RGB, upright."""

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
    """Positions of the frames to use, (K,) rising.

    Time is divided into slots of 1 / ``fps`` seconds from the first frame in the window. The first frame of each slot
    is used, so irregular times cause no drift. If more than ``max_frames`` remain, as many are chosen at equal
    distances.

    Args:
        times: (T,) seconds, rising.
        start, end: The window in seconds, end excluded; None for no end.
        fps: Frames per second; None for all.
        max_frames: None for no limit.
    """
    inside = times >= start - TOLERANCE
    if end is not None:
        inside &= times < end - TOLERANCE
    taken = np.flatnonzero(inside)
    if fps is not None and len(taken):
        slots = np.floor((times[taken] - times[taken[0]] + TOLERANCE) * fps)
        taken = taken[np.unique(slots, return_index=True)[1]]
    if max_frames is not None and len(taken) > max_frames:
        # The middles of equal parts.
        middles = (np.arange(max_frames) + 0.5) * len(taken) / max_frames
        taken = taken[middles.astype(np.int64)]
    return taken.astype(np.int64)


def read_frames(clip: Clip, *, fps: float | None = None, max_frames: int | None = None) -> Iterator[Frame]:
    """Decode the frames of a clip chosen by :func:`choose_times`, one at a time.

    A first pass reads only time stamps. A picture file is one frame, whatever the clip's times.

    Raises:
        MissingExtraError: PyAV is not installed.
        ClipError: missing, empty or undecodable file, no video stream, or no frame in the window.
    """
    require_extra("av", "face", "Reading frames")
    check_window(clip)
    return _frames(clip, fps, max_frames)


def check_window(clip: Clip) -> None:
    """Raise :class:`ClipError` if a clip ends before it begins."""
    if clip.end is not None and clip.end <= clip.start:
        raise ClipError(
            f"the turn ends at {clip.end:g} s, but starts at {clip.start:g} s. Correct start and end in the table."
        )


def _frames(clip: Clip, fps: float | None, max_frames: int | None) -> Iterator[Frame]:
    with _video(clip.path) as (container, stream, origin):
        if _is_picture(container):
            picture = next(container.decode(stream), None)
            if picture is None:
                raise ClipError("cannot be decoded: the picture has no pixels. Copy the file again.")
            yield Frame(0.0, _upright(picture))
            return
        sought = clip.start > 0 and _seek(container, stream, origin, clip.start)
        times = _stamps(container, stream, origin, clip.end)
    if sought and (not len(times) or times[0] > clip.start + TOLERANCE):
        # Without an index, some formats seek too far.
        sought = False
        with _video(clip.path) as (container, stream, origin):
            times = _stamps(container, stream, origin, clip.end)
    wanted = times[choose_times(times, start=clip.start, end=clip.end, fps=fps, max_frames=max_frames)]
    if not len(wanted):
        until = "the end" if clip.end is None else f"{clip.end:g} s"
        raise ClipError(
            f"no frame between {clip.start:g} s and {until} of the recording. Correct start and end in the table."
        )
    index = 0
    with _video(clip.path) as (container, stream, origin):
        if sought:
            _seek(container, stream, origin, clip.start)
        for picture in container.decode(stream):
            time = _seconds(picture.pts, stream, origin)
            if time is None or time < wanted[index] - TOLERANCE:
                continue
            yield Frame(time, _upright(picture))
            # Frames in between may be undecodable.
            index = int(np.searchsorted(wanted, time + TOLERANCE, side="right"))
            if index == len(wanted):
                return
    if index == 0:
        raise ClipError(f"cannot be decoded: none of {len(wanted)} frames. Convert the recording, or copy it again.")


@contextmanager
def _video(path: Path) -> Iterator[tuple[Any, Any, float]]:
    """The open file, its video stream, and its start in seconds."""
    import av

    if not path.is_file():
        kind = "a folder, not a file" if path.is_dir() else "no such file"
        raise ClipError(f"{kind}: {path.name}. Correct the path in the table.")
    if path.stat().st_size == 0:
        raise ClipError("the file is empty (0 bytes). Copy it again.")
    try:
        # Absolute: FFmpeg takes a colon in a relative path for a protocol.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            # Cover pictures are video streams too.
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise ClipError("the file has no video stream. Choose a recipe for sound, or another file.")
            yield container, streams[0], (container.start_time or 0) / av.time_base
    except av.error.FFmpegError as error:
        raise ClipError(f"cannot be decoded: {error.strerror}. Convert the recording, or copy it again.") from error


def _is_picture(container: Any) -> bool:
    name = container.format.name
    return name == "image2" or name.endswith("_pipe")


def _seek(container: Any, stream: Any, origin: float, start: float) -> bool:
    """Seek to the key frame before ``start``; False if the format cannot."""
    import av

    try:
        container.seek(int((start + origin) / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError:
        return False  # the caller reads from the beginning
    return True


def _stamps(container: Any, stream: Any, origin: float, end: float | None) -> NDArray[np.float64]:
    """Seconds of the frames from here to ``end``, (T,) rising, without decoding."""
    times = []
    for packet in container.demux(stream):
        # AVI has only decoding times: display times minus a constant.
        time = _seconds(packet.dts if packet.pts is None else packet.pts, stream, origin)
        if time is not None and not packet.is_discard:
            times.append(time)
        decoded_at = _seconds(packet.dts, stream, origin)
        # No frame is displayed before it is decoded.
        if end is not None and decoded_at is not None and decoded_at > end:
            break
    return np.array(sorted(times), dtype=np.float64)


def _seconds(stamp: int | None, stream: Any, origin: float) -> float | None:
    return None if stamp is None else float(stamp * stream.time_base) - origin


def _upright(picture: Any) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = picture.to_ndarray(format="rgb24")
    # Telephones store an angle; detectors miss faces on their side.
    if picture.rotation % 90 == 0 and picture.rotation % 360:
        image = np.ascontiguousarray(np.rot90(image, picture.rotation // 90))
    return image
