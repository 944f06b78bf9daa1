"""Twins of CMU-MOSEI and CMU-MOSI as computational sequences (``.csd``), with the SDK's file of folds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import require_extra
from ercfusion.data.corpora._csd import FOLD_NAMES
from ercfusion.data.corpora.sdk import EMOTIONS, MoseiCorpus, MosiSdkCorpus
from ercfusion.testing.twins.text import SIZES

WIDTHS: Mapping[str, int] = {"text": 300, "audio": 74, "visual": 35}
"""Default feature columns by modality."""

_ROOTS = {"text": "glove_vectors", "audio": "COVAREP", "visual": "FACET 4.2"}
_RATES = {"audio": 20.0, "visual": 5.0}  # frames per second, far fewer than in the release
_WORDS = {
    "happy": ("lovely", "cheerful", "delightful"),
    "sad": ("gloomy", "lonely", "mournful"),
    "anger": ("outrageous", "infuriating", "shameful"),
    "surprise": ("unexpected", "astonishing", "sudden"),
    "disgust": ("revolting", "sticky", "mouldy"),
    "fear": ("frightening", "dark", "eerie"),
    "none": ("plain", "square", "ordinary"),
    "good": ("splendid", "superb"),
    "bad": ("dreadful", "poor"),
}
_FILLERS = ("the", "kettle", "was", "really", "and", "then", "it", "seemed", "about", "noon")

_Entries = dict[str, tuple[NDArray[Any], NDArray[Any]]]  # key -> intervals (T, 2), features (T, D)


def write_mosei(
    folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES, widths: Mapping[str, int] = WIDTHS
) -> Path:
    """A twin of CMU-MOSEI's labels, words, default features and folds.

    The first video of train has a segment without visual frames, the second has no visual features. One labelled video
    is in no fold, and some audio frames have values that are not finite.

    Args:
        folder, seed, sizes: As for :func:`ercfusion.testing.twins.text.write_meld`, for videos.
        widths: Feature columns by modality.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    return _write(Path(folder), random.Random(f"mosei {seed}"), MoseiCorpus, "All Labels", sizes, widths)


def write_mosi_sdk(
    folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES, widths: Mapping[str, int] = WIDTHS
) -> Path:
    """A twin of CMU-MOSI's labels, words, default features and folds; see :func:`write_mosei`."""
    chance = random.Random(f"mosi_sdk {seed}")
    return _write(Path(folder), chance, MosiSdkCorpus, "Opinion Segment Labels", sizes, widths)


def write_csd(path: Path, root: str, entries: _Entries) -> None:
    """Write a computational sequence in the SDK's format.

    Args:
        path: The file; an existing one is replaced.
        root: Name of the sequence.
        entries: Key to its intervals (T, 2) in seconds and its features (T, D).

    Raises:
        MissingExtraError: h5py is not installed.
    """
    require_extra("h5py", "sdk", "Writing .csd files")
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    # Without creation times the same seed gives the same bytes.
    with h5py.File(path, "w", track_order=False) as file:
        for key, (intervals, features) in entries.items():
            group = file.create_group(f"{root}/data/{key}")
            group.create_dataset("features", data=features, track_times=False)
            group.create_dataset("intervals", data=intervals, track_times=False)
        for name, value in {"root name": root, "computational sequence version": "1.0"}.items():
            file.create_dataset(f"{root}/metadata/{name}", data=[f'"{value}"'.encode()], track_times=False)


def _write(
    folder: Path,
    chance: random.Random,
    corpus: type[MoseiCorpus] | type[MosiSdkCorpus],
    labels_root: str,
    sizes: Mapping[str, int],
    widths: Mapping[str, int],
) -> Path:
    emotions = EMOTIONS.labels if len(corpus.columns) > 1 else ()
    meaning = {
        modality: {word: _vector(chance, width) for word in (*_WORDS, *_FILLERS)} for modality, width in widths.items()
    }
    folds = {split: [f"twin{split}{number:03d}" for number in range(size)] for split, size in sizes.items()}
    labels: _Entries = {}
    words: _Entries = {}
    features: dict[str, _Entries] = {modality: {} for modality in widths}
    for position, video in enumerate([*(video for part in folds.values() for video in part), "twinnofold"]):
        segments = _segments(chance, emotions)
        bounds = np.array([bound for bound, _, _ in segments])
        rows = np.array([[score, *(marks.get(name, 0.0) for name in emotions)] for _, score, marks in segments])
        order = list(range(len(segments)))
        chance.shuffle(order)  # readers must not rely on the order of rows
        labels[video] = (bounds[order].astype(np.float64), rows[order].astype(np.float32))
        spoken = [word for bound, score, marks in segments for word in _speak(chance, bound, score, marks)]
        times = np.array([time for time, _, _ in spoken])
        words[video] = (times, np.array([[word.encode()] for _, word, _ in spoken], dtype="S32"))
        voiced = [word for word in spoken if word[1] != "sp"]
        features["text"][video] = (
            np.array([time for time, _, _ in voiced]),
            np.array([meaning["text"][cue] for _, _, cue in voiced], dtype=np.float32),
        )
        for modality, rate in _RATES.items():
            features[modality][video] = _frames(chance, rate, segments, meaning[modality])
        audio = features["audio"][video][1]
        audio[:: 1 + len(audio) // 3, 0] = -np.inf
        audio[1, -1] = np.nan
        if position == 0:
            times, values = features["visual"][video]
            kept = ~((times[:, 1] > segments[0][0][0]) & (times[:, 0] < segments[0][0][1]))
            features["visual"][video] = (times[kept], values[kept])
        if position == 1:
            del features["visual"][video]
    write_csd(folder / corpus.labels_file, labels_root, labels)
    write_csd(folder / corpus.words_file, "words", words)
    for modality, entries in features.items():
        write_csd(folder / next(iter(corpus.kinds[modality].values())), _ROOTS[modality], entries)
    lines = [f"{FOLD_NAMES[split][1]}={videos!r}\n" for split, videos in folds.items()]
    (folder / corpus.folds_file).write_text("".join(lines), encoding="utf-8")
    return folder


_Segment = tuple[tuple[float, float], float, dict[str, float]]  # bounds in seconds, sentiment, emotions above 0


def _segments(chance: random.Random, emotions: Sequence[str]) -> list[_Segment]:
    clock = chance.uniform(0.0, 2.0)
    made = []
    for _ in range(chance.randrange(3, 8)):
        end = clock + chance.uniform(1.5, 4.0)
        score = 0.0 if chance.random() < 0.1 else round(chance.uniform(-3, 3), 3)
        count = chance.choice((0, 1, 1, 2))
        marks = {name: round(chance.uniform(0.3, 3), 3) for name in chance.sample(emotions, count)} if emotions else {}
        made.append(((clock, end), score, marks))
        clock = end + chance.uniform(0.1, 1.0)
    return made


def _cues(score: float, marks: Iterable[str]) -> list[str]:
    return [*(marks or ["none"]), "bad" if score < 0 else "good"]


def _speak(
    chance: random.Random, bound: tuple[float, float], score: float, marks: Mapping[str, float]
) -> list[tuple[tuple[float, float], str, str]]:
    # Times, word and cue of its vector, with a pause in front.
    cues = [*_cues(score, marks), *chance.sample(_FILLERS, 3)]
    chance.shuffle(cues)
    edges = np.linspace(*bound, len(cues) + 2)
    spoken = [((float(edges[0]), float(edges[1])), "sp", "")]
    for place, cue in enumerate(cues, start=1):
        word = chance.choice(_WORDS.get(cue, (cue,)))
        spoken.append(((float(edges[place]), float(edges[place + 1])), word, cue))
    return spoken


def _frames(
    chance: random.Random, rate: float, segments: Sequence[_Segment], meaning: Mapping[str, Sequence[float]]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    starts = np.arange(int(segments[-1][0][1] * rate) + 1) / rate
    noise = np.random.default_rng(chance.getrandbits(32))
    values = noise.normal(size=(len(starts), len(meaning["none"])))
    for (start, end), score, marks in segments:
        inside = (starts < end) & (starts + 1 / rate > start)
        values[inside] += np.sum([meaning[cue] for cue in _cues(score, marks)], axis=0)
    return np.stack([starts, starts + 1 / rate], axis=1), values.astype(np.float32)


def _vector(chance: random.Random, width: int) -> list[float]:
    return [chance.gauss(0, 1) for _ in range(width)]
