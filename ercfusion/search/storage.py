"""Storage of trials: SQLite in the sweep's folder, a database server, or a journal file.

Files, logs and messages have only :func:`masked` addresses.
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

from ercfusion._core.errors import (
    ConfigError,
    ErcfusionError,
    MissingExtraError,
    RunError,
    bounded,
    first_line,
    require_extra,
)
from ercfusion._core.files import expanded
from ercfusion._core.schemas.reading import MAX_CHARACTERS, failure

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

# Address of a database with a password that must not be on a command line.
VARIABLE = "ERCFUSION_SWEEP_STORAGE"
STUDY_FILE = "study.db"
HIDDEN = "***"

# Seconds of waiting for another transaction in SQLite.
_PATIENCE = 120
# Attempts to create tables, and SQLite's messages if another process creates them.
_ATTEMPTS = 10
_MEANWHILE = re.compile("already exists|database is locked")
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}


def require_optuna() -> None:
    """Raise :class:`MissingExtraError` without Optuna; else silence its log."""
    require_extra("optuna", "sweep", "ercfusion.sweep")
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna\..*")


def normalized(storage: str) -> str:
    """``journal:PATH`` with an absolute path, or a URL with an installed driver.

    Raises:
        ConfigError: neither a URL nor a journal.
    """
    if storage.startswith("journal:") or (storage.endswith(".journal") and "://" not in storage):
        return f"journal:{expanded(storage.removeprefix('journal:')).absolute()}"
    kind, colon, rest = storage.partition("://")
    if not colon:
        raise ConfigError(
            f"sweep.storage={storage} is not an address. Give a database URL (postgresql://USER@HOST/NAME, mysql://.., "
            "sqlite:///FILE) or journal:FILE."
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
    """Whether an address has a password, masked or not."""
    return masked(storage) != storage or HIDDEN in storage


def secrets_of(storage: str) -> list[str]:
    """The passwords in an address, verbatim and decoded."""
    from urllib.parse import unquote

    passwords = re.findall(r"://[^/@:]*:(.*)@", storage)
    passwords += re.findall(r"[?&](?:password|passwd|pwd|sslpassword)=([^&]*)", storage, flags=re.IGNORECASE)
    return sorted({form for text in passwords for form in (text, unquote(text)) if form}, key=len, reverse=True)


def without_secrets(text: str, storage: str | None) -> str:
    """A text without the storage's passwords."""
    for secret in secrets_of(storage or ""):
        text = text.replace(secret, HIDDEN)
    return text


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """Open a storage.

    Args:
        storage: :func:`normalized`; None for SQLite in ``folder``.

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
        except ImportError as error:
            kind = shown.partition("://")[0].partition("+")[0]
            driver = {"postgresql": "psycopg[binary]", "mysql": "pymysql"}.get(kind, "a driver")
            raise MissingExtraError(
                f"sweep.storage={shown} needs a driver that is not installed. Install it with: pip install '{driver}'"
            ) from error
        except Exception as error:
            raise RunError(
                bounded(f"the storage {shown} cannot be opened: {_words(error)[:120]}. Check its address and server.")
            ) from error


def damaged(storage: str | None, folder: Path, problem: str) -> ErcfusionError:
    """The error about a storage with unexpected content; arguments as in :func:`open_storage`."""
    shown = folder / STUDY_FILE if storage is None else masked(storage)
    advice = "Restore it from a copy, or begin a new sweep."
    return failure(RunError, shown, f" is damaged: {without_secrets(problem, storage)}", advice)


@contextmanager
def named_failures(storage: str | None) -> Iterator[None]:
    """Turn failures of a storage into :class:`RunError` without passwords."""
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
        advice = " Check the database, then resume the sweep."
        message = without_secrets(f"the storage {shown} failed: {_words(error)}.", storage)
        most = MAX_CHARACTERS - len(advice)
        raise RunError((message if len(message) <= most else message[: most - 3] + "...") + advice) from None


def is_storage_failure(error: BaseException) -> bool:
    """Whether an exception is the storage's, not the trial's."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError)


def _words(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__  # the driver's own message is the clearest
    return first_line(error).rstrip(".")


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file, with braces doubled for Optuna."""
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
    options: dict[str, Any] = {"pool_pre_ping": True}  # the server may have been restarted
    if sqlite:
        options["connect_args"] = {"timeout": _PATIENCE}
    elif "psycopg" in url:
        # Old databases would return bytes instead of texts.
        options["connect_args"] = {"connect_timeout": 20, "client_encoding": "utf8"}
    for attempt in range(_ATTEMPTS):
        try:
            storage = RDBStorage(url, engine_kwargs=options)
            break
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(
                f"sweep.storage={masked(url)} is not a database URL: {_words(error)}. Correct the address."
            ) from None
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Several processes create the tables of an empty database: the slower ones fail at an existing table.
            # SQLite has one type of error for this and for a failing disk.
            if attempt == _ATTEMPTS - 1 or (isinstance(error, OperationalError) and not _MEANWHILE.search(str(error))):
                raise
            time.sleep(min(0.1 * 2**attempt, 2.0))
    if sqlite:
        # A transaction that starts by reading fails at once, whatever the timeout, if another process writes first. One
        # that takes the lock at its start waits.
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def chosen_storage(typed: str | None) -> str | None:
    """As typed, else from :data:`VARIABLE`, else None for a file in the folder."""
    address = typed or os.environ.get(VARIABLE) or None
    return normalized(address) if address is not None else None


def resumed_storage(typed: str | None, stored: str | None) -> str | None:
    """The storage of a resumed sweep.

    Args:
        typed: ``sweep.storage`` as typed now.
        stored: From the folder, :func:`masked`.

    Raises:
        ConfigError: a password is needed and not given again.
    """
    if typed is not None:
        return normalized(typed)
    if stored is None or not has_password(stored):
        return stored
    if not os.environ.get(VARIABLE):
        raise ConfigError(
            f"sweep.storage: the trials are in {stored}, and its password is not stored. Give the whole address again, "
            f"in the environment variable {VARIABLE} or as sweep.storage=URL."
        )
    return normalized(os.environ[VARIABLE])
