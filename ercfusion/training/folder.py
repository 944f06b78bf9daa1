"""Create, open and discard run folders."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ErcfusionError, RunError
from ercfusion._core.files import expanded, is_leftover, remove_leftovers, write_json
from ercfusion._core.schemas.reading import check, read_json
from ercfusion.config.hints import resume_command
from ercfusion.config.schema import run_config, sweep_config
from ercfusion.config.settings import Config, section_from
from ercfusion.data.curriculum import TABLE
from ercfusion.records.record import command_line, environment
from ercfusion.records.run_schema import Environment, Overrides
from ercfusion.training.processes import FOLDER_VARIABLE as FOLDER_VARIABLE  # re-exported for users of this module
from ercfusion.training.processes import from_first_process, shared_folder
from ercfusion.training.processes import is_first_process as is_first_process

logger = logging.getLogger("ercfusion")

DAMAGED = "The file was changed or damaged. Restore it, or begin a new run."


def new_run_folder(config: Mapping[str, Any], overrides: Sequence[str], command: str | None = None) -> Path:
    """Create the folder of a new run and its description.

    Raises:
        RunError: ``run=`` names a folder with content.
        ConfigError: a number is out of range, or another number of processes was started.
    """
    with from_first_process():
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
"""Files describing a folder, in the order of writing."""
CHECKPOINTS = "checkpoints"
START = "start.json"
"""How training began, if not from random weights with all parts trained."""
TEACHER = "teacher.safetensors"
"""Outputs of another model for the training split, if a run has a teacher."""
STAGES = "stages"
"""Folder of the stages of a recipe, each with its own checkpoints."""


def is_described(folder: Path) -> bool:
    """Whether a folder can be resumed."""
    return all((folder / name).is_file() for name in DESCRIPTION)


def is_unused(folder: Path) -> bool:
    """Whether a folder is empty or only partly described."""
    names = {path.name for path in folder.iterdir() if not is_leftover(path.name)}
    # Left if discarding a run was interrupted.
    return names <= {*DESCRIPTION, "train.log", TABLE, START, TEACHER} and not names.issuperset(DESCRIPTION)


def describe(folder: Path, config: Mapping[str, Any], overrides: Sequence[str], command: str | None = None) -> None:
    """Write a folder's configuration, typed arguments and environment.

    ``overrides.json`` also has the run's identity, a random number repeated in its checkpoints. ``config.json`` comes
    last: a folder without it counts as empty.

    Args:
        command: None for the command line of this process.
    """
    remove_leftovers(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    write_json(folder / ENVIRONMENT, environment())
    typed = {"overrides": list(overrides), "command": command or command_line(), "run": secrets.token_hex(8)}
    write_json(folder / OVERRIDES, typed)
    write_json(folder / CONFIG, config)


def empty_folder(config: Config, command: str, ending: str = "") -> Path:
    """The folder named by ``run=``, or a new one (:func:`free_folder`).

    Raises:
        RunError: ``run=`` names a folder with content.
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


# Parent folders created for a run, removed with it.
_parents_of: dict[Path, list[Path]] = {}


def _make(folder: Path) -> None:
    """Create a folder, and remember which parents were missing."""
    missing = [path for path in folder.absolute().parents if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _parents_of[folder.resolve()] = missing


def discard(folder: Path) -> None:
    """Remove a folder and its created parents, if empty."""
    # The description goes last, its configuration first: an interrupted folder can be resumed or counts as empty.
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
    """How to resume what is in ``folder``; only a full stop if nothing is."""
    if not is_described(folder):
        return "."
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "."
    module = "sweep" if isinstance(config, dict) and "study" in config else "train"
    command = resume_command("occupied run", module, folder)
    return f", delete this one, or resume its run, with its settings: {command}"


def free_folder(config: Config, command: str, ending: str = "") -> Path:
    """Create ``OUTPUT/COMMAND/MODEL-DATA/TIME`` + ``ending``."""
    stem = datetime.now().strftime("%Y%m%d-%H%M%S") + ending
    model = config.preset.model.replace(":", ".")  # some file systems refuse the colon of module:Class
    parent = expanded(config.root.output) / command / f"{model}-{config.data.name}"
    missing_parents = [path for path in (parent.absolute(), *parent.absolute().parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        try:
            (parent / (stem + suffix)).mkdir()
        except FileExistsError:
            continue  # another run started in the same second
        _parents_of[(parent / (stem + suffix)).resolve()] = missing_parents
        return parent / (stem + suffix)
    raise RunError(f"{parent}: all folder names that start with {stem} are taken. Set run=DIR to a new folder.")


def open_run_folder(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Open a run folder; returns its path and configuration.

    Raises:
        RunError: not a folder, or its description is incomplete.
    """
    with from_first_process():
        path, config = read_config(folder)
        for name in DESCRIPTION:
            if (path / name).is_file():
                continue
            if is_unused(path):
                raise RunError(
                    f"{folder} has no {name}: nothing was trained there yet. Start the run again with run={folder} and "
                    "its settings."
                )
            raise RunError(
                f"{folder} has no {name}, so it cannot be resumed. Copy the file back, or begin a new run elsewhere."
            )

    def tidied() -> Path:
        remove_leftovers(path, deep=True)
        return path

    return shared_folder(section_from("trainer", config["trainer"]), tidied), config


def read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Absolute path and ``config.json`` of a run's or sweep's folder.

    Raises:
        RunError: not a folder, or without a readable ``config.json``.
    """
    path = expanded(folder).resolve()
    if not path.is_dir():
        raise RunError(f"{folder} is not a folder. Give the folder of a run or a sweep.")
    if not (path / CONFIG).exists():
        if is_unused(path) and any(path.iterdir()):
            raise RunError(
                f"{folder} has no {CONFIG}: its process was stopped before training. Start the run again with "
                f"run={folder} and its settings."
            )
        raise RunError(f"{folder} has no {CONFIG}: not a run folder. Give the folder of a run or a sweep.")
    config: dict[str, Any] = read_json(path / "config.json", advice=DAMAGED)
    check_config(config, path)
    return path, config


def check_config(config: dict[str, Any], folder: Path) -> None:
    """Check a configuration; again after its imports, whose loss terms have own settings.

    Raises:
        RunError: a value does not fit; the message names its key.
    """
    is_sweep = isinstance(config, dict) and "sweep" in config
    check(config, sweep_config() if is_sweep else run_config(), folder / CONFIG, advice=DAMAGED)


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json`` of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    content: dict[str, Any] = read_json(folder / "environment.json", Environment, advice=DAMAGED)
    return content


def read_overrides(folder: Path) -> dict[str, Any]:
    """``overrides.json`` of a run folder.

    Raises:
        RunError: missing or damaged.
    """
    content: dict[str, Any] = read_json(folder / "overrides.json", Overrides, advice=DAMAGED)
    return content


def run_identity(folder: Path) -> str:
    """The identity of the run in a folder; empty without a description.

    Raises:
        RunError: ``overrides.json`` is damaged.
    """
    return str(read_overrides(folder)["run"]) if (folder / OVERRIDES).is_file() else ""


def has_begun(folder: Path) -> bool:
    """Whether training started in a run folder or one of its stages; the trainer then creates ``checkpoints/``."""
    return (folder / CHECKPOINTS).is_dir() or any(folder.glob(f"{STAGES}/*/{CHECKPOINTS}"))


def with_folder(message: str, folder: Path) -> str:
    """The message of a failed run, with the run's folder if training started and the message does not contain it."""
    return f"{message}\nThe run folder is {folder}" if has_begun(folder) and str(folder) not in message else message


def discard_if_empty(folder: Path) -> None:
    """Remove a run folder in which training did not start."""
    own = {*DESCRIPTION, "train.log", TABLE, START, TEACHER}
    if is_first_process() and folder.is_dir() and {path.name for path in folder.iterdir()} <= own:
        discard(folder)


class _LogFile(logging.FileHandler):
    """Log file ignoring a full disk: other files of the run will fail, with a message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore errors of the operating system."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def log_file(path: Path) -> Iterator[Callable[[str], None]]:
    """Also append log messages to ``path``; yields a function writing lines of text into this file only."""
    if not is_first_process():
        yield lambda text: None
        return
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)

    def write(text: str) -> None:
        for line in filter(None, text.splitlines()):
            handler.emit(logger.makeRecord("ercfusion", logging.INFO, "", 0, line, (), None))

    try:
        yield write
    except BaseException as error:
        write(f"stopped: {error!r}")
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Hide two of the trainer's warnings, about its own code and about frozen parts; commands hide all of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".isinstance\(treespec, LeafSpec\). is deprecated")
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # frozen parts
        yield
