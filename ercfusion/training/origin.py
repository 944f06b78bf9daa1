"""The origin of a checkpoint, stored in it and compared on resume.

A resumed run reads configuration, corpus and packs again; if they changed, its record would be wrong about the first
epochs. A checkpoint therefore holds under :data:`KEY`:

- the identity of the run, as in ``overrides.json``;
- the resolved configuration; settings without influence (:func:`ercfusion.config.settings.decides`) may differ;
- checksums of the data (:func:`ercfusion.data.identity.data_identity`);
- a checksum of the checkpoint.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError, ResumeError
from ercfusion._core.schemas.reading import MAX_CHARACTERS, check, failure, shown
from ercfusion.config.hints import command
from ercfusion.config.schema import run_config
from ercfusion.data.identity import FEATURES
from ercfusion.features.loading import LoadedData
from ercfusion.records.groups import changed_settings
from ercfusion.records.record import environment
from ercfusion.training.checkpoint_schema import ADVICE, content_checksum
from ercfusion.training.folder import OVERRIDES, read_environment, read_overrides, run_identity

KEY = "ercfusion"
RESTORE = "Restore that, or begin a new run."
# Parts that the trainer would silently initialise if missing.
_PARTS = {"callbacks": "Selection", "loops": "fit_loop"}


def make_origin(config: Mapping[str, Any], folder: Path, data: LoadedData) -> dict[str, Any]:
    """The description of a run (resolved ``config``) for its checkpoints."""
    return {
        "format": 1,
        "run": run_identity(folder),
        "config": json.loads(json.dumps(config)),
        "data": dict(data.identity),
        "packs": {table.modality: str(table.source["pack"]) for table in data.tables if "pack" in table.source},
    }


def seal(checkpoint: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with its origin and a checksum."""
    checksum = content_checksum([dict(checkpoint), dict(origin)])
    return {**checkpoint, KEY: {**origin, "sha256": checksum}}


def check_origin(checkpoint: Mapping[str, Any], origin: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`ResumeError` unless a checkpoint is complete and of the same run, settings and data."""
    made: Mapping[str, Any] | None = checkpoint.get(KEY)
    if made is None:
        problem = ": it does not name its settings and data"
        raise _refusal(path, problem, [])
    _check_parts(checkpoint, path)
    rest = {name: value for name, value in checkpoint.items() if name != KEY}
    was = {name: value for name, value in made.items() if name != "sha256"}
    try:
        checksum = content_checksum([rest, was], most=path.stat().st_size)
    except ValueError as error:
        raise failure(ResumeError, path, f": {error}", ADVICE) from error
    if checksum != made["sha256"]:
        raise failure(ResumeError, path, ": its content was changed (the checksum differs)", ADVICE)
    changes = _changes(made, origin, path)
    if made["run"] != origin["run"]:
        raise _refusal(path, ": it is of another run", changes)
    if changes:
        raise _refusal(path, ": changed since it was made", changes)


def _check_parts(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`ResumeError` if a part of :data:`_PARTS` is missing."""
    missing = [f"{part}.{name}" for part, name in _PARTS.items() if not checkpoint[part].get(name)]
    missing += [] if checkpoint["optimizer_states"] else ["optimizer_states"]
    if missing:
        raise failure(ResumeError, path, f": the part '{missing[0]}' is missing or empty", ADVICE)


def _changes(made: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> list[str]:
    """Texts of the differences."""
    changes = []
    if made["config"] != now["config"]:
        check(made["config"], run_config(), path, error=ResumeError, advice=ADVICE, prefix=f"{KEY}.config.")
        pairs = changed_settings(made["config"], now["config"]).items()
        changes += [f"{key}: {shown(old)} -> {shown(new)}" for key, (old, new) in pairs]
    return changes + data_changes(made["data"], now["data"], now["packs"])


def data_changes(was: Mapping[str, str], now: Mapping[str, str], packs: Mapping[str, str]) -> list[str]:
    """Differences between two results of :func:`ercfusion.data.identity.data_identity` as texts.

    Args:
        packs: Present pack folders by modality.
    """
    changes = []
    for key in dict.fromkeys([*was, *now]):
        if was.get(key) == now.get(key):
            continue
        pack = Path(packs.get(key.removeprefix(FEATURES), "")).name if key.startswith(FEATURES) else ""
        name = f"{key} (pack {shown(pack)})" if pack else shown(key)[1:-1]
        old, new = ("missing" if one is None else shown(one[:12])[1:-1] for one in (was.get(key), now.get(key)))
        changes.append(f"{name}: {old} -> {new}")
    return changes


def other_versions(folder: Path) -> list[str]:
    """Versions changed since the start of the run in ``folder``, as texts."""
    sides = []
    for current in (read_environment(folder), environment()):
        commit = (current.get("revision") or {}).get("commit", "")
        sides.append({"ercfusion": current["ercfusion"], "commit": commit[:12], "python": current["python"]})
        sides[-1] |= current["versions"]
    was, now = sides
    pairs = [(key, was.get(key) or "none", now.get(key) or "none") for key in dict.fromkeys([*was, *now])]
    return [f"{key} {old} -> {new}" for key, old, new in pairs if old != new]


def _refusal(path: Path, problem: str, changes: Sequence[str]) -> ErcfusionError:
    """The error with as many changes as fit."""
    text = problem
    for count in range(min(len(changes), 4), 0, -1):
        more = f"; {len(changes) - count} more" if count < len(changes) else ""
        text = f"{problem}: {'; '.join(changes[:count])}{more}"
        if len(str(failure(ResumeError, path, text, ""))) + len(RESTORE) + 2 <= MAX_CHARACTERS:
            break
    begin = again_command(path.parent.parent)
    error = failure(ResumeError, path, text, f"Restore that, or begin a new run: {begin}")
    if begin and str(error).endswith(begin):
        return error
    return failure(ResumeError, path, text, RESTORE)


def again_command(folder: Path) -> str:
    """The command that begins a folder's run again elsewhere; empty in a sweep or table."""
    if not (folder / OVERRIDES).is_file():
        return ""
    typed = read_overrides(folder)
    try:
        words = shlex.split(typed["command"])
    except ValueError:
        return ""
    # python -m ercfusion.sweep, or ercfusion sweep
    if {"sweep", "reproduce", "ercfusion.sweep", "ercfusion.reproduce"}.intersection(words[:4]):
        return ""
    own = [word for word in words if word.startswith("config_dir=")]
    return command("changed run", "train", *own, *(one for one in typed["overrides"] if not one.startswith("run=")))
