"""Files and folders that are either complete or absent, checksums, and where the cache lies.

A name that readers look for must never lead to something half-written, whatever interrupts the writer. So content is
built under a hidden temporary name beside its target (on the same file system: renaming must not copy), forced to disk,
and renamed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from ercfusion.errors import RunError

StrPath = str | os.PathLike[str]

# Temporaries of a killed writer are removed by the next writer of the same name, but only when nothing in them has
# changed for a day: a younger one may belong to a writer at work.
_LEFTOVER_SECONDS = 24 * 3600


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/ercfusion``, or ``~/.cache/ercfusion`` (not created)."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path there is to be ignored.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "ercfusion"


def shipped_folder(installed: str, checkout: str) -> Path:
    """A folder that comes with the library.

    Args:
        installed: Its name inside the installed package.
        checkout: Its name in a checkout, beside the package.
    """
    package = Path(__file__).resolve().parent
    folder = package / installed
    return folder if folder.is_dir() else package.parent / checkout


def sha256_of(path: StrPath) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@overload
def atomic_write(path: StrPath, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def atomic_write(path: StrPath, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
def atomic_write(path: StrPath, mode: Literal["w", "wb"] = "w") -> AbstractContextManager[Any]:
    """A stream whose content appears under ``path`` only when the block ends without an exception.

    Until then, and after a failure, an older file of that name stays as it was. Folders on the way are created; where
    ``path`` is a symbolic link, the file that it leads to is replaced. Text is UTF-8 with the line ends as given.

    Raises:
        OSError: the file cannot be written.
    """
    return _writing(path, mode)


@contextmanager
def _writing(path: StrPath, mode: str) -> Iterator[IO[Any]]:
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    try:
        # "x" rather than tempfile.mkstemp: the file gets the permissions that the user's umask asks for.
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with open(temporary, mode.replace("w", "x"), **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


@contextmanager
def atomic_folder(path: StrPath, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which appears as ``path`` only when the block ends without an exception.

    Args:
        path: The final name. Folders on the way are created.
        overwrite: Replace what is there, once the new folder is complete. (Two renames: a machine that stops exactly
            between them leaves the old folder beside the target under a hidden name ending in ``.replaced``.)

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False. It is raised at the end of the block too, when
            another process was faster; exactly one of several concurrent writers wins.
        OSError: the folder cannot be written.
    """
    final = Path(os.path.realpath(path))
    if not overwrite and _occupied(final):
        raise FileExistsError(f"{final} exists")
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final)
    temporary = _temporary(final)
    temporary.mkdir()
    try:
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            if inner.is_file():
                with inner.open("rb+") as stream:
                    os.fsync(stream.fileno())
            elif inner.is_dir():
                _sync_folder(inner)
        _sync_folder(temporary)
        if overwrite and _occupied(final):
            _exchange(temporary, final)
        else:
            _rename_to_free(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(final.parent)


@contextmanager
def one_at_a_time(folder: StrPath, work: str) -> Iterator[None]:
    """Let one process at a time do some work in a folder.

    Args:
        folder: Created where it is not there; the lock is a hidden file in it.
        work: What is done, for the message.

    Raises:
        RunError: another process is doing it.
    """
    from filelock import FileLock, Timeout

    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another process is working on {work} in {folder}") from None
    try:
        yield
    finally:
        lock.release()


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.{secrets.token_hex(6)}.partial")


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


def _rename_to_free(temporary: Path, final: Path) -> None:
    try:
        # POSIX renames onto an empty folder and refuses one with content, in a single step: there is no gap between
        # looking and renaming in which another writer could be overwritten.
        os.rename(temporary, final)
    except OSError as error:
        if _occupied(final):
            raise FileExistsError(f"{final} exists: another process was faster") from error
        raise


def _exchange(temporary: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.{secrets.token_hex(6)}.replaced")
    os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    endings = ("partial", "replaced") if final.exists() else ("partial",)
    for ending in endings:
        for leftover in final.parent.glob(f".{glob.escape(final.name)}.*.{ending}"):
            try:
                newest = max(entry.stat().st_mtime for entry in (leftover, *leftover.rglob("*")))
            except OSError:
                continue
            if leftover.is_dir() and time.time() - newest > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    # A rename is lasting only once its folder is on disk. Windows cannot open folders, and some network file systems
    # refuse to sync them; the content is synced either way.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
