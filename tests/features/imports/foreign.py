"""Twins of every layout of foreign pickles: made-up content in the published form, and the ways it was written."""

from __future__ import annotations

import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

IEMOCAP_TRAIN = [f"Ses0{session}{sex}_impro0{number}" for session in (1, 2) for sex in "FM" for number in (1, 2)]
IEMOCAP_TEST = ["Ses05F_impro01", "Ses05M_script01"]
WIDTHS = {"text": 100, "audio": 100, "visual": 512}
MMGCN_WIDTHS = {"text": 100, "audio": 1582, "visual": 342}
MELD_WIDTHS = {"text": 600, "audio": 300, "visual": 342}
MELD_TRAIN = [0, 1, 2, 59, 61, 1038]
MELD_DEV = [1039, 1040, 1152]
MELD_TEST = [1153, 1154, 1432]
MELD_SENTIMENT = (0, 1, 2, 2, 1, 2, 2)
"""Index of a sentiment that goes with each of MELD's emotions."""
VIDEOS = {"train": ("a_b-1", "c"), "valid": ("d",), "test": ("e", "f")}


def features(chance: np.random.Generator, label: int, width: int) -> np.ndarray:
    """A vector in which the label can be seen."""
    vector = chance.standard_normal(width).astype(np.float32)
    vector[label % width] += 6
    return vector


def iemocap(widths: dict[str, int] = WIDTHS, classes: int = 6, seed: int = 0, turns: int = 12) -> tuple[Any, ...]:
    """The nine fields of DialogueRNN's and MMGCN's IEMOCAP pickles."""
    chance = np.random.default_rng(seed)
    ids, speakers, labels, sentences = {}, {}, {}, {}
    vectors: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in widths}
    for number, name in enumerate([*IEMOCAP_TRAIN, *IEMOCAP_TEST]):
        who = ["FM"[index % 2] for index in range(turns)]
        ids[name] = [f"{name}_{sex}{index:03d}" for index, sex in enumerate(who)]
        speakers[name] = who
        labels[name] = [(index + number) % classes for index in range(turns)]
        sentences[name] = [f"Sentence {index}, of {name}." for index in range(turns)]
        for modality, width in widths.items():
            vectors[modality][name] = [features(chance, label, width) for label in labels[name]]
    return (ids, speakers, labels, *vectors.values(), sentences, list(IEMOCAP_TRAIN), list(IEMOCAP_TEST))


def meld(fields: str = "mmgcn", seed: int = 0, labels: Callable[[int, int], int] | None = None) -> tuple[Any, ...]:
    """The fields of the MELD pickles: ``dialoguernn`` (9), ``mmgcn`` (10)."""
    chance = np.random.default_rng(seed)
    ids, speakers, emotions, sentiments, sentences = {}, {}, {}, {}, {}
    widths = {name: width for name, width in MELD_WIDTHS.items() if fields == "mmgcn" or name != "visual"}
    vectors: dict[str, dict[int, list[np.ndarray]]] = {name: {} for name in widths}
    for dialogue in [*MELD_TRAIN, *MELD_DEV, *MELD_TEST]:
        turns = 1 + dialogue % 9
        one_hot = np.eye(9, dtype=np.int64)
        ids[dialogue] = [str(index) for index in range(turns)]
        speakers[dialogue] = [one_hot[index % 3] for index in range(turns)]
        emotions[dialogue] = [(labels or (lambda a, b: (a + b) % 7))(dialogue, index) for index in range(turns)]
        sentiments[dialogue] = [MELD_SENTIMENT[emotion] for emotion in emotions[dialogue]]
        sentences[dialogue] = [f"Line {index}." for index in range(turns)]
        for modality, width in widths.items():
            vectors[modality][dialogue] = [features(chance, emotion, width) for emotion in emotions[dialogue]]
    start = (ids, speakers, emotions, *vectors.values(), sentences, MELD_TRAIN + MELD_DEV, list(MELD_TEST))
    return (*start, sentiments)


def cosmic(source: tuple[Any, ...], *, meld: bool = False, width: int = 8) -> list[Any]:
    """COSMIC's list of ten or eleven fields, from one of the tuples above."""
    chance = np.random.default_rng(1)
    speakers, labels, sentences = source[1], source[2], source[6]
    layers = [
        {name: [features(chance, label, width) for label in found] for name, found in labels.items()} for _ in range(4)
    ]
    train, test = list(source[7]), list(source[8])
    dev = [name for name in train if name in MELD_DEV] if meld else train[-1:]
    train = [name for name in train if name not in dev]
    return [speakers, labels, *([source[9]] if meld else []), *layers, sentences, train, test, dev]


def cogmen_parts(source: tuple[Any, ...], *, embeddings: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The attributes of COGMEN's samples by split, from IEMOCAP's nine fields."""
    _, speakers, labels, text, audio, visual, sentences, train, test = source
    dev = train[: max(1, len(train) // 10)]
    chance = np.random.default_rng(2)
    parts = {"train": train[len(dev) :], "dev": dev, "test": test}

    def sample(name: str) -> dict[str, Any]:
        attributes = {
            "vid": name, "speaker": speakers[name], "label": labels[name], "text": text[name], "audio": audio[name],
            "visual": visual[name], "sentence": sentences[name],
        }  # fmt: skip
        if embeddings:
            vectors = [features(chance, label, 768) for label in labels[name]]
            attributes["sbert_sentence_embeddings"] = np.stack(vectors)
        return attributes

    return {split: [sample(name) for name in names] for split, names in parts.items()}


@contextmanager
def cogmen_class() -> Iterator[type]:
    """A class that pickles as ``cogmen.Sample.Sample``, while the block runs."""
    package, module = types.ModuleType("cogmen"), types.ModuleType("cogmen.Sample")
    kind = type("Sample", (), {"__module__": "cogmen.Sample", "__qualname__": "Sample"})
    module.Sample = kind  # type: ignore[attr-defined]
    sys.modules.update({"cogmen": package, "cogmen.Sample": module})
    try:
        yield kind
    finally:
        del sys.modules["cogmen"], sys.modules["cogmen.Sample"]


def write_cogmen(path: Path, source: tuple[Any, ...], protocol: int = 4) -> Path:
    """A pickle of COGMEN's sample objects."""
    with cogmen_class() as kind:
        content = {}
        for split, entries in cogmen_parts(source).items():
            content[split] = []
            for attributes in entries:
                made = kind()
                made.__dict__.update(attributes)
                content[split].append(made)
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def mmsa(*, aligned: bool = True, seed: int = 0, segments: int = 4) -> dict[str, dict[str, Any]]:
    """MMSA's dictionary, zero-padded; unaligned files also state lengths. Segments are not in order of speech."""
    chance = np.random.default_rng(seed)
    steps = {"text": 6, "audio": 6 if aligned else 9, "vision": 6 if aligned else 7}
    widths = {"text": 5, "audio": 4, "vision": 3}
    content = {}
    for part, videos in VIDEOS.items():
        keys = [(video, segment) for video in videos for segment in (10, 9, *range(1, segments - 1))]
        scores = np.linspace(-3, 3, len(keys), dtype=np.float32)
        entry: dict[str, Any] = {
            "id": [f"{video}$_${segment}" for video, segment in keys],
            "raw_text": [f"words {segment} of {video}" for video, segment in keys],
            "regression_labels": scores,
            "classification_labels": np.sign(scores) + 1,
            "annotations": [("Negative", "Neutral", "Positive")[int(np.sign(score)) + 1] for score in scores],
        }
        for name, width in widths.items():
            values = np.zeros((len(keys), steps[name], width), np.float32)
            lengths = [1 + index % steps[name] for index in range(len(keys))]
            for index, length in enumerate(lengths):
                values[index, :length] = chance.standard_normal((length, width)) + 0.1
            entry[name] = values
            if name == "text":
                mask = np.zeros((len(keys), 3, steps[name]), np.float32)
                for index, length in enumerate(lengths):
                    mask[index, 0, :length], mask[index, 1, :length] = 101, 1
                entry["text_bert"] = mask
            elif not aligned:
                entry[f"{name}_lengths"] = lengths
        content[part] = entry
    return content


def carat(seed: int = 0, count: int = 5) -> dict[str, dict[str, Any]]:
    """The aligned MOSEI dictionary of TAILOR and CARAT: padded in front, labels between two marks."""
    chance = np.random.default_rng(seed)
    content = {}
    for part in ("train", "valid", "test"):
        entry: dict[str, Any] = {"tgt": [[2, *range(4, 4 + index), 3] for index in range(count)]}
        for name, width in (("src-visual", 35), ("src-audio", 74), ("src-text", 300)):
            values = []
            for index in range(count):
                frames = np.zeros((8, width), np.float32)
                frames[8 - index - 1 :] = chance.standard_normal((index + 1, width))
                values.append(frames)
            entry[name] = values
        entry["src-audio"][0][-1, 0] = -np.inf
        content[part] = entry
    return content


# Python 2


class Python2:
    """Writes what Python 2's cPickle wrote at protocol 2: byte strings for text, arrays with raw strings."""

    def __init__(self, core: str = "numpy.core") -> None:
        self.core = core

    def dumps(self, value: Any) -> bytes:
        """The pickle of plain containers, text, whole numbers and arrays."""
        return b"\x80\x02" + self._encode(value) + b"."

    def _encode(self, value: Any) -> bytes:
        if isinstance(value, str):
            data = value.encode("latin1")
            return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(self._encode, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self._encode, value)) + b"t"
        if isinstance(value, dict):
            pairs = b"".join(self._encode(key) + self._encode(entry) for key, entry in value.items())
            return b"}(" + pairs + b"u"
        if isinstance(value, set):
            return b"c__builtin__\nset\n" + b"(" + self._encode(list(value)) + b"tR"
        if isinstance(value, np.ndarray):
            return self._array(value)
        raise TypeError(type(value))

    def _array(self, value: np.ndarray) -> bytes:
        empty = f"c{self.core}.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR".encode("latin1")
        data = value.tobytes()
        kind = value.dtype.str[1:].encode()
        dtype = (
            b"cnumpy\ndtype\n(U"
            + bytes([len(kind)])
            + kind
            + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        state = b"(K\x01" + self._encode(tuple(value.shape)) + dtype + b"\x89T" + struct.pack("<i", len(data)) + data
        return empty + state + b"tb"
