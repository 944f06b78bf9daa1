"""Made-up faces for tests: tables as Py-Feat and OpenFace write them, pictures, videos, and a stand-in for Py-Feat."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

from ercfusion.features.faces import FEX_SETS, LANDMARKS, OPENFACE_SETS

BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore")
UPPER = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
MESH = tuple(f"mesh_{axis}_{number}" for axis in "xyz" for number in range(478))
IDENTITY = tuple(f"Identity_{number}" for number in range(1, 513))
V1 = (
    *BOX, *LANDMARKS, *FEX_SETS["pose"], *FEX_SETS["aus"], *FEX_SETS["emotions"], *IDENTITY, *FEX_SETS["gaze"],
    "FrameHeight", "FrameWidth", "input", "frame", "approx_time", "Identity",
)  # fmt: skip
V2 = (
    *BOX, *LANDMARKS, *FEX_SETS["pose"], *FEX_SETS["aus"], *UPPER, "valence", "arousal", *FEX_SETS["gaze"],
    *IDENTITY, *MESH, "jawOpen", "FrameHeight", "FrameWidth", "input", "frame", "Identity",
)  # fmt: skip
# As files of 2022 and 2023 have them: no position of the head, no gaze, no identity.
OLD = (
    "frame", *BOX, *LANDMARKS, *FEX_SETS["aus"], "Pitch", "Roll", "Yaw", *FEX_SETS["emotions"], "input",
)  # fmt: skip
SEQUENCE = ("frame", "face_id", "timestamp", "confidence", "success")
GAZE = (*OPENFACE_SETS["gaze"], *OPENFACE_SETS["gaze_angles"])
THREE = tuple(f"{axis}_{number}" for axis in "XYZ" for number in range(68))
MULTI = (*SEQUENCE, *GAZE, *OPENFACE_SETS["pose"], *LANDMARKS, *THREE, "p_scale", *OPENFACE_SETS["aus"])


def write(path, columns, rows, blank="", index=False):
    """A CSV file of ``rows`` (names to cells); other cells are 0.5, the row of a frame without a face all empty."""
    lines = [f",{blank}".join((*([""] if index else []), *columns))]
    for number, row in enumerate(rows):
        cells = [str(row.get(name, "" if row.get("FaceRectX") == "" else 0.5)) for name in columns]
        lines.append(f",{blank}".join((*([str(number)] if index else []), *cells)))
    path.write_text("\n".join(lines) + "\n")
    return path


def face(frame, left=10.0, **more):
    box = dict(zip(BOX, (left, 20.0, 30.0, 40.0, 0.9), strict=True))
    return {"frame": frame, **box, "input": "v.mp4", "approx_time": "00:00", "Identity": "Person_0", **more}


def nobody(frame):
    return {"frame": frame, **dict.fromkeys(BOX, ""), "FaceScore": 0.0, "input": "v.mp4", "FrameHeight": 480.0}


def seen(frame, number=0, success=1, **more):
    return {
        "frame": frame, "face_id": number, "timestamp": round((frame - 1) / 25, 3), "confidence": 0.98,
        "success": success, **more,
    }  # fmt: skip


def write_frames(path, images, fps=25, *, codec="png", pixels="rgb24", options=None, stamps=None):
    """A video of the given pictures; the codec "png" keeps every pixel as it is."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000) if stamps is not None else Fraction(1, fps)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = stream.codec_context.time_base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def picture(*faces, size=(60, 80)):
    """(height, width, 3) with squares (left, top, side, brightness), which the stand-in takes for faces."""
    image = np.zeros((*size, 3), np.uint8)
    for left, top, side, brightness in faces:
        image[top : top + side, left : left + side] = brightness
    return image


def standin(monkeypatch):
    """Let ``import feat`` find the stand-in, until the generator goes on."""
    for name in [name for name in sys.modules if name.split(".")[0] == "feat"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standin")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "feat"]:
        del sys.modules[name]
