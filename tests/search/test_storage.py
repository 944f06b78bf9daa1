"""Addresses of storages: their forms, and that no password is seen."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ercfusion._core.errors import ConfigError, ErcfusionError, MissingExtraError, RunError
from ercfusion.config.compose import Composer
from ercfusion.search import storage


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("postgresql://me:pw@host/base", "postgresql://me:***@host/base", ["pw"]),
        ("mysql+pymysql://me:p%40w@host:3/b", "mysql+pymysql://me:***@host:3/b", ["p%40w", "p@w"]),
        ("postgresql://me:p@w@host/base", "postgresql://me:***@host/base", ["p@w"]),
        ("postgresql://me@host/base", "postgresql://me@host/base", []),
        ("postgresql://host/b?user=me&password=pw&x=1", "postgresql://host/b?user=me&password=***&x=1", ["pw"]),
        ("sqlite:////a/b@c:d.db", "sqlite:////a/b@c:d.db", []),
        ("journal:/a/b.journal", "journal:/a/b.journal", []),
    ],
)
def test_masking(url: str, shown: str, secrets: list[str]) -> None:
    assert storage.masked(url) == shown
    assert storage.secrets_of(url) == sorted(secrets, key=len, reverse=True)
    assert storage.has_password(url) == bool(secrets)
    assert storage.has_password(shown) == bool(secrets)
    assert not [secret for secret in secrets if secret in storage.without_secrets(f"failed: {url} {secrets}", url)]


def test_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalized("journal:x") == f"journal:{tmp_path}/x"
    assert storage.normalized("x.journal") == f"journal:{tmp_path}/x.journal"
    assert storage.normalized("sqlite:///x.db") == "sqlite:///x.db"
    pytest.importorskip("psycopg")
    for kind in ("postgres", "postgresql"):
        assert storage.normalized(f"{kind}://a@b/c") == "postgresql+psycopg://a@b/c"
    assert storage.normalized("postgresql+psycopg2://a@b/c") == "postgresql+psycopg2://a@b/c"
    with pytest.raises(ConfigError, match="a database URL"):
        storage.normalized("x.db")


def test_what_a_resumed_sweep_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(storage.VARIABLE, raising=False)
    assert storage.resumed_storage(None, None) is None
    assert storage.resumed_storage(None, "journal:/a") == "journal:/a"
    assert storage.resumed_storage("journal:/b", "journal:/a") == "journal:/b"
    assert storage.chosen_storage(None) is None
    with pytest.raises(ConfigError, match=r"password is not stored.*ERCFUSION_SWEEP_STORAGE"):
        storage.resumed_storage(None, "postgresql://me:***@h/b")
    monkeypatch.setenv(storage.VARIABLE, "sqlite:///other.db")
    assert storage.chosen_storage(None) == "sqlite:///other.db"
    assert storage.resumed_storage(None, None) is None  # the file in the folder
    assert storage.resumed_storage(None, "postgresql://me:***@h/b") == "sqlite:///other.db"


def test_addresses_need_no_quotes() -> None:
    for url in ("postgresql://me:p%40w@host:5432/base", "postgresql://me@/b?host=/run/pg&x=1", "journal:a-b/c.journal"):
        assert Composer("sweep").compose([f"sweep.storage={url}"])["sweep"]["storage"] == url


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ercfusion\[sweep\]'"):
        storage.require_optuna()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "study.db").write_text("this is no database, whatever its name says" * 100)
    for url, message in (
        (None, "study.db cannot be opened: file is not a database"),
        ("abc://x:pw@y/z", r"abc://x:\*\*\*@y/z is not a database URL"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
    ):
        with pytest.raises(ErcfusionError, match=message) as caught:
            storage.open_storage(url, tmp_path)
        assert "pw@" not in str(caught.value)


def test_a_folder_with_signs_that_addresses_read_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "with {braces} and space"
    folder.mkdir()
    storage.open_storage(None, folder)
    assert (folder / "study.db").is_file()


def fails_first(monkeypatch: pytest.MonkeyPatch, *failures: str) -> list[str]:
    """Let Optuna's storage fail with these words of SQLite, one call after the other; returns the calls' addresses."""
    import sqlite3

    optuna = pytest.importorskip("optuna")
    from sqlalchemy.exc import OperationalError

    original, calls = optuna.storages.RDBStorage, []

    def made(url: str, **options: Any) -> Any:
        calls.append(url)
        if len(calls) <= len(failures):
            raise OperationalError("CREATE TABLE", None, sqlite3.OperationalError(failures[len(calls) - 1]))
        return original(url, **options)

    monkeypatch.setattr(optuna.storages, "RDBStorage", made)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    return calls


def test_tables_that_another_process_makes_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("table studies already exists", "database is locked", "table trials already exists") * 3
    calls = fails_first(monkeypatch, *words)
    opened = storage.open_storage(None, tmp_path)
    assert opened.get_all_studies() == []
    assert len(calls) == 10


def test_other_failures_of_the_file_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fails_first(monkeypatch, "disk I/O error")
    with pytest.raises(RunError, match="disk I/O error"):
        storage.open_storage(None, tmp_path)
    assert len(calls) == 1
    calls = fails_first(monkeypatch, *["database is locked"] * 99)
    with pytest.raises(RunError, match="database is locked"):
        storage.open_storage(None, tmp_path)
    assert len(calls) == 10


def test_several_start_together_on_an_empty_file(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    together = threading.Barrier(4)

    def start() -> str:
        together.wait()
        return type(storage.open_storage(None, tmp_path)).__name__

    with ThreadPoolExecutor(4) as pool:
        assert [future.result() for future in [pool.submit(start) for _ in range(4)]] == ["RDBStorage"] * 4
