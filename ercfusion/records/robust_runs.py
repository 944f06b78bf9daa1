"""Scores of finished runs with missing modalities: those of their records, and new ones next to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import sha256_of, write_json
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.missing import STANDARD, grid_laws
from ercfusion.config.missing_laws import Law
from ercfusion.data.corpus import Corpus
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData
from ercfusion.records.feature_tables import differ_by_machine, features_digest, is_same_table, table_in_words
from ercfusion.records.missing import modalities_of, recorded_missing
from ercfusion.records.record import record_sums, task_record
from ercfusion.records.robustness import Reachable, score_laws
from ercfusion.records.run_schema import RobustnessFile
from ercfusion.tasks.recognizer import Recognizer

logger = logging.getLogger("ercfusion")

FILE = "evaluation/robustness.json"
"""Scores of a run folder under laws that its record does not have."""
MODEL = "model"
"""Folder of the chosen model in a run folder."""
_ADVICE = "Delete the file: its scores are computed again."


def stored(folder: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The record with the scores in :data:`FILE` added, and all laws under which the run was or was to be scored.

    The file counts if it is of the same model, features and masks. After an interruption it has fewer scores than laws.

    Raises:
        RunError: the file is damaged.
    """
    laws = recorded_laws(record)
    weights = folder / MODEL / "model.safetensors"
    if not weights.is_file():
        return dict(record), laws
    content = _content(folder, {"model": sha256_of(weights), "features": features_digest(record)})
    return _with(record, content["tasks"]), list(dict.fromkeys([*laws, *content["asked"]]))


def _content(folder: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    """The content of :data:`FILE`; without laws if there is none with this identity."""
    path = folder / FILE
    if path.is_file():
        content: dict[str, Any] = read_json(path, RobustnessFile, advice=_ADVICE)
        if all(content[key] == value for key, value in identity.items()):
            return content
    return {**identity, "asked": [], "tasks": {}}


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


def recorded_laws(record: Mapping[str, Any]) -> list[str]:
    """Laws under which all tasks of a run were scored."""
    parts = [own.get("robustness", {}).get("laws", {}) for own in scored_tasks(record).values()]
    return [law for law in parts[0] if all(law in laws for laws in parts)]


def scored_tasks(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The learned tasks with test scores, each with its part of the record."""
    parts = {record["task"]["name"]: record, **record.get("others", {})}
    return {name: part for name, part in parts.items() if part["metrics"].get("test")}


def asked_laws(
    asked: str | Sequence[str] | None, records: Sequence[Mapping[str, Any]], earlier: Sequence[Sequence[str]]
) -> list[str]:
    """Canonical texts of the laws for some runs.

    Args:
        asked: ``standard``, or texts. None: the earlier laws of all runs that have some, and ``standard`` without any.
        records: Of the runs.
        earlier: Laws of every run, from :func:`stored` or :func:`recorded_laws`.

    Raises:
        ConfigError: a law does not exist or does not fit the modalities of a run.
        RunError: the runs have different earlier laws.
    """
    known = [own for own in earlier if own]
    if asked is None and known:
        asked = [law for law in known[0] if all(law in laws for laws in known)]
        if not asked:
            raise RunError(f"the runs were scored under different laws. Choose laws with laws={STANDARD}, for example.")
    grids = [grid_laws(STANDARD if asked is None else asked, modalities_of(record), "laws") for record in records]
    return [str(law) for law in grids[0]]


def has_laws(record: Mapping[str, Any], laws: Sequence[str]) -> bool:
    """Whether the run was scored under all these laws."""
    return set(laws) <= set(recorded_laws(record))


def with_results(record: Mapping[str, Any], laws: Sequence[str]) -> dict[str, Any]:
    """The record with the scores under these laws only, in this order."""

    def chosen(part: Mapping[str, Any]) -> dict[str, Any]:
        own = part["robustness"]
        return {**part, "robustness": {**own, "laws": {law: own["laws"][law] for law in laws}}}

    result = chosen(record)
    if others := record.get("others"):
        scored = scored_tasks(record)
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


def check_own_features(record: Mapping[str, Any], tables: Sequence[FeatureTable]) -> None:
    """Compare features of the run's own corpus with those of training.

    The same extraction on another machine is a warning.

    Raises:
        RunError: other features.
    """
    recorded = {one["modality"]: one for one in record["features"]}
    for table in tables:
        own = recorded[table.modality]
        new = {"width": table.width, "level": table.level, "source": table.source}
        if is_same_table(own, new):
            continue
        if differ_by_machine(own, new):
            logger.warning(
                "%s features: made on another machine than those of the run; scores may differ in the last digits",
                table.modality,
            )
            continue
        raise RunError(
            f"{table.modality} features: {table_in_words(new)}; the run was trained with {table_in_words(own)}. Give "
            f"its own pack: data.packs.{table.modality}=FOLDER"
        )


def exact_scores(data: LoadedData, split: str) -> Reachable | None:
    """Scores of the exact posterior by mask; None for recorded corpora."""
    if not data.corpus.card.synthetic:
        return None
    known = data.protocol.modalities  # a pack may add a modality that the generator does not have
    return lambda present: data.corpus.reachable(
        data.protocol, split, {name: column for name, column in present.items() if name in known}
    )


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
    tasks = scored_tasks(record)
    identity = {"model": sha256_of(folder / MODEL / "model.safetensors"), "features": features_digest(record)}
    views = {name: task_record(record, name) for name in tasks}
    lacking = [law for law in laws if not has_laws(record, [str(law)])]

    def keep(results: Mapping[str, Mapping[str, Any]]) -> None:
        content = _content(folder, identity)
        asked = list(dict.fromkeys([*content["asked"], *map(str, laws)]))
        merged = dict(content["tasks"])
        for name, part in results.items():
            own = merged.get(name, {})
            before = own.get("laws", {}) if own.get("seed") == part["seed"] else {}
            merged[name] = {**part, "laws": {**before, **part["laws"]}}
        write_json(folder / FILE, {**identity, "asked": asked, "tasks": merged}, indent=1)

    keep({})  # the next command knows the laws, even if none is finished
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
