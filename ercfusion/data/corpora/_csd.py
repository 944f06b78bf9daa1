"""Computational sequences: the ``.csd`` files of the CMU Multimodal SDK.

A ``.csd`` file is an HDF5 container with one root group, containing ``data/<key>/features`` (T, D) and
``data/<key>/intervals`` (T, 2) in seconds. A key is a video's id, or ``id[3]`` for parts of a video. Source:
``mmsdk/mmdatasdk/computational_sequence`` and ``dataset.py`` of CMU-MultiComp-Lab/CMU-MultimodalSDK.

Released files have up to 20 GB; only the requested video is read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import CorpusFormatError, require_extra
from ercfusion._core.schemas.reading import shown
from ercfusion.data.tabular import pick, read_json, read_text

EPSILON = 1e-5
"""Seconds; shorter overlaps and segments are ignored, as by the SDK's ``align``."""

FOLD_NAMES: Mapping[str, tuple[str, str]] = {
    "train": ("train", "standard_train_fold"),
    "dev": ("valid", "standard_valid_fold"),
    "test": ("test", "standard_test_fold"),
}
"""Split to its key in ``splits.json`` and its variable in ``cmu_*_std_folds.py``."""

_MOST = 1 << 30
"""Maximum bytes of one array, three times an hour of the widest released features."""

_AGAIN = "The file was cut off or is of another kind. Get it again."


class ComputationalSequence:
    """A ``.csd`` file, open for reading, for a ``with`` statement.

    Raises:
        MissingExtraError: h5py is not installed.
        CorpusFormatError: not a computational sequence.
    """

    def __init__(self, path: Path) -> None:
        require_extra("h5py", "sdk", "Reading .csd files")
        import h5py

        self.path = path
        with self._guarded("the file cannot be opened as HDF5"):
            self._file = h5py.File(path, "r")
        try:
            with self._guarded("the root group cannot be read"):
                roots = list(self._file)
                self.name = roots[0] if roots else ""
                root = self._file[self.name] if len(roots) == 1 else None
                data = root.get("data") if isinstance(root, h5py.Group) else None
                # Parts by video; they are sorted by time when read.
                self._parts: dict[str, list[str]] = {}
                for key in data if isinstance(data, h5py.Group) else ():
                    self._parts.setdefault(key.split("[")[0], []).append(key)
            if not self._parts:
                content = ", ".join(map(repr, roots)) or "nothing"
                raise CorpusFormatError(
                    f"{path}: found {content} at the top, but one group with a filled group 'data' is expected, as "
                    f"written by the CMU Multimodal SDK. {_AGAIN}"
                )
        except BaseException:
            self._file.close()
            raise
        self._data: Any = data

    def __enter__(self) -> ComputationalSequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, video: object) -> bool:
        return video in self._parts

    def videos(self) -> list[str]:
        """Ids of the videos in the sequence."""
        return list(self._parts)

    def intervals(self, video: str) -> NDArray[np.float64]:
        """Start and end of every step in seconds, shape (T, 2), sorted by start."""
        times = self._times(video)
        return times[_by_start(times)]

    def features(self, video: str) -> NDArray[Any]:
        """Values of the steps, shape (T, D), in the order of :meth:`intervals`.

        Raises:
            CorpusFormatError: not a matrix with one row per interval.
        """
        times = self._times(video)
        parts = [self._array(key, "features") for key in self._parts[video]]
        for key, part in zip(self._parts[video], parts, strict=True):
            if part.ndim != 2 or part.shape[1] != parts[0].shape[1]:
                self.fail(key, f"features of the shape {part.shape}, but a matrix with one row per step is expected")
        values = np.concatenate(parts)
        if len(values) != len(times):
            self.fail(video, f"{len(values)} rows of features, but {len(times)} intervals")
        return values[_by_start(times)]

    def numbers(self, video: str) -> NDArray[np.float64]:
        """:meth:`features` as numbers; text is an error."""
        values = self.features(video)
        if values.dtype.kind not in "fiu":
            self.fail(video, f"the features are of type {values.dtype}, but numbers are expected")
        with np.errstate(invalid="ignore"):  # a signalling NaN in a damaged file
            return values.astype(np.float64)

    def words(self, video: str) -> list[str]:
        """:meth:`features` as words; ``sp`` is a pause. Other values are an error."""
        values = self.features(video)
        if values.shape[1] != 1 or values.dtype.kind not in "SUO":
            self.fail(video, f"found {values.shape[1]} columns of type {values.dtype}, but one of words is expected")
        spoken = []
        for step, word in enumerate(values[:, 0]):
            try:
                spoken.append(word.decode() if isinstance(word, bytes) else str(word))
            except UnicodeDecodeError:
                self.fail(video, f"the word of step {step} (from 0), {bytes(word)!r}, is not UTF-8")
        return spoken

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise :class:`CorpusFormatError` for a key of this file."""
        raise CorpusFormatError(f"{self.path}, {self.name}/data/{key}: {problem}. {_AGAIN}")

    def _times(self, video: str) -> NDArray[np.float64]:
        parts = [self._array(key, "intervals") for key in self._parts[video]]
        for key, part in zip(self._parts[video], parts, strict=True):
            if part.ndim != 2 or part.shape[1] != 2 or part.dtype.kind not in "fiu":
                self.fail(
                    key,
                    f"the intervals have the shape {part.shape} and the type {part.dtype}, but (steps, 2) numbers, "
                    f"start and end in seconds, are expected",
                )
        return np.concatenate(parts).astype(np.float64)

    def _array(self, key: str, name: str) -> NDArray[Any]:
        import h5py

        with self._guarded(f"{self.name}/data/{key}/{name} cannot be read"):
            group = self._data[key]
            dataset = group.get(name) if isinstance(group, h5py.Group) else None
            if isinstance(dataset, h5py.Dataset) and dataset.shape:
                # The declared shape may be false: h5py would fill missing values with zeros.
                if dataset.nbytes > _MOST:
                    self.fail(key, f"{name} of the shape {shown(dataset.shape)}: at most {_MOST >> 20} MiB are read")
                if dataset.size and not dataset.id.get_storage_size():
                    self.fail(key, f"{name} of the shape {shown(dataset.shape)}, but no values are stored")
                return np.asarray(dataset[()])
        self.fail(key, f"there is no array {name!r}")

    @contextmanager
    def _guarded(self, problem: str) -> Iterator[None]:
        # h5py raises any of these for missing or wrong bytes.
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CorpusFormatError(f"{self.path}: {problem} ({error}). {_AGAIN}") from error


def _by_start(times: NDArray[np.float64]) -> NDArray[np.int64]:
    # Stable: steps with equal starts keep the file's order.
    return np.argsort(times[:, 0], kind="stable")


def overlapping(times: NDArray[np.float64], start: float, end: float) -> NDArray[np.int64]:
    """Rows of ``times`` (T, 2) sharing more than :data:`EPSILON` seconds with the segment from ``start`` to ``end``.

    The SDK's rule (``align`` in ``mmsdk/mmdatasdk/dataset/dataset.py``): a step may belong to two segments.
    """
    if end - start <= EPSILON:
        return np.zeros(0, dtype=np.int64)
    shared = np.minimum(times[:, 1], end) - np.maximum(times[:, 0], start)
    return np.flatnonzero(shared > EPSILON)


def read_folds(path: Path) -> dict[str, frozenset[str]]:
    """Video ids of train, dev and test, from a ``splits.json`` or the SDK's ``cmu_*_std_folds.py`` (parsed, not run).

    Raises:
        CorpusFormatError: a list is missing, empty, or not of strings, or an id is in two lists.
    """
    content: Any = _assignments(path) if path.suffix == ".py" else read_json(path)
    folds: dict[str, frozenset[str]] = {}
    for split, names in FOLD_NAMES.items():
        name = names[path.suffix == ".py"]
        listed: list[Any] = pick(content, name, list, path, "top level")
        wrong = next((item for item in listed if not isinstance(item, str) or not item.strip()), None)
        if wrong is not None or not listed:
            described = "an empty list" if wrong is None else repr(wrong)
            raise CorpusFormatError(
                f"{path}, {name!r}: found {described}, but ids of videos are expected. Get it again."
            )
        folds[split] = frozenset(listed)
        for other in list(folds)[:-1]:
            if both := sorted(folds[split] & folds[other]):
                raise CorpusFormatError(
                    f"{path}, {name!r}: {both[0]!r} is also in {FOLD_NAMES[other][path.suffix == '.py']!r} "
                    f"({len(both)} such ids). A video belongs to one split: remove it from the other."
                )
    return folds


def _assignments(path: Path) -> dict[str, Any]:
    wanted = {names[1] for names in FOLD_NAMES.values()}
    try:
        module = ast.parse(read_text(path), filename=path.name)
    except SyntaxError as error:
        raise CorpusFormatError(f"{path}, line {error.lineno}: no valid Python ({error.msg[:80]}). {_AGAIN}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # of a parser that is given too many levels
        raise CorpusFormatError(f"{path}: no valid Python (too many levels). {_AGAIN}") from error
    values: dict[str, Any] = {}
    for statement in module.body:
        if not isinstance(statement, ast.Assign):
            continue
        for name in (target.id for target in statement.targets if isinstance(target, ast.Name)):
            if name not in wanted:
                continue
            try:
                values[name] = ast.literal_eval(statement.value)
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise CorpusFormatError(
                    f"{path}, line {statement.lineno}: {name} is not a literal list of strings. Get the file from "
                    f"the SDK, or write the ids into a splits.json."
                ) from error
    return values


def spoken_text(words: Sequence[str]) -> str | None:
    """The words as one text, without pauses; None without words."""
    return " ".join(word.strip() for word in words if word.strip() not in ("", "sp")) or None
