"""Where the trials of a sweep are written down: SQLite in its folder, a database server, or a journal file.

Passwords stay out of files, logs and messages: what is kept of an address is :func:`masked`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError, MissingExtraError, RunError, bounded, require_extra
from ercfusion._core.files import expanded
from ercfusion._core.schemas.reading import MAX_CHARACTERS, failure

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

# Holds the address of a database whose password nobody should see on a command line.
VARIABLE = "ERCFUSION_SWEEP_STORAGE"
STUDY_FILE = "study.db"
HIDDEN = "***"

# Seconds that a process waits for another one's transaction, in SQLite.
_PATIENCE = 120
# Tries to make the tables of an empty database, and what SQLite says if another process is making them.
_ATTEMPTS = 10
_MEANWHILE = re.compile("already exists|database is locked")
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}


def require_optuna() -> None:
    """Raise :class:`MissingExtraError` where Optuna is not installed; quiet it where it is."""
    require_extra("optuna", "sweep", "ercfusion.sweep")
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna\..*")


def normalized(storage: str) -> str:
    """The address in one form: ``journal:PATH`` with an absolute path, or a URL with a driver that is installed.

    Raises:
        ConfigError: neither a URL nor a journal.
    """
    if storage.startswith("journal:") or (storage.endswith(".journal") and "://" not in storage):
        return f"journal:{expanded(storage.removeprefix('journal:')).absolute()}"
    kind, colon, rest = storage.partition("://")
    if not colon:
        raise ConfigError(
            f"sweep.storage={storage}: a database URL (postgresql://USER@HOST/NAME, mysql://.., sqlite:///FILE) or "
            "journal:FILE is expected"
        )
    kind = {"postgres": "postgresql"}.get(kind, kind)
    driver = _DRIVERS.get(kind)
    if driver is not None and importlib.util.find_spec(driver) is not None:
        kind = f"{kind}+{driver}"
    return f"{kind}://{rest}"


def masked(storage: str) -> str:
    """The address without its password."""
    storage = re.sub(r"(://[^/@:]*):.*@", rf"\1:{HIDDEN}@", storage)
    return re.sub(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&]*", rf"\1{HIDDEN}", storage, flags=re.IGNORECASE)


def has_password(storage: str) -> bool:
    """Whether an address holds, or held before it was masked, a password."""
    return masked(storage) != storage or HIDDEN in storage


def secrets_of(storage: str) -> list[str]:
    """The passwords in an address, as written and decoded."""
    from urllib.parse import unquote

    found = re.findall(r"://[^/@:]*:(.*)@", storage)
    found += re.findall(r"[?&](?:password|passwd|pwd|sslpassword)=([^&]*)", storage, flags=re.IGNORECASE)
    return sorted({form for text in found for form in (text, unquote(text)) if form}, key=len, reverse=True)


def without_secrets(text: str, storage: str | None) -> str:
    """A message in which no password of the storage occurs."""
    for secret in secrets_of(storage or ""):
        text = text.replace(secret, HIDDEN)
    return text


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """The storage of a sweep.

    Args:
        storage: :func:`normalized`; None for SQLite in ``folder``.
        folder: Of the sweep.

    Raises:
        ConfigError: no such kind of database.
        MissingExtraError: its driver is not installed.
        RunError: it cannot be reached.
    """
    require_optuna()
    shown = str(folder / STUDY_FILE) if storage is None else masked(storage)
    with named_failures(storage):
        try:
            if storage is not None and storage.startswith("journal:"):
                return _journal(Path(storage.removeprefix("journal:")))
            return _database(storage or sqlite_url(folder / STUDY_FILE))
        except ErcfusionError:
            raise
        except (ImportError, ModuleNotFoundError) as error:
            kind = shown.partition("://")[0].partition("+")[0]
            driver = {"postgresql": "psycopg[binary]", "mysql": "pymysql"}.get(kind, "a driver")
            raise MissingExtraError(
                f"sweep.storage={shown} needs a driver that is not installed. Install it with: pip install '{driver}'"
            ) from error
        except Exception as error:
            raise RunError(bounded(f"the storage {shown} cannot be opened: {_words(error)[:120]}")) from error


def damaged(storage: str | None, folder: Path, problem: str) -> ErcfusionError:
    """The error about a storage that holds other things than a sweep writes.

    Args:
        storage: See :func:`open_storage`.
        folder: Of the sweep.
        problem: What is wrong.
    """
    shown = folder / STUDY_FILE if storage is None else masked(storage)
    advice = "Restore it from a copy, or begin a new sweep."
    return failure(RunError, shown, f" is damaged: {without_secrets(problem, storage)}", advice)


@contextmanager
def named_failures(storage: str | None) -> Iterator[None]:
    """Failures of a storage inside the block become a :class:`RunError` without passwords."""
    try:
        yield
    except ErcfusionError as error:
        if secrets_of(storage or ""):
            raise type(error)(without_secrets(str(error), storage)) from None
        raise
    except Exception as error:
        if not is_storage_failure(error) and not isinstance(error, json.JSONDecodeError):  # a line of a journal
            raise
        shown = masked(storage) if storage is not None else STUDY_FILE
        message = without_secrets(f"the storage {shown} failed: {_words(error)}", storage)
        raise RunError(message if len(message) <= MAX_CHARACTERS else message[: MAX_CHARACTERS - 3] + "...") from None


def is_storage_failure(error: BaseException) -> bool:
    """Whether an exception is the storage's, and not the trial's."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError)


def _words(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__  # the driver's own words are the most telling
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0].strip()


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file. Optuna reads braces in an address as a template."""
    return f"sqlite:///{str(path).replace('{', '{{').replace('}', '}}')}"


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy import event
    from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, OperationalError, ProgrammingError

    sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server may have been restarted meanwhile
    if sqlite:
        options["connect_args"] = {"timeout": _PATIENCE}
    elif "psycopg" in url:
        # Old databases without an encoding would otherwise give bytes for texts.
        options["connect_args"] = {"connect_timeout": 20, "client_encoding": "utf8"}
    for attempt in range(_ATTEMPTS):
        try:
            storage = RDBStorage(url, engine_kwargs=options)
            break
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(f"sweep.storage={masked(url)} is no database URL: {_words(error)}") from None
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Processes that make the tables of an empty database at the same moment: the slower ones fail at a table
            # that a quicker one has just made. SQLite has one kind of error for this and for a disk that fails.
            if attempt == _ATTEMPTS - 1 or (isinstance(error, OperationalError) and not _MEANWHILE.search(str(error))):
                raise
            time.sleep(min(0.1 * 2**attempt, 2.0))
    if sqlite:
        # A transaction that begins by reading fails at once, whatever the timeout, where another process has written
        # before it comes to write. One that takes the lock at its beginning waits.
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def chosen_storage(typed: str | None) -> str | None:
    """The storage of a new sweep: what was typed, else :data:`VARIABLE`, else None for a file in its folder."""
    given = typed or os.environ.get(VARIABLE) or None
    return normalized(given) if given is not None else None


def kept_storage(typed: str | None, kept: str | None) -> str | None:
    """The storage of a sweep that is resumed.

    Args:
        typed: ``sweep.storage`` as typed now; a database may have moved.
        kept: As the folder has it, :func:`masked`.

    Raises:
        ConfigError: the address had a password, which is not kept, and nothing gives it again.
    """
    if typed is not None:
        return normalized(typed)
    if kept is None or not has_password(kept):
        return kept
    if not os.environ.get(VARIABLE):
        raise ConfigError(
            f"the trials of this sweep are in {kept}, whose password is kept nowhere: give the whole address again, in "
            f"the environment variable {VARIABLE} or as sweep.storage=URL"
        )
    return normalized(os.environ[VARIABLE])
