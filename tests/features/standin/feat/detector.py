import sys

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

UNITS = [1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43]
BOX = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"]
POINTS = [f"{axis}_{number}" for axis in "xy" for number in range(68)]
POSE = ["Pitch", "Roll", "Yaw", "X", "Y", "Z"]
AUS = [f"AU{unit:02d}" for unit in UNITS]
GAZE = ["gaze_pitch", "gaze_yaw", "gaze_angle"]
IDENTITY = [f"Identity_{number}" for number in range(1, 513)]
LOWER = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
UPPER = ["Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger"]
MESH = [f"mesh_{axis}_{number}" for axis in "xyz" for number in range(478)]
V1 = [*BOX, *POINTS, *POSE, *AUS, *LOWER, *IDENTITY, *GAZE]
V2 = [*BOX, *POINTS, *POSE, *AUS, *UPPER, "valence", "arousal", *GAZE, *IDENTITY, *MESH]
CALLS = []


def tqdm(loader):
    sys.stderr.write("0%|          | 0/1\n")
    return loader


def squares(picture):
    """Left, top, width, height and brightness of the bright squares of a (3, H, W) picture."""
    labels, _ = ndimage.label(picture.float().mean(0).numpy() > 60)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        bright = picture.float().mean(0).numpy()[labels == number].mean() / 255
        left, top = columns.start, rows.start
        yield left, top, columns.stop - left, rows.stop - top, bright


def fill(columns, size, face, absent):
    height, width = size
    left, top, wide, high = face[:4]
    row = dict.fromkeys(columns, 0.0)
    row |= dict(zip(BOX, face, strict=True))
    row |= {f"x_{number}": left + wide * number / 67 for number in range(68)}
    row |= {f"y_{number}": top + high * number / 67 for number in range(68)}
    row |= {"AU01": left / width, "AU02": top / height, "Pitch": -0.1, "X": wide, "gaze_yaw": 0.2}
    row |= {"happiness": 0.75, "neutral": 0.25} if "happiness" in row else {"Happy": 0.75, "Neutral": 0.25}
    row |= {"valence": 0.5} if "valence" in row else {}
    return row | dict.fromkeys(absent, np.nan)


def detected(columns, inputs, threshold, absent):
    rows = []
    for number, picture in enumerate(inputs):
        size = picture.shape[-2:]
        found = [face for face in squares(picture) if face[4] >= threshold]
        faces = [fill(columns, size, face, absent) for face in found]
        for row in faces or [dict.fromkeys(columns, np.nan) | {"FaceScore": 0.0}]:
            rows.append(row | {"FrameHeight": size[0], "FrameWidth": size[1], "input": "tensor", "frame": number})
    table = pd.DataFrame(rows)
    table["Identity"] = np.nan
    return table


def check(inputs, data_type, batch_size):
    if data_type != "tensor":
        raise ValueError(f"this stand-in has tensors only, not {data_type!r}")
    if not (isinstance(inputs, torch.Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4):
        raise TypeError("pictures (B, 3, H, W) uint8 are expected")
    if inputs.shape[1] != 3 or batch_size < 1:
        raise TypeError(f"{tuple(inputs.shape)}, batch_size {batch_size}")
    CALLS.append(tuple(inputs.shape))


class Detectorv1(torch.nn.Module):
    def __init__(
        self,
        face_model="retinaface",
        landmark_model="mobilefacenet",
        au_model="xgb",
        emotion_model="resmasknet",
        identity_model="arcface",
        gaze_model="l2cs",
        device="cpu",
    ):
        super().__init__()
        if device == "cuda":
            raise RuntimeError("no CUDA here")
        self.absent = [
            *(AUS if au_model is None else []),
            *(LOWER if emotion_model is None else []),
            *(GAZE if gaze_model is None else []),
            *(IDENTITY if identity_model is None else []),
        ]
        self.models = (face_model, landmark_model, au_model, emotion_model, identity_model, gaze_model)

    def detect(
        self,
        inputs,
        data_type="image",
        output_size=None,
        batch_size=1,
        num_workers=0,
        pin_memory=False,
        face_identity_threshold=0.8,
        face_detection_threshold=0.5,
        skip_frames=None,
        progress_bar=True,
        save=None,
    ):
        check(inputs, data_type, batch_size)
        next(enumerate(tqdm([inputs])))
        if inputs.shape[-1] == 13:
            raise RuntimeError("a picture it cannot digest")
        return detected(V1, inputs, face_detection_threshold, self.absent)


class Detectorv2(torch.nn.Module):
    def __init__(
        self,
        device="cpu",
        face_detection_threshold=0.5,
        identity_model="arcface",
        multitask_weights=None,
        amp=None,
        compile=False,
    ):
        super().__init__()
        self.face_detection_threshold = face_detection_threshold
        self.models = (identity_model,)

    def detect(
        self,
        inputs,
        data_type="image",
        output_size=None,
        batch_size=1,
        num_workers=0,
        pin_memory=False,
        face_identity_threshold=0.8,
        face_detection_threshold=None,
        skip_frames=None,
        progress_bar=True,
    ):
        check(inputs, data_type, batch_size)
        threshold = self.face_detection_threshold if face_detection_threshold is None else face_detection_threshold
        return detected(V2, inputs, threshold, IDENTITY)
