"""Run folders: made, opened, and thrown away where nothing came of them; see :mod:`ercfusion.training.run`."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError, RunError
from ercfusion._core.files import atomic_write, expanded, is_leftover, remove_leftovers
from ercfusion._core.schemas.reading import check, read_json
from ercfusion.config.hints import resume_command
from ercfusion.config.schema import run_config, sweep_config
from ercfusion.config.settings import Config, section_from
from ercfusion.data.curriculum import TABLE
from ercfusion.records.record import command_line, environment
from ercfusion.records.run_schema import Environment, Overrides
from ercfusion.training.processes import FOLDER_VARIABLE as FOLDER_VARIABLE  # what users of this module also need
from ercfusion.training.processes import is_first_process as is_first_process
from ercfusion.training.processes import said_once, shared_folder

logger = logging.getLogger("ercfusion")

DAMAGED = "The file was changed or damaged: restore it, or begin a new run."


def new_run_folder(config: Mapping[str, Any], overrides: Sequence[str], command: str | None = None) -> Path:
    """Make the folder of a new run and write down what it is; see :func:`describe`.

    Raises:
        RunError: ``run=`` names a folder that is not empty.
        ConfigError: a number is out of its range, or the launcher started another number of processes.
    """
    with said_once():
        settings = Config.from_dict(config)
    made: list[Path] = []

    def make() -> Path:
        made.append(empty_folder(settings, "train", f"-seed{settings.root.seed}"))
        describe(made[0], config, overrides, command)
        return made[0]

    try:
        return shared_folder(settings.trainer, make)
    except (ErcfusionError, OSError):
        if made:
            discard_if_empty(made[0])
        raise


CONFIG, OVERRIDES, ENVIRONMENT = "config.json", "overrides.json", "environment.json"
DESCRIPTION = (ENVIRONMENT, OVERRIDES, CONFIG)
"""What says what a folder will hold, in the order in which it is written."""


def is_described(folder: Path) -> bool:
    """Whether a folder can be resumed: what :func:`describe` writes is all there."""
    return all((folder / name).is_file() for name in DESCRIPTION)


def is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing, or no more than a process that was killed while it described it has left."""
    names = {path.name for path in folder.iterdir() if not is_leftover(path.name)}
    # The log and the table may be there where discarding a run was interrupted.
    return names <= {*DESCRIPTION, "train.log", TABLE} and not names.issuperset(DESCRIPTION)


def describe(folder: Path, config: Mapping[str, Any], overrides: Sequence[str], command: str | None = None) -> None:
    """Write down what a folder will hold: its configuration, what was typed, and the environment.

    What was typed comes with the run's identity, a random number that its checkpoints repeat.

    ``config.json`` comes last: a folder that has it can be resumed, and one that has it not is as good as empty.

    Args:
        folder: Of the run.
        config: Resolved.
        overrides: As typed.
        command: The command line; None for that of this process.
    """
    remove_leftovers(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    write_json(folder / ENVIRONMENT, environment())
    typed = {"overrides": list(overrides), "command": command or command_line(), "run": secrets.token_hex(8)}
    write_json(folder / OVERRIDES, typed)
    write_json(folder / CONFIG, config)


def empty_folder(config: Config, command: str, ending: str = "") -> Path:
    """The folder that ``run=`` names, or a new one (see :func:`free_folder`).

    Raises:
        RunError: ``run=`` names a folder that is not empty.
    """
    if config.root.run is None:
        return free_folder(config, command, ending).resolve()
    folder = expanded(config.root.run)
    if folder.is_dir() and not is_unused(folder):
        raise RunError(
            f"run={folder} is not empty, and nothing is overwritten. Choose another folder{_what_is_there(folder)}"
        )
    _make(folder)
    return folder.resolve()


# The folders above a run folder that were made for it: they go with it where nothing comes of the run.
_parents_of: dict[Path, list[Path]] = {}


def _make(folder: Path) -> None:
    """Make a folder and those above it, and remember which were made."""
    missing = [path for path in folder.absolute().parents if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _parents_of[folder.resolve()] = missing


def discard(folder: Path) -> None:
    """Remove a folder with its content, and the folders above it that were made for it and are empty now."""
    # What describes it last, and of that its configuration first: whenever this is interrupted, the folder can be
    # resumed, or is as good as new.
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in DESCRIPTION:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for name in reversed(DESCRIPTION):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in _parents_of.pop(folder, []):
        try:
            parent.rmdir()
        except OSError:  # another run is in it
            return


def _what_is_there(folder: Path) -> str:
    """How to go on with a run or a sweep in ``folder``; a full stop where there is none."""
    if not is_described(folder):
        return "."
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "."
    module = "sweep" if isinstance(config, dict) and "study" in config else "train"
    again = resume_command("occupied run", module, folder)
    return f", or go on with what is there: {again}"


def free_folder(config: Config, command: str, ending: str = "") -> Path:
    """A new folder ``OUTPUT/COMMAND/MODEL-DATA/TIME`` and ``ending``."""
    stem = datetime.now().strftime("%Y%m%d-%H%M%S") + ending
    model = config.preset.model.replace(":", ".")  # module:Class is no name of a folder on every system
    parent = expanded(config.root.output) / command / f"{model}-{config.data.name}"
    above = [path for path in (parent.absolute(), *parent.absolute().parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        try:
            (parent / (stem + suffix)).mkdir()
        except FileExistsError:
            continue  # another run started in the same second
        _parents_of[(parent / (stem + suffix)).resolve()] = above
        return parent / (stem + suffix)
    raise RunError(f"{parent} is full of runs that began at {stem}")


def open_run_folder(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """An existing run folder and its configuration.

    Raises:
        RunError: not a folder, without a readable ``config.json``, or a part of its description is missing.
    """
    with said_once():
        path, config = read_config(folder)
        for name in DESCRIPTION:
            if not (path / name).is_file():
                remedy = (
                    f"nothing was trained there yet: begin anew in it with run={folder} and the settings of the run"
                    if is_unused(path)
                    else "copy it back from where it was moved to, or begin anew in another folder"
                )
                raise RunError(f"{folder} has no {name}, so it cannot be resumed; {remedy}")

    def tidied() -> Path:
        remove_leftovers(path, deep=True)
        return path

    return shared_folder(section_from("trainer", config["trainer"]), tidied), config


def read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """A folder's absolute path and its ``config.json``, of a run or a sweep; see :func:`open_run_folder`."""
    path = expanded(folder).resolve()
    if not path.is_dir():
        raise RunError(f"{folder} is not a folder")
    if not (path / CONFIG).exists():
        if is_unused(path) and any(path.iterdir()):
            raise RunError(
                f"{folder} has no {CONFIG}: its process was stopped before anything was done there. Begin in it with "
                f"run={folder} and the settings that were meant"
            )
        raise RunError(f"{folder} has no {CONFIG}: it is no run folder of ercfusion")
    config: dict[str, Any] = read_json(path / "config.json", advice=DAMAGED)
    check_config(config, path)
    return path, config


def check_config(config: dict[str, Any], folder: Path) -> None:
    """Check a configuration; once more when its modules are imported, whose loss terms have settings of their own.

    Raises:
        RunError: an entry that does not fit; the message names it.
    """
    is_sweep = isinstance(config, dict) and "sweep" in config
    check(config, sweep_config() if is_sweep else run_config(), folder / CONFIG, advice=DAMAGED)


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json`` of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    found: dict[str, Any] = read_json(folder / "environment.json", Environment, advice=DAMAGED)
    return found


def read_overrides(folder: Path) -> dict[str, Any]:
    """``overrides.json`` of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    found: dict[str, Any] = read_json(folder / "overrides.json", Overrides, advice=DAMAGED)
    return found


def run_identity(folder: Path) -> str:
    """The identity of the run in a folder; empty if nothing describes the folder.

    Raises:
        RunError: ``overrides.json`` is damaged.
    """
    return str(read_overrides(folder)["run"]) if (folder / OVERRIDES).is_file() else ""


def discard_if_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before its first epoch: it holds nothing but its own description."""
    own = {*DESCRIPTION, "train.log", TABLE}
    if is_first_process() and folder.is_dir() and {path.name for path in folder.iterdir()} <= own:
        discard(folder)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, complete or absent."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(value, indent=2) + "\n")


class _LogFile(logging.FileHandler):
    """A log that cannot be written, as on a full disk, ends no run and prints nothing: other files of the run will."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """As in the class's first line; other errors are shown as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Also write what is logged to ``path``, appending, so that a resumed run keeps what was said before."""
    if not is_first_process():
        yield
        return
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        handler.emit(logger.makeRecord("ercfusion", logging.ERROR, "", 0, f"stopped: {error!r}", (), None))
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
