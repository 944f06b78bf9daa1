"""Scores of a run on test with missing modalities, under several laws: the part ``robustness`` of a record.

Per law it has the headline scores and, for tests of differences, the sums of every test conversation
(:mod:`ercfusion.metrics.sums`) as one text, in the order of the sums of the test split:

* counts: ``"a3bd12|..."``, one part per conversation. Every count other than 0 has its place in the array in letters
  (``a`` to ``z``, ``A`` to ``Z``; as many letters as the last place needs), then the count unless it is 1.
* other numbers: a text per column (``"0.3"``: dimension 0, sum 3), with nine significant digits.

What equals the test split's own sums is omitted: a text is empty, a column is missing.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import RunError
from ercfusion._core.progress import track
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing_laws import Law
from ercfusion.data.store import ConversationStore
from ercfusion.metrics.inputs import Inputs
from ercfusion.metrics.registry import get_metric, metric_names, score_source
from ercfusion.metrics.sums import SUMS
from ercfusion.records.missing import unseen_utterances
from ercfusion.records.record import DAMAGED, record_sums
from ercfusion.records.words import named_run
from ercfusion.tasks.recognizer import Recognizer

_LETTERS = string.ascii_letters
Reachable = Callable[[Mapping[str, NDArray[np.bool_]]], Mapping[str, float]]
"""Scores of the exact posterior for the modalities present at every utterance."""


# Scoring


def score_laws(
    recognizer: Recognizer,
    store: ConversationStore,
    laws: Iterable[Law],
    *,
    seed: int,
    metrics: Mapping[str, str],
    complete: Mapping[str, Mapping[str, NDArray[Any]]],
    reachable: Reachable | None = None,
    split: str = "test",
    on_law: Callable[[Mapping[str, dict[str, Any]]], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a recognizer under every law, on one store whose features are shared.

    Args:
        recognizer: With decision thresholds.
        store: A labelled split; holes that it has are replaced.
        laws: For the modalities of the store.
        seed: ``missing.seed``; with the split and the law it determines the holes.
        metrics: Of every task to score: its headline, scored next to those of its kind.
        complete: Of these tasks: the sums of the split in the record, by key.
        reachable: Scores of the exact posterior for the first task; empty if unknown.
        split: Name of the split.
        on_law: Called after each law with the results so far.

    Returns:
        By task, the record's part ``robustness``: ``seed``, and by law ``metrics``, ``sums``, ``reachable`` (if known),
        and ``unseen`` (:func:`ercfusion.records.missing.unseen_utterances`).

    Raises:
        ConfigError: a law does not fit the modalities.
        ValueError: an output is not finite.
    """
    results: dict[str, dict[str, Any]] = {task: {"seed": seed, "laws": {}} for task in metrics}
    for law in track(list(laws), "scoring with missing modalities"):
        hidden = store.hidden(law, seed, split)
        unseen = {} if law.keeps_one else unseen_utterances(hidden)
        outputs = recognizer.predict_all(hidden)
        for task, metric in metrics.items():
            result = law_result(outputs[task], metric, complete[task])
            if unseen:
                result["unseen"] = unseen
            if task == recognizer.task.name and reachable is not None and (best := reachable(hidden.seen)):
                result["reachable"] = {name: round(float(value), 6) for name, value in best.items()}
            results[task]["laws"][str(law)] = result
        if on_law is not None:
            on_law(results)
    return results


def law_result(predictions: Predictions, metric: str, complete: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Scores and sums of one task under one law.

    Args:
        predictions: Of the labelled split.
        metric: Headline of the run.
        complete: Sums of the test split in the record, by key.
    """
    task, inputs = predictions.task, Inputs(predictions)
    names, values = headline_scores(task, metric), dict[str, float]()
    for base in dict.fromkeys(map(get_metric, names)):
        values.update(base.values(inputs))
    return {
        "metrics": {name: round(values[name], 6) for name in names if name in values},
        "sums": {key: write_sums(SUMS[key].of(predictions), complete[key]) for key in robust_keys(task, metric)},
    }


def headline_scores(task: TaskSpec, metric: str) -> tuple[str, ...]:
    """Scores recorded under every law: ``metric``, then those of the task's kind."""
    known = metric_names(task)  # a score of the kind may need a certain range of numbers
    return tuple(name for name in dict.fromkeys([metric, task.metric, *task.rules.headline]) if name in known)


def robust_keys(task: TaskSpec, metric: str) -> tuple[str, ...]:
    """Keys of the sums behind the scores of tables."""
    known = metric_names(task)
    sources = [score_source(task, name) for name in (metric, task.metric, *task.rules.table_scores) if name in known]
    return tuple(dict.fromkeys(source[0] for source in sources if source is not None))


# Sums as text


def write_sums(sums: NDArray[Any], complete: NDArray[Any]) -> str | dict[str, str]:
    """The (B, ...) sums as text; the module has the format. ``complete`` are the test split's."""
    if np.issubdtype(sums.dtype, np.integer):
        if np.array_equal(sums, complete):
            return ""
        return "|".join(_write_counts(row) for row in sums.reshape(len(sums), -1).tolist())
    columns, own = _columns(sums), _columns(complete)
    return {name: text for name, text in columns.items() if text != own[name]}


def read_sums(text: str | Mapping[str, str], complete: NDArray[Any]) -> NDArray[Any]:
    """The (B, ...) sums; inverse of :func:`write_sums`.

    Raises:
        ValueError: the text does not fit the test split's sums.
    """
    if isinstance(text, str):
        if not text:
            return complete
        rows = [_read_counts(part, complete[0].size) for part in text.split("|")]
        if len(rows) != len(complete):
            raise ValueError(f"{len(rows)} conversations instead of {len(complete)}")
        return np.array(rows, dtype=np.int64).reshape(complete.shape)
    flat = complete.reshape(len(complete), -1).astype(np.float64)
    names = list(_names(complete.shape[1:]))
    for name, column in text.items():
        flat[:, names.index(name)] = [float(value) for value in column.split()]
    return flat.reshape(complete.shape)


def _width(size: int) -> int:
    """Letters per place."""
    return next(width for width in itertools.count(1) if len(_LETTERS) ** width >= size)


def _letters(place: int, width: int) -> str:
    text = ""
    for _ in range(width):
        place, digit = divmod(place, len(_LETTERS))
        text = _LETTERS[digit] + text
    return text


def _write_counts(row: Sequence[int]) -> str:
    width = _width(len(row))
    return "".join(
        _letters(place, width) + (str(count) if count > 1 else "") for place, count in enumerate(row) if count
    )


def _read_counts(text: str, size: int) -> list[int]:
    width = _width(size)
    row, cell = [0] * size, f"([a-zA-Z]{{{width}}})([0-9]*)"
    if not re.fullmatch(f"(?:{cell})*", text):
        raise ValueError(f"{text[:20]!r} has no places of {width} letters with counts")
    for letters, count in re.findall(cell, text):
        place = 0
        for letter in letters:
            place = place * len(_LETTERS) + _LETTERS.index(letter)
        row[place] = int(count or 1)
    return row


def _names(shape: Sequence[int]) -> Iterable[str]:
    return (".".join(map(str, index)) for index in np.ndindex(*shape))


def _columns(sums: NDArray[Any]) -> dict[str, str]:
    flat = sums.reshape(len(sums), -1)
    texts = (" ".join(f"{value:.9g}" for value in column) for column in flat.T)
    return dict(zip(_names(sums.shape[1:]), texts, strict=True))


# Reading


def robust_sums(record: Mapping[str, Any], law: str, key: str) -> NDArray[Any]:
    """(B, ...) sums of the test conversations under a law, in the order of :func:`record_sums`.

    Raises:
        RunError: the record has no such law or sums, or they are damaged.
    """
    laws = record.get("robustness", {}).get("laws", {})
    if law not in laws:
        raise RunError(f"{named_run(record)} has no scores under the law {law}. Choose from: {', '.join(laws)}.")
    texts = laws[law]["sums"]
    complete = record_sums(record, "test")[1].get(key)
    if key not in texts or complete is None:
        raise RunError(f"{named_run(record)} has no sums {key!r} under the law {law}. Choose another score.")
    try:
        return read_sums(texts[key], complete)
    except (ValueError, IndexError) as error:
        raise RunError(
            f"{named_run(record)} cannot be compared: robustness.laws.{law}.sums.{key} is damaged: {error}. {DAMAGED}"
        ) from error
