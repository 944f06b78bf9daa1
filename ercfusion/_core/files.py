"""Files and folders that are either complete or absent, checksums, and the cache folder.

Content is written under a hidden temporary name in the same folder, synced and renamed. The writer holds a lock
(``flock``) on it, so :func:`remove_leftovers` recognises and deletes temporary files of killed processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from ercfusion._core.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

LOCK = ".lock"
"""Name of the lock file of :func:`one_at_a_time`."""

_HIDDEN = re.compile(r"\.(?P<name>.+)\.ercfusion-[0-9a-f]{12}\.(?P<kind>partial|replaced)", re.DOTALL)


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/ercfusion``, or ``~/.cache/ercfusion`` (not created).

    Raises:
        RunError: The user has no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard ignores relative paths here.
    if os.path.isabs(root):
        return Path(root) / "ercfusion"
    try:
        return Path.home() / ".cache" / "ercfusion"
    except RuntimeError as error:
        raise RunError(
            "this user has no home folder. Set the environment variable XDG_CACHE_HOME to a folder for the cache."
        ) from error


def expanded(path: StrPath) -> Path:
    """Replace ``~`` by the home folder, if it exists."""
    return Path(os.path.expanduser(path))


def shipped_folder(installed: str, checkout: str) -> Path:
    """A folder with data of the library: ``installed`` in the package, or ``checkout`` next to it."""
    package = Path(__file__).resolve().parents[1]
    folder = package / installed
    return folder if folder.is_dir() else package.parent / checkout


def sha256_of(path: StrPath) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@overload
def atomic_write(path: StrPath, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def atomic_write(path: StrPath, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
def atomic_write(path: StrPath, mode: Literal["w", "wb"] = "w") -> AbstractContextManager[Any]:
    r"""Write a file that replaces ``path`` only if the block ends without an exception.

    Parent folders are created; symbolic links are followed. Text is UTF-8 with ``\n`` line ends.
    """
    return _writing(path, mode)


@contextmanager
def _writing(path: StrPath, mode: str) -> Iterator[IO[Any]]:
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    with _building(final, folder=False) as temporary:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with open(temporary, mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    _sync_folder(final.parent)


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(
    path: StrPath, *, overwrite: bool = False, discard: Callable[[Path], None] = _remove_tree
) -> Iterator[Path]:
    """Fill an empty folder that becomes ``path`` only if the block ends without an exception.

    Args:
        path: Final name. Parent folders are created.
        overwrite: Replace an existing folder, in one step on Linux. Elsewhere, :func:`remove_leftovers` restores the
            old folder after a kill between the two steps.
        discard: Removes the old folder, which then has a hidden name.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False; also at the end of the block.
    """
    final = Path(os.path.realpath(path))
    if not overwrite and _occupied(final):
        raise FileExistsError(f"{final} exists")
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, discard=discard if overwrite else None)
    with _building(final, folder=True) as temporary:
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            if inner.is_file():
                with inner.open("rb+") as stream:
                    os.fsync(stream.fileno())
            elif inner.is_dir():
                _sync_folder(inner)
        _sync_folder(temporary)
        if overwrite and _occupied(final):
            _replace(temporary, final, discard)
        else:
            _rename_to_free(temporary, final)
    _sync_folder(final.parent)


@contextmanager
def scratch_folder(target: StrPath) -> Iterator[Path]:
    """A hidden temporary folder next to ``target``, removed at the end of the block."""
    final = Path(os.path.realpath(target))
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    with _building(final, folder=True) as folder:
        try:
            yield folder
        finally:
            _remove_tree(folder)


def write_json(path: StrPath, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file as :func:`atomic_write` does.

    Raises:
        ValueError: NaN or infinity, which the readers of this library refuse.
    """
    with atomic_write(path) as stream:
        stream.write(json.dumps(content, indent=indent, allow_nan=False) + "\n")


def remove_leftovers(folder: StrPath, *, deep: bool = False, discard: Callable[[Path], None] | None = None) -> None:
    """Remove temporary files of killed writers, and restore folders whose replacement was interrupted.

    Args:
        folder: May be missing.
        deep: Include subfolders.
        discard: Removes replaced folders; without it they stay.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if match := _HIDDEN.fullmatch(name):
                _settle(Path(place, name), Path(place, match["name"]), match["kind"], discard)
        folders[:] = [name for name in folders if _HIDDEN.fullmatch(name) is None]
        if not deep:
            return


def is_leftover(name: str) -> bool:
    """Whether a name is a temporary name or lock of this module."""
    return name == LOCK or _HIDDEN.fullmatch(name) is not None


@contextmanager
def one_at_a_time(folder: StrPath, work: str) -> Iterator[None]:
    """Lock a folder for one process; the folder is created.

    Raises:
        RunError: Another process holds the lock.
    """
    from filelock import FileLock, Timeout

    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is working on {work} in {folder}. Wait for it, or use another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _hidden(final: Path, kind: str) -> Path:
    return final.with_name(f".{final.name}.ercfusion-{secrets.token_hex(6)}.{kind}")


@contextmanager
def _building(final: Path, *, folder: bool) -> Iterator[Path]:
    # A locked file or folder with a hidden name; removed if the block fails.
    while True:
        temporary = _hidden(final, "partial")
        if folder:
            temporary.mkdir()
        else:
            # Not tempfile.mkstemp, which ignores the user's umask.
            temporary.touch(exist_ok=False)
        try:
            handle = _lock(temporary, wait=True)
            break
        except FileNotFoundError:
            continue  # another process removed it before it was locked
    try:
        yield temporary
    except BaseException as error:
        if folder:
            _remove_tree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        _name(error, final)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder; returns a handle to close, or None if the file system has no locks.

    Raises:
        FileNotFoundError: It was removed or replaced.
        BlockingIOError: Another process or thread has the lock (only without ``wait``).
    """
    if fcntl is None:
        return None
    try:
        # Some network file systems lock only files open for writing, and no folders.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(handle), os.stat(path)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(f"{path} was replaced")
    except (FileNotFoundError, BlockingIOError):
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _settle(leftover: Path, final: Path, kind: str, discard: Callable[[Path], None] | None) -> None:
    try:
        handle = _lock(leftover, wait=False)
    except OSError:
        return  # its writer is running, another process handles it, or access is denied
    if handle is None:
        return
    try:
        if kind == "partial":
            if leftover.is_dir():
                _remove_tree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        elif not os.path.lexists(final):
            os.rename(leftover, final)
        elif discard is not None:
            discard(leftover)
    except OSError:
        return  # harmless if nothing can be written here
    finally:
        os.close(handle)


def _name(error: BaseException, path: Path) -> None:
    """Add the path to an error of writing, which lacks it, for example on a full disk."""
    if isinstance(error, OSError):
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        return
    match = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, Exception) else None
    if match:
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


def _rename_to_free(temporary: Path, final: Path) -> None:
    try:
        # One step in POSIX: renames onto an empty folder, refuses a folder with content. No writer is overwritten.
        os.rename(temporary, final)
    except OSError as error:
        if _occupied(final):
            raise FileExistsError(f"{final} exists: another process was faster") from error
        raise


def _replace(temporary: Path, final: Path, discard: Callable[[Path], None]) -> None:
    old = _hidden(final, "replaced")
    while True:  # another process may replace it first
        try:
            handle = _lock(final, wait=True)
            break
        except FileNotFoundError:
            if not os.path.lexists(final):
                _rename_to_free(temporary, final)
                return
    try:
        if _swap(temporary, final):
            os.rename(temporary, old)
        else:
            os.rename(final, old)
            try:
                os.rename(temporary, final)
            except BaseException:
                os.rename(old, final)
                raise
        _sync_folder(final.parent)
        discard(old)
    finally:
        if handle is not None:
            os.close(handle)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from Linux's headers
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync_folder(folder: Path) -> None:
    # A rename survives a power failure only if its folder is synced. Windows and some network file systems cannot.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
