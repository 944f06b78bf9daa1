"""The run that made a checkpoint: written into it, and compared when it is resumed.

A resumed run takes everything but the checkpoint from where it is now: the configuration, the corpus, the packs. If one
of them has changed, the first epochs were trained on other things than the last, and the record would name the later
ones only. The checkpoint therefore holds, under the key :data:`KEY`:

- the identity of the run, which is also in ``overrides.json`` of its folder;
- the resolved configuration. Only settings that decide nothing (:func:`ercfusion.config.settings.decides`)
  may be others;
- checksums of labels, utterances, features and files of the corpus (:func:`ercfusion.data.identity.data_identity`);
- a checksum of everything else in the checkpoint.
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
# Parts of a checkpoint without which a resume would begin them again, by the key of the part.
_PARTS = {"callbacks": "Selection", "loops": "fit_loop"}


def make_origin(config: Mapping[str, Any], folder: Path, data: LoadedData) -> dict[str, Any]:
    """What the checkpoints of a run say about it.

    Args:
        config: Resolved.
        folder: Of the run.
        data: What it is trained on.
    """
    return {
        "format": 1,
        "run": run_identity(folder),
        "config": json.loads(json.dumps(config)),
        "data": dict(data.identity),
        "packs": {table.modality: str(table.source["pack"]) for table in data.tables if "pack" in table.source},
    }


def sealed(checkpoint: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that says which run made it."""
    checksum = content_checksum([dict(checkpoint), dict(origin)])
    return {**checkpoint, KEY: {**origin, "sha256": checksum}}


def check_origin(checkpoint: Mapping[str, Any], origin: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`ResumeError` unless a checkpoint is complete and was made by the run at hand, with what is now.

    Args:
        checkpoint: From :func:`ercfusion.training.checkpoint_schema.read_checkpoint`.
        origin: Of the run at hand.
        path: The checkpoint's file, ``checkpoints/last.ckpt`` in the folder of the run.
    """
    made: Mapping[str, Any] | None = checkpoint.get(KEY)
    if made is None:
        problem = ": it does not say with which settings and data it was made"
        raise _refusal(path, problem, [], "Begin a new run")
    _check_parts(checkpoint, path)
    rest = {name: value for name, value in checkpoint.items() if name != KEY}
    was = {name: value for name, value in made.items() if name != "sha256"}
    try:
        checksum = content_checksum([rest, was], most=path.stat().st_size)
    except ValueError as error:
        raise failure(ResumeError, path, f": {error}", ADVICE) from error
    if checksum != made["sha256"]:
        raise failure(ResumeError, path, ": its content is not what was written (the checksum differs)", ADVICE)
    changes = _changes(made, origin, path)
    if made["run"] != origin["run"]:
        raise _refusal(path, ": it is of another run", changes, "Restore the run's own")
    if changes:
        raise _refusal(path, ": changed since it was made", changes, "Restore that")


def _check_parts(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`ResumeError` if a part is missing that the trainer would do without, and begin again."""
    missing = [f"{part}.{name}" for part, name in _PARTS.items() if not checkpoint[part].get(name)]
    missing += [] if checkpoint["optimizer_states"] else ["optimizer_states"]
    if missing:
        raise failure(ResumeError, path, f": the part '{missing[0]}' is missing or empty", ADVICE)


def _changes(made: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> list[str]:
    """What differs, in words."""
    found = []
    if made["config"] != now["config"]:
        check(made["config"], run_config(), path, error=ResumeError, advice=ADVICE, prefix=f"{KEY}.config.")
        pairs = changed_settings(made["config"], now["config"]).items()
        found += [f"{key}: {shown(old)} -> {shown(new)}" for key, (old, new) in pairs]
    return found + data_changes(made["data"], now["data"], now["packs"])


def data_changes(was: Mapping[str, str], now: Mapping[str, str], packs: Mapping[str, str]) -> list[str]:
    """The entries of two identities of data that differ, in words.

    Args:
        was, now: See :func:`ercfusion.data.identity.data_identity`.
        packs: Folders of the packs that there are now, by modality.
    """
    found = []
    for key in dict.fromkeys([*was, *now]):
        if was.get(key) == now.get(key):
            continue
        pack = Path(packs.get(key.removeprefix(FEATURES), "")).name if key.startswith(FEATURES) else ""
        name = f"{key} (pack {shown(pack)})" if pack else shown(key)[1:-1]
        old, new = ("not there" if one is None else shown(one[:12])[1:-1] for one in (was.get(key), now.get(key)))
        found.append(f"{name}: {old} -> {new}")
    return found


def other_versions(folder: Path) -> list[str]:
    """Versions that are not those with which the run in a folder was begun, in words."""
    sides = []
    for found in (read_environment(folder), environment()):
        commit = (found.get("revision") or {}).get("commit", "")
        sides.append({"ercfusion": found["ercfusion"], "commit": commit[:12], "python": found["python"]})
        sides[-1] |= found["versions"]
    was, now = sides
    pairs = [(key, was.get(key) or "none", now.get(key) or "none") for key in dict.fromkeys([*was, *now])]
    return [f"{key} {old} -> {new}" for key, old, new in pairs if old != new]


def _refusal(path: Path, problem: str, changes: Sequence[str], remedy: str) -> ErcfusionError:
    """The error that names as many changes, and as long an advice, as a message has room for."""
    again = again_command(path.parent.parent)
    long = f"{remedy}, or begin a new run: {again}" if remedy != "Begin a new run" else f"{remedy}: {again}"
    short = RESTORE if remedy != "Begin a new run" else f"{remedy}."
    text = problem
    for count in range(min(len(changes), 4), 0, -1):
        more = f"; {len(changes) - count} more" if count < len(changes) else ""
        text = f"{problem}: {'; '.join(changes[:count])}{more}"
        if len(str(failure(ResumeError, path, text, ""))) + len(short) + 2 <= MAX_CHARACTERS:
            break
    found = failure(ResumeError, path, text, long if again else short)
    return found if str(found).endswith(long) else failure(ResumeError, path, text, short)


def again_command(folder: Path) -> str:
    """The command that begins the run of a folder again in another one; empty if it was begun by another command."""
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
