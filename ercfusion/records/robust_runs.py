"""Scores of finished runs with missing modalities: those of their records, and new ones next to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import atomic_write, sha256_of
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.missing import STANDARD, grid_laws
from ercfusion.config.missing_laws import Law
from ercfusion.data.corpus import Corpus
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData
from ercfusion.records.missing import recorded_missing
from ercfusion.records.record import record_sums, task_record
from ercfusion.records.robustness import Reachable, score_laws
from ercfusion.records.run_schema import RobustnessFile
from ercfusion.tasks.recognizer import Recognizer

FILE = "evaluation/robustness.json"
"""Scores of a run folder under laws that its record does not have."""
MODEL = "model"
"""Folder of the chosen model in a run folder."""
_ADVICE = "Delete the file: its scores are computed again."


def stored(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the scores in :data:`FILE` added, if they are of the same model and masks.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return dict(record)
    content = read_json(path, RobustnessFile, advice=_ADVICE)
    weights = folder / MODEL / "model.safetensors"
    same = weights.is_file() and content["model"] == sha256_of(weights)
    return _with(record, content["tasks"]) if same else dict(record)


def _with(record: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the parts ``robustness`` of some tasks, next to the recorded laws."""
    result = {**record, "others": {name: dict(own) for name, own in record.get("others", {}).items()}}
    if not result["others"]:
        del result["others"]
    seed = recorded_missing(record).seed
    for name, part in tasks.items():
        own = result if name == record["task"]["name"] else result.get("others", {}).get(name)
        if own is not None and part["seed"] == seed:
            laws = {**part["laws"], **own.get("robustness", {}).get("laws", {})}
            own["robustness"] = {"seed": seed, "laws": laws}
    return result


def _laws_of(record: Mapping[str, Any]) -> list[str]:
    """Laws under which all tasks of a run were scored."""
    parts = [own.get("robustness", {}).get("laws", {}) for own in _scored_tasks(record).values()]
    return [law for law in parts[0] if all(law in laws for laws in parts)]


def _scored_tasks(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The learned tasks with test scores, each with its part of the record."""
    parts = {record["task"]["name"]: record, **record.get("others", {})}
    return {name: part for name, part in parts.items() if part["metrics"].get("test")}


def asked_laws(asked: str | Sequence[str] | None, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Canonical texts of the laws for some runs.

    Args:
        asked: ``standard``, or texts. None: the laws of all runs that were scored, and ``standard`` without any.
        records: From :func:`stored`.

    Raises:
        ConfigError: a law does not exist or does not fit the modalities of a run.
        RunError: the runs were scored under different laws.
    """
    known = [own for own in map(_laws_of, records) if own]
    if asked is None and known:
        common = [law for law in known[0] if all(law in laws for laws in known)]
        if not common:
            raise RunError(f"the runs were scored under different laws. Choose laws with laws={STANDARD}, for example.")
        return common
    laws: list[str] = []
    for record in records:
        modalities = [table["modality"] for table in record["features"]]
        laws = [str(law) for law in grid_laws(STANDARD if asked is None else asked, modalities, "laws")]
    return laws


def has_laws(record: Mapping[str, Any], laws: Sequence[str]) -> bool:
    """Whether the run was scored under all these laws."""
    return set(laws) <= set(_laws_of(record))


def with_results(record: Mapping[str, Any], laws: Sequence[str]) -> dict[str, Any]:
    """The record with the scores under these laws only, in this order."""

    def chosen(part: Mapping[str, Any]) -> dict[str, Any]:
        own = part["robustness"]
        return {**part, "robustness": {**own, "laws": {law: own["laws"][law] for law in laws}}}

    result = chosen(record)
    if others := record.get("others"):
        scored = _scored_tasks(record)
        result["others"] = {name: chosen(part) if name in scored else part for name, part in others.items()}
    return result


def check_same_files(record: Mapping[str, Any], corpus: Corpus) -> None:
    """Raise :class:`RunError` if the corpus has other files than in training."""
    current, recorded = corpus.fingerprint(), record["corpus"]["fingerprint"]
    if current != recorded:
        raise RunError(
            f"the run was trained on another version of {record['corpus']['name']} (fingerprint {recorded[:12]}, the "
            f"files now have {current[:12]}). Use the files of that version: data.raw=DIR"
        )


def exact_scores(data: LoadedData, split: str) -> Reachable | None:
    """Scores of the exact posterior by mask; None for recorded corpora."""
    if not data.corpus.card.synthetic:
        return None
    return lambda present: data.corpus.reachable(data.protocol, split, present)


def score_run(
    folder: Path,
    record: Mapping[str, Any],
    recognizer: Recognizer,
    data: LoadedData,
    store: ConversationStore,
    laws: Sequence[Law],
) -> dict[str, Any]:
    """Score a finished run on test under the laws that it lacks; :data:`FILE` is written after every law.

    Args:
        folder: Of the run.
        record: From :func:`stored`.
        recognizer: Its model.
        data: Its data.
        store: The test split.
        laws: For its modalities.

    Returns:
        The record with all scores.
    """
    model, tasks = sha256_of(folder / MODEL / "model.safetensors"), _scored_tasks(record)
    views = {name: task_record(record, name) for name in tasks}
    lacking = [law for law in laws if not has_laws(record, [str(law)])]

    def keep(results: Mapping[str, Mapping[str, Any]]) -> None:
        known = read_json(folder / FILE, RobustnessFile, advice=_ADVICE) if (folder / FILE).is_file() else {}
        earlier = known["tasks"] if known.get("model") == model else {}
        merged = {}
        for name, part in results.items():
            own = earlier.get(name, {})
            before = own.get("laws", {}) if own.get("seed") == part["seed"] else {}
            merged[name] = {**part, "laws": {**before, **part["laws"]}}
        with atomic_write(folder / FILE) as stream:
            stream.write(json.dumps({"model": model, "tasks": merged}, indent=1, allow_nan=False) + "\n")

    results = score_laws(
        recognizer,
        store,
        lacking,
        seed=recorded_missing(record).seed,
        metrics={name: str(view["selection"]["metric"]) for name, view in views.items()},
        complete={name: record_sums(view, "test")[1] for name, view in views.items()},
        reachable=exact_scores(data, "test"),
        on_law=keep,
    )
    return _with(record, results)
